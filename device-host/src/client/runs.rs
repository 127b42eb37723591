//! Runs under way in one child, and when those that were cancelled are out of time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outrigger_backend::{BackendError, RunId};

/// The runs of one child.
pub(super) struct Runs {
    next: AtomicU64,
    under_way: Mutex<Vec<UnderWay>>,
}

struct UnderWay {
    instance: u64,
    id: RunId,
    run: u64,
    cancelled: bool,
    /// The child has it, or is about to.
    sent: bool,
    /// Set once the child was asked to end it: when its time is up.
    deadline: Option<Instant>,
}

impl Runs {
    pub(super) fn new() -> Self {
        Self { next: AtomicU64::new(1), under_way: Mutex::default() }
    }

    fn under_way(&self) -> MutexGuard<'_, Vec<UnderWay>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run begins; its number, under which it can be cancelled until what is returned is dropped.
    pub(super) fn begin(&self, instance: u64, id: Option<RunId>) -> Begun<'_> {
        let run = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(id) = id {
            let (cancelled, sent, deadline) = (false, false, None);
            self.under_way().push(UnderWay { instance, id, run, cancelled, sent, deadline });
        }
        Begun { runs: self, run, id }
    }

    /// A run is to end. Its number, if the child is to hear of that: if it has the run, and can end it, for which it then has `grace`.
    pub(super) fn cancel(&self, instance: u64, id: RunId, grace: Option<Duration>) -> Option<u64> {
        let mut under_way = self.under_way();
        let found = under_way.iter_mut().find(|run| run.id == id && run.instance == instance)?;
        found.cancelled = true;
        let grace = grace.filter(|_| found.sent)?;
        found.deadline = found.deadline.or_else(|| Instant::now().checked_add(grace));
        Some(found.run)
    }

    /// When the next cancelled run is out of time.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.under_way().iter().filter_map(|run| run.deadline).min()
    }
}

/// A run under way.
pub(super) struct Begun<'a> {
    runs: &'a Runs,
    pub(super) run: u64,
    id: Option<RunId>,
}

impl Begun<'_> {
    /// The run goes to the child, if it has not been cancelled while it waited.
    pub(super) fn goes(&self) -> Result<(), BackendError> {
        if self.id.is_none() {
            return Ok(());
        }
        let mut under_way = self.runs.under_way();
        match under_way.iter_mut().find(|run| run.run == self.run) {
            Some(run) if run.cancelled => Err(BackendError::Cancelled),
            Some(run) => {
                run.sent = true;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.id.is_some() {
            self.runs.under_way().retain(|run| run.run != self.run);
        }
    }
}
