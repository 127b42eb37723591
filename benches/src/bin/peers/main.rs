//! Outrigger side by side with other servers, each with one worker and the smallest program that a user of it would write
//! (`benches/peers`): azureml-inference-server-http, FastAPI on uvicorn, mosec. `cargo xtask peers` installs them and runs this.
//!
//! `peers [--rounds N] [--seconds S] [--connections 1,16] [--servers outrigger,fastapi] [--cases trivial,batch,tensor,stream]`

mod entries;
mod numpy;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use outrigger_benches::contest::{self, Contender};
use outrigger_benches::options::Options;
use outrigger_benches::server::{self, Server};
use outrigger_benches::streaming::Client;
use outrigger_benches::{load, stats};
use serde_json::{Value, json};

use entries::{BATCH, Entry, STREAM, TENSOR, TRIVIAL};
use numpy::NumpyCall;

const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";
/// Floats of a picture as image classifiers take it.
const FLOATS: usize = 3 * 224 * 224;
/// Streamed answers of each server in a round.
const STREAMS: usize = 30;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let defaults = Options {
        rounds: 7,
        turn: Duration::from_secs(2),
        connections: vec![16],
        servers: entries::names(),
        cases: ["trivial", "batch", "tensor", "stream"].map(str::to_owned).into(),
    };
    let options = Options::parse(defaults, std::env::args().skip(1))?;
    println!("{}", contest::circumstances(&options));
    if options.case("trivial") {
        trivial("trivial", TRIVIAL, &options).await.context("trivial")?;
    }
    if options.case("batch") {
        trivial("batch", BATCH, &options).await.context("batch")?;
    }
    if options.case("tensor") {
        tensor(&options).await.context("tensor")?;
    }
    if options.case("stream") {
        stream(&options).await.context("stream")?;
    }
    Ok(())
}

async fn trivial(case: &str, entries: &'static [Entry], options: &Options) -> anyhow::Result<()> {
    let scan: Vec<f64> = (0..64).map(|pixel| f64::from(pixel % 16) + 0.5).collect();
    let value = json!({ "data": [scan] });
    let body = value.to_string();
    let echo = Server::ours(&server::executable_folder()?.join("axum_echo"))?;
    let request = load::post("/score", None, JSON, body.as_bytes());
    let mut contenders = vec![Contender::server("axum echo", &echo, request)];
    let running = entries::start(entries, options, JSON, body.as_bytes()).await?;
    for one in &running {
        // AzureML's contract gives a script text, and what it returns is written as JSON once more.
        let is_right = |answer: &Value| match answer {
            Value::String(text) => serde_json::from_str::<Value>(text).is_ok_and(|answer| answer == value),
            answer => *answer == value,
        };
        one.check(is_right).await?;
        contenders.push(one.contender()?);
    }
    print!("\n{case}: {} bytes of JSON, sent back\n\n{}", body.len(), contest::heading("echo", true));
    for &connections in &options.connections {
        let all = contest::hold(&contenders, connections, options, || Ok(())).await?;
        print!("{}", contest::rows(&contenders, &all, connections, &all[0].cpu, true));
    }
    Ok(())
}

async fn tensor(options: &Options) -> anyhow::Result<()> {
    let floats: Vec<f32> = (0..FLOATS).map(|at| (at % 251) as f32 / 251.0).collect();
    let body: Vec<u8> = floats.iter().flat_map(|float| float.to_le_bytes()).collect();
    let mean = floats.iter().copied().map(f64::from).sum::<f64>() / FLOATS as f64;
    let reader = Server::ours(&server::executable_folder()?.join("axum_echo"))?;
    let mut call = NumpyCall::start(&body)?;
    let request = load::post("/read", None, BYTES, &body);
    ensure!(load::once(reader.address, &request).await? == body.len().to_string().as_bytes());
    let mut contenders = vec![Contender::server("axum read", &reader, request)];
    let running = entries::start(TENSOR, options, BYTES, &body).await?;
    for one in &running {
        one.check(|answer| answer.as_f64().is_some_and(|answer| (answer - mean).abs() < 1e-4)).await?;
        contenders.push(one.contender()?);
    }
    println!("\ntensor: {} bytes of float32, their mean sent back", body.len());
    let mut table = contest::heading("axum read + NumPy call", true);
    for &connections in &options.connections {
        let mut calls = Vec::new();
        let aside = || {
            calls.push(call.cpu_per_call()?);
            Ok(())
        };
        let all = contest::hold(&contenders, connections, options, aside).await?;
        let baseline: Vec<f64> = all[0].cpu.iter().zip(&calls).map(|(read, call)| read + call).collect();
        println!(
            "{connections} connections: the NumPy call alone {:.1} µs of CPU, with axum's reading {:.1} µs",
            stats::median(&calls),
            stats::median(&baseline)
        );
        table += &contest::rows(&contenders, &all, connections, &baseline, true);
    }
    print!("\n{table}");
    Ok(())
}

async fn stream(options: &Options) -> anyhow::Result<()> {
    let running = entries::start(STREAM, options, JSON, b"{}").await?;
    let mut clients = Vec::new();
    for one in &running {
        clients.push((one, Client::new(one.address()?), Vec::new()));
    }
    for round in 0..=options.rounds {
        for (one, client, times) in &mut clients {
            for _ in 0..STREAMS {
                let time = client.first_byte(&one.request).with_context(|| one.entry.name)?;
                // As everywhere, the first round warms up.
                if round > 0 {
                    times.push(time * 1e3);
                }
            }
        }
    }
    println!("\nstream: from the script's first `yield` to the client's first byte, one connection\n");
    println!("| server | answers | p50 ms | p90 ms |\n|---|---|---|---|");
    for (one, _, times) in &clients {
        let (p50, p90) = (stats::median(times), stats::quantile(times, 0.9));
        println!("| {} | {} | {p50:.3} | {p90:.3} |", one.entry.name, times.len());
    }
    Ok(())
}
