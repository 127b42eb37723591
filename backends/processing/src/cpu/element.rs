//! Elements of each type, read and written one by one; loops over them are compiled for each type.

use crate::number::{from_bfloat, from_half, to_bfloat, to_half};

/// An element type.
pub(super) trait Element {
    const SIZE: usize;
    type Wide: Wide;
    /// Of exactly [`Element::SIZE`] bytes.
    fn read(bytes: &[u8]) -> Self::Wide;
    fn write_float(value: f32, bytes: &mut [u8]);
    fn write_int(value: i64, bytes: &mut [u8]);
}

/// What elements are calculated in.
pub(super) trait Wide: Copy {
    fn float(self) -> f32;
    fn write<E: Element>(self, bytes: &mut [u8]);
}

impl Wide for f32 {
    fn float(self) -> f32 {
        self
    }

    fn write<E: Element>(self, bytes: &mut [u8]) {
        E::write_float(self, bytes);
    }
}

impl Wide for i64 {
    fn float(self) -> f32 {
        self as f32
    }

    fn write<E: Element>(self, bytes: &mut [u8]) {
        E::write_int(self, bytes);
    }
}

/// The bytes of an element, of which there are as many as the loop has cut off.
fn take<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}

macro_rules! integer {
    ($name:ident) => {
        impl Element for $name {
            const SIZE: usize = size_of::<$name>();
            type Wide = i64;

            fn read(bytes: &[u8]) -> i64 {
                i64::from($name::from_ne_bytes(take(bytes)))
            }

            fn write_float(value: f32, bytes: &mut [u8]) {
                // Towards 0, what does not fit to the nearest that does, NaN to 0: as `as` is defined.
                bytes.copy_from_slice(&(value as $name).to_ne_bytes());
            }

            fn write_int(value: i64, bytes: &mut [u8]) {
                let value = value.clamp(i64::from($name::MIN), i64::from($name::MAX)) as $name;
                bytes.copy_from_slice(&value.to_ne_bytes());
            }
        }
    };
}

macro_rules! float {
    ($name:ident, $bits:ident, $from:expr, $to:expr) => {
        pub(super) struct $name;

        impl Element for $name {
            const SIZE: usize = size_of::<$bits>();
            type Wide = f32;

            fn read(bytes: &[u8]) -> f32 {
                $from($bits::from_ne_bytes(take(bytes)))
            }

            fn write_float(value: f32, bytes: &mut [u8]) {
                bytes.copy_from_slice(&$bits::to_ne_bytes($to(value)));
            }

            fn write_int(value: i64, bytes: &mut [u8]) {
                Self::write_float(value as f32, bytes);
            }
        }
    };
}

integer!(u8);
integer!(i8);
integer!(i32);
integer!(i64);
float!(Half, u16, from_half, to_half);
float!(Bfloat, u16, from_bfloat, to_bfloat);
float!(Single, u32, f32::from_bits, f32::to_bits);

/// Runs `$body` with `$element` as the type that the data type means. The plan has let no other types come here.
macro_rules! with_element {
    ($data_type:expr, $element:ident => $body:expr) => {
        match $data_type {
            outrigger_backend::DataType::Uint8 => {
                type $element = u8;
                $body
            }
            outrigger_backend::DataType::Int8 => {
                type $element = i8;
                $body
            }
            outrigger_backend::DataType::Int32 => {
                type $element = i32;
                $body
            }
            outrigger_backend::DataType::Int64 => {
                type $element = i64;
                $body
            }
            outrigger_backend::DataType::Fp16 => {
                type $element = crate::cpu::element::Half;
                $body
            }
            outrigger_backend::DataType::Bf16 => {
                type $element = crate::cpu::element::Bfloat;
                $body
            }
            _ => {
                type $element = crate::cpu::element::Single;
                $body
            }
        }
    };
}
pub(super) use with_element;
