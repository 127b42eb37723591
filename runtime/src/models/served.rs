//! A model that is served, whether it is loaded or not; and the lease by which a call has it.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::gate::Behind;
use super::instance::{Counted, LoadedModel, Picked};
use super::residency::Usage;
use super::wanted::Wanted;
use crate::config::LoadTime;
use crate::placement::DeviceId;

/// A model that the replica serves.
pub struct ServedModel {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// When it is loaded.
    pub load: LoadTime,
    /// Its number among what calls can be for.
    pub(crate) kind: u16,
    /// Its place among the models.
    pub(super) number: usize,
    pub(super) wanted: Wanted,
    resident: RwLock<Option<Arc<LoadedModel>>>,
    /// Calls that have had it, ever.
    uses: AtomicU64,
    /// When the last one came, nanoseconds since `start`.
    last: AtomicU64,
    start: Instant,
    /// What it was measured to hold when it was loaded last, a copy on each device.
    measured: Mutex<Vec<(DeviceId, u64)>>,
    /// Calls that wait for it to be loaded.
    waiting: AtomicUsize,
    /// Told whenever a load of it has ended, and when it has left.
    pub(super) changed: Notify,
}

impl ServedModel {
    /// One that is not loaded.
    pub(super) fn new(number: usize, kind: u16, wanted: Wanted, start: Instant) -> Self {
        Self {
            name: wanted.name.clone(),
            version: wanted.version.clone(),
            load: wanted.load,
            kind,
            number,
            wanted,
            resident: RwLock::default(),
            uses: AtomicU64::new(0),
            last: AtomicU64::new(0),
            start,
            measured: Mutex::default(),
            waiting: AtomicUsize::new(0),
            changed: Notify::new(),
        }
    }

    /// The loaded model, to look at: it may be on its way out.
    pub fn resident(&self) -> Option<Arc<LoadedModel>> {
        self.resident.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shows a model that has been loaded to calls.
    pub(super) fn put(&self, model: Arc<LoadedModel>) {
        *self.resident.write().unwrap_or_else(PoisonError::into_inner) = Some(model);
    }

    /// Takes it away. Calls that have it still do.
    pub(super) fn take(&self) -> Option<Arc<LoadedModel>> {
        self.resident.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Takes it away if no call has it and none waits for it.
    pub(super) fn take_if_idle(&self) -> Option<Arc<LoadedModel>> {
        let mut resident = self.resident.write().unwrap_or_else(PoisonError::into_inner);
        let closed = self.waiting.load(Ordering::SeqCst) == 0
            && resident.as_ref().is_some_and(|model| model.gate.close_if_idle());
        if closed { resident.take() } else { None }
    }

    /// A lease for a call, if it is loaded.
    pub fn lease(&self) -> Option<Lease> {
        let model = self.resident()?;
        if !model.gate.enter() {
            return None;
        }
        self.uses.fetch_add(1, Ordering::Relaxed);
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last.fetch_max(now, Ordering::Relaxed);
        Some(Lease(model))
    }

    /// How it is used.
    pub(super) fn usage(&self) -> Usage {
        let idle = self.waiting.load(Ordering::SeqCst) == 0
            && self.resident().is_none_or(|model| model.gate.is_idle());
        Usage {
            uses: self.uses.load(Ordering::Relaxed),
            last: Duration::from_nanos(self.last.load(Ordering::Relaxed)),
            idle,
        }
    }

    /// A call waits for it, until this is dropped: a model that is waited for does not make way before it has been used.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Waiting(self)
    }

    /// What it was measured to hold when it was loaded last, a copy on each device.
    pub(super) fn measured(&self) -> Vec<(DeviceId, u64)> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps what it was measured to hold.
    pub(super) fn note_measured(&self, measured: Vec<(DeviceId, u64)>) {
        *self.measured.lock().unwrap_or_else(PoisonError::into_inner) = measured;
    }
}

pub(super) struct Waiting<'a>(&'a ServedModel);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A loaded model in the hands of a call: as long as there is one it does not leave.
pub struct Lease(Arc<LoadedModel>);

impl Lease {
    /// The instance for the next run: that with the fewest calls under way, among those that can be used.
    pub fn pick(&self) -> Picked {
        self.gate.enter_beside();
        let lease = Self(Arc::clone(&self.0));
        let instance = Arc::clone(self.choose());
        let counted = (!self.others.is_empty()).then(|| Counted::new(Arc::clone(&instance)));
        Picked { instance, held: Held { _counted: counted, _lease: lease } }
    }
}

impl Deref for Lease {
    type Target = LoadedModel;

    fn deref(&self) -> &LoadedModel {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        match self.gate.leave() {
            Behind::Others => {}
            Behind::Nobody => self.home.fell_idle(),
            Behind::Closed => self.home.has_changed(),
        }
    }
}

/// What a run holds for as long as it is under way, also when nobody waits for it any more.
pub(super) struct Held {
    _counted: Option<Counted>,
    _lease: Lease,
}
