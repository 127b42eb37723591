//! Numbers bit by bit: what every form of a step calculates alike.

/// FP16 as FP32, exactly. A NaN is quiet and keeps its payload.
pub fn from_half(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let (exponent, fraction) = (u32::from(half >> 10) & 0x1f, u32::from(half & 0x3ff));
    let bits = match (exponent, fraction) {
        (0, 0) => 0,
        // Subnormal: `fraction * 2^-24`, whose leading bit is implied in FP32.
        (0, _) => {
            let leading = 31 - fraction.leading_zeros();
            ((leading + 103) << 23) | ((fraction << (23 - leading)) & 0x7f_ffff)
        }
        (31, 0) => 0x7f80_0000,
        (31, _) => 0x7fc0_0000 | (fraction << 13),
        _ => ((exponent + 112) << 23) | (fraction << 13),
    };
    f32::from_bits(sign | bits)
}

/// FP32 as FP16: to the nearest, halves to even. A NaN is quiet and keeps the upper bits of its payload.
pub fn to_half(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let size = bits & 0x7fff_ffff;
    let half = if size > 0x7f80_0000 {
        0x7e00 | ((size >> 13) & 0x3ff)
    } else if size >= 0x477f_f000 {
        // 65520 and more: nearer to infinity than to 65504.
        0x7c00
    } else if size >= 0x3880_0000 {
        (size - 0x3800_0000 + 0xfff + ((size >> 13) & 1)) >> 13
    } else if size > 0x3300_0000 {
        // Below 2^-14: in steps of 2^-24.
        let fraction = (size & 0x7f_ffff) | 0x80_0000;
        let shift = 126 - (size >> 23);
        let (whole, rest, half) = (fraction >> shift, fraction & ((1 << shift) - 1), 1 << (shift - 1));
        whole + u32::from(rest > half || (rest == half && whole & 1 == 1))
    } else {
        0
    };
    (sign | half) as u16
}

/// BF16 as FP32, exactly. A NaN is quiet and keeps its payload.
pub fn from_bfloat(bfloat: u16) -> f32 {
    let bits = u32::from(bfloat) << 16;
    let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
    f32::from_bits(if is_nan { bits | 0x40_0000 } else { bits })
}

/// FP32 as BF16: to the nearest, halves to even. A NaN is quiet and keeps the upper bits of its payload.
pub fn to_bfloat(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// What lies between two numbers: `low + (high - low) * weight`, and `low * (1 - weight) + high * weight` where the difference may be over
/// FP32, so that what is finite stays finite. The weight is from 0 to 1.
pub fn between(low: f32, high: f32, weight: f32) -> f32 {
    // 2^127: of smaller ones the difference is at most the largest FP32.
    const LARGE: f32 = f32::from_bits(0x7f00_0000);
    if low.abs() >= LARGE || high.abs() >= LARGE {
        return low * (1. - weight) + high * weight;
    }
    low + (high - low) * weight
}

/// A number whose order is that of FP32: -0 and +0 alike, all NaNs alike and above everything else.
pub fn order(value: f32) -> u32 {
    if value.is_nan() {
        return u32::MAX;
    }
    let bits = value.to_bits();
    match bits >> 31 {
        0 => bits | 0x8000_0000,
        _ if bits == 0x8000_0000 => bits,
        _ => !bits,
    }
}

/// `e^x` for `x` of at most 0, within 3 ulp; 0 below -87, where the result would not be normal any more.
///
/// The range is reduced to half of ln 2 each way, and a polynomial of degree 7 does the rest.
///
/// Source: S. Moshier's Cephes library, `expf`.
pub fn exp(x: f32) -> f32 {
    // The upper part of ln 2 has few bits, so that its products are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let power = (x * std::f32::consts::LOG2_E - 0.5) as i32;
    let rest = x - power as f32 * LN2_HIGH;
    let rest = rest - power as f32 * LN2_LOW;
    let mut sum = 1.987_569_1e-4;
    for term in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        sum = sum * rest + term;
    }
    let sum = sum * (rest * rest) + rest + 1.;
    if x < -87. { 0. } else { sum * f32::from_bits(((power.max(-126) + 127) as u32) << 23) }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// Around every FP16 and BF16, and where they meet.
    fn awkward() -> impl Iterator<Item = f32> {
        (0..=u16::MAX).flat_map(|upper| {
            let lower = [0, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff];
            lower.map(|lower| f32::from_bits(u32::from(upper) << 16 | lower))
        })
    }

    #[test]
    fn halves_are_those_of_another_implementation() {
        for bits in 0..=u16::MAX {
            let (got, expected) = (from_half(bits), f16::from_bits(bits).to_f32());
            assert_eq!(got.to_bits(), expected.to_bits(), "{bits:04x}");
            // There and back, and of NaN quietly.
            assert_eq!(to_half(got), if got.is_nan() { bits | 0x200 } else { bits });
        }
        for value in awkward() {
            let (got, expected) = (to_half(value), f16::from_f32_const(value));
            assert!(got == expected.to_bits(), "{value:e}: {got:04x}, expected {:04x}", expected.to_bits());
        }
    }

    #[test]
    fn bfloats_are_those_of_another_implementation() {
        for value in awkward() {
            let (got, expected) = (to_bfloat(value), bf16::from_f32(value).to_bits());
            assert_eq!(got, expected, "{value:e}");
        }
        for bits in 0..=u16::MAX {
            let (got, expected) = (from_bfloat(bits), bf16::from_bits(bits).to_f32());
            assert_eq!(got.to_bits(), expected.to_bits(), "{bits:04x}");
        }
    }

    #[test]
    fn what_lies_between_finite_numbers_is_finite() {
        for (low, high) in
            [(f32::MIN, f32::MAX), (f32::MAX, f32::MIN), (f32::MAX, f32::MAX), (-1.8e38, 1.8e38)]
        {
            for weight in [0., 1e-10, 0.25, 0.5, 0.999_999_94] {
                let (got, expected) = (between(low, high, weight), {
                    let (low, high, weight) = (f64::from(low), f64::from(high), f64::from(weight));
                    low + (high - low) * weight
                });
                let tolerance = 4. * f64::from(f32::EPSILON) * f64::from(f32::MAX);
                assert!((f64::from(got) - expected).abs() <= tolerance, "{low:e} {high:e} {weight}: {got:e}");
            }
        }
        assert_eq!((between(7., 7., 0.3), between(2., 4., 0.25)), (7., 2.5));
        assert!(!between(f32::INFINITY, 1., 0.5).is_finite() && !between(1., f32::NAN, 0.5).is_finite());
    }

    #[test]
    fn order_is_that_of_numbers() {
        let rising = [f32::NEG_INFINITY, f32::MIN, -1., -f32::MIN_POSITIVE, -1e-40, 0., 1e-40, 1., f32::MAX];
        let rising: Vec<f32> = rising.into_iter().chain([f32::INFINITY, f32::NAN]).collect();
        assert!(rising.windows(2).all(|pair| order(pair[0]) < order(pair[1])), "{rising:?}");
        assert_eq!(order(-0.), order(0.));
        assert_eq!(order(-f32::NAN), order(f32::NAN));
    }

    #[test]
    fn exp_is_within_three_ulp() {
        let mut worst = 0f64;
        for step in 0..=8_700_000u32 {
            let x = -(step as f32) * 1e-5;
            let (got, expected) = (f64::from(exp(x)), f64::from(x).exp());
            worst = worst.max(((got - expected) / expected / f64::from(f32::EPSILON)).abs());
        }
        assert!(worst <= 3., "{worst} ulp");
        assert_eq!((exp(0.), exp(-0.), exp(-87.01), exp(f32::NEG_INFINITY)), (1., 1., 0., 0.));
        assert!(exp(f32::NAN).is_nan());
    }
}
