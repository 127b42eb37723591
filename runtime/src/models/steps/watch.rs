//! Runs that can be cancelled while steps have them, and on their way to the model.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outrigger_backend::{BackendError, Instance, Run, RunId};

/// How often a model is asked to end a run that goes on: it may not have known of it yet, and nobody else tells when it does.
const AGAIN: Duration = Duration::from_millis(10);

/// The runs under way that have a number, and which of them are cancelled: as many as there are device threads.
#[derive(Default)]
pub(super) struct Runs(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    under_way: Vec<(RunId, bool)>,
    /// A thread asks the model to end those that are cancelled.
    is_repeated: bool,
}

/// A run under way.
pub(super) struct Watched<'a> {
    runs: &'a Runs,
    id: Option<RunId>,
}

impl Runs {
    pub(super) fn begin(&self, run: Run) -> Watched<'_> {
        if let Some(id) = run.id {
            lock(&self.0).under_way.push((id, false));
        }
        Watched { runs: self, id: run.id }
    }

    /// Has a run end, whether steps have it, the model, or neither: steps ask, and the model is told until the run is over.
    pub(super) fn cancel(&self, id: RunId, model: &Arc<dyn Instance>) {
        {
            let mut state = lock(&self.0);
            let mut found = false;
            for (_, is_cancelled) in state.under_way.iter_mut().filter(|(known, _)| *known == id) {
                (*is_cancelled, found) = (true, true);
            }
            if found && !state.is_repeated && model.can_cancel() {
                let (runs, model) = (Arc::clone(&self.0), Arc::clone(model));
                let thread = std::thread::Builder::new().name("cancels".into());
                state.is_repeated = thread.spawn(move || repeat(&runs, &*model)).is_ok();
            }
        }
        model.cancel(id);
    }
}

/// Tells the model of all runs that are cancelled, until none is under way.
fn repeat(runs: &Mutex<State>, model: &dyn Instance) {
    loop {
        std::thread::sleep(AGAIN);
        let cancelled: Vec<RunId> = {
            let mut state = lock(runs);
            let cancelled = state.under_way.iter().filter(|(_, is_cancelled)| *is_cancelled);
            let cancelled: Vec<_> = cancelled.map(|(id, _)| *id).collect();
            state.is_repeated = !cancelled.is_empty();
            cancelled
        };
        if cancelled.is_empty() {
            return;
        }
        cancelled.into_iter().for_each(|id| model.cancel(id));
    }
}

fn lock(runs: &Mutex<State>) -> MutexGuard<'_, State> {
    runs.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watched<'_> {
    pub(super) fn is_cancelled(&self) -> bool {
        self.id.is_some_and(|id| lock(&self.runs.0).under_way.contains(&(id, true)))
    }

    pub(super) fn check(&self) -> Result<(), BackendError> {
        if self.is_cancelled() { Err(BackendError::Cancelled) } else { Ok(()) }
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            lock(&self.runs.0).under_way.retain(|(known, _)| *known != id);
        }
    }
}
