//! Tensors: a type, a shape, and bytes that are shared rather than copied.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

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
    /// Strings or byte strings of any length; named in metadata, not yet carried.
    Bytes,
}

impl DataType {
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

/// A dense, row-major, native-endian tensor in host memory. Cloning shares the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    data_type: DataType,
    shape: Shape,
    data: Bytes,
}

impl Tensor {
    /// Joins a type, a shape and the bytes of its elements.
    ///
    /// # Errors
    /// [`ShapeError::Length`] if the bytes are too many or too few, [`ShapeError::Unsized`] or [`ShapeError::Overflow`].
    pub fn new(data_type: DataType, shape: Shape, data: Bytes) -> Result<Self, ShapeError> {
        let expected = shape.bytes(data_type)?;
        if data.len() != expected {
            return Err(ShapeError::Length { expected, actual: data.len() });
        }
        Ok(Self { data_type, shape, data })
    }

    /// The type of the elements.
    pub fn data_type(&self) -> DataType {
        self.data_type
    }

    /// The extents.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The elements as bytes. They are aligned to the element only where they come from a [`crate::Buffer`].
    pub fn data(&self) -> &Bytes {
        &self.data
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
