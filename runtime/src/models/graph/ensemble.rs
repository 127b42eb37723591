//! An ensemble that is served: a graph, with what it is made of just now. It holds no memory, so that it is had as soon as all its models are.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use outrigger_backend::ModelInfo;
use serde::Serialize;

use super::choice::{Choice, Unfit, choose, typed};
use super::directory::Directory;
use super::read::{Graph, Node};
use super::run::Counters;
use super::types;
use super::wired::{self, Leaf, Wired};
use crate::cache::Identity;
use crate::models::ModelsError;
use crate::models::lease::Lease;
use crate::models::served::ServedModel;
use crate::models::versions::NamedModel;

/// What a served model is beside, if it is an ensemble.
pub(in crate::models) struct Ensemble {
    pub(super) graph: Arc<Graph>,
    directory: Arc<Directory>,
    /// What it was made of last.
    made: Mutex<Option<Arc<Made>>>,
    /// Why it was not had last, if that is for the versions of its models.
    refusal: Mutex<Option<Arc<str>>>,
    /// Had by who asks whether devices hold all of it, with what the last one has heard.
    pub(in crate::models) placing: tokio::sync::Mutex<Option<Placing>>,
    /// What is counted of its calls.
    pub(in crate::models) counters: OnceLock<Counters>,
}

/// Whether devices hold all that an ensemble is made of.
pub(in crate::models) struct Placing {
    /// When that was asked.
    pub(in crate::models) at: Instant,
    /// Of which models, by their numbers.
    pub(in crate::models) of: Vec<usize>,
    /// Why they do not; or which of them would not be where they are, by their numbers.
    pub(in crate::models) moves: Result<Vec<usize>, String>,
}

/// What its nodes meant, and what came of that: it, or why it cannot be had with these.
struct Made {
    choices: Vec<Choice>,
    wired: Result<Arc<Wired>, Unfit>,
}

/// What an ensemble is made of just now, those that its ensembles are made of too.
#[derive(Default)]
pub(in crate::models) struct Members {
    /// The models, each once.
    pub(in crate::models) leaves: Vec<Leaf>,
    /// The ensembles, each once, and each after those that it is made of.
    pub(in crate::models) ensembles: Vec<Arc<ServedModel>>,
}

/// A node of an ensemble.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct EnsembleNode {
    /// Its name.
    pub node: String,
    /// Its model.
    pub model: String,
    /// The version of that which it has just now; nothing if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// What a call has of an ensemble: all that it is made of, none of which leaves meanwhile.
pub(in crate::models) struct Gathered {
    pub(super) wired: Arc<Wired>,
    /// In the order of the wired graph's leaves.
    pub(super) leaves: Vec<Lease>,
    /// In the order of its groups.
    pub(super) groups: Vec<Lease>,
}

impl Gathered {
    /// What it gives depends on, run by run: the model, and the ensembles that the run is in.
    pub(in crate::models) fn identities(&self) -> impl Iterator<Item = Identity> {
        self.wired.runs.iter().flat_map(|run| {
            let groups = run.groups.iter().filter_map(|at| self.groups.get(*at));
            self.leaves.get(run.leaf).into_iter().chain(groups).map(|lease| lease.identity())
        })
    }

    /// Whether answers of all that it is made of are kept.
    pub(in crate::models) fn keeps_answers(&self) -> bool {
        self.leaves.iter().chain(&self.groups).all(|lease| lease.keeping.keeps())
    }

    /// A call has all of it.
    pub(in crate::models) fn is_used(&self) {
        self.wired.leaves.iter().chain(&self.wired.groups).for_each(|model| model.is_used());
    }

    /// What callers send and get.
    pub(in crate::models) fn info(&self) -> Arc<ModelInfo> {
        Arc::clone(&self.wired.info)
    }
}

impl Ensemble {
    pub(in crate::models) fn new(graph: Arc<Graph>, directory: &Arc<Directory>) -> Self {
        let (made, refusal, placing, counters) = Default::default();
        Self { graph, directory: Arc::clone(directory), made, refusal, placing, counters }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Made>>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn choices(&self, own: &str) -> Result<Vec<Choice>, Unfit> {
        choose(&self.graph, &self.directory, &mut vec![own.to_owned()])
    }

    /// Holds its graph against the models that there are, as far as they are known: by having been loaded, or by their manifests.
    ///
    /// # Errors
    /// [`ModelsError::Graph`], also for a version that there is not, unless `later` is good enough.
    pub(in crate::models) fn check(&self, own: &str, later: bool) -> Result<(), ModelsError> {
        let choices = match self.choices(own) {
            Err(Unfit::Versions(why)) if later => {
                tracing::warn!(
                    model = own,
                    why,
                    "an ensemble cannot be had with the versions that there are now"
                );
                return Ok(());
            }
            choices => choices.map_err(|unfit| self.wrong(&unfit))?,
        };
        let typed = typed(&self.graph, &choices, &|model| model.said());
        typed.map(drop).map_err(|unfit| self.wrong(&unfit))
    }

    /// As who starts the replica hears it.
    pub(in crate::models) fn wrong(&self, unfit: &Unfit) -> ModelsError {
        ModelsError::Graph { path: self.graph.path.clone(), problem: unfit.to_string() }
    }

    /// What it is made of.
    ///
    /// # Errors
    /// [`Unfit`], if that cannot be said.
    pub(in crate::models) fn members(&self, own: &str) -> Result<Members, Unfit> {
        let (choices, mut ensembles) = (self.choices(own)?, Vec::new());
        wired::ensembles(&choices, &mut ensembles);
        Ok(Members { leaves: wired::leaves(&choices), ensembles })
    }

    /// It with the versions that its nodes mean now. As long as they mean the same it is not put together anew, also where it cannot be.
    ///
    /// # Errors
    /// [`Unfit`]: if it cannot be made of them, or would not be for callers what it was.
    pub(in crate::models) fn wire(&self, own: &ServedModel) -> Result<Arc<Wired>, Unfit> {
        let kept = self.lock().clone();
        if let Some(made) = kept.filter(|made| made.choices.iter().all(Choice::is_current)) {
            return made.wired.clone();
        }
        let choices = self.choices(&own.name)?;
        let wired = Wired::new(&self.graph, &choices).and_then(|wired| {
            let differs = own.known().and_then(|(_, before)| types::differ(before, &wired.info));
            differs.map_or(Ok(Arc::new(wired)), |why| Err(Unfit::Versions(why)))
        });
        // Of one that is not known more will be.
        if !matches!(wired, Err(Unfit::Unknown(_))) {
            *self.lock() = Some(Arc::new(Made { choices, wired: wired.clone() }));
        }
        wired
    }

    /// Leases of all that it is made of; nothing if one of them is not loaded.
    ///
    /// # Errors
    /// As [`Ensemble::wire`].
    pub(in crate::models) fn gather(&self, own: &ServedModel) -> Result<Option<Gathered>, Unfit> {
        let wired = self.wire(own)?;
        let leases =
            |models: &[Arc<ServedModel>]| models.iter().map(|model| model.hold()).collect::<Option<Vec<_>>>();
        let Some((leaves, groups)) = leases(&wired.leaves).zip(leases(&wired.groups)) else {
            return Ok(None);
        };
        self.refused(None);
        Ok(Some(Gathered { wired, leaves, groups }))
    }

    /// Whether a node of it means this version of a model by its own name: then that is needed, whatever else it is called.
    pub(in crate::models) fn names(&self, version: &ServedModel) -> bool {
        self.graph.nodes.iter().any(|node| {
            node.model == version.name && node.version.as_deref() == Some(version.version.as_str())
        })
    }

    /// What its nodes are, as they are shown.
    pub(in crate::models) fn parts(&self, own: &str) -> Vec<EnsembleNode> {
        let choices = self.choices(own).unwrap_or_default();
        let one = |(at, node): (usize, &Node)| EnsembleNode {
            node: node.name.clone(),
            model: node.model.clone(),
            version: choices.get(at).map(|choice| choice.served.version.clone()),
        };
        self.graph.nodes.iter().enumerate().map(one).collect()
    }

    /// Keeps why it cannot be had, or that it can; says whether that is new.
    pub(in crate::models) fn refused(&self, why: Option<&str>) -> bool {
        let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = refusal.as_deref() != why;
        if is_new {
            *refusal = why.map(Arc::from);
        }
        is_new
    }

    /// Why it was not had last.
    pub(in crate::models) fn refusal(&self) -> Option<Arc<str>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the version before this one of a model that is watched would do: then this one is to blame.
    pub(in crate::models) fn did_with_the_one_before(
        &self,
        own: &ServedModel,
        named: &NamedModel,
        leaf: &Arc<ServedModel>,
    ) -> bool {
        if !Arc::ptr_eq(&named.stable(), leaf) {
            return false;
        }
        named.was_taken(|before| {
            let Ok(choices) = self.choices(&own.name) else { return false };
            let look = |model: &ServedModel| {
                let is_it = std::ptr::eq(model, Arc::as_ptr(leaf));
                if is_it {
                    Some(before.clone())
                } else {
                    model.known().map(|(_, info)| ModelInfo::clone(info))
                }
            };
            let typed = typed(&self.graph, &choices, &look);
            let known = own.known();
            typed.is_ok_and(|typed| {
                typed.is_some_and(|typed| {
                    known.is_none_or(|(_, was)| types::differ(was, &typed.info).is_none())
                })
            })
        })
    }
}
