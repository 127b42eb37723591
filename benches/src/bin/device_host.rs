//! What a call costs more when its device is served by a process of its own: the same model in process and out, taking turns.
//!
//! `cargo build --release -p outrigger-cpu -p outrigger-benches && target/release/device_host [CALLS] [PAUSE µs]`
//!
//! The model is a perceptron of a few microseconds; the larger cases pass more bytes through the same model with wider rows. A pause between
//! calls lets both processes fall asleep, as they are when a request comes. This program is the device's host, too.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use outrigger_backend::{Buffer, DataType, LoadOptions, Shape, Tensor};
use outrigger_benches::device::{self, Both, Loaded};
use outrigger_benches::stats::quantile;
use outrigger_testkit::onnx;

fn main() -> ExitCode {
    device::main(measure)
}

fn measure() -> anyhow::Result<()> {
    let number = |at: usize, default: u64| std::env::args().nth(at).map_or(Ok(default), |text| text.parse());
    let (calls, pause) = (number(1, 20_000)?, Duration::from_micros(number(2, 0)?));
    let folder = tempfile::tempdir()?;
    let settings = [
        ("onnxruntime", outrigger_testkit::onnxruntime().display().to_string()),
        ("intra_threads", "1".into()),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    let both = Both::open("cpu", &settings)?;
    println!("{calls} calls each, a pause of {pause:?} between them; µs");
    println!("| case | in process p50 | p90 | out of process p50 | p90 | p99 | more at p50 |");
    println!("|---|---|---|---|---|---|---|");
    let cases: [(&str, Vec<u8>, usize, usize); 4] = [
        ("perceptron 64-128-128-10, 256 bytes in", onnx::mlp(&[64, 128, 128, 10]), 64, 1),
        (
            "identity of 4 KB",
            onnx::identity(DataType::Fp32, &[onnx::Dim::Named("batch"), onnx::Dim::Fixed(1024)]),
            1024,
            1,
        ),
        (
            "identity of 64 KB",
            onnx::identity(DataType::Fp32, &[onnx::Dim::Named("batch"), onnx::Dim::Fixed(1024)]),
            1024,
            16,
        ),
        (
            "identity of 1 MB",
            onnx::identity(DataType::Fp32, &[onnx::Dim::Named("batch"), onnx::Dim::Fixed(1024)]),
            1024,
            256,
        ),
    ];
    for (number, (name, model, width, rows)) in cases.into_iter().enumerate() {
        let path = folder.path().join(format!("{number}.onnx"));
        std::fs::write(&path, model)?;
        let mut input = Buffer::zeroed(width * rows * 4)?;
        input.fill(0x3e);
        let input = [Tensor::new(DataType::Fp32, Shape::new([rows as i64, width as i64])?, input.freeze())?];
        let options = LoadOptions::of(path);
        let contenders = [Loaded::load(&*both.inside, &options)?, Loaded::load(&*both.outside, &options)?];
        let mut times = [Vec::new(), Vec::new()];
        for call in 0..calls + calls / 10 {
            for (contender, times) in contenders.iter().zip(&mut times) {
                if !pause.is_zero() {
                    std::thread::sleep(pause);
                }
                let began = Instant::now();
                black_box(contender.call(&input)?);
                // The first tenth warms up.
                if call >= calls / 10 {
                    times.push(began.elapsed().as_nanos() as f64 / 1e3);
                }
            }
        }
        let [inside, outside] = &times;
        let at = |values: &[f64], q| quantile(values, q);
        println!(
            "| {name} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
            at(inside, 0.5),
            at(inside, 0.9),
            at(outside, 0.5),
            at(outside, 0.9),
            at(outside, 0.99),
            at(outside, 0.5) - at(inside, 0.5)
        );
    }
    Ok(())
}
