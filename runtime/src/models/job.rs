//! A run of a model that somebody waits for, and the run itself.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_backend::{BackendError, DeviceMemory, Output, Run, Tensor};
use tokio::sync::oneshot;

use super::ModelInstance;
use super::lease::Held;
use super::turn::Turn;
use crate::busy::Outcome;
use crate::telemetry::{Passage, Phase};

/// What becomes of a run.
pub(super) type Answer = Result<Vec<Tensor>, Failure>;

/// Why there are no outputs.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The deadline was over before a thread came to it.
    #[error("the deadline was over before a device thread was free")]
    Late,
    /// The outputs are too large, which is for what was asked.
    #[error("the outputs take {bytes} bytes, more than limits.answer, {limit} bytes")]
    TooLarge { bytes: usize, limit: usize },
}

/// A run that waits for a thread.
pub(super) struct Job {
    pub(super) model: Arc<ModelInstance>,
    pub(super) inputs: Vec<Tensor>,
    pub(super) outputs: Vec<usize>,
    /// Those of them that stay on the device, where that can be.
    pub(super) stay: Vec<usize>,
    /// The slot that the run is for; free again when the run is over, also when nobody waits for it any more.
    pub(super) slot: Option<Turn>,
    /// It is not begun any more after that.
    pub(super) deadline: Option<Instant>,
    /// The number by which it is cancelled when its caller leaves.
    pub(super) run: Run,
    pub(super) done: oneshot::Sender<Answer>,
    /// Its model does not leave before it is over.
    #[expect(dead_code, reason = "is dropped with the job")]
    pub(super) held: Option<Held>,
}

/// What is asked of a run.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// What it takes, checked.
    pub(super) inputs: &'a [Tensor],
    /// The outputs that are wanted.
    pub(super) outputs: &'a [usize],
    /// Those of them that are to stay on the device.
    pub(super) stay: &'a [usize],
}

impl Job {
    pub(super) fn asked(&self) -> Asked<'_> {
        Asked { inputs: &self.inputs, outputs: &self.outputs, stay: &self.stay }
    }

    /// Whether nobody waits any more: the caller went away while the job waited.
    pub(super) fn is_left(&self) -> bool {
        self.done.is_closed()
    }

    /// Whether its deadline is over.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Its slot executes from now on.
    pub(super) fn begin(&mut self) {
        if let Some(slot) = &mut self.slot {
            slot.begin();
        }
    }

    /// The request that it is the one run of.
    pub(super) fn passage(&self) -> Option<&Arc<Passage>> {
        self.slot.as_ref().and_then(Turn::passage)
    }

    /// Its request has spent so much time with this.
    pub(super) fn spent(&self, phase: Phase, time: Duration) {
        if let Some(passage) = self.passage() {
            passage.add(phase, time);
        }
    }

    /// Ends one that is not begun, of which the caller hears otherwise.
    pub(super) fn refuse(self, outcome: Outcome) {
        if let Some(slot) = self.slot {
            slot.finish(outcome);
        }
    }

    /// Ends it: the slot first, so that whoever has the answer finds it free.
    pub(super) fn finish(self, answer: Answer) {
        if let Some(slot) = self.slot {
            slot.finish(match &answer {
                // Whoever asked has been told that it is too late.
                Ok(_) if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) => Outcome::Failed,
                Ok(_) => Outcome::Answered,
                Err(Failure::Backend(_) | Failure::TooLarge { .. }) => Outcome::Failed,
                Err(Failure::Late) => Outcome::Expired,
            });
        }
        let _ = self.done.send(answer);
    }
}

/// Checks inputs and the size of the outputs that they ask for; the bytes of these, as far as they are known.
pub(super) fn check(
    model: &ModelInstance,
    inputs: &[Tensor],
    outputs: &[usize],
    output_limit: usize,
) -> Result<usize, Failure> {
    model.info.check_inputs(inputs)?;
    let (bytes, limit) = (model.info.output_bytes(inputs, outputs), output_limit);
    if bytes > limit { Err(Failure::TooLarge { bytes, limit }) } else { Ok(bytes) }
}

/// Runs a model on inputs that have been checked.
pub(super) fn run(model: &ModelInstance, asked: Asked<'_>, run: Run, output_limit: usize) -> Answer {
    model.runs.inc();
    model.statistics.iter().for_each(|statistics| statistics.ran());
    execute(model, asked, run, output_limit)
}

/// The same for a run that nobody asked for and that is not counted.
pub(super) fn execute(model: &ModelInstance, asked: Asked<'_>, run: Run, output_limit: usize) -> Answer {
    let inputs = asked.inputs;
    let mut outputs = places(model, asked)?;
    // A panic is a bug of ours; it costs the run, not the thread.
    let infer = AssertUnwindSafe(|| model.instance.infer(inputs, &mut outputs, run));
    std::panic::catch_unwind(infer)
        .unwrap_or_else(|_| Err(BackendError::Internal("the run panicked".into())))
        .inspect_err(|error| {
            if matches!(error, BackendError::Lost(_)) {
                model.note_lost();
            }
        })?;
    let tensors = outputs
        .into_iter()
        .map(|output| {
            let index = output.index();
            let missing = || BackendError::Internal(format!("output number {index} was not set"));
            output.into_tensor().ok_or_else(missing)
        })
        .collect::<Result<Vec<_>, BackendError>>()?;
    within(tensors, output_limit)
}

/// Where the outputs of a run go.
fn places(model: &ModelInstance, asked: Asked<'_>) -> Result<Vec<Output>, BackendError> {
    let Asked { inputs, outputs, stay } = asked;
    if stay.is_empty() && !model.instance.allocates_best() {
        return model.info.place_outputs(inputs, outputs);
    }
    let one = |index: &usize| {
        if stay.contains(index) {
            return Ok(Output::resident(*index));
        }
        let placed = if model.instance.allocates_best() {
            Vec::new()
        } else {
            model.info.place_outputs(inputs, &[*index])?
        };
        Ok(placed.into_iter().next().unwrap_or_else(|| Output::allocate(*index)))
    };
    outputs.iter().map(one).collect()
}

/// Outputs that are not too large; of some the shapes are not known before the run.
pub(super) fn within(tensors: Vec<Tensor>, limit: usize) -> Answer {
    let own = |tensor: &Tensor| tensor.resident().map_or(tensor.data().len(), DeviceMemory::len);
    let bytes = tensors.iter().map(own).fold(0, usize::saturating_add);
    if bytes > limit { Err(Failure::TooLarge { bytes, limit }) } else { Ok(tensors) }
}
