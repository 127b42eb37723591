//! What the parent has made here, under the numbers that it chose.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use outrigger_backend::{Backend, BackendError, Device, DeviceMemory, Instance, Model};
use outrigger_regions::Mapping;

/// A table of things by number.
pub(super) struct Table<T>(RwLock<HashMap<u64, T>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<T: Clone> Table<T> {
    pub(super) fn get(&self, number: u64) -> Option<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    pub(super) fn all(&self) -> Vec<(u64, T)> {
        let things = self.0.read().unwrap_or_else(PoisonError::into_inner);
        things.iter().map(|(number, thing)| (*number, thing.clone())).collect()
    }

    pub(super) fn insert(&self, number: u64, thing: T) {
        let before = self.0.write().unwrap_or_else(PoisonError::into_inner).insert(number, thing);
        // Outside of the lock, for it may take its time.
        drop(before);
    }

    /// Ends a thing, unless a call is still at it.
    fn remove(&self, number: u64) {
        let removed = self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
        drop(removed);
    }
}

/// An instance with its model, which says what its results will look like.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) instance: Arc<dyn Instance>,
    pub(super) model: Arc<dyn Model>,
}

/// Everything, in the order in which it is to end.
pub(super) struct Objects {
    pub(super) instances: Table<Served>,
    pub(super) memory: Table<DeviceMemory>,
    /// Regions of the parent's that inputs may lie in.
    pub(super) pinned: Table<Arc<Mapping>>,
    pub(super) models: Table<Arc<dyn Model>>,
    device: OnceLock<Arc<dyn Device>>,
    backend: Arc<dyn Backend>,
    next: std::sync::atomic::AtomicU64,
}

/// Numbers of what is made here begin where the parent's do not come.
const OURS: u64 = 1 << 63;

impl Objects {
    pub(super) fn new(backend: Arc<dyn Backend>) -> Self {
        Self {
            instances: Table::default(),
            memory: Table::default(),
            pinned: Table::default(),
            models: Table::default(),
            device: OnceLock::new(),
            backend,
            next: OURS.into(),
        }
    }

    pub(super) fn open_device(&self, index: usize) -> Result<(), BackendError> {
        let device = self.backend.open(index)?;
        self.device.set(device).map_err(|_| BackendError::Internal("a device host serves one device".into()))
    }

    pub(super) fn device(&self) -> Result<&Arc<dyn Device>, BackendError> {
        self.device.get().ok_or_else(|| missing("device", 0))
    }

    /// Keeps memory of the device's under a number of our own.
    pub(super) fn keep(&self, memory: DeviceMemory) -> u64 {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.memory.insert(number, memory);
        number
    }

    /// Ends whatever has that number.
    pub(super) fn release(&self, number: u64) {
        self.instances.remove(number);
        self.memory.remove(number);
        self.pinned.remove(number);
        self.models.remove(number);
    }
}

/// The parent names something that is not here.
pub(super) fn missing(what: &str, number: u64) -> BackendError {
    BackendError::Internal(format!("the device host has no {what} number {number}"))
}
