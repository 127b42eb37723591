//! Calls of a version so far and their times, as the Open Inference Protocol tells them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::cache::Lookup;
use outrigger_protocol::oip::messages::{InferStatistics, StatisticDuration};

/// Calls, and the time that they took together.
#[derive(Debug, Default)]
struct Sum {
    count: AtomicU64,
    nanos: AtomicU64,
}

impl Sum {
    fn add(&self, time: Duration) {
        self.count.fetch_add(1, Relaxed);
        self.nanos.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    fn show(&self) -> Option<StatisticDuration> {
        Some(StatisticDuration { count: self.count.load(Relaxed), ns: self.nanos.load(Relaxed) })
    }
}

/// The times of a call that has a result.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    /// Reading inputs.
    pub(crate) input: Duration,
    /// Waiting for a slot.
    pub(crate) queue: Duration,
    /// From the slot to the outputs.
    pub(crate) infer: Duration,
    /// Writing outputs.
    pub(crate) output: Duration,
    /// All of it.
    pub(crate) whole: Duration,
    /// Looking for an answer that is kept, where they are, and whether it was found without a run.
    pub(crate) lookup: Option<(Lookup, Duration)>,
}

/// What is counted of a version.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    success: Sum,
    fail: Sum,
    queue: Sum,
    input: Sum,
    infer: Sum,
    output: Sum,
    hit: Sum,
    miss: Sum,
    runs: AtomicU64,
    /// Milliseconds since 1970.
    last: AtomicU64,
}

impl Statistics {
    /// A call has a result.
    pub(crate) fn succeeded(&self, times: &Times) {
        self.success.add(times.whole);
        match times.lookup {
            Some((Lookup::Hit | Lookup::Joined, took)) => self.hit.add(took),
            Some((Lookup::Miss, took)) => {
                self.miss.add(took);
                self.ran_for(times);
            }
            None => self.ran_for(times),
        }
        self.ended();
    }

    /// Nothing of it where the answer was there.
    fn ran_for(&self, times: &Times) {
        self.queue.add(times.queue);
        self.input.add(times.input);
        self.infer.add(times.infer);
        self.output.add(times.output);
    }

    /// A call that was let in has none, after this time.
    pub(crate) fn failed(&self, after: Duration) {
        self.fail.add(after);
        self.ended();
    }

    /// There was a run, of one call or several.
    pub(super) fn ran(&self) {
        self.runs.fetch_add(1, Relaxed);
    }

    fn ended(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last.fetch_max(u64::try_from(now.as_millis()).unwrap_or(0), Relaxed);
    }

    /// When the last call ended, calls with a result of their own, runs.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        // A hit is counted after its success.
        let hits = self.hit.count.load(Relaxed);
        let own = self.success.count.load(Relaxed).saturating_sub(hits);
        (self.last.load(Relaxed), own, self.runs.load(Relaxed))
    }

    /// All times.
    pub(crate) fn show(&self) -> InferStatistics {
        InferStatistics {
            success: self.success.show(),
            fail: self.fail.show(),
            queue: self.queue.show(),
            compute_input: self.input.show(),
            compute_infer: self.infer.show(),
            compute_output: self.output.show(),
            cache_hit: self.hit.show(),
            cache_miss: self.miss.show(),
        }
    }
}
