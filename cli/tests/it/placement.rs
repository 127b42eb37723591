//! Where models go: by lists of devices, with what budget, and how it is told when that is elsewhere.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use outrigger_testkit::{Launch, ReplicaProcess, onnx};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{client, header, infer, outcome, outrigger, score};

/// On a machine that has no driver, `cuda` is there and has no devices. `cuda_driver` names one that no machine has.
pub(crate) const NO_DRIVER: &str = "[backends.cuda]\nsettings = ['cuda_driver=/nonexistent/libcuda.so.1']\n";

/// A backend that is none of ours: it takes models in the format `text`, each of which takes 42 bytes.
pub(crate) fn adder() -> PathBuf {
    // The tests are in target/PROFILE/deps.
    let profile = std::env::current_exe().unwrap();
    profile.ancestors().nth(2).unwrap().join("examples/libadder_backend.so")
}

fn with_adder(rest: &str) -> String {
    format!("[backends.adder]\nlibrary = '{}'\nprocess = 'in'\n{rest}", adder().display())
}

fn serving(config: &str) -> Launch {
    outrigger()
        .file("sum.onnx", onnx::add(3))
        .file("text.txt", "add 3\n")
        .file("outrigger.toml", format!("{config}\n{NO_DRIVER}"))
        .args(["--config", "outrigger.toml"])
}

pub(crate) fn call() -> String {
    let tensor =
        |name: &str, data: [f32; 3]| json!({"name": name, "datatype": "FP32", "shape": [1, 3], "data": data});
    json!({"inputs": [tensor("x", [1.0, 2.0, 3.0]), tensor("y", [10.0, 20.0, 30.0])]}).to_string()
}

/// What a model answers and where it says that it ran.
pub(crate) async fn answer(replica: &ReplicaProcess, model: &str) -> (Value, String) {
    let response = infer(replica, model, call()).send().await.unwrap();
    let device = header(&response, "outrigger-device");
    let (status, _, body) = outcome(response).await;
    assert_eq!(status, 200, "{body}");
    (body["outputs"][0]["data"].clone(), device)
}

pub(crate) async fn metrics(replica: &ReplicaProcess) -> String {
    client().get(format!("{}/metrics", replica.observe)).send().await.unwrap().text().await.unwrap()
}

/// What is logged of a start that fails with this exit code.
pub(crate) fn refused(launch: Launch, code: i32) -> String {
    let ended = launch.run();
    let text = ended.text();
    assert_eq!(ended.status.code(), Some(code), "{text}");
    text.replace("\\\"", "\"")
}

pub(crate) fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[tokio::test]
async fn a_fallback_is_named_in_the_answer_the_metrics_and_the_log() {
    let config = "[models.high]\npath = 'sum.onnx'\ndevices = ['cuda', 'gpu', 'cpu']\n[models.plain]\npath = 'sum.onnx'";
    let replica = serving(config).start();
    for (model, device) in [("high", "cpu:0; fallback-from=cuda"), ("plain", "cpu:0")] {
        assert_eq!(answer(&replica, model).await, (json!([11.0, 22.0, 33.0]), device.into()));
    }
    let text = metrics(&replica).await;
    contains(
        &text,
        &[
            "outrigger_model_runs_total{device=\"cpu:0\",fallback=\"true\",model=\"high\"} 1",
            "outrigger_model_runs_total{device=\"cpu:0\",fallback=\"false\",model=\"plain\"} 1",
            "outrigger_model_bytes{device=\"cpu:0\",model=\"high\"}",
            "outrigger_device_memory_bytes{device=\"cpu:0\",memory=\"total\"}",
            "outrigger_device_memory_bytes{device=\"cpu:0\",memory=\"budget\"}",
            "outrigger_device_health{device=\"cpu:0\",state=\"healthy\"} 1",
            "outrigger_device_health{device=\"cpu:0\",state=\"lost\"} 0",
        ],
    );
    let log = replica.log_text();
    assert_eq!(log.matches("not where its list of devices begins").count(), 1, "{log}");
    contains(&log, &["cuda: no such device: NVIDIA driver not found: /nonexistent/libcuda.so.1: "]);
}

#[test]
fn a_forbidden_fallback_names_everything_tried() {
    let strict =
        "[placement]\nfallback = false\n[models.high]\npath = 'sum.onnx'\ndevices = ['cuda:1', 'cpu']";
    let text = refused(serving(strict), 3);
    contains(
        &text,
        &[
            "model `high` has no place",
            "cuda:1: no such device: NVIDIA driver not found: /nonexistent/libcuda.so.1: ",
            "install the driver of the GPU",
            "cpu: not allowed: fallback = false",
        ],
    );
    let text = refused(
        serving(&with_adder(
            "settings = ['memory=40']\n[models.high]\npath = 'text.txt'\ndevices = ['cuda', 'adder']",
        )),
        3,
    );
    contains(
        &text,
        &["cuda: no such", "adder:0: has no room: 42 bytes more than the 0 taken are over its 40"],
    );
}

#[test]
fn a_budget_is_held() {
    let text = refused(serving("[backends.cpu]\nmemory = '1KiB'\n[models.m]\npath = 'sum.onnx'"), 3);
    contains(&text, &["model `m` has no place: cpu:0: has no room", "over its 1024"]);
}

#[tokio::test]
async fn models_go_to_several_devices_at_once() {
    let config = "memory = '1KiB'\nthreads = 2\n\
        [models.text]\npath = 'text.txt'\ndevices = ['adder']\n\
        [models.sum]\npath = 'sum.onnx'\ndevices = ['adder', 'cpu']";
    let replica = serving(&with_adder(config)).start();
    for (model, device) in [("text", "adder:0"), ("sum", "cpu:0; fallback-from=adder")] {
        assert_eq!(answer(&replica, model).await, (json!([11.0, 22.0, 33.0]), device.into()));
    }
    contains(
        &metrics(&replica).await,
        &[
            "outrigger_model_bytes{device=\"adder:0\",model=\"text\"} 42",
            "outrigger_device_memory_bytes{device=\"adder:0\",memory=\"budget\"} 1024",
        ],
    );
    contains(&replica.log_text(), &["adder: does not take `onnx`, only text"]);
}

#[tokio::test]
async fn a_list_means_the_backends_beside_its_own_for_what_those_take() {
    let config = format!(
        "[backends.cpu_adder]\nlibrary = '{}'\nprocess = 'in'\n\
        [backends.cpu_other]\nlibrary = '/nonexistent.so'\n\
        [models.text]\npath = 'text.txt'\ndevices = ['cuda', 'cpu:0']\n[models.sum]\npath = 'sum.onnx'",
        adder().display()
    );
    let launch = serving(&config).file("text.toml", "format = 'text'");
    let replica = launch.start();
    for (model, device) in [("text", "cpu_adder:0; fallback-from=cuda"), ("sum", "cpu:0")] {
        assert_eq!(answer(&replica, model).await, (json!([11.0, 22.0, 33.0]), device.into()));
    }
    // What the one does not need of a budget the other cannot have.
    let tight = config.replace("[models.text]", "[backends.cpu]\nmemory = '41B'\n[models.text]");
    let text = refused(serving(&tight).file("text.toml", "format = 'text'"), 3);
    contains(
        &text,
        &[
            "model `text` has no place",
            "cpu_adder:0: has no room: 42 bytes more than the 0 taken are over its 41",
        ],
    );
}

#[tokio::test]
async fn a_script_s_answer_says_where_the_models_ran_that_it_asked() {
    let script = r#"
import json
import numpy
from outrigger import model

def init():
    global models
    models = {name: model(name) for name in ("high", "plain")}

def run(data):
    rows = numpy.ones((1, 3), "float32")
    return [models[name].predict(x=rows, y=rows).tolist() for name in json.loads(data)]
"#;
    let config =
        "[models.high]\npath = 'sum.onnx'\ndevices = ['cuda', 'cpu']\n[models.plain]\npath = 'sum.onnx'";
    let replica = serving(config).script(script).start();
    for (asked, devices) in [
        (json!(["high"]), "cpu:0; fallback-from=cuda"),
        (json!(["plain", "high", "plain"]), "cpu:0, cpu:0; fallback-from=cuda"),
        (json!([]), ""),
        (json!(["plain"]), "cpu:0"),
    ] {
        let response = score(&replica, asked.to_string()).send().await.unwrap();
        let said = header(&response, "outrigger-device");
        let (status, _, body) = outcome(response).await;
        assert_eq!((status, said.as_str()), (200, devices), "{asked}: {body}\n{}", replica.log_text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_share_the_calls() {
    let config = "[models.sum]\npath = 'sum.onnx'\ninstances = 3\nmax_batch = 4";
    let replica = serving(config).start();
    let requests = (0..64).map(|_| infer(&replica, "sum", call()));
    let mut calls = JoinSet::new();
    requests.for_each(|request| {
        calls.spawn(async move { outcome(request.send().await.unwrap()).await });
    });
    for (status, _, body) in calls.join_all().await {
        assert_eq!((status, &body["outputs"][0]["data"]), (200, &json!([11.0, 22.0, 33.0])));
    }
    assert_eq!(replica.log_text().matches("\"model ready\"").count(), 3);
}

#[test]
fn a_setting_that_a_backend_does_not_have_is_named() {
    let config = "[placement]\ndevices = ['cpu']\n[backends.cpu]\nsettings = ['cach=/tmp/x']\n[models.m]\npath = 'sum.onnx'";
    contains(&refused(serving(config), 3), &["cach"]);
}

/// `outrigger COMMAND --config outrigger.toml` in a directory.
pub(crate) fn outrigger_in(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(arguments)
        .args(["--config", "outrigger.toml"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", directory)
        .env("OUTRIGGER_SCRIPT_PYTHON", outrigger_testkit::python())
        .current_dir(directory)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn directory(config: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("sum.onnx"), onnx::add(3)).unwrap();
    std::fs::write(directory.path().join("text.txt"), "add 3\n").unwrap();
    std::fs::write(directory.path().join("outrigger.toml"), format!("{config}\n{NO_DRIVER}")).unwrap();
    directory
}

/// Lines that 80 columns hold, words that are longer aside.
fn is_readable(text: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= 80 || line.split_whitespace().count() == 1, "{line}\nin\n{text}");
    }
}

#[test]
fn the_plan_says_where_why_and_what_would_leave() {
    let config = "memory = '50B'\n\
        [models.a]\npath = 'text.txt'\ndevices = ['adder']\n\
        [models.b]\npath = 'text.txt'\ndevices = ['adder']\n\
        [models.c]\npath = 'sum.onnx'\ninstances = 2";
    let directory = directory(&with_adder(config));
    let output = outrigger_in(directory.path(), &["plan", "--json"]);
    assert_eq!(output.status.code(), Some(3), "one has no place: {output:?}");
    let plan = json_of(&output);
    let placed: Vec<_> = plan["placed"].as_array().unwrap().iter().collect();
    assert_eq!(placed.len(), 3, "{plan:#}");
    assert_eq!(
        (&placed[0]["model"], &placed[0]["device"], &placed[0]["bytes"]),
        (&json!("a"), &json!("adder:0"), &json!(42))
    );
    assert_eq!((&placed[2]["model"], &placed[2]["instance"]), (&json!("c"), &json!(1)));
    let unplaced = &plan["unplaced"][0];
    assert_eq!(unplaced["tried"][0]["reason"], "no_room", "{plan:#}");
    assert_eq!(unplaced["tried"][0]["budget"], 50);
    assert_eq!(unplaced["evict"][0], json!({"model": "a", "instance": 0, "device": "adder:0", "bytes": 42}));
    let adder = &plan["devices"][0];
    assert_eq!(adder, &json!({"device": "adder:0", "budget": 50, "held": 0, "planned": 42}));

    let output = outrigger_in(directory.path(), &["plan"]);
    let text = stdout(&output);
    is_readable(&text);
    contains(
        &text,
        &[
            "MODEL  DEVICE",
            "a      adder:0",
            "c #2   cpu:0",
            "first choice",
            "no place",
            "would have room without a (42 B)",
        ],
    );
    let output = outrigger_in(directory.path(), &["plan", "--placement-devices", "nothing"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn the_plan_loads_nothing_and_ends_with_0_where_all_have_a_place() {
    let directory = directory("[models.a]\npath = 'sum.onnx'\ndevices = ['cuda', 'cpu']");
    let output = outrigger_in(directory.path(), &["plan"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    is_readable(&text);
    contains(&text, &["fallback from cuda", "cuda: no such device", "DEVICE  PLANNED", "cpu:0"]);
}

#[test]
fn devices_are_listed_and_backends_that_do_not_open_say_why() {
    let config = "[backends.broken]\nlibrary = 'text.txt'\nprocess = 'in'\n[backends.gone]\nlibrary = '/nonexistent.so'\n";
    let directory = directory(&with_adder(config));
    let output = outrigger_in(directory.path(), &["devices", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = json_of(&output);
    let backend = |name: &str| {
        let backends = report["backends"].as_array().unwrap();
        backends
            .iter()
            .find(|backend| backend["backend"] == name)
            .unwrap_or_else(|| panic!("{name}: {report:#}"))
    };
    let device = &backend("adder")["devices"][0];
    for (key, value) in [
        ("device", json!("adder:0")),
        ("kind", json!("cpu")),
        ("memory_total", json!(64 << 20)),
        ("memory_free", json!(64 << 20)),
        ("budget", json!(64 << 20)),
        ("health", json!({"state": "healthy"})),
    ] {
        assert_eq!(device[key], value, "{key}");
    }
    assert_eq!(backend("adder")["formats"], json!(["text"]));
    let cpu = backend("cpu");
    assert_eq!((&cpu["process"], &cpu["devices"][0]["device"]), (&json!("in"), &json!("cpu:0")));
    assert!(cpu["version"].as_str().unwrap().contains("ONNX Runtime"), "{cpu}");
    assert!(cpu["devices"][0]["memory_total"].as_u64().unwrap() > 0);
    for (name, part) in [
        ("broken", "cannot be used"),
        ("gone", "backend library /nonexistent.so is not there"),
        ("cuda", "NVIDIA driver not found: "),
    ] {
        let reason = backend(name)["reason"].as_str().unwrap();
        assert!(reason.contains(part), "{reason}");
        assert_eq!(backend(name)["devices"], json!([]));
    }

    let text = stdout(&outrigger_in(directory.path(), &["devices"]));
    is_readable(&text);
    contains(&text, &["DEVICE", "adder:0", "healthy", "cpu:0", "BACKEND", "none", "is not there"]);
}
