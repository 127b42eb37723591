//! A replica with many models: how fast it is there, what it does where they do not all fit, and what a reload costs the others.
//!
//! ```text
//! cargo build --release -p outrigger -p outrigger-cpu -p outrigger-benches
//! target/release/thousand [--cases ready,zipf,reload] [--models 1000] [--megabytes 2000] [--seed 1] [--loads use,start]
//!     [--requests 100000] [--skew 1.0] [--connections 16] [--resident 100] [--blocks 20] [--seconds 10] [--every 2] [--callers 1]
//! ```
//!
//! *ready*: that many models, all different, of 5 KB to 20 MB and so many megabytes together, out of Azurite, by `store.models = ["*"]`. For each of `--loads`
//! (values of `residency.load`; `default` leaves the key out) a start with nothing in the cache and one with everything in it: when it listens, when it is
//! ready, when the first call of a model is answered, and how long the first call of each model takes.
//!
//! *zipf*: memory for `--resident` models of the mean size, and calls whose models follow Zipf's law with the exponent `--skew`, each with a deadline of 5 s:
//! how many are answered in time, what becomes of the others, and how many loads that takes beside those of a plain LRU by bytes on the same calls.
//!
//! *reload*: a small model under constant load, in blocks of so many `--seconds`, every second one with a model of 20 MB unloaded and loaded again by the
//! admin listener `--every` so many seconds (0: never, which shows how much of the ratio is noise).
//!
//! Each case prints its tables, and a line of JSON with all its figures. Azurite, client and replica share the machine; Azurite does nothing once the
//! replica is ready.

mod configuration;
mod models;
mod options;
mod ready;
mod reload;
mod replica;
mod report;
mod stored;
mod trace;
mod zipf;

use std::path::Path;

use anyhow::{Context as _, bail};
use options::{Case, Options};
use outrigger_benches::cpu;
use stored::Stored;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> anyhow::Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    // Dropped after the runtime, which waits for the threads that may still write into it.
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(until_ended(&options, folder.path()))
}

/// Nothing is left behind where somebody ends it: what was begun is dropped, and with it processes and folders.
async fn until_ended(options: &Options, folder: &Path) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        ended = measure(options, folder) => ended,
        _ = terminate.recv() => bail!("ended by SIGTERM"),
        _ = interrupt.recv() => bail!("ended by SIGINT"),
    }
}

async fn measure(options: &Options, folder: &Path) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("{cores} cores, {}", cpu::name());
    if options.has(Case::Ready) || options.has(Case::Zipf) {
        let stored = Stored::fill(options, folder).await.context("the registry")?;
        if options.has(Case::Ready) {
            ready::measure(&stored, options).await.context("ready")?;
        }
        if options.has(Case::Zipf) {
            zipf::measure(&stored, options).await.context("zipf")?;
        }
    }
    if options.has(Case::Reload) {
        reload::measure(options).await.context("reload")?;
    }
    Ok(())
}
