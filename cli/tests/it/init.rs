//! Process 1: signals handed on, orphans reaped, the exit status passed through.

use std::path::Path;
use std::process::Command;

use outrigger_testkit::{Launch, ReplicaProcess};

use crate::support::{outcome, outrigger, score};

/// Says who its parent is.
const SCRIPT: &str =
    "import os\n\ndef init():\n    pass\n\ndef run(data):\n    return [os.getpid(), os.getppid()]\n";

async fn processes(replica: &ReplicaProcess) -> serde_json::Value {
    let (status, _, body) = outcome(score(replica, "x").send().await.unwrap()).await;
    assert_eq!(status, 200, "{body}");
    body
}

/// The children of a process, as this process counts.
fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
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

/// Leaves an orphan in the namespace of `first`, as a shell that somebody opens in a container does; gives it back as this process counts.
fn leave_orphan(first: u32, alive: &Path) -> u32 {
    std::fs::write(alive, "").unwrap();
    let shell = format!("(while [ -e {} ]; do sleep 0.02; done) >/dev/null 2>&1 &", alive.display());
    let target = first.to_string();
    let mut command = Command::new("nsenter");
    let entered = command.args(["--pid", "--mount", "--target", &target, "sh", "-c", &shell]).status();
    assert!(entered.unwrap().success());
    let below = children(first);
    assert_eq!(below.len(), 2, "process 1 has adopted it");
    below[1]
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
    let replica = launch.script(SCRIPT).start();
    let numbers = processes(&replica).await;
    assert!(numbers[0].as_u64() < Some(100), "in the namespace: {numbers}");
    let (first, _) = first_two(&replica);
    let alive = replica.directory().join("alive");
    let orphan = leave_orphan(first, &alive);
    std::fs::remove_file(alive).unwrap();
    // One that nobody reaps stays as a zombie.
    while Path::new(&format!("/proc/{orphan}")).exists() {
        std::thread::yield_now();
    }
    assert_eq!(children(first).len(), 1);
    outrigger_testkit::replica::kill("TERM", first);
    let ended = replica.wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.text());
    assert!(ended.text().contains("SIGTERM, ending in order"), "{}", ended.text());
}

#[tokio::test]
async fn as_process_1_it_ends_when_the_replica_is_killed() {
    let Some(launch) = as_process_1() else { return };
    let replica = launch.script(SCRIPT).start();
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
    let replica = outrigger().script(SCRIPT).args(["--process-init=true"]).start();
    let below = children(replica.pid());
    assert_eq!((below.len(), name(below[0]).as_str()), (1, "outrigger"));
    processes(&replica).await;
    replica.signal("INT");
    let ended = replica.wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.text());

    let replica = outrigger().script(SCRIPT).start();
    assert!(children(replica.pid()).into_iter().all(|pid| name(pid) != "outrigger"), "nothing in between");
}

#[tokio::test]
async fn the_replica_goes_with_a_parent_that_is_killed() {
    let replica = outrigger().script(SCRIPT).args(["--process-init=true"]).start();
    let below = children(replica.pid())[0];
    replica.signal("KILL");
    replica.wait();
    while name(below) == "outrigger" {
        std::thread::yield_now();
    }
}

/// A process's name; empty for one that is gone.
fn name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}
