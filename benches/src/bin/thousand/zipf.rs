//! More models than fit: calls by Zipf's law, with memory for a part of the models.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use outrigger_benches::process::{ProcessWatch, Sample};
use outrigger_benches::{cpu, stats};
use outrigger_testkit::ReplicaProcess;
use serde_json::{Value, json};
use tokio::task::LocalSet;

use crate::models::Model;
use crate::options::{Load, Options};
use crate::replica::{self, Metrics};
use crate::report::{self, megabytes, rounded};
use crate::stored::Stored;
use crate::trace;

/// After this an answer is of no use.
const DEADLINE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_secs(1);
/// What is shown of memory: one look in so many.
const SHOWN: usize = 5;
/// How many parts of the time are compared.
const PARTS: usize = 5;

const BYTES: &str = "outrigger_model_bytes";
const LOADS: &str = "outrigger_model_loads_total";

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Answered,
    /// 200, but after the deadline.
    Late,
    /// Another status, its code, and whether it says when to come again.
    Refused(u16, String, bool),
    /// No answer.
    Broken,
}

struct Outcome {
    call: usize,
    fate: Fate,
    /// In seconds.
    took: f64,
}

/// What all calls came to.
struct Run {
    outcomes: Vec<Outcome>,
    took: Duration,
    /// Of the replica.
    cpu: Duration,
    samples: Vec<Sample>,
    /// By each of the metric's labels; `None` if there is no such metric.
    loads: Option<BTreeMap<String, f64>>,
}

pub(crate) async fn measure(stored: &Stored, options: &Options) -> anyhow::Result<()> {
    let load = options.loads.iter().copied().find(|load| *load != Load::Start).unwrap_or(Load::Default);
    let held = held(stored, load).await.context("how much models hold")?;
    let mean = held.iter().sum::<u64>() as f64 / held.len().max(1) as f64;
    let budget = (mean * options.resident as f64) as u64;
    let trace = trace::zipf(stored.models.len(), options.requests, options.skew, options.seed);
    let hits = trace::lru(&trace, &held, budget);
    // A replica that loads all models at its start does not start with less memory than that takes.
    let memory = (load == Load::Use).then_some(budget);
    let mut replica = stored.replica(load, memory)?.spawn();
    let run = run(&mut replica, stored, &trace, options).await?;
    replica.stop();
    report(stored, options, &Setting { load, held, budget, trace, hits }, &run);
    Ok(())
}

/// What each model holds once it is loaded, as a replica says that has memory for all of them.
async fn held(stored: &Stored, load: Load) -> anyhow::Result<Vec<u64>> {
    stored.clear()?;
    let mut replica = stored.replica(load, None)?.spawn();
    replica::there(&mut replica, stored.models.first().context("no models")?).await?;
    replica::call_each(&replica, &stored.models).await?;
    let bytes = Metrics::of(&replica).await?.by(BYTES, "model");
    replica.stop();
    let of = |model: &Model| {
        let held = bytes.get(&model.name).copied().unwrap_or(0.0);
        ensure!(held > 0.0, "{} holds nothing once it was called: not all models fit", model.name);
        Ok(held as u64)
    };
    stored.models.iter().map(of).collect()
}

async fn run(
    replica: &mut ReplicaProcess,
    stored: &Stored,
    trace: &[usize],
    options: &Options,
) -> anyhow::Result<Run> {
    // The first call of the trace comes once more before it, to tell that the replica answers.
    let first = stored.models.get(trace[0]).context("no models")?;
    replica::there(replica, first).await?;
    let loads_before = Metrics::of(replica).await?;
    let cpu_before = cpu::tree(replica.pid());
    let begun = Instant::now();
    let watch = ProcessWatch::start(replica.pid(), begun, LOOK);
    let calls: Vec<Vec<u8>> = stored.models.iter().map(|model| model.call(Some(DEADLINE))).collect();
    let shared = Rc::new(Shared {
        models: stored.models.clone(),
        calls,
        trace: trace.to_vec(),
        next: Cell::new(0),
        outcomes: RefCell::new(Vec::with_capacity(trace.len())),
    });
    let connections = LocalSet::new();
    let mut tasks = Vec::new();
    for _ in 0..options.connections {
        let client = replica::client(&replica.score)?;
        tasks.push(connections.spawn_local(connection(client, Rc::clone(&shared))));
    }
    connections.await;
    for task in tasks {
        task.await??;
    }
    let took = begun.elapsed();
    let cpu = cpu::tree(replica.pid()).saturating_sub(cpu_before);
    let samples = watch.stop();
    let loads_after = Metrics::of(replica).await?;
    Ok(Run {
        outcomes: shared.outcomes.take(),
        took,
        cpu,
        samples,
        loads: loads(&loads_before, &loads_after),
    })
}

/// What the connections have in common: they are tasks of one thread.
struct Shared {
    models: Vec<Model>,
    /// A model's call, as bytes.
    calls: Vec<Vec<u8>>,
    trace: Vec<usize>,
    next: Cell<usize>,
    outcomes: RefCell<Vec<Outcome>>,
}

/// Takes the next call of the trace as soon as it has the answer to the last.
async fn connection(mut client: outrigger_benches::client::Client, shared: Rc<Shared>) -> anyhow::Result<()> {
    loop {
        let call = shared.next.replace(shared.next.get() + 1);
        let Some(model) = shared.trace.get(call) else { return Ok(()) };
        let sent = Instant::now();
        let answer = client.send(&shared.calls[*model]).await;
        let took = sent.elapsed();
        let fate = match answer {
            Ok(answer) if answer.status == 200 => {
                shared.models[*model].check(&answer.body)?;
                if took <= DEADLINE { Fate::Answered } else { Fate::Late }
            }
            Ok(answer) => Fate::Refused(answer.status, answer.code.unwrap_or_default(), answer.says_when),
            Err(_) => Fate::Broken,
        };
        shared.outcomes.borrow_mut().push(Outcome { call, fate, took: took.as_secs_f64() });
    }
}

/// How many more there are, by the values of whatever labels the metric has beside the model.
fn loads(before: &Metrics, after: &Metrics) -> Option<BTreeMap<String, f64>> {
    let sum = after.sum(LOADS)? - before.sum(LOADS).unwrap_or(0.0);
    let mut loads = BTreeMap::from([("all".to_owned(), sum)]);
    for label in after.labels(LOADS).into_iter().filter(|label| label != "model") {
        let before = before.by(LOADS, &label);
        for (value, count) in after.by(LOADS, &label) {
            loads.insert(format!("{label}={value}"), count - before.get(&value).copied().unwrap_or(0.0));
        }
    }
    Some(loads)
}

struct Setting {
    load: Load,
    held: Vec<u64>,
    budget: u64,
    trace: Vec<usize>,
    /// Whether a plain LRU would have had the model of a call.
    hits: Vec<bool>,
}

fn report(stored: &Stored, options: &Options, setting: &Setting, run: &Run) {
    let calls = run.outcomes.len() as f64;
    let mut fates: BTreeMap<&Fate, usize> = BTreeMap::new();
    run.outcomes.iter().for_each(|outcome| *fates.entry(&outcome.fate).or_default() += 1);
    let answered = |wanted: &dyn Fn(usize) -> bool| -> Vec<f64> {
        let counts = |outcome: &&Outcome| outcome.fate == Fate::Answered && wanted(outcome.call);
        run.outcomes.iter().filter(counts).map(|outcome| outcome.took * 1e3).collect()
    };
    let groups = [
        ("all that were answered", answered(&|_| true)),
        ("what a plain LRU would have had", answered(&|call| setting.hits[call])),
        ("what it would have loaded", answered(&|call| !setting.hits[call])),
    ];
    let plain = setting.hits.iter().filter(|is_hit| !**is_hit).count();
    let distinct = setting.trace.iter().collect::<BTreeSet<_>>().len();
    let loads = run.loads.as_ref().and_then(|loads| loads.get("all")).copied();
    let parts = parts(&run.samples);
    let cpu = run.cpu.as_secs_f64() * 1e6 / calls;

    println!(
        "\nzipf: {} models holding {:.0} MB, memory for {:.0} MB (load = {}), exponent {}, {} connections, {:.0} requests in {:.1} s\n",
        stored.models.len(),
        megabytes(setting.held.iter().sum()),
        megabytes(setting.budget),
        setting.load.name(),
        options.skew,
        options.connections,
        calls,
        run.took.as_secs_f64()
    );
    println!("| what became of a call | calls | % |\n|---|---|---|");
    for (fate, count) in &fates {
        println!("| {} | {count} | {:.3} |", fate.shown(), *count as f64 * 100.0 / calls);
    }
    println!("\n| calls | number | p50 ms | p99 ms | max ms |\n|---|---|---|---|---|");
    for (name, times) in &groups {
        let at = |part| stats::quantile(times, part);
        println!("| {name} | {} | {:.2} | {:.2} | {:.2} |", times.len(), at(0.5), at(0.99), at(1.0));
    }
    let ratio = loads.map(|loads| loads / plain.max(1) as f64);
    match (loads, ratio) {
        (Some(loads), Some(ratio)) => {
            println!(
                "\n{loads:.0} loads, a plain LRU by bytes {plain}: {ratio:.3} of that; {distinct} models were called"
            )
        }
        _ => println!(
            "\nno metric {LOADS}; a plain LRU by bytes would need {plain} loads; {distinct} models were called"
        ),
    }
    if let Some(loads) = &run.loads {
        let by = loads.iter().filter(|(label, _)| *label != "all");
        by.for_each(|(label, count)| println!("  {label}: {count:.0}"));
    }
    let shown: Vec<String> = run
        .samples
        .iter()
        .step_by(SHOWN)
        .map(|sample| format!("{:.0}", megabytes(sample.resident)))
        .collect();
    println!("{cpu:.0} µs of CPU per request");
    println!("MB resident, every {} s: {}", SHOWN as u64 * LOOK.as_secs(), shown.join(" "));
    if let Some((second, last)) = parts {
        println!(
            "medians of the second and the last fifth: {second:.1} and {last:.1} MB, ratio {:.3}",
            last / second
        );
    }
    let fates: Vec<Value> = fates
        .iter()
        .map(|(fate, count)| {
            let (status, code, says_when) = fate.parts();
            json!({ "what": fate.name(), "status": status, "code": code, "retry_after": says_when, "calls": count })
        })
        .collect();
    let latencies: Vec<Value> = groups
        .iter()
        .map(|(name, times)| {
            let at = |part| rounded(stats::quantile(times, part), 3);
            json!({ "of": name, "calls": times.len(), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0) })
        })
        .collect();
    report::line(
        "zipf",
        json!({
            "models": stored.models.len(),
            "load": setting.load.name(),
            "held_bytes": setting.held.iter().sum::<u64>(),
            "budget_bytes": setting.budget,
            "skew": options.skew,
            "seed": options.seed,
            "connections": options.connections,
            "requests": run.outcomes.len(),
            "seconds": rounded(run.took.as_secs_f64(), 2),
            "answered_in_time": groups[0].1.len() as f64 / calls,
            "fates": fates,
            "latencies": latencies,
            "loads": run.loads,
            "loads_of_plain_lru": plain,
            "loads_to_plain_lru": ratio.map(|ratio| rounded(ratio, 4)),
            "models_called": distinct,
            "cpu_us_per_request": rounded(cpu, 1),
            "resident_mb": { "second_fifth": parts.map(|parts| rounded(parts.0, 1)), "last_fifth": parts.map(|parts| rounded(parts.1, 1)) },
            "over_time": report::series(&run.samples),
        }),
    );
}

/// The median of what is resident in the second fifth of the time, and in the last, in megabytes.
fn parts(samples: &[Sample]) -> Option<(f64, f64)> {
    let size = samples.len() / PARTS;
    let median = |samples: &[Sample]| {
        stats::median(&samples.iter().map(|sample| megabytes(sample.resident)).collect::<Vec<_>>())
    };
    (size > 0).then(|| (median(&samples[size..2 * size]), median(&samples[samples.len() - size..])))
}

impl Fate {
    fn name(&self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Late => "late",
            Self::Refused(..) => "refused",
            Self::Broken => "broken",
        }
    }

    fn parts(&self) -> (u16, &str, bool) {
        match self {
            Self::Answered | Self::Late => (200, "", false),
            Self::Refused(status, code, says_when) => (*status, code, *says_when),
            Self::Broken => (0, "", false),
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Answered => format!("200 within {} s", DEADLINE.as_secs()),
            Self::Late => "200, but later".to_owned(),
            Self::Refused(status, code, true) => format!("{status} `{code}` with Retry-After"),
            Self::Refused(status, code, false) => format!("{status} `{code}` without Retry-After"),
            Self::Broken => "no answer".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifths_of_the_time() {
        let sample = |megabytes: u64| Sample {
            at: Duration::ZERO,
            resident: megabytes * 1_000_000,
            descriptors: 1,
            threads: 1,
        };
        let samples: Vec<Sample> = [9, 9, 1, 2, 5, 5, 5, 5, 3, 4].map(sample).into();
        assert_eq!(parts(&samples), Some((2.0, 4.0)));
        assert_eq!(parts(&samples[..4]), None);
    }
}
