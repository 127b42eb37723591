//! Signs of life of an upstream that is at work: one that calculates in the only thread it has answers no question meanwhile, and is well.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How many calls an upstream has, and when anything last came of it.
pub(super) struct Pulse {
    began: Instant,
    running: AtomicUsize,
    /// Microseconds since `began`.
    last: AtomicU64,
}

/// A call that it has.
pub(super) struct Working(Arc<Pulse>);

impl Pulse {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), running: AtomicUsize::new(0), last: AtomicU64::new(0) })
    }

    /// Something has come.
    pub(super) fn beat(&self) {
        let micros = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.last.fetch_max(micros, Ordering::Relaxed);
    }

    /// It has one more call, for as long as the value lives.
    pub(super) fn work(self: &Arc<Self>) -> Working {
        self.running.fetch_add(1, Ordering::Relaxed);
        Working(Arc::clone(self))
    }

    /// Whether it has calls, and something has come within `limit`.
    pub(super) fn is_at_work(&self, limit: Duration) -> bool {
        let last = Duration::from_micros(self.last.load(Ordering::Relaxed));
        self.running.load(Ordering::Relaxed) > 0 && self.began.elapsed().saturating_sub(last) <= limit
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_has_calls_and_says_nothing_for_long_is_not_at_work() {
        let (pulse, limit) = (Pulse::new(), Duration::from_secs(5));
        tokio::time::advance(Duration::from_secs(100)).await;
        pulse.beat();
        assert!(!pulse.is_at_work(limit), "it has no call");
        let (one, two) = (pulse.work(), pulse.work());
        tokio::time::advance(limit).await;
        drop(one);
        assert!(pulse.is_at_work(limit));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!pulse.is_at_work(limit));
        pulse.beat();
        assert!(pulse.is_at_work(limit));
        drop(two);
        assert!(!pulse.is_at_work(limit));
    }
}
