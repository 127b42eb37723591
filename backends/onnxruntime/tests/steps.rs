//! Steps in a model's graph against their form on the CPU, which defines them.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_backend::{
    BackendError, DataType, Device, LoadOptions, ModelInfo, Output, Run, Shape, Tensor, TensorInfo,
};
use outrigger_onnxruntime::{Leftovers, Pool, Settings, WebGpu};
use outrigger_processing::{Around, Chain};
use outrigger_testkit::{
    onnx::{Dim, Graph},
    webgpu,
};

use DataType::{Bf16, Fp16, Fp32, Int8, Int32, Int64, Uint8};

/// A device, models for it, and what its graphs may differ by.
struct Bench {
    device: Arc<dyn Device>,
    folder: tempfile::TempDir,
    /// Whether subnormal numbers may be 0.
    flushes: bool,
    /// Those of the models, around which operators change.
    opsets: &'static [u64],
}

/// How far a number may be from what the CPU gives.
#[derive(Clone, Copy, Debug)]
enum Near {
    /// The same; of a NaN, that it is one.
    Same,
    /// Ulps of this number, 2⁻²³ of it each, and 2⁻¹²⁶.
    Ulps(f32, f32),
}

const TINY: f32 = f32::MIN_POSITIVE;

impl Bench {
    fn host() -> Self {
        let device = support::open(support::Pretended::default(), &support::settings()).open(0).unwrap();
        Self { device, folder: tempfile::tempdir().unwrap(), flushes: false, opsets: &[11, 13, 17, 18, 21] }
    }

    fn webgpu(library: &Path) -> Self {
        let provider = WebGpu { leftovers: Leftovers::Refused, ..WebGpu::default() };
        let settings = Settings { library: Some(library.into()), ..Settings::default() };
        let backend = outrigger_onnxruntime::open(provider, &settings, &Pool { threads: 2, affinity: None });
        let device = backend.unwrap().open(0).unwrap();
        Self { device, folder: tempfile::tempdir().unwrap(), flushes: true, opsets: &[13, 21] }
    }

    /// A model that gives what it takes.
    fn identity(&self, opset: u64, input: &TensorInfo) -> PathBuf {
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
    fn graph(
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
    fn agrees(&self, opset: u64, step: &str, declared: &[i64], x: &Tensor, near: Near) {
        self.agrees_on(&["before", "after"], opset, step, declared, x, near);
    }

    fn agrees_on(&self, sides: &[&str], opset: u64, step: &str, declared: &[i64], x: &Tensor, near: Near) {
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

    fn compare(&self, got: &Tensor, expected: &Tensor, near: Near, said: &str) {
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
    fn refused(&self, opset: u64, side: &str, step: &str, declared: &[i64], x: &Tensor, why: &str) {
        let step =
            if side == "after" { &step.replacen("[[steps]]", "[[steps]]\nfrom = 'y'", 1) } else { step };
        let error = self.graph(opset, side, step, declared, x).unwrap_err();
        assert!(matches!(&error, BackendError::Load(text) if text.contains(why)), "{why}: {error}");
    }
}

fn chain(text: &str) -> Chain {
    Around::of_text(&text.replace("[[steps]]", "[[before]]")).unwrap().before
}

fn info(data_type: DataType, shape: &[i64]) -> TensorInfo {
    let symbol = |(at, extent): (usize, &i64)| if *extent < 0 { format!("their{at}") } else { String::new() };
    TensorInfo {
        name: "x".into(),
        data_type,
        shape: shape.to_vec(),
        symbols: shape.iter().enumerate().map(symbol).collect(),
    }
}

/// Numbers that look random and are the same in every run.
fn rand() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static STATE: AtomicU64 = AtomicU64::new(1);
    let mut mixed = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn tensor(data_type: DataType, shape: &[i64], data: Vec<u8>) -> Tensor {
    Tensor::new(data_type, Shape::new(shape.to_vec()).unwrap(), data.into()).unwrap()
}

/// Any bits at all.
fn bits(data_type: DataType, shape: &[i64]) -> Tensor {
    let bytes = shape.iter().product::<i64>() as usize * data_type.size().unwrap();
    tensor(data_type, shape, (0..bytes).map(|_| rand() as u8).collect())
}

/// From -`most` to `most`; integers as they come.
fn measured(data_type: DataType, shape: &[i64], most: f32) -> Tensor {
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

fn fp32(values: &[f32]) -> Tensor {
    tensor(Fp32, &[values.len() as i64], values.iter().flat_map(|value| value.to_ne_bytes()).collect())
}

fn floats(tensor: &Tensor) -> Vec<f64> {
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

fn awkward() -> Tensor {
    let mut values =
        vec![0., TINY, 1e-40, f32::from_bits(1), f32::MAX, f32::INFINITY, f32::NAN, 65504., 65519.9];
    values.extend([
        65520., 5.96e-8, 2.98e-8, 6.1e-5, 6.097e-5, 0.5, 1., 1.5, 2.5, 127.9, 1e9, 9.2e18, 3.3895e38,
    ]);
    fp32(&values.iter().flat_map(|value| [*value, -*value]).collect::<Vec<_>>())
}

fn conversions(bench: &Bench, pairs: &[(DataType, &[DataType])]) {
    for (from, all) in pairs {
        for to in *all {
            let step = format!("[[steps]]\nstep = 'convert'\ndatatype = '{to}'");
            let opset = if [*from, *to].contains(&Bf16) { 13 } else { 11 };
            for opset in [opset, 21] {
                for length in [1, 3, 255, 1023] {
                    bench.agrees(opset, &step, &[-1], &bits(*from, &[length]), Near::Same);
                    bench.agrees(opset, &step, &[length], &measured(*from, &[length], 300.), Near::Same);
                }
            }
            if *from == Fp32 {
                bench.agrees(17, &step, &[-1], &awkward(), Near::Same);
            }
        }
    }
}

#[test]
fn conversions_are_the_same_on_the_cpu() {
    let bench = Bench::host();
    conversions(
        &bench,
        &[
            (Uint8, &[Uint8, Int32, Int64, Fp16, Bf16, Fp32]),
            (Int8, &[Int8, Int32, Int64, Fp16, Bf16, Fp32]),
            (Int32, &[Int32, Int64, Fp16, Bf16, Fp32]),
            (Int64, &[Int64, Fp16, Bf16, Fp32]),
            (Fp16, &[Fp16, Bf16, Fp32]),
            (Bf16, &[Fp16, Bf16, Fp32]),
            (Fp32, &[Fp16, Bf16, Fp32]),
        ],
    );
}

fn normalisations(bench: &Bench, types: &[DataType]) {
    let step = "[[steps]]\nstep = 'normalize'\nscale = 0.00392156862745098\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]";
    let plain = "[[steps]]\nstep = 'normalize'\nscale = 2.0\nmean = [-1.0]";
    for data_type in types {
        for opset in bench.opsets.iter().copied().filter(|opset| *opset >= 13 || *data_type != Bf16) {
            // Of 255 / 0.224 and 1 / 0.224 the larger one.
            let near = Near::Ulps(2., 300. * 0.0175 + 2.2);
            let x = measured(*data_type, &[2, 5, 7, 3], 300.);
            // How many channels a model gives it may tell wrongly.
            bench.agrees_on(&["before"], opset, step, &[-1, -1, -1, 3], &x, near);
            bench.agrees_on(&["before"], opset, step, &[2, 5, 7, 3], &x, near);
            let first = format!("{step}\naxis = 1");
            let x = measured(*data_type, &[2, 3, 5, 7], 300.);
            bench.agrees_on(&["before"], opset, &first, &[-1, 3, -1, 7], &x, near);
            bench.agrees(opset, plain, &[-1], &measured(*data_type, &[1001], 300.), Near::Ulps(2., 600.));
        }
    }
    let odd = fp32(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0., -0.]);
    bench.agrees(17, plain, &[-1], &odd, Near::Ulps(2., 1.));
}

#[test]
fn what_is_normalised_is_near_on_the_cpu() {
    normalisations(&Bench::host(), &[Uint8, Int8, Fp16, Bf16, Fp32]);
}

/// Sizes of images and what they become; whole and other ratios, up and down.
const SIZES: [([i64; 2], [i64; 2]); 7] = [
    ([8, 8], [4, 4]),
    ([5, 7], [8, 3]),
    ([30, 40], [8, 8]),
    ([1, 1], [3, 2]),
    ([7, 6], [7, 6]),
    ([6, 9], [7, 5]),
    ([121, 77], [64, 48]),
];

fn resized(
    bench: &Bench,
    types: &[DataType],
    mode: &str,
    ranks: &[usize],
    is_free: bool,
    near: impl Fn(f32) -> Near,
) {
    for (from, to) in SIZES {
        for (layout, last) in [("NHWC", true), ("NCHW", false)] {
            let step = format!(
                "[[steps]]\nstep = 'resize'\nheight = {}\nwidth = {}\nmode = '{mode}'\nlayout = '{layout}'",
                to[0], to[1]
            );
            let longest = from.into_iter().chain(to).max().unwrap() as f32;
            for data_type in types {
                for opset in bench.opsets.iter().filter(|opset| **opset >= 13 || *data_type != Bf16) {
                    for rank in ranks {
                        let shape = if last { [2, from[0], from[1], 3] } else { [2, 3, from[0], from[1]] };
                        let shape = &shape[4 - rank..];
                        let mut declared = shape.to_vec();
                        if is_free {
                            declared
                                .iter_mut()
                                .for_each(|extent| *extent = if *extent == 3 { 3 } else { -1 });
                        }
                        let most = if matches!(data_type, Uint8 | Int8) { 255. } else { 300. };
                        let near = match near(longest) {
                            Near::Ulps(ulps, _) => Near::Ulps(ulps, most),
                            same => same,
                        };
                        // What a model promises of its results it need not keep.
                        let sides: &[_] = if is_free { &["before", "after"] } else { &["before"] };
                        let x = measured(*data_type, shape, 300.);
                        bench.agrees_on(sides, *opset, &step, &declared, &x, near);
                    }
                }
            }
        }
    }
}

/// As [`Step`](outrigger_processing::Step) states it.
fn bilinear(longest: f32) -> Near {
    Near::Ulps(4. + 6. * longest, 0.)
}

#[test]
fn what_is_resized_is_near_on_the_cpu() {
    let bench = Bench::host();
    for is_free in [true, false] {
        resized(&bench, &[Uint8, Int8, Fp16, Bf16, Fp32], "bilinear", &[4], is_free, bilinear);
        let moved = [Uint8, Int8, Int32, Int64, Fp16, Bf16, Fp32];
        resized(&bench, &moved, "nearest", &[4], is_free, |_| Near::Same);
    }
}

fn moved(bench: &Bench, types: &[DataType], ranks: &[usize]) {
    for (layout, shape) in [("NCHW", [2, 1, 4, 5, 3]), ("NHWC", [2, 1, 3, 4, 5])] {
        let step = format!("[[steps]]\nstep = 'layout'\nlayout = '{layout}'");
        for data_type in types {
            for opset in bench.opsets.iter().copied().filter(|opset| *opset >= 13 || *data_type != Bf16) {
                for rank in ranks {
                    let shape = &shape[5 - rank..];
                    bench.agrees(
                        opset,
                        &step,
                        &vec![-1; *rank],
                        &measured(*data_type, shape, 9.),
                        Near::Same,
                    );
                    bench.agrees(opset, &step, shape, &measured(*data_type, shape, 9.), Near::Same);
                }
            }
        }
    }
}

#[test]
fn layouts_are_the_same_on_the_cpu() {
    moved(&Bench::host(), &[Uint8, Int8, Int32, Int64, Fp16, Bf16, Fp32], &[4, 5]);
}

/// The limit, in ulps of the largest, for rows of so many: the shader's `exp` may be off by `3 + 2 |x|` of its own result.
fn softmaxes(bench: &Bench, types: &[DataType], near: impl Fn(usize) -> Near) {
    for data_type in types {
        for opset in bench.opsets.iter().copied().filter(|opset| *opset >= 13 || *data_type != Bf16) {
            for (rows, wide) in [(1, 1), (3, 2), (2, 7), (1, 1000), (65, 64), (2, 1001)] {
                for most in [1., 20., 300.] {
                    let x = measured(*data_type, &[rows, wide], most);
                    bench.agrees(opset, "[[steps]]\nstep = 'softmax'", &[-1, wide], &x, near(wide as usize));
                }
            }
            if opset >= 13 {
                let x = measured(*data_type, &[2, 5, 3], 9.);
                bench.agrees(opset, "[[steps]]\nstep = 'softmax'\naxis = 1", &[-1, 5, 3], &x, near(5));
            }
        }
    }
}

#[test]
fn softmax_is_near_on_the_cpu() {
    let bench = Bench::host();
    softmaxes(&bench, &[Fp16, Bf16, Fp32], |wide| Near::Ulps(32. + wide as f32 / 256., 1.));
}

/// A test on WebGPU, on a driver in software, whose operators left for the CPU are refused.
fn on_webgpu(test: &str) -> Option<Bench> {
    webgpu::alone(test).map(|library| Bench::webgpu(&library))
}

#[test]
fn steps_are_the_same_or_near_on_webgpu() {
    let Some(bench) = on_webgpu("steps_are_the_same_or_near_on_webgpu") else { return };
    conversions(&bench, &[(Uint8, &[Fp32]), (Int8, &[Fp32])]);
    normalisations(&bench, &[Uint8, Int8, Fp32]);
    moved(&bench, &[Fp32, Int32], &[4, 5]);
    softmaxes(&bench, &[Fp32], |wide| Near::Ulps(256. + wide as f32 / 256., 1.));
    resized(&bench, &[Uint8, Int8, Fp32], "bilinear", &[4], false, bilinear);
    resized(&bench, &[Fp32, Int32], "nearest", &[4], false, |_| Near::Same);
}

#[test]
fn what_cannot_be_in_a_graph_is_named() {
    let bench = Bench::host();
    let x = measured(Fp32, &[2, 4, 4, 3], 9.);
    let refused = |opset, side, step: &str, why| {
        let step = format!("[[steps]]\n{step}");
        bench.refused(opset, side, &step, &[-1, -1, -1, 3], &x, why);
    };
    let integer = "(`convert`): ONNX leaves open what becomes of a number that does not fit";
    refused(17, "before", "step = 'convert'\ndatatype = 'UINT8'", integer);
    refused(17, "after", "step = 'convert'\ndatatype = 'INT64'", integer);
    refused(
        17,
        "before",
        "step = 'top_k'\nk = 1",
        "step 1 of `[[before]]` (`top_k`): ONNX leaves open which",
    );
    refused(
        10,
        "before",
        "step = 'layout'\nlayout = 'NCHW'",
        "opset 10, steps in its graph need 11 or later",
    );
    refused(11, "before", "step = 'softmax'\naxis = 1", "along another axis than the last it needs 13");
    refused(17, "after", "step = 'softmax'\naxis = 0", "(`softmax`): it does not take each row for itself");
    refused(12, "after", "step = 'convert'\ndatatype = 'BF16'", "BF16 needs 13 or later");
    let channels = "step = 'normalize'\nmean = [1.0, 2.0, 3.0]";
    refused(17, "after", channels, "(`normalize`): how many channels there are is known at the call alone");
    let twice = "step = 'resize'\nheight = 999\nwidth = 999\nto = 'a'\n[[steps]]\nstep = 'resize'\nfrom = 'a'\nheight = 2\nwidth = 2";
    refused(17, "after", twice, "step 1 of `[[after]]` (`resize`): what it makes is not what comes out");
    for mode in ["nearest", "bilinear"] {
        let step = format!("[[steps]]\nstep = 'resize'\nheight = 2\nwidth = 2\nmode = '{mode}'");
        let why = "(`resize`): it takes extents which the model only promises";
        bench.refused(17, "after", &step, &[2, 4, 4, 3], &x, why);
    }
}

/// A model with steps, loaded after it was asked for.
fn load(
    bench: &Bench,
    graph: &Graph,
    text: &str,
    inputs: Vec<TensorInfo>,
) -> Result<Arc<dyn outrigger_backend::Model>, BackendError> {
    let path = bench.folder.path().join(format!("{:x}.onnx", rand()));
    std::fs::write(&path, graph.model()).unwrap();
    let options = LoadOptions {
        format: Some("onnx+steps".into()),
        settings: vec![("steps".into(), text.into())],
        signature: ModelInfo { inputs, outputs: vec![] },
        ..LoadOptions::of(&path)
    };
    bench.device.estimate(&options)?;
    bench.device.load(&options)
}

fn run(model: &dyn outrigger_backend::Model, inputs: &[Tensor]) -> Result<Tensor, BackendError> {
    let mut output = [Output::allocate(0)];
    model.instance()?.infer(inputs, &mut output, Run::default())?;
    let [output] = output;
    Ok(output.into_tensor().unwrap())
}

#[test]
fn what_a_model_promises_of_its_results_is_not_believed() {
    let bench = Bench::host();
    let named = [Dim::Named("n"), Dim::Named("c"), Dim::Named("h"), Dim::Named("w")];
    // Two rows of two channels, 8 x 6, and what the model says of some of it.
    let x = measured(Fp32, &[2, 2, 8, 6], 9.);
    let lies: [&[(usize, i64)]; 7] = [
        &[(0, 1)],
        &[(1, 3)],
        &[(2, 4)],
        &[(3, 4)],
        &[(0, 1), (1, 3)],
        &[(2, 4), (3, 4)],
        &[(1, 3), (2, 4), (3, 4)],
    ];
    for (mode, layout) in
        [("nearest", "NCHW"), ("bilinear", "NCHW"), ("nearest", "NHWC"), ("bilinear", "NHWC")]
    {
        let step = format!(
            "[[steps]]\nstep = 'resize'\nheight = 2\nwidth = 3\nmode = '{mode}'\nlayout = '{layout}'"
        );
        let plan = chain(&step).plan(&[info(Fp32, &[2, 2, 8, 6])], &["x"]).unwrap();
        let expected = plan.run(std::slice::from_ref(&x)).unwrap().remove(0);
        for opset in [13, 17, 18, 21] {
            for lie in lies {
                let mut said = named;
                lie.iter().for_each(|(axis, extent)| said[*axis] = Dim::Fixed(*extent));
                let mut graph = Graph::default();
                graph.opset = Some(opset);
                graph.input("x", Fp32, &named);
                graph.output("y", Fp32, &said);
                graph.node("Relu", &["x"], &["r"]);
                graph.node("Sub", &["x", "r"], &["m"]);
                graph.node("Add", &["m", "r"], &["y"]);
                let text = step.replace("[[steps]]", "[[after]]");
                let got = load(&bench, &graph, &text, vec![])
                    .and_then(|model| run(&*model, std::slice::from_ref(&x)));
                let said = format!("{mode} {layout} {lie:?}, opset {opset}");
                let got = got.unwrap_or_else(|error| panic!("{said}: {error}"));
                bench.compare(&got, &expected, Near::Ulps(60., 9.), &said);
            }
        }
    }
}

/// ONNX Runtime moves transpositions past other operators, and what these take with them.
#[test]
fn transpositions_around_a_resize_change_nothing() {
    let bench = Bench::host();
    for opset in [13, 17, 18, 21] {
        for mode in ["bilinear", "nearest"] {
            for [reversed, back] in [["t", "y"], ["x", "y"]] {
                let mut graph = Graph::default();
                graph.opset = Some(opset);
                graph.input("x", Fp32, &[Dim::Named("n"), Dim::Named("c"), Dim::Named("h"), Dim::Named("w")]);
                let said = [Dim::Named("a"), Dim::Named("b"), Dim::Named("d"), Dim::Named("e")];
                graph.output("y", Fp32, &said);
                // Twice the same, or once.
                if reversed == "t" {
                    graph.node("Transpose", &["x"], &["t"]);
                }
                graph.node("Relu", &[reversed], &["r"]);
                graph.node("Transpose", &["r"], &[back]);
                let steps = format!(
                    "step = 'layout'\nlayout = 'NCHW'\n[[side]]\nstep = 'resize'\nheight = 4\nwidth = 6\nmode = '{mode}'\nlayout = 'NCHW'\n[[side]]\nstep = 'layout'\nlayout = 'NHWC'\n[[side]]\nstep = 'resize'\nheight = 5\nwidth = 3\nmode = '{mode}'\nlayout = 'NHWC'\n[[side]]\nstep = 'normalize'\nscale = 0.5"
                );
                let before = format!("[[side]]\n{steps}").replace("[[side]]", "[[before]]");
                let x = measured(Uint8, &[2, 7, 5, 3], 255.);
                let plan = chain(&before.replace("[[before]]", "[[steps]]"))
                    .plan(&[info(Uint8, &[2, 7, 5, 3])], &["x"]);
                let expected = plan.unwrap().run(std::slice::from_ref(&x)).unwrap().remove(0);
                let model = load(&bench, &graph, &before, vec![info(Uint8, &[-1, -1, -1, -1])]).unwrap();
                let got = run(&*model, std::slice::from_ref(&x)).unwrap();
                let said = format!("{mode}, opset {opset}, {reversed}");
                if reversed == "t" {
                    bench.compare(&got, &expected, Near::Ulps(99., 255.), &said);
                } else {
                    assert_eq!(got.shape().extents(), [3, 3, 5, 2], "{said}");
                    let (mut sums, all) = ((0., 0.), (floats(&got), floats(&expected)));
                    all.0.iter().for_each(|value| sums.0 += value);
                    all.1.iter().for_each(|value| sums.1 += value);
                    assert!((sums.0 - sums.1).abs() < 1e-2, "{said}: {sums:?}");
                }
            }
        }
    }
}

#[test]
fn a_model_s_own_names_stay_its_own() {
    let bench = Bench::host();
    let rows = [Dim::Named("n"), Dim::Fixed(2)];
    let half = "[[before]]\nstep = 'normalize'\nscale = 0.5";
    let bytes = || vec![info(Uint8, &[-1, 2])];
    let x = tensor(Uint8, &[1, 2], vec![10, 20]);
    let model = |constant: &str, between: &str| {
        let mut graph = Graph::default();
        graph.input("x", Fp32, &rows);
        graph.output("y", Fp32, &rows);
        graph.initializer(constant, &[], &[7.]);
        graph.named_node("x", "Mul", &["x", constant], &[between]);
        graph.named_node("outrigger:in:x", "Identity", &[between], &["y"]);
        graph
    };
    let got = run(&*load(&bench, &model("k", "m"), half, bytes()).unwrap(), std::slice::from_ref(&x));
    assert_eq!(floats(&got.unwrap()), [35., 70.]);
    for (constant, between) in [("outrigger:before:1", "m"), ("k", "outrigger:before:0")] {
        let error = load(&bench, &model(constant, between), half, bytes()).err().unwrap().to_string();
        assert!(error.contains("it has names that begin with `outrigger:`"), "{error}");
    }
    // Without steps they are names as any other.
    let mut graph = Graph::default();
    graph.input("x", Fp32, &rows);
    graph.input("outrigger:in:x", Fp32, &rows);
    graph.output("outrigger:out:y", Fp32, &rows);
    graph.node("Add", &["x", "outrigger:in:x"], &["outrigger:out:y"]);
    let path = bench.folder.path().join("plain.onnx");
    std::fs::write(&path, graph.model()).unwrap();
    let plain = bench.device.load(&LoadOptions::of(&path)).unwrap();
    let names: Vec<_> = plain.info().inputs.iter().map(|input| input.name.as_str()).collect();
    assert_eq!(
        (&names[..], plain.info().outputs[0].name.as_str()),
        (&["x", "outrigger:in:x"][..], "outrigger:out:y")
    );
    let x = tensor(Fp32, &[1, 2], vec![0; 8]);
    run(&*plain, &[x.clone(), x]).unwrap();
}

/// Whatever callers call their extents, and whether they do.
#[test]
fn extents_that_a_model_calls_the_same_are_the_same() {
    let bench = Bench::host();
    let mut graph = Graph::default();
    graph.input("a", Fp32, &[Dim::Named("n"), Dim::Fixed(2)]);
    graph.input("b", Fp32, &[Dim::Fixed(2), Dim::Named("n")]);
    graph.output("y", Fp32, &[Dim::Named("n"), Dim::Named("n")]);
    graph.node("MatMul", &["a", "b"], &["y"]);
    let text = "[[before]]\nstep = 'convert'\nfrom = 'a'\ndatatype = 'FP32'\n[[before]]\nstep = 'convert'\nfrom = 'b'\ndatatype = 'FP32'";
    for names in [["", ""], ["their", ""], ["one", "other"], ["same", "same"]] {
        let inputs = vec![
            TensorInfo::new("a", Uint8, &[(-1, names[0]), (2, "")]),
            TensorInfo::new("b", Uint8, &[(2, ""), (-1, names[1])]),
        ];
        let model = load(&bench, &graph, text, inputs).unwrap();
        let symbols = &model.info().outputs[0].symbols;
        assert!(!symbols[0].is_empty() && symbols[0] == symbols[1], "{symbols:?}");
        assert_eq!(model.info().inputs[0].symbols[0], symbols[0]);
        let b = |wide: i64| tensor(Uint8, &[2, wide], vec![1; 2 * wide as usize]);
        let a = tensor(Uint8, &[2, 2], vec![1, 2, 3, 4]);
        assert_eq!(floats(&run(&*model, &[a.clone(), b(2)]).unwrap()), [3., 3., 7., 7.]);
        let error = run(&*model, &[a, b(3)]).unwrap_err();
        assert!(matches!(error, BackendError::Input(_)), "{names:?}: {error}");
    }
}

/// Everything at once: names that are the model's and the callers', an input that no step touches, one that goes to both, free extents by their
/// names, and what is kept of it on disk.
#[test]
fn callers_see_their_side_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let (rows, high, wide) = (Dim::Named("batch"), Dim::Named("h"), Dim::Named("w"));
    let mut graph = Graph::default();
    graph.input("image", Fp32, &[rows, Dim::Fixed(3), high, wide]);
    graph.input("tag", Int64, &[rows]);
    graph.output("same", Fp32, &[rows, Dim::Fixed(3), high, wide]);
    graph.output("tags", Int64, &[rows]);
    graph.node("Identity", &["image"], &["same"]);
    graph.node("Identity", &["tag"], &["tags"]);
    std::fs::write(&path, graph.model()).unwrap();
    let named = |name: &str, data_type, dims: &[(i64, &str)]| TensorInfo {
        name: name.into(),
        data_type,
        shape: dims.iter().map(|dim| dim.0).collect(),
        symbols: dims.iter().map(|dim| dim.1.into()).collect(),
    };
    let rows = (-1, "n");
    let image = named("image", Uint8, &[rows, (-1, "height"), (-1, "width"), (3, "")]);
    let tag = named("tag", Int64, &[rows]);
    let text = "[[before]]\nstep = 'layout'\nfrom = 'image'\nlayout = 'NCHW'\n[[before]]\nstep = 'normalize'\nscale = 2.0
        [[before]]\nstep = 'convert'\ndatatype = 'FP32'\nfrom = 'tag'\nto = 'unused'
        [[after]]\nstep = 'softmax'\nfrom = 'same'\naxis = 1\nto = 'image'";
    let options = LoadOptions {
        format: Some("onnx+steps".into()),
        settings: vec![("steps".into(), text.into())],
        signature: ModelInfo { inputs: vec![image.clone(), tag.clone()], outputs: vec![] },
        ..LoadOptions::of(&path)
    };
    let settings = Settings { cache: Some(folder.path().join("cache")), ..support::settings() };
    // The second time out of what is kept; then without steps, which must not get that.
    for _ in 0..2 {
        let device = support::open(support::Pretended::default(), &settings).open(0).unwrap();
        let model = device.load(&options).unwrap();
        assert_eq!(model.info().inputs, [image.clone(), tag.clone()]);
        let outputs = [
            named("tags", Int64, &[rows]),
            named("image", Fp32, &[rows, (3, ""), (-1, "height"), (-1, "width")]),
        ];
        assert_eq!(model.info().outputs, outputs);
        let pixels = tensor(Uint8, &[1, 1, 2, 3], vec![0, 1, 0, 9, 9, 9]);
        let tags = tensor(Int64, &[1], 7i64.to_ne_bytes().into());
        let mut got: Vec<_> = (0..2).map(Output::allocate).collect();
        model.instance().unwrap().infer(&[pixels, tags], &mut got, Run::default()).unwrap();
        let got: Vec<_> = got.into_iter().map(|output| floats(&output.into_tensor().unwrap())).collect();
        assert_eq!(got[0], [7.]);
        let (less, more) = (0.1065, 0.7870);
        let expected = [less, 1. / 3., more, 1. / 3., less, 1. / 3.];
        assert!(got[1].iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-3), "{got:?}");
        let plain = device.load(&LoadOptions::of(&path)).unwrap();
        assert_eq!(plain.info().inputs[0].data_type, Fp32);
    }
    let kept = std::fs::read_dir(folder.path().join("cache/outrigger-pretended")).unwrap();
    let is_model = |path: PathBuf| path.extension().is_some_and(|end| end == "optimised");
    assert_eq!(kept.filter(|file| is_model(file.as_ref().unwrap().path())).count(), 2);
}

/// Data in other files stays there.
#[test]
fn a_model_with_data_in_other_files_has_steps_too() {
    let bench = Bench::host();
    let mut graph = Graph::default();
    graph.input("x", Fp32, &[Dim::Named("n"), Dim::Fixed(2)]);
    graph.output("y", Fp32, &[Dim::Named("n"), Dim::Fixed(2)]);
    graph.external("w", &[2], &[("location", "w.bin")]);
    graph.node("Mul", &["x", "w"], &["y"]);
    let path = bench.folder.path().join("model.onnx");
    std::fs::write(&path, graph.model()).unwrap();
    let weights: Vec<u8> = [3f32, 5.].iter().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(bench.folder.path().join("w.bin"), weights).unwrap();
    let options = LoadOptions {
        format: Some("onnx+steps".into()),
        settings: vec![("steps".into(), "[[before]]\nstep = 'convert'\ndatatype = 'FP32'".into())],
        signature: ModelInfo { inputs: vec![info(Uint8, &[-1, 2])], outputs: vec![] },
        ..LoadOptions::of(&path)
    };
    let model = bench.device.load(&options).unwrap();
    let mut output = [Output::allocate(0)];
    let x = tensor(Uint8, &[1, 2], vec![200, 7]);
    model.instance().unwrap().infer(&[x], &mut output, Run::default()).unwrap();
    let [output] = output;
    assert_eq!(floats(&output.into_tensor().unwrap()), [600., 35.]);
}

/// What an image is for, and what a device lacks for others; operators left for the CPU are refused here.
#[test]
fn webgpu_has_what_images_need() {
    let Some(bench) = on_webgpu("webgpu_has_what_images_need") else { return };
    let step = "[[steps]]\nstep = 'resize'\nheight = 8\nwidth = 8
        [[steps]]\nstep = 'normalize'\nscale = 0.00392156862745098\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]
        [[steps]]\nstep = 'layout'\nlayout = 'NCHW'";
    let x = measured(Uint8, &[1, 30, 41, 3], 255.);
    let plan = chain(step).plan(&[info(Uint8, &[1, 30, 41, 3])], &["x"]).unwrap();
    let expected = plan.run(std::slice::from_ref(&x)).unwrap().remove(0);
    let got = bench.graph(17, "before", step, &[1, -1, -1, 3], &x).unwrap().remove(0);
    bench.compare(&got, &expected, Near::Ulps(400., 4.), "an image");
    let bytes = "[[steps]]\nstep = 'layout'\nlayout = 'NCHW'";
    bench.refused(
        17,
        "before",
        bytes,
        &[1, 4, 4, 3],
        &measured(Uint8, &[1, 4, 4, 3], 9.),
        "which the device has as FP32 alone",
    );
    let shapes = "[[steps]]\nstep = 'resize'\nheight = 8\nwidth = 8";
    bench.refused(17, "before", shapes, &[-1, -1, -1, 3], &x, "would run on the CPU, which is refused");
    let half = measured(Fp16, &[4], 9.);
    bench.refused(
        17,
        "before",
        "[[steps]]\nstep = 'normalize'",
        &[-1],
        &half,
        "the device has no operator `Cast` for FP16",
    );
}
