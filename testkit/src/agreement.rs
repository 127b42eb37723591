//! Ten kinds of models that Python writes, run by any backend, in any place that it can be in, and held against what Python's ONNX
//! Runtime gives.

use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_backend::{Backend, DataType, Instance, LoadOptions, Output, Run, Shape, Tensor};
use serde::Deserialize;

/// How far a number may be from what is expected: `t + t * |expected|`, with a `t` for each type of floating point. All else
/// is the same bit by bit.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Of FP16.
    pub fp16: f64,
    /// Of FP32.
    pub fp32: f64,
    /// Of FP64.
    pub fp64: f64,
}

impl Tolerance {
    /// For a backend that computes as the processor does, in the types that the model says.
    pub const CPU: Self = Self { fp16: 1e-3, fp32: 1e-5, fp64: 1e-12 };
}

/// Models and calls, in a folder that goes with this.
pub struct Models {
    folder: tempfile::TempDir,
    calls: Vec<Call>,
}

#[derive(Deserialize)]
struct Call {
    model: String,
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

impl Entry {
    fn tensor(&self, folder: &Path) -> Tensor {
        let bytes = std::fs::read(folder.join(&self.file)).unwrap();
        Tensor::new(self.data_type, Shape::new(self.shape.clone()).unwrap(), bytes.into()).unwrap()
    }
}

impl Models {
    /// Has them written.
    ///
    /// # Panics
    /// If Python does not write them.
    pub fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = crate::repository().join("testkit/agreement/models.py");
        let output = Command::new(crate::python()).arg(script).arg(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let calls = std::fs::read(folder.path().join("calls.json")).unwrap();
        Self { calls: serde_json::from_slice(&calls).unwrap(), folder }
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
        let device = backend.open(0).unwrap();
        let mut seen = Vec::new();
        for call in &self.calls {
            let path = self.folder.path().join(&call.model).with_extension("onnx");
            let model = device.load(&LoadOptions::of(path)).unwrap();
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
                let got = run(&*instance, &inputs, outputs, &call.model);
                for ((got, expected), name) in got.iter().zip(&expected).zip(&names) {
                    let what = format!("{}, output `{name}` {how}", call.model);
                    agree(got, expected, tolerance, &what);
                }
            }
            seen.push(call.model.as_str());
        }
        seen.dedup();
        println!(
            "{} agrees with Python in {} calls of {}",
            backend.info().name,
            self.calls.len(),
            seen.join(", ")
        );
        assert!(seen.len() >= 10);
    }
}

fn run(instance: &dyn Instance, inputs: &[Tensor], mut outputs: Vec<Output>, model: &str) -> Vec<Tensor> {
    let ran = instance.infer(inputs, &mut outputs, Run::default());
    ran.unwrap_or_else(|error| panic!("{model}: {error}"));
    outputs.into_iter().map(|output| output.into_tensor().unwrap()).collect()
}

fn agree(got: &Tensor, expected: &Tensor, tolerance: &Tolerance, what: &str) {
    assert_eq!((got.data_type(), got.shape()), (expected.data_type(), expected.shape()), "{what}");
    let (got_numbers, expected_numbers, tolerance) = match got.data_type() {
        DataType::Fp32 => (fp32(got), fp32(expected), tolerance.fp32),
        DataType::Fp64 => (fp64(got), fp64(expected), tolerance.fp64),
        DataType::Fp16 => (fp16(got), fp16(expected), tolerance.fp16),
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
