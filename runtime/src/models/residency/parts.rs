//! What ensembles are made of stays with them: as long as one never makes way, or is needed for a while, none of it does, whichever versions that is.

use std::sync::{Arc, PoisonError};

use super::super::served::ServedModel;
use super::Residency;
use super::history::Happening;

impl Residency {
    /// What an ensemble is made of just now, ensembles among it too, each once; nothing of another.
    pub(super) fn parts(&self, model: &ServedModel) -> Vec<Arc<ServedModel>> {
        let members = model.ensemble.as_ref().and_then(|ensemble| ensemble.members(&model.name).ok());
        let members = members.unwrap_or_default();
        let leaves = members.leaves.into_iter().map(|(_, leaf)| leaf);
        leaves.chain(members.ensembles).collect()
    }

    /// Says whether a model may make way for others; of an ensemble, whether its models may.
    pub(in crate::models) fn pin(&self, model: &ServedModel, pinned: bool) {
        // What is pinned for an ensemble is held; what is not any more may have been pinned by itself, too.
        let parts = if pinned { Vec::new() } else { self.parts(model) };
        let changed = |model: &ServedModel| {
            let mut core = self.residents.lock();
            if model.is_retired() {
                return false;
            }
            let before = core.is_pinned(model.number);
            core.pin(model.number, pinned);
            before != core.is_pinned(model.number)
        };
        for model in parts.iter().map(Arc::as_ref).chain([model]) {
            if changed(model) {
                drop(self.tell(model, if pinned { Happening::Pinned } else { Happening::Unpinned }));
            }
        }
        self.hold_parts();
        self.residents.has_changed();
    }

    /// Has what pinned ensembles are made of now never make way either, and nothing else any more for that reason.
    pub(super) fn hold_parts(&self) {
        let served = self.served();
        if served.iter().all(|model| model.ensemble.is_none()) {
            return;
        }
        // One at a time: who comes later has seen more.
        let _turn = self.holding.lock().unwrap_or_else(PoisonError::into_inner);
        let pinned: Vec<_> = {
            let core = self.residents.lock();
            let is_pinned = |model: &&Arc<ServedModel>| {
                model.ensemble.is_some() && !model.is_retired() && core.is_pinned_itself(model.number)
            };
            served.iter().filter(is_pinned).collect()
        };
        let held: Vec<_> = pinned.into_iter().flat_map(|model| self.parts(model)).collect();
        let is_held = |model: &Arc<ServedModel>| held.iter().any(|one| Arc::ptr_eq(one, model));
        let mut changed = Vec::new();
        {
            let mut core = self.residents.lock();
            for model in self.served().iter().filter(|model| !model.is_retired()) {
                let before = core.is_pinned(model.number);
                core.hold(model.number, is_held(model));
                match core.is_pinned(model.number) {
                    now if now != before => changed.push((Arc::clone(model), now)),
                    _ => {}
                }
            }
        }
        for (model, pinned) in &changed {
            drop(self.tell(model, if *pinned { Happening::Pinned } else { Happening::Unpinned }));
        }
        if !changed.is_empty() {
            self.residents.has_changed();
        }
    }

    /// A version, and what it is made of.
    pub(in crate::models) fn with_parts(&self, model: &Arc<ServedModel>) -> Vec<Arc<ServedModel>> {
        self.parts(model).into_iter().chain([Arc::clone(model)]).collect()
    }

    /// Has a model stay for a while, or not any more.
    pub(in crate::models) fn keep(&self, model: &ServedModel, kept: bool) {
        {
            let mut core = self.residents.lock();
            // Its number may be another's by now.
            if model.is_retired() {
                return;
            }
            core.keep(model.number, kept);
        }
        self.residents.has_changed();
    }

    /// Calls that are for a version have another one from now on: those that wait look again, and if one was never to make way the other is not.
    pub(in crate::models) fn have_moved(&self, from: &ServedModel, to: &ServedModel) {
        {
            let mut core = self.residents.lock();
            if !from.is_retired() && !to.is_retired() && core.is_pinned_itself(from.number) {
                core.pin(to.number, true);
            }
        }
        // What ensembles are made of may have been one of them.
        self.hold_parts();
        from.changed.notify_waiters();
    }

    /// The next load of a model that has failed need not wait, nor that of what it is made of.
    pub(in crate::models) fn forgive(&self, model: &ServedModel) {
        let parts = self.parts(model);
        let mut core = self.residents.lock();
        for one in parts.iter().map(Arc::as_ref).chain([model]).filter(|one| !one.is_retired()) {
            core.forgive(one.number);
        }
    }
}
