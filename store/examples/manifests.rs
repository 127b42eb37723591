//! How long a replica's start takes until it knows which files it needs: one listing, and the manifests of all models, the first time and the second; one by
//! one, and from an index.
//!
//!     cargo run --release -p outrigger-store --example manifests -- [MODELS] [MILLISECONDS] [ROUNDS]
//!
//! Out of Azurite, out of a folder, and out of a server that does nothing but wait for so many milliseconds before each answer, as for a storage elsewhere: that
//! one cannot be listed, so it is only for how many manifests should be read at once. Azurite has most of the processor to itself, and is what limits there.
//! What is printed is the median of the rounds, and the processor time of this process.
//!
//! Each round has a cache of its own, and all of them stay until the end: ext4 without a journal takes long to find a place for a new file where many were
//! removed just before.

#[path = "measured/time.rs"]
mod time;

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::ObjectStoreExt as _;
use outrigger_store::registry::Tagged;
use outrigger_store::signature::{SigningKey, TrustedKey};
use outrigger_store::{
    Cache, Digest, Environment, FilePath, Location, Manifest, ManifestFile, ModelId, ModelName, Registry,
};
use outrigger_testkit::storage::Azurite;
use time::timed;
use tokio::runtime::{Builder, Runtime};

/// How many manifests are read at once.
const AT_ONCE: &[usize] = &[16, 32, 64, 128];

// RFC 8032, section 7.1, test 2.
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEzNCJso/5banbbDRuwRTg9bijGfNaumJNqM9u1PuKb7\n-----END PRIVATE KEY-----\n";

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().expect("a number"));
    let mut next = |otherwise| arguments.next().unwrap_or(otherwise);
    let (models, wait, rounds) = (next(1000), Duration::from_millis(next(20)), next(5));
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    let key = SigningKey::from_pem(KEY).expect("a key");
    let stored: Vec<_> = (0..models).map(|number| Stored::new(number, &key)).collect();
    let waiting = open(&waiting(&stored, wait), Vec::new());
    for at_once in AT_ONCE {
        let times = (0..=rounds).map(|_| {
            timed(|| {
                drop(runtime.block_on(all(stored.iter().map(|one| waiting.manifest(&one.id, &[])), *at_once)))
            })
        });
        let (took, cpu) = median(times.skip(1));
        println!("waiting {wait:?}, {at_once} at once: {models} manifests {took} ms, {cpu} ms of processor");
    }
    let azurite = Azurite::start();
    azurite.create_container("models");
    let folder = tempfile::tempdir().expect("a folder");
    let azure = open("az://models/registry", azurite.environment());
    let folder = open(folder.path().to_str().expect("a path"), Vec::new());
    let mut caches = Vec::new();
    for (name, registry) in [("Azurite", &azure), ("folder", &folder)] {
        runtime.block_on(upload(registry, &stored));
        let mut measured = |shown: &str, trusted: &[TrustedKey], at_once| {
            caches.extend((0..=rounds).map(|_| tempfile::tempdir().expect("a folder")));
            let new = &caches[caches.len() - 1 - usize::try_from(rounds).expect("few")..];
            let took = starts(&runtime, registry, trusted, at_once, new);
            println!("{name}, {shown}, {at_once} at once: {took}");
        };
        let keys = [key.public()];
        let signed = [("unsigned", &[][..]), ("signed", &keys)];
        for (shown, trusted) in signed {
            AT_ONCE.iter().for_each(|at_once| measured(shown, trusted, *at_once));
        }
        if runtime.block_on(registry.index()).expect("an index").is_some() {
            signed
                .iter()
                .for_each(|(shown, trusted)| measured(&format!("{shown}, with an index"), trusted, 64));
        }
    }
}

/// Starts of replicas, each time with a new cache, and then again with that one.
fn starts(
    runtime: &Runtime,
    registry: &Registry,
    trusted: &[TrustedKey],
    at_once: usize,
    caches: &[tempfile::TempDir],
) -> String {
    let (mut listings, mut firsts, mut seconds) = (Vec::new(), Vec::new(), Vec::new());
    for (round, folder) in caches.iter().enumerate() {
        for times in [&mut firsts, &mut seconds] {
            let cache = Cache::open(folder.path(), None).expect("a cache");
            let mut listed = Vec::new();
            let listing = timed(|| listed = runtime.block_on(registry.list_tagged()).expect("a list"));
            let manifest_of = |tagged: &Tagged| (tagged.listed.id.clone(), tagged.tags.clone());
            let asked: Vec<_> = listed.iter().map(manifest_of).collect();
            let manifests = asked.iter().map(|(id, tags)| registry.manifest_of(id, tags, trusted, &cache));
            let time = timed(|| {
                runtime.block_on(registry.keep_indexed(&asked, trusted, &cache));
                drop(runtime.block_on(all(manifests, at_once)));
            });
            // In the first round connections are made, and pages come into memory.
            if round > 0 {
                listings.push(listing);
                times.push(time);
            }
        }
    }
    let [(listing, _), (first, first_cpu), (second, second_cpu)] =
        [listings, firsts, seconds].map(|times| median(times.into_iter()));
    format!(
        "listing {listing} ms; manifests {first} ms, {first_cpu} ms of processor; the second time {second} ms, {second_cpu} ms of processor"
    )
}

/// Wall clock and processor time, in the middle of all, milliseconds.
fn median(times: impl Iterator<Item = (Duration, Duration)>) -> (u128, u128) {
    let (mut took, mut cpu): (Vec<_>, Vec<_>) = times.unzip();
    took.sort();
    cpu.sort();
    let middle = |times: &[Duration]| times.get(times.len() / 2).map_or(0, Duration::as_millis);
    (middle(&took), middle(&cpu))
}

fn open(text: &str, environment: Vec<(&'static str, String)>) -> Registry {
    let environment: Environment = environment.into_iter().collect();
    Registry::new(Location::open(text, Path::new("/"), &environment).expect("a location"))
}

async fn all<F>(manifests: impl Iterator<Item = F>, at_once: usize) -> Vec<Manifest>
where
    F: Future<Output = Result<Manifest, outrigger_store::FetchError>>,
{
    stream::iter(manifests).buffered(at_once).try_collect().await.expect("manifests")
}

/// What there is of a model.
struct Stored {
    id: ModelId,
    file: Vec<u8>,
    manifest: Vec<u8>,
    signature: Vec<u8>,
}

impl Stored {
    fn new(number: u64, key: &SigningKey) -> Self {
        let file = format!("weights {number}").into_bytes();
        let id = ModelId { name: ModelName::new(format!("model{number}")).expect("a name"), version: 1 };
        let path = FilePath::new("model.onnx").expect("a path");
        let files =
            vec![ManifestFile { path, size: file.len() as u64, sha256: Digest::of(&file), unpack: false }];
        let manifest =
            Manifest::new(id.clone(), String::new(), Default::default(), files).expect("a manifest");
        let manifest = manifest.to_bytes();
        let signature = key.sign(&manifest).into_bytes();
        Self { id, file, manifest, signature }
    }
}

/// Writes files, manifests and signatures as a push would, but for the claims.
async fn upload(registry: &Registry, stored: &[Stored]) {
    let one = |stored: &Stored| {
        let folder = registry.folder(&stored.id);
        let objects = [
            ("model.onnx", stored.file.clone()),
            (outrigger_store::manifest::SIGNATURE, stored.signature.clone()),
            (outrigger_store::manifest::MANIFEST, stored.manifest.clone()),
        ];
        async move {
            for (name, bytes) in objects {
                let at = folder.below(name);
                at.store().put(at.at(), bytes.into()).await.expect("written");
            }
        }
    };
    stream::iter(stored.iter().map(one)).buffer_unordered(8).collect().await
}

/// A web server that has the manifests in memory and waits before each answer. It ends with this program.
fn waiting(stored: &[Stored], wait: Duration) -> String {
    let path = |id: &ModelId| format!("/{}/{}/{}", id.name, id.version, outrigger_store::manifest::MANIFEST);
    let manifests: HashMap<_, _> = stored.iter().map(|one| (path(&one.id), one.manifest.clone())).collect();
    let manifests = Arc::new(manifests);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let manifests = Arc::clone(&manifests);
            std::thread::spawn(move || answer(&client, &manifests, wait));
        }
    });
    url
}

fn answer(
    mut client: &TcpStream,
    manifests: &HashMap<String, Vec<u8>>,
    wait: Duration,
) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let body = head.split(' ').nth(1).and_then(|path| manifests.get(path)).expect("a manifest's path");
        std::thread::sleep(wait);
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\netag: \"1\"\r\nlast-modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\n",
            body.len()
        );
        client.write_all(&[head.as_bytes(), body].concat())?;
    }
}
