//! How long after a call is admitted its run begins, where nothing else is to be done.
//!
//! `cargo build --release -p outrigger-benches --example clock && cargo run --release -p outrigger-benches --bin run_start --
//! [--rounds N] [--seconds S]`
//!
//! *run*: from the call of `Models::infer`, which is what follows a call's admission, to the first instruction of the backend's `infer`, which
//! writes down the time (`examples/clock.rs`). *answer*: from there to the caller's going on, the 5 µs of the run taken off. *wake*: what the
//! machine takes to wake a thread that sleeps on a condition, which is the floor of both. Each with 1 ms between calls, so that all threads
//! sleep, and without a pause.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use outrigger_backend::{DataType, Shape, Tensor};
use outrigger_benches::clock::monotonic_ns;
use outrigger_benches::options::Options;
use outrigger_benches::{contest, server, stats};
use outrigger_runtime::Models;

/// What the backend's run takes, in nanoseconds.
const RUN: u64 = 5_000;
const PAUSE: Duration = Duration::from_millis(1);

fn main() -> anyhow::Result<()> {
    let defaults = Options {
        rounds: 9,
        turn: Duration::from_secs(1),
        connections: Vec::new(),
        servers: Vec::new(),
        cases: Vec::new(),
    };
    let options = Options::parse(defaults, std::env::args().skip(1))?;
    println!("{}", contest::circumstances(&options));
    let folder = tempfile::tempdir()?;
    let models = Arc::new(models(folder.path())?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    println!("| pause | wake p50, µs (95 %) | run p50, µs (95 %) | answer p50, µs (95 %) |");
    println!("|---|---|---|---|");
    for pause in [PAUSE, Duration::ZERO] {
        let mut rounds: [Vec<f64>; 3] = Default::default();
        for round in 0..=options.rounds {
            let wakes = wakes(pause, options.turn);
            let calls = runtime.block_on(calls(Arc::clone(&models), pause, options.turn))?;
            // The first round warms up.
            if round > 0 {
                let (runs, answers): (Vec<f64>, Vec<f64>) = calls.into_iter().unzip();
                for (values, all) in [wakes, runs, answers].iter().zip(&mut rounds) {
                    all.push(stats::median(values));
                }
            }
        }
        let shown = rounds.map(|values| {
            let (low, high) = stats::interval(&values);
            format!("{:.1} ({low:.1} to {high:.1})", stats::median(&values))
        });
        println!("| {pause:?} | {} |", shown.join(" | "));
    }
    models.stop();
    Ok(())
}

fn models(folder: &std::path::Path) -> anyhow::Result<Models> {
    let library = server::executable_folder()?.join("examples/libclock.so");
    // Under the name that the replica looks for.
    std::fs::copy(&library, folder.join("liboutrigger_cpu.so"))
        .with_context(|| format!("no `{}`: build the example `clock` first", library.display()))?;
    std::fs::write(folder.join("clock.onnx"), "")?;
    let folder = folder.display();
    let text = format!(
        "state_dir = '/nonexistent'\n[models.clock]\npath = '{folder}/clock.onnx'\n[backends]\npath = '{folder}'\n"
    );
    Ok(outrigger_benches::models::load(text)?.0)
}

/// Microseconds to the run, and from its end to the caller, of each call.
async fn calls(models: Arc<Models>, pause: Duration, turn: Duration) -> anyhow::Result<Vec<(f64, f64)>> {
    // On a worker of the runtime, as the calls of connections are.
    let calls = tokio::spawn(async move {
        let model = Arc::clone(models.get("clock")?);
        let lease = || model.stable().lease().context("it is loaded from the start");
        let input = Tensor::new(DataType::Fp32, Shape::new([1])?, vec![0; 4].into())?;
        let begun = Instant::now();
        let mut calls = Vec::new();
        while begun.elapsed() < turn {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let asked = monotonic_ns();
            let outputs = models.infer(lease()?.pick(), vec![input.clone()], vec![0], None, None).await?;
            let answered = monotonic_ns();
            let bytes = outputs.first().and_then(|output| output.data().first_chunk::<8>());
            let ran = u64::from_ne_bytes(*bytes.context("the time")?);
            calls.push((micros(ran - asked), micros(answered.saturating_sub(ran + RUN))));
        }
        Ok(calls)
    });
    calls.await?
}

fn micros(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

/// Microseconds from an alarm to whoever slept, for each.
fn wakes(pause: Duration, turn: Duration) -> Vec<f64> {
    #[derive(Default)]
    struct Shared {
        /// When the alarm was given, and when it was heard; 0 for not yet.
        times: Mutex<(u64, u64)>,
        alarm: Condvar,
        heard: Condvar,
    }
    let shared = Arc::new(Shared::default());
    let begun = Instant::now();
    let sleeper = {
        let shared = Arc::clone(&shared);
        std::thread::spawn(move || {
            loop {
                let times = shared.times.lock().unwrap_or_else(PoisonError::into_inner);
                let mut times = shared
                    .alarm
                    .wait_while(times, |times| times.0 == 0 || times.1 != 0)
                    .unwrap_or_else(PoisonError::into_inner);
                times.1 = monotonic_ns();
                if times.0 == u64::MAX {
                    return;
                }
                shared.heard.notify_one();
            }
        })
    };
    let mut wakes = Vec::new();
    while begun.elapsed() < turn {
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        *shared.times.lock().unwrap_or_else(PoisonError::into_inner) = (monotonic_ns(), 0);
        shared.alarm.notify_one();
        let times = shared.times.lock().unwrap_or_else(PoisonError::into_inner);
        let times =
            shared.heard.wait_while(times, |times| times.1 == 0).unwrap_or_else(PoisonError::into_inner);
        wakes.push(micros(times.1 - times.0));
    }
    *shared.times.lock().unwrap_or_else(PoisonError::into_inner) = (u64::MAX, 0);
    shared.alarm.notify_one();
    let _ = sleeper.join();
    wakes
}
