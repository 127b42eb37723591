//! Protocol Buffers' wire format, read where it lies: no message is built, so what it takes is decided before memory is taken.
//!
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

pub(crate) mod values;

use std::ops::Range;

use crate::error::{CallError, ErrorCode};

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Varint(u64),
    Fixed64(u64),
    /// Where the bytes are, counted from the front of the whole message.
    Bytes(Range<usize>),
    Fixed32(u32),
}

impl Value {
    pub(crate) fn bytes(self) -> Result<Range<usize>, CallError> {
        match self {
            Self::Bytes(range) => Ok(range),
            _ => Err(malformed("a field has another type than the message's")),
        }
    }
}

/// Goes through the fields of a message, or of one within it.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    /// The whole message.
    whole: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Fields<'a> {
    pub(crate) fn of(whole: &'a [u8]) -> Self {
        Self { whole, at: 0, end: whole.len() }
    }

    /// The fields of a message that lies there within the same one.
    pub(crate) fn within(whole: &'a [u8], range: Range<usize>) -> Self {
        Self { whole, at: range.start, end: range.end.min(whole.len()) }
    }

    /// Whether there is no more.
    pub(crate) fn is_empty(&self) -> bool {
        self.at >= self.end
    }

    /// The bytes that are left.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.whole.get(self.at..self.end).unwrap_or_default()
    }

    /// The next field's number and value.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Value)>, CallError> {
        if self.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(malformed("a field has a wire type that is not used")),
        };
        match key >> 3 {
            0 => Err(malformed("a field has the number 0")),
            number => Ok(Some((number, value))),
        }
    }

    /// A number of up to ten bytes, the lowest seven bits first.
    pub(crate) fn varint(&mut self) -> Result<u64, CallError> {
        let mut number = 0u64;
        for (index, &byte) in self.rest().iter().take(10).enumerate() {
            // The tenth byte has room for one bit.
            if index == 9 && byte > 1 {
                break;
            }
            number |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.at += index + 1;
                return Ok(number);
            }
        }
        Err(malformed("a number is too long or cut short"))
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], CallError> {
        let range = self.take(N)?;
        let bytes = self.whole.get(range).and_then(|bytes| bytes.first_chunk::<N>());
        bytes.copied().ok_or_else(|| malformed("a field is cut short"))
    }

    fn take(&mut self, length: usize) -> Result<Range<usize>, CallError> {
        if length > self.end.saturating_sub(self.at) {
            return Err(malformed("a field is cut short"));
        }
        let start = self.at;
        self.at += length;
        Ok(start..self.at)
    }
}

/// A text, which must be UTF-8.
pub(crate) fn text(whole: &[u8], range: Range<usize>) -> Result<&str, CallError> {
    let bytes = whole.get(range).unwrap_or_default();
    std::str::from_utf8(bytes).map_err(|_| malformed("a text is not UTF-8"))
}

#[cold]
pub(crate) fn malformed(what: &str) -> CallError {
    CallError::new(ErrorCode::BadRequest, format!("malformed message: {what}"))
}

/// Appends a number.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends the key of a field whose value has a length, and the length.
pub(crate) fn put_head(out: &mut Vec<u8>, field: u32, length: usize) {
    put_varint(out, u64::from(field) << 3 | 2);
    put_varint(out, length as u64);
}

/// Appends a field that is bytes or a message; an empty one is left out, as the format has it.
pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_head(out, field, bytes.len());
        out.extend_from_slice(bytes);
    }
}
