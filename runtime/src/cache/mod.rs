//! The response cache: answers of models that are kept for who asks the same again. Off unless a model is said to have it.
//!
//! A question is a version of a model, its inputs and the outputs that are wanted, whatever contract it came by, and unless `cache.per_caller` is
//! off who asks. It is told apart by a keyed hash of 256 bits, so that nobody finds two that are taken for one. A question that is being run when it comes
//! again is not run twice: the second call waits for the first one's result. It joins only what has been let through to a lane, so
//! that nobody waits in another's queue; who finds at its slot that another is at it gives the slot back.

mod asking;
mod flights;
mod metrics;
mod question;

use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use http::HeaderValue;
use outrigger_auth::Grant;
use outrigger_backend::Tensor;
use outrigger_protocol::call::InferCall;
use prometheus::{IntCounter, Registry};
use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};

use crate::config::CacheConfig;
use crate::models::Lease;

pub(crate) use asking::Asking;
use flights::Flights;
use metrics::Metrics;
use question::Key;
pub(crate) use question::{Identity, Reuse};

/// What an answer takes beside its tensors' bytes, about: its entry, and that of each tensor. The table in which it is found is not in it.
const ENTRY: usize = 320;
const TENSOR: usize = 256;
/// One part in so many of `cache.bytes` is for that table, which never gets smaller, takes 83 bytes for an answer, twice as many while it grows,
/// and also has what has left lately: less than a fifth, were all answers as small as can be.
const TABLE: u64 = 4;
/// The largest answers that go into a part of the cache with a lock of its own, at least.
const ANSWERS: u64 = 16;
/// The most such parts.
const PARTS: u64 = 64;

type Answers = Cache<Key, Arc<Answer>, Bytes, BuildHasherDefault<First>, Leaving>;

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The system gives no random numbers.
    #[error("the response cache needs a secret, and the system gives no random numbers: {0}")]
    Random(getrandom::Error),
    /// Its size cannot be.
    #[error("a response cache of this size cannot be (cache.bytes): {0}")]
    Size(String),
    /// Two metrics have one name: a mistake of ours.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Answers that are kept.
pub(crate) struct ResponseCache {
    answers: Arc<Answers>,
    flights: Flights,
    /// Calls that wait for others' runs.
    waiting: Arc<AtomicUsize>,
    /// Makes hashes worthless for who does not have it.
    secret: [u8; 32],
    config: CacheConfig,
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
    /// [`CacheError`].
    pub(crate) fn new(config: &CacheConfig, registry: &Registry) -> Result<Self, CacheError> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(CacheError::Random)?;
        let bytes = config.bytes - config.bytes / TABLE;
        let parts = (bytes / (config.answer as u64).max(1) / ANSWERS).clamp(1, PARTS);
        // A power of two, that no part is smaller than it was meant to be; and as many bytes as can be divided so.
        let parts = 1 << parts.ilog2();
        let items = usize::try_from(bytes / (ENTRY + TENSOR) as u64).unwrap_or(usize::MAX);
        let options = OptionsBuilder::new()
            .shards(usize::try_from(parts).unwrap_or(1))
            .estimated_items_capacity(items.max(1))
            .weight_capacity(bytes - bytes % parts)
            // Of what has left only hashes are kept, and of fewer than a tenth as many as there may be.
            .ghost_allocation(0.1)
            .build()
            .map_err(|error| CacheError::Size(error.to_string()))?;
        let evictions = metrics::evictions(registry)?;
        let leaving = Leaving(evictions);
        let answers = Arc::new(Cache::with_options(options, Bytes, BuildHasherDefault::default(), leaving));
        let (flights, waiting) = <(_, Arc<AtomicUsize>)>::default();
        let metrics = Metrics::new(registry, &answers, &waiting)?;
        Ok(Self { answers, flights, waiting, secret, config: config.clone(), metrics })
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
        let caller = self.config.per_caller.then(|| grant.caller().index());
        Some(Asking::new(self, Key::of(&self.secret, &identity, caller, call), reuse))
    }

    /// A call has its answer.
    pub(crate) fn count(&self, lookup: Lookup) {
        self.metrics.lookups(lookup).inc();
    }

    /// Whether a part of the cache takes it.
    fn takes(&self, tensors: &[Tensor]) -> bool {
        let bytes = tensors.iter().map(|tensor| tensor.data().len()).fold(0, usize::saturating_add);
        // Nine in ten: what is asked for often takes as many.
        let most = self.answers.shard_capacity() / 10 * 9;
        let in_host = tensors.iter().all(|tensor| tensor.resident().is_none());
        in_host && bytes <= self.config.answer && weight(tensors) <= most
    }
}

fn weight(tensors: &[Tensor]) -> u64 {
    let tensor = |tensor: &Tensor| tensor.data().len() + 8 * tensor.shape().extents().len() + TENSOR;
    (tensors.iter().map(tensor).sum::<usize>() + ENTRY) as u64
}

/// Weighs answers by their bytes.
#[derive(Clone)]
struct Bytes;

impl Weighter<Key, Arc<Answer>> for Bytes {
    fn weight(&self, _: &Key, answer: &Arc<Answer>) -> u64 {
        weight(&answer.tensors)
    }
}

/// Counts what leaves, and has its memory given back once nobody waits for the lock.
#[derive(Clone)]
struct Leaving(IntCounter);

impl Lifecycle<Key, Arc<Answer>> for Leaving {
    type RequestState = Vec<Arc<Answer>>;

    fn on_evict(&self, left: &mut Vec<Arc<Answer>>, _: Key, answer: Arc<Answer>) {
        self.0.inc();
        left.push(answer);
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

#[cfg(test)]
mod tests;
