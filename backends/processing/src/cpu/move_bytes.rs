//! Steps that move elements and look at none of them.

use crate::split::Split;
use crate::step::ImageLayout;
use crate::{Operation, Plan};

/// Matrices of elements to be transposed: `count` of `rows` times `columns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrices {
    /// How many.
    pub count: usize,
    /// Rows before, columns after.
    pub rows: usize,
    /// Columns before, rows after.
    pub columns: usize,
}

impl Plan {
    /// What a `layout` of this plan has to do: pixels times channels are a matrix.
    pub fn matrices(&self, operation: &Operation, layout: ImageLayout) -> Matrices {
        let shape = &self.tensors()[operation.inputs[0]].shape;
        let begin = shape.len().saturating_sub(3);
        let count = Split::at(shape, begin).outer;
        match layout {
            ImageLayout::Nchw => {
                let split = Split::at(&shape[begin..], 2);
                Matrices { count, rows: split.outer, columns: split.extent }
            }
            ImageLayout::Nhwc => {
                let split = Split::at(&shape[begin..], 0);
                Matrices { count, rows: split.extent, columns: split.inner }
            }
        }
    }
}

pub(super) fn transpose(size: usize, from: &[u8], matrices: Matrices, to: &mut [u8]) {
    match size {
        1 => sized::<1>(from, matrices, to),
        2 => sized::<2>(from, matrices, to),
        4 => sized::<4>(from, matrices, to),
        _ => sized::<8>(from, matrices, to),
    }
}

fn sized<const SIZE: usize>(from: &[u8], Matrices { rows, columns, .. }: Matrices, to: &mut [u8]) {
    let (from, to) = (from.as_chunks::<SIZE>().0, to.as_chunks_mut::<SIZE>().0);
    if rows == 0 || columns == 0 {
        return;
    }
    for (from, to) in from.chunks_exact(rows * columns).zip(to.chunks_exact_mut(rows * columns)) {
        for (column, to) in to.chunks_exact_mut(rows).enumerate() {
            for (to, from) in to.iter_mut().zip(from[column..].iter().step_by(columns)) {
                *to = *from;
            }
        }
    }
}

/// Rows of so many bytes; indices have been checked.
pub(super) fn gather(row: usize, from: &[u8], indices: &[i64], to: &mut [u8]) {
    if row == 0 {
        return;
    }
    for (to, index) in to.chunks_exact_mut(row).zip(indices) {
        to.copy_from_slice(&from[*index as usize * row..][..row]);
    }
}

/// As [`gather`], the other way round, into zeros.
pub(super) fn scatter(row: usize, from: &[u8], indices: &[i64], to: &mut [u8]) {
    if row == 0 {
        return;
    }
    for (from, index) in from.chunks_exact(row).zip(indices) {
        to[*index as usize * row..][..row].copy_from_slice(from);
    }
}
