//! Samples of a manifest: runs of each instance before it is ready, held against what they must give.

use std::path::Path;

use outrigger_backend::{DataType, ModelInfo, Run, Tensor, TensorInfo};
use outrigger_protocol::oip;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::instance::ModelInstance;
use super::manifest::{self, Sample};
use super::wanted::Wanted;
use super::{ModelsError, job};
use crate::config::LimitsConfig;

/// Runs all samples of a model on an instance.
///
/// # Errors
/// [`ModelsError::Sample`], for the first that cannot be run or does not give what it must.
pub(super) fn run(
    wanted: &Wanted,
    instance: &ModelInstance,
    limits: &LimitsConfig,
) -> Result<(), ModelsError> {
    for sample in wanted.manifest.iter().flat_map(|manifest| &manifest.samples) {
        one(sample, instance, limits).map_err(|problem| ModelsError::Sample {
            name: wanted.name.clone(),
            device: instance.place.as_ref().map(|place| place.device.to_string()).unwrap_or_default(),
            sample: shown(&sample.request),
            problem,
        })?;
    }
    Ok(())
}

fn shown(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn one(sample: &Sample, instance: &ModelInstance, limits: &LimitsConfig) -> Result<(), String> {
    let body = manifest::read_file(&sample.request, limits.body as u64)?;
    let tensors = oip::Limits { tensor_bytes: limits.answer, ..oip::Limits::default() };
    let call =
        oip::parse_infer(&body, &instance.info, &tensors).map_err(|error| error.message.to_string())?;
    drop(body);
    job::check(instance, &call.inputs, &call.outputs, limits.answer).map_err(|error| error.to_string())?;
    let got = job::execute(instance, &call.inputs, &call.outputs, Run::default(), limits.answer)
        .map_err(|error| error.to_string())?;
    let Some(expect) = &sample.expect else { return Ok(()) };
    let within = |problem: String| format!("{}: {problem}", shown(expect));
    let golden = golden(expect, &instance.info, limits, &tensors).map_err(within)?;
    for (name, want) in golden {
        let index = instance.info.outputs.iter().position(|output| output.name == name);
        let place = call.outputs.iter().position(|output| Some(*output) == index);
        let got = place.and_then(|place| got.get(place));
        let got =
            got.ok_or_else(|| within(format!("output `{name}` is not among those that are asked for")))?;
        compare(&name, got, &want, sample).map_err(|problem| format!("{problem} in {}", shown(expect)))?;
    }
    Ok(())
}

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
fn golden(
    path: &Path,
    info: &ModelInfo,
    limits: &LimitsConfig,
    tensors: &oip::Limits,
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
    let as_request = format!("{{\"inputs\":{outputs}}}");
    let info = ModelInfo { inputs, outputs: Vec::new() };
    let call = oip::parse_infer(as_request.as_bytes(), &info, tensors).map_err(|error| {
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

fn compare(name: &str, got: &Tensor, want: &Tensor, sample: &Sample) -> Result<(), String> {
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
    let (rtol, atol) = tolerance(data_type);
    let (rtol, atol) = (sample.rtol.unwrap_or(rtol), sample.atol.unwrap_or(atol));
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
