//! What auth, telemetry and collection cost a request, as CPU time of whole processes side by side in one run. All serve one small ONNX
//! model, and take turns:
//!
//! - `plain`: nobody is asked for a key, and no spans are made
//! - `key`: as it is by default, with a key
//! - `traced`: with a key, and a span of each request on its way to a collector, which takes them
//! - `bodies`, `kept`: bodies of 1 KB; with `kept` all requests and answers are collected, and uploaded to a folder
//! - `before`: another build of the server, whose executable `OUTRIGGER_BENCH_BEFORE` names, with neither key nor spans
//!
//! `cargo run --release -p outrigger-benches --bin overheads -- [--rounds N] [--seconds S] [--connections 1,16,64]
//! [--servers plain,key,traced,bodies,kept,before]`

use std::path::PathBuf;
use std::time::Duration;

use outrigger_benches::contest::{self, Contender, Figures};
use outrigger_benches::load;
use outrigger_benches::options::Options;
use outrigger_benches::server::{self, Server};
use outrigger_benches::stats;
use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess, http, onnx};

const JSON: &str = "application/json";
/// What names the other build.
const BEFORE: &str = "OUTRIGGER_BENCH_BEFORE";

fn main() -> anyhow::Result<()> {
    let servers = ["plain", "key", "traced", "bodies", "kept", "before"];
    let defaults = Options {
        rounds: 11,
        turn: Duration::from_secs(2),
        connections: vec![16],
        servers: servers.map(Into::into).into(),
        cases: Vec::new(),
    };
    let mut options = Options::parse(defaults, std::env::args().skip(1))?;
    let before = std::env::var_os(BEFORE).map(PathBuf::from);
    if before.is_none() {
        println!("{BEFORE} names no other build: `before` takes no part");
        options.servers.retain(|server| server != "before");
    }
    // What takes spans: reads them, and says how long they were.
    let collector = Server::ours(&server::executable_folder()?.join("axum_echo"))?;
    let outrigger = server::outrigger()?;
    println!("{}\n", contest::circumstances(&options));

    // 1 KB, the envelope counted in. White space would not do: it is not kept.
    let (small, large) = (body(1), body(12));
    println!("bodies of {} and {} bytes\n", small.len(), large.len());
    let mut contest = Contest::default();
    let open = ["--auth-enabled=false"];
    let traces = format!("http://{}/read", collector.address);
    for name in &options.servers {
        let launch = Launch::new(before.as_ref().filter(|_| name == "before").unwrap_or(&outrigger));
        let launch =
            launch.file("mlp.onnx", onnx::mlp(&[64, 128, 128, 10])).args(["--model", "mlp=mlp.onnx"]);
        let launch = match name.as_str() {
            "plain" | "before" => launch.args(open),
            "traced" => launch.args(["--telemetry-traces-endpoint", &traces]),
            "kept" => launch.args(["--collect-to", "kept", "--collect-collections", "request,response"]),
            _ => launch,
        };
        let key = Some(KEY).filter(|_| !["plain", "before"].contains(&name.as_str()));
        let body = if ["bodies", "kept"].contains(&name.as_str()) { &large } else { &small };
        contest.take(name, launch.start(), load::post("/v2/models/mlp/infer", key, JSON, body.as_bytes()))?;
    }

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut differences = String::new();
    print!("{}", contest::heading("the first", false));
    for &connections in &options.connections {
        let all = runtime.block_on(contest::hold(&contest.contenders, connections, &options, || Ok(())))?;
        print!("{}", contest::rows(&contest.contenders, &all, connections, &all[0].cpu, false));
        for (one, other) in [
            ("before", "plain"),
            ("before", "key"),
            ("plain", "key"),
            ("plain", "traced"),
            ("key", "traced"),
            ("bodies", "kept"),
        ] {
            if let (Some(from), Some(to)) = (contest.figures(&all, one), contest.figures(&all, other)) {
                differences += &row(connections, (one, from), (other, to));
            }
        }
    }
    println!(
        "\n| connections | from | to | µs CPU more (95 %) | per cent more (95 %) |\n|---|---|---|---|---|\n{differences}"
    );
    // What is dropped costs less than what is sent, so it is told beside the figures.
    for (contender, replica) in contest.contenders.iter().zip(&contest.replicas) {
        for line in told(replica)? {
            println!("{}: {line}", contender.name);
        }
    }
    Ok(())
}

/// What became of spans and of records, as metrics have it.
fn told(replica: &ReplicaProcess) -> anyhow::Result<Vec<String>> {
    let address = replica.observe.trim_start_matches("http://").parse()?;
    let metrics = String::from_utf8(http::ask(address, "GET", "/metrics", &[], b"")?.body)?;
    let names = [
        "outrigger_telemetry_requests_total",
        "outrigger_collect_dropped_total",
        "outrigger_collect_persisted_total",
    ];
    let is_one = |line: &&str| names.iter().any(|name| line.starts_with(name));
    Ok(metrics.lines().filter(is_one).map(str::to_owned).collect())
}

/// Who takes part, and the processes.
#[derive(Default)]
struct Contest {
    contenders: Vec<Contender>,
    replicas: Vec<ReplicaProcess>,
}

impl Contest {
    fn take(&mut self, name: &str, replica: ReplicaProcess, request: Vec<u8>) -> anyhow::Result<()> {
        self.contenders.push(Contender::replica(name, &replica, request)?);
        self.replicas.push(replica);
        Ok(())
    }

    fn figures<'a>(&self, all: &'a [Figures], name: &str) -> Option<&'a Figures> {
        let pair = self.contenders.iter().zip(all).find(|(contender, _)| contender.name == name);
        pair.map(|(_, figures)| figures)
    }
}

/// A call of the model, whose numbers have so many digits behind the point.
fn body(digits: usize) -> String {
    let scan: Vec<String> = (0..64).map(|pixel| format!("{:.digits$}", f64::from(pixel) / 7.0)).collect();
    let row = scan.join(",");
    format!("{{\"inputs\":[{{\"name\":\"x\",\"shape\":[1,64],\"datatype\":\"FP32\",\"data\":[{row}]}}]}}")
}

/// What one costs more than the other, formed within each round.
fn row(connections: usize, (one, from): (&str, &Figures), (other, to): (&str, &Figures)) -> String {
    let pairs = || from.cpu.iter().zip(&to.cpu);
    let shown = |values: Vec<f64>| {
        let (low, high) = stats::interval(&values);
        format!("{:.2} ({low:.2} to {high:.2})", stats::median(&values))
    };
    let micros = shown(pairs().map(|(from, to)| to - from).collect());
    let percent = shown(pairs().map(|(from, to)| (to / from - 1.0) * 1e2).collect());
    format!("| {connections} | {one} | {other} | {micros} | {percent} |\n")
}
