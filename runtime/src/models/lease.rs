//! A loaded model in the hands of a call, and the door by which calls go in and out of it.

use std::ops::Deref;
use std::sync::Arc;

use super::gate::{Behind, Gate};
use super::graph::{Ensemble, Gathered, GraphCall};
use super::instance::{LoadedModel, ModelInstance};
use super::picked::{Counted, Picked, Runs};
use super::residency::Residents;
use super::wanted::Keeping;
use crate::cache::Identity;

/// Where calls go in and out of a model.
pub(super) struct Door {
    pub(super) gate: Gate,
    /// Who wants to hear when nobody is inside.
    pub(super) home: Arc<Residents>,
}

impl Door {
    pub(super) fn new(home: Arc<Residents>) -> Arc<Self> {
        Arc::new(Self { gate: Gate::default(), home })
    }

    fn tell(&self, behind: Behind) {
        match behind {
            Behind::Others => {}
            Behind::Nobody => self.home.fell_idle(),
            Behind::Closed => self.home.has_changed(),
        }
    }
}

/// That a call is inside, until it is dropped.
pub(super) struct Inside(Arc<Door>);

impl Inside {
    pub(super) fn enter(door: &Arc<Door>) -> Option<Self> {
        match door.gate.enter() {
            Ok(()) => Some(Self(Arc::clone(door))),
            Err(behind) => {
                // Who waits for it to be empty may have seen this call inside.
                if behind == Behind::Closed {
                    door.tell(behind);
                }
                None
            }
        }
    }

    /// For another that stays no longer than what it is for.
    fn beside(&self) -> Self {
        self.0.gate.enter_beside();
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.tell(self.0.gate.leave());
    }
}

/// A loaded model in the hands of a call: as long as there is one it does not leave.
pub struct Lease {
    // Dropped first: who hears that nobody is inside finds that nobody holds it.
    pub(super) model: Arc<LoadedModel>,
    pub(super) inside: Inside,
    /// All that an ensemble is made of.
    pub(super) gathered: Option<(Arc<Gathered>, Arc<Ensemble>)>,
}

impl Lease {
    /// The instance for the next run: that with the fewest calls under way, among those that can be used.
    pub fn pick(&self) -> Picked {
        self.pick_for(None)
    }

    /// The same for a run that gives the outputs with these numbers, or all: of an ensemble what is not needed for them is not picked.
    pub(crate) fn pick_for(&self, outputs: Option<&[usize]>) -> Picked {
        if let Some((gathered, ensemble)) = &self.gathered {
            let call = GraphCall {
                ensemble: Arc::clone(ensemble),
                picks: gathered.pick(outputs),
                gathered: Arc::clone(gathered),
                statistics: self.statistics.clone(),
            };
            let held = Held { _counted: None, _lease: self.beside() };
            return Picked { runs: Runs::Graph(call), held };
        }
        match self.choose() {
            Some(instance) => self.picked(instance),
            None => Picked { runs: Runs::Nothing, held: Held { _counted: None, _lease: self.beside() } },
        }
    }

    /// By what its answers are kept, if they are: an ensemble that does not say has its models decide.
    pub(crate) fn cached(&self) -> Option<Identity> {
        let Some((gathered, _)) = &self.gathered else {
            return self.keeping.keeps().then(|| self.identity());
        };
        let keeps = match self.keeping {
            Keeping::Said(keeps) => keeps,
            Keeping::Default(keeps) => keeps && gathered.keeps_answers(),
        };
        keeps.then(|| self.identity().with(gathered.identities()))
    }

    /// The same among those on a device that take tensors which stay there.
    pub(super) fn pick_on(&self, device: usize) -> Option<Picked> {
        self.choose_on(device).map(|instance| self.picked(instance))
    }

    fn picked(&self, instance: &Arc<ModelInstance>) -> Picked {
        let counted = (!self.others.is_empty()).then(|| Counted::new(Arc::clone(instance)));
        let runs = Runs::Instance(Arc::clone(instance));
        Picked { runs, held: Held { _counted: counted, _lease: self.beside() } }
    }

    /// For a run, which may outlast this.
    fn beside(&self) -> Self {
        Self { model: Arc::clone(&self.model), inside: self.inside.beside(), gathered: None }
    }
}

impl Deref for Lease {
    type Target = LoadedModel;

    fn deref(&self) -> &LoadedModel {
        &self.model
    }
}

/// What a run holds for as long as it is under way, also when nobody waits for it any more.
pub(super) struct Held {
    _counted: Option<Counted>,
    _lease: Lease,
}
