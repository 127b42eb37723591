//! A chain that has been checked against the tensors it begins with.

use outrigger_backend::{Shape, Tensor, TensorInfo};

use crate::infer::height_axis;
use crate::resize::Tap;
use crate::split::{Split, axis};
use crate::step::ResizeMode;
use crate::{Problem, Step, StepError};

/// Steps with the tensors that they take and give, by number: first the inputs, then what comes of each step. Every type, shape and
/// parameter in it has been checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    tensors: Vec<TensorInfo>,
    inputs: usize,
    operations: Vec<Operation>,
    outputs: Vec<usize>,
}

/// A step of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// What it does.
    pub step: Step,
    /// The tensors that it takes: the one that it changes, then that of indices where there is one.
    pub inputs: Vec<usize>,
    /// The tensors that it gives.
    pub outputs: Vec<usize>,
}

impl Plan {
    pub(crate) fn new(
        tensors: Vec<TensorInfo>,
        inputs: usize,
        operations: Vec<Operation>,
        outputs: Vec<usize>,
    ) -> Self {
        Self { tensors, inputs, operations, outputs }
    }

    /// All tensors.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensors that it begins with.
    pub fn inputs(&self) -> &[TensorInfo] {
        &self.tensors[..self.inputs]
    }

    /// The steps.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The numbers of the tensors that are wanted in the end.
    pub fn wanted(&self) -> &[usize] {
        &self.outputs
    }

    /// The tensors that are wanted in the end.
    pub fn outputs(&self) -> impl Iterator<Item = &TensorInfo> {
        self.outputs.iter().map(|&slot| &self.tensors[slot])
    }

    /// The shape of tensor number `slot`.
    ///
    /// # Errors
    /// [`StepError::Free`].
    pub fn shape(&self, slot: usize) -> Result<Shape, StepError> {
        let tensor = &self.tensors[slot];
        Shape::new(tensor.shape.clone()).map_err(|_| StepError::Free(tensor.name.clone()))
    }

    /// What a step of this plan takes, seen from an axis of it. The axis has been checked when the plan was made.
    pub fn split(&self, operation: &Operation, along: i64) -> Split {
        let tensor = &self.tensors[operation.inputs[0]];
        Split::at(&tensor.shape, axis(along, tensor).unwrap_or(tensor.shape.len()))
    }

    /// The number of the last step, counted from 1, that takes tensor number `slot`; 0 if none does, and more than there are if it is
    /// wanted in the end.
    pub fn last_use(&self, slot: usize) -> usize {
        if self.outputs.contains(&slot) {
            return self.operations.len() + 1;
        }
        let taken = self.operations.iter().rposition(|operation| operation.inputs.contains(&slot));
        taken.map_or(0, |index| index + 1)
    }

    /// Bytes of all tensors that the steps make, those in between too, and what the step that takes most takes beside them on the CPU: more
    /// than a run holds at any one time. To be held against a limit before it runs, for extents come from whoever sends the inputs;
    /// `usize::MAX` for more than can be counted.
    ///
    /// # Errors
    /// [`StepError::Free`].
    pub fn made_bytes(&self) -> Result<usize, StepError> {
        let mut made = 0usize;
        for slot in self.inputs..self.tensors.len() {
            let bytes = self.shape(slot)?.bytes(self.tensors[slot].data_type);
            made = made.saturating_add(bytes.unwrap_or(usize::MAX));
        }
        let beside = self.operations.iter().map(|operation| self.beside(operation)).max();
        Ok(made.saturating_add(beside.unwrap_or(0)))
    }

    /// Bytes that a step takes beside its tensors, as `cpu/` has it.
    fn beside(&self, operation: &Operation) -> usize {
        let Some(result) = operation.outputs.first().map(|slot| &self.tensors[*slot]) else { return 0 };
        let extent = |extent: i64| usize::try_from(extent).unwrap_or(0);
        let along = |axis: i64| self.split(operation, axis).extent;
        match &operation.step {
            Step::Gather { .. } | Step::Scatter { .. } => {
                let indices = operation.inputs.get(1).and_then(|slot| self.tensors[*slot].shape.first());
                extent(indices.copied().unwrap_or(0)).saturating_mul(size_of::<i64>())
            }
            // Of an empty tensor extents may be anything, and nothing is done.
            _ if result.shape.contains(&0) => 0,
            Step::Convert { .. } | Step::Layout { .. } => 0,
            Step::Normalize { mean, std, .. } => mean.len().max(std.len()) * size_of::<(f32, f32)>(),
            Step::Resize { mode, layout, .. } => {
                let Ok(at) = height_axis(result, *layout) else { return 0 };
                let (height, width) = (extent(result.shape[at]), extent(result.shape[at + 1]));
                let taps = (height + width).saturating_mul(size_of::<Tap>());
                // Two rows, stretched.
                let row = width.saturating_mul(Split::at(&result.shape, at + 1).inner);
                let rows = row.saturating_mul(2 * size_of::<f32>());
                if *mode == ResizeMode::Bilinear { taps.saturating_add(rows) } else { taps }
            }
            Step::Softmax { axis } => along(*axis).saturating_mul(size_of::<f32>()),
            Step::TopK { axis, .. } => along(*axis).saturating_mul(size_of::<u64>()),
        }
    }

    /// The first step, counted from 0, that does not take each row for itself, a row being an index of the first axis: it looks across
    /// rows, moves that axis, or treats rows by their number. Without one, rows of several calls may go through together.
    pub fn mixes_rows(&self) -> Option<usize> {
        self.operations.iter().position(|operation| {
            let tensor = &self.tensors[operation.inputs[0]];
            let is_first = |along: i64| axis(along, tensor) == Ok(0);
            match &operation.step {
                Step::Convert { .. } => false,
                Step::Normalize { mean, std, axis, .. } => {
                    is_first(*axis) && (mean.len() > 1 || std.len() > 1)
                }
                Step::Resize { layout, .. } => height_axis(tensor, *layout) == Ok(0),
                Step::Layout { .. } => tensor.shape.len() == 3,
                Step::Softmax { axis } | Step::TopK { axis, .. } => is_first(*axis),
                Step::Gather { .. } | Step::Scatter { .. } => true,
            }
        })
    }

    /// Whether these are the tensors that were planned.
    ///
    /// # Errors
    /// [`StepError::Inputs`] or [`StepError::Input`].
    pub fn check(&self, inputs: &[Tensor]) -> Result<(), StepError> {
        if inputs.len() != self.inputs {
            return Err(StepError::Inputs { actual: inputs.len(), expected: self.inputs });
        }
        for (info, tensor) in self.inputs().iter().zip(inputs) {
            if tensor.data_type() != info.data_type || tensor.shape().extents() != info.shape {
                return Err(StepError::Input {
                    name: info.name.clone(),
                    actual: format!("{} {}", tensor.data_type(), tensor.shape()),
                    expected: format!("{} {:?}", info.data_type, info.shape),
                });
            }
        }
        Ok(())
    }

    /// An error of step number `index`, counted from 0.
    pub(crate) fn failed(&self, index: usize, problem: Problem) -> StepError {
        StepError::Step { number: index + 1, step: self.operations[index].step.name(), problem }
    }
}
