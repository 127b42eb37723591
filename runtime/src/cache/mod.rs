//! The response cache: answers of models that are kept for who asks the same again. Off unless a model is said to have it.
//!
//! A question is a version of a model, its inputs and the outputs that are wanted, whatever contract it came by, and unless `cache.per_caller` is
//! off who asks. It is told apart by a keyed hash of 256 bits, so that nobody finds two that are taken for one. A question that is being run when it comes
//! again is not run twice: the second call waits for the first one's result. It joins only what has been let through to a lane, so
//! that nobody waits in another's queue; who finds at its slot that another is at it gives the slot back.

mod flights;
mod metrics;
mod question;

use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::HeaderValue;
use outrigger_auth::Grant;
use outrigger_backend::{Buffer, Tensor};
use outrigger_protocol::call::InferCall;
use outrigger_protocol::error::{CallError, ErrorCode};
use prometheus::{IntCounter, Registry};
use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};
use tokio::time::Instant;

use crate::apart::apart;
use crate::config::CacheConfig;
use crate::models::Lease;
use crate::scheduler;

use flights::{Flight, Flights, Landing};
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
/// How often a call goes by another's run before it is run whoever else is at it.
const ROUNDS: u8 = 2;
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

/// A question on its way to its answer.
pub(crate) struct Asking<'a> {
    cache: &'a ResponseCache,
    key: Key,
    reuse: Reuse,
    flight: Option<Flight<'a>>,
    /// It is run whoever else is at it.
    alone: bool,
    /// How often others have been at it, and nothing came of it.
    rounds: u8,
}

impl<'a> Asking<'a> {
    fn new(cache: &'a ResponseCache, key: Key, reuse: Reuse) -> Self {
        Self { cache, key, reuse, flight: None, alone: reuse != Reuse::Both, rounds: 0 }
    }

    /// The answer, if it is kept, or once the call has it that is at it now. Nothing where the question has to be run.
    ///
    /// # Errors
    /// The other call's, where the model failed, and `deadline_exceeded`.
    pub(crate) async fn known(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<(Arc<Answer>, Lookup)>, CallError> {
        if self.alone {
            return Ok(None);
        }
        if let Some(answer) = self.cache.answers.get(&self.key) {
            return Ok(Some((answer, Lookup::Hit)));
        }
        let Some(landing) = self.cache.flights.landing(&self.key) else { return Ok(None) };
        let Some(place) = Place::take(&self.cache.waiting, self.cache.config.waiting) else {
            self.alone = true;
            return Ok(None);
        };
        let landed = joined(landing, deadline).await;
        drop(place);
        let landed = landed?;
        if landed.is_none() {
            self.next_round();
        }
        Ok(landed.map(|answer| (answer, Lookup::Joined)))
    }

    /// Whether the call, which has its slot, is to run it: then others wait for this one from here on, until [`Asking::ran`]. Else the answer is
    /// there by now, or another call is at it, and [`Asking::known`] is to be asked again.
    pub(crate) fn leads(&mut self) -> bool {
        if self.reuse == Reuse::KeepOnly {
            // What is under way is older: nobody joins it any more, nor is it kept.
            self.cache.flights.forget(&self.key);
            self.flight = self.cache.flights.lead(self.key);
        }
        if self.alone {
            return true;
        }
        self.flight = self.cache.flights.lead(self.key);
        // One that was under way a moment ago may have landed.
        if self.flight.is_some() && self.cache.answers.peek(&self.key).is_some() {
            self.flight = None;
        }
        if self.flight.is_none() {
            self.next_round();
        }
        self.flight.is_some()
    }

    /// Another was at it. Where that comes to nothing again and again, as many are at it as there are slots.
    fn next_round(&mut self) {
        self.rounds += 1;
        self.alone = self.rounds > ROUNDS;
    }

    /// It has been run. Others that have waited for it have the same answer, and who asks later.
    pub(crate) fn ran(self, tensors: &[Tensor], device: Option<&HeaderValue>) {
        let Self { cache, key, reuse, flight, .. } = self;
        if let Some(flight) = &flight {
            let answer = Answer { tensors: tensors.to_vec(), device: device.cloned() };
            flight.landed(Ok(Arc::new(answer)));
        }
        let kept = cache.takes(tensors).then(|| compact(tensors)).flatten();
        // What comes after a later call has asked for a fresh answer is none, nor need what is run beside another.
        if !flight.as_ref().is_some_and(Flight::is_current) {
            return;
        }
        match kept {
            Some(tensors) => {
                cache.answers.insert(key, Arc::new(Answer { tensors, device: device.cloned() }));
            }
            None if reuse == Reuse::KeepOnly => drop(cache.answers.remove(&key)),
            None => {}
        }
    }

    /// The run has failed. Others that have waited for it hear the same if it would be no better for them.
    pub(crate) fn failed(self, error: &CallError) {
        let is_own = error.code.retryable() || error.code == ErrorCode::DeadlineExceeded;
        if let (Some(flight), false) = (&self.flight, is_own) {
            flight.landed(Err(error.clone()));
        }
    }
}

/// What has come of another call's run; nothing if that went without a result.
async fn joined(landing: Landing, deadline: Option<Instant>) -> Result<Option<Arc<Answer>>, CallError> {
    let landed = match deadline {
        None => landing.wait().await,
        Some(deadline) => {
            tokio::time::timeout_at(deadline, landing.wait()).await.map_err(|_| scheduler::expired())?
        }
    };
    landed.transpose()
}

/// One of a number of places, until it is dropped.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(taken: &'a AtomicUsize, most: usize) -> Option<Self> {
        let one_more = |taken| (taken < most).then_some(taken + 1);
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok().map(|_| Self(taken))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Copies that hold nothing but these tensors: what a run gives may be part of a batch, or memory that others wait for.
fn compact(tensors: &[Tensor]) -> Option<Vec<Tensor>> {
    let copy = |tensor: &Tensor| {
        let mut buffer = Buffer::zeroed(tensor.data().len()).ok()?;
        apart(buffer.len(), || buffer.copy_from_slice(tensor.data()));
        Tensor::new(tensor.data_type(), tensor.shape().clone(), bytes::Bytes::from_owner(buffer)).ok()
    };
    tensors.iter().map(copy).collect()
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
