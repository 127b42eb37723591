//! The instance that a call goes to, for as long as it is under way.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::HeaderValue;

use super::graph::GraphCall;
use super::instance::ModelInstance;
use super::lease::Held;

/// The instance that a call goes to; of an ensemble those that its runs go to.
pub struct Picked {
    pub(super) runs: Runs,
    pub(super) held: Held,
}

/// What runs a call.
pub(super) enum Runs {
    Instance(Arc<ModelInstance>),
    Graph(GraphCall),
    /// There is none.
    Nothing,
}

impl Picked {
    /// What answers say of the device.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        match &self.runs {
            Runs::Instance(instance) => instance.place.as_ref()?.header.clone(),
            Runs::Graph(call) => call.picks.header(),
            Runs::Nothing => None,
        }
    }

    /// The device on which what it takes and gives can stay.
    pub(super) fn home(&self) -> Option<usize> {
        match &self.runs {
            Runs::Instance(instance) => instance.home(),
            Runs::Graph(..) | Runs::Nothing => None,
        }
    }
}

/// A call that an instance has, until it is dropped.
pub(super) struct Counted(Arc<ModelInstance>);

impl Counted {
    pub(super) fn new(instance: Arc<ModelInstance>) -> Self {
        instance.calls.fetch_add(1, Ordering::Relaxed);
        Self(instance)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}
