//! From `exec` to the first answer, with nothing in the cache and with everything in it.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use outrigger_benches::process::{ProcessWatch, Sample};
use outrigger_benches::{cpu, stats};
use serde_json::{Value, json};

use crate::models::Model;
use crate::options::{Load, Options};
use crate::report::{self, megabytes, rounded};
use crate::stored::Stored;
use crate::{replica, report::thinned};

const LOOK: Duration = Duration::from_millis(100);
/// Rows of the table of a start.
const ROWS: usize = 12;

/// What there is before a start.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// The registry.
    Nothing,
    /// An index in it.
    Index,
    /// All files in the cache.
    Cache,
}

struct Start {
    load: Load,
    before: Before,
    listening: Duration,
    ready: Duration,
    answered: Duration,
    /// Of the process until then.
    cpu: Duration,
    /// Milliseconds of the first call of each model.
    calls: Vec<f64>,
    samples: Vec<Sample>,
}

pub(crate) async fn measure(stored: &Stored, options: &Options) -> anyhow::Result<()> {
    let mut starts = Vec::new();
    for load in &options.loads {
        stored.clear()?;
        for before in [Before::Nothing, Before::Cache] {
            starts.push(start(stored, *load, before).await.with_context(|| load.name())?);
        }
    }
    // Last, for it stays.
    if options.loads.contains(&Load::Use) {
        stored.index().await?;
        stored.clear()?;
        starts.push(start(stored, Load::Use, Before::Index).await.context("with an index")?);
    }
    print!(
        "\nready: {} models, {:.0} MB\n\n{}",
        stored.models.len(),
        megabytes(stored.size),
        table(&starts, stored)
    );
    for start in &starts {
        print!("\n{}:\n\n{}", start.name(), over_time(&start.samples));
    }
    let figures: Vec<Value> = starts.iter().map(|start| start.figures(stored)).collect();
    report::line(
        "ready",
        json!({
            "models": stored.models.len(),
            "bytes": stored.size,
            "pushing_s": rounded(stored.pushing.as_secs_f64(), 2),
            "starts": figures,
        }),
    );
    Ok(())
}

async fn start(stored: &Stored, load: Load, before: Before) -> anyhow::Result<Start> {
    let launch = stored.replica(load, None)?;
    let begun = Instant::now();
    let mut replica = launch.spawn();
    let listening = begun.elapsed();
    let watch = ProcessWatch::start(replica.pid(), begun, LOOK);
    let there = replica::there(&mut replica, typical(&stored.models)?).await?;
    let cpu = cpu::tree(replica.pid());
    let calls = replica::call_each(&replica, &stored.models).await?;
    let samples = watch.stop();
    replica.stop();
    Ok(Start {
        load,
        before,
        listening,
        ready: there.ready - begun,
        answered: there.answered - begun,
        cpu,
        calls,
        samples,
    })
}

/// The model whose size is nearest to the mean.
fn typical(models: &[Model]) -> anyhow::Result<&Model> {
    let mean = models.iter().map(|model| model.size).sum::<u64>() / models.len().max(1) as u64;
    models.iter().min_by_key(|model| model.size.abs_diff(mean)).context("no models")
}

impl Before {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "cold",
            Self::Index => "cold, with an index",
            Self::Cache => "warm cache",
        }
    }
}

impl Start {
    fn name(&self) -> String {
        format!("{}, load = {}", self.before.name(), self.load.name())
    }

    /// Megabytes per second from `exec` to readiness, where they had to come.
    fn rate(&self, size: u64) -> Option<f64> {
        // What is loaded with its first call is fetched then.
        let all = self.before != Before::Cache && self.load != Load::Use;
        all.then(|| megabytes(size) / self.ready.as_secs_f64())
    }

    fn figures(&self, stored: &Stored) -> Value {
        let (resident, descriptors, threads) = report::peak(&self.samples);
        let call = |part| rounded(stats::quantile(&self.calls, part), 3);
        json!({
            "load": self.load.name(),
            "before": self.before.name(),
            "listening_s": rounded(self.listening.as_secs_f64(), 3),
            "ready_s": rounded(self.ready.as_secs_f64(), 3),
            "first_answer_s": rounded(self.answered.as_secs_f64(), 3),
            "mb_per_s": self.rate(stored.size).map(|rate| rounded(rate, 1)),
            "cpu_s": self.cpu.as_secs_f64(),
            "first_call_ms": { "p50": call(0.5), "p99": call(0.99), "max": call(1.0) },
            "peak": { "resident_mb": rounded(megabytes(resident), 1), "descriptors": descriptors, "threads": threads },
            "over_time": report::series(&self.samples),
        })
    }
}

fn table(starts: &[Start], stored: &Stored) -> String {
    let mut text = "| start | listening s | ready s | MB/s | first answer s | CPU s | first call of each: p50 ms | p99 ms | max ms | most MB resident | descriptors | threads |\n\
                    |---|---|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for start in starts {
        let (resident, descriptors, threads) = report::peak(&start.samples);
        let call = |part| stats::quantile(&start.calls, part);
        text += &format!(
            "| {} | {:.3} | {:.2} | {} | {:.2} | {:.1} | {:.2} | {:.2} | {:.2} | {:.0} | {descriptors} | {threads} |\n",
            start.name(),
            start.listening.as_secs_f64(),
            start.ready.as_secs_f64(),
            start.rate(stored.size).map(|rate| format!("{rate:.0}")).unwrap_or_default(),
            start.answered.as_secs_f64(),
            start.cpu.as_secs_f64(),
            call(0.5),
            call(0.99),
            call(1.0),
            megabytes(resident),
        );
    }
    text
}

fn over_time(samples: &[Sample]) -> String {
    let mut text = "| s | MB resident | descriptors | threads |\n|---|---|---|---|\n".to_owned();
    for sample in thinned(samples, ROWS) {
        let (at, resident) = (sample.at.as_secs_f64(), megabytes(sample.resident));
        text += &format!("| {at:.1} | {resident:.0} | {} | {} |\n", sample.descriptors, sample.threads);
    }
    text
}
