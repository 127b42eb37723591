//! How the calls of a version went, lately.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// What is remembered: so many spans...
const SPANS: usize = 5;
/// ...each of this length, of which the last one has just begun.
const SPAN: Duration = Duration::from_secs(60);

/// Calls, and how many of them failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::models) struct Counts {
    /// All of them.
    pub(in crate::models) calls: u64,
    /// Those without a result.
    pub(in crate::models) failures: u64,
}

impl Counts {
    fn note(&mut self, failed: bool) {
        self.calls += 1;
        self.failures += u64::from(failed);
    }

    /// What has come to it since it was like that.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            calls: self.calls.saturating_sub(before.calls),
            failures: self.failures.saturating_sub(before.failures),
        }
    }
}

impl std::ops::Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { calls: self.calls + other.calls, failures: self.failures + other.failures }
    }
}

/// Counts of the last minutes, and of all time.
#[derive(Debug, Default)]
struct Spans {
    all: Counts,
    spans: [Counts; SPANS],
    /// The number of the span that calls are counted in now.
    now: u64,
}

impl Spans {
    /// Forgets what is too long ago.
    fn come_to(&mut self, at: Duration) {
        let now = at.as_secs() / SPAN.as_secs();
        let over = now.saturating_sub(self.now).min(SPANS as u64);
        for span in 0..over {
            self.spans[((now - span) % SPANS as u64) as usize] = Counts::default();
        }
        self.now = self.now.max(now);
    }

    fn note(&mut self, failed: bool, at: Duration) {
        self.come_to(at);
        self.all.note(failed);
        self.spans[(self.now % SPANS as u64) as usize].note(failed);
    }

    fn recent(&mut self, at: Duration) -> Counts {
        self.come_to(at);
        self.spans.iter().fold(Counts::default(), |sum, span| sum + *span)
    }
}

/// Counts them.
pub(in crate::models) struct Outcomes {
    spans: Mutex<Spans>,
    start: Instant,
    /// Told of each failure.
    failed: Notify,
}

impl Outcomes {
    pub(in crate::models) fn new(start: Instant) -> Self {
        Self { spans: Mutex::default(), start, failed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Spans> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call is over.
    pub(in crate::models) fn note(&self, failed: bool) {
        self.lock().note(failed, self.start.elapsed());
        if failed {
            self.failed.notify_waiters();
        }
    }

    /// All calls.
    pub(in crate::models) fn all(&self) -> Counts {
        self.lock().all
    }

    /// Those of the last minutes.
    pub(super) fn recent(&self) -> Counts {
        self.lock().recent(self.start.elapsed())
    }

    /// Comes with the next failure.
    pub(super) fn failure(&self) -> Notified<'_> {
        self.failed.notified()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_ago_is_forgotten_span_by_span() {
        let mut spans = Spans::default();
        let counts = |calls, failures| Counts { calls, failures };
        for minute in 0..3 {
            spans.note(minute == 0, SPAN * minute);
        }
        assert_eq!(spans.recent(SPAN * 4), counts(3, 1));
        assert_eq!(spans.recent(SPAN * 5), counts(2, 0), "the first one is five minutes ago");
        assert_eq!(spans.recent(SPAN * 6), counts(1, 0));
        spans.note(true, SPAN * 100);
        assert_eq!((spans.recent(SPAN * 100), spans.all), (counts(1, 1), counts(4, 2)));
        // Clocks of threads are not quite in order.
        spans.note(false, SPAN * 99);
        assert_eq!(spans.recent(SPAN * 100), counts(2, 1));
        assert_eq!(counts(5, 3).since(counts(2, 1)), counts(3, 2));
    }
}
