//! How long a replica's start takes until it knows which files it needs: one listing, and the manifests of all models, the first time and the second.
//!
//!     cargo run --release -p outrigger-store --example manifests -- [MODELS] [MILLISECONDS] [ROUNDS]
//!
//! Out of Azurite, behind a proxy that has each answer wait for so many milliseconds, as one from a storage elsewhere would; out of it directly; and out of a
//! folder. What is printed is the median of the rounds. Azurite and the proxy have most of the processor to themselves: without a wait they are what limits.

use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::ObjectStoreExt as _;
use outrigger_store::registry::Tagged;
use outrigger_store::signature::{SigningKey, TrustedKey};
use outrigger_store::{
    Cache, Digest, Environment, FilePath, Location, Manifest, ManifestFile, ModelId, ModelName, Registry,
};
use outrigger_testkit::faults::{Fault, On, Proxy};
use outrigger_testkit::storage::Azurite;

/// How many manifests are read at once.
const AT_ONCE: &[usize] = &[16, 32, 64, 128];

// RFC 8032, section 7.1, test 2.
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEzNCJso/5banbbDRuwRTg9bijGfNaumJNqM9u1PuKb7\n-----END PRIVATE KEY-----\n";

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().expect("a number"));
    let mut next = |otherwise| arguments.next().unwrap_or(otherwise);
    let (models, wait, rounds) = (next(1000), Duration::from_millis(next(20)), next(5));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    let azurite = Azurite::start();
    azurite.create_container("models");
    let proxy = Proxy::start(azurite.address());
    let folder = tempfile::tempdir().expect("a folder");
    let open = |text: &str, environment: Vec<(&'static str, String)>| {
        let environment: Environment = environment.into_iter().collect();
        Registry::new(Location::open(text, Path::new("/"), &environment).expect("a location"))
    };
    let direct = open("az://models/registry", azurite.environment());
    let far = open("az://models/registry", azurite.environment_at(proxy.address()));
    let local = open(folder.path().to_str().expect("a path"), Vec::new());
    let key = SigningKey::from_pem(KEY).expect("a key");
    for registry in [&direct, &local] {
        runtime.block_on(upload(registry, models, &key));
    }
    proxy.inject(On::any().always(), Fault::Delay(wait));
    let trusted = [key.public()];
    for (name, registry) in [("waiting", &far), ("direct", &direct), ("folder", &local)] {
        for (signed, trusted) in [("unsigned", &[][..]), ("signed", &trusted)] {
            for at_once in AT_ONCE {
                // Connections are made, and pages are in memory.
                let mut times: [Vec<Duration>; 3] = Default::default();
                for round in 0..=rounds {
                    let cache = tempfile::tempdir().expect("a folder");
                    let open = || Cache::open(cache.path(), None).expect("a cache");
                    let mut start = || runtime.block_on(start(registry, trusted, &open(), *at_once));
                    let ((listing, first), (_, second)) = (start(), start());
                    if round > 0 {
                        times.iter_mut().zip([listing, first, second]).for_each(|(all, one)| all.push(one));
                    }
                }
                let [listing, first, second] = times.map(median);
                println!(
                    "{name}, {signed}, {at_once} at once: listing {listing} ms; {models} manifests {first} ms, the second time {second} ms"
                );
            }
        }
    }
}

fn median(mut times: Vec<Duration>) -> u128 {
    times.sort();
    times.get(times.len() / 2).map_or(0, Duration::as_millis)
}

/// How long the listing takes, and how long the manifests do after it.
async fn start(
    registry: &Registry,
    trusted: &[TrustedKey],
    cache: &Cache,
    at_once: usize,
) -> (Duration, Duration) {
    let started = Instant::now();
    let listed = registry.list_tagged().await.expect("a list");
    let listing = started.elapsed();
    let manifests = stream::iter(&listed)
        .map(|Tagged { listed, tags }| registry.manifest_of(&listed.id, tags, trusted, cache))
        .buffered(at_once);
    let manifests: Vec<Manifest> = manifests.try_collect().await.expect("manifests");
    assert_eq!(manifests.len(), listed.len());
    (listing, started.elapsed() - listing)
}

/// Writes small files, manifests and signatures as a push would, but for the claims.
async fn upload(registry: &Registry, models: u64, key: &SigningKey) {
    let one = |number| async move {
        let bytes = format!("weights {number}").into_bytes();
        let id = ModelId { name: ModelName::new(format!("model{number}")).expect("a name"), version: 1 };
        let path = FilePath::new("model.onnx").expect("a path");
        let file = ManifestFile { path, size: bytes.len() as u64, sha256: Digest::of(&bytes), unpack: false };
        let manifest =
            Manifest::new(id.clone(), String::new(), Default::default(), vec![file]).expect("a manifest");
        let (folder, text) = (registry.folder(&id), manifest.to_bytes());
        let signature = key.sign(&text).into_bytes();
        for (name, bytes) in [
            ("model.onnx", bytes),
            (outrigger_store::manifest::SIGNATURE, signature),
            (outrigger_store::manifest::MANIFEST, text),
        ] {
            let at = folder.below(name);
            at.store().put(at.at(), bytes.into()).await.expect("written");
        }
    };
    stream::iter(0..models).map(one).buffer_unordered(8).collect().await
}
