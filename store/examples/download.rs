//! How fast models come: many of them out of Azurite into a cache, beside the client of the storage alone: once as it throws away what it gets, and once
//! as it writes it to files.
//!
//!     cargo run --release -p outrigger-store --example download -- [MODELS] [MEGABYTES] [ROUNDS] [MB/S]
//!
//! All take turns, with as many connections. What is printed is bytes per second as seen from outside, ratios to the client alone, processor time of this
//! process, and, of the cache's side, the most memory, descriptors and threads. Azurite has a process and most of the machine to itself: on a machine of few
//! cores it is what limits all. With a last argument it is behind a proxy, in this process, that lets each connection have its share of so many megabytes per
//! second and no more, as storage over a network does.
//!
//! Nobody waits for the disk; it has its time before the next is measured, and how long that is is printed too. Then what was written is cut to nothing, so
//! that the next finds as much memory as this one did: in a virtual machine, what was not used yet, or not for long, is to be had from its host first, which takes
//! longer than all else. Folders stay until the end: ext4 without a journal takes long to find a place for a new file where many were removed just before.

#[path = "measured/time.rs"]
mod time;

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt as _;
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
use outrigger_testkit::faults::{Fault, On, Proxy};
use outrigger_testkit::storage::Azurite;
use time::timed;

/// Smallest model, bytes.
const SMALLEST: f64 = 5e3;
/// Largest model, bytes.
const LARGEST: f64 = 20e6;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().expect("a number"));
    let mut next = |otherwise| arguments.next().unwrap_or(otherwise);
    let (models, megabytes, rounds, limit) = (next(1000), next(2000), next(5), next(0));
    let azurite = Azurite::start();
    azurite.create_container("models");
    let open = |environment: Vec<_>| {
        let environment = environment.into_iter().collect();
        Registry::new(
            Location::open("az://models/registry", Path::new("/"), &environment).expect("a location"),
        )
    };
    let mut registry = open(azurite.environment());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    let mut stored = runtime.block_on(upload(&registry, &sizes(models, megabytes as f64 * 1e6)));
    let proxy = (limit > 0).then(|| Proxy::start(azurite.address()));
    if let Some(proxy) = &proxy {
        let share = u32::try_from(limit * 1_000_000 / FetchOptions::default().connections);
        let bytes_per_second = share.ok().and_then(NonZeroU32::new).expect("some bytes");
        proxy.inject(On::get().path("/registry/").always(), Fault::Slow { bytes_per_second });
        registry = open(azurite.environment_at(proxy.address()));
        stored.iter_mut().for_each(|(folder, manifest)| *folder = registry.folder(manifest.id()));
    }
    let bytes: u64 = stored.iter().map(|(_, manifest)| manifest.size()).sum();
    println!("{models} models, {:.1} MB", bytes as f64 / 1e6);
    let (mut ratios, mut folders) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let (plain, plain_cpu) = timed(|| runtime.block_on(fetch(&stored, None)));
        let folder = tempfile::tempdir().expect("a folder");
        let at = folder.path();
        let (written, written_cpu) = timed(|| runtime.block_on(fetch(&stored, Some(at))));
        emptied(at);
        let cache = Cache::open(at.join("cache"), None).expect("a cache");
        let peak = Peak::start();
        let fetcher = Fetcher::new(cache.clone(), FetchOptions::default());
        let (ours, ours_cpu) = timed(|| {
            runtime.block_on(async { fetcher.models(&stored, &()).await }).expect("they are fetched");
        });
        let peak = peak.stop();
        let synced = timed(|| assert!(cache.sync().is_ok(), "on the disk")).0;
        let listed = timed(|| drop(runtime.block_on(registry.list()).expect("a list"))).0;
        let warm = timed(|| drop(runtime.block_on(fetcher.models(&stored, &())).expect("they are there"))).0;
        let rate = |time: Duration| bytes as f64 / 1e6 / time.as_secs_f64();
        let name = if round == 0 { "warm-up".to_owned() } else { format!("round {round}") };
        println!(
            "{name}: plain {:.0} MB/s, {:.2} s of processor; written to files {:.0} MB/s, {:.2} s; into the cache {:.0} MB/s, {:.2} s, {:.2} of plain, {:.2} of files; {peak}; on the disk {} ms after that; listing {} ms, again from the cache {} ms",
            rate(plain),
            plain_cpu.as_secs_f64(),
            rate(written),
            written_cpu.as_secs_f64(),
            rate(ours),
            ours_cpu.as_secs_f64(),
            rate(ours) / rate(plain),
            rate(ours) / rate(written),
            synced.as_millis(),
            listed.as_millis(),
            warm.as_millis(),
        );
        emptied(at);
        folders.push(folder);
        if round > 0 {
            ratios.push([rate(ours) / rate(plain), rate(ours) / rate(written)]);
        }
    }
    for (which, name) in ["plain", "files"].iter().enumerate() {
        let mut ratios: Vec<_> = ratios.iter().map(|ratios| ratios[which]).collect();
        ratios.sort_by(f64::total_cmp);
        if let Some(median) = ratios.get(ratios.len() / 2) {
            println!("median ratio {median:.2} of {name}, {rounds} rounds");
        }
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

/// The same files by the client alone, in whole; into a folder, if there is one.
async fn fetch(stored: &[(Location, Manifest)], to: Option<&Path>) {
    stream::iter(stored)
        .for_each_concurrent(FetchOptions::default().connections, |(folder, manifest)| async move {
            let file = folder.file(&manifest.files()[0].path);
            let answer = file.store().get_opts(file.at(), GetOptions::default()).await.expect("an answer");
            let (mut stream, mut bytes, mut gathered) = (answer.into_stream(), 0, Vec::new());
            let to = to.map(|to| Arc::new(File::create(to.join(manifest.id().to_string())).expect("a file")));
            while let Some(piece) = stream.try_next().await.expect("all of it") {
                bytes += piece.len() as u64;
                let Some(to) = &to else { continue };
                gathered.push(piece);
                // As much at a time as into the cache.
                if gathered.iter().map(|piece| piece.len()).sum::<usize>() >= 1 << 20
                    || bytes == manifest.size()
                {
                    let (to, gathered) = (Arc::clone(to), std::mem::take(&mut gathered));
                    let write = move || gathered.iter().try_for_each(|piece| (&*to).write_all(piece));
                    tokio::task::spawn_blocking(write).await.expect("it ends").expect("written");
                }
            }
            assert_eq!(bytes, manifest.size());
        })
        .await;
}

/// Cuts all files below a folder to nothing, after they are on the disk.
fn emptied(folder: &Path) {
    rustix::fs::syncfs(File::open(folder).expect("a folder")).expect("on the disk");
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            emptied(&path);
        } else {
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("ours");
            File::create(&path).expect("ours");
        }
    }
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
