//! How long calls take, learned from those that have ended.

use std::collections::HashMap;
use std::time::Duration;

/// Weight of a new observation in the mean, as a right shift.
const MEAN_SHIFT: u32 = 3;
/// The same for the mean deviation.
const DEVIATION_SHIFT: u32 = 2;

/// What calls of one kind take: a running mean and a running mean deviation, as RFC 6298 keeps them of round trips.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    mean: u64,
    deviation: u64,
}

impl Taken {
    fn note(&mut self, nanos: u64) {
        if self.mean == 0 {
            self.mean = nanos.max(1);
            return;
        }
        let error = nanos.abs_diff(self.mean);
        self.deviation = self.deviation - (self.deviation >> DEVIATION_SHIFT) + (error >> DEVIATION_SHIFT);
        let step = error >> MEAN_SHIFT;
        self.mean =
            if nanos > self.mean { self.mean.saturating_add(step) } else { (self.mean - step).max(1) };
    }
}

/// Estimates for each kind of call, and each caller's calls of it. Both are numbered without large gaps, and there are few.
#[derive(Debug, Default)]
pub(super) struct Estimates {
    calls: HashMap<(u16, u16), Taken>,
    kinds: HashMap<u16, Taken>,
    /// All together: for what has not been seen.
    all: Taken,
}

impl Estimates {
    /// A call of this kind was executed for so long.
    pub(super) fn note(&mut self, caller: u16, kind: u16, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX / 2).min(u64::MAX / 2);
        self.calls.entry((caller, kind)).or_default().note(nanos);
        self.kinds.entry(kind).or_default().note(nanos);
        self.all.note(nanos);
    }

    fn of(&self, caller: u16, kind: u16) -> Taken {
        let known = self.calls.get(&(caller, kind)).or_else(|| self.kinds.get(&kind));
        known.copied().unwrap_or(self.all)
    }

    /// What a call of this kind takes on average, in nanoseconds; 0 before the first call.
    pub(super) fn mean(&self, caller: u16, kind: u16) -> u64 {
        self.of(caller, kind).mean
    }

    /// What most calls of this kind stay below.
    pub(super) fn likely(&self, caller: u16, kind: u16) -> Duration {
        let taken = self.of(caller, kind);
        Duration::from_nanos(taken.mean.saturating_add(taken.deviation.saturating_mul(2)))
    }

    /// What a call takes on average, in nanoseconds; 0 before the first call.
    pub(super) fn mean_of_all(&self) -> u64 {
        self.all.mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_is_learned_at_once_and_a_change_soon() {
        let mut estimates = Estimates::default();
        assert_eq!((estimates.mean(0, 0), estimates.likely(0, 3)), (0, Duration::ZERO));
        for _ in 0..3 {
            estimates.note(0, 1, Duration::from_millis(20));
        }
        assert_eq!(estimates.mean(0, 1), 20_000_000);
        assert_eq!(estimates.likely(0, 1), Duration::from_millis(20));
        assert_eq!(estimates.mean(0, 0), 20_000_000, "a kind that is not known is as the others");
        for _ in 0..40 {
            estimates.note(0, 1, Duration::from_millis(40));
        }
        assert!((39_000_000..=40_000_000).contains(&estimates.mean(0, 1)));
        estimates.note(0, 0, Duration::from_millis(1));
        assert_eq!(estimates.mean(0, 0), 1_000_000);
        assert_eq!(estimates.mean(7, 0), 1_000_000, "a caller that is not known is as the others");
        estimates.note(7, 0, Duration::from_millis(9));
        assert_eq!((estimates.mean(7, 0), estimates.mean(0, 0)), (9_000_000, 1_000_000));
    }

    #[test]
    fn what_varies_is_likely_below_more_than_the_mean() {
        let mut estimates = Estimates::default();
        for round in 0..200 {
            estimates.note(0, 0, Duration::from_millis(if round % 2 == 0 { 10 } else { 30 }));
        }
        let likely = estimates.likely(0, 0);
        assert!((Duration::from_millis(28)..Duration::from_millis(50)).contains(&likely), "{likely:?}");
        estimates.note(0, 0, Duration::MAX);
        assert!(estimates.likely(0, 0) > likely, "and nothing overflows");
    }
}
