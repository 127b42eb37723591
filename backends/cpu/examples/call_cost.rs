//! What a call through the table costs beside ONNX Runtime's own `Run`, on a model small enough to show it.
//!
//! `cargo build --release -p outrigger-cpu && cargo run --release -p outrigger-cpu --example call_cost`
//!
//! The contenders take turns in one process, for times on a shared machine move by more than what is measured. `run` is
//! the C function with values made once over buffers of its own; `table` is `place_outputs` and `infer` of the plug-in,
//! that is what a server does for each call; `infer` is the latter with its place given.
#![allow(unsafe_code, reason = "calls ONNX Runtime's C function as the thing to compare with")]

use std::hint::black_box;
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
    let mut times = [const { Vec::new() }; 3];
    for round in 0..=ROUNDS {
        let taken = [
            time(run),
            time(|| table().unwrap_or_else(|error| panic!("{error}"))),
            time(|| {
                instance.infer(&inputs, &mut placed, Run::default()).unwrap_or_else(|error| panic!("{error}"))
            }),
        ];
        // The first round warms up.
        if round > 0 {
            taken.into_iter().zip(&mut times).for_each(|(taken, times)| times.push(taken));
        }
    }
    let [run, table, infer] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    println!("median of {ROUNDS} rounds of {CALLS} calls, microseconds per call");
    println!("run {run:.2}, infer {infer:.2} (+{:.2}), table {table:.2} (+{:.2})", infer - run, table - run);
    Ok(())
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
