//! How fast models come: many of them out of Azurite into a cache, beside the client of the storage alone, which throws away what it gets.
//!
//!     cargo run --release -p outrigger-store --example download -- [MODELS] [MEGABYTES] [ROUNDS]
//!
//! Both take turns, with as many connections. What is printed is bytes per second as seen from outside, their ratio, processor time of this process, and, of
//! the cache's side, the most memory, descriptors and threads. Azurite has a process and most of the machine to itself: on a machine of few cores it is what limits both.
//!
//! Each round has a cache of its own, and all of them stay until the end: ext4 without a journal takes long to find a place for a new file where many were removed just before.

#[path = "measured/time.rs"]
mod time;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{GetOptions, ObjectStore as _, ObjectStoreExt as _};
use outrigger_store::{
    Cache, Digest, FetchOptions, Fetcher, FilePath, Location, Manifest, ManifestFile, ModelId, ModelName,
    Registry,
};
use outrigger_testkit::storage::Azurite;
use time::timed;

/// Smallest model, bytes.
const SMALLEST: f64 = 5e3;
/// Largest model, bytes.
const LARGEST: f64 = 20e6;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().expect("a number"));
    let mut next = |otherwise| arguments.next().unwrap_or(otherwise);
    let (models, megabytes, rounds) = (next(1000), next(2000), next(5));
    let azurite = Azurite::start();
    azurite.create_container("models");
    let environment = azurite.environment().into_iter().collect();
    let at = Location::open("az://models/registry", Path::new("/"), &environment).expect("a location");
    let registry = Registry::new(at);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    let stored = runtime.block_on(upload(&registry, &sizes(models, megabytes as f64 * 1e6)));
    let bytes: u64 = stored.iter().map(|(_, manifest)| manifest.size()).sum();
    println!("{models} models, {:.1} MB", bytes as f64 / 1e6);
    let (mut ratios, mut folders) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let (plain, plain_cpu) = timed(|| runtime.block_on(plain(&stored)));
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path(), None).expect("a cache");
        let peak = Peak::start();
        let fetcher = Fetcher::new(cache, FetchOptions::default());
        let (ours, ours_cpu) = timed(|| {
            runtime.block_on(async { fetcher.models(&stored, &()).await }).expect("they are fetched");
        });
        let peak = peak.stop();
        let listed = timed(|| drop(runtime.block_on(registry.list()).expect("a list"))).0;
        let warm = timed(|| drop(runtime.block_on(fetcher.models(&stored, &())).expect("they are there"))).0;
        let rate = |time: Duration| bytes as f64 / 1e6 / time.as_secs_f64();
        let name = if round == 0 { "warm-up".to_owned() } else { format!("round {round}") };
        println!(
            "{name}: plain {:.0} MB/s, {:.2} s of processor; into the cache {:.0} MB/s, {:.2} s; ratio {:.2}; {peak}; listing {} ms, again from the cache {} ms",
            rate(plain),
            plain_cpu.as_secs_f64(),
            rate(ours),
            ours_cpu.as_secs_f64(),
            rate(ours) / rate(plain),
            listed.as_millis(),
            warm.as_millis(),
        );
        folders.push(folder);
        if round > 0 {
            ratios.push(rate(ours) / rate(plain));
        }
    }
    ratios.sort_by(f64::total_cmp);
    if let Some(median) = ratios.get(ratios.len() / 2) {
        println!("median ratio {median:.2} of {rounds} rounds");
    }
}

/// Sizes between the smallest and the largest, evenly on a logarithmic scale, and scaled so that they are that many bytes together.
fn sizes(count: usize, total: f64) -> Vec<u64> {
    let span = (LARGEST / SMALLEST).ln();
    let sizes: Vec<f64> =
        (0..count).map(|at| SMALLEST * (span * (at as f64 + 0.5) / count as f64).exp()).collect();
    let scale = total / sizes.iter().sum::<f64>();
    sizes.iter().map(|size| (size * scale).clamp(SMALLEST, LARGEST) as u64).collect()
}

/// Writes files and manifests as a push would, but for the claims.
async fn upload(registry: &Registry, sizes: &[u64]) -> Vec<(Location, Manifest)> {
    let one = |(number, size): (usize, &u64)| {
        let (number, size) = (number as u64, *size);
        async move {
            // Different everywhere, and cheap.
            let word = |at: u64| (at ^ number << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
            let mut bytes: Vec<u8> = (0..size.div_ceil(8)).flat_map(word).collect();
            bytes.truncate(usize::try_from(size).expect("it fits"));
            let id = ModelId { name: ModelName::new(format!("model{number}")).expect("a name"), version: 1 };
            let path = FilePath::new("model.onnx").expect("a path");
            let file = ManifestFile { path, size, sha256: Digest::of(&bytes), unpack: false };
            let manifest =
                Manifest::new(id.clone(), String::new(), Default::default(), vec![file]).expect("a manifest");
            let folder = registry.folder(&id);
            let file = folder.file(&manifest.files()[0].path);
            file.store().put(file.at(), bytes.into()).await.expect("written");
            let at = folder.below(outrigger_store::manifest::MANIFEST);
            at.store().put(at.at(), manifest.to_bytes().into()).await.expect("written");
            (folder, manifest)
        }
    };
    stream::iter(sizes.iter().enumerate()).map(one).buffered(8).collect().await
}

/// The same files by the client alone, in whole.
async fn plain(stored: &[(Location, Manifest)]) {
    stream::iter(stored)
        .for_each_concurrent(FetchOptions::default().connections, |(folder, manifest)| async move {
            let file = folder.file(&manifest.files()[0].path);
            let answer = file.store().get_opts(file.at(), GetOptions::default()).await.expect("an answer");
            let bytes =
                answer.into_stream().try_fold(0, |sum, piece| async move { Ok(sum + piece.len() as u64) });
            assert_eq!(bytes.await.expect("all of it"), manifest.size());
        })
        .await;
}

/// The most of what this process holds.
struct Peak {
    seen: Arc<Seen>,
    looking: std::thread::JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    over: AtomicBool,
    kilobytes: AtomicU64,
    files: AtomicUsize,
    threads: AtomicUsize,
}

impl Peak {
    fn start() -> Self {
        let seen = Arc::new(Seen::default());
        let shared = Arc::clone(&seen);
        let looking = std::thread::spawn(move || {
            while !shared.over.load(Ordering::Relaxed) {
                shared.kilobytes.fetch_max(resident(), Ordering::Relaxed);
                shared.files.fetch_max(entries("/proc/self/fd"), Ordering::Relaxed);
                shared.threads.fetch_max(entries("/proc/self/task"), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { seen, looking }
    }

    fn stop(self) -> String {
        self.seen.over.store(true, Ordering::Relaxed);
        self.looking.join().expect("it only looks");
        let (memory, files) =
            (self.seen.kilobytes.load(Ordering::Relaxed), self.seen.files.load(Ordering::Relaxed));
        let threads = self.seen.threads.load(Ordering::Relaxed);
        format!("at most {} MB resident, {files} descriptors, {threads} threads", memory / 1024)
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn entries(folder: &str) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}
