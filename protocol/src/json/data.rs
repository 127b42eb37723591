//! The `data` of a tensor: values from the text straight into the bytes of a buffer.

use outrigger_backend::{DataType, STRING_PREFIX};

use super::scan::{Fault, Scanner};

/// Reads integers of one type.
macro_rules! integer {
    ($type:ty) => {
        |scanner: &mut Scanner<'_>| {
            let bits = scanner.number()?.integer(<$type>::MIN as i64, <$type>::MAX as u64)?;
            Ok((bits as $type).to_ne_bytes())
        }
    };
}

/// How a value is written that has no extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scalar {
    /// In an array of one.
    Listed,
    /// By itself.
    Bare,
}

/// Fills `out`, the bytes of a tensor of `data_type` with these extents, from the array that follows: flat,
/// or nested as the extents say. No value too many and none too few. A number of a type with less precision becomes the nearest that
/// there is.
pub(crate) fn fill(
    scanner: &mut Scanner<'_>,
    data_type: DataType,
    extents: &[i64],
    out: &mut [u8],
    scalar: Scalar,
) -> Result<(), Fault> {
    match data_type {
        DataType::Bool => fill_with(scanner, extents, out, scalar, |s| Ok([u8::from(s.boolean()?)])),
        DataType::Uint8 => fill_with(scanner, extents, out, scalar, integer!(u8)),
        DataType::Uint16 => fill_with(scanner, extents, out, scalar, integer!(u16)),
        DataType::Uint32 => fill_with(scanner, extents, out, scalar, integer!(u32)),
        DataType::Uint64 => fill_with(scanner, extents, out, scalar, integer!(u64)),
        DataType::Int8 => fill_with(scanner, extents, out, scalar, integer!(i8)),
        DataType::Int16 => fill_with(scanner, extents, out, scalar, integer!(i16)),
        DataType::Int32 => fill_with(scanner, extents, out, scalar, integer!(i32)),
        DataType::Int64 => fill_with(scanner, extents, out, scalar, integer!(i64)),
        DataType::Fp32 => {
            fill_with(scanner, extents, out, scalar, |s| Ok(s.number()?.single()?.to_ne_bytes()))
        }
        DataType::Fp64 => {
            fill_with(scanner, extents, out, scalar, |s| Ok(s.number()?.double()?.to_ne_bytes()))
        }
        DataType::Fp16 => {
            fill_with(scanner, extents, out, scalar, |s| Ok(s.number()?.half(5)?.to_ne_bytes()))
        }
        DataType::Bf16 => {
            fill_with(scanner, extents, out, scalar, |s| Ok(s.number()?.half(8)?.to_ne_bytes()))
        }
        // Strings have no size: they are read by `strings`.
        _ => Err(Fault::Kind("a datatype with a size")),
    }
}

/// Reads an array of strings in the same way; each follows its length in the bytes. Nothing is kept beyond `limit` bytes.
pub(crate) fn strings(
    scanner: &mut Scanner<'_>,
    extents: &[i64],
    elements: usize,
    limit: usize,
) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    let mut left = elements;
    array(scanner, extents, elements, &mut |scanner| {
        left = left.checked_sub(1).ok_or(Fault::TooMany)?;
        let string = scanner.string()?;
        let length = u32::try_from(string.len()).map_err(|_| Fault::Memory)?;
        let more = STRING_PREFIX + string.len();
        if more > limit.saturating_sub(bytes.len()) || bytes.try_reserve(more).is_err() {
            return Err(Fault::Memory);
        }
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(string.as_bytes());
        Ok(())
    })?;
    Ok(bytes)
}

fn fill_with<const N: usize>(
    scanner: &mut Scanner<'_>,
    extents: &[i64],
    out: &mut [u8],
    scalar: Scalar,
    read: impl Fn(&mut Scanner<'_>) -> Result<[u8; N], Fault>,
) -> Result<(), Fault> {
    let (cells, _) = out.as_chunks_mut::<N>();
    let count = cells.len();
    let mut cells = cells.iter_mut();
    let mut take = |scanner: &mut Scanner<'_>| {
        let value = read(scanner)?;
        *cells.next().ok_or(Fault::TooMany)? = value;
        Ok(())
    };
    match scalar {
        Scalar::Bare if extents.is_empty() => take(scanner),
        _ => array(scanner, extents, count, &mut take),
    }
}

/// Has `take` read each value of an array with these extents.
pub(crate) fn each<'s>(
    scanner: &mut Scanner<'s>,
    extents: &[i64],
    scalar: Scalar,
    take: &mut impl FnMut(&mut Scanner<'s>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let count = extents.iter().fold(1, |count: usize, extent| count.saturating_mul(to_count(*extent)));
    match scalar {
        Scalar::Bare if extents.is_empty() => take(scanner),
        _ => array(scanner, extents, count, take),
    }
}

/// Reads an array of `count` values, of which `take` reads one.
fn array<'s>(
    scanner: &mut Scanner<'s>,
    extents: &[i64],
    count: usize,
    take: &mut impl FnMut(&mut Scanner<'s>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    scanner.open_array()?;
    if extents.len() > 1 && scanner.peek() == Some(b'[') {
        level(scanner, extents, take)
    } else {
        row(scanner, count, take)
    }
}

/// Reads the rest of an array whose opening bracket is taken: one item for each index of the outermost
/// extent. It calls itself once for each further extent, and a shape has few.
fn level<'s>(
    scanner: &mut Scanner<'s>,
    extents: &[i64],
    take: &mut impl FnMut(&mut Scanner<'s>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let (count, inner) = match extents {
        [] => return Err(Fault::TooMany),
        [extent] => return row(scanner, to_count(*extent), take),
        [extent, inner @ ..] => (to_count(*extent), inner),
    };
    for index in 0..count {
        if !scanner.item(index == 0)? {
            return Err(Fault::TooFew);
        }
        scanner.open_array()?;
        level(scanner, inner, take)?;
    }
    if scanner.item(count == 0)? { Err(scanner.too_many()) } else { Ok(()) }
}

/// Reads the rest of an array of `count` values whose opening bracket is taken.
#[inline]
fn row<'s>(
    scanner: &mut Scanner<'s>,
    count: usize,
    take: &mut impl FnMut(&mut Scanner<'s>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    for index in 0..count {
        if !scanner.item(index == 0)? {
            return Err(Fault::TooFew);
        }
        take(scanner)?;
    }
    if scanner.item(count == 0)? { Err(scanner.too_many()) } else { Ok(()) }
}

/// A `Shape` has no negative extent.
fn to_count(extent: i64) -> usize {
    usize::try_from(extent).unwrap_or(0)
}
