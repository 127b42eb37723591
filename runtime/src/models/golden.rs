//! Golden outputs: the body of an answer in a file, and whether tensors are what it says.

use std::path::Path;

use outrigger_backend::{DataType, ModelInfo, Tensor, TensorInfo};
use outrigger_protocol::call::{Limits, NoRegions};
use outrigger_protocol::oip;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::manifest;
use crate::config::LimitsConfig;

/// The body of an answer, as far as it counts here. Its numbers are read where they are, for there may be many.
#[derive(Deserialize)]
struct Golden<'a> {
    #[serde(borrow)]
    outputs: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// The outputs in the body of an answer. Such a body has them as that of a request has its inputs, so they are read as those.
pub(super) fn read(
    path: &Path,
    info: &ModelInfo,
    limits: &LimitsConfig,
    tensors: &Limits,
) -> Result<Vec<(String, Tensor)>, String> {
    let body = manifest::read_file(path, limits.answer as u64)?;
    let body: Golden<'_> = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    let outputs = body.outputs.ok_or("has no `outputs`")?.get();
    let names: Vec<Named> = serde_json::from_str(outputs).map_err(|error| format!("`outputs`: {error}"))?;
    if let Some(Named { name }) =
        names.iter().find(|named| info.outputs.iter().all(|output| output.name != named.name))
    {
        return Err(format!("the model has no output `{name}`"));
    }
    let named = |output: &&TensorInfo| names.iter().any(|named| named.name == output.name);
    let inputs: Vec<_> = info.outputs.iter().filter(named).cloned().collect();
    if inputs.is_empty() {
        return Err("has no output".into());
    }
    let order: Vec<String> = inputs.iter().map(|output| output.name.clone()).collect();
    let as_request = format!("{{\"inputs\":{outputs}}}").into();
    let info = ModelInfo { inputs, outputs: Vec::new() };
    let request = oip::Request::json(&as_request);
    let call = oip::parse_infer(request, &info, tensors, &NoRegions).map_err(|error| {
        // In its words these are inputs.
        error.message.replace("input", "output")
    })?;
    Ok(order.into_iter().zip(call.inputs).collect())
}

/// Relative and absolute tolerance where nobody says: what implementations of one operator differ by, not what a wrong weight does.
fn tolerance(data_type: DataType) -> (f64, f64) {
    match data_type {
        DataType::Fp64 => (1e-9, 1e-12),
        DataType::Fp32 => (1e-4, 1e-6),
        DataType::Fp16 => (1e-2, 1e-3),
        DataType::Bf16 => (5e-2, 1e-2),
        _ => (0.0, 0.0),
    }
}

/// Whether an output is what it must be, within a relative and an absolute tolerance: those of its type where they are not said.
///
/// # Errors
/// The first difference.
pub(super) fn compare(
    name: &str,
    got: &Tensor,
    want: &Tensor,
    (rtol, atol): (Option<f64>, Option<f64>),
) -> Result<(), String> {
    if got.data_type() != want.data_type() || got.shape() != want.shape() {
        return Err(format!(
            "output `{name}` is {} {}, expected {} {}",
            got.data_type(),
            got.shape(),
            want.data_type(),
            want.shape()
        ));
    }
    let data_type = got.data_type();
    let Some(size) = data_type.size() else {
        let differ = got.iter_strings().zip(want.iter_strings()).position(|(got, want)| got != want);
        return differ.map_or(Ok(()), |at| {
            Err(format!("output `{name}` at index {at} is another text than expected"))
        });
    };
    let usual = tolerance(data_type);
    let (rtol, atol) = (rtol.unwrap_or(usual.0), atol.unwrap_or(usual.1));
    let pairs = got.data().chunks_exact(size).zip(want.data().chunks_exact(size));
    for (at, (got, want)) in pairs.enumerate() {
        if got == want {
            continue;
        }
        let close = match (float(data_type, got), float(data_type, want)) {
            // Integers are the same unless a tolerance is asked for.
            (Some(got), Some(want)) => {
                (rtol > 0.0 || atol > 0.0) && (got - want).abs() <= atol + rtol * want.abs()
            }
            _ => false,
        };
        if !close {
            let (got, want) = (value(data_type, got), value(data_type, want));
            return Err(format!("output `{name}` at index {at} is {got}, expected {want}"));
        }
    }
    Ok(())
}

/// A value as a number to which a tolerance applies.
fn float(data_type: DataType, bytes: &[u8]) -> Option<f64> {
    Some(match data_type {
        DataType::Fp64 => f64::from_ne_bytes(bytes.try_into().ok()?),
        DataType::Fp32 => f64::from(f32::from_ne_bytes(bytes.try_into().ok()?)),
        DataType::Fp16 => half(bytes, 5)?,
        DataType::Bf16 => half(bytes, 8)?,
        DataType::Int8 => f64::from(i8::from_ne_bytes(bytes.try_into().ok()?)),
        DataType::Int16 => f64::from(i16::from_ne_bytes(bytes.try_into().ok()?)),
        DataType::Int32 => f64::from(i32::from_ne_bytes(bytes.try_into().ok()?)),
        DataType::Uint8 => f64::from(u8::from_ne_bytes(bytes.try_into().ok()?)),
        DataType::Uint16 => f64::from(u16::from_ne_bytes(bytes.try_into().ok()?)),
        DataType::Uint32 => f64::from(u32::from_ne_bytes(bytes.try_into().ok()?)),
        // Above 2^53 neighbours become equal; a tolerance there is larger than that.
        DataType::Int64 => i64::from_ne_bytes(bytes.try_into().ok()?) as f64,
        DataType::Uint64 => u64::from_ne_bytes(bytes.try_into().ok()?) as f64,
        _ => return None,
    })
}

/// The value of a number of 16 bits with so many for its exponent.
fn half(bytes: &[u8], exponent_bits: u32) -> Option<f64> {
    let bits = u16::from_ne_bytes(bytes.try_into().ok()?);
    let fraction_bits = 15 - exponent_bits;
    let (exponent, fraction) =
        (i32::from((bits & 0x7fff) >> fraction_bits), bits & ((1 << fraction_bits) - 1));
    let unit = |exponent: i32| 2f64.powi(exponent - (1 << (exponent_bits - 1)) + 1 - fraction_bits as i32);
    let magnitude = match exponent {
        0 => f64::from(fraction) * unit(1),
        most if most == (1 << exponent_bits) - 1 => match fraction {
            0 => f64::INFINITY,
            _ => f64::NAN,
        },
        exponent => f64::from(fraction + (1 << fraction_bits)) * unit(exponent),
    };
    Some(if bits >> 15 == 1 { -magnitude } else { magnitude })
}

/// A value as text.
fn value(data_type: DataType, bytes: &[u8]) -> String {
    macro_rules! number {
        ($type:ty) => {
            bytes.try_into().map(|bytes| <$type>::from_ne_bytes(bytes).to_string()).ok()
        };
    }
    let text = match data_type {
        DataType::Fp64 => number!(f64),
        DataType::Fp32 => number!(f32),
        DataType::Fp16 => half(bytes, 5).map(|value| value.to_string()),
        DataType::Bf16 => half(bytes, 8).map(|value| value.to_string()),
        DataType::Int8 => number!(i8),
        DataType::Int16 => number!(i16),
        DataType::Int32 => number!(i32),
        DataType::Int64 => number!(i64),
        DataType::Bool | DataType::Uint8 => number!(u8),
        DataType::Uint16 => number!(u16),
        DataType::Uint32 => number!(u32),
        DataType::Uint64 => number!(u64),
        _ => None,
    };
    text.unwrap_or_else(|| format!("{bytes:02x?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_read_as_it_is_shown() {
        for (data_type, exponent_bits) in [(DataType::Fp16, 5), (DataType::Bf16, 8)] {
            let every = (0..=u16::MAX).filter_map(|bits| {
                let value = float(data_type, &bits.to_ne_bytes()).unwrap();
                if data_type == DataType::Bf16 {
                    let single = f32::from_bits(u32::from(bits) << 16);
                    assert!(value == f64::from(single) || value.is_nan() && single.is_nan(), "{bits:x}");
                }
                value.is_finite().then_some((bits, value))
            });
            let (bits, values): (Vec<u16>, Vec<f64>) = every.unzip();
            assert_eq!(bits.len(), (1 << 16) - (2 << (15 - exponent_bits)));
            let values: Vec<_> = values.iter().map(ToString::to_string).collect();
            let body = format!(
                r#"{{"inputs":[{{"name":"x","datatype":"{data_type}","shape":[{}],"data":[{}]}}]}}"#,
                values.len(),
                values.join(",")
            );
            let x = TensorInfo { name: "x".into(), data_type, shape: vec![-1], symbols: vec![String::new()] };
            let info = ModelInfo { inputs: vec![x], outputs: Vec::new() };
            let (body, limits) = (body.into(), Limits::default());
            let request = oip::Request::json(&body);
            let call = oip::parse_infer(request, &info, &limits, &NoRegions).unwrap();
            let read: Vec<u16> = call.inputs[0]
                .data()
                .chunks_exact(2)
                .map(|two| u16::from_ne_bytes([two[0], two[1]]))
                .collect();
            assert!(read == bits, "{data_type}");
        }
    }
}
