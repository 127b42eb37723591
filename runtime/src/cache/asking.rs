//! A question on its way to its answer: one that is kept, one that another call is at, or a run's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::HeaderValue;
use outrigger_backend::{Buffer, Tensor};
use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::time::Instant;

use super::flights::{Flight, Landing};
use super::question::Key;
use super::{Answer, Lookup, ResponseCache, Reuse};
use crate::apart::apart;
use crate::scheduler;

/// How often a call goes by another's run before it is run whoever else is at it.
pub(super) const ROUNDS: u8 = 2;

/// A question on its way to its answer.
pub(crate) struct Asking<'a> {
    cache: &'a ResponseCache,
    pub(super) key: Key,
    reuse: Reuse,
    flight: Option<Flight<'a>>,
    /// It is run whoever else is at it.
    alone: bool,
    /// How often others have been at it, and nothing came of it.
    rounds: u8,
}

impl<'a> Asking<'a> {
    pub(super) fn new(cache: &'a ResponseCache, key: Key, reuse: Reuse) -> Self {
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
