//! A CNN and a transformer on a GPU: ONNX and TorchScript through our backends, in process and through their device hosts, and Python's ONNX
//! Runtime and PyTorch on the same card, taking turns.
//!
//! `cargo build --release -p outrigger-cuda -p outrigger-cuda-torch -p outrigger-benches && target/release/gpu --onnxruntime LIBRARY --python PYTHON`
//!
//! | flag | what it says | without it |
//! |---|---|---|
//! | `--device` | `cuda`, or `cpu` to see that all of it runs where there is no card | `cuda` |
//! | `--onnxruntime` | ONNX Runtime's library, that of the package `onnxruntime-gpu` | nothing is measured |
//! | `--python` | an interpreter with `onnxruntime-gpu`, `torch` 2.11.0 and `numpy` | no peers, and no TorchScript, which it writes |
//! | `--batches`, `--rounds`, `--calls` | sizes; turns of each, for each number of threads; calls of a turn | `1,8,32`, 5, 200 |
//! | `KEY=VALUE` | settings of the backend for ONNX | |
//!
//! TorchScript needs `cargo xtask torch --release` before, which builds what is linked with libtorch; libtorch is that of the interpreter.
//! Latencies are of calls one after the other, rows per second of two threads; tensors are in the host's memory on all sides, as they are for requests.
//! A row `graphs` is the backend in process with CUDA graphs. Without a GPU it prints why and ends with 0. This program is the device's host, too.

use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use outrigger_backend::{
    Backend, BackendError, Buffer, DataType, LoadOptions, ModelInfo, Shape, Tensor, TensorInfo,
};
use outrigger_benches::device::{self, Both, Loaded};
use outrigger_benches::stats::{median, quantile};

/// Threads of the figure for throughput: as many as the backend has lanes.
const THREADS: usize = 2;

fn main() -> ExitCode {
    device::main(measure)
}

struct Options {
    device: String,
    onnxruntime: Option<String>,
    python: Option<String>,
    batches: Vec<i64>,
    rounds: usize,
    calls: usize,
    settings: Vec<(String, String)>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut options = Self {
            device: "cuda".into(),
            onnxruntime: None,
            python: None,
            batches: vec![1, 8, 32],
            rounds: 5,
            calls: 200,
            settings: Vec::new(),
        };
        while let Some(argument) = arguments.next() {
            if let Some((key, value)) = argument.split_once('=').filter(|_| !argument.starts_with("--")) {
                options.settings.push((key.to_owned(), value.to_owned()));
                continue;
            }
            let value = arguments.next().with_context(|| format!("{argument} needs a value"))?;
            match argument.as_str() {
                "--device" => options.device = value,
                "--onnxruntime" => options.onnxruntime = Some(value),
                "--python" => options.python = Some(value),
                "--batches" => {
                    options.batches = value.split(',').map(str::parse).collect::<Result<_, _>>()?
                }
                "--rounds" => options.rounds = value.parse()?,
                "--calls" => options.calls = value.parse()?,
                _ => bail!("unknown flag {argument}"),
            }
        }
        ensure!(["cuda", "cpu"].contains(&options.device.as_str()), "--device is cuda or cpu");
        Ok(options)
    }
}

fn measure() -> anyhow::Result<()> {
    let mut options = Options::parse(std::env::args().skip(1))?;
    let Some(onnxruntime) = options.onnxruntime.take() else {
        println!("skipped: no library of ONNX Runtime with CUDA was named");
        return Ok(());
    };
    options.settings.push(("onnxruntime".to_owned(), onnxruntime));
    let onnx = Both::open(&options.device, &options.settings)?;
    if onnx.inside.info().devices.is_empty() {
        println!("skipped: {}", onnx.inside.info().reason.as_deref().unwrap_or("no GPU"));
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    onnx_models(folder.path())?;
    let torch = match &options.python {
        Some(python) => torchscript(&options, python, folder.path())?,
        None => None,
    };
    let (name, version) = (&onnx.inside.info().devices[0].name, &onnx.inside.info().version);
    println!("{version} on {name}, {} turns of {} calls", options.rounds, options.calls);
    println!("| model | batch | who | p50 ms | p99 ms | rows/s, {THREADS} threads |");
    println!("|---|---|---|---|---|---|");
    for (name, row) in [("convolutions", &[3, 64, 64][..]), ("transformer", &[64, 512])] {
        for batch in &options.batches {
            let shape: Vec<i64> = std::iter::once(batch).chain(row).copied().collect();
            let mut contenders = contenders(&options, &onnx, torch.as_ref(), folder.path(), name, &shape)?;
            contest(name, *batch, &mut contenders, &options)?;
        }
    }
    Ok(())
}

/// Writes the models for ONNX into a folder: the large ones that backends are compared with Python on.
fn onnx_models(folder: &Path) -> anyhow::Result<()> {
    let script = outrigger_testkit::repository().join("testkit/agreement/models.py");
    let mut command = Command::new(outrigger_testkit::python());
    command.arg(script).arg(folder).arg("large");
    ensure!(command.status()?.success(), "the models were not written");
    Ok(())
}

fn peer(name: &str) -> PathBuf {
    outrigger_testkit::repository().join("benches/peers/gpu").join(name)
}

/// Has Python write the models for TorchScript, and opens the backend for them; `None`, and a line that says why, where it has no device.
fn torchscript(options: &Options, python: &str, folder: &Path) -> anyhow::Result<Option<Both>> {
    let question = "import torch; print(list(torch.__path__)[0])";
    let output = Command::new(python).args(["-c", question]).output()?;
    let libtorch = String::from_utf8(output.stdout)?.trim().to_owned();
    if libtorch.is_empty() {
        println!("no TorchScript: {python} has no package `torch`");
        return Ok(None);
    }
    for name in ["convolutions", "transformer"] {
        let mut command = Command::new(python);
        command.arg(peer("torch_eager.py")).arg(folder).args([name, "save"]);
        ensure!(command.status()?.success(), "the models were not written as TorchScript");
    }
    let both = Both::open(&format!("{}_torch", options.device), &[("libtorch".to_owned(), libtorch)])?;
    let info = both.inside.info();
    if let Some(reason) = info.reason.as_ref().filter(|_| info.devices.is_empty()) {
        println!("no TorchScript: {reason}");
        return Ok(None);
    }
    Ok(Some(both))
}

fn contenders(
    options: &Options,
    onnx: &Both,
    torch: Option<&Both>,
    folder: &Path,
    name: &str,
    shape: &[i64],
) -> anyhow::Result<Vec<(&'static str, Contender)>> {
    let plain = LoadOptions::of(folder.join(name).with_extension("onnx"));
    let mut contenders = vec![
        ("ONNX, in process", Contender::ours(&*onnx.inside, &plain, shape)?),
        ("ONNX, device host", Contender::ours(&*onnx.outside, &plain, shape)?),
    ];
    if options.device == "cuda" {
        let settings = vec![("graphs".into(), shape[0].to_string())];
        let graphs = LoadOptions { settings, ..plain };
        // Where an operator is not CUDA's there are none, and the others are of interest all the same.
        match Contender::ours(&*onnx.inside, &graphs, shape) {
            Ok(contender) => contenders.push(("ONNX, graphs", contender)),
            Err(error) => eprintln!("no graphs: {error:#}"),
        }
    }
    if let Some(torch) = torch {
        // As long as the ones of the input: both models keep width and length.
        let mut free = shape.to_vec();
        free[0] = -1;
        let symbols =
            (0..free.len()).map(|at| if at == 0 { "batch".into() } else { String::new() }).collect();
        let x = TensorInfo { name: "x".into(), data_type: DataType::Fp32, shape: free, symbols };
        let signature = ModelInfo { inputs: vec![x], outputs: Vec::new() };
        let mut script = LoadOptions::of(folder.join(name).with_extension("pt"));
        script.signature = signature;
        contenders.push(("TorchScript, in process", Contender::ours(&*torch.inside, &script, shape)?));
        contenders.push(("TorchScript, device host", Contender::ours(&*torch.outside, &script, shape)?));
    }
    if let Some(python) = &options.python {
        for (who, script) in [("Python, ONNX Runtime", "onnx.py"), ("Python, PyTorch", "torch_eager.py")] {
            if script == "onnx.py" || torch.is_some() {
                let peer = Contender::peer(python, &peer(script), folder, name, shape, &options.device)?;
                contenders.push((who, peer));
            }
        }
    }
    Ok(contenders)
}

fn contest(
    model: &str,
    batch: i64,
    contenders: &mut [(&str, Contender)],
    options: &Options,
) -> anyhow::Result<()> {
    let mut latencies = vec![Vec::new(); contenders.len()];
    let mut rates = vec![Vec::new(); contenders.len()];
    // The first turn warms up.
    for round in 0..=options.rounds {
        for (at, (who, contender)) in contenders.iter_mut().enumerate() {
            let mut turn = |threads| contender.turn(threads, options.calls).with_context(|| who.to_owned());
            let (_, each) = turn(1)?;
            let (seconds, together) = turn(THREADS)?;
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
    Ours { loaded: Loaded, input: Tensor },
    Peer { child: Child, said: BufReader<std::process::ChildStdout> },
}

impl Contender {
    fn ours(backend: &dyn Backend, options: &LoadOptions, shape: &[i64]) -> anyhow::Result<Self> {
        let loaded = Loaded::load(backend, options)?;
        let shape = Shape::new(shape.to_vec())?;
        let mut input = Buffer::zeroed(shape.bytes(DataType::Fp32)?)?;
        input.chunks_exact_mut(4).for_each(|element| element.copy_from_slice(&0.25f32.to_ne_bytes()));
        Ok(Self::Ours { loaded, input: Tensor::new(DataType::Fp32, shape, input.freeze())? })
    }

    fn peer(
        python: &str,
        script: &Path,
        folder: &Path,
        model: &str,
        shape: &[i64],
        device: &str,
    ) -> anyhow::Result<Self> {
        let shape = shape.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        let mut command = Command::new(python);
        command.arg(script).arg(folder).args([model, &shape, device]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let said = BufReader::new(child.stdout.take().context("no pipe")?);
        Ok(Self::Peer { child, said })
    }

    /// Seconds in all, and of each call.
    fn turn(&mut self, threads: usize, calls: usize) -> anyhow::Result<(f64, Vec<f64>)> {
        match self {
            Self::Ours { loaded, input } => {
                let (loaded, input) = (&*loaded, std::slice::from_ref(&*input));
                let work = || -> Result<Vec<f64>, BackendError> {
                    let call = |_| {
                        let began = Instant::now();
                        black_box(loaded.call(input)?);
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
