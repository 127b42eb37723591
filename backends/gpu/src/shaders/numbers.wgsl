// Numbers bit by bit, as `number.rs` of the steps has them: FP32 is held as its bits, INT64 as its lower and upper half, so that no device
// rounds otherwise, takes subnormal numbers for 0 or loses the payload of a NaN.

const NAN = 0x7fc00000u;

fn is_finite(bits: u32) -> bool {
    return (bits & 0x7f800000u) != 0x7f800000u;
}

fn is_nan(bits: u32) -> bool {
    return (bits & 0x7fffffffu) > 0x7f800000u;
}

fn quiet(bits: u32) -> u32 {
    return bits | select(0u, 0x400000u, is_nan(bits));
}

fn half_to_single(half: u32) -> u32 {
    let sign = (half & 0x8000u) << 16u;
    let exponent = (half >> 10u) & 0x1fu;
    let fraction = half & 0x3ffu;
    if exponent == 0u {
        if fraction == 0u {
            return sign;
        }
        let leading = 31u - countLeadingZeros(fraction);
        return sign | ((leading + 103u) << 23u) | ((fraction << (23u - leading)) & 0x7fffffu);
    }
    if exponent == 31u {
        return quiet(sign | 0x7f800000u | (fraction << 13u));
    }
    return sign | ((exponent + 112u) << 23u) | (fraction << 13u);
}

fn single_to_half(bits: u32) -> u32 {
    let sign = (bits >> 16u) & 0x8000u;
    let size = bits & 0x7fffffffu;
    if size > 0x7f800000u {
        return sign | 0x7e00u | ((size >> 13u) & 0x3ffu);
    }
    if size >= 0x477ff000u {
        return sign | 0x7c00u;
    }
    if size >= 0x38800000u {
        return sign | ((size - 0x38000000u + 0xfffu + ((size >> 13u) & 1u)) >> 13u);
    }
    if size <= 0x33000000u {
        return sign;
    }
    let fraction = (size & 0x7fffffu) | 0x800000u;
    let shift = 126u - (size >> 23u);
    let whole = fraction >> shift;
    let rest = fraction & ((1u << shift) - 1u);
    let half = 1u << (shift - 1u);
    return sign | (whole + u32(rest > half || (rest == half && (whole & 1u) == 1u)));
}

fn single_to_bfloat(bits: u32) -> u32 {
    if is_nan(bits) {
        return (bits >> 16u) | 0x40u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

fn bfloat_to_single(bits: u32) -> u32 {
    return quiet(bits << 16u);
}

fn widen(value: i32) -> vec2<u32> {
    return vec2<u32>(bitcast<u32>(value), bitcast<u32>(value >> 31u));
}

fn negate(value: vec2<u32>) -> vec2<u32> {
    let low = ~value.x + 1u;
    return vec2<u32>(low, ~value.y + u32(low == 0u));
}

// To the nearest, halves to even.
fn int_to_single(value: vec2<u32>) -> u32 {
    if value.x == 0u && value.y == 0u {
        return 0u;
    }
    let sign = value.y & 0x80000000u;
    var size = value;
    if sign != 0u {
        size = negate(value);
    }
    var leading = 31u - countLeadingZeros(size.x);
    if size.y != 0u {
        leading = 63u - countLeadingZeros(size.y);
    }
    if leading <= 23u {
        return sign | ((leading + 127u) << 23u) | ((size.x << (23u - leading)) & 0x7fffffu);
    }
    // So many bits are cut off, of which the highest is the half. 1 to 40.
    let cut = leading - 23u;
    var fraction = 0u;
    if cut < 32u {
        fraction = (size.x >> cut) | (size.y << (32u - cut));
    } else {
        fraction = size.y >> (cut - 32u);
    }
    fraction &= 0xffffffu;
    let below = cut - 1u;
    var half = 0u;
    var rest = 0u;
    if below < 32u {
        half = (size.x >> below) & 1u;
        rest = size.x & ((1u << below) - 1u);
    } else {
        half = (size.y >> (below - 32u)) & 1u;
        rest = size.x | (size.y & ((1u << (below - 32u)) - 1u));
    }
    fraction += u32(half == 1u && (rest != 0u || (fraction & 1u) == 1u));
    // A carry out of the fraction belongs to the exponent, which is where it goes.
    return sign | (((leading + 126u) << 23u) + fraction);
}

// Towards 0; what does not fit becomes the nearest that does, NaN becomes 0.
fn single_to_int(bits: u32) -> vec2<u32> {
    if is_nan(bits) {
        return vec2<u32>(0u, 0u);
    }
    let is_negative = (bits >> 31u) == 1u;
    let exponent = i32((bits >> 23u) & 0xffu) - 127;
    if exponent < 0 {
        return vec2<u32>(0u, 0u);
    }
    if exponent >= 63 {
        if is_negative {
            return vec2<u32>(0u, 0x80000000u);
        }
        return vec2<u32>(0xffffffffu, 0x7fffffffu);
    }
    let fraction = (bits & 0x7fffffu) | 0x800000u;
    var size = vec2<u32>(0u, 0u);
    if exponent <= 23 {
        size.x = fraction >> u32(23 - exponent);
    } else {
        let shift = u32(exponent - 23);
        if shift < 32u {
            size = vec2<u32>(fraction << shift, fraction >> (32u - shift));
        } else {
            size.y = fraction << (shift - 32u);
        }
    }
    if is_negative {
        return negate(size);
    }
    return size;
}

fn narrow(value: vec2<u32>, least: i32, most: i32) -> u32 {
    let low = bitcast<i32>(value.x);
    if value.y == bitcast<u32>(low >> 31u) {
        return bitcast<u32>(clamp(low, least, most));
    }
    return bitcast<u32>(select(most, least, (value.y >> 31u) == 1u));
}

// A number whose order is that of FP32: -0 and +0 alike, all NaNs alike and above everything else.
fn order(bits: u32) -> u32 {
    if is_nan(bits) {
        return 0xffffffffu;
    }
    if (bits >> 31u) == 0u {
        return bits | 0x80000000u;
    }
    if bits == 0x80000000u {
        return bits;
    }
    return ~bits;
}

// e^x for x of at most 0; 0 below -87.
fn exponential(x: f32) -> f32 {
    if x < -87.0 {
        return 0.0;
    }
    let power = i32(x * 1.44269504 - 0.5);
    var rest = x - f32(power) * 0.693359375;
    rest = rest - f32(power) * -2.12194440e-4;
    var sum = 1.9875691e-4;
    sum = sum * rest + 1.3981999e-3;
    sum = sum * rest + 8.333452e-3;
    sum = sum * rest + 4.1665796e-2;
    sum = sum * rest + 1.6666665e-1;
    sum = sum * rest + 0.5;
    sum = sum * (rest * rest) + rest + 1.0;
    return sum * bitcast<f32>(u32(max(power, -126) + 127) << 23u);
}
