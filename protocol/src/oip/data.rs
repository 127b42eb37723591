//! The `data` of a tensor: values from the text straight into the bytes of a buffer.

use outrigger_backend::DataType;

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

/// Fills `out`, the bytes of a tensor of `data_type` with these extents, from the array that follows: flat,
/// or nested as the extents say. No value too many and none too few.
pub(super) fn fill(
    scanner: &mut Scanner<'_>,
    data_type: DataType,
    extents: &[i64],
    out: &mut [u8],
) -> Result<(), Fault> {
    match data_type {
        DataType::Bool => fill_with(scanner, extents, out, boolean),
        DataType::Uint8 => fill_with(scanner, extents, out, integer!(u8)),
        DataType::Uint16 => fill_with(scanner, extents, out, integer!(u16)),
        DataType::Uint32 => fill_with(scanner, extents, out, integer!(u32)),
        DataType::Uint64 => fill_with(scanner, extents, out, integer!(u64)),
        DataType::Int8 => fill_with(scanner, extents, out, integer!(i8)),
        DataType::Int16 => fill_with(scanner, extents, out, integer!(i16)),
        DataType::Int32 => fill_with(scanner, extents, out, integer!(i32)),
        DataType::Int64 => fill_with(scanner, extents, out, integer!(i64)),
        DataType::Fp32 => fill_with(scanner, extents, out, |s| Ok(s.number()?.single()?.to_ne_bytes())),
        DataType::Fp64 => fill_with(scanner, extents, out, |s| Ok(s.number()?.double()?.to_ne_bytes())),
        DataType::Fp16 => fill_with(scanner, extents, out, |s| Ok(s.number()?.half(5)?.to_ne_bytes())),
        DataType::Bf16 => fill_with(scanner, extents, out, |s| Ok(s.number()?.half(8)?.to_ne_bytes())),
        // `carried` is asked before.
        _ => Err(Fault::Kind("a datatype that JSON carries")),
    }
}

/// Whether this type is carried; `halves`: with FP16 and BF16.
pub(super) fn carried(data_type: DataType, halves: bool) -> bool {
    use DataType::*;
    match data_type {
        Bool | Uint8 | Uint16 | Uint32 | Uint64 | Int8 | Int16 | Int32 | Int64 | Fp32 | Fp64 => true,
        Fp16 | Bf16 => halves,
        _ => false,
    }
}

fn boolean(scanner: &mut Scanner<'_>) -> Result<[u8; 1], Fault> {
    let _ = scanner.peek();
    if scanner.take_word("true") {
        Ok([1])
    } else if scanner.take_word("false") {
        Ok([0])
    } else {
        Err(scanner.wrong_kind("true or false"))
    }
}

fn fill_with<const N: usize>(
    scanner: &mut Scanner<'_>,
    extents: &[i64],
    out: &mut [u8],
    read: impl Fn(&mut Scanner<'_>) -> Result<[u8; N], Fault>,
) -> Result<(), Fault> {
    let (cells, _) = out.as_chunks_mut::<N>();
    let count = cells.len();
    let mut cells = cells.iter_mut();
    scanner.open_array()?;
    if extents.len() > 1 && scanner.peek() == Some(b'[') {
        level(scanner, extents, &mut cells, &read)
    } else {
        row(scanner, count, &mut cells, &read)
    }
}

/// Reads the rest of an array whose opening bracket is taken: one item for each index of the outermost
/// extent. It calls itself once for each further extent, and a shape has few.
fn level<'o, const N: usize>(
    scanner: &mut Scanner<'_>,
    extents: &[i64],
    cells: &mut impl Iterator<Item = &'o mut [u8; N]>,
    read: &impl Fn(&mut Scanner<'_>) -> Result<[u8; N], Fault>,
) -> Result<(), Fault> {
    let (count, inner) = match extents {
        [] => return Err(Fault::TooMany),
        [extent] => return row(scanner, to_count(*extent), cells, read),
        [extent, inner @ ..] => (to_count(*extent), inner),
    };
    for index in 0..count {
        if !scanner.item(index == 0)? {
            return Err(Fault::TooFew);
        }
        scanner.open_array()?;
        level(scanner, inner, cells, read)?;
    }
    if scanner.item(count == 0)? { Err(Fault::TooMany) } else { Ok(()) }
}

/// Reads the rest of an array of `count` values whose opening bracket is taken.
#[inline]
fn row<'o, const N: usize>(
    scanner: &mut Scanner<'_>,
    count: usize,
    cells: &mut impl Iterator<Item = &'o mut [u8; N]>,
    read: &impl Fn(&mut Scanner<'_>) -> Result<[u8; N], Fault>,
) -> Result<(), Fault> {
    for index in 0..count {
        if !scanner.item(index == 0)? {
            return Err(Fault::TooFew);
        }
        let value = read(scanner)?;
        *cells.next().ok_or(Fault::TooMany)? = value;
    }
    if scanner.item(count == 0)? { Err(Fault::TooMany) } else { Ok(()) }
}

/// A `Shape` has no negative extent.
fn to_count(extent: i64) -> usize {
    usize::try_from(extent).unwrap_or(0)
}
