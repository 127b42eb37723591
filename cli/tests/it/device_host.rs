//! A backend in a process of its own, behind a whole replica.

use std::time::{Duration, Instant};

use outrigger_testkit::{Launch, ReplicaProcess, onnx};
use serde_json::json;

use crate::placement::{answer, call};
use crate::support::{infer, outcome, outrigger};

fn launch() -> Launch {
    outrigger()
        .file("sum.onnx", onnx::add(3))
        .file("outrigger.toml", "[backends.cpu]\nprocess = 'out'\n[models.sum]\npath = 'sum.onnx'\n")
        .args(["--config", "outrigger.toml"])
}

/// The children of the replica that are device hosts.
fn hosts(replica: &ReplicaProcess) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", replica.pid())).unwrap();
    let children = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("children")));
    let children: Vec<u32> = children
        .flat_map(|text| {
            text.unwrap_or_default().split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()
        })
        .collect();
    let is_host = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == b"device-host")
    };
    children.into_iter().filter(is_host).collect()
}

#[tokio::test]
async fn a_device_s_process_that_is_killed_costs_calls_and_no_more() {
    let replica = launch().start();
    assert_eq!(answer(&replica, "sum").await.0, json!([11.0, 22.0, 33.0]));
    let before = hosts(&replica);
    assert_eq!(before.len(), 1, "{}", replica.log_text());
    let environment = std::fs::read(format!("/proc/{}/environ", before[0])).unwrap();
    assert!(
        !String::from_utf8_lossy(&environment).contains("OUTRIGGER_"),
        "settings and keys are the replica's own"
    );
    outrigger_testkit::replica::kill("KILL", before[0]);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let (status, code, body) = outcome(infer(&replica, "sum", call()).send().await.unwrap()).await;
        if status == 200 && hosts(&replica) != before {
            assert_eq!(body["outputs"][0]["data"], json!([11.0, 22.0, 33.0]));
            break;
        }
        assert!(status == 200 || status == 503, "{status} {code} {body}");
        assert!(Instant::now() < deadline, "{}", replica.log_text());
    }
    let log = replica.log_text();
    assert!(log.contains("was ended by signal 9 (SIGKILL"), "{log}");
    let after = hosts(&replica);
    assert!(replica.stop().status.success());
    assert_eq!(after.len(), 1);
    assert!(!std::path::Path::new(&format!("/proc/{}", after[0])).exists(), "it ends with the replica");
}

#[test]
fn the_subcommand_is_for_the_replica_alone() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .arg("device-host")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is started by the replica"));
}
