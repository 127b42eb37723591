//! Models that Python writes, run by any backend that takes their format, in any place that it can be in, and held against what Python gives: its ONNX
//! Runtime, or PyTorch.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_backend::{
    Backend, BackendError, DataType, Instance, LoadOptions, ModelInfo, Output, Run, Shape, Tensor, TensorInfo,
};
use serde::Deserialize;

/// How far a number may be from what is expected: `t + t * |expected|`, with a `t` for each type of floating point. All else
/// is the same bit by bit.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Of FP16.
    pub fp16: f64,
    /// Of BF16.
    pub bf16: f64,
    /// Of FP32.
    pub fp32: f64,
    /// Of FP64.
    pub fp64: f64,
}

impl Tolerance {
    /// For a backend that computes as the processor does, in the types that the model says.
    pub const CPU: Self = Self { fp16: 1e-3, bf16: 1e-2, fp32: 1e-5, fp64: 1e-12 };

    /// For a backend that computes by WebGPU, which lets a division be off by 2.5 units in the last place, and functions such as `exp` by more
    /// (WGSL, "Floating Point Accuracy"). It has no FP64: that is computed on the CPU. Seen on SwiftShader: 1e-6 at most for FP32.
    pub const WEBGPU: Self = Self { fp16: 5e-3, bf16: 1e-2, fp32: 1e-5, fp64: 1e-12 };
}

/// What is different about a model on some backend.
#[derive(Clone, Copy, Debug)]
pub enum Exception {
    /// It does not load, and these words of the message say why.
    Refused(&'static str),
    /// It does not load, or its runs fail, with these words where the device is a lesser one; on others they agree.
    MayFail(&'static str),
    /// Its numbers are quantised in steps of this size, so that those close to the middle of two become either: integers may be 1 off, and
    /// floating point a step, in one element of a hundred.
    Quantised(f64),
}

/// The kinds of models that there are at least.
const KINDS: usize = 10;
/// The most elements of which one may be a step off.
const SHARE: usize = 100;

/// Models and calls, in a folder that goes with this.
pub struct Models {
    folder: tempfile::TempDir,
    calls: Vec<Call>,
    /// What the names of their files end in.
    extension: &'static str,
}

#[derive(Deserialize)]
struct Call {
    model: String,
    /// What is said of its inputs, where the file does not say it.
    #[serde(default)]
    signature: Vec<Said>,
    inputs: Vec<Entry>,
    outputs: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    #[serde(rename = "type")]
    data_type: DataType,
    shape: Vec<i64>,
    file: PathBuf,
}

#[derive(Deserialize)]
struct Said {
    name: String,
    #[serde(rename = "type")]
    data_type: DataType,
    shape: Vec<Extent>,
}

/// An extent, or the name of one that is free.
#[derive(Deserialize)]
#[serde(untagged)]
enum Extent {
    Fixed(i64),
    Free(String),
}

impl Said {
    fn info(&self) -> TensorInfo {
        let dimensions = self.shape.iter().map(|extent| match extent {
            Extent::Fixed(extent) => (*extent, ""),
            Extent::Free(name) => (-1, name.as_str()),
        });
        TensorInfo::new(&self.name, self.data_type, &dimensions.collect::<Vec<_>>())
    }
}

/// The folder of Python's package `torch`, which `cargo xtask test` names.
///
/// # Errors
/// That there is none.
pub fn pytorch() -> Result<PathBuf, &'static str> {
    std::env::var_os("OUTRIGGER_TEST_PYTORCH").map(PathBuf::from).ok_or("no PyTorch")
}

impl Entry {
    fn tensor(&self, folder: &Path) -> Tensor {
        let bytes = std::fs::read(folder.join(&self.file)).unwrap();
        Tensor::new(self.data_type, Shape::new(self.shape.clone()).unwrap(), bytes.into()).unwrap()
    }
}

impl Models {
    /// Has ONNX models written.
    ///
    /// # Panics
    /// If Python does not write them.
    pub fn onnx() -> Self {
        Self::made("models.py", "onnx", None)
    }

    /// Has TorchScript models written, by the PyTorch in this folder.
    ///
    /// # Panics
    /// If Python does not write them.
    pub fn torchscript(pytorch: &Path) -> Self {
        Self::made("torchscript.py", "pt", Some(pytorch))
    }

    fn made(script: &str, extension: &'static str, packages: Option<&Path>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = crate::repository().join("testkit/agreement").join(script);
        let mut python = Command::new(crate::python());
        python.arg(script).arg(folder.path());
        packages.map(|packages| python.env("PYTHONPATH", packages));
        let output = python.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let calls = std::fs::read(folder.path().join("calls.json")).unwrap();
        Self { calls: serde_json::from_slice(&calls).unwrap(), folder, extension }
    }

    fn file(&self, call: &Call) -> PathBuf {
        self.folder.path().join(&call.model).with_extension(self.extension)
    }

    /// How many there are; there is a call of each.
    pub fn count(&self) -> usize {
        self.calls.chunk_by(|call, next| call.model == next.model).count()
    }

    /// Holds what device 0 of `backend` gives, in places of the caller's and in memory of the backend's, against what Python got.
    ///
    /// # Panics
    /// If they do not agree.
    pub fn agree(&self, backend: &dyn Backend, tolerance: &Tolerance) {
        self.agree_but(backend, tolerance, &[]);
    }

    /// The same, but for exceptions: models by their names.
    ///
    /// # Panics
    /// If they do not agree, or an exception is none: it names no model, or the model agrees without it. What a device may have or not have is not
    /// known here.
    pub fn agree_but(&self, backend: &dyn Backend, tolerance: &Tolerance, exceptions: &[(&str, Exception)]) {
        let device = backend.open(0).unwrap();
        let (mut agreed, mut different) = (BTreeSet::new(), BTreeSet::new());
        let mut met = BTreeSet::new();
        for call in &self.calls {
            let inputs = call.signature.iter().map(Said::info).collect();
            let signature = ModelInfo { inputs, ..ModelInfo::default() };
            let loaded = device.load(&LoadOptions { signature, ..LoadOptions::of(self.file(call)) });
            let name = call.model.as_str();
            let exception = exceptions.iter().find(|(model, _)| *model == name);
            let exception = exception.map(|(_, exception)| *exception);
            let model = match (loaded, exception) {
                (Ok(_), Some(Exception::Refused(why))) => panic!("{name} is not refused because of `{why}`"),
                (Ok(model), _) => model,
                (Err(error), Some(Exception::Refused(why) | Exception::MayFail(why))) => {
                    let error = error.to_string();
                    assert!(error.contains(why), "{name} is refused because of `{why}`: {error}");
                    met.insert(name);
                    different.insert(name);
                    continue;
                }
                (Err(error), _) => panic!("{name}: {error}"),
            };
            if let Some(Exception::MayFail(_)) = exception {
                met.insert(name);
            }
            let instance = model.instance().unwrap();
            let tensors = |entries: &[Entry]| -> Vec<Tensor> {
                entries.iter().map(|entry| entry.tensor(self.folder.path())).collect()
            };
            let (inputs, expected) = (tensors(&call.inputs), tensors(&call.outputs));
            let names: Vec<&str> = model.info().outputs.iter().map(|output| output.name.as_str()).collect();
            assert_eq!(names, call.outputs.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>());
            let all: Vec<usize> = (0..expected.len()).collect();
            let placed = model.info().place_outputs(&inputs, &all).unwrap();
            let allocated = all.into_iter().map(Output::allocate).collect();
            for (outputs, how) in [(placed, "placed"), (allocated, "allocated")] {
                let got = match (run(&*instance, &inputs, outputs), exception) {
                    (Ok(got), _) => got,
                    (Err(error), Some(Exception::MayFail(why))) if error.to_string().contains(why) => {
                        different.insert(name);
                        continue;
                    }
                    (Err(error), _) => panic!("{name}: {error}"),
                };
                for ((got, expected), name) in got.iter().zip(&expected).zip(&names) {
                    let what = format!("{}, output `{name}` {how}", call.model);
                    match exception {
                        Some(Exception::Quantised(step)) => {
                            if agree_but_for_a_step(got, expected, step, &what) {
                                met.insert(call.model.as_str());
                                different.insert(call.model.as_str());
                            }
                        }
                        _ => agree(got, expected, tolerance, &what),
                    }
                }
            }
            agreed.insert(call.model.as_str());
        }
        agreed.retain(|model| !different.contains(model));
        let list = |models: &BTreeSet<&str>| models.iter().copied().collect::<Vec<_>>().join(", ");
        println!(
            "{} agrees with Python in {}; different: {}",
            backend.info().name,
            list(&agreed),
            list(&different)
        );
        let excepted: BTreeSet<&str> = exceptions.iter().map(|(model, _)| *model).collect();
        assert_eq!(met, excepted, "what is said to be different is");
        assert_eq!(agreed.len() + different.len(), self.count());
        assert!(agreed.len() + excepted.len() >= KINDS, "{agreed:?}");
    }
}

fn run(
    instance: &dyn Instance,
    inputs: &[Tensor],
    mut outputs: Vec<Output>,
) -> Result<Vec<Tensor>, BackendError> {
    instance.infer(inputs, &mut outputs, Run::default())?;
    Ok(outputs.into_iter().map(|output| output.into_tensor().unwrap()).collect())
}

/// Whether any element is a step off.
fn agree_but_for_a_step(got: &Tensor, expected: &Tensor, step: f64, what: &str) -> bool {
    assert_eq!((got.data_type(), got.shape()), (expected.data_type(), expected.shape()), "{what}");
    let integers = |tensor: &Tensor| tensor.data().iter().map(|byte| f64::from(*byte)).collect();
    let (got, expected, step) = match got.data_type() {
        DataType::Fp32 => (fp32(got), fp32(expected), step),
        DataType::Uint8 => (integers(got), integers(expected), 1.),
        other => panic!("{what}: {other} is not known to be quantised"),
    };
    let rounding = step / 1000.;
    let off: Vec<f64> = got.iter().zip(&expected).map(|(got, expected)| (got - expected).abs()).collect();
    if let Some(at) = off.iter().position(|off| *off > step + rounding) {
        let far = off.iter().filter(|off| **off > step + rounding).count();
        panic!(
            "{what}: {far} of {} are more than a step off; element {at} is {}, not {}",
            off.len(),
            got[at],
            expected[at]
        );
    }
    let elsewhere = off.iter().filter(|off| **off > rounding).count();
    assert!(elsewhere * SHARE <= off.len(), "{what}: {elsewhere} of {} are a step off", off.len());
    elsewhere > 0
}

fn agree(got: &Tensor, expected: &Tensor, tolerance: &Tolerance, what: &str) {
    assert_eq!((got.data_type(), got.shape()), (expected.data_type(), expected.shape()), "{what}");
    let (got_numbers, expected_numbers, tolerance) = match got.data_type() {
        DataType::Fp32 => (fp32(got), fp32(expected), tolerance.fp32),
        DataType::Fp64 => (fp64(got), fp64(expected), tolerance.fp64),
        DataType::Fp16 => (fp16(got), fp16(expected), tolerance.fp16),
        DataType::Bf16 => (bf16(got), bf16(expected), tolerance.bf16),
        _ => return assert_eq!(got.data(), expected.data(), "{what}"),
    };
    for (at, (got, expected)) in got_numbers.iter().zip(&expected_numbers).enumerate() {
        let close = (got - expected).abs() <= tolerance + tolerance * expected.abs();
        // Infinities, and what is no number on both sides.
        let same = got == expected || got.is_nan() && expected.is_nan();
        assert!(close || same, "{what}, element {at}: {got} is not {expected}");
    }
}

fn fp32(tensor: &Tensor) -> Vec<f64> {
    tensor.data().as_chunks().0.iter().map(|bytes| f64::from(f32::from_ne_bytes(*bytes))).collect()
}

fn fp64(tensor: &Tensor) -> Vec<f64> {
    tensor.data().as_chunks().0.iter().map(|bytes| f64::from_ne_bytes(*bytes)).collect()
}

/// The upper half of FP32.
fn bf16(tensor: &Tensor) -> Vec<f64> {
    let number = |bytes: &[u8; 2]| f64::from(f32::from_bits(u32::from(u16::from_ne_bytes(*bytes)) << 16));
    tensor.data().as_chunks().0.iter().map(number).collect()
}

/// IEEE 754, section 3.6: a sign, 5 bits of exponent with a bias of 15, 10 bits of fraction.
fn fp16(tensor: &Tensor) -> Vec<f64> {
    let number = |bytes: &[u8; 2]| {
        let bits = u16::from_ne_bytes(*bytes);
        let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
        let size = match exponent {
            0 => fraction * 2f64.powi(-24),
            31 if fraction == 0. => f64::INFINITY,
            31 => f64::NAN,
            _ => (1. + fraction / 1024.) * 2f64.powi(exponent - 15),
        };
        if bits >> 15 == 1 { -size } else { size }
    };
    tensor.data().as_chunks().0.iter().map(number).collect()
}
