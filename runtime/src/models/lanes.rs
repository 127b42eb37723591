//! How many calls, and runs of theirs, the device threads take at once.

use crate::busy::MAX_CALLS;

/// So many find the next run at hand without sleeping in between.
const AHEAD_PER_THREAD: usize = 8;

/// How many calls the device threads take at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lanes {
    pub(super) slots: usize,
    pub(super) ahead: usize,
    /// Runs that a call has under way at once at most, beyond one.
    more_runs: usize,
}

impl Lanes {
    /// Those of a device with so many threads and, of its models, a widest batch of so many rows.
    pub(super) fn of(threads: usize, widest: usize) -> Self {
        Self {
            slots: threads.saturating_mul(widest),
            ahead: threads.saturating_mul(widest.max(AHEAD_PER_THREAD)),
            more_runs: 0,
        }
    }

    pub(super) fn sum(all: impl Iterator<Item = Self>) -> Self {
        let sum = all.fold(Self::default(), |sum, lanes| Self {
            slots: sum.slots.saturating_add(lanes.slots),
            ahead: sum.ahead.saturating_add(lanes.ahead),
            ..sum
        });
        // What is ahead and in the queue has to find room in the same counts.
        Self { slots: sum.slots.clamp(1, MAX_CALLS / 4), ahead: sum.ahead.min(MAX_CALLS / 4), ..sum }
    }

    /// The same where a call may have so many runs under way at once.
    pub(super) fn with_runs(self, runs: usize) -> Self {
        Self { more_runs: runs.saturating_sub(1), ..self }
    }

    /// Runs that a call has under way at once at most.
    pub(super) fn runs(self) -> usize {
        self.more_runs.saturating_add(1)
    }

    /// Runs that may wait for one device at once, of all calls that are let in.
    pub(super) fn waiting(self) -> usize {
        self.slots.saturating_add(self.ahead).saturating_mul(self.runs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_all_runs_of_all_calls_that_are_let_in() {
        let lanes = Lanes::sum([Lanes::of(2, 1), Lanes::of(1, 16)].into_iter());
        assert_eq!((lanes.slots, lanes.ahead, lanes.runs()), (18, 32, 1));
        assert_eq!(lanes.waiting(), 50);
        let more = lanes.with_runs(8);
        assert_eq!((more.slots, more.ahead, more.runs(), more.waiting()), (18, 32, 8, 400));
    }
}
