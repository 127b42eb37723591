//! A call of a model on its way, whichever contract it came by: lease, inputs, slot, run, outputs.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use outrigger_auth::Grant;
use outrigger_backend::{ModelInfo, Tensor};
use outrigger_protocol::call::{Form, InferCall, InferReply, Regions};
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::headers;

use super::wish::Wish;
use crate::apart::apart;
use crate::busy::{Outcome, Ticket, Unsent};
use crate::cache::{Answer, Asking, Lookup};
use crate::models::{Begun, Lease, Models, NamedModel, Times};
use crate::replica::{Replica, Serving};
use crate::scheduler::{self, Slot};

/// What is to be run, and for whom.
pub(super) struct Asked<'a> {
    pub(super) replica: &'a Replica,
    pub(super) grant: &'a Grant,
    pub(super) serving: &'a Serving,
    pub(super) model: &'a Arc<NamedModel>,
    /// The version, by its own name or by what it is called; nothing if the request does not say.
    pub(super) which: Option<&'a str>,
    pub(super) wish: Wish,
    /// Bytes of the request.
    pub(super) size: usize,
}

/// A call that has its result, until its answer is written.
pub(super) struct Inferred {
    lease: Lease,
    call: InferCall,
    given: Given,
    times: Times,
    since: Instant,
    written: Instant,
    _unsent: Unsent,
}

/// What came of a call, by a run of its own or another's.
struct Given {
    tensors: Vec<Tensor>,
    notes: Notes,
    /// How it ends counts for its version, whoever has run it.
    begun: Begun,
}

/// What answers say of how they came to be.
#[derive(Clone, Default)]
pub(super) struct Notes {
    /// The device that ran it.
    device: Option<HeaderValue>,
    /// Where answers are kept.
    lookup: Option<Lookup>,
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
}

impl Given {
    fn known((answer, lookup): (Arc<Answer>, Lookup), begun: Begun) -> Self {
        let notes = Notes { device: answer.device.clone(), lookup: Some(lookup) };
        Self { tensors: answer.tensors.clone(), notes, begun }
    }

    /// The same after this, which may be what it fails by.
    fn after(self, done: Result<(), CallError>) -> Result<Self, CallError> {
        match done {
            Ok(()) => Ok(self),
            Err(error) => {
                self.begun.ended_as(&error);
                Err(error.on(self.notes.device))
            }
        }
    }
}

impl Asked<'_> {
    /// Runs the model on what `parse` makes of the request, once it is known what the model takes, or has its answer from the cache.
    /// Outputs that are wanted in shared memory are there afterwards.
    ///
    /// # Errors
    /// Those of `parse`, of [`Replica::lease`], [`Replica::admit`] and [`Models::infer`].
    pub(super) async fn run(
        self,
        parse: impl Fn(&ModelInfo, &dyn Regions) -> Result<InferCall, CallError>,
    ) -> Result<Inferred, CallError> {
        let Self { replica, grant, serving, model: named, which, mut wish, size } = self;
        let since = Instant::now();
        // From here on it does not make way for others; who sends slowly does not keep it.
        let patience = wish.patience(replica.config.queue.wait).into_std();
        let (lease, counted) = replica.lease(serving, named, which, patience).await?;
        let leased = Instant::now();
        let memory = replica.shared_memory.of(grant.caller());
        let mut call = parse(&lease.info, &memory).inspect_err(|_| {
            // A version may have other inputs than the one before it, of which callers do not know.
            if named.was_taken(|info| parse(info, &memory).is_ok()) {
                lease.begin().ended(false);
            }
        })?;
        for wanted in &call.outputs {
            if let Form::Shared(slice) = &wanted.form {
                memory.check(slice)?;
            }
        }
        // Inputs may be more than the request: shared memory, numbers of few digits.
        let inputs: usize = call.inputs.iter().map(|tensor| tensor.data().len()).sum();
        let more = replica.busy.reserve(inputs.saturating_sub(size), replica.config.limits.bodies);
        let _more = more.ok_or_else(|| super::body::full(&replica.busy))?;
        let parsed = Instant::now();
        wish.add(call.urgency);
        let terms = wish.terms(grant, named.kind, size.max(inputs), serving.infer_admission());
        let mut asking = replica.cache.ask(&lease, grant, &call, wish.reuse());
        if asking.is_some() {
            replica.may_begin(counted.is_some())?;
        }
        let (mut counted, mut looking, mut queueing) = (counted, Duration::ZERO, leased - since);
        let mut last = parsed;
        let (given, admitted) = loop {
            if let Some(asking) = &mut asking {
                let known = asking.known(terms.deadline).await;
                let looked = Instant::now();
                looking += looked - last;
                last = looked;
                match known {
                    Ok(Some(known)) => {
                        replica.admit_without_slot(counted)?;
                        break (Ok(Given::known(known, lease.begin())), looked);
                    }
                    Err(error) => {
                        end(counted, &error);
                        lease.begin().ended_as(&error);
                        break (Err(error), looked);
                    }
                    Ok(None) => {}
                }
            }
            let slot = replica.admit(grant, terms, counted).await?;
            let admitted = Instant::now();
            queueing += admitted - last;
            last = admitted;
            if asking.as_mut().is_none_or(Asking::leads) {
                break (run(&serving.models, &lease, &mut call, slot, asking).await, admitted);
            }
            counted = slot.give_back();
        };
        let ran = Instant::now();
        let written = given.and_then(|given| {
            let shared = call.outputs.iter().zip(&given.tensors).try_for_each(|(wanted, tensor)| {
                let Form::Shared(slice) = &wanted.form else { return Ok(()) };
                let name = lease.info.outputs.get(wanted.index).map_or("", |info| &info.name);
                memory.write(name, slice, tensor.data())
            });
            given.after(shared)
        });
        let given = written.inspect_err(|_| {
            lease.statistics().iter().for_each(|statistics| statistics.failed(since.elapsed()));
        })?;
        given.notes.lookup.into_iter().for_each(|lookup| replica.cache.count(lookup));
        let bytes = given.tensors.iter().map(|tensor| tensor.data().len()).sum();
        let times = Times {
            input: parsed - leased,
            queue: queueing,
            infer: ran - admitted,
            lookup: given.notes.lookup.map(|lookup| (lookup, looking)),
            ..Times::default()
        };
        let _unsent = replica.busy.unsent_guard(bytes);
        Ok(Inferred { lease, call, given, times, since, written: ran, _unsent })
    }
}

/// A call ends without a slot; if it has waited for its model, or has had one, it was counted.
fn end(counted: Option<Ticket>, error: &CallError) {
    let is_late = error.code == ErrorCode::DeadlineExceeded;
    let outcome = if is_late { Outcome::Expired } else { Outcome::Failed };
    counted.into_iter().for_each(|counted| counted.finish(outcome));
}

/// Runs a call that has its slot. Its inputs are gone then.
///
/// # Errors
/// Those of [`Models::infer`], and `deadline_exceeded`.
async fn run(
    models: &Models,
    lease: &Lease,
    call: &mut InferCall,
    slot: Slot,
    asking: Option<Asking<'_>>,
) -> Result<Given, CallError> {
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
            let error = error.on(notes.device);
            asking.into_iter().for_each(|asking| asking.failed(&error));
            begun.ended_as(&error);
            Err(error)
        }
    }
}

impl Inferred {
    /// How it came to be.
    pub(super) fn notes(&self) -> Notes {
        self.given.notes.clone()
    }

    /// Has the answer written.
    ///
    /// # Errors
    /// Those of `encode`.
    pub(super) fn write<T>(
        self,
        encode: impl FnOnce(&InferReply<'_>) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let Given { tensors, notes, begun } = self.given;
        let reply = InferReply {
            model_name: &self.lease.name,
            model_version: Some(&self.lease.version),
            id: self.call.id.as_deref(),
            model: &self.lease.info,
            outputs: &self.call.outputs,
            tensors: &tensors,
        };
        // Only what is written as text is work.
        let text = self.call.outputs.iter().zip(&tensors).filter(|(wanted, _)| wanted.form == Form::Values);
        let bytes = text.map(|(_, tensor)| tensor.data().len()).sum();
        let encoded = apart(bytes, || encode(&reply));
        begun.ended(encoded.is_ok());
        let (whole, output) = (self.since.elapsed(), self.written.elapsed());
        if let Some(statistics) = self.lease.statistics() {
            match &encoded {
                Ok(_) => statistics.succeeded(&Times { output, whole, ..self.times }),
                Err(_) => statistics.failed(whole),
            }
        }
        encoded.map_err(|error| error.on(notes.device))
    }
}

/// Pieces of an answer, each counted until the kernel has all of it.
pub(super) fn held(
    replica: &Replica,
    pieces: impl IntoIterator<Item = Bytes>,
) -> impl Iterator<Item = Bytes> {
    pieces.into_iter().map(|piece| replica.busy.hold(piece))
}
