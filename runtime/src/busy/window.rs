//! What has happened lately: rates and means over the last second, and over as much more as it takes to say something.
//!
//! Calls pay nothing for them. They are differences between counters and integrals, which somebody reads four times a second and
//! remembers for a while.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outrigger_protocol::busy::{BusySnapshot, Window};
use tokio_util::sync::CancellationToken;

use super::Busy;

/// Time between two marks.
const STEP: Duration = Duration::from_millis(250);
/// Marks that are remembered: 16 seconds.
const MARKS: usize = 64;
/// Shortest window, in seconds.
const SECOND: f64 = 1.0;
/// Calls that have ended in a window that says something.
const ENOUGH: u64 = 10;

/// The windows as they were last made. Each number is read by itself: of two neighbouring windows, at worst.
#[derive(Default)]
pub(super) struct Windows {
    second: Published,
    recent: Published,
    /// When a call was here last, in microseconds since the start.
    active: AtomicU64,
}

/// The bits of a [`Window`]'s numbers.
#[derive(Default)]
struct Published([AtomicU64; 5]);

impl Published {
    fn store(&self, window: Window) {
        let values = [window.seconds, window.arrived, window.ended, window.errors, window.calls];
        for (cell, value) in self.0.iter().zip(values) {
            cell.store(value.to_bits(), Ordering::Relaxed);
        }
    }

    fn load(&self) -> Window {
        let [seconds, arrived, ended, errors, calls] =
            self.0.each_ref().map(|cell| f64::from_bits(cell.load(Ordering::Relaxed)));
        Window { seconds, arrived, ended, errors, calls }
    }
}

impl Windows {
    pub(super) fn second(&self) -> Window {
        self.second.load()
    }

    pub(super) fn recent(&self) -> Window {
        self.recent.load()
    }

    pub(super) fn idle_micros(&self, now: u64) -> u64 {
        now.saturating_sub(self.active.load(Ordering::Relaxed))
    }
}

/// Keeps the windows of a replica, until `stop`.
pub(crate) async fn keep(busy: Arc<Busy>, stop: CancellationToken) {
    let mut sampler = Sampler::default();
    let mut steps = tokio::time::interval(STEP);
    steps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = steps.tick() => sampler.sample(&busy),
            () = stop.cancelled() => return,
        }
    }
}

/// The counters at one moment.
#[derive(Clone, Copy, Default)]
struct Mark {
    at: f64,
    arrived: u64,
    ended: u64,
    errors: u64,
    call_seconds: f64,
}

impl Mark {
    fn of(seen: &BusySnapshot) -> Self {
        Self {
            at: seen.uptime_seconds,
            arrived: seen.arrived,
            ended: seen.answered + seen.failed,
            errors: seen.failed + seen.refused + seen.expired,
            call_seconds: seen.call_seconds,
        }
    }

    fn since(self, before: Self) -> Window {
        let seconds = self.at - before.at;
        if seconds <= 0.0 {
            return Window::default();
        }
        Window {
            seconds,
            arrived: (self.arrived - before.arrived) as f64 / seconds,
            ended: (self.ended - before.ended) as f64 / seconds,
            errors: (self.errors - before.errors) as f64 / seconds,
            calls: (self.call_seconds - before.call_seconds) / seconds,
        }
    }
}

/// Remembers marks, the newest last.
struct Sampler {
    marks: VecDeque<Mark>,
}

impl Default for Sampler {
    fn default() -> Self {
        // The start, at which nothing had happened.
        Self { marks: VecDeque::from([Mark::default()]) }
    }
}

impl Sampler {
    fn sample(&mut self, busy: &Busy) {
        let seen = busy.snapshot();
        let now = Mark::of(&seen);
        if seen.busy || self.marks.back().is_some_and(|last| last.arrived < now.arrived) {
            busy.windows.active.store((seen.uptime_seconds * 1e6) as u64, Ordering::Relaxed);
        }
        busy.windows.second.store(self.window(now, 0));
        busy.windows.recent.store(self.window(now, ENOUGH));
        if self.marks.len() > MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back(now);
    }

    /// The shortest window of at least a second in which `enough` calls have ended, or else the longest there is.
    fn window(&self, now: Mark, enough: u64) -> Window {
        let fits = |mark: &&Mark| now.at - mark.at >= SECOND && now.ended - mark.ended >= enough;
        let begin = self.marks.iter().rev().find(fits).or(self.marks.front());
        begin.map(|begin| now.since(*begin)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::busy::Outcome;

    fn mark(at: f64, ended: u64, call_seconds: f64) -> Mark {
        Mark { at, arrived: ended + 1, ended, errors: ended / 2, call_seconds }
    }

    #[test]
    fn a_window_is_as_long_as_it_takes() {
        let mut sampler = Sampler::default();
        sampler
            .marks
            .extend((1..=12).map(|step| mark(f64::from(step) / 4.0, step as u64 * 2, f64::from(step))));
        let now = mark(3.25, 26, 13.0);
        let second = sampler.window(now, 0);
        assert_eq!((second.seconds, second.ended, second.calls, second.errors), (1.0, 8.0, 4.0, 4.0));
        assert_eq!(sampler.window(now, ENOUGH).seconds, 1.25, "ten have ended");
        assert_eq!(sampler.window(now, 1000).seconds, 3.25, "all that there is");
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let busy = Busy::new(1);
        let mut sampler = Sampler::default();
        for _ in 0..10 * MARKS {
            sampler.sample(&busy);
        }
        assert!(sampler.marks.len() <= MARKS + 1);
    }

    #[tokio::test]
    async fn rates_and_means_are_those_of_the_calls() {
        let busy = Busy::new(2);
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(keep(Arc::clone(&busy), stop.clone()));
        let held = busy.arrive().unwrap();
        let mut failed = busy.arrive().unwrap();
        failed.start();
        failed.finish(Outcome::Failed);
        let reached = async {
            loop {
                let seen = busy.snapshot();
                let recent = seen.recent;
                if recent.seconds > 0.0 && recent.calls > 0.5 && recent.ended > 0.0 {
                    break seen;
                }
                tokio::task::yield_now().await;
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(60), reached).await.unwrap();
        assert!(seen.recent.calls <= 1.1, "one call all along, one for a moment: {seen:?}");
        assert_eq!(seen.recent.ended, seen.recent.errors);
        assert_eq!(seen.recent.arrived, 2.0 * seen.recent.ended);
        assert_eq!(seen.idle_seconds, 0.0);
        drop(held);
        assert!(busy.snapshot().idle_seconds < 30.0);
        stop.cancel();
        keeper.await.unwrap();
    }
}
