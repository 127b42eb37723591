//! Calls that wait for a slot: how many, with how many bytes, and for how long.

use outrigger_testkit::{Launch, ReplicaProcess};
use tokio::task::JoinHandle;

use super::long_and_short;
use super::requests::models;
use crate::support::{header, outcome, score, until_busy};

/// A script that comes back once the file `go` is there.
pub(super) const WAITS: &str = r#"
import os, time
def init():
    pass
def run(data):
    while not os.path.exists("outputs/go"):
        time.sleep(0.002)
    return len(data)
"#;

type Call = JoinHandle<reqwest::Response>;

fn launch() -> Launch {
    models().script(WAITS).file("app/outputs/.kept", "")
}

/// A replica with one slot, which is taken.
async fn waiting(args: [&str; 2]) -> (ReplicaProcess, Call) {
    let replica = launch().args(args).start();
    let first = first(&replica).await;
    (replica, first)
}

/// What takes the slot.
async fn first(replica: &ReplicaProcess) -> Call {
    let first = call(replica, 1);
    until_busy(replica, 1, 0).await;
    first
}

/// A call with so many bytes.
fn call(replica: &ReplicaProcess, length: usize) -> Call {
    let request = score(replica, "x".repeat(length));
    tokio::spawn(async move { request.send().await.unwrap() })
}

async fn is_refused(call: Call, key: &str) {
    let refused = call.await.unwrap();
    let seconds = header(&refused, "retry-after");
    assert!(seconds.parse::<u64>().is_ok_and(|seconds| seconds > 0), "{seconds:?}");
    let (status, code, body) = outcome(refused).await;
    assert_eq!((status, code.as_str()), (503, "overloaded"), "{body}");
    assert!(body["message"].as_str().unwrap().contains(key), "{body}");
}

async fn all_are_answered(replica: &ReplicaProcess, calls: Vec<Call>) {
    std::fs::write(replica.directory().join("app/outputs/go"), "").unwrap();
    for call in calls {
        assert_eq!(call.await.unwrap().status(), 200);
    }
    assert_eq!(call(replica, 1).await.unwrap().status(), 200);
}

pub(super) async fn queued_items() {
    let (replica, first) = waiting(["--queue-items", "2"]).await;
    let mut calls = vec![first];
    for queued in 1..=2 {
        calls.push(call(&replica, 1));
        until_busy(&replica, 1, queued).await;
    }
    is_refused(call(&replica, 1), "queue.items").await;
    all_are_answered(&replica, calls).await;
}

pub(super) async fn queued_bytes() {
    let (replica, first) = waiting(["--queue-bytes", "64KiB"]).await;
    let mut calls = vec![first, call(&replica, 40 << 10)];
    until_busy(&replica, 1, 1).await;
    is_refused(call(&replica, (24 << 10) + 1), "queue.bytes").await;
    calls.push(call(&replica, 24 << 10));
    until_busy(&replica, 1, 2).await;
    all_are_answered(&replica, calls).await;
}

pub(super) async fn queue_wait() {
    let [long, short] = long_and_short(launch, "--queue-wait");
    let in_long = vec![first(&long).await, call(&long, 1)];
    until_busy(&long, 1, 1).await;
    let in_short = first(&short).await;
    is_refused(call(&short, 1), "queue.wait").await;
    assert!(in_long.iter().all(|call| !call.is_finished()));
    all_are_answered(&short, vec![in_short]).await;
    all_are_answered(&long, in_long).await;
}
