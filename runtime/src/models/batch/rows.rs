//! Rows of several calls in one tensor, and back: inputs are put together with one copy, outputs are taken apart by reference.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use outrigger_backend::{BackendError, Buffer, DataType, STRING_PREFIX, Shape, Tensor};

/// Buffers that are kept for the next batch.
const KEPT: usize = 8;
/// Larger ones are not kept.
const KEPT_BYTES: usize = 4 << 20;

/// Memory for inputs that are put together, used again.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool(Arc<Mutex<Vec<Buffer>>>);

impl Pool {
    /// A buffer of `len` bytes; what is in it is of no use.
    fn take(&self, len: usize) -> Result<Pooled, BackendError> {
        let kept = {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let fits = kept.iter().position(|buffer| buffer.capacity() >= len);
            fits.or(kept.len().checked_sub(1)).map(|at| kept.swap_remove(at))
        };
        let no_memory = |_| BackendError::OutOfMemory(format!("{len} bytes for the inputs of a batch"));
        let mut buffer = kept.map_or_else(|| Buffer::zeroed(len), Ok).map_err(no_memory)?;
        buffer.resize(len).map_err(no_memory)?;
        Ok(Pooled { buffer: Some(buffer), pool: self.clone() })
    }
}

/// A buffer that goes back when its last reader is done with it.
struct Pooled {
    buffer: Option<Buffer>,
    pool: Pool,
}

impl Pooled {
    fn bytes(&mut self) -> &mut [u8] {
        self.buffer.as_deref_mut().unwrap_or_default()
    }
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_deref().unwrap_or_default()
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let Some(buffer) = self.buffer.take().filter(|buffer| buffer.capacity() <= KEPT_BYTES) else {
            return;
        };
        let mut kept = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(buffer);
        }
    }
}

/// The first extent of all inputs of a call, if they agree on it.
pub(super) fn of(inputs: &[Tensor]) -> Option<usize> {
    let mut extents = inputs.iter().map(|input| input.shape().extents().first().copied());
    let rows = extents.next()??;
    extents.all(|extent| extent == Some(rows)).then_some(())?;
    usize::try_from(rows).ok()
}

/// Puts tensors together along their first extent; they agree in all else.
pub(super) fn join<'a>(
    parts: impl Iterator<Item = &'a Tensor> + Clone,
    pool: &Pool,
) -> Result<Tensor, BackendError> {
    let differ = || BackendError::Internal("inputs of a batch do not go together".into());
    let first = parts.clone().next().ok_or_else(differ)?;
    let (_, trailing) = first.shape().extents().split_first().ok_or_else(differ)?;
    let (mut rows, mut len) = (0i64, 0usize);
    for part in parts.clone() {
        let (own, rest) = part.shape().extents().split_first().ok_or_else(differ)?;
        if rest != trailing || part.data_type() != first.data_type() {
            return Err(differ());
        }
        rows = rows.checked_add(*own).ok_or_else(differ)?;
        len = len.checked_add(part.data().len()).ok_or_else(differ)?;
    }
    let mut memory = pool.take(len)?;
    let mut place = memory.bytes();
    for part in parts {
        let (own, rest) = place.split_at_mut_checked(part.data().len()).ok_or_else(differ)?;
        own.copy_from_slice(part.data());
        place = rest;
    }
    tensor(first, rows, trailing, Bytes::from_owner(memory)).ok_or_else(differ)
}

/// Takes a tensor apart into so many rows each, sharing its memory; `None` if it has not as many rows as that together.
pub(super) fn split(whole: &Tensor, rows: &[usize]) -> Option<Vec<Tensor>> {
    let (first, trailing) = whole.shape().extents().split_first()?;
    let all = usize::try_from(*first).ok()?;
    if rows.iter().try_fold(0usize, |sum, own| sum.checked_add(*own))? != all {
        return None;
    }
    let row = whole.data().len().checked_div(all).unwrap_or(0);
    // Strings differ in length, so the bytes of a row are counted string by string.
    let strings = whole.data_type() == DataType::Bytes;
    let mut lengths = whole.iter_strings().map(|string| string.len() + STRING_PREFIX);
    let in_row = trailing.iter().map(|extent| usize::try_from(*extent).unwrap_or(0)).product::<usize>();
    let mut at = 0;
    let part = |own: &usize| {
        let len = if strings { lengths.by_ref().take(own * in_row).sum() } else { own * row };
        let end = at + len;
        let data = whole.data().slice(at..end);
        at = end;
        let part = tensor(whole, i64::try_from(*own).ok()?, trailing, data)?;
        Some(part.part_of(whole.memory()))
    };
    rows.iter().map(part).collect()
}

fn tensor(like: &Tensor, rows: i64, trailing: &[i64], data: Bytes) -> Option<Tensor> {
    let shape = Shape::new([&[rows], trailing].concat()).ok()?;
    Tensor::new(like.data_type(), shape, data).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn int8(extents: &[i64], data: &[u8]) -> Tensor {
        let shape = Shape::new(extents).unwrap();
        Tensor::new(DataType::Int8, shape, Bytes::copy_from_slice(data)).unwrap()
    }

    #[test]
    fn strings_go_together_and_apart() {
        let strings =
            |extents: &[i64], all: &[&str]| Tensor::strings(Shape::new(extents).unwrap(), all).unwrap();
        let parts =
            [strings(&[1, 2], &["a", "bcd"]), strings(&[0, 2], &[]), strings(&[2, 2], &["", "e", "fg", ""])];
        let whole = join(parts.iter(), &Pool::default()).unwrap();
        assert_eq!(whole, strings(&[3, 2], &["a", "bcd", "", "e", "fg", ""]));
        assert_eq!(split(&whole, &[1, 0, 2]).unwrap(), parts);
        assert!(split(&whole, &[1, 1]).is_none());
    }

    #[test]
    fn rows_go_together_and_apart() {
        let parts = [
            int8(&[1, 2], &[1, 2]),
            int8(&[2, 2], &[3, 4, 5, 6]),
            int8(&[0, 2], &[]),
            int8(&[1, 2], &[7, 8]),
        ];
        let pool = Pool::default();
        let whole = join(parts.iter(), &pool).unwrap();
        assert_eq!(whole, int8(&[4, 2], &[1, 2, 3, 4, 5, 6, 7, 8]));
        let again = split(&whole, &[1, 2, 0, 1]).unwrap();
        assert_eq!(again, parts);
        assert_eq!(again[1].data().as_ptr(), whole.data()[2..].as_ptr(), "outputs are not copied");
        assert_eq!(split(&whole, &[1, 2]), None);
        assert_eq!(split(&whole, &[4, 1]), None);
        assert_eq!(split(&int8(&[], &[1]), &[1]), None);
    }

    #[test]
    fn memory_is_used_again_once_nobody_reads_it() {
        let pool = Pool::default();
        let part = int8(&[3, 3], &[1; 9]);
        let first = join([&part, &part].into_iter(), &pool).unwrap();
        let second = join([&part, &part].into_iter(), &pool).unwrap();
        let address = first.data().as_ptr();
        assert_ne!(address, second.data().as_ptr());
        let view = first.data().slice(3..);
        drop(first);
        assert_ne!(join([&part].into_iter(), &pool).unwrap().data().as_ptr(), address, "it is still read");
        drop(view);
        drop(second);
        let kept = pool.0.lock().unwrap().len();
        assert_eq!(kept, 3);
    }

    #[test]
    fn what_does_not_go_together_is_an_error() {
        let pool = Pool::default();
        assert!(join([&int8(&[1, 2], &[1, 2]), &int8(&[1, 1], &[3])].into_iter(), &pool).is_err());
        assert!(join([&int8(&[], &[1])].into_iter(), &pool).is_err());
        assert!(join([].into_iter(), &pool).is_err());
    }

    #[test]
    fn the_rows_of_a_call_are_those_of_all_its_inputs() {
        let (two, three) = (int8(&[2], &[1, 2]), int8(&[3, 1], &[1, 2, 3]));
        assert_eq!(of(&[two.clone(), two.clone()]), Some(2));
        assert_eq!(of(&[two.clone(), three]), None);
        assert_eq!(of(&[two, int8(&[], &[1])]), None);
        assert_eq!(of(&[]), None);
    }
}
