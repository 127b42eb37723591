//! Chains of steps as models on a portable GPU, in software where there is no other.

use std::process::{Command, Stdio};

use outrigger_testkit::{Launch, onnx, vulkan};
use serde_json::{Value, json};

use crate::support::{client, infer, outcome};

const CONFIG: &str = "
[backends.gpu]
settings = ['software=true']
[models.classes]
path = 'classes'
devices = ['gpu']
max_batch = 8
";

/// `outrigger COMMAND` where the model is.
fn configured(command: &str, config: &str) -> Launch {
    let mut process = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    process.arg(command);
    Launch::of(process)
        .args(["--config", "outrigger.toml"])
        .file("outrigger.toml", config)
        .file("classes/steps.toml", vulkan::classes("FP32"))
        .file("classes/model.toml", "format = 'steps'\nfile = 'steps.toml'\n")
}

/// What `outrigger devices` says of the backend.
fn devices(config: &str) -> Value {
    let (mut command, _directory) = configured("devices", config).args(["--json"]).into_command();
    let output = command.stdout(Stdio::piped()).output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let backends = said["backends"].as_array().unwrap();
    backends.iter().find(|backend| backend["backend"] == "gpu").unwrap().clone()
}

/// Says why if there is no device.
fn is_there() -> bool {
    let gpu = devices(CONFIG);
    let is_there = !gpu["devices"].as_array().unwrap().is_empty();
    vulkan::found(is_there.then_some(()).ok_or(&gpu["reason"])).is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_steps_is_served_from_a_process_of_its_own() {
    if !is_there() {
        return;
    }
    let replica = configured("serve", CONFIG).start();
    let ask = |data: Value, rows: usize| {
        let input = json!({ "name": "logits", "datatype": "FP32", "shape": [rows, 4], "data": data });
        infer(&replica, "classes", json!({ "inputs": [input] }).to_string()).send()
    };
    let response = ask(json!([0, 1, 2, 3, 3, 2, 1, 0]), 2).await.unwrap();
    assert_eq!(response.headers()["outrigger-device"], "gpu:0");
    let (status, _, body) = outcome(response).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["outputs"][1]["data"], json!([3, 2, 0, 1]));
    let scores: Vec<f64> = serde_json::from_value(body["outputs"][0]["data"].clone()).unwrap();
    let expected = [0.643_914, 0.236_882, 0.643_914, 0.236_882];
    assert!(scores.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-5), "{scores:?}");
    // Batches of any width, several at once: each caller gets its own rows.
    let answers = (0..24).map(|best: usize| {
        let mut row = [0; 4];
        row[best % 4] = 9;
        let asked = ask(json!(row), 1);
        async move { (best % 4, outcome(asked.await.unwrap()).await) }
    });
    for (best, (status, _, body)) in all_of(answers).await {
        assert_eq!((status, &body["outputs"][1]["data"][0]), (200, &json!(best)), "{body}");
    }
    let ready = client().get(format!("{}/ready", replica.observe)).send().await.unwrap();
    assert_eq!(ready.status(), 200);
    assert_eq!(replica.stop().status.code(), Some(0));
}

/// All at once.
async fn all_of<T: Send + 'static>(
    futures: impl Iterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let mut set: tokio::task::JoinSet<T> = futures.collect();
    let mut all = Vec::new();
    while let Some(one) = set.join_next().await {
        all.push(one.unwrap());
    }
    all
}

#[test]
fn an_onnx_model_that_the_device_does_not_take_goes_on_with_the_reason() {
    if !is_there() {
        return;
    }
    let plan = |settings: &str| {
        let config = format!(
            "[backends.gpu]\nsettings = ['software=true'{settings}]\n[models.sum]\npath = 'sum.onnx'\ndevices = ['gpu', 'cpu']\n"
        );
        let launch = configured("plan", &config).file("sum.onnx", onnx::add(3)).args(["--json"]);
        let (mut command, _directory) = launch.into_command();
        let output = command.stdout(Stdio::piped()).output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        let placed = &said["placed"][0];
        assert!(placed["device"].to_string().contains("cpu"), "{said}");
        placed["tried"].to_string()
    };
    let version = devices(CONFIG)["version"].to_string();
    assert!(version.contains("no ONNX models: the setting `onnxruntime` names no library"), "{version}");
    let said = plan("");
    assert!(
        said.contains("the setting `onnxruntime` names no library of ONNX Runtime with WebGPU"),
        "{said}"
    );
    let said = plan(", 'onnxruntime=/nowhere.so'");
    assert!(said.contains("/nowhere.so"), "{said}");
}

#[test]
fn a_device_in_software_is_not_used_unawares() {
    if !is_there() {
        return;
    }
    let gpu = devices(&CONFIG.replace("true", "false"));
    let found = gpu["devices"].as_array().unwrap();
    // A machine with a real one has that, and no reason.
    let says_so = gpu["reason"]
        .as_str()
        .is_some_and(|reason| reason.contains("the setting `software=true` permits it"));
    assert!(found.is_empty() == says_so, "{gpu}");
    assert!(found.len() <= devices(CONFIG)["devices"].as_array().unwrap().len());
}
