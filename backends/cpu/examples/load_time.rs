//! How long a model takes to load, from its file and from the cache of optimised models, taking turns.
//!
//! `cargo run --release -p outrigger-cpu --example load_time -- MODEL.onnx ..`
//!
//! `testkit/agreement/models.py FOLDER large` writes two models that are worth it.

use std::path::Path;
use std::time::Instant;

use outrigger_backend::LoadOptions;

const ROUNDS: usize = 15;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cache = tempfile::tempdir()?;
    let library = ("onnxruntime".to_owned(), outrigger_testkit::onnxruntime().display().to_string());
    let with = ("cache".to_owned(), cache.path().display().to_string());
    let plain = outrigger_cpu::open(std::slice::from_ref(&library))?.open(0)?;
    let cached = outrigger_cpu::open(&[library, with])?.open(0)?;
    for path in std::env::args().skip(1) {
        let options = LoadOptions::of(&path);
        let load = |device: &dyn outrigger_backend::Device| {
            let begun = Instant::now();
            device.load(&options).map(|model| (begun.elapsed().as_secs_f64() * 1e3, drop(model)).0)
        };
        let first = load(&*cached)?;
        let (mut from_file, mut from_cache) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            from_file.push(load(&*plain)?);
            from_cache.push(load(&*cached)?);
        }
        let ratios = from_file.iter().zip(&from_cache).map(|(file, cache)| file / cache).collect();
        println!(
            "{}, {} MB: file {:.1} ms, cache {:.1} ms, ratio {:.2}; the first load, which fills the cache, {first:.1} ms",
            Path::new(&path).file_name().unwrap_or_default().display(),
            std::fs::metadata(&path)?.len() / 1_000_000,
            median(from_file),
            median(from_cache),
            median(ratios),
        );
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
