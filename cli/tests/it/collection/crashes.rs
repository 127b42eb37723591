//! What a replica has collected that is killed at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use outrigger_testkit::{Launch, ReplicaProcess, onnx};
use serde_json::{Value, json};

use super::{addends, collecting, counted, objects};
use crate::proof::{say, scale};
use crate::support::{PATIENCE, infer};

/// Calls of each client under way at once.
const CLIENTS: usize = 4;

fn launch(spool: &Path, blob: &Path, policy: &str) -> Launch {
    let collection = |name: &str| format!("[collections.{name}]\n{policy}\n");
    let config =
        format!("[models.add]\npath = 'add.onnx'\n{}{}", collection("request"), collection("response"));
    collecting("")
        .env("OUTRIGGER_COLLECT_TO", blob)
        .env("OUTRIGGER_COLLECT_SPOOL", spool)
        .env("OUTRIGGER_COLLECT_OBJECT", "16KiB")
        .file("add.onnx", onnx::add(2))
        .file("o.toml", config)
        .args(["--config", "o.toml"])
}

/// What is asked under an identifier: other numbers each time.
fn numbers(id: &str) -> [f64; 2] {
    let (round, number) = id.split_once('-').unwrap();
    [round.parse().unwrap(), number.parse().unwrap()]
}

/// Has several clients call until they are told to end, or the replica is gone. Gives the identifiers of what was answered.
async fn call(replica: &ReplicaProcess, round: usize, over: &AtomicBool) -> Vec<String> {
    let number = AtomicUsize::new(0);
    let client = async || {
        let mut answered = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let id = format!("{round}-{}", number.fetch_add(1, Ordering::Relaxed));
            let request =
                infer(replica, "add", addends(numbers(&id)).to_string()).header("x-request-id", &id);
            let Ok(answer) = request.header("content-type", "application/json").send().await else { break };
            // A client that has not got the whole of an answer has none.
            let status = answer.status();
            match answer.bytes().await {
                Ok(_) if status == 200 => answered.push(id),
                _ => break,
            }
        }
        answered
    };
    let all: [_; CLIENTS] = std::array::from_fn(|_| client());
    futures_util::future::join_all(all).await.concat()
}

/// How often each request is in blob storage.
fn kept(blob: &Path, collection: &str) -> BTreeMap<String, usize> {
    let mut kept = BTreeMap::new();
    for (name, bytes) in objects(blob) {
        if name.contains(&format!("/{collection}/")) && name.ends_with(".jsonl") {
            for line in std::str::from_utf8(&bytes).unwrap().lines() {
                let event: Value = serde_json::from_str(line).unwrap();
                let id = event["xrequestid"].as_str().unwrap();
                is_what_was_collected(collection, id, &event);
                *kept.entry(id.to_owned()).or_default() += 1;
            }
        }
    }
    kept
}

/// What is kept is what was asked, or answered; of a call that was killed it may be the beginning.
fn is_what_was_collected(collection: &str, id: &str, event: &Value) {
    if event["incomplete"] == "true" || event["status"] != 200 {
        return;
    }
    match collection {
        "request" => assert_eq!(event["data"], addends(numbers(id)), "{event}"),
        _ => {
            let sums = numbers(id).map(|number| 2.0 * number);
            assert_eq!(event["data"]["outputs"][0]["data"], json!(sums), "{event}");
        }
    }
}

/// Kills a replica again and again while it is called, and starts it on what it has left. Gives what was answered.
async fn killed(spool: &Path, blob: &Path, policy: &str, times: usize) -> BTreeSet<String> {
    let mut answered = BTreeSet::new();
    for round in 0..times {
        let replica = launch(spool, blob, policy).start();
        let over = AtomicBool::new(false);
        // At another moment each time, which is spread over what happens after a start.
        let moment = Duration::from_millis(20 + (round as u64 * 7919) % 400);
        let killing = async {
            tokio::time::sleep(moment).await;
            replica.signal("KILL");
            over.store(true, Ordering::Relaxed);
        };
        let (ids, ()) = tokio::join!(call(&replica, round, &over), killing);
        answered.extend(ids);
        replica.wait();
    }
    answered
}

/// Starts once more, and waits until everything that was left is in blob storage.
async fn last(spool: &Path, blob: &Path, policy: &str) {
    let replica = launch(spool, blob, policy).start();
    let deadline = Instant::now() + PATIENCE;
    for collection in ["request", "response"] {
        loop {
            let counted = counted(&replica, collection).await;
            if counted.pending == 0.0 {
                assert_eq!((counted.dropped, counted.persisted), (0.0, counted.offered), "{collection}");
                break;
            }
            assert!(Instant::now() < deadline, "{counted:?}\n{}", replica.log_text());
        }
    }
    assert_eq!(replica.stop().status.code(), Some(0));
}

#[tokio::test]
async fn what_was_answered_before_a_kill_is_in_blob_once() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, blob) = (folder.path().join("spool"), folder.path().join("blob"));
    let policy = "full = 'block'\nblock = '1m'\nsync = 'always'";
    let answered = killed(&spool, &blob, policy, scale(20, 200)).await;
    last(&spool, &blob, policy).await;
    assert!(!answered.is_empty());
    for collection in ["request", "response"] {
        let kept = kept(&blob, collection);
        let twice: Vec<_> = kept.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "{collection}: {twice:?}");
        let lost: Vec<_> = answered.iter().filter(|id| !kept.contains_key(*id)).collect();
        assert!(lost.is_empty(), "{collection}: {lost:?}");
        say(format!("{collection}: {} answered, {} kept, none lost, none twice", answered.len(), kept.len()));
    }
}

#[tokio::test]
async fn with_other_policies_nothing_is_there_twice_after_kills() {
    for full in ["drop_newest", "drop_oldest"] {
        let folder = tempfile::tempdir().unwrap();
        let (spool, blob) = (folder.path().join("spool"), folder.path().join("blob"));
        let policy = format!("full = '{full}'");
        let answered = killed(&spool, &blob, &policy, scale(3, 30)).await;
        last(&spool, &blob, &policy).await;
        let kept = kept(&blob, "response");
        assert!(kept.values().all(|times| *times == 1), "{kept:?}");
        let known = answered.iter().filter(|id| kept.contains_key(*id)).count();
        say(format!("{full}: of {} answered {known} are kept", answered.len()));
    }
}
