//! What is counted of the cache, and shown of it when somebody asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::{Answers, Lookup};

pub(super) struct Metrics {
    hits: IntCounter,
    joined: IntCounter,
    misses: IntCounter,
}

impl Metrics {
    /// Registers all but [`evictions`].
    pub(super) fn new(
        registry: &Registry,
        answers: &Arc<Answers>,
        waiting: &Arc<AtomicUsize>,
    ) -> Result<Self, prometheus::Error> {
        let lookups = Opts::new(
            "outrigger_cache_lookups_total",
            "Answered calls of models whose answers are kept: hit, the answer was there; joined, another call was at it; miss, it was run",
        );
        let lookups = IntCounterVec::new(lookups, &["result"])?;
        let of = |lookup: Lookup| lookups.get_metric_with_label_values(&[lookup.as_str()]);
        let (hits, joined, misses) = (of(Lookup::Hit)?, of(Lookup::Joined)?, of(Lookup::Miss)?);
        registry.register(Box::new(lookups))?;
        registry.register(Box::new(Held::new(Arc::clone(answers), Arc::clone(waiting))?))?;
        Ok(Self { hits, joined, misses })
    }

    pub(super) fn lookups(&self, lookup: Lookup) -> &IntCounter {
        match lookup {
            Lookup::Hit => &self.hits,
            Lookup::Joined => &self.joined,
            Lookup::Miss => &self.misses,
        }
    }
}

/// A counter of what leaves, for who is told of that.
pub(super) fn evictions(registry: &Registry) -> Result<IntCounter, prometheus::Error> {
    let name = "outrigger_cache_evictions_total";
    let evictions = IntCounter::new(name, "Kept answers that made way, for others or for newer ones")?;
    registry.register(Box::new(evictions.clone()))?;
    Ok(evictions)
}

/// What is kept at the moment.
struct Held {
    cache: Arc<Answers>,
    calls: Arc<AtomicUsize>,
    bytes: IntGauge,
    answers: IntGauge,
    waiting: IntGauge,
}

impl Held {
    fn new(cache: Arc<Answers>, calls: Arc<AtomicUsize>) -> Result<Self, prometheus::Error> {
        let bytes = IntGauge::new("outrigger_cache_bytes", "Bytes of answers that are kept")?;
        let answers = IntGauge::new("outrigger_cache_answers", "Answers that are kept")?;
        let waiting = IntGauge::new("outrigger_cache_waiting", "Calls that wait for the runs of others")?;
        Ok(Self { cache, calls, bytes, answers, waiting })
    }
}

impl Collector for Held {
    fn desc(&self) -> Vec<&Desc> {
        [self.bytes.desc(), self.answers.desc(), self.waiting.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.bytes.set(i64::try_from(self.cache.weight()).unwrap_or(i64::MAX));
        self.answers.set(i64::try_from(self.cache.len()).unwrap_or(i64::MAX));
        self.waiting.set(i64::try_from(self.calls.load(Ordering::Relaxed)).unwrap_or(i64::MAX));
        [self.bytes.collect(), self.answers.collect(), self.waiting.collect()].concat()
    }
}
