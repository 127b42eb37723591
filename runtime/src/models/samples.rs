//! Samples of a manifest: runs of each instance before it is ready, held against what they must give.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use outrigger_backend::{DataType, ModelInfo, Run, RunId, Tensor, TensorInfo};
use outrigger_protocol::oip;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::instance::ModelInstance;
use super::manifest::{self, Sample};
use super::wanted::Wanted;
use super::{ModelsError, job};
use crate::config::LimitsConfig;

/// Runs all samples of a model on an instance, and gives it back.
///
/// # Errors
/// [`ModelsError::Sample`], for the first that cannot be run or does not give what it must.
pub(super) fn run(
    wanted: &Wanted,
    instance: ModelInstance,
    limits: &LimitsConfig,
) -> Result<ModelInstance, ModelsError> {
    let device = instance.place.as_ref().map(|place| place.device.to_string()).unwrap_or_default();
    let failed = |sample: &Sample, problem| ModelsError::Sample {
        name: wanted.name.clone(),
        device: device.clone(),
        sample: shown(&sample.request),
        problem,
    };
    wanted.manifest.iter().flat_map(|manifest| &manifest.samples).try_fold(instance, |instance, sample| {
        let instance = Arc::new(instance);
        one(sample, &instance, limits).map_err(|problem| failed(sample, problem))?;
        // The thread of a sample that has ended holds it no longer.
        Arc::into_inner(instance).ok_or_else(|| failed(sample, "it is still under way".into()))
    })
}

fn shown(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn one(sample: &Sample, instance: &Arc<ModelInstance>, limits: &LimitsConfig) -> Result<(), String> {
    let body = manifest::read_file(&sample.request, limits.body as u64)?;
    let tensors = oip::Limits { tensor_bytes: limits.answer, halves: true, ..oip::Limits::default() };
    let oip::InferCall { inputs, outputs, .. } =
        oip::parse_infer(&body, &instance.info, &tensors).map_err(|error| error.message.to_string())?;
    drop(body);
    job::check(instance, &inputs, &outputs, limits.answer).map_err(|error| error.to_string())?;
    let got = bounded(instance, inputs, &outputs, limits)?;
    let Some(expect) = &sample.expect else { return Ok(()) };
    let within = |problem: String| format!("{}: {problem}", shown(expect));
    let golden = golden(expect, &instance.info, limits, &tensors).map_err(within)?;
    for (name, want) in golden {
        let index = instance.info.outputs.iter().position(|output| output.name == name);
        let place = outputs.iter().position(|output| Some(*output) == index);
        let got = place.and_then(|place| got.get(place));
        let got =
            got.ok_or_else(|| within(format!("output `{name}` is not among those that are asked for")))?;
        compare(&name, got, &want, sample).map_err(|problem| format!("{problem} in {}", shown(expect)))?;
    }
    Ok(())
}

/// How long a run that is over its limit has to end after its cancel. Then the start fails with the run still under way.
const GRACE: Duration = Duration::from_secs(5);
/// How often it is cancelled meanwhile: a backend does not know of a run yet that is only on its way to it.
const AGAIN: Duration = Duration::from_millis(10);

/// Runs for no longer than `limits.sample_timeout`: on a thread of its own, which is left alone where the run does not heed its cancel.
fn bounded(
    instance: &Arc<ModelInstance>,
    inputs: Vec<Tensor>,
    outputs: &[usize],
    limits: &LimitsConfig,
) -> Result<Vec<Tensor>, String> {
    // Nothing else runs on the instance yet.
    let id = RunId::MIN;
    let (done, ended) = sync_channel(1);
    let (running, outputs, most) = (Arc::clone(instance), outputs.to_vec(), limits.answer);
    let run = move || {
        let result = job::execute(&running, &inputs, &outputs, Run { id: Some(id) }, most);
        // Before it is heard of, so that nobody finds the instance held who has heard.
        drop((running, inputs));
        let _ = done.send(result);
    };
    let thread = std::thread::Builder::new().name("sample".into()).spawn(run);
    let thread = thread.map_err(|error| format!("no thread for it: {error}"))?;
    let result = match ended.recv_timeout(limits.sample_timeout) {
        Err(RecvTimeoutError::Timeout) => {
            let limit = limits.sample_timeout;
            let late = format!("it did not end within limits.sample_timeout, {limit:?}");
            let until = Instant::now() + GRACE;
            while instance.instance.can_cancel() && Instant::now() < until {
                instance.instance.cancel(id);
                if !matches!(ended.recv_timeout(AGAIN), Err(RecvTimeoutError::Timeout)) {
                    let _ = thread.join();
                    return Err(late);
                }
            }
            return Err(format!("{late}, and is still under way"));
        }
        result => result,
    };
    let _ = thread.join();
    match result {
        Ok(Ok(tensors)) => Ok(tensors),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("its thread is gone".into()),
    }
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
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, channel};

    use outrigger_backend::{BackendError, Instance, Output};
    use prometheus::IntCounter;

    use super::*;
    use crate::config::BatchDelay;
    use crate::models::tests::{GATE, batching, inputs};

    /// Does not end before it is let go, whatever is asked of it.
    struct Stubborn(Mutex<Receiver<()>>);

    impl Instance for Stubborn {
        fn infer(&self, _: &[Tensor], _: &mut [Output], _: Run) -> Result<(), BackendError> {
            let _ = self.0.lock().unwrap().recv();
            Err(BackendError::Cancelled)
        }

        fn bytes_held(&self) -> u64 {
            0
        }
    }

    fn limits(sample_timeout: Duration) -> LimitsConfig {
        let sources = crate::config::Sources {
            environment: vec![("HOME".into(), "/home/u".into())],
            file: Some(("/o.toml".into(), "model_dir = '/m'".into())),
            ..Default::default()
        };
        let (config, _) = crate::config::load(&sources).unwrap();
        LimitsConfig { sample_timeout, ..config.limits }
    }

    #[test]
    fn a_run_that_is_too_long_is_cancelled() {
        let (instance, fake) = batching(1, BatchDelay::AtMost(Duration::ZERO));
        let short = limits(Duration::from_millis(1));
        let problem = bounded(&instance, inputs(1, 2, 0.0, GATE), &[0], &short).unwrap_err();
        assert_eq!(problem, "it did not end within limits.sample_timeout, 1ms");
        assert_eq!(fake.cancelled.load(std::sync::atomic::Ordering::Acquire), 1);
        assert_eq!(Arc::strong_count(&instance), 1, "its thread is gone");
        let long = limits(Duration::from_secs(60));
        assert_eq!(bounded(&instance, inputs(1, 2, 0.0, 1), &[0], &long).unwrap().len(), 1);
    }

    #[test]
    fn one_that_does_not_heed_that_is_left_behind() {
        let (go, gate) = channel();
        let runs = IntCounter::new("runs", "runs").unwrap();
        let stubborn = Arc::new(Stubborn(Mutex::new(gate)));
        let instance = Arc::new(ModelInstance::new("m", Arc::default(), stubborn, None, runs));
        let problem = bounded(&instance, Vec::new(), &[], &limits(Duration::from_millis(1))).unwrap_err();
        assert_eq!(problem, "it did not end within limits.sample_timeout, 1ms, and is still under way");
        drop(go);
    }

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
            let tensors = oip::Limits { halves: true, ..oip::Limits::default() };
            let call = oip::parse_infer(body.as_bytes(), &info, &tensors).unwrap();
            let read: Vec<u16> = call.inputs[0]
                .data()
                .chunks_exact(2)
                .map(|two| u16::from_ne_bytes([two[0], two[1]]))
                .collect();
            assert!(read == bits, "{data_type}");
        }
    }
}
