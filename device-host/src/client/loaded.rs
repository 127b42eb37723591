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

#[derive(Clone)]
pub(super) struct ModelEntry {
    pub(super) options: LoadOptions,
    /// Its inputs and outputs as they lay in the frame, to see whether they are still the same.
    pub(super) signature: Arc<[u8]>,
    pub(super) fault: Arc<Fault>,
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

    pub(super) fn check(&self) -> Result<(), BackendError> {
        if !self.there.load(Ordering::Acquire) {
            return Ok(());
        }
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Err(BackendError::Lost(why))
    }
}
