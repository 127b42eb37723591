//! The largest along an axis.

use outrigger_backend::DataType;

use super::element::{Element, Wide, with_element};
use super::list;
use crate::StepError;
use crate::number::order;
use crate::split::Split;

pub(super) fn run(
    data_type: DataType,
    from: &[u8],
    split: Split,
    k: usize,
    values: &mut [u8],
    indices: &mut [u8],
) -> Result<(), StepError> {
    with_element!(data_type, E => each::<E>(from, split, k, values, indices))
}

fn each<E: Element>(
    from: &[u8],
    Split { outer, extent, inner }: Split,
    k: usize,
    values: &mut [u8],
    indices: &mut [u8],
) -> Result<(), StepError>
where
    E::Wide: Ordered,
{
    // Order above, complement of the index below: the largest is the one that comes first.
    let mut row = list(extent, 0u64)?;
    for (before, after) in (0..outer).flat_map(|outer| (0..inner).map(move |inner| (outer, inner))) {
        let start = before * extent * inner + after;
        let places = from[start * E::SIZE..].chunks(E::SIZE).step_by(inner);
        for ((number, index), from) in row.iter_mut().zip(0u32..).zip(places) {
            *number = u64::from(E::read(from).order()) << 32 | u64::from(!index);
        }
        let wanted = k.min(extent);
        if wanted < extent {
            row.select_nth_unstable_by(wanted, |one, other| other.cmp(one));
        }
        row[..wanted].sort_unstable_by(|one, other| other.cmp(one));
        for (rank, number) in row[..wanted].iter().enumerate() {
            let index = !(*number as u32);
            let place = (before * k + rank) * inner + after;
            let source = (start + index as usize * inner) * E::SIZE;
            values[place * E::SIZE..][..E::SIZE].copy_from_slice(&from[source..][..E::SIZE]);
            indices[place * 8..][..8].copy_from_slice(&i64::from(index).to_ne_bytes());
        }
    }
    Ok(())
}

/// A number whose order is that of the values.
trait Ordered: Wide {
    fn order(self) -> u32;
}

impl Ordered for f32 {
    fn order(self) -> u32 {
        order(self)
    }
}

impl Ordered for i64 {
    /// Of integers of 32 bits and less.
    fn order(self) -> u32 {
        (self as i32 as u32) ^ 0x8000_0000
    }
}
