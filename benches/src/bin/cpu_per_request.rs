//! CPU time per request of whole processes, side by side in one run: a bare axum echo, a replica with a trivial `run()`, the same
//! in C in a worker and in the replica's own process, a replica with a small ONNX model and no script. They take turns, so that a noisy machine is noisy for all of them.
//!
//! `cargo run --release -p outrigger-benches --bin cpu_per_request -- [--rounds N] [--seconds S] [--connections 1,16,64]
//! [--servers script,native,trusted,model,tensor]`
//!
//! `tensor` is a contest of its own: a model whose input has 602,112 bytes, as binary data, beside axum that reads the same body.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use outrigger_backend::{LoadOptions, Run, Shape, Tensor, host};
use outrigger_benches::contest::{self, Contender};
use outrigger_benches::load;
use outrigger_benches::options::Options;
use outrigger_benches::server::{self, Server};
use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, onnx};

const SCRIPT: &str = "def init():\n    pass\n\n\ndef run(data):\n    return data\n";
const JSON: &str = "application/json";

fn main() -> anyhow::Result<()> {
    let defaults = Options {
        rounds: 7,
        turn: Duration::from_secs(2),
        connections: vec![1, 16, 64],
        servers: ["script", "native", "trusted", "model", "tensor"].map(Into::into).into(),
        cases: Vec::new(),
    };
    let options = Options::parse(defaults, std::env::args().skip(1))?;
    let folder = server::executable_folder()?;
    let scan: Vec<String> = (0..64).map(|pixel| format!("{}.5", pixel % 16)).collect();
    let row = scan.join(",");

    let echo = Server::ours(&folder.join("axum_echo"))?;
    let outrigger = server::outrigger()?;
    println!("{}", contest::circumstances(&options));

    let body = format!("{{\"data\": [[{row}]]}}");
    let echoed = load::post("/score", None, JSON, body.as_bytes());
    let mut contenders = vec![Contender::server("axum echo", &echo, echoed)];
    let mut replicas = Vec::new();
    if options.server("script") {
        let script = Launch::new(&outrigger).script(SCRIPT).start();
        let request = load::post("/score", Some(KEY), JSON, body.as_bytes());
        contenders.push(Contender::replica("script", &script, request)?);
        replicas.push(script);
    }
    for (name, flags) in [("native", &[][..]), ("trusted", &["--script-trusted"])] {
        if options.server(name) {
            let launch = Launch::new(&outrigger);
            compile_echo(&launch.directory().join("libecho.so"))?;
            let native = launch.args(["--script-native", "libecho.so"]).args(flags.iter().copied()).start();
            let request = load::post("/score", Some(KEY), JSON, body.as_bytes());
            contenders.push(Contender::replica(name, &native, request)?);
            replicas.push(native);
        }
    }
    if options.server("model") {
        let tensors = format!(
            "{{\"inputs\":[{{\"name\":\"x\",\"shape\":[1,64],\"datatype\":\"FP32\",\"data\":[{row}]}}]}}"
        );
        let launch = Launch::new(&outrigger).file("mlp.onnx", onnx::mlp(&[64, 128, 128, 10]));
        let scan: Vec<u8> = (0..64u8).flat_map(|pixel| (f32::from(pixel % 16) + 0.5).to_le_bytes()).collect();
        let run_time = own_run_time(&folder, &launch.directory().join("mlp.onnx"), &[1, 64], &scan, 20_000)?;
        println!("the model's own Run: {run_time:.1} us CPU per call, one thread");
        let model = launch.args(["--model", "mlp=mlp.onnx"]).start();
        let request = load::post("/v2/models/mlp/infer", Some(KEY), JSON, tensors.as_bytes());
        contenders.push(Contender::replica("model", &model, request)?);
        replicas.push(model);
    }

    print!("\n{}", contest::heading("echo", false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for &connections in &options.connections {
        let all = runtime.block_on(contest::hold(&contenders, connections, &options, || Ok(())))?;
        print!("{}", contest::rows(&contenders, &all, connections, &all[0].cpu, false));
    }
    drop(replicas);
    if options.server("tensor") { tensor(&options, &folder, &outrigger, &echo, &runtime) } else { Ok(()) }
}

/// The contest of a large tensor.
fn tensor(
    options: &Options,
    folder: &Path,
    outrigger: &Path,
    echo: &Server,
    runtime: &tokio::runtime::Runtime,
) -> anyhow::Result<()> {
    let shape = [1, 3, 224, 224];
    let values: Vec<u8> = (0..150_528u32).flat_map(|at| (at as f32 * 1e-5).to_le_bytes()).collect();
    let launch = Launch::new(outrigger).file("means.onnx", onnx::channel_means());
    let run_time = own_run_time(folder, &launch.directory().join("means.onnx"), &shape, &values, 2_000)?;
    println!("\nthe own Run of the model with the large input: {run_time:.1} us CPU per call, one thread");
    let replica = launch.args(["--model", "means=means.onnx"]).start();
    let size = values.len();
    let head = format!(
        "{{\"inputs\":[{{\"name\":\"x\",\"shape\":[1,3,224,224],\"datatype\":\"FP32\",\"parameters\":{{\"binary_data_size\":{size}}}}}]}}"
    );
    let body = [head.as_bytes(), &values].concat();
    let length = head.len().to_string();
    let headers =
        [("Content-Type", "application/octet-stream"), ("Inference-Header-Content-Length", &length)];
    let read = load::post_with("/read", None, &headers, &body);
    let infer = load::post_with("/v2/models/means/infer", Some(KEY), &headers, &body);
    let contenders =
        vec![Contender::server("axum read", echo, read), Contender::replica("tensor", &replica, infer)?];
    print!("\n{}", contest::heading("read", false));
    for &connections in &options.connections {
        let all = runtime.block_on(contest::hold(&contenders, connections, options, || Ok(())))?;
        print!("{}", contest::rows(&contenders, &all, connections, &all[0].cpu, false));
    }
    Ok(())
}

/// Compiles the trivial native script.
fn compile_echo(library: &Path) -> anyhow::Result<()> {
    let repository = outrigger_testkit::repository();
    let mut command = Command::new("cc");
    command.args(["-O2", "-shared", "-fPIC", "-I"]).arg(repository.join("entry-scripts/native/include"));
    command.arg("-o").arg(library).arg(repository.join("benches/src/echo.c"));
    anyhow::ensure!(command.status()?.success(), "{command:?} failed");
    Ok(())
}

/// CPU time of the model alone, in microseconds: the same library, the same input, one thread, no server.
fn own_run_time(folder: &Path, model: &Path, shape: &[i64], data: &[u8], calls: u32) -> anyhow::Result<f64> {
    let library = outrigger_testkit::onnxruntime();
    let config = [
        ("onnxruntime".to_owned(), library.display().to_string()),
        ("intra_threads".to_owned(), "1".to_owned()),
    ];
    let backend = host::load(&folder.join("liboutrigger_cpu.so"), &config)?;
    let model = backend.open(0)?.load(&LoadOptions::of(model.to_owned()))?;
    let instance = model.instance()?;
    let mut input = outrigger_backend::Buffer::zeroed(data.len())?;
    input.copy_from_slice(data);
    let inputs = [Tensor::new(model.info().inputs[0].data_type, Shape::new(shape)?, input.freeze())?];
    let mut spent = 0.0;
    // The second pass counts, the first warms up.
    for _ in 0..2 {
        let begun = thread_cpu();
        for _ in 0..calls {
            let mut outputs = model.info().place_outputs(&inputs, &[0])?;
            instance.infer(&inputs, &mut outputs, Run::default())?;
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
