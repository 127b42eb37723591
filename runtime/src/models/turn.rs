//! The slot that a run has: its own, or that of the call of which it is a part.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::busy::Outcome;
use crate::scheduler::Slot;
use crate::telemetry::Passage;

/// The slot of a run.
pub(super) enum Turn {
    /// Its own, for it is a call.
    Own(Slot),
    /// That of the call of which it is a part.
    Shared(Arc<SharedSlot>),
}

impl Turn {
    pub(super) fn begin(&mut self) {
        match self {
            Self::Own(slot) => slot.begin(),
            Self::Shared(slot) => slot.begin(),
        }
    }

    /// The request of which it is the one run; one of several has none, for their times overlap.
    pub(super) fn passage(&self) -> Option<&Arc<Passage>> {
        match self {
            Self::Own(slot) => slot.passage(),
            Self::Shared(_) => None,
        }
    }

    pub(super) fn finish(self, outcome: Outcome) {
        if let Self::Own(slot) = self {
            slot.finish(outcome);
        }
    }
}

/// The slot of a call that is made of runs: free again when the last of them is over that has begun, also when nobody waits for it any more.
pub(super) struct SharedSlot {
    state: Mutex<Shared>,
    deadline: Option<Instant>,
}

struct Shared {
    slot: Option<Slot>,
    has_begun: bool,
    outcome: Option<Outcome>,
}

impl SharedSlot {
    pub(super) fn new(slot: Slot, deadline: Option<Instant>) -> Arc<Self> {
        let shared = Shared { slot: Some(slot), has_begun: false, outcome: None };
        Arc::new(Self { state: Mutex::new(shared), deadline })
    }

    /// The call ends so, once its runs are over.
    pub(super) fn ends(self: Arc<Self>, outcome: Outcome) {
        self.lock().outcome = Some(outcome);
    }

    fn begin(&self) {
        let mut shared = self.lock();
        shared.has_begun = true;
        shared.slot.iter_mut().for_each(Slot::begin);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SharedSlot {
    fn drop(&mut self) {
        let is_late = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
        let shared = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Who left when the deadline was over has been told so; otherwise the caller has gone away.
        let late = || is_late.then_some(if shared.has_begun { Outcome::Failed } else { Outcome::Expired });
        if let Some(outcome) = shared.outcome.take().or_else(late)
            && let Some(slot) = shared.slot.take()
        {
            slot.finish(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::busy::Busy;
    use crate::scheduler::{Admission, Limits, Scheduler, Terms};
    use std::time::Duration;

    #[tokio::test]
    async fn a_slot_that_is_shared_is_free_when_the_last_run_is_over() {
        let busy = Busy::new(1);
        let limits =
            Limits { items: 1, bytes: 1, wait: Duration::from_secs(60), ageing: Duration::from_secs(1) };
        let scheduler = Scheduler::new(Arc::clone(&busy), 1, limits, None);
        let terms = Terms {
            caller: 0,
            priority: outrigger_protocol::priority::Priority::Normal,
            kind: 0,
            bytes: 0,
            admission: Admission::Now,
            deadline: None,
        };
        let executing = || busy.snapshot().executing;
        for ends in [Some(Outcome::Failed), None] {
            let shared = SharedSlot::new(scheduler.admit(terms).await.unwrap(), None);
            let mut runs: Vec<Turn> = (0..2).map(|_| Turn::Shared(Arc::clone(&shared))).collect();
            runs.iter_mut().for_each(Turn::begin);
            assert_eq!(executing(), 1, "two runs are one call");
            // The call has failed, or its caller has left; its runs go on.
            match ends {
                Some(outcome) => shared.ends(outcome),
                None => drop(shared),
            }
            runs.remove(0).finish(Outcome::Answered);
            assert_eq!(executing(), 1);
            runs.remove(0).finish(Outcome::Answered);
            assert_eq!(executing(), 0);
        }
        // Its deadline is over before a device was free, or while one was at it.
        for begins in [false, true] {
            let shared = SharedSlot::new(scheduler.admit(terms).await.unwrap(), Some(Instant::now()));
            let mut turn = Turn::Shared(shared);
            if begins {
                turn.begin();
            }
            drop(turn);
        }
        let busy = busy.snapshot();
        assert_eq!((busy.failed, busy.cancelled, busy.answered, busy.expired), (2, 1, 0, 1));
    }
}
