//! Limits and times of the processes that devices have of their own, and settings of models: what the configuration says takes effect.

use outrigger_testkit::replica::kill;
use outrigger_testkit::{Launch, ReplicaProcess, onnx};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::devices::{hosts, is_right, readiness, serving, until};
use crate::placement::{adder, answer, call, contains, metrics, refused};
use crate::support::{infer, outcome, outrigger};

/// `sum` on the CPU, in a process of its own that is held like this.
fn held(keys: &str) -> Launch {
    serving(&format!("[backends.cpu]\nprocess = 'out'\n{keys}\n[models.sum]\npath = 'sum.onnx'\n"))
}

async fn kill_host(replica: &ReplicaProcess) {
    until("a host", async || hosts(replica).len() == 1 && readiness(replica).await.0 == 200).await;
    let pid = hosts(replica)[0];
    kill("KILL", pid);
    until("word of its end", async || !hosts(replica).contains(&pid)).await;
}

#[tokio::test]
async fn a_device_is_quarantined_after_as_many_deaths_and_for_as_long_as_is_said() {
    let mut replica = held("quarantine_deaths = 2\nquarantine_window = '1h'\nquarantine = '500ms'").start();
    kill_host(&replica).await;
    kill_host(&replica).await;
    replica.wait_for_text("it died 2 times in a row and is quarantined");
    until("the next try", async || readiness(&replica).await.0 == 200 && is_right(&replica).await).await;
    // One death is enough, and the pause outlasts the test.
    let replica = held("quarantine_deaths = 1\nquarantine = '1h'").start();
    assert!(is_right(&replica).await);
    kill("KILL", hosts(&replica)[0]);
    until("word of it", async || {
        let (status, body) = readiness(&replica).await;
        status == 503 && body.contains("it died 1 times in a row and is quarantined")
    })
    .await;
}

/// What is said of a call.
async fn said(replica: &ReplicaProcess, model: &str, body: Value) -> (u16, String) {
    let (status, _, body) = outcome(infer(replica, model, body.to_string()).send().await.unwrap()).await;
    (status, body.to_string())
}

#[tokio::test]
async fn calls_that_are_too_large_name_the_key() {
    let config =
        "[backends.cpu]\nprocess = 'out'\nmax_call_bytes = '1KiB'\n[models.outer]\npath = 'outer.onnx'";
    let launch = outrigger().file("outer.onnx", onnx::outer_sum()).file("outrigger.toml", config);
    let mut replica = launch.args(["--config", "outrigger.toml"]).start();
    let sum = |n: usize| {
        let tensor = |name: &str, shape: [usize; 2]| json!({"name": name, "datatype": "FP32", "shape": shape, "data": vec![1.0; n]});
        json!({"inputs": [tensor("x", [n, 1]), tensor("y", [1, n])]})
    };
    assert_eq!(said(&replica, "outer", sum(16)).await.0, 200, "both are as large as they may be");
    // The replica finds that inputs are too large, and the process that a result is.
    let (status, body) = said(&replica, "outer", sum(129)).await;
    assert_eq!(status, 400, "{body}");
    contains(&body, &["inputs of 1032 bytes are over max_call_bytes of the device host, 1024 bytes"]);
    let (status, body) = said(&replica, "outer", sum(17)).await;
    // No fault of the caller's, and no better another time.
    assert_eq!(status, 500, "{body}");
    let why =
        "model `outer` failed: results of 1156 bytes are over max_call_bytes of the device host, 1024 bytes";
    contains(&body, &[why]);
    replica.wait_for_text("results of 1156 bytes are over max_call_bytes of the device host, 1024 bytes");
    assert_eq!(said(&replica, "outer", sum(16)).await.0, 200);
}

#[test]
fn times_that_are_over_name_the_key() {
    for (keys, never, texts) in [
        (
            "start_timeout = '100ms'",
            "open",
            ["its device host did not get ready in time", "start_timeout is 100ms"],
        ),
        (
            "load_timeout = '100ms'",
            "load",
            [
                "model `sum` has no place: adder:0: did not load it",
                "it did not answer within 100ms (load_timeout)",
            ],
        ),
        (
            "request_timeout = '100ms'",
            "estimate",
            ["adder", "it did not answer within 100ms (request_timeout)"],
        ),
    ] {
        let config = format!(
            "[backends.adder]\nlibrary = '{}'\nsettings = ['onnx=1', '{never}=never']\n{keys}\n[models.sum]\npath = 'sum.onnx'\ndevices = ['adder']\n",
            adder().display()
        );
        contains(&refused(serving(&config), 3), &texts);
    }
}

#[tokio::test]
async fn a_host_that_stands_still_is_replaced_after_the_time_that_is_said() {
    // It is asked while the replica starts, too.
    let mut replica = held("status_timeout = '2s'").start();
    until("the one host", async || hosts(&replica).len() == 1 && readiness(&replica).await.0 == 200).await;
    let pid = hosts(&replica)[0];
    kill("STOP", pid);
    replica.wait_for_text("it did not answer within 2s (status_timeout)");
    until("the next host", async || readiness(&replica).await.0 == 200 && is_right(&replica).await).await;
    assert_ne!(hosts(&replica), [pid]);
}

#[test]
fn numbers_that_are_over_name_the_key() {
    let two = "[models.two]\npath = 'sum.onnx'\n";
    let config = |keys: &str| {
        format!(
            "[backends.cpu]\nprocess = 'out'\n{keys}\n[models.sum]\npath = 'sum.onnx'\ninstances = 2\n{two}"
        )
    };
    for (keys, text) in [
        ("max_models = 1", "holds 1 models, which is its limit (max_models)"),
        ("max_instances = 2", "holds 2 instances, which is its limit (max_instances)"),
    ] {
        contains(&refused(serving(&config(keys)), 3), &["model `two`", text]);
    }
    drop(serving(&config("max_models = 2\nmax_instances = 3")).start());
    // How many threads there are, only the device says.
    let config = format!(
        "[backends]\ncpu_threads = 3\n[backends.adder]\nlibrary = '{}'\nmax_calls = 2\n[models.sum]\npath = 'sum.onnx'\ndevices = ['adder', 'cpu']",
        adder().display()
    );
    let text = "`backends.adder.max_calls` is 2, and adder:0 has 3 threads";
    contains(&refused(serving(&config), 3), &[text]);
}

#[tokio::test]
async fn there_are_as_many_calls_as_threads() {
    const THREADS: usize = 66;
    let config = format!(
        "[backends.adder]\nlibrary = '{}'\nthreads = {THREADS}\ncall_wait = '0s'\n[models.slow]\npath = 'slow.txt'\ndevices = ['adder']",
        adder().display()
    );
    let launch = outrigger().file("slow.txt", "slow 1000").file("outrigger.toml", config);
    let replica = launch.args(["--config", "outrigger.toml"]).start();
    let mut calls = JoinSet::new();
    for _ in 0..THREADS {
        let request = infer(&replica, "slow", call());
        calls.spawn(async move { outcome(request.send().await.unwrap()).await });
    }
    while let Some(ended) = calls.join_next().await {
        let (status, _, body) = ended.unwrap();
        assert_eq!(status, 200, "{body}");
    }
}

/// Shared memory that a process has mapped.
fn regions(pid: u32) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.lines().filter(|line| line.contains("memfd:")).count()
}

#[tokio::test]
async fn what_goes_through_shared_memory_and_is_kept_there_is_as_both_sides_are_told() {
    // The inputs' region, which the replica makes, and that of the result, which the process makes.
    for (keys, kept) in [("", 0), ("inline_bytes = '0B'", 2), ("inline_bytes = '0B'\nkept_bytes = '0B'", 0)] {
        let replica = held(keys).start();
        for _ in 0..3 {
            assert!(is_right(&replica).await, "{keys}");
        }
        until("shared memory as it was said", async || regions(hosts(&replica)[0]) == kept).await;
    }
}

/// A model that adds, with a manifest that says this, and a configuration that says that of it.
fn with_settings(manifest: &str, said: &str, process: &str) -> Launch {
    let config = format!(
        "[backends.adder]\nlibrary = '{}'\nprocess = '{process}'\n[models.sum]\npath = 'sum'\ndevices = ['adder']\n{said}",
        adder().display()
    );
    outrigger()
        .file("sum/model.toml", format!("file = 'words.txt'\nformat = 'text'\n{manifest}"))
        .file("sum/words.txt", "add 3\n")
        .file("outrigger.toml", config)
        .args(["--config", "outrigger.toml"])
}

#[tokio::test]
async fn a_model_s_settings_reach_its_backend_and_stay_when_that_is_started_again() {
    let held = "outrigger_device_memory_bytes{device=\"adder:0\",memory=\"held\"}";
    for (manifest, said, bytes) in [
        ("settings = ['weights=100']", "", 100),
        ("settings = ['weights=100', ]", "settings = ['weights=7']", 7),
        ("", "settings = ['weights = 9']", 9),
    ] {
        for process in ["in", "out"] {
            let replica = with_settings(manifest, said, process).start();
            let line = format!("{held} {bytes}\n");
            until("what it holds", async || metrics(&replica).await.contains(&line)).await;
            if process == "out" {
                let first = hosts(&replica)[0];
                kill("KILL", first);
                // That nothing is held may be over before anybody has looked; that it is another process is not.
                until("the next process", async || hosts(&replica).iter().any(|pid| *pid != first)).await;
                until("an answer of it", async || is_right(&replica).await).await;
                until("what it holds again", async || metrics(&replica).await.contains(&line)).await;
                assert_eq!(answer(&replica, "sum").await.0, json!([11.0, 22.0, 33.0]));
            }
        }
    }
}

#[test]
fn settings_that_the_backend_does_not_know_are_named_with_their_model() {
    for process in ["in", "out"] {
        let text = refused(with_settings("settings = ['colour=blue']", "", process), 3);
        contains(&text, &["model `sum` (", "words.txt", "unknown setting `colour`"]);
        let cpu = format!(
            "[backends.cpu]\nprocess = '{process}'\n[models.sum]\npath = 'sum.onnx'\nsettings = ['colour=blue']"
        );
        let text = refused(serving(&cpu), 3);
        contains(
            &text,
            &["model `sum` (", "sum.onnx", "there is no setting `colour` for a model, only `affinity`"],
        );
    }
    let text = refused(with_settings("settings = ['colour']", "", "in"), 3);
    contains(&text, &["sum/model.toml", "`settings` holds `colour`, which is not KEY=VALUE"]);
    let text = refused(with_settings("", "settings = ['a=1', 'a=2']", "in"), 2);
    contains(&text, &["`models.sum.settings` sets `a` twice"]);
    // A plan shows it, too.
    let launch = with_settings("", "settings = ['colour=blue']", "in");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(["plan", "--config", "outrigger.toml"])
        .current_dir(launch.directory())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    contains(&text, &["sum - - no place", "unknown setting `colour`"]);
}
