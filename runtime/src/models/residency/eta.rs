//! How long loads take.

use std::time::Duration;

use super::core::Core;
use super::state::ModelState;

/// What a load is taken to take while nothing has been loaded.
const UNKNOWN: Duration = Duration::from_secs(5);
/// With each load, what is known from the earlier ones counts this much less.
const FORGET: f64 = 0.98;

/// What loads cost, each one and each byte of them: a line through those that there were, the later ones counting more.
#[derive(Debug, Default)]
pub(super) struct LoadCost {
    loads: f64,
    bytes: f64,
    secs: f64,
    bytes_squared: f64,
    bytes_secs: f64,
}

impl LoadCost {
    pub(super) fn note(&mut self, bytes: u64, took: Duration) {
        let (bytes, secs) = (bytes as f64, took.as_secs_f64());
        let sums =
            [&mut self.loads, &mut self.bytes, &mut self.secs, &mut self.bytes_squared, &mut self.bytes_secs];
        for (sum, value) in sums.into_iter().zip([1.0, bytes, secs, bytes * bytes, bytes * secs]) {
            *sum = *sum * FORGET + value;
        }
    }

    /// What a load of so many bytes takes, as far as they are known.
    pub(super) fn expected(&self, bytes: Option<u64>) -> Duration {
        if self.loads <= 0.0 {
            return UNKNOWN;
        }
        let mean = self.secs / self.loads;
        let Some(bytes) = bytes else { return seconds(mean) };
        let (x, squares) = (self.bytes / self.loads, self.bytes_squared / self.loads);
        let (variance, together) = (squares - x * x, self.bytes_secs / self.loads - x * mean);
        // Loads of about one size say nothing of what a byte costs, and more bytes are not faster.
        let slope = if variance > squares * 1e-6 { (together / variance).max(0.0) } else { 0.0 };
        // Nor does a load cost less than nothing: then it is all in the bytes.
        let each = mean - slope * x;
        let (each, slope) = if each >= 0.0 { (each, slope) } else { (0.0, mean / x.max(1.0)) };
        seconds(each + slope * bytes as f64)
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(UNKNOWN)
}

impl Core {
    /// How long it is until a model is ready: what its own load takes, after those that come before it.
    pub(in crate::models) fn eta(&self, model: usize, now: Duration) -> Duration {
        match self.phase(model) {
            ModelState::Ready => Duration::ZERO,
            ModelState::Loading | ModelState::Warming => self.remaining(model, now),
            phase @ (ModelState::Registered | ModelState::Fetching) => {
                let fetch = self.fetch_cost.expected(self.models.get(model).and_then(|this| this.away));
                let begun = phase == ModelState::Fetching;
                let fetch = if begun { self.time_left(model, fetch, now) } else { fetch };
                fetch.saturating_add(self.load_time(model))
            }
            ModelState::OnDisk | ModelState::Queued | ModelState::Draining | ModelState::Failed => {
                let before = self.queue.iter().take_while(|queued| **queued != model);
                let before = before.map(|queued| self.load_time(*queued));
                let under_way = self.under_way.iter().map(|other| self.remaining(*other, now));
                let wait = under_way.chain(before).fold(Duration::ZERO, Duration::saturating_add);
                let lanes = u32::try_from(self.options.loads).unwrap_or(u32::MAX).max(1);
                (wait / lanes).saturating_add(self.load_time(model))
            }
        }
    }

    /// So many bytes a model is expected to take, as long as it has not been measured.
    pub(in crate::models) fn expect_bytes(&mut self, model: usize, bytes: u64) {
        if let Some(this) = self.models.get_mut(model).filter(|this| this.took.is_none()) {
            this.bytes = Some(bytes);
        }
    }

    fn load_time(&self, model: usize) -> Duration {
        let this = self.models.get(model);
        this.and_then(|this| this.took)
            .unwrap_or_else(|| self.cost.expected(this.and_then(|this| this.bytes)))
    }

    /// What is left of a load.
    fn remaining(&self, model: usize, now: Duration) -> Duration {
        self.time_left(model, self.load_time(model), now)
    }

    /// What is left of what a model is at: if it takes longer than expected, it takes a good deal longer.
    fn time_left(&self, model: usize, expected: Duration, now: Duration) -> Duration {
        let since = self.models.get(model).map_or(now, |this| this.since);
        let elapsed = now.saturating_sub(since);
        expected.saturating_sub(elapsed).max(elapsed / 4)
    }
}
