//! What a reload of a large model costs the calls of another.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use outrigger_benches::client::{Address, Client, request};
use outrigger_benches::{load, stats};
use outrigger_testkit::ReplicaProcess;
use serde_json::{Value, json};

use crate::models::{LARGEST, Model};
use crate::options::Options;
use crate::report::{self, rounded};
use crate::{configuration, replica};

/// Bytes of the model that is called all the time.
const SMALL: f64 = 100e3;

/// A stretch of load.
struct Block {
    /// In milliseconds.
    p50: f64,
    p99: f64,
    calls: u64,
    /// Milliseconds from the request to unload to the answer that it is loaded again, for each.
    reloads: Vec<f64>,
}

/// The management of a replica, and the model that it reloads.
struct Admin {
    client: Client,
    model: Model,
    every: Duration,
}

pub(crate) async fn measure(options: &Options) -> anyhow::Result<()> {
    let (large, small) = (Model::new(1, LARGEST), Model::new(2, SMALL));
    let text = configuration::files(&[(&large.name, "large.onnx"), (&small.name, "small.onnx")]);
    let launch = replica::launch(text)?.file("large.onnx", large.bytes()).file("small.onnx", small.bytes());
    let mut replica = launch.spawn();
    replica::there(&mut replica, &small).await?;
    let client = Client::new(Address::Socket(replica.admin_socket()), replica::PATIENCE);
    let mut admin = Admin { client, model: large, every: options.every };
    // Each pair is a block without and one with reloads; one more comes before them, to warm caches and code paths up.
    let mut pairs = Vec::new();
    for pair in 0..=options.blocks / 2 {
        let without = block(&replica, &small, options, None).await?;
        let with = block(&replica, &small, options, Some(&mut admin)).await?;
        if pair > 0 {
            pairs.push([without, with]);
        }
    }
    replica.stop();
    report(options, &pairs);
    Ok(())
}

async fn block(
    replica: &ReplicaProcess,
    small: &Model,
    options: &Options,
    admin: Option<&mut Admin>,
) -> anyhow::Result<Block> {
    let until = Instant::now() + options.turn;
    let address = replica.score.trim_start_matches("http://").parse()?;
    let call = small.call(None);
    let load = load::run(address, &call, options.callers, options.turn);
    let reloads = async {
        match admin {
            Some(admin) => admin.reload_until(until, replica).await,
            None => Ok(Vec::new()),
        }
    };
    let (load, reloads) = tokio::try_join!(load, reloads)?;
    ensure!(!load.latencies.is_empty(), "no call was answered");
    Ok(Block {
        p50: stats::quantile(&load.latencies, 0.5) * 1e3,
        p99: stats::quantile(&load.latencies, 0.99) * 1e3,
        calls: load.requests,
        reloads,
    })
}

impl Admin {
    /// Reloads again and again, and looks at the end whether the model answers.
    async fn reload_until(&mut self, until: Instant, replica: &ReplicaProcess) -> anyhow::Result<Vec<f64>> {
        let (begun, mut reloads) = (Instant::now(), Vec::new());
        if self.every.is_zero() {
            return Ok(reloads);
        }
        for number in 0.. {
            tokio::time::sleep_until((begun + self.every * number).into()).await;
            let asked = Instant::now();
            if asked >= until {
                break;
            }
            self.ask("unload").await?;
            self.ask("load").await?;
            reloads.push(asked.elapsed().as_secs_f64() * 1e3);
        }
        replica::call_each(replica, std::slice::from_ref(&self.model)).await?;
        Ok(reloads)
    }

    async fn ask(&mut self, what: &str) -> anyhow::Result<()> {
        let path = format!("/models/{}/{what}", self.model.name);
        let answer = self.client.send(&request("POST", &path, &[], b"")).await.context("management")?;
        let said = String::from_utf8_lossy(&answer.body);
        ensure!((200..300).contains(&answer.status), "POST {path}: {} {said}", answer.status);
        Ok(())
    }
}

fn report(options: &Options, pairs: &[[Block; 2]]) {
    let ratios: Vec<f64> = pairs.iter().map(|[without, with]| with.p99 / without.p99).collect();
    let (median, (low, high)) = (stats::median(&ratios), stats::interval(&ratios));
    let reloads: Vec<f64> = pairs.iter().flat_map(|[_, with]| with.reloads.iter().copied()).collect();
    println!(
        "\nreload: {} blocks of {} s, {} connections; a model of {:.0} MB is reloaded every {} s in each second one\n",
        2 * pairs.len(),
        options.turn.as_secs_f64(),
        options.callers,
        LARGEST / 1e6,
        options.every.as_secs_f64()
    );
    println!(
        "| pair | p50 ms without | p50 ms with | p99 ms without | p99 ms with | ratio of p99 | reloads |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (number, ([without, with], ratio)) in pairs.iter().zip(&ratios).enumerate() {
        println!(
            "| {} | {:.3} | {:.3} | {:.3} | {:.3} | {ratio:.3} | {} |",
            number + 1,
            without.p50,
            with.p50,
            without.p99,
            with.p99,
            with.reloads.len()
        );
    }
    println!(
        "\nratio of p99: {median:.3} ({low:.3} to {high:.3}), median of the pairs and its 95 % interval"
    );
    println!(
        "{} reloads, p50 {:.1} ms, max {:.1} ms",
        reloads.len(),
        stats::median(&reloads),
        stats::quantile(&reloads, 1.0)
    );
    let shown = |at: usize| -> Vec<Value> {
        let block = |pair: &[Block; 2]| {
            let Block { p50, p99, calls, reloads } = &pair[at];
            json!({ "p50_ms": rounded(*p50, 4), "p99_ms": rounded(*p99, 4), "calls": calls, "reloads": reloads.len() })
        };
        pairs.iter().map(block).collect()
    };
    report::line(
        "reload",
        json!({
            "seconds": options.turn.as_secs_f64(),
            "every_s": options.every.as_secs_f64(),
            "callers": options.callers,
            "without": shown(0),
            "with": shown(1),
            "p99_ratio": { "median": rounded(median, 4), "low": rounded(low, 4), "high": rounded(high, 4) },
            "reloads": reloads.len(),
            "reload_ms": { "p50": rounded(stats::median(&reloads), 2), "max": rounded(stats::quantile(&reloads, 1.0), 2) },
        }),
    );
}
