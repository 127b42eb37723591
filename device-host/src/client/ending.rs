//! The end of one child: why it is to be ended, and how it ended.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Why a child is to be ended.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    /// It closed a connection; it is most likely ending by itself.
    Closed,
    /// It must be ended: why.
    Guilty(String),
}

/// One child's.
#[derive(Default)]
pub(super) struct Ending {
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Default)]
struct State {
    /// Why it is to be ended.
    condemned: Option<Verdict>,
    /// How it ended.
    reason: Option<String>,
}

impl Ending {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is to be ended; whether that says more than what was known.
    pub(super) fn condemn(&self, verdict: Verdict) -> bool {
        let mut state = self.state();
        let is_news =
            matches!((&state.condemned, &verdict), (None, _) | (Some(Verdict::Closed), Verdict::Guilty(_)));
        if is_news {
            state.condemned = Some(verdict);
        }
        is_news
    }

    /// What is to become of it, if it is to be ended.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.state().condemned.clone()
    }

    /// It has ended: how.
    pub(super) fn is(&self, reason: String) {
        self.state().reason = Some(reason);
        self.over.notify_all();
    }

    /// Whether it has ended.
    pub(super) fn is_over(&self) -> bool {
        self.state().reason.is_some()
    }

    /// How it ended. Waits for that, at most so long.
    pub(super) fn wait(&self, limit: Duration) -> Option<String> {
        let waited = self.over.wait_timeout_while(self.state(), limit, |state| state.reason.is_none());
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.reason.clone()
    }
}
