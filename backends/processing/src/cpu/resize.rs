//! Another height and width.

use outrigger_backend::DataType;

use super::element::{Element, Wide, with_element};
use super::list;
use crate::infer::height_axis;
use crate::number::between;
use crate::resize::{Tap, bilinear_taps, nearest_taps};
use crate::split::Split;
use crate::step::{ImageLayout, ResizeMode};
use crate::{Operation, Plan, Problem, Step, StepError};

/// What there is to resize: `count` images of `from` to `to` pixels, of `channels` elements each that lie together.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    /// How many; with channels first, each channel is an image.
    pub count: usize,
    /// Elements of a pixel that lie together; 1 with channels first.
    pub channels: usize,
    /// Height and width before.
    pub from: [usize; 2],
    /// Height and width after.
    pub to: [usize; 2],
    /// For each row, and for each column, where it comes from.
    pub taps: [Vec<Tap>; 2],
}

impl Plan {
    /// What a `resize` of this plan has to do.
    ///
    /// # Errors
    /// [`Problem::Rank`] for a tensor that is no image.
    pub fn images(&self, operation: &Operation, layout: ImageLayout) -> Result<Images, Problem> {
        let (from, to) = (&self.tensors()[operation.inputs[0]], &self.tensors()[operation.outputs[0]]);
        let at = height_axis(from, layout)?;
        let sides = |shape: &[i64]| [shape[at].max(0) as usize, shape[at + 1].max(0) as usize];
        let split = Split::at(&from.shape, at + 1);
        let count = Split::at(&from.shape, at).outer;
        let (from, to) = (sides(&from.shape), sides(&to.shape));
        let taps = match operation.step {
            Step::Resize { mode: ResizeMode::Nearest, .. } => nearest_taps,
            _ => bilinear_taps,
        };
        let taps = [0, 1].map(|side| taps(from[side] as u32, to[side] as u32));
        Ok(Images { count, channels: split.inner, from, to, taps })
    }
}

pub(super) fn nearest(size: usize, from: &[u8], images: &Images, to: &mut [u8]) {
    let pixel = images.channels * size;
    if pixel == 0 {
        return;
    }
    let row = images.from[1] * pixel;
    let sources = from.chunks_exact(images.from[0] * row);
    for (from, to) in sources.zip(to.chunks_exact_mut(images.to[0] * images.to[1] * pixel)) {
        for (to, tap) in to.chunks_exact_mut(images.to[1] * pixel).zip(&images.taps[0]) {
            let from = &from[tap.low as usize * row..][..row];
            for (to, tap) in to.chunks_exact_mut(pixel).zip(&images.taps[1]) {
                to.copy_from_slice(&from[tap.low as usize * pixel..][..pixel]);
            }
        }
    }
}

pub(super) fn bilinear(
    data_type: DataType,
    from: &[u8],
    images: &Images,
    to: &mut [u8],
) -> Result<(), StepError> {
    with_element!(data_type, E => each::<E>(from, images, to))
}

fn each<E: Element>(from: &[u8], images: &Images, to: &mut [u8]) -> Result<(), StepError> {
    let width = images.to[1] * images.channels;
    let row = images.from[1] * images.channels * E::SIZE;
    if row == 0 || width == 0 {
        return Ok(());
    }
    // A row of the source is stretched once, although several rows of the result may need it.
    let mut rows = [
        Stretched { number: None, values: list(width, 0.)? },
        Stretched { number: None, values: list(width, 0.)? },
    ];
    let sources = from.chunks_exact(images.from[0] * row);
    for (from, to) in sources.zip(to.chunks_exact_mut(4 * images.to[0] * width)) {
        rows.iter_mut().for_each(|row| row.number = None);
        for (to, tap) in to.chunks_exact_mut(4 * width).zip(&images.taps[0]) {
            if rows[1].number == Some(tap.low) {
                rows.swap(0, 1);
            }
            for (stretched, number) in rows.iter_mut().zip([tap.low, tap.high]) {
                stretched.fill::<E>(number, &from[number as usize * row..][..row], images);
            }
            let [low, high] = &rows;
            for ((to, low), high) in to.chunks_exact_mut(4).zip(&low.values).zip(&high.values) {
                to.copy_from_slice(&between(*low, *high, tap.weight).to_ne_bytes());
            }
        }
    }
    Ok(())
}

/// A row of the source in the width of the result.
struct Stretched {
    number: Option<u32>,
    values: Vec<f32>,
}

impl Stretched {
    fn fill<E: Element>(&mut self, number: u32, from: &[u8], images: &Images) {
        if self.number == Some(number) {
            return;
        }
        self.number = Some(number);
        let pixel = images.channels * E::SIZE;
        for (to, tap) in self.values.chunks_exact_mut(images.channels).zip(&images.taps[1]) {
            let at = |number: u32| from[number as usize * pixel..][..pixel].chunks_exact(E::SIZE);
            for ((to, low), high) in to.iter_mut().zip(at(tap.low)).zip(at(tap.high)) {
                *to = between(E::read(low).float(), E::read(high).float(), tap.weight);
            }
        }
    }
}
