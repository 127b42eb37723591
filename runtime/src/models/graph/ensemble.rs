//! An ensemble that is served: a graph, with what it is made of just now. It holds no memory, so that it is had as soon as all its models are.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use outrigger_backend::ModelInfo;
use serde::Serialize;

use super::choice::{Choice, Unfit, choose, typed};
use super::directory::Directory;
use super::read::{Graph, Node};
use super::run::Counters;
use super::types;
use super::wired::{self, Leaf, Wired};
use crate::models::ModelsError;
use crate::models::served::{Lease, ServedModel};
use crate::models::versions::NamedModel;

/// What a served model is beside, if it is an ensemble.
pub(in crate::models) struct Ensemble {
    pub(super) graph: Arc<Graph>,
    directory: Arc<Directory>,
    /// What it was made of last.
    wired: Mutex<Option<Arc<Wired>>>,
    /// Why it was not had last, if that is for the versions of its models.
    refusal: Mutex<Option<Arc<str>>>,
    /// What is counted of its calls.
    pub(in crate::models) counters: OnceLock<Counters>,
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
    /// What callers send and get.
    pub(in crate::models) fn info(&self) -> Arc<ModelInfo> {
        Arc::clone(&self.wired.info)
    }
}

impl Ensemble {
    pub(in crate::models) fn new(graph: Arc<Graph>, directory: &Arc<Directory>) -> Self {
        let (wired, refusal, counters) = Default::default();
        Self { graph, directory: Arc::clone(directory), wired, refusal, counters }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Wired>>> {
        self.wired.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// The models that it is made of, those of its ensembles too.
    ///
    /// # Errors
    /// [`Unfit`], if that cannot be said.
    pub(in crate::models) fn leaves(&self, own: &str) -> Result<Vec<Leaf>, Unfit> {
        Ok(wired::leaves(&self.choices(own)?))
    }

    /// It with the versions that its nodes mean now.
    ///
    /// # Errors
    /// [`Unfit`]: if it cannot be made of them, or would not be for callers what it was.
    pub(in crate::models) fn wire(&self, own: &ServedModel) -> Result<Arc<Wired>, Unfit> {
        let kept = self.lock().clone();
        if let Some(wired) = kept.filter(|wired| wired.is_current()) {
            return Ok(wired);
        }
        let wired = Wired::new(&self.graph, self.choices(&own.name)?)?;
        if let Some(why) = own.known().and_then(|(_, before)| types::differ(before, &wired.info)) {
            return Err(Unfit::Versions(why));
        }
        let wired = Arc::new(wired);
        *self.lock() = Some(Arc::clone(&wired));
        Ok(wired)
    }

    /// Leases of all that it is made of; nothing if one of them is not loaded.
    ///
    /// # Errors
    /// As [`Ensemble::wire`].
    pub(in crate::models) fn gather(&self, own: &ServedModel) -> Result<Option<Gathered>, Unfit> {
        let wired = self.wire(own)?;
        let leases = |models: &[Arc<ServedModel>]| {
            models.iter().map(|model| model.lease_itself()).collect::<Option<Vec<_>>>()
        };
        let Some((leaves, groups)) = leases(&wired.leaves).zip(leases(&wired.groups)) else {
            return Ok(None);
        };
        self.refused(None);
        Ok(Some(Gathered { wired, leaves, groups }))
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
        let Ok(choices) = self.choices(&own.name) else { return false };
        if !Arc::ptr_eq(&named.stable(), leaf) {
            return false;
        }
        named.was_taken(|before| {
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
