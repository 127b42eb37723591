//! The crash-loop breaker: how long a worker that keeps dying waits before it is started again, and why it does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::process::{Death, TAIL_LINES};
use super::worker::StartError;

/// The first wait before a worker that keeps dying is started again; it doubles from time to time.
const FIRST: Duration = Duration::from_millis(100);
/// The longest such wait.
const MOST: Duration = Duration::from_secs(10);

/// Counts the failures in a row of each worker. A worker fails when it ends before it has answered a call, or does not come up. The
/// first start after a good time is made at once, the next ones ever more slowly.
pub(super) struct Breaker {
    /// Whether it makes anybody wait.
    enabled: bool,
    lanes: Mutex<Vec<Lane>>,
    /// Whether any lane has failures: a look at this is all that a good call costs.
    troubled: AtomicBool,
    /// Whether the last start of a worker failed.
    broken: AtomicBool,
}

#[derive(Clone, Default)]
struct Lane {
    failures: u32,
    until: Option<Instant>,
    /// How the last one ended, without anything that the script itself said: who asks here may have no key.
    last: String,
}

impl Breaker {
    pub(super) fn new(lanes: usize, enabled: bool) -> Self {
        Self {
            enabled,
            lanes: Mutex::new(vec![Lane::default(); lanes]),
            troubled: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        }
    }

    fn lanes(&self) -> std::sync::MutexGuard<'_, Vec<Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker has answered a call.
    pub(super) fn served(&self, lane: usize) {
        if !self.troubled.load(Ordering::Relaxed) {
            return;
        }
        let mut lanes = self.lanes();
        if let Some(lane) = lanes.get_mut(lane) {
            *lane = Lane::default();
        }
        self.troubled.store(lanes.iter().any(|lane| lane.failures > 0), Ordering::Relaxed);
    }

    /// A worker has ended after it had answered `served` calls.
    pub(super) fn died(&self, lane: usize, served: u64, death: &Death) {
        if served == 0 {
            self.fail(lane, death.status.clone(), &death.status, &death.tail);
        }
    }

    /// A worker has come up.
    pub(super) fn started(&self) {
        self.broken.store(false, Ordering::Release);
    }

    /// Whether workers do not come up, so that waiting for one makes little sense.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// A worker did not come up.
    pub(super) fn did_not_start(&self, lane: usize, error: &StartError) {
        self.broken.store(true, Ordering::Release);
        let tail = match error {
            StartError::Died(death) | StartError::Timeout { death, .. } => death.tail.clone(),
            StartError::Script(failure) => {
                let lines: Vec<_> = failure.traceback.lines().map(str::to_owned).collect();
                lines[lines.len().saturating_sub(TAIL_LINES)..].to_vec()
            }
            _ => Vec::new(),
        };
        let brief = match error {
            StartError::Script(failure) => {
                format!("the script failed in {}; the log says how", failure.phase)
            }
            error => error.to_string(),
        };
        self.fail(lane, brief, &error.to_string(), &tail);
    }

    /// `brief` is for whoever asks; `how` and `tail` are for the log.
    fn fail(&self, number: usize, brief: String, how: &str, tail: &[String]) {
        let mut lanes = self.lanes();
        let Some(lane) = lanes.get_mut(number) else { return };
        lane.failures = lane.failures.saturating_add(1);
        lane.last = brief;
        let wait = wait(lane.failures).filter(|_| self.enabled);
        lane.until = wait.map(|wait| Instant::now() + wait);
        self.troubled.store(true, Ordering::Relaxed);
        if let Some(wait) = wait {
            let lines: String = tail.iter().map(|line| format!("\n  {line}")).collect();
            tracing::warn!(
                worker = number,
                failures = lane.failures,
                ?wait,
                last = how,
                "worker keeps failing before it has answered a call, waiting before the next start{lines}"
            );
        }
    }

    /// Waits until the worker may be started again.
    pub(super) async fn wait(&self, lane: usize) {
        let until = self.lanes().get(lane).and_then(|lane| lane.until);
        if let Some(until) = until {
            tokio::time::sleep_until(until).await;
        }
    }

    /// Why workers wait, for whoever asks why there is none.
    pub(super) fn reason(&self) -> Option<String> {
        let lanes = self.lanes();
        let worst = lanes.iter().max_by_key(|lane| lane.failures).filter(|lane| lane.failures > 0)?;
        let times = worst.failures;
        Some(format!(
            "a worker failed {times} time(s) in a row before it had answered a call; last: {}",
            worst.last
        ))
    }
}

/// How long to wait after so many failures in a row.
fn wait(failures: u32) -> Option<Duration> {
    let doublings = failures.checked_sub(2)?;
    Some(FIRST.saturating_mul(1 << doublings.min(10)).min(MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(status: &str) -> Death {
        Death { status: status.into(), tail: vec!["last words".into()] }
    }

    #[test]
    fn waits_double_up_to_a_limit() {
        let millis = |failures| wait(failures).map(|wait| wait.as_millis());
        let expected =
            [None, None, Some(100), Some(200), Some(400), Some(800), Some(1600), Some(3200), Some(6400)];
        for (failures, expected) in expected.into_iter().enumerate() {
            assert_eq!(millis(failures as u32), expected);
        }
        assert_eq!(millis(9), Some(10_000));
        assert_eq!(millis(u32::MAX), Some(10_000));
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_answered_is_started_at_once_and_who_has_not_waits() {
        let breaker = Breaker::new(2, true);
        let begun = Instant::now();
        breaker.died(0, 5, &death("exit code 1"));
        breaker.died(0, 0, &death("exit code 1"));
        breaker.wait(0).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        breaker.died(0, 0, &death("signal 11"));
        breaker.died(0, 0, &death("signal 11"));
        breaker.wait(1).await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "the other one has done nothing");
        breaker.wait(0).await;
        assert!(begun.elapsed() >= Duration::from_millis(200));
        assert!(breaker.reason().unwrap().contains("3 time(s)"), "{:?}", breaker.reason());
        assert!(breaker.reason().unwrap().contains("signal 11"));
        breaker.served(0);
        assert_eq!(breaker.reason(), None);
        breaker.died(0, 0, &death("exit code 1"));
        let begun = Instant::now();
        breaker.wait(0).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn switched_off_nobody_waits() {
        let breaker = Breaker::new(1, false);
        for _ in 0..10 {
            breaker.died(0, 0, &death("signal 9"));
        }
        let begun = Instant::now();
        breaker.wait(0).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
