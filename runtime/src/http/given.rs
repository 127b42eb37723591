//! How a call that knows its inputs comes to outputs: by a run of its own, by an answer that is kept, or by the run of another that asks the same.

use std::mem;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};
use outrigger_auth::Grant;
use outrigger_backend::Tensor;
use outrigger_protocol::call::InferCall;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::headers;

use crate::busy::{Outcome, Ticket};
use crate::cache::{Answer, Asking, Lookup};
use crate::models::{Begun, Lease, Models};
use crate::replica::Replica;
use crate::scheduler::{self, Slot, Terms};

/// What answers say of how they came to be.
#[derive(Clone, Default)]
pub(super) struct Notes {
    /// The device that ran it.
    device: Option<HeaderValue>,
    /// Where answers are kept.
    pub(super) lookup: Option<Lookup>,
}

impl Notes {
    /// Says it.
    pub(super) fn put(self, headers: &mut HeaderMap) {
        if let Some(device) = self.device {
            headers.insert(headers::DEVICE, device);
        }
        if let Some(lookup) = self.lookup {
            headers.insert(headers::CACHE, HeaderValue::from_static(lookup.as_str()));
        }
    }

    /// Says with an error on which device it happened.
    pub(super) fn on(self, error: CallError) -> CallError {
        error.on(self.device)
    }
}

/// What came of a call.
pub(super) struct Given {
    pub(super) tensors: Vec<Tensor>,
    pub(super) notes: Notes,
    /// How it ends counts for its version, whoever has run it.
    pub(super) begun: Begun,
}

impl Given {
    fn known(answer: &Answer, lookup: Lookup, begun: Begun) -> Self {
        let notes = Notes { device: answer.device.clone(), lookup: Some(lookup) };
        Self { tensors: answer.tensors.clone(), notes, begun }
    }

    /// The same after something that the caller wants done with its outputs, which says nothing of the version.
    ///
    /// # Errors
    /// What that failed by.
    pub(super) fn after(
        self,
        done: Result<(), CallError>,
        lease: &Lease,
        since: Instant,
    ) -> Result<Self, CallError> {
        match done {
            Ok(()) => Ok(self),
            Err(error) => {
                self.begun.aside();
                count_failed(lease, since);
                Err(self.notes.on(error))
            }
        }
    }
}

/// How long a call has taken for what, so far.
pub(super) struct Spent {
    /// When it came.
    pub(super) since: Instant,
    /// Waiting: for its model, and for a slot.
    pub(super) queueing: Duration,
    /// Looking for an answer that is there, and waiting for another's run.
    pub(super) looking: Duration,
    last: Instant,
}

impl Spent {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        let since = Instant::now();
        Self { since, queueing: Duration::ZERO, looking: Duration::ZERO, last: since }
    }

    /// The time since this was last asked.
    pub(super) fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - mem::replace(&mut self.last, now)
    }

    /// Since then it has waited.
    pub(super) fn queued(&mut self) {
        let lap = self.lap();
        self.queueing += lap;
    }

    /// Since then it has looked for what is there.
    fn looked(&mut self) {
        let lap = self.lap();
        self.looking += lap;
    }

    /// When that was.
    pub(super) fn last(&self) -> Instant {
        self.last
    }
}

/// A call that knows its inputs.
pub(super) struct Due<'a> {
    pub(super) replica: &'a Replica,
    pub(super) grant: &'a Grant,
    pub(super) models: &'a Models,
    pub(super) lease: &'a Lease,
    pub(super) terms: Terms,
    /// Whether it is counted as one that waits, as it has waited for its model.
    pub(super) counted: Option<Ticket>,
    /// Its question, if answers to that are kept.
    pub(super) asking: Option<Asking<'a>>,
}

impl Due<'_> {
    /// Its outputs. Its inputs are gone then, if it was run.
    ///
    /// # Errors
    /// Those of [`Replica::admit`] and of [`Models::infer`], `draining`, and `deadline_exceeded`.
    pub(super) async fn given(mut self, call: &mut InferCall, spent: &mut Spent) -> Result<Given, CallError> {
        if self.asking.is_some() {
            self.replica.may_begin(self.counted.is_some())?;
        }
        loop {
            if let Some(known) = self.known(spent).await? {
                return Ok(known);
            }
            let slot = self.replica.admit(self.grant, self.terms, self.counted.take()).await?;
            spent.queued();
            if self.asking.as_mut().is_none_or(Asking::leads) {
                return self.run(call, slot, spent.since).await;
            }
            self.counted = slot.give_back();
        }
    }

    /// What is known of its question, once nobody is at it.
    async fn known(&mut self, spent: &mut Spent) -> Result<Option<Given>, CallError> {
        let Some(asking) = &mut self.asking else { return Ok(None) };
        let known = asking.known(self.terms.deadline).await;
        spent.looked();
        match known {
            Ok(None) => Ok(None),
            Ok(Some((answer, lookup))) => {
                self.replica.admit_without_slot(self.counted.take())?;
                Ok(Some(Given::known(&answer, lookup, self.lease.begin())))
            }
            Err(error) => {
                end(self.counted.take(), &error);
                Err(failed(self.lease, spent.since, self.lease.begin(), error))
            }
        }
    }

    /// Runs it with its slot.
    async fn run(self, call: &mut InferCall, slot: Slot, since: Instant) -> Result<Given, CallError> {
        let Self { models, lease, asking, .. } = self;
        let deadline = slot.deadline();
        let indices = call.indices();
        let (picked, begun) = (lease.pick_for(Some(&indices)), lease.begin());
        let notes = Notes { device: picked.header(), lookup: asking.as_ref().map(|_| Lookup::Miss) };
        let until = deadline.map(tokio::time::Instant::into_std);
        let run = models.infer(picked, mem::take(&mut call.inputs), indices, Some(slot), until);
        let result = match deadline {
            None => run.await,
            // A run that has not begun is not begun any more; one that has is cancelled, as far as its backend can.
            Some(deadline) => {
                tokio::time::timeout_at(deadline, run).await.unwrap_or_else(|_| Err(scheduler::expired()))
            }
        };
        match result {
            Ok(tensors) => {
                asking.into_iter().for_each(|asking| asking.ran(&tensors, notes.device.as_ref()));
                Ok(Given { tensors, notes, begun })
            }
            Err(error) => {
                let error = notes.on(error);
                asking.into_iter().for_each(|asking| asking.failed(&error));
                Err(failed(lease, since, begun, error))
            }
        }
    }
}

/// A call that was let in has failed, for its version too.
fn failed(lease: &Lease, since: Instant, begun: Begun, error: CallError) -> CallError {
    begun.ended_as(&error);
    count_failed(lease, since);
    error
}

/// A call that was let in has no answer, for who reads statistics.
fn count_failed(lease: &Lease, since: Instant) {
    lease.statistics().iter().for_each(|statistics| statistics.failed(since.elapsed()));
}

/// A call ends without a slot; if it has waited for its model, or has had one, it was counted.
pub(super) fn end(counted: Option<Ticket>, error: &CallError) {
    let is_late = error.code == ErrorCode::DeadlineExceeded;
    let outcome = if is_late { Outcome::Expired } else { Outcome::Failed };
    counted.into_iter().for_each(|counted| counted.finish(outcome));
}
