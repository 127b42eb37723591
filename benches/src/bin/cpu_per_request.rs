//! CPU time per request of whole processes, side by side in one run: a bare axum echo, a replica with a trivial `run()`, a replica
//! with a small ONNX model and no script. The three take turns, so that a noisy machine is noisy for all of them.
//!
//! `cargo run --release -p outrigger-benches --bin cpu_per_request -- [--rounds N] [--seconds S] [--connections 1,16,64]
//! [--servers script,model]`

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use outrigger_backend::{LoadOptions, Shape, Tensor, host};
use outrigger_benches::{cpu, load, stats};
use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess, onnx};

const SCRIPT: &str = "def init():\n    pass\n\n\ndef run(data):\n    return data\n";

struct Contender {
    name: &'static str,
    pid: u32,
    address: SocketAddr,
    request: Vec<u8>,
}

struct Options {
    rounds: usize,
    seconds: f64,
    connections: Vec<usize>,
    servers: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let options = options()?;
    let folder = executable_folder()?;
    let scan: Vec<String> = (0..64).map(|pixel| format!("{}.5", pixel % 16)).collect();
    let row = scan.join(",");

    let mut echo = Echo::start(&folder)?;
    let outrigger = folder.join("outrigger");
    ensure!(outrigger.is_file(), "{} is missing: cargo build --release", outrigger.display());
    println!(
        "{} cores, {}; {} rounds of {} s each",
        std::thread::available_parallelism()?,
        cpu::name(),
        options.rounds,
        options.seconds
    );

    let body = format!("{{\"data\": [[{row}]]}}");
    let echoed = load::post("/score", None, &body);
    let mut contenders =
        vec![Contender { name: "axum echo", pid: echo.child.id(), address: echo.address, request: echoed }];
    let mut replicas = Vec::new();
    if options.servers.iter().any(|server| server == "script") {
        let script = Launch::new(&outrigger).script(SCRIPT).start();
        contenders.push(contender("script", &script, load::post("/score", Some(KEY), &body))?);
        replicas.push(script);
    }
    if options.servers.iter().any(|server| server == "model") {
        let tensors = format!(
            "{{\"inputs\":[{{\"name\":\"x\",\"shape\":[1,64],\"datatype\":\"FP32\",\"data\":[{row}]}}]}}"
        );
        let launch = Launch::new(&outrigger).file("mlp.onnx", onnx::mlp(&[64, 128, 128, 10]));
        let run_time = own_run_time(&folder, &launch.directory().join("mlp.onnx"))?;
        println!("the model's own Run: {run_time:.1} us CPU per call, one thread");
        let model = launch.args(["--model", "mlp=mlp.onnx"]).start();
        contenders.push(contender("model", &model, load::post("/v2/models/mlp/infer", Some(KEY), &tensors))?);
        replicas.push(model);
    }

    println!(
        "\n| connections | server | CPU us/request | ratio to echo (95 %) | requests/s | p50 ms | p99 ms |"
    );
    println!("|---|---|---|---|---|---|---|");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for &connections in &options.connections {
        runtime.block_on(compare(&contenders, connections, &options))?;
    }
    drop(replicas);
    echo.child.kill()?;
    echo.child.wait()?;
    Ok(())
}

async fn compare(contenders: &[Contender], connections: usize, options: &Options) -> anyhow::Result<()> {
    let mut rows: Vec<Rows> = contenders.iter().map(|_| Rows::default()).collect();
    for round in 0..=options.rounds {
        for (contender, rows) in contenders.iter().zip(&mut rows) {
            let before = cpu::tree(contender.pid);
            let duration = Duration::from_secs_f64(options.seconds);
            let run = load::run(contender.address, &contender.request, connections, duration)
                .await
                .context(contender.name)?;
            let spent = cpu::tree(contender.pid).saturating_sub(before);
            // The first round warms caches and code paths up.
            if round > 0 {
                rows.cpu.push(spent.as_secs_f64() * 1e6 / run.requests as f64);
                rows.rate.push(run.requests as f64 / run.took.as_secs_f64());
                rows.p50.push(stats::quantile(&run.latencies, 0.5) * 1e3);
                rows.p99.push(stats::quantile(&run.latencies, 0.99) * 1e3);
            }
        }
    }
    for (contender, row) in contenders.iter().zip(&rows) {
        let ratios: Vec<f64> = row.cpu.iter().zip(&rows[0].cpu).map(|(ours, echo)| ours / echo).collect();
        let (low, high) = stats::interval(&ratios);
        println!(
            "| {connections} | {} | {:.1} | {:.2} ({low:.2} to {high:.2}) | {:.0} | {:.2} | {:.2} |",
            contender.name,
            stats::median(&row.cpu),
            stats::median(&ratios),
            stats::median(&row.rate),
            stats::median(&row.p50),
            stats::median(&row.p99),
        );
    }
    Ok(())
}

#[derive(Default)]
struct Rows {
    cpu: Vec<f64>,
    rate: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

fn contender(name: &'static str, replica: &ReplicaProcess, request: Vec<u8>) -> anyhow::Result<Contender> {
    let address = replica.score.trim_start_matches("http://").parse()?;
    Ok(Contender { name, pid: replica.pid(), address, request })
}

/// CPU time of the model alone, in microseconds: the same library, the same input, one thread, no server.
fn own_run_time(folder: &Path, model: &Path) -> anyhow::Result<f64> {
    let library = outrigger_testkit::onnxruntime();
    let config = [
        ("onnxruntime".to_owned(), library.display().to_string()),
        ("intra_threads".to_owned(), "1".to_owned()),
    ];
    let backend = host::load(&folder.join("liboutrigger_cpu.so"), &config)?;
    let model = backend.open(0)?.load(&LoadOptions { path: model.to_owned(), intra_threads: None })?;
    let instance = model.instance()?;
    let data: Vec<u8> = (0..64u8).flat_map(|pixel| (f32::from(pixel % 16) + 0.5).to_le_bytes()).collect();
    let mut input = outrigger_backend::Buffer::zeroed(data.len())?;
    input.copy_from_slice(&data);
    let inputs = [Tensor::new(model.info().inputs[0].data_type, Shape::new([1, 64])?, input.freeze())?];
    let mut spent = 0.0;
    let calls = 20_000;
    // The second pass counts, the first warms up.
    for _ in 0..2 {
        let begun = thread_cpu();
        for _ in 0..calls {
            let mut outputs = model.info().place_outputs(&inputs, &[0])?;
            instance.infer(&inputs, &mut outputs)?;
        }
        spent = (thread_cpu() - begun).as_secs_f64();
    }
    Ok(spent * 1e6 / f64::from(calls))
}

/// CPU time of this thread so far.
fn thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0);
    Duration::from_nanos(nanos)
}

struct Echo {
    child: Child,
    address: SocketAddr,
}

impl Echo {
    fn start(folder: &Path) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let mut child =
            Command::new(folder.join("axum_echo")).stdout(Stdio::piped()).spawn().context("axum_echo")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        let address = line.trim().parse().with_context(|| format!("{line:?} after {:?}", begun.elapsed()))?;
        Ok(Self { child, address })
    }
}

fn executable_folder() -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe()?.parent().context("no folder")?.to_owned())
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options {
        rounds: 7,
        seconds: 2.0,
        connections: vec![1, 16, 64],
        servers: vec!["script".into(), "model".into()],
    };
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().with_context(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--rounds" => options.rounds = value.parse()?,
            "--seconds" => options.seconds = value.parse()?,
            "--connections" => {
                options.connections = value.split(',').map(str::parse).collect::<Result<_, _>>()?
            }
            "--servers" => options.servers = value.split(',').map(str::to_owned).collect(),
            _ => anyhow::bail!(
                "unknown flag {flag}: --rounds N, --seconds S, --connections LIST, --servers LIST"
            ),
        }
    }
    Ok(options)
}
