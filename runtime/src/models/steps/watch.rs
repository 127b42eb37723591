//! Runs that can be cancelled while steps have them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_backend::{BackendError, Instance, Run, RunId};

/// The runs under way that have a number, and which of them are cancelled: as many as there are device threads.
#[derive(Default)]
pub(super) struct Runs(Mutex<Vec<(RunId, bool)>>);

/// A run under way.
pub(super) struct Watched<'a> {
    runs: &'a Runs,
    id: Option<RunId>,
}

impl Runs {
    pub(super) fn begin(&self, run: Run) -> Watched<'_> {
        if let Some(id) = run.id {
            self.lock().push((id, false));
        }
        Watched { runs: self, id: run.id }
    }

    /// Has a run end, whether steps have it or the model: steps ask. Who cancels one that goes on tells it again, so that a model hears
    /// of it which did not know of the run yet.
    pub(super) fn cancel(&self, id: RunId, model: &Arc<dyn Instance>) {
        for (_, is_cancelled) in self.lock().iter_mut().filter(|(known, _)| *known == id) {
            *is_cancelled = true;
        }
        model.cancel(id);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(RunId, bool)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched<'_> {
    pub(super) fn is_cancelled(&self) -> bool {
        self.id.is_some_and(|id| self.runs.lock().contains(&(id, true)))
    }

    pub(super) fn check(&self) -> Result<(), BackendError> {
        if self.is_cancelled() { Err(BackendError::Cancelled) } else { Ok(()) }
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.runs.lock().retain(|(known, _)| *known != id);
        }
    }
}
