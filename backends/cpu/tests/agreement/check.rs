//! Ten kinds of models that Python writes, run by a backend and held against what Python's ONNX Runtime gives.

use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_backend::conformance::{infer, instance};
use outrigger_backend::{Backend, DataType, Output, Run, Shape, Tensor};
use serde::Deserialize;

/// Models and calls, in a folder that goes with this.
pub(crate) struct Models {
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
    pub(crate) fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/agreement/models.py");
        let output =
            Command::new(outrigger_testkit::python()).arg(script).arg(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let calls = std::fs::read(folder.path().join("calls.json")).unwrap();
        Self { calls: serde_json::from_slice(&calls).unwrap(), folder }
    }

    /// Holds what device 0 of `backend` gives against what was given to Python.
    ///
    /// # Panics
    /// If they do not agree.
    pub(crate) fn agree(&self, backend: &dyn Backend) {
        let device = backend.open(0).unwrap();
        let mut seen = Vec::new();
        for call in &self.calls {
            let path = self.folder.path().join(&call.model).with_extension("onnx");
            let (model, instance) = instance(&*device, &path);
            let tensors = |entries: &[Entry]| -> Vec<Tensor> {
                entries.iter().map(|entry| entry.tensor(self.folder.path())).collect()
            };
            let (inputs, expected) = (tensors(&call.inputs), tensors(&call.outputs));
            let names: Vec<&str> = model.info().outputs.iter().map(|output| output.name.as_str()).collect();
            assert_eq!(names, call.outputs.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>());
            let placed =
                infer(&*model, &*instance, &inputs).unwrap_or_else(|error| panic!("{}: {error}", call.model));
            let mut allocated: Vec<Output> = (0..expected.len()).map(Output::allocate).collect();
            instance.infer(&inputs, &mut allocated, Run::default()).unwrap();
            let allocated = allocated.into_iter().map(|output| output.into_tensor().unwrap());
            for (got, how) in [(placed, "placed"), (allocated.collect(), "allocated")] {
                for ((got, expected), name) in got.iter().zip(&expected).zip(&names) {
                    let what = format!("{}, output `{name}` {how}", call.model);
                    agree(got, expected, &what);
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

/// Within `relative * |expected| + absolute` for floating point, by type; else the same bit by bit.
fn agree(got: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!((got.data_type(), got.shape()), (expected.data_type(), expected.shape()), "{what}");
    let (got_numbers, expected_numbers, tolerance) = match got.data_type() {
        DataType::Fp32 => (fp32(got), fp32(expected), 1e-5),
        DataType::Fp64 => (fp64(got), fp64(expected), 1e-12),
        DataType::Fp16 => (fp16(got), fp16(expected), 1e-3),
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
