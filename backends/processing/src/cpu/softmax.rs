//! Softmax.

use outrigger_backend::DataType;

use super::element::{Element, Wide, with_element};
use super::list;
use crate::StepError;
use crate::number::exp;
use crate::split::Split;

pub(super) fn run(data_type: DataType, from: &[u8], split: Split, to: &mut [u8]) -> Result<(), StepError> {
    with_element!(data_type, E => each::<E>(from, split, to))
}

fn each<E: Element>(from: &[u8], split: Split, to: &mut [u8]) -> Result<(), StepError> {
    let Split { outer, extent, inner } = split;
    if split.elements() == 0 {
        return Ok(());
    }
    let mut row = list(extent, 0f32)?;
    for start in
        (0..outer).flat_map(|outer| (0..inner).map(move |inner| outer * extent * split.inner + inner))
    {
        let places = from[start * E::SIZE..].chunks(E::SIZE).step_by(inner);
        for (value, from) in row.iter_mut().zip(places) {
            *value = E::read(from).float();
        }
        softmax(&mut row);
        let places = to[start * 4..].chunks_exact_mut(4).step_by(inner);
        for (value, to) in row.iter().zip(places) {
            to.copy_from_slice(&value.to_ne_bytes());
        }
    }
    Ok(())
}

fn softmax(row: &mut [f32]) {
    // `max` passes over NaN, so that is looked for by itself.
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() || row.iter().any(|value| value.is_nan()) {
        row.fill(f32::NAN);
        return;
    }
    let mut sum = 0f64;
    for value in &mut *row {
        *value = exp(*value - max);
        sum += f64::from(*value);
    }
    let sum = sum as f32;
    for value in row {
        *value /= sum;
    }
}
