//! What becomes of a replica whose backends and devices fail: the cause is named, and the replica lives.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outrigger_backend::DataType;
use outrigger_testkit::onnx::{self, Dim, Graph};
use outrigger_testkit::replica::kill;
use outrigger_testkit::{Launch, ReplicaProcess};
use serde_json::json;
use tokio::task::JoinSet;

use crate::placement::{adder, answer, call, metrics, refused};
use crate::support::{PATIENCE, client, header, infer, outcome, outrigger};

/// The CPU backend's library, which is built beside the executable.
fn cpu_library() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_outrigger")).with_file_name("liboutrigger_cpu.so")
}

pub(crate) fn serving(config: &str) -> Launch {
    let launch = outrigger().file("sum.onnx", onnx::add(3)).file("outrigger.toml", config);
    launch.args(["--config", "outrigger.toml"])
}

/// The processes of a replica's device hosts.
pub(crate) fn hosts(replica: &ReplicaProcess) -> Vec<u32> {
    let parent = format!("{}", replica.pid());
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let entry = entry.ok()?;
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // After the name, which may hold anything: state, parent.
        let is_child = stat.rsplit_once(") ")?.1.split(' ').nth(1)? == parent;
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let is_host = command.split(|byte| *byte == 0).any(|word| word == b"device-host");
        (is_child && is_host).then_some(pid)
    });
    processes.collect()
}

pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn readiness(replica: &ReplicaProcess) -> (u16, String) {
    let ready = client().get(format!("{}/ready", replica.observe)).send().await.unwrap();
    (ready.status().as_u16(), ready.text().await.unwrap())
}

pub(crate) async fn is_right(replica: &ReplicaProcess) -> bool {
    let (status, _, body) = outcome(infer(replica, "sum", call()).send().await.unwrap()).await;
    status == 200 && body["outputs"][0]["data"] == json!([11.0, 22.0, 33.0])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_host_killed_under_load_costs_calls_that_say_so_and_nothing_else() {
    let mut replica = serving("[backends.cpu]\nprocess = 'out'\n[models.sum]\npath = 'sum.onnx'\n").start();
    assert_eq!(answer(&replica, "sum").await, (json!([11.0, 22.0, 33.0]), "cpu:0".into()));
    let environment = std::fs::read(format!("/proc/{}/environ", hosts(&replica)[0])).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(!environment.contains("OUTRIGGER_"), "settings and keys are the replica's own");
    let over = Arc::new(AtomicBool::new(false));
    let seen = Arc::new(Mutex::new((0, 0)));
    let mut load = JoinSet::new();
    for _ in 0..8 {
        let (over, seen) = (Arc::clone(&over), Arc::clone(&seen));
        let request = infer(&replica, "sum", call());
        load.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let response = request.try_clone().unwrap().send().await.unwrap();
                let wait = response.headers().get("retry-after").cloned();
                let retryable = header(&response, "outrigger-retryable");
                assert_eq!(header(&response, "outrigger-device"), "cpu:0", "whatever became of it");
                let (status, code, body) = outcome(response).await;
                let mut seen = seen.lock().unwrap();
                if status == 200 {
                    assert_eq!(body["outputs"][0]["data"], json!([11.0, 22.0, 33.0]));
                    seen.0 += 1;
                } else {
                    assert_eq!(
                        (status, code.as_str(), retryable.as_str()),
                        (503, "model_unavailable", "true")
                    );
                    assert!(wait.is_some(), "{body}");
                    assert!(body["error"].as_str().unwrap().contains("was lost"), "{body}");
                    seen.1 += 1;
                }
            }
        });
    }
    for kills in 1..=3 {
        let answered = seen.lock().unwrap().0;
        until("a good answer", async || seen.lock().unwrap().0 > answered + 20).await;
        let pid = hosts(&replica)[0];
        kill("KILL", pid);
        until("another host", async || !hosts(&replica).is_empty() && hosts(&replica)[0] != pid).await;
        until("a lost call", async || seen.lock().unwrap().1 >= kills).await;
    }
    until("readiness", async || readiness(&replica).await.0 == 200).await;
    over.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.unwrap();
    }
    assert!(is_right(&replica).await);
    replica.wait_for_text("was ended by signal 9 (SIGKILL");
    replica.wait_for_text("a device cannot be used");
    replica.wait_for_text("a device can be used again");
    assert!(!replica.log_text().contains("panicked"), "{}", replica.log_text());
    let pid = hosts(&replica)[0];
    assert_eq!(replica.stop().status.code(), Some(0));
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the host goes with its replica");
}

#[tokio::test]
async fn a_library_that_is_taken_away_is_missed_when_it_is_opened_and_used_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("backend.so");
    std::fs::copy(cpu_library(), &library).unwrap();
    let table =
        |process: &str| format!("[backends.cpu]\nlibrary = '{}'\nprocess = '{process}'\n", library.display());
    let config = |process: &str| table(process) + "[models.sum]\npath = 'sum.onnx'\n";
    let inside = serving(&config("in")).start();
    let outside = serving(&config("out")).start();
    let kept = std::fs::read(&library).unwrap();
    std::fs::remove_file(&library).unwrap();
    assert!(is_right(&inside).await && is_right(&outside).await, "what is open stays open");
    let path = library.display().to_string();
    // A start names it.
    let text = refused(serving(&config("in")), 3);
    assert!(text.contains(&path) && text.contains("is not there"), "{text}");

    kill("KILL", hosts(&outside)[0]);
    until("word of it", async || {
        let (status, body) = readiness(&outside).await;
        status == 503 && body.contains("model `sum` has no device") && body.contains(&path)
    })
    .await;
    let refused_call = infer(&outside, "sum", call()).send().await.unwrap();
    assert_eq!(outcome(refused_call).await.1, "model_unavailable");
    std::fs::write(&library, kept).unwrap();
    until("the device", async || readiness(&outside).await.0 == 200 && is_right(&outside).await).await;
}

#[tokio::test]
async fn a_device_that_is_lost_gets_no_calls_while_the_model_is_on_another() {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("backend.so");
    std::fs::copy(adder(), &library).unwrap();
    let config = format!(
        "[backends.adder]\nlibrary = '{}'\nprocess = 'out'\nsettings = ['onnx=42', 'devices=2']\n\
         [models.sum]\npath = 'sum.onnx'\ndevices = ['adder']\ninstances = 2\n",
        library.display()
    );
    let replica = serving(&config).start();
    let kept = std::fs::read(&library).unwrap();
    let lost = async || {
        let text = metrics(&replica).await;
        let is_well = |device: &str| {
            text.contains(&format!("outrigger_device_health{{device=\"{device}\",state=\"healthy\"}} 1"))
        };
        let all = ["adder:0", "adder:1"];
        all.into_iter().filter(|device| !is_well(device)).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(lost().await, Vec::<String>::new());
    let mut seen = Vec::new();
    for pid in hosts(&replica) {
        // Without its library it does not come back.
        std::fs::remove_file(&library).unwrap();
        kill("KILL", pid);
        until("word of it", async || lost().await.len() == 1).await;
        let gone = lost().await;
        for _ in 0..16 {
            let (sum, device) = answer(&replica, "sum").await;
            assert_eq!(sum, json!([11.0, 22.0, 33.0]));
            assert_ne!(device, gone[0]);
        }
        assert_eq!(readiness(&replica).await.0, 200, "the model has a device");
        std::fs::write(&library, &kept).unwrap();
        until("the device", async || lost().await.is_empty()).await;
        seen.extend(gone);
    }
    // Each has been the one that was lost.
    seen.sort();
    assert_eq!(seen, ["adder:0", "adder:1"]);
}

/// A library whose table has another major version.
const OTHER_VERSION: &str = r"
#include <stddef.h>
#include <stdint.h>
struct table { uint32_t major, minor; size_t size; void *entries[32]; };
static const struct table table = { 2, 5, sizeof(struct table), { 0 } };
const void *outrigger_backend_v1(void) { return &table; }
";

#[tokio::test]
async fn a_library_of_another_version_is_named_and_the_next_device_serves() {
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("other.c"), folder.path().join("other.so"));
    std::fs::write(&source, OTHER_VERSION).unwrap();
    let mut cc = std::process::Command::new("cc");
    assert!(cc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap().success());
    for process in ["in", "out"] {
        let config = format!(
            "[backends.other]\nlibrary = '{}'\nprocess = '{process}'\n[models.sum]\npath = 'sum.onnx'\ndevices = ['other', 'cpu']\n",
            library.display()
        );
        let replica = serving(&config).start();
        let expected = (json!([11.0, 22.0, 33.0]), "cpu:0; fallback-from=other".into());
        assert_eq!(answer(&replica, "sum").await, expected, "{process}");
        let log = replica.log_text();
        assert!(log.contains("speaks ABI 2.5, this host needs 1.0"), "{process}: {log}");
    }
}

#[test]
fn models_that_cannot_be_loaded_are_named_with_the_cause() {
    let whole = onnx::add(3);
    let free = [Dim::Named("n")];
    let graph = |with: &dyn Fn(&mut Graph)| {
        let mut graph = Graph::default();
        graph.input("x", DataType::Fp32, &free);
        graph.output("y", DataType::Fp32, &free);
        with(&mut graph);
        graph.model()
    };
    let unknown = graph(&|graph| graph.node("NoSuchOperator", &["x"], &["y"]));
    let outside = graph(&|graph| {
        graph.external("w", &[4], &[("location", "../../etc/passwd")]);
        graph.node("Add", &["x", "w"], &["y"]);
    });
    let claims = graph(&|graph| {
        graph.external("w", &[1 << 30], &[("location", "weights"), ("length", "4294967296")]);
        graph.node("Add", &["x", "w"], &["y"]);
    });
    let table: [(&[u8], &str); 4] = [
        (&whole[..whole.len() / 2], "model.onnx"),
        (&unknown, "NoSuchOperator"),
        (&outside, "../../etc/passwd"),
        (&claims, "weights"),
    ];
    for process in ["in", "out"] {
        for (bytes, cause) in table {
            let config =
                format!("[backends.cpu]\nprocess = '{process}'\n[models.odd]\npath = 'model.onnx'\n");
            let launch = outrigger().file("model.onnx", bytes).file("weights", "few").file("o.toml", config);
            let text = refused(launch.args(["--config", "o.toml"]), 3);
            assert!(text.contains("model `odd`") && text.contains(cause), "{process}, {cause}: {text}");
            assert!(!text.contains("panicked"), "{text}");
        }
    }
}

#[tokio::test]
async fn a_tensor_that_claims_four_gigabytes_is_refused_and_costs_nothing() {
    let file = onnx::identity(DataType::Fp32, &[Dim::Named("n")]);
    for process in ["in", "out"] {
        let config = format!("[backends.cpu]\nprocess = '{process}'\n[models.same]\npath = 'same.onnx'\n");
        let replica = outrigger().file("same.onnx", &file).file("o.toml", config);
        let replica = replica.args(["--config", "o.toml"]).start();
        let body = |extent: u64| {
            json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [extent], "data": [1.0]}]})
                .to_string()
        };
        let refused = infer(&replica, "same", body(1 << 30)).send().await.unwrap();
        let (status, code, body_text) = outcome(refused).await;
        assert_eq!((status, code.as_str()), (400, "invalid_tensor"), "{body_text}");
        let good = infer(&replica, "same", body(1)).send().await.unwrap();
        assert_eq!(good.status(), 200, "{process}");
    }
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
