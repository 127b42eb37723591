//! A device with models around which there are steps, and how near what they give has to be to what the CPU gives.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_backend::{
    BackendError, DataType, Device, LoadOptions, ModelInfo, Output, Run, Shape, Tensor, TensorInfo,
};
use outrigger_onnxruntime::{Leftovers, Pool, Settings, WebGpu};
use outrigger_processing::{Around, Chain};
use outrigger_testkit::onnx::{Dim, Graph};
use outrigger_testkit::webgpu;

use DataType::{Bf16, Fp16, Fp32, Int8, Int32, Int64, Uint8};

use crate::support;

/// A device, models for it, and what its graphs may differ by.
pub(crate) struct Bench {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) folder: tempfile::TempDir,
    /// Whether subnormal numbers may be 0.
    pub(crate) flushes: bool,
    /// Those of the models, around which operators change.
    pub(crate) opsets: &'static [u64],
}

/// How far a number may be from what the CPU gives.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Near {
    /// The same; of a NaN, that it is one.
    Same,
    /// Ulps of this number, 2⁻²³ of it each, and 2⁻¹²⁶.
    Ulps(f32, f32),
}

pub(crate) const TINY: f32 = f32::MIN_POSITIVE;

impl Bench {
    pub(crate) fn host() -> Self {
        let device = support::open(support::Pretended::default(), &support::settings()).open(0).unwrap();
        Self { device, folder: tempfile::tempdir().unwrap(), flushes: false, opsets: &[11, 13, 17, 18, 21] }
    }

    pub(crate) fn webgpu(library: &Path) -> Self {
        let provider = WebGpu { leftovers: Leftovers::Refused, ..WebGpu::default() };
        let settings = Settings { library: Some(library.into()), ..Settings::default() };
        let backend = outrigger_onnxruntime::open(provider, &settings, &Pool { threads: 2, affinity: None });
        let device = backend.unwrap().open(0).unwrap();
        Self { device, folder: tempfile::tempdir().unwrap(), flushes: true, opsets: &[13, 21] }
    }

    /// A model that gives what it takes.
    pub(crate) fn identity(&self, opset: u64, input: &TensorInfo) -> PathBuf {
        let names: Vec<String> = (0..input.shape.len()).map(|at| format!("d{at}")).collect();
        let dim = |(at, extent): (usize, &i64)| {
            if *extent < 0 { Dim::Named(&names[at]) } else { Dim::Fixed(*extent) }
        };
        let dims: Vec<_> = input.shape.iter().enumerate().map(dim).collect();
        let mut graph = Graph::default();
        graph.opset = Some(opset);
        graph.input("x", input.data_type, &dims);
        graph.output("y", input.data_type, &dims);
        graph.node("Identity", &["x"], &["y"]);
        let path = self.folder.path().join(format!("{:x}.onnx", rand()));
        std::fs::write(&path, graph.model()).unwrap();
        path
    }

    /// What the graph of a model with steps on one side gives for `x`, which callers send as `declared`.
    pub(crate) fn graph(
        &self,
        opset: u64,
        side: &str,
        step: &str,
        declared: &[i64],
        x: &Tensor,
    ) -> Result<Vec<Tensor>, BackendError> {
        let input = info(x.data_type(), declared);
        let chain = chain(step);
        let own = match side {
            "before" => {
                chain.plan(std::slice::from_ref(&input), &["x"]).unwrap().outputs().next().unwrap().clone()
            }
            _ => input.clone(),
        };
        let signature = match side {
            "before" => ModelInfo { inputs: vec![input], outputs: vec![] },
            _ => ModelInfo::default(),
        };
        let text = step.replace("[[steps]]", &format!("[[{side}]]"));
        let options = LoadOptions {
            format: Some("onnx+steps".into()),
            settings: vec![("steps".into(), Around::of_text(&text).unwrap().to_text().unwrap())],
            signature,
            ..LoadOptions::of(self.identity(opset, &own))
        };
        self.device.estimate(&options)?;
        let model = self.device.load(&options)?;
        let instance = model.instance()?;
        let mut outputs: Vec<_> = (0..model.info().outputs.len()).map(Output::allocate).collect();
        instance.infer(std::slice::from_ref(x), &mut outputs, Run::default())?;
        Ok(outputs.into_iter().map(|output| output.into_tensor().unwrap()).collect())
    }

    /// Holds the graph of both sides against the CPU.
    pub(crate) fn agrees(&self, opset: u64, step: &str, declared: &[i64], x: &Tensor, near: Near) {
        self.agrees_on(&["before", "after"], opset, step, declared, x, near);
    }

    pub(crate) fn agrees_on(
        &self,
        sides: &[&str],
        opset: u64,
        step: &str,
        declared: &[i64],
        x: &Tensor,
        near: Near,
    ) {
        let plan = chain(step).plan(&[info(x.data_type(), x.shape().extents())], &["x"]).unwrap();
        let expected = plan.run(std::slice::from_ref(x)).unwrap().remove(0);
        for side in sides {
            let said = || format!("{side} {step} of {} {declared:?}, opset {opset}", x.data_type());
            // What a model of this kind gives has another name.
            let renamed = step.replacen("[[steps]]", "[[steps]]\nfrom = 'y'", 1);
            let step = if *side == "after" { &renamed } else { step };
            let got = self.graph(opset, side, step, declared, x);
            let got = got.unwrap_or_else(|error| panic!("{}: {error}", said())).remove(0);
            self.compare(&got, &expected, near, &said());
        }
    }

    pub(crate) fn compare(&self, got: &Tensor, expected: &Tensor, near: Near, said: &str) {
        assert_eq!((got.data_type(), got.shape()), (expected.data_type(), expected.shape()), "{said}");
        let both = floats(got).into_iter().zip(floats(expected)).enumerate();
        for (at, (got, expected)) in both {
            let alike = got == expected || got.is_nan() && expected.is_nan();
            let off = (got - expected).abs();
            let flushed = self.flushes && off < f64::from(TINY);
            let close = match near {
                Near::Same => false,
                Near::Ulps(ulps, of) => {
                    let ulp = f64::from(of.abs()).max(expected.abs()) / f64::from(1 << 23);
                    off <= f64::from(ulps) * ulp + f64::from(TINY)
                }
            };
            assert!(alike || flushed || close, "{said}: element {at} is {got:e}, expected {expected:e}");
        }
    }

    /// Why steps are not put into a graph.
    pub(crate) fn refused(
        &self,
        opset: u64,
        side: &str,
        step: &str,
        declared: &[i64],
        x: &Tensor,
        why: &str,
    ) {
        let step =
            if side == "after" { &step.replacen("[[steps]]", "[[steps]]\nfrom = 'y'", 1) } else { step };
        let error = self.graph(opset, side, step, declared, x).unwrap_err();
        assert!(matches!(&error, BackendError::Load(text) if text.contains(why)), "{why}: {error}");
    }
}

pub(crate) fn chain(text: &str) -> Chain {
    Around::of_text(&text.replace("[[steps]]", "[[before]]")).unwrap().before
}

pub(crate) fn info(data_type: DataType, shape: &[i64]) -> TensorInfo {
    let symbol = |(at, extent): (usize, &i64)| if *extent < 0 { format!("their{at}") } else { String::new() };
    TensorInfo {
        name: "x".into(),
        data_type,
        shape: shape.to_vec(),
        symbols: shape.iter().enumerate().map(symbol).collect(),
    }
}

/// Numbers that look random and are the same in every run.
pub(crate) fn rand() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static STATE: AtomicU64 = AtomicU64::new(1);
    let mut mixed = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

pub(crate) fn tensor(data_type: DataType, shape: &[i64], data: Vec<u8>) -> Tensor {
    Tensor::new(data_type, Shape::new(shape.to_vec()).unwrap(), data.into()).unwrap()
}

/// Any bits at all.
pub(crate) fn bits(data_type: DataType, shape: &[i64]) -> Tensor {
    let bytes = shape.iter().product::<i64>() as usize * data_type.size().unwrap();
    tensor(data_type, shape, (0..bytes).map(|_| rand() as u8).collect())
}

/// From -`most` to `most`; integers as they come.
pub(crate) fn measured(data_type: DataType, shape: &[i64], most: f32) -> Tensor {
    if matches!(data_type, Uint8 | Int8 | Int32 | Int64) {
        return bits(data_type, shape);
    }
    let count = shape.iter().product::<i64>();
    let value = |_| (rand() >> 40) as f32 / (1 << 23) as f32 * most - most;
    let data = (0..count).map(value).flat_map(|value| match data_type {
        Fp16 => half::f16::from_f32(value).to_ne_bytes().to_vec(),
        Bf16 => half::bf16::from_f32(value).to_ne_bytes().to_vec(),
        _ => value.to_ne_bytes().to_vec(),
    });
    tensor(data_type, shape, data.collect())
}

pub(crate) fn fp32(values: &[f32]) -> Tensor {
    tensor(Fp32, &[values.len() as i64], values.iter().flat_map(|value| value.to_ne_bytes()).collect())
}

pub(crate) fn floats(tensor: &Tensor) -> Vec<f64> {
    let all = tensor.data().chunks(tensor.data_type().size().unwrap());
    all.map(|bytes| match tensor.data_type() {
        Uint8 => f64::from(bytes[0]),
        Int8 => f64::from(bytes[0] as i8),
        Int32 => f64::from(i32::from_ne_bytes(bytes.try_into().unwrap())),
        // Halves apart from each other: no number of the tests is beyond.
        Int64 => i64::from_ne_bytes(bytes.try_into().unwrap()) as f64,
        Fp16 => half::f16::from_ne_bytes(bytes.try_into().unwrap()).to_f64(),
        Bf16 => half::bf16::from_ne_bytes(bytes.try_into().unwrap()).to_f64(),
        _ => f64::from(f32::from_ne_bytes(bytes.try_into().unwrap())),
    })
    .collect()
}

pub(crate) fn awkward() -> Tensor {
    let mut values =
        vec![0., TINY, 1e-40, f32::from_bits(1), f32::MAX, f32::INFINITY, f32::NAN, 65504., 65519.9];
    values.extend([
        65520., 5.96e-8, 2.98e-8, 6.1e-5, 6.097e-5, 0.5, 1., 1.5, 2.5, 127.9, 1e9, 9.2e18, 3.3895e38,
    ]);
    fp32(&values.iter().flat_map(|value| [*value, -*value]).collect::<Vec<_>>())
}

/// A test on WebGPU, on a driver in software, whose operators left for the CPU are refused.
pub(crate) fn on_webgpu(test: &str) -> Option<Bench> {
    webgpu::alone(test).map(|library| Bench::webgpu(&library))
}
