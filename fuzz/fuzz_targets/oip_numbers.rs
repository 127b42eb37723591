//! Numbers in tensors: those that JSON has, and each the one that the standard library reads.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_backend::{DataType, ModelInfo, Tensor, TensorInfo};
use outrigger_fuzz::Input;
use outrigger_protocol::call::{Limits, NoRegions};
use outrigger_protocol::oip::{Request, parse_infer};

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let data_type = DataType::ALL[input.below(DataType::ALL.len() as u8)];
    // One value, whatever it is: nothing that ends it and begins another.
    let is_one = |text: &&str| !text.contains(|c: char| c.is_ascii_whitespace() || "[]{},:\"\\".contains(c));
    let Some(text) = input.text().filter(is_one) else { return };
    let read = read(data_type, text);
    let is_number = is_number(text);
    match data_type {
        DataType::Int8 => check(read, is_number, text, i8::from_ne_bytes, |i| i8::try_from(i).ok()),
        DataType::Int16 => check(read, is_number, text, i16::from_ne_bytes, |i| i16::try_from(i).ok()),
        DataType::Int32 => check(read, is_number, text, i32::from_ne_bytes, |i| i32::try_from(i).ok()),
        DataType::Int64 => check(read, is_number, text, i64::from_ne_bytes, |i| i64::try_from(i).ok()),
        DataType::Uint8 => check(read, is_number, text, u8::from_ne_bytes, |i| u8::try_from(i).ok()),
        DataType::Uint16 => check(read, is_number, text, u16::from_ne_bytes, |i| u16::try_from(i).ok()),
        DataType::Uint32 => check(read, is_number, text, u32::from_ne_bytes, |i| u32::try_from(i).ok()),
        DataType::Uint64 => check(read, is_number, text, u64::from_ne_bytes, |i| u64::try_from(i).ok()),
        DataType::Fp32 => {
            let wanted = text.parse::<f32>().ok().filter(|value| is_number && value.is_finite());
            let read = read.map(|tensor| f32::from_ne_bytes(bytes(&tensor)).to_bits());
            assert_eq!(read, wanted.map(f32::to_bits), "{text}");
        }
        DataType::Fp64 => {
            let wanted = text.parse::<f64>().ok().filter(|value| is_number && value.is_finite());
            let read = read.map(|tensor| f64::from_ne_bytes(bytes(&tensor)).to_bits());
            assert_eq!(read, wanted.map(f64::to_bits), "{text}");
        }
        DataType::Fp16 => half(read.map(|tensor| u16::from_ne_bytes(bytes(&tensor))), is_number, text, 10),
        DataType::Bf16 => half(read.map(|tensor| u16::from_ne_bytes(bytes(&tensor))), is_number, text, 7),
        DataType::Bool => assert_eq!(read.is_some(), matches!(text, "true" | "false"), "{text}"),
        _ => assert!(read.is_none()),
    }
});

/// The one number of a request.
fn read(data_type: DataType, text: &str) -> Option<Tensor> {
    let input = TensorInfo::new("x", data_type, &[(1, "")]);
    let model = ModelInfo { inputs: vec![input], outputs: Vec::new() };
    let name = data_type.name();
    let body = format!(r#"{{"inputs":[{{"name":"x","datatype":"{name}","shape":[1],"data":[{text}]}}]}}"#);
    let (body, limits) = (body.into(), Limits::default());
    Some(parse_infer(Request::json(&body), &model, &limits, &NoRegions).ok()?.inputs.remove(0))
}

/// JSON's grammar. Source: RFC 8259, section 6.
fn is_number(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let text = text.strip_prefix('-').unwrap_or(text);
    let (text, exponent) =
        text.split_once(['e', 'E']).map_or((text, None), |(text, rest)| (text, Some(rest)));
    let (whole, part) = text.split_once('.').map_or((text, None), |(whole, part)| (whole, Some(part)));
    let exponent = exponent.map(|text| text.strip_prefix(['+', '-']).unwrap_or(text));
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && part.is_none_or(digits)
        && exponent.is_none_or(digits)
}

fn bytes<const N: usize>(tensor: &Tensor) -> [u8; N] {
    tensor.data()[..].try_into().expect("one element")
}

fn check<const N: usize, T: PartialEq + std::fmt::Debug>(
    read: Option<Tensor>,
    is_number: bool,
    text: &str,
    from: fn([u8; N]) -> T,
    fits: impl Fn(i128) -> Option<T>,
) {
    // What is larger than this is larger than any type's.
    let wanted = text.parse::<i128>().ok().filter(|_| is_number).and_then(fits);
    assert_eq!(read.map(|tensor| from(bytes(&tensor))), wanted, "{text}");
}

/// Whether a number of 16 bits, with so many for its fraction, is as near as any other. More than 17 digits go through the nearest `f64`.
fn half(read: Option<u16>, is_number: bool, text: &str, fraction_bits: u32) {
    let value = text.parse::<f64>().ok().filter(|value| is_number && value.is_finite());
    let infinity = 0x7fff >> fraction_bits << fraction_bits;
    let value_of = |bits: u16| -> f64 {
        let (exponent, fraction) = (i32::from(bits >> fraction_bits), bits & ((1 << fraction_bits) - 1));
        let bias = (1 << (14 - fraction_bits)) - 1;
        let (hidden, exponent) = if exponent == 0 { (0, 1) } else { (1u32 << fraction_bits, exponent) };
        f64::from(hidden + u32::from(fraction)) * 2f64.powi(exponent - bias - fraction_bits as i32)
    };
    let Some(value) = value else {
        assert_eq!(read, None, "{text}");
        return;
    };
    let magnitude = value.abs();
    let Some(bits) = read else {
        // As far from the largest as from what would be next.
        let (last, before) = (value_of(infinity - 1), value_of(infinity - 2));
        assert!(magnitude >= last + (last - before) / 2.0, "{text}");
        return;
    };
    assert_eq!(bits >> 15 == 1, value.is_sign_negative(), "{text}");
    let bits = bits & 0x7fff;
    assert!(bits < infinity);
    let away = |bits: u16| (value_of(bits) - magnitude).abs();
    for other in [bits.saturating_sub(1), bits + 1] {
        let nearer = away(other) < away(bits) || away(other) == away(bits) && other != bits && other & 1 == 0;
        assert!(!nearer, "{text}: {bits:#x}, {other:#x}");
    }
}
