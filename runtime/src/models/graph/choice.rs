//! The versions that an ensemble is made of just now: those that its nodes mean, and of ensembles among them, theirs.

use std::sync::Arc;

use outrigger_backend::ModelInfo;

use super::directory::Directory;
use super::read::{Graph, Node};
use super::types::{self, Typed};
use super::{MAX_ALL_NODES, MAX_NESTED};
use crate::config::suggestion;
use crate::models::served::ServedModel;
use crate::models::versions::NamedModel;

/// What a node means.
pub(super) struct Choice {
    pub(super) named: Arc<NamedModel>,
    which: Option<String>,
    pub(super) served: Arc<ServedModel>,
    /// If that is an ensemble, what its nodes mean.
    pub(super) inner: Vec<Choice>,
}

/// Why an ensemble cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::models) enum Unfit {
    /// It never can: its graph is wrong.
    #[error("{0}")]
    Graph(String),
    /// It cannot with the versions that there are now.
    #[error("{0}")]
    Versions(String),
    /// A model has not been loaded yet, so that nobody knows its inputs and outputs.
    #[error("model `{0}` has not been loaded yet")]
    Unknown(String),
}

/// Finds what the nodes of a graph mean. `above` are the ensembles that it is in, the last one itself.
pub(super) fn choose(
    graph: &Graph,
    directory: &Directory,
    above: &mut Vec<String>,
) -> Result<Vec<Choice>, Unfit> {
    let mut room = MAX_ALL_NODES;
    inside(graph, directory, above, &mut room)
}

fn inside(
    graph: &Graph,
    directory: &Directory,
    above: &mut Vec<String>,
    room: &mut usize,
) -> Result<Vec<Choice>, Unfit> {
    graph.nodes.iter().map(|node| one(node, directory, above, room)).collect()
}

fn one(
    node: &Node,
    directory: &Directory,
    above: &mut Vec<String>,
    room: &mut usize,
) -> Result<Choice, Unfit> {
    let Node { name, model, version, .. } = node;
    let named = directory.get(model).ok_or_else(|| {
        let near = suggestion(model, directory.names());
        Unfit::Graph(format!("node `{name}`: model `{model}` is not served here{near}"))
    })?;
    let found = named.version(version.as_deref());
    let served = found.map_err(|error| Unfit::Versions(format!("node `{name}`: {}", error.message)))?;
    let inner = match served.graph() {
        None => {
            *room = room.checked_sub(1).ok_or_else(|| {
                let text = format!(
                    "with the ensembles that it is made of it has more than {MAX_ALL_NODES} runs of models"
                );
                Unfit::Graph(text)
            })?;
            Vec::new()
        }
        Some(_) if above.contains(model) => {
            let way: Vec<_> = above.iter().chain([model]).map(|name| format!("`{name}`")).collect();
            return Err(Unfit::Graph(format!(
                "node `{name}`: the ensemble reaches itself: {}",
                way.join(" is made of ")
            )));
        }
        Some(_) if above.len() >= MAX_NESTED => {
            return Err(Unfit::Graph(format!(
                "node `{name}`: ensembles are {MAX_NESTED} deep in each other at most"
            )));
        }
        Some(graph) => {
            above.push(model.clone());
            let inner = inside(graph, directory, above, room);
            above.pop();
            inner.map_err(|unfit| unfit.inside(name))?
        }
    };
    Ok(Choice { named, which: version.clone(), served, inner })
}

impl Unfit {
    /// The same of an ensemble that is a node of another one.
    fn inside(self, node: &str) -> Self {
        let text = |text: String| format!("node `{node}`: {text}");
        match self {
            Self::Graph(why) => Self::Graph(text(why)),
            Self::Versions(why) => Self::Versions(text(why)),
            unknown @ Self::Unknown(_) => unknown,
        }
    }
}

/// What is known of the inputs and outputs of a model.
type Look<'a> = &'a dyn Fn(&ServedModel) -> Option<ModelInfo>;

impl Choice {
    /// Whether the node still means that.
    pub(super) fn is_current(&self) -> bool {
        self.named.version(self.which.as_deref()).is_ok_and(|now| Arc::ptr_eq(&now, &self.served))
            && self.inner.iter().all(Self::is_current)
    }

    /// What it takes and gives, as `look` says of models and as follows of ensembles; nothing if that is not known.
    fn info(&self, look: Look<'_>) -> Result<Option<ModelInfo>, Unfit> {
        match self.served.graph() {
            None => Ok(look(&self.served)),
            Some(graph) => {
                let Some(Typed { info, .. }) = typed(graph, &self.inner, look)? else { return Ok(None) };
                match self.served.known().and_then(|(_, before)| types::differ(before, &info)) {
                    Some(why) => Err(Unfit::Versions(format!("ensemble `{}`: {why}", self.served.name))),
                    None => Ok(Some(info)),
                }
            }
        }
    }
}

/// Holds a graph against what its nodes mean, as far as that is known.
pub(super) fn typed(graph: &Graph, choices: &[Choice], look: Look<'_>) -> Result<Option<Typed>, Unfit> {
    let nodes = graph.nodes.iter().zip(choices);
    let infos = nodes.map(|(node, choice)| choice.info(look).map_err(|unfit| unfit.inside(&node.name)));
    let infos = infos.collect::<Result<Vec<_>, _>>()?;
    let infos: Vec<_> = infos.iter().map(Option::as_ref).collect();
    types::check(graph, &infos).map_err(Unfit::Versions)
}
