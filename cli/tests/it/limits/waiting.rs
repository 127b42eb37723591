//! Calls that wait for a slot: how many, with how many bytes, and for how long.

use outrigger_testkit::ReplicaProcess;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::requests::models;
use crate::support::{outcome, score, until_busy};

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

/// A replica with one slot, which is taken.
async fn waiting(args: [&str; 2]) -> (ReplicaProcess, JoinHandle<(u16, String, Value)>) {
    let replica = models().script(WAITS).file("app/outputs/.kept", "").args(args).start();
    let first = call(&replica, 1);
    until_busy(&replica, 1, 0).await;
    (replica, first)
}

/// A call with so many bytes.
fn call(replica: &ReplicaProcess, length: usize) -> JoinHandle<(u16, String, Value)> {
    let request = score(replica, "x".repeat(length));
    tokio::spawn(async move { outcome(request.send().await.unwrap()).await })
}

async fn is_refused(call: JoinHandle<(u16, String, Value)>, key: &str) {
    let (status, code, body) = call.await.unwrap();
    assert_eq!((status, code.as_str()), (503, "overloaded"), "{body}");
    assert!(body["message"].as_str().unwrap().contains(key), "{body}");
}

async fn all_are_answered(replica: &ReplicaProcess, calls: Vec<JoinHandle<(u16, String, Value)>>) {
    std::fs::write(replica.directory().join("app/outputs/go"), "").unwrap();
    for call in calls {
        assert_eq!(call.await.unwrap().0, 200);
    }
    assert_eq!(call(replica, 1).await.unwrap().0, 200);
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
    let (replica, first) = waiting(["--queue-wait", "300ms"]).await;
    is_refused(call(&replica, 1), "queue.wait").await;
    all_are_answered(&replica, vec![first]).await;
}
