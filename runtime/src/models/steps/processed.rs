//! A model with steps before and after it, as a model: inputs and outputs are those of callers.

use std::borrow::Cow;
use std::sync::Arc;

use outrigger_backend::{BackendError, Instance, Model, ModelInfo, Output, Run, RunId, Tensor};

use super::describe::{After, Before, CpuAfter, Described, Source, describe};
use super::place::StepsPlace;
use super::taken::{StepBytes, Wanted};
use super::watch::{Runs, Watched};
use crate::models::batch::NotBatchable;
use crate::models::manifest::Manifest;

/// A model with steps around it. They run where the model is run from: on a device thread.
pub(in crate::models) struct Processed {
    model: Arc<dyn Model>,
    described: Arc<Described>,
}

impl Processed {
    /// Puts the steps of a manifest around a model. The steps of either side may make `limit` bytes in one run.
    ///
    /// # Errors
    /// What does not fit, by names.
    pub(in crate::models) fn new(
        model: Arc<dyn Model>,
        manifest: &Manifest,
        steps: &StepsPlace,
        limit: usize,
    ) -> Result<Self, String> {
        let described = Arc::new(describe(manifest, model.info(), steps, limit)?);
        Ok(Self { model, described })
    }

    /// What its steps take.
    pub(in crate::models) fn step_bytes(&self) -> StepBytes {
        StepBytes(Arc::clone(&self.described))
    }

    /// The step, if there is one, that keeps calls from being run together.
    pub(in crate::models) fn mixes_rows(&self) -> Option<NotBatchable> {
        self.described.mixes_rows.clone()
    }
}

impl Model for Processed {
    fn info(&self) -> &ModelInfo {
        &self.described.info
    }

    fn instance(&self) -> Result<Arc<dyn Instance>, BackendError> {
        Ok(Arc::new(ProcessedInstance {
            instance: self.model.instance()?,
            model: Arc::clone(&self.model),
            described: Arc::clone(&self.described),
            runs: Runs::default(),
        }))
    }
}

struct ProcessedInstance {
    instance: Arc<dyn Instance>,
    model: Arc<dyn Model>,
    described: Arc<Described>,
    runs: Runs,
}

impl Instance for ProcessedInstance {
    fn infer(&self, inputs: &[Tensor], outputs: &mut [Output], run: Run) -> Result<(), BackendError> {
        let run_watched = self.runs.begin(run);
        let described = &*self.described;
        described.info.check_inputs(inputs)?;
        described.info.check_outputs(outputs)?;
        let ready = match &described.before {
            Before::None => Cow::Borrowed(inputs),
            Before::Graph(before) => {
                before.hold(inputs)?;
                Cow::Borrowed(inputs)
            }
            Before::Cpu(before) => Cow::Owned(before.run(inputs, 0, || run_watched.is_cancelled())?),
        };
        // The model does not know of the run yet; who cancels tells it again once it may.
        run_watched.check()?;
        match &described.after {
            After::None => self.instance.infer(&ready, outputs, run),
            After::Graph(limit) => {
                let info = self.model.info();
                // All of them: the graph makes those too that nobody wants.
                let all: Vec<usize> = (0..info.outputs.len()).collect();
                limit.check(info.output_bytes(&ready, &all))?;
                self.instance.infer(&ready, outputs, run)?;
                // Of some the shapes are not known before the run, and a model may promise others than it gives.
                limit.check(came(info, outputs)?)
            }
            After::Cpu(after) => self.with_steps_after(after, ready, outputs, run, &run_watched),
        }
    }

    fn allocates_best(&self) -> bool {
        // What steps make is in memory of theirs.
        matches!(self.described.after, After::Cpu(_)) || self.instance.allocates_best()
    }

    fn cancel(&self, id: RunId) {
        self.runs.cancel(id, &self.instance);
    }

    fn can_cancel(&self) -> bool {
        self.instance.can_cancel()
    }

    fn bytes_held(&self) -> u64 {
        self.instance.bytes_held()
    }
}

impl ProcessedInstance {
    fn with_steps_after(
        &self,
        after: &CpuAfter,
        ready: Cow<'_, [Tensor]>,
        outputs: &mut [Output],
        run: Run,
        run_watched: &Watched<'_>,
    ) -> Result<(), BackendError> {
        let indices: Vec<usize> = outputs.iter().map(Output::index).collect();
        let wanted = after.wanted(&indices);
        let given = self.model_outputs(after, &ready, &wanted, run)?;
        drop(ready);
        let given_by = |index: usize| {
            let at = wanted.outputs.iter().position(|wanted| *wanted == index);
            at.and_then(|at| given.get(at)).ok_or_else(|| missing(index))
        };
        let mut made = Vec::new();
        if wanted.has_steps {
            let taken = after.taken.iter().map(|index| given_by(*index).cloned());
            let taken = taken.collect::<Result<Vec<_>, _>>()?;
            made = after.side.run(&taken, bytes(&given), || run_watched.is_cancelled())?;
        }
        for output in outputs {
            let tensor = match &after.sources[output.index()] {
                Source::Model(index) => given_by(*index)?,
                Source::Steps(index) => made.get(*index).ok_or_else(|| missing(*index))?,
            };
            hand_over(tensor, output);
        }
        Ok(())
    }

    /// What the model gives of its outputs `wanted`.
    fn model_outputs(
        &self,
        after: &CpuAfter,
        inputs: &[Tensor],
        wanted: &Wanted,
        run: Run,
    ) -> Result<Vec<Tensor>, BackendError> {
        let info = self.model.info();
        after.side.check(after.takes(info, inputs, wanted))?;
        let wanted = &wanted.outputs[..];
        let mut outputs = if self.instance.allocates_best() {
            wanted.iter().map(|index| Output::allocate(*index)).collect()
        } else {
            info.place_outputs(inputs, wanted)?
        };
        self.instance.infer(inputs, &mut outputs, run)?;
        let tensors = outputs.into_iter().zip(wanted);
        let tensors = tensors.map(|(output, index)| output.into_tensor().ok_or_else(|| missing(*index)));
        let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
        // Of some the shapes are not known before the run.
        after.side.check(bytes(&tensors)).map(|()| tensors)
    }
}

/// Bytes of what came out of steps in a graph.
///
/// # Errors
/// [`BackendError::Run`] for another number of axes than they were made for: they are counted from the first.
fn came(info: &ModelInfo, outputs: &mut [Output]) -> Result<usize, BackendError> {
    let mut bytes = 0usize;
    for output in outputs {
        if let Some((_, _, place)) = output.place_mut() {
            bytes = bytes.saturating_add(place.len());
            continue;
        }
        let index = output.index();
        let (Some(tensor), Some(declared)) = (output.tensor(), info.outputs.get(index)) else { continue };
        let extents = tensor.shape().extents();
        if extents.len() != declared.shape.len() {
            return Err(BackendError::Run(format!(
                "after the model: output `{}` has shape {extents:?}, the model says {:?}",
                declared.name, declared.shape
            )));
        }
        let len = tensor.shape().bytes(tensor.data_type()).unwrap_or_else(|_| tensor.data().len());
        bytes = bytes.saturating_add(len);
    }
    Ok(bytes)
}

fn bytes(tensors: &[Tensor]) -> usize {
    tensors.iter().map(|tensor| tensor.data().len()).fold(0, usize::saturating_add)
}

fn missing(index: usize) -> BackendError {
    BackendError::Internal(format!("output number {index} was not set"))
}

/// Into the place that was given, if it fits; else as it is.
fn hand_over(tensor: &Tensor, output: &mut Output) {
    if let Some((data_type, shape, place)) = output.place_mut()
        && data_type == tensor.data_type()
        && shape == tensor.shape()
        && place.len() == tensor.data().len()
    {
        place.copy_from_slice(tensor.data());
        return;
    }
    output.set(tensor.clone());
}
