//! The response cache: answers of models that are kept for who asks the same again. Off unless a model is said to have it.
//!
//! A question is a model's files, its inputs and the outputs that are wanted, whatever contract it came by, and unless `cache.per_caller` is off
//! who asks. It is told apart by a keyed hash of 256 bits, so that nobody finds two that are taken for one. A question that is being run when it comes again is not run
//! twice: the second call waits for the first one's result. It joins only what has its slot already, so that nobody waits behind the
//! queue of another, less urgent call.

mod flights;
mod question;

use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;

use http::HeaderValue;
use outrigger_auth::Grant;
use outrigger_backend::{Buffer, Tensor};
use outrigger_protocol::call::InferCall;
use outrigger_protocol::error::{CallError, ErrorCode};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};
use tokio::time::Instant;

use crate::config::CacheConfig;
use crate::models::Lease;
use crate::scheduler;

use flights::{Flight, Flights};
use question::Key;
pub(crate) use question::{Identity, Reuse};

/// What an answer takes beside its tensors' bytes, about: its entry, and that of each tensor.
const ENTRY: usize = 384;
const TENSOR: usize = 256;
/// The largest answers that go into a part of the cache with a lock of its own.
const ANSWERS: u64 = 16;
/// The most such parts.
const PARTS: u64 = 64;

/// Answers that are kept.
pub(crate) struct ResponseCache {
    answers: Cache<Key, Arc<Answer>, Bytes, BuildHasherDefault<First>, Leaving>,
    flights: Flights,
    /// Makes hashes worthless for who does not have it.
    secret: [u8; 32],
    answer: usize,
    per_caller: bool,
    metrics: Metrics,
}

/// What a model has given.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) tensors: Vec<Tensor>,
    /// The device that it ran on, as answers say it.
    pub(crate) device: Option<HeaderValue>,
}

/// How an answer was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// It was kept.
    Hit,
    /// Another call was at it.
    Joined,
    /// By a run.
    Miss,
}

impl Lookup {
    /// As answers say it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Joined => "joined",
            Self::Miss => "miss",
        }
    }
}

impl ResponseCache {
    /// One that is empty.
    ///
    /// # Errors
    /// [`prometheus::Error`] if two metrics have one name.
    pub(crate) fn new(config: &CacheConfig, registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Metrics::new(registry)?;
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| prometheus::Error::Msg(error.to_string()))?;
        let parts = (config.bytes / (config.answer as u64).max(1) / ANSWERS).clamp(1, PARTS);
        let items = usize::try_from(config.bytes / (ENTRY + TENSOR) as u64).unwrap_or(usize::MAX);
        let options = OptionsBuilder::new()
            .shards(usize::try_from(parts).unwrap_or(1))
            .estimated_items_capacity(items.max(1))
            .weight_capacity(config.bytes)
            // Of what has left only hashes are kept, and of fewer than a tenth as many as there may be.
            .ghost_allocation(0.1)
            .build()
            .map_err(|error| prometheus::Error::Msg(error.to_string()))?;
        let leaving = Leaving(metrics.evictions.clone());
        let answers = Cache::with_options(options, Bytes, BuildHasherDefault::default(), leaving);
        let (answer, per_caller) = (config.answer, config.per_caller);
        Ok(Self { answers, flights: Flights::default(), secret, answer, per_caller, metrics })
    }

    /// What is asked, if answers to that are kept.
    pub(crate) fn ask(
        &self,
        lease: &Lease,
        grant: &Grant,
        call: &InferCall,
        reuse: Reuse,
    ) -> Option<Asking<'_>> {
        if reuse == Reuse::Neither {
            return None;
        }
        let identity = lease.cached()?;
        let caller = self.per_caller.then(|| grant.caller().index());
        let key = Key::of(&self.secret, &identity, caller, call);
        Some(Asking { cache: self, key, reuse, flight: None })
    }
}

/// A question on its way to its answer.
pub(crate) struct Asking<'a> {
    cache: &'a ResponseCache,
    key: Key,
    reuse: Reuse,
    flight: Option<Flight<'a>>,
}

impl Asking<'_> {
    /// The answer, if it is kept, or once the call has it that is at it now. Nothing where the question has to be run.
    ///
    /// # Errors
    /// The other call's, where the model failed, and `deadline_exceeded`.
    pub(crate) async fn known(
        &self,
        deadline: Option<Instant>,
    ) -> Result<Option<(Arc<Answer>, Lookup)>, CallError> {
        if self.reuse != Reuse::Both {
            return Ok(None);
        }
        if let Some(answer) = self.kept() {
            return Ok(Some((answer, Lookup::Hit)));
        }
        match self.cache.flights.landing(&self.key) {
            Some(landing) => self.joined(landing.wait(), deadline).await,
            None => Ok(None),
        }
    }

    /// The same of a call that has its slot: where it has to be run, others wait for this one from here on, until [`Asking::found`].
    ///
    /// # Errors
    /// As [`Asking::known`].
    pub(crate) async fn known_or_led(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<(Arc<Answer>, Lookup)>, CallError> {
        loop {
            if let Some(known) = self.known(deadline).await? {
                return Ok(Some(known));
            }
            if self.reuse != Reuse::Both {
                break;
            }
            // Another may have been quicker.
            if let Some(flight) = self.cache.flights.lead(self.key) {
                self.flight = Some(flight);
                // One that was under way a moment ago may have landed.
                match self.kept() {
                    Some(answer) => {
                        self.flight = None;
                        return Ok(Some((answer, Lookup::Hit)));
                    }
                    None => break,
                }
            }
        }
        self.cache.metrics.misses.inc();
        Ok(None)
    }

    /// The run has ended so. Others that have waited for it have the same answer, and who asks later.
    pub(crate) fn found(self, tensors: &[Tensor], device: Option<&HeaderValue>) {
        let cache = self.cache;
        let bytes = tensors.iter().map(|tensor| tensor.data().len()).fold(0, usize::saturating_add);
        let fits = bytes <= cache.answer && tensors.iter().all(|tensor| tensor.resident().is_none());
        let kept = if fits { compact(tensors) } else { None };
        let keeps = kept.is_some();
        let tensors = kept.unwrap_or_else(|| tensors.to_vec());
        let answer = Arc::new(Answer { tensors, device: device.cloned() });
        if keeps {
            cache.answers.insert(self.key, Arc::clone(&answer));
            cache.metrics.show(&cache.answers);
        }
        if let Some(flight) = self.flight {
            flight.landed(Ok(answer));
        }
    }

    /// The run has failed. Others that have waited for it hear the same, unless the fault was not the question's.
    pub(crate) fn failed(self, error: &CallError) {
        let is_own =
            matches!(error.code, ErrorCode::DeadlineExceeded | ErrorCode::Overloaded | ErrorCode::Draining);
        if let Some(flight) = self.flight
            && !is_own
        {
            flight.landed(Err(error.clone()));
        }
    }

    fn kept(&self) -> Option<Arc<Answer>> {
        let answer = self.cache.answers.get(&self.key)?;
        self.cache.metrics.hits.inc();
        Some(answer)
    }

    async fn joined(
        &self,
        landing: impl Future<Output = Option<flights::Landed>>,
        deadline: Option<Instant>,
    ) -> Result<Option<(Arc<Answer>, Lookup)>, CallError> {
        let landed = match deadline {
            None => landing.await,
            Some(deadline) => {
                tokio::time::timeout_at(deadline, landing).await.map_err(|_| scheduler::expired())?
            }
        };
        let Some(landed) = landed else { return Ok(None) };
        self.cache.metrics.joined.inc();
        Ok(Some((landed?, Lookup::Joined)))
    }
}

/// Copies that hold nothing but these tensors: what a run gives may be part of a batch, or memory that others wait for.
fn compact(tensors: &[Tensor]) -> Option<Vec<Tensor>> {
    let copy = |tensor: &Tensor| {
        let mut buffer = Buffer::zeroed(tensor.data().len()).ok()?;
        buffer.copy_from_slice(tensor.data());
        let data = bytes::Bytes::from_owner(buffer);
        Tensor::new(tensor.data_type(), tensor.shape().clone(), data).ok()
    };
    tensors.iter().map(copy).collect()
}

/// Weighs answers by their bytes.
#[derive(Clone)]
struct Bytes;

impl Weighter<Key, Arc<Answer>> for Bytes {
    fn weight(&self, _: &Key, answer: &Arc<Answer>) -> u64 {
        let tensor = |tensor: &Tensor| tensor.data().len() + 8 * tensor.shape().extents().len() + TENSOR;
        (answer.tensors.iter().map(tensor).sum::<usize>() + ENTRY) as u64
    }
}

/// Counts what makes way.
#[derive(Clone)]
struct Leaving(IntCounter);

impl Lifecycle<Key, Arc<Answer>> for Leaving {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), _: Key, _: Arc<Answer>) {
        self.0.inc();
    }
}

/// A hasher of what is one already: its first bytes.
#[derive(Default)]
struct First(u64);

impl Hasher for First {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.bytes());
    }
}

struct Metrics {
    hits: IntCounter,
    joined: IntCounter,
    misses: IntCounter,
    evictions: IntCounter,
    bytes: IntGauge,
    answers: IntGauge,
}

impl Metrics {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let lookups = Opts::new(
            "outrigger_cache_lookups_total",
            "Calls of models whose answers are kept: hit, the answer was there; joined, another call was at it; miss, it was run",
        );
        let lookups = IntCounterVec::new(lookups, &["result"])?;
        let of = |lookup: Lookup| lookups.get_metric_with_label_values(&[lookup.as_str()]);
        let (hits, joined, misses) = (of(Lookup::Hit)?, of(Lookup::Joined)?, of(Lookup::Miss)?);
        registry.register(Box::new(lookups))?;
        let evictions =
            IntCounter::new("outrigger_cache_evictions_total", "Kept answers that made way for others")?;
        registry.register(Box::new(evictions.clone()))?;
        let bytes = IntGauge::new("outrigger_cache_bytes", "Bytes of answers that are kept")?;
        registry.register(Box::new(bytes.clone()))?;
        let answers = IntGauge::new("outrigger_cache_answers", "Answers that are kept")?;
        registry.register(Box::new(answers.clone()))?;
        Ok(Self { hits, joined, misses, evictions, bytes, answers })
    }

    fn show(&self, cache: &Cache<Key, Arc<Answer>, Bytes, BuildHasherDefault<First>, Leaving>) {
        self.bytes.set(i64::try_from(cache.weight()).unwrap_or(i64::MAX));
        self.answers.set(i64::try_from(cache.len()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests;
