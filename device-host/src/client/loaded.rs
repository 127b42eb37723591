//! What clients hold of a device, and so what a new child loads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use outrigger_backend::{BackendError, LoadOptions};

use crate::wire::{Reader, WireError};

/// Device, models and instances.
#[derive(Clone, Default)]
pub(super) struct Loaded {
    pub(super) device: Option<(usize, String)>,
    pub(super) models: BTreeMap<u64, ModelEntry>,
    pub(super) instances: BTreeMap<u64, InstanceEntry>,
}

impl Loaded {
    /// Whether anything can be run: a model that is there, with an instance that is, if it had any.
    pub(super) fn serves(&self) -> bool {
        self.models.iter().filter(|(_, model)| model.fault.check().is_ok()).any(|(number, _)| {
            let mut own = self.instances.values().filter(|instance| instance.model == *number).peekable();
            own.peek().is_none() || own.any(|instance| instance.known.fault.check().is_ok())
        })
    }
}

#[derive(Clone)]
pub(super) struct ModelEntry {
    pub(super) options: LoadOptions,
    /// Its inputs and outputs as they lay in the frame, to see whether they are still the same.
    pub(super) signature: Arc<[u8]>,
    pub(super) fault: Arc<Fault>,
}

impl ModelEntry {
    /// What is said of it where it, or an instance of it, is not in the child that serves now.
    pub(super) fn not_again(&self, why: &dyn std::fmt::Display) -> String {
        let path = self.options.path.display();
        format!("model `{path}` did not load again after its device host was restarted: {why}")
    }
}

#[derive(Clone)]
pub(super) struct InstanceEntry {
    pub(super) model: u64,
    pub(super) known: Arc<Known>,
}

/// What the child that serves now has said of an instance.
#[derive(Default)]
pub(super) struct Known {
    pub(super) fault: Fault,
    held: AtomicU64,
    can_cancel: AtomicBool,
}

impl Known {
    /// Takes what a child says of an instance that it has made.
    pub(super) fn read(&self, reader: &mut Reader<'_>) -> Result<(), WireError> {
        let (can_cancel, held) = (reader.flag()?, reader.u64()?);
        self.can_cancel.store(can_cancel, Ordering::Relaxed);
        self.holds(held);
        Ok(())
    }

    pub(super) fn holds(&self, bytes: u64) {
        self.held.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    pub(super) fn can_cancel(&self) -> bool {
        self.can_cancel.load(Ordering::Relaxed)
    }
}

/// Why something that a client holds is not in the child that serves now.
#[derive(Default)]
pub(super) struct Fault {
    there: AtomicBool,
    why: Mutex<String>,
}

impl Fault {
    pub(super) fn set(&self, why: Option<String>) {
        let mut text = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        self.there.store(why.is_some(), Ordering::Release);
        *text = why.unwrap_or_default();
    }

    /// Why it is not there, if it is not.
    pub(super) fn why(&self) -> Option<String> {
        let there = self.there.load(Ordering::Acquire);
        there.then(|| self.why.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    pub(super) fn check(&self) -> Result<(), BackendError> {
        self.why().map_or(Ok(()), |why| Err(BackendError::Lost(why)))
    }
}
