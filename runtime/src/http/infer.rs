//! A call of a model on its way, whichever contract it came by: lease, inputs, slot, run, outputs.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderValue;
use outrigger_auth::Grant;
use outrigger_backend::{ModelInfo, Tensor};
use outrigger_protocol::call::{Form, InferCall, InferReply, Regions};
use outrigger_protocol::error::CallError;

use super::wish::Wish;
use crate::apart::apart;
use crate::busy::Unsent;
use crate::models::{Begun, Lease, NamedModel, Times};
use crate::replica::{Replica, Serving};
use crate::scheduler;

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

/// A call that has been run, until its answer is written.
pub(super) struct Inferred {
    lease: Lease,
    call: InferCall,
    tensors: Vec<Tensor>,
    device: Option<HeaderValue>,
    begun: Begun,
    times: Times,
    since: Instant,
    written: Instant,
    _unsent: Unsent,
}

impl Asked<'_> {
    /// Runs the model on what `parse` makes of the request, once it is known what the model takes. Outputs that are wanted in shared
    /// memory are there afterwards.
    ///
    /// # Errors
    /// Those of `parse`, of [`Replica::lease`], [`Replica::admit`] and [`Models::infer`](crate::models::Models::infer).
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
        let call = parse(&lease.info, &memory).inspect_err(|_| {
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
        let slot = replica.admit(grant, terms, counted).await?;
        let admitted = Instant::now();
        let deadline = slot.deadline();
        let until = deadline.map(tokio::time::Instant::into_std);
        let indices = call.indices();
        let (picked, begun) = (lease.pick_for(Some(&indices)), lease.begin());
        let device = picked.header();
        let InferCall { id, inputs, outputs, urgency } = call;
        let call = InferCall { id, inputs: Vec::new(), outputs, urgency };
        let run = serving.models.infer(picked, inputs, indices, Some(slot), until);
        let result = match deadline {
            None => run.await,
            // A run that has not begun is not begun any more; one that has is cancelled, as far as its backend can.
            Some(deadline) => {
                tokio::time::timeout_at(deadline, run).await.unwrap_or_else(|_| Err(scheduler::expired()))
            }
        };
        let ran = Instant::now();
        let written = result.and_then(|tensors| {
            for (wanted, tensor) in call.outputs.iter().zip(&tensors) {
                if let Form::Shared(slice) = &wanted.form {
                    let name = lease.info.outputs.get(wanted.index).map_or("", |info| &info.name);
                    memory.write(name, slice, tensor.data())?;
                }
            }
            Ok(tensors)
        });
        let tensors = match written {
            Ok(tensors) => tensors,
            Err(error) => {
                begun.ended_as(&error);
                lease.statistics().iter().for_each(|statistics| statistics.failed(since.elapsed()));
                return Err(error.on(device));
            }
        };
        let bytes = tensors.iter().map(|tensor| tensor.data().len()).sum();
        let times = Times {
            input: parsed - leased,
            queue: (leased - since) + (admitted - parsed),
            infer: ran - admitted,
            ..Times::default()
        };
        let _unsent = replica.busy.unsent_guard(bytes);
        Ok(Inferred { lease, call, tensors, device, begun, times, since, written: ran, _unsent })
    }
}

impl Inferred {
    /// The device that it ran on, as answers say it.
    pub(super) fn device(&self) -> Option<HeaderValue> {
        self.device.clone()
    }

    /// Has the answer written.
    ///
    /// # Errors
    /// Those of `encode`.
    pub(super) fn write<T>(
        self,
        encode: impl FnOnce(&InferReply<'_>) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let reply = InferReply {
            model_name: &self.lease.name,
            model_version: Some(&self.lease.version),
            id: self.call.id.as_deref(),
            model: &self.lease.info,
            outputs: &self.call.outputs,
            tensors: &self.tensors,
        };
        // Only what is written as text is work.
        let text =
            self.call.outputs.iter().zip(&self.tensors).filter(|(wanted, _)| wanted.form == Form::Values);
        let bytes = text.map(|(_, tensor)| tensor.data().len()).sum();
        let encoded = apart(bytes, || encode(&reply));
        self.begun.ended(encoded.is_ok());
        let (whole, output) = (self.since.elapsed(), self.written.elapsed());
        if let Some(statistics) = self.lease.statistics() {
            match &encoded {
                Ok(_) => statistics.succeeded(&Times { output, whole, ..self.times }),
                Err(_) => statistics.failed(whole),
            }
        }
        encoded.map_err(|error| error.on(self.device))
    }
}

/// Pieces of an answer, each counted until the kernel has all of it.
pub(super) fn held(
    replica: &Replica,
    pieces: impl IntoIterator<Item = Bytes>,
) -> impl Iterator<Item = Bytes> {
    pieces.into_iter().map(|piece| replica.busy.hold(piece))
}
