//! A call of a model on its way, whichever contract it came by: lease, inputs, outputs, answer.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use outrigger_auth::Grant;
use outrigger_backend::ModelInfo;
use outrigger_protocol::call::{Form, InferCall, InferReply, Regions};
use outrigger_protocol::error::CallError;

use super::body;
use super::given::{Due, Given, Notes, Spent, end};
use super::wish::Wish;
use crate::apart::apart;
use crate::busy::Unsent;
use crate::models::{Lease, NamedModel, Times};
use crate::replica::{Replica, Serving};
use crate::shared_memory::CallerMemory;
use crate::telemetry::{self, Phase};

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
    /// When it had its result.
    ran: Instant,
    _unsent: Unsent,
}

impl Asked<'_> {
    /// Runs the model on what `parse` makes of the request, once it is known what the model takes, or has its answer from the cache.
    /// Outputs that are wanted in shared memory are there afterwards.
    ///
    /// # Errors
    /// Those of `parse`, of [`Replica::lease`] and of [`Due::given`], and `overloaded`.
    pub(super) async fn run(
        self,
        parse: impl Fn(&ModelInfo, &dyn Regions) -> Result<InferCall, CallError>,
    ) -> Result<Inferred, CallError> {
        let mut spent = Spent::new();
        let Self { replica, grant, serving, model, which, mut wish, size } = self;
        // From here on it does not make way for others; who sends slowly does not keep it.
        let patience = wish.patience(replica.config.queue.wait).into_std();
        let (lease, counted) = replica.lease(serving, model, which, patience).await?;
        spent.queued();
        let memory = replica.shared_memory.of(grant.caller());
        let mut call = match read(model, &lease, &memory, parse) {
            Ok(call) => call,
            Err(error) => {
                end(counted, &error);
                return Err(error);
            }
        };
        // Inputs may be more than the request: shared memory, numbers of few digits.
        let inputs: usize = call.inputs.iter().map(|tensor| tensor.data().len()).sum();
        let more = replica.busy.reserve(inputs.saturating_sub(size), replica.config.limits.bodies);
        let Some(_more) = more else {
            replica.busy.refuse_call(counted);
            return Err(body::no_room());
        };
        let input = spent.lap();
        telemetry::with(|passage| passage.add(Phase::CopyIn, input));
        wish.add(call.urgency);
        let terms = wish.terms(grant, model.kind, size.max(inputs), serving.infer_admission());
        let asking = replica.cache.ask(&lease, grant, &call, wish.reuse());
        let due = Due { replica, grant, models: &serving.models, lease: &lease, terms, counted, asking };
        let given = due.given(&mut call, &mut spent).await?;
        let infer = spent.lap();
        let shared = share(&lease, &call, &given, &memory);
        let given = given.after(shared, &lease, spent.since)?;
        given.notes.lookup.into_iter().for_each(|lookup| replica.cache.count(lookup));
        let lookup = given.notes.lookup.map(|lookup| (lookup, spent.looking));
        let times = Times { input, queue: spent.queueing, infer, lookup, ..Times::default() };
        let bytes = given.tensors.iter().map(|tensor| tensor.data().len()).sum();
        let _unsent = replica.busy.unsent_guard(bytes);
        Ok(Inferred { lease, call, given, times, since: spent.since, ran: spent.last(), _unsent })
    }
}

/// What a request asks of a version.
fn read(
    model: &NamedModel,
    lease: &Lease,
    memory: &CallerMemory<'_>,
    parse: impl Fn(&ModelInfo, &dyn Regions) -> Result<InferCall, CallError>,
) -> Result<InferCall, CallError> {
    let call = parse(&lease.info, memory).inspect_err(|_| {
        // A version may have other inputs than the one before it, of which callers do not know.
        if model.was_taken(|info| parse(info, memory).is_ok()) {
            lease.begin().ended(false);
        }
    })?;
    for wanted in &call.outputs {
        if let Form::Shared(slice) = &wanted.form {
            memory.check(slice)?;
        }
    }
    Ok(call)
}

/// Writes what is wanted in shared memory.
fn share(lease: &Lease, call: &InferCall, given: &Given, memory: &CallerMemory<'_>) -> Result<(), CallError> {
    call.outputs.iter().zip(&given.tensors).try_for_each(|(wanted, tensor)| {
        let Form::Shared(slice) = &wanted.form else { return Ok(()) };
        let name = lease.info.outputs.get(wanted.index).map_or("", |info| &info.name);
        memory.write(name, slice, tensor.data())
    })
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
        let (whole, output) = (self.since.elapsed(), self.ran.elapsed());
        telemetry::with(|passage| passage.add(Phase::CopyOut, output));
        if let Some(statistics) = self.lease.statistics() {
            match &encoded {
                Ok(_) => statistics.succeeded(&Times { output, whole, ..self.times }),
                Err(_) => statistics.failed(whole),
            }
        }
        encoded.map_err(|error| notes.on(error))
    }
}

/// Pieces of an answer, each counted until the kernel has all of it.
pub(super) fn held(
    replica: &Replica,
    pieces: impl IntoIterator<Item = Bytes>,
) -> impl Iterator<Item = Bytes> {
    pieces.into_iter().map(|piece| replica.busy.hold(piece))
}
