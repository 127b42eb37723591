//! Fields of frames: little-endian numbers, texts and lists behind their lengths. Reading checks everything and panics at nothing.

use outrigger_backend::{DataType, MAX_RANK, Shape, ShapeError};

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum WireError {
    #[error("a frame ends early")]
    Short,
    #[error("a frame goes on after its end")]
    Long,
    #[error("a frame of {length} bytes is over the limit of {limit}")]
    Length { length: usize, limit: usize },
    #[error("a text is not UTF-8")]
    Text,
    #[error("there is no {what} {number}")]
    Unknown { what: &'static str, number: u64 },
    #[error("a tensor of {actual} bytes was announced, its shape takes {expected}")]
    Size { expected: usize, actual: u64 },
    #[error("a number is too large")]
    Number,
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

type Result<T> = std::result::Result<T, WireError>;

/// Writes fields.
pub(crate) trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }
    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }
    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }
    fn put_i64(&mut self, value: i64) {
        self.put(&value.to_le_bytes());
    }
    fn put_size(&mut self, value: usize) {
        self.put_u64(value as u64);
    }
    /// The length of a list, whose elements are to follow. Longer ones than 2³² do not fit in any frame.
    fn put_count(&mut self, count: usize) {
        self.put_u32(u32::try_from(count).unwrap_or(u32::MAX));
    }
    fn put_bytes(&mut self, bytes: &[u8]) {
        self.put_count(bytes.len());
        self.put(bytes);
    }
    fn put_text(&mut self, text: &str) {
        self.put_bytes(text.as_bytes());
    }
    fn put_optional(&mut self, text: Option<&str>) {
        self.put_u8(u8::from(text.is_some()));
        self.put_text(text.unwrap_or_default());
    }
    fn put_extents(&mut self, extents: &[i64]) {
        // No shape has more than 32.
        self.put_u8(u8::try_from(extents.len()).unwrap_or(u8::MAX));
        extents.iter().for_each(|extent| self.put_i64(*extent));
    }
    fn put_type(&mut self, data_type: DataType) {
        let number = TYPES.iter().position(|known| *known == data_type).unwrap_or(TYPES.len());
        self.put_u8(number as u8);
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// By their numbers.
const TYPES: [DataType; 14] = [
    DataType::Bool,
    DataType::Uint8,
    DataType::Uint16,
    DataType::Uint32,
    DataType::Uint64,
    DataType::Int8,
    DataType::Int16,
    DataType::Int32,
    DataType::Int64,
    DataType::Fp16,
    DataType::Bf16,
    DataType::Fp32,
    DataType::Fp64,
    DataType::Bytes,
];

/// Reads fields, up to the end of a frame.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(WireError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(WireError::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_le_bytes)
    }
    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }
    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }
    pub(crate) fn i64(&mut self) -> Result<i64> {
        self.array().map(i64::from_le_bytes)
    }
    pub(crate) fn size(&mut self) -> Result<usize> {
        usize::try_from(self.u64()?).map_err(|_| WireError::Number)
    }
    pub(crate) fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            number => Err(WireError::Unknown { what: "flag", number: number.into() }),
        }
    }
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8]> {
        let len = self.u32()? as usize;
        self.take(len)
    }
    pub(crate) fn text(&mut self) -> Result<String> {
        let text = std::str::from_utf8(self.bytes()?).map_err(|_| WireError::Text)?;
        Ok(text.to_owned())
    }
    pub(crate) fn optional(&mut self) -> Result<Option<String>> {
        let there = self.flag()?;
        let text = self.text()?;
        Ok(there.then_some(text))
    }

    /// A list of what `element` reads. Each takes a byte at least, so a count that lies takes no memory.
    pub(crate) fn list<T>(&mut self, mut element: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let count = self.u32()? as usize;
        if count > self.0.len() {
            return Err(WireError::Short);
        }
        let mut list = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            list.push(element(self)?);
        }
        Ok(list)
    }

    pub(crate) fn extents(&mut self) -> Result<Vec<i64>> {
        let rank = usize::from(self.u8()?);
        if rank > MAX_RANK {
            return Err(ShapeError::Rank(rank).into());
        }
        (0..rank).map(|_| self.i64()).collect()
    }
    pub(crate) fn shape(&mut self) -> Result<Shape> {
        Ok(Shape::new(self.extents()?)?)
    }
    pub(crate) fn data_type(&mut self) -> Result<DataType> {
        let number = self.u8()?;
        let known = TYPES.get(usize::from(number)).copied();
        known.ok_or(WireError::Unknown { what: "element type", number: number.into() })
    }

    /// Nothing is left.
    pub(crate) fn end(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Long) }
    }
}
