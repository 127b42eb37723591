//! Numbers: JSON's grammar and the value, in one pass over the digits.

use std::str::FromStr;

use outrigger_backend::DataType;

use super::scan::{Fault, Scanner};

/// A number as it stands in the text: `±mantissa × 10^exponent`.
pub(crate) struct Number<'a> {
    negative: bool,
    /// Of no use if there are more than [`MAX_DIGITS`] digits.
    mantissa: u64,
    digits: usize,
    exponent: i32,
    /// Without point and exponent.
    integer: bool,
    text: &'a [u8],
}

/// Any mantissa of so many decimal digits fits 64 bits.
const MAX_DIGITS: usize = 19;

/// Up to here every integer is an `f64`.
const MAX_EXACT_MANTISSA: u64 = 1 << 53;

/// The powers of ten that are an `f64` without rounding.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];

impl<'a> Scanner<'a> {
    /// Takes a number.
    #[inline]
    pub(crate) fn number(&mut self) -> Result<Number<'a>, Fault> {
        let first = self.peek();
        let text = self.rest();
        // Tensors are made of these: what is left is a slice, so that each byte is held against its end once.
        let mut left = text;
        let negative = first == Some(b'-');
        if let (true, [_, behind @ ..]) = (negative, left) {
            left = behind;
        }
        let mut mantissa = 0u64;
        let mut digits = match left {
            [b'0', behind @ ..] => {
                left = behind;
                1
            }
            [b'1'..=b'9', ..] => take_digits(&mut left, &mut mantissa),
            _ => return Err(self.no_number(negative, left)),
        };
        let (mut exponent, mut integer) = (0i32, true);
        if let [b'.', behind @ ..] = left {
            (left, integer) = (behind, false);
            let count = take_digits(&mut left, &mut mantissa);
            digits += count;
            exponent = i32::try_from(count).map_or(i32::MIN, |count| -count);
            if count == 0 {
                return Err(self.wrong_number(left));
            }
        }
        if let [b'e' | b'E', behind @ ..] = left {
            (left, integer) = (behind, false);
            match take_exponent(&mut left) {
                Some(more) => exponent = exponent.saturating_add(more),
                None => return Err(self.wrong_number(left)),
            }
        }
        self.leave(left);
        if let [b'0'..=b'9', ..] = left {
            return Err(Fault::Number); // a leading zero
        }
        let text = text.get(..text.len() - left.len()).unwrap_or_default();
        Ok(Number { negative, mantissa, digits, exponent, integer, text })
    }

    /// Why no number begins here.
    #[cold]
    fn no_number(&mut self, negative: bool, left: &[u8]) -> Fault {
        self.leave(left);
        match left {
            [b'I' | b'N', ..] => Fault::NotFinite,
            _ if negative => self.or_end(Fault::Number),
            _ => self.wrong_kind("a number"),
        }
    }

    /// A number has begun, and does not go on as one.
    #[cold]
    fn wrong_number(&mut self, left: &[u8]) -> Fault {
        self.leave(left);
        self.or_end(Fault::Number)
    }
}

/// Takes digits, appends them to `mantissa`, and says how many there were.
#[inline]
fn take_digits(left: &mut &[u8], mantissa: &mut u64) -> usize {
    let before = left.len();
    while let [digit @ b'0'..=b'9', behind @ ..] = *left {
        *mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        *left = behind;
    }
    before - left.len()
}

/// Takes what follows the `e` of a number.
fn take_exponent(left: &mut &[u8]) -> Option<i32> {
    let negative = matches!(*left, [b'-', ..]);
    if let [b'-' | b'+', behind @ ..] = *left {
        *left = behind;
    }
    let before = left.len();
    let mut value = 0i32;
    while let [digit @ b'0'..=b'9', behind @ ..] = *left {
        value = value.saturating_mul(10).saturating_add(i32::from(digit - b'0'));
        *left = behind;
    }
    (left.len() < before).then_some(if negative { -value } else { value })
}

impl Number<'_> {
    /// The integer, if it lies between `min` and `max`; a negative one as its two's complement, so that a
    /// cast to the narrower type gives the value.
    #[inline]
    pub(crate) fn integer(&self, min: i64, max: u64) -> Result<u64, Fault> {
        if !self.integer {
            return Err(Fault::Kind("an integer"));
        }
        let magnitude = if self.digits <= MAX_DIGITS {
            self.mantissa
        } else {
            // Twenty digits may still be a `u64`.
            self.parse::<i128>()
                .and_then(|value| u64::try_from(value.unsigned_abs()).ok())
                .ok_or(Fault::Range)?
        };
        let limit = if self.negative { min.unsigned_abs() } else { max };
        if magnitude > limit {
            return Err(Fault::Range);
        }
        Ok(if self.negative { magnitude.wrapping_neg() } else { magnitude })
    }

    /// The nearest `f64`.
    #[inline]
    pub(crate) fn double(&self) -> Result<f64, Fault> {
        let value = match self.short_double() {
            Some(value) => value,
            None => self.parse().ok_or(Fault::Number)?,
        };
        if value.is_finite() { Ok(value) } else { Err(Fault::Range) }
    }

    /// The nearest `f32`.
    ///
    /// Going through the nearest `f64` is right unless that one lies exactly between two `f32`: every border
    /// of rounding is an `f64`, and rounding to `f64` moves no number across one. All that come from the
    /// short way are far from `f32`'s smallest and largest.
    #[inline]
    pub(crate) fn single(&self) -> Result<f32, Fault> {
        /// The bits of an `f64` that an `f32` has no place for, and their value in the middle between two
        /// `f32`.
        const LOST: u64 = (1 << 29) - 1;
        const MIDDLE: u64 = 1 << 28;
        let value = match self.short_double() {
            Some(value) if value.to_bits() & LOST != MIDDLE => value as f32,
            _ => self.parse().ok_or(Fault::Number)?,
        };
        if value.is_finite() { Ok(value) } else { Err(Fault::Range) }
    }

    /// The bits of the nearest number of 16 bits with so many for its exponent, of equally near ones the even: 5 for FP16, 8 for BF16.
    ///
    /// It goes through the nearest `f64`, so a number of more than 17 digits just beside the middle between two can become the other.
    pub(crate) fn half(&self, exponent_bits: u32) -> Result<u16, Fault> {
        let (value, fraction_bits) = (self.double()?, 15 - exponent_bits);
        let bias = (1i32 << (exponent_bits - 1)) - 1;
        let magnitude = value.abs();
        // Below the smallest normal number all have its exponent. An `f64` that is not normal itself is far below.
        let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(1 - bias);
        // Exact: a division by a power of two, but for what is less than half of the smallest.
        let units = (magnitude / 2f64.powi(exponent - fraction_bits as i32)).round_ties_even() as u64;
        // A carry out of the fraction is one into the exponent, as it should be.
        let bits = (((exponent + bias - 1) as u64) << fraction_bits) + units;
        let infinity = ((1u64 << exponent_bits) - 1) << fraction_bits;
        if bits >= infinity {
            return Err(Fault::Range);
        }
        Ok(bits as u16 | if value.is_sign_negative() { 1 << 15 } else { 0 })
    }

    /// By the standard library, whatever it takes.
    #[cold]
    fn parse<T: FromStr>(&self) -> Option<T> {
        std::str::from_utf8(self.text).ok()?.parse().ok()
    }

    /// The nearest `f64`, where one multiplication or division of exact numbers gives it.
    ///
    /// Source: W. D. Clinger, *How to Read Floating Point Numbers Accurately* (1990), the fast path.
    #[inline]
    fn short_double(&self) -> Option<f64> {
        if self.digits > MAX_DIGITS || self.mantissa > MAX_EXACT_MANTISSA {
            return None;
        }
        let power = *POWERS.get(self.exponent.unsigned_abs() as usize)?;
        let mantissa = self.mantissa as f64;
        let value = if self.exponent < 0 { mantissa / power } else { mantissa * power };
        Some(if self.negative { -value } else { value })
    }
}

/// The upper half of a single is a single with zeros below.
pub(crate) fn brain_to_single(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_ne_bytes(bytes)) << 16)
}

/// A half as the single that is equal to it.
///
/// Source: IEEE 754-2019, section 3.4: sign, 5 bits of exponent with bias 15, 10 bits of fraction.
pub(crate) fn half_to_single(bytes: [u8; 2]) -> f32 {
    let bits = u16::from_ne_bytes(bytes);
    let (exponent, fraction) = (i32::from(bits >> 10) & 0x1f, u32::from(bits & 0x3ff));
    let magnitude = match exponent {
        // A multiple of the smallest that there is.
        0 => fraction as f32 * f32::from_bits((127 - 24) << 23),
        31 => f32::from_bits(0x7f80_0000 | fraction << 13),
        exponent => f32::from_bits(((exponent + 127 - 15) as u32) << 23 | fraction << 13),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

/// A value is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotFinite;

/// Appends one value of a type with a size, from its bytes.
pub(crate) fn write(body: &mut Vec<u8>, data_type: DataType, bytes: &[u8]) -> Result<(), NotFinite> {
    fn number<const N: usize, T: serde::Serialize>(body: &mut Vec<u8>, bytes: &[u8], read: fn([u8; N]) -> T) {
        let value = read(bytes.first_chunk().copied().unwrap_or([0; N]));
        // Numbers and booleans have a JSON form and memory takes any write: this does not fail.
        let _ = serde_json::to_writer(body, &value);
    }
    fn float<const N: usize>(
        body: &mut Vec<u8>,
        bytes: &[u8],
        read: fn([u8; N]) -> f32,
    ) -> Result<(), NotFinite> {
        let value = read(bytes.first_chunk().copied().unwrap_or([0; N]));
        let _ = serde_json::to_writer(body, &value);
        if value.is_finite() { Ok(()) } else { Err(NotFinite) }
    }
    match data_type {
        DataType::Bool => number(body, bytes, |[byte]: [u8; 1]| byte != 0),
        DataType::Uint8 => number(body, bytes, u8::from_ne_bytes),
        DataType::Int8 => number(body, bytes, i8::from_ne_bytes),
        DataType::Uint16 => number(body, bytes, u16::from_ne_bytes),
        DataType::Int16 => number(body, bytes, i16::from_ne_bytes),
        DataType::Uint32 => number(body, bytes, u32::from_ne_bytes),
        DataType::Int32 => number(body, bytes, i32::from_ne_bytes),
        DataType::Uint64 => number(body, bytes, u64::from_ne_bytes),
        DataType::Int64 => number(body, bytes, i64::from_ne_bytes),
        DataType::Fp16 => float(body, bytes, half_to_single)?,
        DataType::Bf16 => float(body, bytes, brain_to_single)?,
        DataType::Fp32 => float(body, bytes, f32::from_ne_bytes)?,
        DataType::Fp64 => {
            let value = f64::from_ne_bytes(bytes.first_chunk().copied().unwrap_or([0; 8]));
            let _ = serde_json::to_writer(body, &value);
            return if value.is_finite() { Ok(()) } else { Err(NotFinite) };
        }
        _ => {}
    }
    Ok(())
}
