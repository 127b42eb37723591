//! What a call through the table costs beside ONNX Runtime's own `Run`, on a model small enough to show it.
//!
//! `cargo build --release -p outrigger-cpu && cargo run --release -p outrigger-cpu --example call_cost`
//!
//! The contenders take turns in one process, for times on a shared machine move by more than what is measured. `run` is
//! the C function with values made once over buffers of its own; `table` is `place_outputs` and `infer` of the plug-in,
//! that is what a server does for each call; `infer` is the latter with its place given, and `numbered` the same with a number,
//! so that it could be cancelled. Differences are formed within a round.
#![allow(unsafe_code, reason = "calls ONNX Runtime's C function as the thing to compare with")]

use std::hint::black_box;
use std::num::NonZeroU64;
use std::ptr::null;
use std::sync::Arc;
use std::time::Instant;

use ort::AsPointer;
use ort::value::TensorRef;
use outrigger_backend::{
    Backend, BackendError, Buffer, Instance, LoadOptions, Model, Output, Run, Shape, host,
};
use outrigger_backend::{DataType, Tensor};

const ROUNDS: usize = 41;
const CALLS: usize = 2000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let library = outrigger_testkit::onnxruntime();
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("mlp.onnx");
    std::fs::write(&path, outrigger_testkit::onnx::mlp(&[64, 128, 128, 10]))?;

    let executable = std::env::current_exe()?;
    let plugin = executable.parent().and_then(|examples| examples.parent()).ok_or("no build folder")?;
    let settings = [("onnxruntime", library.display().to_string()), ("intra_threads", "1".into())];
    let backend = host::load(
        &plugin.join("liboutrigger_cpu.so"),
        &settings.map(|(key, value)| (key.to_owned(), value)),
    )?;
    let (model, instance) = load(&*backend, &path)?;
    let mut input = Buffer::zeroed(256)?;
    input.fill(0x3e);
    let input = Tensor::new(DataType::Fp32, Shape::new([1, 64])?, input.freeze())?;

    let environment = ort::init_from(&library)?.with_telemetry(false).build()?;
    let session = ort::session::Session::builder(&environment)?
        .with_independent_thread_pool()?
        .with_intra_threads(1)?
        .commit_from_file(&path)?;
    let (x, y) = ([0.18f32; 64], [0f32; 10]);
    let (x, y) =
        (TensorRef::from_array_view(([1, 64], &x[..]))?, TensorRef::from_array_view(([1, 10], &y[..]))?);
    let (input_name, output_name) = (c"x".as_ptr(), c"y".as_ptr());
    let run = || {
        let mut output = y.ptr().cast_mut();
        // SAFETY: one name and value each, all live; the output's buffer is only looked at by ONNX Runtime.
        let status = unsafe {
            (ort::api().Run)(
                session.ptr().cast_mut(),
                null(),
                &input_name,
                &x.ptr(),
                1,
                &output_name,
                1,
                &mut output,
            )
        };
        assert!(status.0.is_null());
    };
    let inputs = [input];
    let table = || -> Result<(), BackendError> {
        let mut outputs = model.info().place_outputs(&inputs, &[0])?;
        instance.infer(&inputs, &mut outputs, Run::default())?;
        black_box(outputs);
        Ok(())
    };
    let buffer = Buffer::zeroed(40)?;
    let mut placed = [Output::place(0, DataType::Fp32, Shape::new([1, 10])?, buffer)?];
    let mut infer = |run: Run| {
        instance.infer(&inputs, &mut placed, run).unwrap_or_else(|error| panic!("{error}"));
    };
    let numbered = Run { id: NonZeroU64::new(1) };
    let mut rounds = Vec::new();
    for _ in 0..=ROUNDS {
        rounds.push([
            time(run),
            time(|| infer(Run::default())),
            time(|| infer(numbered)),
            time(|| table().unwrap_or_else(|error| panic!("{error}"))),
        ]);
    }
    // The first round warms up.
    let rounds = &rounds[1..];
    println!("median of {ROUNDS} rounds of {CALLS} calls, microseconds per call, with its 95 % interval");
    println!("run {}", median(rounds.iter().map(|round| round[0])));
    for (name, of, to) in
        [("infer", 1, 0), ("table", 3, 0), ("numbered", 2, 0), ("numbered beside infer", 2, 1)]
    {
        println!("{name} {}", median(rounds.iter().map(|round| round[of] - round[to])));
    }
    Ok(())
}

/// The median, and between which values that of all rounds lies with 95 % confidence.
///
/// Source: order statistics; the number of values below the median is binomial, here by its normal form.
fn median(values: impl Iterator<Item = f64>) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let half = values.len() as f64 / 2.;
    let reach = 0.98 * (values.len() as f64).sqrt();
    let (low, high) = ((half - reach).floor().max(0.) as usize, (half + reach).ceil() as usize);
    let at = |index: usize| values[index.min(values.len() - 1)];
    format!("{:.2} ({:.2} to {:.2})", at(values.len() / 2), at(low), at(high))
}

type Loaded = (Arc<dyn Model>, Arc<dyn Instance>);

fn load(backend: &dyn Backend, path: &std::path::Path) -> Result<Loaded, BackendError> {
    let model = backend.open(0)?.load(&LoadOptions::of(path))?;
    let instance = model.instance()?;
    Ok((model, instance))
}

fn time(mut call: impl FnMut()) -> f64 {
    let begun = Instant::now();
    (0..CALLS).for_each(|_| call());
    begun.elapsed().as_secs_f64() * 1e6 / CALLS as f64
}
