//! Runs under way on a device, for those that wait until memory of theirs comes back.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(crate) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Runs that have their memory or are about to take it; those that wait for it are none.
    under_way: usize,
    /// Runs that are over.
    ended: u64,
}

/// A run, until it is dropped.
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    /// Runs that were over when it last looked for memory.
    seen: u64,
    until: Instant,
}

impl Turns {
    /// A run that waits for no longer than that in all.
    pub(crate) fn begin(&self, patience: Duration) -> Turn<'_> {
        let mut state = self.lock();
        state.under_way += 1;
        Turn { turns: self, seen: state.ended, until: Instant::now() + patience }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Waits until another run is over that was not when this one looked last. `false`: none is under way, or it has waited for too long.
    pub(crate) fn wait(&mut self) -> bool {
        let mut state = self.turns.lock();
        state.under_way -= 1;
        // Another that waits may be the last.
        self.turns.changed.notify_all();
        let patience = self.until.saturating_duration_since(Instant::now());
        let goes_on = |state: &mut State| state.ended == self.seen && state.under_way > 0;
        let waited = self.turns.changed.wait_timeout_while(state, patience, goes_on);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.under_way += 1;
        let has_ended = state.ended != self.seen;
        self.seen = state.ended;
        has_ended && Instant::now() < self.until
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        state.under_way -= 1;
        state.ended += 1;
        drop(state);
        self.turns.changed.notify_all();
    }
}
