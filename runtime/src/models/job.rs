//! A run of a model that somebody waits for, and the run itself.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use outrigger_backend::{BackendError, Output, Run, Tensor};
use tokio::sync::oneshot;

use super::ModelInstance;
use super::served::Held;
use crate::busy::Outcome;
use crate::scheduler::Slot;

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
}

/// A run that waits for a thread.
pub(super) struct Job {
    pub(super) model: Arc<ModelInstance>,
    pub(super) inputs: Vec<Tensor>,
    pub(super) outputs: Vec<usize>,
    /// The slot that the run is for; free again when the run is over, also when nobody waits for it any more.
    pub(super) slot: Option<Slot>,
    /// It is not begun any more after that.
    pub(super) deadline: Option<Instant>,
    /// The number by which it is cancelled when its caller leaves.
    pub(super) run: Run,
    pub(super) done: oneshot::Sender<Answer>,
    /// Its model does not leave before it is over.
    #[expect(dead_code, reason = "is dropped with the job")]
    pub(super) held: Option<Held>,
}

impl Job {
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
                Err(Failure::Backend(_)) => Outcome::Failed,
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
) -> Result<usize, BackendError> {
    model.info.check_inputs(inputs)?;
    let expected = model.info.output_bytes(inputs, outputs);
    if expected > output_limit { Err(too_large(expected, output_limit)) } else { Ok(expected) }
}

/// Runs a model on inputs that have been checked.
pub(super) fn run(
    model: &ModelInstance,
    inputs: &[Tensor],
    outputs: &[usize],
    run: Run,
    output_limit: usize,
) -> Result<Vec<Tensor>, BackendError> {
    model.runs.inc();
    model.statistics.iter().for_each(|statistics| statistics.ran());
    execute(model, inputs, outputs, run, output_limit)
}

/// The same for a run that nobody asked for and that is not counted.
pub(super) fn execute(
    model: &ModelInstance,
    inputs: &[Tensor],
    outputs: &[usize],
    run: Run,
    output_limit: usize,
) -> Result<Vec<Tensor>, BackendError> {
    let mut outputs = if model.instance.allocates_best() {
        outputs.iter().map(|index| Output::allocate(*index)).collect()
    } else {
        model.info.place_outputs(inputs, outputs)?
    };
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
        .collect::<Result<Vec<_>, _>>()?;
    within(tensors, output_limit)
}

/// Outputs that are not too large; of some the shapes are not known before the run.
pub(super) fn within(tensors: Vec<Tensor>, limit: usize) -> Result<Vec<Tensor>, BackendError> {
    let actual = tensors.iter().map(|tensor| tensor.data().len()).fold(0, usize::saturating_add);
    if actual > limit { Err(too_large(actual, limit)) } else { Ok(tensors) }
}

fn too_large(bytes: usize, limit: usize) -> BackendError {
    BackendError::Input(format!("the outputs take {bytes} bytes, more than limits.answer, {limit} bytes"))
}
