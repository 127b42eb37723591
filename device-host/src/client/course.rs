//! When a host that has died is started again. No clock and no thread: times come in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::options::Timing;

/// The deaths of one device's hosts.
pub(super) struct Course {
    timing: Timing,
    deaths: VecDeque<Instant>,
    pause: Duration,
    quarantined: bool,
}

/// What comes after a death.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A restart, after a pause.
    Restart(Duration),
    /// The device is quarantined, and tried again after a pause.
    Quarantine(Duration),
}

impl Course {
    pub(super) fn new(timing: &Timing) -> Self {
        Self { timing: timing.clone(), deaths: VecDeque::new(), pause: Duration::ZERO, quarantined: false }
    }

    /// A host has died after it served for `served`, or did not start; `good` is whether a call succeeded on it.
    pub(super) fn died(&mut self, now: Instant, served: Duration, good: bool) -> Next {
        let Timing { backoff, backoff_most, served_well, deaths, deaths_within, quarantine, .. } =
            self.timing;
        if good {
            self.deaths.clear();
            self.quarantined = false;
        }
        if good && served >= served_well {
            self.pause = Duration::ZERO;
        }
        self.deaths.push_back(now);
        while self.deaths.len() > deaths.max(1) {
            self.deaths.pop_front();
        }
        let first = self.deaths.front().copied().unwrap_or(now);
        let row = self.deaths.len() >= deaths.max(1) && now.saturating_duration_since(first) <= deaths_within;
        // There it stays until a call succeeds.
        self.quarantined |= row;
        if self.quarantined {
            return Next::Quarantine(quarantine);
        }
        let pause = self.pause;
        self.pause = (pause * 2).clamp(backoff, backoff_most.max(backoff));
        Next::Restart(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn course() -> Course {
        Course::new(&Timing::default())
    }

    #[test]
    fn restarts_are_at_once_then_ever_later() {
        let (mut course, start) = (course(), Instant::now());
        // Good calls keep it out of quarantine, and do not make it start faster.
        let pauses: Vec<_> =
            (0..12u32).map(|death| course.died(start + SECOND * death, SECOND, true)).collect();
        let expected = [0, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000];
        assert_eq!(pauses, expected.map(|pause| Next::Restart(Duration::from_millis(pause))));
        let well = course.died(start + SECOND * 100, SECOND * 31, true);
        assert_eq!(well, Next::Restart(Duration::ZERO), "one that served well starts at once");
    }

    #[test]
    fn deaths_in_a_row_end_in_quarantine() {
        let (mut course, start) = (course(), Instant::now());
        for death in 0..4 {
            assert!(matches!(course.died(start + SECOND * death, SECOND, false), Next::Restart(_)));
        }
        let quarantine = Next::Quarantine(Timing::default().quarantine);
        assert_eq!(course.died(start + SECOND * 4, SECOND, false), quarantine);
        assert_eq!(course.died(start + SECOND * 999, SECOND, false), quarantine);
        let good = course.died(start + SECOND * 2000, SECOND * 900, true);
        assert_eq!(good, Next::Restart(Duration::ZERO), "a good call ends it");
    }

    #[test]
    fn deaths_far_apart_and_good_calls_do_not() {
        let (mut course, start) = (course(), Instant::now());
        for death in 0..20 {
            let next = course.died(start + SECOND * 16 * death, SECOND, false);
            assert!(matches!(next, Next::Restart(_)), "five of them take 64 s");
        }
        for death in 0..20 {
            let next = course.died(start + SECOND * (400 + death), SECOND, death % 4 == 0);
            assert!(matches!(next, Next::Restart(_)), "{death}");
        }
    }
}
