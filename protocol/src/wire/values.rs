//! The values of a tensor that are in a field of their type, one by one or packed, read into the memory that a model reads.

use std::ops::Range;

use bytes::Bytes;
use outrigger_backend::{DataType, STRING_PREFIX, Shape};

use super::{Fields, Value};
use crate::call::fit::invalid;
use crate::call::inputs::{Inputs, Place};
use crate::error::CallError;

/// How the values of a field are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Varint,
    /// 16 bits in a varint, which may have been a signed number.
    Bits16,
    Fixed32,
    Fixed64,
    Strings,
}

/// Where the values of a tensor are.
pub(crate) struct Values<'a> {
    pub(crate) message: &'a Bytes,
    /// The message within it that has them.
    pub(crate) range: Range<usize>,
    /// The number of their field.
    pub(crate) field: u64,
    pub(crate) kind: Kind,
    /// Fields that are no values.
    pub(crate) skip: fn(u64) -> bool,
}

impl Values<'_> {
    /// Reads them: as many as the shape has elements.
    pub(crate) fn read(self, inputs: &mut Inputs<'_>, place: Place<'_>) -> Result<(), CallError> {
        // Each element takes a byte at least.
        if place.shape.elements() > self.range.len() {
            return Err(wrong_count(&place.info.name, &place.shape));
        }
        if self.kind == Kind::Strings { self.strings(inputs, place) } else { self.numbers(inputs, place) }
    }

    fn numbers(self, inputs: &mut Inputs<'_>, place: Place<'_>) -> Result<(), CallError> {
        let (name, data_type) = (&place.info.name, place.info.data_type);
        let mut buffer = inputs.buffer(&place)?;
        let size = data_type.size().unwrap_or(1);
        let mut cells = buffer.chunks_exact_mut(size);
        let mut put = |number: u64| -> Result<(), CallError> {
            let cell = cells.next().ok_or_else(|| wrong_count(name, &place.shape))?;
            let bytes = number.to_le_bytes();
            let (kept, cut) = bytes.split_at_checked(size).unwrap_or((&bytes, &[]));
            let fits = match self.kind {
                Kind::Varint => is_extension(kept, cut, data_type),
                Kind::Bits16 => cut.iter().all(|byte| *byte == 0) || cut.iter().all(|byte| *byte == 0xff),
                _ => true,
            };
            if !fits {
                return Err(invalid(name, format!("a value is out of the range of {data_type}")));
            }
            cell.copy_from_slice(kept);
            Ok(())
        };
        let mut fields = Fields::within(self.message, self.range);
        while let Some((number, value)) = fields.next()? {
            if number == self.field {
                each_number(self.message, self.kind, value, &mut put)?;
            } else if !(self.skip)(number) {
                return Err(invalid(name, format!("its `contents` are not those of {data_type}")));
            }
        }
        if cells.next().is_some() {
            return Err(wrong_count(name, &place.shape));
        }
        inputs.put(place, buffer.freeze())
    }

    fn strings(self, inputs: &mut Inputs<'_>, place: Place<'_>) -> Result<(), CallError> {
        let name = &place.info.name;
        let mut data = Vec::new();
        let mut count = 0;
        let mut fields = Fields::within(self.message, self.range);
        while let Some((number, value)) = fields.next()? {
            if number != self.field {
                if (self.skip)(number) {
                    continue;
                }
                return Err(invalid(name, "its `contents` are not those of BYTES"));
            }
            let string = self.message.get(value.bytes()?).unwrap_or_default();
            let length = u32::try_from(string.len()).map_err(|_| invalid(name, "a string is too long"))?;
            let more = STRING_PREFIX + string.len();
            if more > inputs.left().saturating_sub(data.len()) || data.try_reserve(more).is_err() {
                return inputs.reserve(&place, usize::MAX);
            }
            data.extend_from_slice(&length.to_le_bytes());
            data.extend_from_slice(string);
            count += 1;
        }
        if count != place.shape.elements() {
            return Err(wrong_count(name, &place.shape));
        }
        inputs.put_raw(place, Bytes::from(data))
    }
}

fn wrong_count(name: &str, shape: &Shape) -> CallError {
    let elements = shape.elements();
    invalid(name, format!("its `contents` have more or fewer values than shape {shape}, {elements}"))
}

/// Whether the bytes that are cut off a number say nothing.
fn is_extension(kept: &[u8], cut: &[u8], data_type: DataType) -> bool {
    let negative = kept.last().is_some_and(|byte| *byte >= 0x80);
    match data_type {
        DataType::Bool => kept.first().is_some_and(|byte| *byte <= 1) && cut.iter().all(|byte| *byte == 0),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
            let fill = if negative { 0xff } else { 0 };
            cut.iter().all(|byte| *byte == fill)
        }
        _ => cut.iter().all(|byte| *byte == 0),
    }
}

/// The numbers of a field, one or packed; floating-point ones as their bits.
fn each_number(
    message: &[u8],
    kind: Kind,
    value: Value,
    put: &mut impl FnMut(u64) -> Result<(), CallError>,
) -> Result<(), CallError> {
    match (kind, value) {
        (Kind::Varint | Kind::Bits16, Value::Varint(number)) | (Kind::Fixed64, Value::Fixed64(number)) => {
            put(number)
        }
        (Kind::Fixed32, Value::Fixed32(number)) => put(u64::from(number)),
        (kind, value) => {
            let mut packed = Fields::within(message, value.bytes()?);
            while !packed.is_empty() {
                put(match kind {
                    Kind::Varint | Kind::Bits16 => packed.varint()?,
                    Kind::Fixed32 => u64::from(u32::from_le_bytes(packed.array()?)),
                    _ => u64::from_le_bytes(packed.array()?),
                })?;
            }
            Ok(())
        }
    }
}
