//! Process 1: signals handed on, orphans reaped, the exit status passed through.

use std::path::Path;
use std::process::Command;

use outrigger_testkit::{Launch, ReplicaProcess};

use crate::support::{outcome, outrigger, score};

/// `start` leaves an orphan behind that ends when the file `alive` goes, and gives its number; any other text is the number of a process,
/// whose state it gives.
const ORPHANS: &str = r#"
import os, subprocess, sys
def init():
    open("alive", "w").close()
def run(data):
    if data == "start":
        loop = "while [ -e alive ]; do sleep 0.02; done"
        shell = f"({loop}) >/dev/null 2>&1 & echo $!"
        output = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, start_new_session=True)
        return output.stdout.strip()
    if data == "parent":
        return os.getppid()
    try:
        with open(f"/proc/{data}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "gone"
"#;

async fn ask(replica: &ReplicaProcess, body: &str) -> serde_json::Value {
    let (status, _, body) = outcome(score(replica, body.to_owned()).send().await.unwrap()).await;
    assert_eq!(status, 200, "{body}");
    body
}

/// The children of a process, as this process counts.
fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// An orphan is there, then it ends, and nothing of it is left.
async fn orphans_are_reaped(replica: &ReplicaProcess) {
    let orphan = ask(replica, "start").await.as_str().unwrap().to_owned();
    assert_ne!(ask(replica, &orphan).await, "gone");
    std::fs::remove_file(replica.directory().join("app/alive")).unwrap();
    while ask(replica, &orphan).await != "gone" {}
}

/// The replica as process 1 of a namespace of its own; `None`, and a word, where that cannot be made.
fn as_process_1() -> Option<Launch> {
    let possible = Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "true"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        println!("skipped: no namespace of processes can be made here");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args([
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        env!("CARGO_BIN_EXE_outrigger"),
        "serve",
    ]);
    Some(Launch::of(command))
}

/// The number of process 1 in the namespace, and of the replica below it.
fn first_two(replica: &ReplicaProcess) -> (u32, u32) {
    let first = children(replica.pid())[0];
    let below = children(first);
    assert_eq!(below.len(), 1, "process 1 has the replica and nothing else below it");
    (first, below[0])
}

#[tokio::test]
async fn as_process_1_it_reaps_forwards_and_ends_with_the_replica_s_status() {
    let Some(launch) = as_process_1() else { return };
    let replica = launch.script(ORPHANS).start();
    assert_ne!(ask(&replica, "parent").await, 1, "the worker's parent is no process 1");
    orphans_are_reaped(&replica).await;
    let (first, _) = first_two(&replica);
    outrigger_testkit::replica::kill("TERM", first);
    let ended = replica.wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.text());
    assert!(ended.text().contains("SIGTERM, ending in order"), "{}", ended.text());
}

#[tokio::test]
async fn as_process_1_it_ends_when_the_replica_is_killed() {
    let Some(launch) = as_process_1() else { return };
    let replica = launch.script(ORPHANS).start();
    let (_, below) = first_two(&replica);
    outrigger_testkit::replica::kill("KILL", below);
    assert_eq!(replica.wait().status.code(), Some(128 + 9));
}

#[test]
fn as_process_1_it_ends_with_the_code_of_a_failed_start() {
    let Some(launch) = as_process_1() else { return };
    let ended = launch.script("def init():\n    raise RuntimeError('no')\ndef run(data):\n    pass\n").run();
    assert_eq!(ended.status.code(), Some(3), "{}", ended.text());
}

#[tokio::test]
async fn elsewhere_it_splits_when_told_to() {
    let replica = outrigger().script(ORPHANS).args(["--process-init=true"]).start();
    orphans_are_reaped(&replica).await;
    let below = children(replica.pid());
    assert_eq!(below.len(), 1);
    assert!(Path::new(&format!("/proc/{}", below[0])).exists());
    replica.signal("INT");
    let ended = replica.wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.text());

    let replica = outrigger().script(ORPHANS).args(["--process-init=false"]).start();
    let worker = ask(&replica, "parent").await;
    assert_eq!(worker, replica.pid(), "nothing in between");
}
