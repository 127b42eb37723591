//! Runs that can be cancelled.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_backend::{Instance, RunId};

/// Runs under way that have a number, and those that were cancelled before they came.
#[derive(Default)]
pub(super) struct Runs(Mutex<State>);

#[derive(Default)]
struct State {
    under_way: HashMap<u64, UnderWay>,
    cancelled: usize,
    early: VecDeque<u64>,
}

struct UnderWay {
    instance: Arc<dyn Instance>,
    id: RunId,
    cancelled: bool,
}

/// The most that are remembered of those that were cancelled before they came, or after they ended.
const EARLY: usize = 1024;

impl Runs {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run begins; `false` if it was cancelled already. It ends when what is returned is dropped.
    pub(super) fn begin(&self, run: u64, instance: &Arc<dyn Instance>, id: RunId) -> Option<Begun<'_>> {
        let mut state = self.state();
        if let Some(found) = state.early.iter().position(|early| *early == run) {
            state.early.remove(found);
            return None;
        }
        state.under_way.insert(run, UnderWay { instance: Arc::clone(instance), id, cancelled: false });
        Some(Begun { runs: self, run })
    }

    /// A run is to end.
    pub(super) fn cancel(&self, run: u64) {
        let mut state = self.state();
        let state = &mut *state;
        match state.under_way.get_mut(&run) {
            Some(under_way) if !under_way.cancelled => {
                under_way.cancelled = true;
                state.cancelled += 1;
            }
            Some(_) => {}
            None => {
                state.early.push_back(run);
                if state.early.len() > EARLY {
                    state.early.pop_front();
                }
            }
        }
    }

    /// Asks all that were cancelled to end, once more; whether there are any.
    pub(super) fn repeat(&self) -> bool {
        let asked: Vec<_> = {
            let state = self.state();
            if state.cancelled == 0 {
                return false;
            }
            let cancelled = state.under_way.values().filter(|run| run.cancelled);
            cancelled.map(|run| (Arc::clone(&run.instance), run.id)).collect()
        };
        asked.iter().for_each(|(instance, id)| instance.cancel(*id));
        true
    }
}

/// A run under way.
pub(super) struct Begun<'a> {
    runs: &'a Runs,
    run: u64,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let mut state = self.runs.state();
        let ended = state.under_way.remove(&self.run);
        if ended.as_ref().is_some_and(|run| run.cancelled) {
            state.cancelled -= 1;
        }
        // An instance that was released meanwhile ends here, which may take its time.
        drop(state);
        drop(ended);
    }
}
