//! A shape as seen from one axis.

use outrigger_backend::TensorInfo;

use crate::Problem;

/// The elements before, along and after one axis: element `(o, e, i)` is number `(o * extent + e) * inner + i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// The product of the extents before the axis.
    pub outer: usize,
    /// The extent of the axis.
    pub extent: usize,
    /// The product of the extents after it.
    pub inner: usize,
}

impl Split {
    /// Of a shape without free extents. The axis is one of its own.
    pub(crate) fn at(shape: &[i64], axis: usize) -> Self {
        let product = |extents: &[i64]| extents.iter().map(|&extent| extent.max(0) as usize).product();
        let (before, rest) = shape.split_at(axis.min(shape.len()));
        let (along, after) = rest.split_at(rest.len().min(1));
        Self { outer: product(before), extent: product(along), inner: product(after) }
    }

    /// Elements in all.
    pub fn elements(&self) -> usize {
        self.outer * self.extent * self.inner
    }
}

/// The number of an axis that may be counted from the end.
pub(crate) fn axis(axis: i64, tensor: &TensorInfo) -> Result<usize, Problem> {
    let rank = tensor.shape.len();
    let counted = if axis < 0 { axis.checked_add_unsigned(rank as u64) } else { Some(axis) };
    let counted = counted.and_then(|axis| usize::try_from(axis).ok()).filter(|axis| *axis < rank);
    counted.ok_or_else(|| Problem::Axis { axis, tensor: tensor.name.clone(), rank })
}
