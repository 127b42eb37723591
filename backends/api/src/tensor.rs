//! Tensors: a type, a shape, and bytes that are shared rather than copied.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::DeviceMemory;

/// The most dimensions a tensor may have.
pub const MAX_RANK: usize = 32;

/// The type of one element. The serialised names are those of the Open Inference Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[non_exhaustive]
pub enum DataType {
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned, 8 bits.
    Uint8,
    /// Unsigned, 16 bits.
    Uint16,
    /// Unsigned, 32 bits.
    Uint32,
    /// Unsigned, 64 bits.
    Uint64,
    /// Signed, 8 bits.
    Int8,
    /// Signed, 16 bits.
    Int16,
    /// Signed, 32 bits.
    Int32,
    /// Signed, 64 bits.
    Int64,
    /// IEEE 754 half precision.
    Fp16,
    /// The upper half of an IEEE 754 single.
    Bf16,
    /// IEEE 754 single precision.
    Fp32,
    /// IEEE 754 double precision.
    Fp64,
    /// Strings or byte strings of any length.
    Bytes,
}

impl DataType {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// The reverse of [`DataType::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|data_type| data_type.name() == name)
    }

    /// The size of one element in bytes; `None` where elements differ in size.
    pub const fn size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }

    /// The name in the Open Inference Protocol, such as `FP32`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// DLPack's type code and bits for one element; `None` for [`DataType::Bytes`].
    ///
    /// Source: DLPack 1.x, `DLDataTypeCode` (int 0, uint 1, float 2, bfloat 4, bool 6).
    pub const fn dlpack(self) -> Option<(u8, u8)> {
        Some(match self {
            Self::Int8 => (0, 8),
            Self::Int16 => (0, 16),
            Self::Int32 => (0, 32),
            Self::Int64 => (0, 64),
            Self::Uint8 => (1, 8),
            Self::Uint16 => (1, 16),
            Self::Uint32 => (1, 32),
            Self::Uint64 => (1, 64),
            Self::Fp16 => (2, 16),
            Self::Fp32 => (2, 32),
            Self::Fp64 => (2, 64),
            Self::Bf16 => (4, 16),
            Self::Bool => (6, 8),
            Self::Bytes => return None,
        })
    }

    /// The reverse of [`DataType::dlpack`].
    pub const fn from_dlpack(code: u8, bits: u8) -> Option<Self> {
        Some(match (code, bits) {
            (0, 8) => Self::Int8,
            (0, 16) => Self::Int16,
            (0, 32) => Self::Int32,
            (0, 64) => Self::Int64,
            (1, 8) => Self::Uint8,
            (1, 16) => Self::Uint16,
            (1, 32) => Self::Uint32,
            (1, 64) => Self::Uint64,
            (2, 16) => Self::Fp16,
            (2, 32) => Self::Fp32,
            (2, 64) => Self::Fp64,
            (4, 16) => Self::Bf16,
            (6, 8) => Self::Bool,
            _ => return None,
        })
    }
}

impl std::fmt::Display for DataType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The extents of a tensor, outermost first. A value of this type has a rank of at most [`MAX_RANK`], no negative extent,
/// and a number of elements that fits `usize`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Shape(Vec<i64>);

/// Why extents are no shape, or bytes no tensor.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShapeError {
    /// More than [`MAX_RANK`] dimensions.
    #[error("rank {0} is over the limit of {MAX_RANK}")]
    Rank(usize),
    /// An extent below zero.
    #[error("extent {0} is negative")]
    Negative(i64),
    /// The product of the extents, or the bytes for them, overflows.
    #[error("the number of elements overflows")]
    Overflow,
    /// The bytes are not as many as type and shape ask for.
    #[error("{actual} bytes given, {expected} needed")]
    Length {
        /// Bytes that type and shape ask for.
        expected: usize,
        /// Bytes that were given.
        actual: usize,
    },
    /// The bytes are not as many strings as the shape has elements.
    #[error("the bytes are not {elements} strings, each after its length in 4 bytes")]
    Strings {
        /// How many there should be.
        elements: usize,
    },
    /// There is no memory for so many bytes.
    #[error("there is no memory for {0} bytes of strings")]
    Memory(usize),
    /// The element type has no fixed size.
    #[error("elements of type {0} have no fixed size")]
    Unsized(DataType),
}

impl Shape {
    /// Checks `extents`.
    ///
    /// # Errors
    /// [`ShapeError::Rank`], [`ShapeError::Negative`] or [`ShapeError::Overflow`].
    pub fn new(extents: impl Into<Vec<i64>>) -> Result<Self, ShapeError> {
        let extents = extents.into();
        if extents.len() > MAX_RANK {
            return Err(ShapeError::Rank(extents.len()));
        }
        let mut elements = 1usize;
        for &extent in &extents {
            let extent_size = usize::try_from(extent).map_err(|_| ShapeError::Negative(extent))?;
            elements = elements.checked_mul(extent_size).ok_or(ShapeError::Overflow)?;
        }
        Ok(Self(extents))
    }

    /// The extents, outermost first.
    pub fn extents(&self) -> &[i64] {
        &self.0
    }

    /// The number of elements; 1 for a scalar.
    pub fn elements(&self) -> usize {
        // `new` has checked that neither the casts nor the product lose anything.
        self.0.iter().map(|&extent| extent as usize).product()
    }

    /// The bytes that elements of `data_type` take.
    ///
    /// # Errors
    /// [`ShapeError::Unsized`] or [`ShapeError::Overflow`].
    pub fn bytes(&self, data_type: DataType) -> Result<usize, ShapeError> {
        let size = data_type.size().ok_or(ShapeError::Unsized(data_type))?;
        self.elements().checked_mul(size).ok_or(ShapeError::Overflow)
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A dense, row-major, native-endian tensor. Cloning shares the bytes.
///
/// The elements lie in host memory, or stay in a device's ([`Tensor::resident`]). Strings lie one after the other, each as its
/// length in bytes (32 bits, little-endian) and then its bytes: the raw form of the Open Inference Protocol.
#[derive(Clone, Debug)]
pub struct Tensor {
    data_type: DataType,
    shape: Shape,
    data: Bytes,
    resident: Option<DeviceMemory>,
    /// Bytes of the memory that `data` is a part of; 0 if it is all of it.
    whole: usize,
}

/// Bytes before each string of a tensor, which are its length.
pub const STRING_PREFIX: usize = 4;

impl Tensor {
    /// Joins a type, a shape and the bytes of its elements.
    ///
    /// # Errors
    /// [`ShapeError::Length`] if the bytes are too many or too few, [`ShapeError::Strings`] if they are not as many strings as the
    /// shape has elements, [`ShapeError::Overflow`].
    pub fn new(data_type: DataType, shape: Shape, data: Bytes) -> Result<Self, ShapeError> {
        if data_type == DataType::Bytes {
            check_strings(shape.elements(), &data)?;
        } else {
            let expected = shape.bytes(data_type)?;
            if data.len() != expected {
                return Err(ShapeError::Length { expected, actual: data.len() });
            }
        }
        Ok(Self { data_type, shape, data, resident: None, whole: 0 })
    }

    /// Strings in row-major order.
    ///
    /// # Errors
    /// [`ShapeError::Strings`] if they are not as many as the shape has elements, [`ShapeError::Overflow`] for one of 4 GiB and more,
    /// [`ShapeError::Memory`].
    pub fn strings<T: AsRef<[u8]>>(shape: Shape, strings: &[T]) -> Result<Self, ShapeError> {
        if strings.len() != shape.elements() {
            return Err(ShapeError::Strings { elements: shape.elements() });
        }
        // They may lie on top of each other, so that together they are more than there is memory.
        let bytes = strings
            .iter()
            .try_fold(0usize, |sum, string| {
                sum.checked_add(STRING_PREFIX)?.checked_add(string.as_ref().len())
            })
            .ok_or(ShapeError::Overflow)?;
        let mut data = Vec::new();
        data.try_reserve_exact(bytes).map_err(|_| ShapeError::Memory(bytes))?;
        for string in strings {
            let string = string.as_ref();
            let len = u32::try_from(string.len()).map_err(|_| ShapeError::Overflow)?;
            data.extend_from_slice(&len.to_le_bytes());
            data.extend_from_slice(string);
        }
        Ok(Self { data_type: DataType::Bytes, shape, data: data.into(), resident: None, whole: 0 })
    }

    /// A tensor whose elements stay in a device's memory.
    ///
    /// # Errors
    /// [`ShapeError::Length`] if the memory has not as many bytes as type and shape ask for, [`ShapeError::Unsized`] for strings.
    pub fn on_device(data_type: DataType, shape: Shape, memory: DeviceMemory) -> Result<Self, ShapeError> {
        let expected = shape.bytes(data_type)?;
        if memory.len() != expected {
            return Err(ShapeError::Length { expected, actual: memory.len() });
        }
        Ok(Self { data_type, shape, data: Bytes::new(), resident: Some(memory), whole: 0 })
    }

    /// The type of the elements.
    pub fn data_type(&self) -> DataType {
        self.data_type
    }

    /// The extents.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The elements as bytes; none where the tensor is [`Tensor::resident`]. They are aligned to the element only where they come
    /// from a [`crate::Buffer`].
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The device's memory that the elements lie in, if they are not in the host's.
    pub fn resident(&self) -> Option<&DeviceMemory> {
        self.resident.as_ref()
    }

    /// The same tensor, of which is known that its elements are a part of so many bytes, all of which it keeps.
    #[must_use]
    pub fn part_of(self, bytes: usize) -> Self {
        Self { whole: bytes, ..self }
    }

    /// The bytes that it keeps, wherever they are: those of its elements, or of more that they are a part of ([`Tensor::part_of`]).
    pub fn memory(&self) -> usize {
        let own = self.resident.as_ref().map_or(self.data.len(), DeviceMemory::len);
        own.max(self.whole)
    }

    /// Each string in turn; none of a tensor of another type.
    pub fn iter_strings(&self) -> impl Iterator<Item = &[u8]> {
        let all = if self.data_type == DataType::Bytes { &self.data[..] } else { &[] };
        Strings(all)
    }
}

/// Walks strings that follow each other, up to one that is cut short.
struct Strings<'a>(&'a [u8]);

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (prefix, rest) = self.0.split_first_chunk::<STRING_PREFIX>()?;
        let (string, rest) = rest.split_at_checked(u32::from_le_bytes(*prefix) as usize)?;
        self.0 = rest;
        Some(string)
    }
}

fn check_strings(elements: usize, data: &[u8]) -> Result<(), ShapeError> {
    // Before they are counted, for each takes a prefix at least.
    if elements > data.len() / STRING_PREFIX {
        return Err(ShapeError::Strings { elements });
    }
    let mut strings = Strings(data);
    let found = strings.by_ref().count();
    if found == elements && strings.0.is_empty() { Ok(()) } else { Err(ShapeError::Strings { elements }) }
}

impl Eq for Tensor {}

impl PartialEq for Tensor {
    /// Type, shape and bytes; a resident tensor is equal to its clones alone.
    fn eq(&self, other: &Self) -> bool {
        let same_place = match (&self.resident, &other.resident) {
            (None, None) => true,
            (Some(one), Some(other)) => {
                std::sync::Arc::ptr_eq(one.owner(), other.owner()) && one.address() == other.address()
            }
            _ => false,
        };
        same_place
            && self.data_type == other.data_type
            && self.shape == other.shape
            && self.data == other.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_from_outside_are_checked() {
        assert_eq!(Shape::new(vec![2, 3]).unwrap().elements(), 6);
        assert_eq!(Shape::new(vec![]).unwrap().elements(), 1);
        assert_eq!(Shape::new(vec![4, 0]).unwrap().elements(), 0);
        assert_eq!(Shape::new(vec![1, -1]), Err(ShapeError::Negative(-1)));
        assert_eq!(Shape::new(vec![i64::MAX, 3]), Err(ShapeError::Overflow));
        assert_eq!(Shape::new(vec![1; 33]), Err(ShapeError::Rank(33)));
        assert_eq!(Shape::new(vec![i64::MAX]).unwrap().bytes(DataType::Fp64), Err(ShapeError::Overflow));
    }

    #[test]
    fn a_tensor_has_exactly_the_bytes_of_its_shape() {
        let shape = Shape::new(vec![2, 2]).unwrap();
        assert!(Tensor::new(DataType::Fp32, shape.clone(), Bytes::from(vec![0; 16])).is_ok());
        assert_eq!(
            Tensor::new(DataType::Fp32, shape, Bytes::from(vec![0; 15])),
            Err(ShapeError::Length { expected: 16, actual: 15 })
        );
    }

    #[test]
    fn strings_are_as_many_as_the_shape_says() {
        let shape = |extent: i64| Shape::new([extent]).unwrap();
        let tensor = Tensor::strings(shape(3), &["a", "", "längér"]).unwrap();
        assert_eq!(tensor.iter_strings().collect::<Vec<_>>(), [&b"a"[..], b"", "längér".as_bytes()]);
        assert_eq!(Tensor::new(DataType::Bytes, shape(3), tensor.data().clone()).unwrap(), tensor);
        assert!(Tensor::strings(shape(0), &[""; 0]).unwrap().data().is_empty());
        let refused = |elements, data: &[u8]| {
            let data = Bytes::copy_from_slice(data);
            let error = Tensor::new(DataType::Bytes, shape(elements), data).unwrap_err();
            assert_eq!(error, ShapeError::Strings { elements: elements as usize });
        };
        refused(2, tensor.data());
        refused(4, tensor.data());
        refused(1, &[1, 0, 0, 0]);
        refused(1, &[0, 0, 0, 0, 9]);
        refused(1, &[255, 255, 255, 255, 1]);
        refused(i64::MAX, &[0, 0, 0, 0]);
        assert_eq!(Tensor::strings(shape(2), &["a"]), Err(ShapeError::Strings { elements: 2 }));
    }

    #[test]
    fn dlpack_codes_go_both_ways() {
        use DataType::*;
        for data_type in
            [Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Bf16, Fp32, Fp64]
        {
            let (code, bits) = data_type.dlpack().unwrap();
            assert_eq!(DataType::from_dlpack(code, bits), Some(data_type));
        }
        assert_eq!(Bytes.dlpack(), None);
    }
}
