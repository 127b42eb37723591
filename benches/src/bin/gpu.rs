//! A CNN and a transformer on a GPU: through the CUDA backend in process, through its device host, and through Python's ONNX Runtime on the
//! same card, taking turns.
//!
//! `cargo build --release -p outrigger-cuda -p outrigger-benches && target/release/gpu ONNXRUNTIME [PYTHON] [CALLS] [KEY=VALUE ..]`
//!
//! `ONNXRUNTIME` is the library of the package `onnxruntime-gpu`, `PYTHON` an interpreter that has the package (`-` leaves it out), and what follows are
//! settings of the backend. Latencies are of calls one after the other, rows per second of two threads; tensors are in the host's memory on all
//! sides, as they are for requests. Without a GPU it prints why and ends with 0. This program is the device's host, too.

use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use outrigger_backend::{
    Backend, BackendError, Buffer, DataType, Instance, LoadOptions, Model, Output, Run, Shape, Tensor, host,
};
use outrigger_benches::stats::{median, quantile};
use outrigger_device_host::Options;

/// Turns that each has, for each number of threads.
const ROUNDS: usize = 5;
/// Threads of the figure for throughput: as many as the backend has lanes.
const THREADS: usize = 2;

/// Takes a model and a shape as arguments, then lines of a number of threads and of calls; answers with seconds in all and of each call.
const PEER: &str = r#"
import sys, threading, time
import numpy, onnxruntime
if hasattr(onnxruntime, "preload_dlls"):
    onnxruntime.preload_dlls()
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
if session.get_providers()[0] != "CUDAExecutionProvider":
    sys.exit("onnxruntime has no CUDA here")
x = numpy.full([int(extent) for extent in sys.argv[2].split(",")], 0.25, "float32")
for line in sys.stdin:
    threads, calls = map(int, line.split())
    times = [[] for _ in range(threads)]
    def work(own):
        for _ in range(calls):
            began = time.perf_counter()
            session.run(None, {"x": x})
            own.append(time.perf_counter() - began)
    began = time.perf_counter()
    workers = [threading.Thread(target=work, args=(own,)) for own in times]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    print(time.perf_counter() - began, *(each for own in times for each in own), flush=True)
"#;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("device-host") {
        return outrigger_device_host::serve().into();
    }
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(onnxruntime) = arguments.next() else {
        println!("skipped: no library of ONNX Runtime with CUDA was named");
        return Ok(());
    };
    let python = arguments.next().filter(|python| python != "-");
    let calls = arguments.next().map_or(Ok(200), |calls| calls.parse::<usize>())?;
    let mut settings = vec![("onnxruntime".to_owned(), onnxruntime)];
    for text in arguments {
        let (key, value) = text.split_once('=').context("settings are KEY=VALUE")?;
        settings.push((key.to_owned(), value.to_owned()));
    }
    let executable = std::env::current_exe()?;
    let library = executable.parent().context("no build folder")?.join("liboutrigger_cuda.so");
    let inside = host::load(&library, &settings)?;
    if inside.info().devices.is_empty() {
        println!("skipped: {}", inside.info().reason.as_deref().unwrap_or("no GPU"));
        return Ok(());
    }
    let outside = outrigger_device_host::open(Options::new(&executable, &library, "cuda", &settings))?;
    let folder = tempfile::tempdir()?;
    models(folder.path())?;
    println!(
        "{} on {}, {ROUNDS} turns of {calls} calls",
        inside.info().version,
        inside.info().devices[0].name
    );
    println!("| model | batch | who | p50 ms | p99 ms | rows/s, {THREADS} threads |");
    println!("|---|---|---|---|---|---|");
    for (name, row) in [("convolutions", &[3, 64, 64][..]), ("transformer", &[64, 512])] {
        let path = folder.path().join(name).with_extension("onnx");
        for batch in [1, 8, 32] {
            let shape: Vec<i64> = [batch].iter().chain(row).copied().collect();
            let mut contenders = vec![
                ("in process", Contender::ours(&*inside, &path, &shape)?),
                ("device host", Contender::ours(&*outside, &path, &shape)?),
            ];
            if let Some(python) = &python {
                contenders.push(("Python", Contender::peer(python, &path, &shape)?));
            }
            contest(name, batch, &mut contenders, calls)?;
        }
    }
    Ok(())
}

/// Writes the models into a folder: the large ones that backends are compared with Python on.
fn models(folder: &Path) -> anyhow::Result<()> {
    let script = outrigger_testkit::repository().join("testkit/agreement/models.py");
    let mut command = Command::new(outrigger_testkit::python());
    command.arg(script).arg(folder).arg("large");
    anyhow::ensure!(command.status()?.success(), "the models were not written");
    Ok(())
}

fn contest(
    model: &str,
    batch: i64,
    contenders: &mut [(&str, Contender)],
    calls: usize,
) -> anyhow::Result<()> {
    let mut latencies = vec![Vec::new(); contenders.len()];
    let mut rates = vec![Vec::new(); contenders.len()];
    // The first turn warms up.
    for round in 0..=ROUNDS {
        for (at, (_, contender)) in contenders.iter_mut().enumerate() {
            let (_, each) = contender.turn(1, calls)?;
            let (seconds, together) = contender.turn(THREADS, calls)?;
            if round > 0 {
                latencies[at].extend(each.into_iter().map(|seconds| seconds * 1e3));
                rates[at].push(together.len() as f64 * batch as f64 / seconds);
            }
        }
    }
    for (at, (who, _)) in contenders.iter().enumerate() {
        let at_quantile = |q| quantile(&latencies[at], q);
        let (middle, late, rate) = (at_quantile(0.5), at_quantile(0.99), median(&rates[at]));
        println!("| {model} | {batch} | {who} | {middle:.3} | {late:.3} | {rate:.0} |");
    }
    Ok(())
}

enum Contender {
    Ours { _model: Arc<dyn Model>, instance: Arc<dyn Instance>, input: Tensor },
    Peer { child: Child, said: BufReader<std::process::ChildStdout> },
}

impl Contender {
    fn ours(backend: &dyn Backend, path: &PathBuf, shape: &[i64]) -> anyhow::Result<Self> {
        let model = backend.open(0)?.load(&LoadOptions::of(path))?;
        let instance = model.instance()?;
        let shape = Shape::new(shape.to_vec())?;
        let mut input = Buffer::zeroed(shape.bytes(DataType::Fp32)?)?;
        input.chunks_exact_mut(4).for_each(|element| element.copy_from_slice(&0.25f32.to_ne_bytes()));
        Ok(Self::Ours { _model: model, instance, input: Tensor::new(DataType::Fp32, shape, input.freeze())? })
    }

    fn peer(python: &str, path: &Path, shape: &[i64]) -> anyhow::Result<Self> {
        let shape = shape.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        let mut command = Command::new(python);
        command.args(["-c", PEER]).arg(path).arg(shape).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let said = BufReader::new(child.stdout.take().context("no pipe")?);
        Ok(Self::Peer { child, said })
    }

    /// Seconds in all, and of each call.
    fn turn(&mut self, threads: usize, calls: usize) -> anyhow::Result<(f64, Vec<f64>)> {
        match self {
            Self::Ours { instance, input, .. } => {
                let (instance, input) = (&*instance, &*input);
                let work = || -> Result<Vec<f64>, BackendError> {
                    let call = |_| {
                        let began = Instant::now();
                        let mut outputs = [Output::allocate(0)];
                        instance.infer(std::slice::from_ref(input), &mut outputs, Run::default())?;
                        black_box(outputs);
                        Ok(began.elapsed().as_secs_f64())
                    };
                    (0..calls).map(call).collect()
                };
                let began = Instant::now();
                let each = std::thread::scope(|scope| {
                    let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
                    let ended = workers.into_iter().map(|worker| worker.join().expect("no panic"));
                    ended.collect::<Result<Vec<_>, _>>()
                })?;
                Ok((began.elapsed().as_secs_f64(), each.concat()))
            }
            Self::Peer { child, said } => {
                writeln!(child.stdin.as_mut().context("no pipe")?, "{threads} {calls}")?;
                let mut line = String::new();
                said.read_line(&mut line)?;
                let mut numbers = line.split_whitespace().map(str::parse::<f64>);
                let seconds = numbers.next().context("Python has ended")??;
                Ok((seconds, numbers.collect::<Result<_, _>>()?))
            }
        }
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        if let Self::Peer { child, .. } = self {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}
