//! What a replica collects: of calls by itself, and what its scripts hand over; on its way to blob storage.

mod calls;
mod crashes;
mod deletion;
mod outages;
mod scripts;
mod settings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use outrigger_testkit::{Launch, ReplicaProcess};
use serde_json::{Value, json};

use crate::support::{PATIENCE, client, outrigger};

/// A replica that collects into a folder, and writes there as soon as there is something.
fn collecting(collections: &str) -> Launch {
    collected(outrigger(), collections)
}

/// The same of one that is launched in another way.
fn collected(launch: Launch, collections: &str) -> Launch {
    let to = launch.directory().join("blob");
    launch
        .env("OUTRIGGER_COLLECT_TO", to)
        .env("OUTRIGGER_COLLECT_COLLECTIONS", collections)
        .env("OUTRIGGER_COLLECT_LISTEN", "127.0.0.1:0")
        .env("OUTRIGGER_COLLECT_ENDPOINT", "shop")
        .env("OUTRIGGER_COLLECT_DEPLOYMENT", "blue")
        .env("OUTRIGGER_COLLECT_FLUSH", "50ms")
}

/// A call of a model that adds two tensors of two values.
fn addends(numbers: [f64; 2]) -> Value {
    let tensor = |name: &str| json!({"name": name, "shape": [1, 2], "datatype": "FP32", "data": numbers});
    json!({"inputs": [tensor("x"), tensor("y")]})
}

/// All metrics.
async fn metrics(replica: &ReplicaProcess) -> BTreeMap<String, f64> {
    let text =
        client().get(format!("{}/metrics", replica.observe)).send().await.unwrap().text().await.unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.rsplit_once(' '));
    pairs.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

/// What became of the records of a collection, which adds up.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Counted {
    offered: f64,
    sampled_out: f64,
    dropped: f64,
    persisted: f64,
    pending: f64,
}

async fn counted(replica: &ReplicaProcess, collection: &str) -> Counted {
    let metrics = metrics(replica).await;
    let of = |what: &str| metrics[&format!("outrigger_collect_{what}{{collection=\"{collection}\"}}")];
    let dropped = format!("outrigger_collect_dropped_total{{collection=\"{collection}\",");
    let dropped = metrics.iter().filter(|(name, _)| name.starts_with(&dropped)).map(|(_, value)| value).sum();
    let counted = Counted {
        offered: of("offered_total"),
        sampled_out: of("sampled_out_total"),
        dropped,
        persisted: of("persisted_total"),
        pending: of("pending"),
    };
    let ends = counted.sampled_out + counted.dropped + counted.persisted + counted.pending;
    assert_eq!(counted.offered, ends, "{counted:?}");
    counted
}

/// Waits until so many records have been offered and nothing is on its way.
async fn until_settled(replica: &ReplicaProcess, collection: &str, offered: f64) -> Counted {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let counted = counted(replica, collection).await;
        if counted.offered >= offered && counted.pending == 0.0 {
            assert_eq!(counted.offered, offered);
            return counted;
        }
        assert!(Instant::now() < deadline, "{counted:?}\n{}", replica.log_text());
    }
}

/// Files below a folder, by their paths in it.
fn objects(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut found, mut open) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(&at).into_iter().flatten() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// The events of a collection in blob storage.
fn events(replica: &ReplicaProcess, collection: &str) -> Vec<Value> {
    let part = format!("modelDataCollector/shop/blue/{collection}/");
    let objects = objects(&replica.directory().join("blob"));
    let lines = objects.iter().filter(|(name, _)| name.starts_with(&part) && name.ends_with(".jsonl"));
    lines
        .flat_map(|(_, bytes)| std::str::from_utf8(bytes).unwrap().lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
