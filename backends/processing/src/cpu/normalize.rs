//! Scaled and shifted by channel.

use outrigger_backend::DataType;

use super::element::{Element, Wide, with_element};
use crate::Step;

impl Step {
    /// Of `normalize`: `factor` and `offset` for each of so many channels, such that `y = x * factor + offset`; one pair where it is the same for
    /// all of them, however many there are. None for another step.
    pub fn factors(&self, channels: usize) -> Vec<(f32, f32)> {
        let Self::Normalize { mean, std, scale, .. } = self else { return Vec::new() };
        let of = |values: &[f64], channel| values.get(channel).or(values.first()).copied().unwrap_or(0.);
        let factor = |channel| {
            let std = of(std, channel);
            ((scale / std) as f32, (-of(mean, channel) / std) as f32)
        };
        let is_one_for_all = mean.len() <= 1 && std.len() <= 1;
        (0..if is_one_for_all { channels.min(1) } else { channels }).map(factor).collect()
    }
}

pub(super) fn run(data_type: DataType, from: &[u8], factors: &[(f32, f32)], inner: usize, to: &mut [u8]) {
    with_element!(data_type, E => each::<E>(from, factors, inner, to));
}

fn each<E: Element>(from: &[u8], factors: &[(f32, f32)], inner: usize, to: &mut [u8]) {
    let scale = |from: &[u8], to: &mut [u8], (factor, offset): (f32, f32)| {
        to.copy_from_slice(&(E::read(from).float() * factor + offset).to_ne_bytes());
    };
    if inner == 1 {
        // Channels last: as many factors as there are, again and again.
        let pixels = from.chunks_exact(E::SIZE * factors.len().max(1));
        for (from, to) in pixels.zip(to.chunks_exact_mut(4 * factors.len().max(1))) {
            for ((from, to), factor) in from.chunks_exact(E::SIZE).zip(to.chunks_exact_mut(4)).zip(factors) {
                scale(from, to, *factor);
            }
        }
        return;
    }
    let planes = from.chunks_exact((E::SIZE * inner).max(1)).zip(to.chunks_exact_mut((4 * inner).max(1)));
    for ((from, to), factor) in planes.zip(factors.iter().cycle()) {
        for (from, to) in from.chunks_exact(E::SIZE).zip(to.chunks_exact_mut(4)) {
            scale(from, to, *factor);
        }
    }
}
