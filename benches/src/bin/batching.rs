//! What batching brings, and what it costs.
//!
//! `cargo run --release -p outrigger-benches --bin batching -- [--rounds N] [--seconds S] [--cases gain,small] [--connections 1,16,64]`
//!
//! *gain*: a perceptron 512-1024-1024-512. Rows per second of the bare session (the plug-in's `infer`, as many threads as device threads) one
//! by one and 32 at a time; of the runtime (`Models::infer`, 128 callers) without and with `max_batch = 32`; of the whole server over HTTP (128
//! connections, JSON tensors) without and with it. All six take turns, round by round; gains are formed within a round.
//!
//! *small*: a perceptron of about 5 µs, 64-128-128-10. CPU time per request of a server with `max_batch = 32` beside one without; and beside the
//! executable that `OUTRIGGER_BASELINE` names, if it is set, which knows nothing of batches.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use outrigger_backend::{Buffer, DataType, LoadOptions, Run, Shape, Tensor, host};
use outrigger_benches::contest::{self, Contender};
use outrigger_benches::options::Options;
use outrigger_benches::{load, server, stats};
use outrigger_runtime::{Metrics, Models};
use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess, onnx};

const WIDTHS: &[i64] = &[512, 1024, 1024, 512];
const SMALL: &[i64] = &[64, 128, 128, 10];
const BATCH: usize = 32;
/// Callers at once: a batch for each of two threads that runs, and one that waits.
const CALLERS: usize = 128;

fn main() -> anyhow::Result<()> {
    let defaults = Options {
        rounds: 7,
        turn: Duration::from_secs(2),
        connections: vec![1, 16, 64],
        servers: Vec::new(),
        cases: ["gain", "small"].map(Into::into).into(),
    };
    let options = Options::parse(defaults, std::env::args().skip(1))?;
    println!("{}", contest::circumstances(&options));
    if options.case("gain") {
        gain(&options)?;
    }
    if options.case("small") {
        small(&options)?;
    }
    Ok(())
}

fn gain(options: &Options) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("mlp.onnx");
    std::fs::write(&file, onnx::mlp(WIDTHS))?;
    let bare = Bare::new(&file)?;
    let models = [1, BATCH].map(|most| Runtime::new(&file, most));
    let models = models.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let replicas = [1, BATCH].map(|most| replica(server::outrigger()?.as_path(), WIDTHS, Some(most)));
    let replicas = replicas.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let request = request(WIDTHS[0]);
    let client = tokio::runtime::Builder::new_current_thread().enable_all().build()?;

    let names = ["bare session", "runtime, `Models::infer`", "whole server, HTTP with JSON"];
    let mut rates: [[Vec<f64>; 2]; 3] = Default::default();
    for round in 0..=options.rounds {
        for (at, most) in [1, BATCH].into_iter().enumerate() {
            let address = replicas[at].score.trim_start_matches("http://").parse()?;
            let run = || client.block_on(load::run(address, &request, CALLERS, options.turn));
            let turns = [bare.rate(most, options.turn)?, models[at].rate(options.turn)?, {
                let run = run()?;
                run.requests as f64 / run.took.as_secs_f64()
            }];
            // The first round warms up.
            if round > 0 {
                turns.into_iter().zip(&mut rates).for_each(|(rate, rates)| rates[at].push(rate));
            }
        }
    }
    println!(
        "\n{} callers, {} device threads, mean width {:.1} (runtime) and {:.1} (server)\n",
        CALLERS,
        threads(),
        models[1].width()?,
        width(&client, &replicas[1])?
    );
    println!(
        "| | rows/s, one by one | rows/s, up to {BATCH} together | gain (95 %) | of the bare session's (95 %) |"
    );
    println!("|---|---|---|---|---|");
    let gains: Vec<Vec<f64>> = rates.iter().map(|[one, many]| quotients(many, one)).collect();
    for ((name, [one, many]), gain) in names.iter().zip(&rates).zip(&gains) {
        let part: Vec<f64> = quotients(gain, &gains[0]);
        println!(
            "| {name} | {:.0} | {:.0} | {} | {} |",
            stats::median(one),
            stats::median(many),
            shown(gain, 1.0, "×"),
            shown(&part, 100.0, " %")
        );
    }
    Ok(())
}

fn small(options: &Options) -> anyhow::Result<()> {
    let ours = server::outrigger()?;
    let mut replicas = vec![
        ("without".to_owned(), replica(&ours, SMALL, Some(1))?),
        (format!("max_batch = {BATCH}"), replica(&ours, SMALL, Some(BATCH))?),
    ];
    if let Some(baseline) = std::env::var_os("OUTRIGGER_BASELINE") {
        replicas.push(("baseline".to_owned(), replica(Path::new(&baseline), SMALL, None)?));
    }
    let request = request(SMALL[0]);
    let contenders: Vec<_> = replicas
        .iter()
        .map(|(name, replica)| Contender::replica(name, replica, request.clone()))
        .collect::<anyhow::Result<_>>()?;
    print!("\n{}", contest::heading("without", false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for &connections in &options.connections {
        let all = runtime.block_on(contest::hold(&contenders, connections, options, || Ok(())))?;
        print!("{}", contest::rows(&contenders, &all, connections, &all[0].cpu, false));
    }
    Ok(())
}

fn replica(executable: &Path, widths: &[i64], max_batch: Option<usize>) -> anyhow::Result<ReplicaProcess> {
    let most = max_batch.map(|most| format!("max_batch = {most}")).unwrap_or_default();
    let config = format!("[models.mlp]\npath = 'mlp.onnx'\n{most}");
    let launch = Launch::new(executable).file("mlp.onnx", onnx::mlp(widths)).file("outrigger.toml", config);
    Ok(launch.args(["--config", "outrigger.toml"]).start())
}

fn row(width: i64) -> Vec<f32> {
    (0..width).map(|at| (at % 16) as f32 + 0.5).collect()
}

fn request(width: i64) -> Vec<u8> {
    let data: Vec<String> = row(width).iter().map(f32::to_string).collect();
    let data = data.join(",");
    let body = format!(
        "{{\"inputs\":[{{\"name\":\"x\",\"shape\":[1,{width}],\"datatype\":\"FP32\",\"data\":[{data}]}}]}}"
    );
    load::post("/v2/models/mlp/infer", Some(KEY), "application/json", body.as_bytes())
}

fn tensor(rows: usize) -> anyhow::Result<Tensor> {
    let row: Vec<u8> = row(WIDTHS[0]).iter().flat_map(|value| value.to_ne_bytes()).collect();
    let mut buffer = Buffer::zeroed(rows * row.len())?;
    buffer.chunks_exact_mut(row.len()).for_each(|place| place.copy_from_slice(&row));
    Ok(Tensor::new(DataType::Fp32, Shape::new([rows as i64, WIDTHS[0]])?, buffer.freeze())?)
}

/// Device threads, as the configuration's default has it.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The model with nothing around it.
struct Bare {
    model: Arc<dyn outrigger_backend::Model>,
    instance: Arc<dyn outrigger_backend::Instance>,
}

impl Bare {
    fn new(file: &Path) -> anyhow::Result<Self> {
        let library = outrigger_testkit::onnxruntime().display().to_string();
        let settings = [("onnxruntime".to_owned(), library), ("intra_threads".to_owned(), "1".to_owned())];
        let backend = host::load(&server::executable_folder()?.join("liboutrigger_cpu.so"), &settings)?;
        let model = backend.open(0)?.load(&LoadOptions::of(file.to_owned()))?;
        let instance = model.instance()?;
        Ok(Self { model, instance })
    }

    /// Rows per second, so many at a time.
    fn rate(&self, rows: usize, duration: Duration) -> anyhow::Result<f64> {
        let inputs = [tensor(rows)?];
        let begun = Instant::now();
        let one = || -> anyhow::Result<u64> {
            let mut runs = 0;
            while begun.elapsed() < duration {
                let mut outputs = self.model.info().place_outputs(&inputs, &[0])?;
                self.instance.infer(&inputs, &mut outputs, Run::default())?;
                runs += 1;
            }
            Ok(runs)
        };
        let runs = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads()).map(|_| scope.spawn(one)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Ok(0)))
                .sum::<anyhow::Result<u64>>()
        })?;
        Ok((runs * rows as u64) as f64 / begun.elapsed().as_secs_f64())
    }
}

/// The replica's models, without its front.
struct Runtime {
    models: Arc<Models>,
    metrics: Metrics,
    tokio: tokio::runtime::Runtime,
}

impl Runtime {
    fn new(file: &Path, max_batch: usize) -> anyhow::Result<Self> {
        let (file, plugin) = (file.display(), server::executable_folder()?);
        let library = outrigger_testkit::onnxruntime();
        let text = format!(
            "state_dir = '/nonexistent'\n[models.mlp]\npath = '{file}'\nmax_batch = {max_batch}\n[backends]\npath = '{}'\nonnxruntime = '{}'",
            plugin.display(),
            library.display()
        );
        let (models, metrics) = outrigger_benches::models::load(text)?;
        let models = Arc::new(models);
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { models, metrics, tokio })
    }

    /// Rows per second of so many callers, each with one row at a time.
    fn rate(&self, duration: Duration) -> anyhow::Result<f64> {
        let (over, rows) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let model = Arc::clone(self.models.get("mlp")?);
        let input = tensor(1)?;
        let begun = Instant::now();
        self.tokio.block_on(async {
            let mut callers = tokio::task::JoinSet::new();
            for _ in 0..CALLERS {
                let (models, model, input) = (Arc::clone(&self.models), Arc::clone(&model), input.clone());
                let (over, rows) = (Arc::clone(&over), Arc::clone(&rows));
                callers.spawn(async move {
                    while !over.load(Ordering::Relaxed) {
                        let picked = model.stable().lease().context("it is loaded from the start")?.pick();
                        models.infer(picked, vec![input.clone()], vec![0], None, None).await?;
                        rows.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<_, anyhow::Error>(())
                });
            }
            tokio::time::sleep(duration).await;
            let rate = rows.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
            over.store(true, Ordering::Relaxed);
            while let Some(ended) = callers.join_next().await {
                ended??;
            }
            Ok(rate)
        })
    }

    fn width(&self) -> anyhow::Result<f64> {
        mean(&self.metrics.encode()?)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.models.stop();
    }
}

/// The mean number of rows of a run in a server.
fn width(client: &tokio::runtime::Runtime, replica: &ReplicaProcess) -> anyhow::Result<f64> {
    let address = replica.observe.trim_start_matches("http://").parse()?;
    let text = client.block_on(load::once(address, b"GET /metrics HTTP/1.1\r\nHost: bench\r\n\r\n"))?;
    mean(&String::from_utf8(text)?)
}

fn mean(metrics: &str) -> anyhow::Result<f64> {
    let value = |name: &str| -> anyhow::Result<f64> {
        let line = metrics.lines().find(|line| line.starts_with(name)).with_context(|| name.to_owned())?;
        Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
    };
    Ok(value("outrigger_batch_rows_sum")? / value("outrigger_batch_rows_count")?)
}

fn quotients(values: &[f64], to: &[f64]) -> Vec<f64> {
    values.iter().zip(to).map(|(value, to)| value / to).collect()
}

fn shown(values: &[f64], factor: f64, unit: &str) -> String {
    let (low, high) = stats::interval(values);
    let median = stats::median(values);
    format!("{:.2}{unit} ({:.2} to {:.2})", factor * median, factor * low, factor * high)
}
