//! What is decided of the models together, and who waits for that to change.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::core::Core;

/// The core in a lock. It is held for as long as a decision takes, never while something is loaded or let go.
pub(in crate::models) struct Residents {
    core: Mutex<Core>,
    changed: Condvar,
    /// Loads that wait for a model to be idle.
    starving: AtomicUsize,
}

impl Residents {
    pub(super) fn new(core: Core) -> Self {
        Self { core: Mutex::new(core), changed: Condvar::new(), starving: AtomicUsize::new(0) }
    }

    /// Of no models at all.
    #[cfg(test)]
    pub(in crate::models) fn none() -> Self {
        let time = Duration::from_secs(1);
        let options =
            super::Options { loads: 1, loading_bytes: 1, half_life: time, retry: time, max_retry: time };
        Self::new(Core::new(options, Vec::new(), 0))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A model is idle: no call has it any more.
    pub(in crate::models) fn fell_idle(&self) {
        if self.starving.load(Ordering::SeqCst) > 0 {
            self.has_changed();
        }
    }

    /// Wakes all who wait for something to change.
    pub(in crate::models) fn has_changed(&self) {
        // Who has looked and does not wait yet would miss it.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// The same by who holds the lock.
    pub(super) fn announce(&self) {
        self.changed.notify_all();
    }

    /// Waits for something to change.
    pub(super) fn wait<'a>(&self, core: MutexGuard<'a, Core>) -> MutexGuard<'a, Core> {
        self.changed.wait(core).unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, for no longer than this.
    pub(super) fn wait_for<'a>(
        &self,
        core: MutexGuard<'a, Core>,
        patience: Duration,
    ) -> MutexGuard<'a, Core> {
        self.changed.wait_timeout(core, patience).unwrap_or_else(PoisonError::into_inner).0
    }

    /// A load looks for room: it hears of models that fall idle, until this is dropped.
    pub(super) fn starve(&self) -> Starving<'_> {
        self.starving.fetch_add(1, Ordering::SeqCst);
        Starving(self)
    }
}

pub(super) struct Starving<'a>(&'a Residents);

impl Drop for Starving<'_> {
    fn drop(&mut self) {
        self.0.starving.fetch_sub(1, Ordering::SeqCst);
    }
}
