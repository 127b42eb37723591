//! What a replica has collected that is killed at any moment, and what it does while blob storage is away.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use outrigger_testkit::faults::{Fault, On, Proxy};
use outrigger_testkit::storage::Azurite;
use outrigger_testkit::{Launch, ReplicaProcess, onnx};
use serde_json::{Value, json};

use super::{collecting, counted, metrics, objects};
use crate::proof::{proving, say, scale};
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

fn body() -> String {
    let tensor = |name: &str| json!({"name": name, "shape": [1, 2], "datatype": "FP32", "data": [1, 2]});
    json!({"inputs": [tensor("x"), tensor("y")]}).to_string()
}

/// Has several clients call until they are told to end, or the replica is gone. Gives the identifiers of what was answered.
async fn call(replica: &ReplicaProcess, round: usize, over: &AtomicBool) -> Vec<String> {
    let number = AtomicUsize::new(0);
    let client = async || {
        let mut answered = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let id = format!("{round}-{}", number.fetch_add(1, Ordering::Relaxed));
            let request = infer(replica, "add", body()).header("x-request-id", &id);
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
                *kept.entry(event["xrequestid"].as_str().unwrap().to_owned()).or_default() += 1;
            }
        }
    }
    kept
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

/// CPU time that a process has taken.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: u64 = [11, 12].map(|at| fields[at].parse::<u64>().unwrap()).iter().sum();
    Duration::from_millis(ticks * 10)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Blocks of calls, with blob storage there and away by turns: what is collected waits on disk, and calls do not notice.
#[tokio::test]
async fn calls_do_not_notice_that_blob_storage_is_away() {
    let Some(azurite) = Azurite::found() else { return };
    azurite.create_container("data");
    let proxy = Proxy::start(azurite.address());
    let launch = collecting("request, response").env("OUTRIGGER_COLLECT_TO", "az://data/x");
    let launch = azurite
        .environment_at(proxy.address())
        .into_iter()
        .fold(launch, |l, (name, value)| l.env(name, value));
    let launch = launch.env("OUTRIGGER_COLLECT_RETRY_MAX", "1s").file("add.onnx", onnx::add(2));
    let replica = launch.args(["--model", "add=add.onnx"]).start();
    // Twenty seconds without storage, or five minutes of a proof.
    let block = Duration::from_secs(scale(5, 30) as u64);
    let (mut cost, mut latency) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let mut sent = 0.0;
    for number in 0..scale(8, 20) {
        let away = number % 2;
        if away == 1 {
            proxy.inject(On::any().always(), Fault::Hangup);
        }
        let (before, since) = (cpu(replica.pid()), Instant::now());
        let (mut calls, mut times) = (0.0, Vec::new());
        while since.elapsed() < block {
            let begun = Instant::now();
            let answer =
                infer(&replica, "add", body()).header("content-type", "application/json").send().await;
            assert_eq!(answer.unwrap().status(), 200);
            times.push(begun.elapsed().as_secs_f64());
            calls += 1.0;
        }
        sent += calls;
        cost[away].push((cpu(replica.pid()) - before).as_secs_f64() / calls * 1e6);
        latency[away].push(median(times) * 1e6);
        let lag = metrics(&replica).await["outrigger_collect_lag_seconds{collection=\"request\"}"];
        if away == 1 {
            let degraded = metrics(&replica).await["outrigger_degraded{part=\"storage\"}"];
            assert!(degraded > 0.0, "{}", replica.log_text());
            assert!(lag >= block.as_secs_f64() / 2.0, "it grows: {lag} s");
            proxy.heal();
        }
    }
    for collection in ["request", "response"] {
        let counted = super::until_settled(&replica, collection, sent).await;
        assert_eq!((counted.persisted, counted.dropped), (sent, 0.0));
    }
    let settled = metrics(&replica).await;
    assert_eq!(settled["outrigger_collect_lag_seconds{collection=\"request\"}"], 0.0);
    assert_eq!(settled["outrigger_degraded{part=\"storage\"}"], 0.0);
    for (what, [there, away]) in [("CPU time of a call", cost), ("median latency", latency)] {
        let (there, away) = (median(there), median(away));
        say(format!("{what}: {there:.1} us with blob storage, {away:.1} us without"));
        // Noise of a machine that does other things beside is much less than what a call that waits would take.
        assert!(away < there * if proving() { 1.5 } else { 3.0 }, "{what}: {there} us, {away} us");
    }
}
