//! The form of each step on the CPU: plain loops over bytes, on the caller's thread.

mod convert;
mod element;
mod move_bytes;
mod normalize;
mod resize;
mod softmax;
mod top_k;

pub use move_bytes::Matrices;
pub use resize::Images;

use outrigger_backend::{Buffer, DataType, Tensor};

use crate::split::Split;
use crate::step::ResizeMode;
use crate::{Operation, Plan, Problem, Step, StepError};

impl Plan {
    /// Runs all steps on the CPU, on this thread. Results are in the order of [`Plan::outputs`]; one that is an input shares its bytes.
    ///
    /// # Errors
    /// [`StepError::Input`] and [`StepError::Inputs`] for what was not planned, [`StepError::Free`], [`Problem::Index`] for an index that
    /// is none, [`StepError::Memory`].
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, StepError> {
        self.run_unless(inputs, || false)
    }

    /// The same, which asks before each step whether it is cancelled by now.
    ///
    /// # Errors
    /// As [`Plan::run`], and [`StepError::Cancelled`].
    pub fn run_unless(
        &self,
        inputs: &[Tensor],
        is_cancelled: impl Fn() -> bool,
    ) -> Result<Vec<Tensor>, StepError> {
        self.check(inputs)?;
        let mut tensors: Vec<Option<Tensor>> = inputs.iter().cloned().map(Some).collect();
        tensors.resize(self.tensors().len(), None);
        let last_uses: Vec<usize> = (0..tensors.len()).map(|slot| self.last_use(slot)).collect();
        for (index, operation) in self.operations().iter().enumerate() {
            if is_cancelled() {
                return Err(StepError::Cancelled);
            }
            let results = self.apply(index, operation, &tensors)?;
            for (slot, result) in operation.outputs.iter().zip(results) {
                tensors[*slot] = Some(result);
            }
            for (tensor, last) in tensors.iter_mut().zip(&last_uses) {
                // What no later step takes need not be kept in memory.
                if *last <= index + 1 {
                    *tensor = None;
                }
            }
        }
        let wanted = self.wanted().iter().map(|&slot| {
            let tensor = tensors[slot].clone();
            tensor.ok_or_else(|| StepError::Free(self.tensors()[slot].name.clone()))
        });
        wanted.collect()
    }

    fn apply(
        &self,
        index: usize,
        operation: &Operation,
        tensors: &[Option<Tensor>],
    ) -> Result<Vec<Tensor>, StepError> {
        let missing = |slot: usize| StepError::Free(self.tensors()[slot].name.clone());
        let bytes_of = |slot: usize| -> Result<&[u8], StepError> {
            Ok(tensors[slot].as_ref().ok_or_else(|| missing(slot))?.data())
        };
        let first = operation.inputs[0];
        let info = &self.tensors()[first];
        let (from, data_type) = (bytes_of(first)?, info.data_type);
        let mut results =
            operation.outputs.iter().map(|&slot| self.room(slot)).collect::<Result<Vec<_>, _>>()?;
        // Extents beside a 0 may be anything, since they cost whoever sends them nothing: no memory, loop or product may depend on them.
        let picks = matches!(operation.step, Step::Gather { .. } | Step::Scatter { .. });
        let is_empty = !picks && results.iter().all(|result| result.is_empty());
        let (to, more) = results.split_first_mut().ok_or_else(|| missing(first))?;
        let failed = |problem| self.failed(index, problem);
        let along = |axis: &i64| self.split(operation, *axis);
        match &operation.step {
            _ if is_empty => {}
            Step::Convert { datatype } => convert::run(data_type, from, *datatype, to),
            Step::Normalize { axis, .. } => {
                let split = along(axis);
                normalize::run(data_type, from, &operation.step.factors(split.extent), split.inner, to);
            }
            Step::Resize { mode, layout, .. } => {
                let images = self.images(operation, *layout).map_err(failed)?;
                match mode {
                    ResizeMode::Nearest => resize::nearest(size(data_type), from, &images, to),
                    ResizeMode::Bilinear => resize::bilinear(data_type, from, &images, to)?,
                }
            }
            Step::Layout { layout } => {
                move_bytes::transpose(size(data_type), from, self.matrices(operation, *layout), to);
            }
            Step::Softmax { axis } => softmax::run(data_type, from, along(axis), to)?,
            Step::TopK { k, axis, .. } => {
                let indices = more.first_mut().ok_or_else(|| missing(first))?;
                top_k::run(data_type, from, along(axis), *k as usize, to, indices)?;
            }
            Step::Gather { .. } | Step::Scatter { .. } => {
                let indices = operation.inputs.get(1).copied().ok_or_else(|| missing(first))?;
                let is_gather = matches!(operation.step, Step::Gather { .. });
                let rows = if is_gather { first } else { operation.outputs[0] };
                let rows = self.tensors()[rows].shape[0];
                let name = &self.tensors()[indices];
                let indices = read_indices(name.data_type, bytes_of(indices)?);
                if let Some(&index) = indices.iter().find(|index| !(0..rows).contains(*index)) {
                    return Err(failed(Problem::Index { index, tensor: name.name.clone(), rows }));
                }
                let row = Split::at(&info.shape, 0).inner * size(data_type);
                if is_gather {
                    move_bytes::gather(row, from, &indices, to);
                } else {
                    move_bytes::scatter(row, from, &indices, to);
                }
            }
        }
        let tensors = operation.outputs.iter().zip(results).map(|(&slot, buffer)| {
            let data_type = self.tensors()[slot].data_type;
            Tensor::new(data_type, self.shape(slot)?, buffer.freeze())
                .map_err(|error| self.failed(index, error.into()))
        });
        tensors.collect()
    }

    /// Zeroed memory for a tensor.
    fn room(&self, slot: usize) -> Result<Buffer, StepError> {
        let bytes = self.shape(slot)?.bytes(self.tensors()[slot].data_type);
        let bytes = bytes.map_err(|_| StepError::Memory(usize::MAX))?;
        Buffer::zeroed(bytes).map_err(|_| StepError::Memory(bytes))
    }
}

/// A list that is filled once, of a length that came from outside.
fn list<T: Clone>(len: usize, value: T) -> Result<Vec<T>, StepError> {
    let mut list = Vec::new();
    list.try_reserve_exact(len).map_err(|_| StepError::Memory(len.saturating_mul(size_of::<T>())))?;
    list.resize(len, value);
    Ok(list)
}

fn size(data_type: DataType) -> usize {
    // The plan has refused types without one.
    data_type.size().unwrap_or(1)
}

fn read_indices(data_type: DataType, bytes: &[u8]) -> Vec<i64> {
    let indices: Vec<i64> = match data_type {
        DataType::Int32 => {
            bytes.as_chunks().0.iter().map(|bytes| i32::from_ne_bytes(*bytes).into()).collect()
        }
        _ => bytes.as_chunks().0.iter().map(|bytes| i64::from_ne_bytes(*bytes)).collect(),
    };
    indices
}
