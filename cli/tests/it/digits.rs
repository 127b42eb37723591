//! The example: real scans, a trained model, two services on it.

use std::path::PathBuf;

use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess, repository};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{client, infer, outcome, score};

#[derive(Deserialize)]
struct HeldOut {
    images: Vec<Vec<f64>>,
    truth: Vec<i64>,
    joblib_labels: Vec<i64>,
    onnx_labels: Vec<i64>,
}

fn folder() -> PathBuf {
    repository().join(".outrigger/digits")
}

fn held_out() -> HeldOut {
    let path = folder().join("held_out.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("{}: {error}: run `cargo xtask test`, which trains it", path.display())
    });
    serde_json::from_str(&text).unwrap()
}

fn service(name: &str) -> ReplicaProcess {
    let config = repository().join("entry-scripts/examples/digits").join(name);
    crate::support::outrigger().args(["--config", config.to_str().unwrap()]).start()
}

/// Scores all scans, one request for each, and gives the labels.
async fn labels(replica: &ReplicaProcess, scans: &HeldOut) -> Vec<i64> {
    let client = client();
    let mut labels = Vec::new();
    for image in &scans.images {
        let request = client.post(format!("{}/score", replica.score)).bearer_auth(KEY);
        let response = request.body(json!({"data": [image]}).to_string()).send().await.unwrap();
        let (status, code, body) = outcome(response).await;
        assert_eq!((status, code.as_str()), (200, ""), "{body}");
        labels.push(body["labels"][0].as_i64().unwrap_or_else(|| panic!("{body}")));
    }
    labels
}

fn right(labels: &[i64], scans: &HeldOut) -> usize {
    labels.iter().zip(&scans.truth).filter(|(label, truth)| label == truth).count()
}

#[tokio::test]
async fn both_services_are_exactly_as_right_as_the_model_in_process() {
    let scans = held_out();
    assert_eq!(scans.images.len(), 360);
    for (config, in_process) in [("classic.toml", &scans.joblib_labels), ("handle.toml", &scans.onnx_labels)]
    {
        let replica = service(config);
        let served = labels(&replica, &scans).await;
        assert_eq!(&served, in_process, "{config}");
        assert_eq!(right(&served, &scans), right(in_process, &scans));
        assert!(right(&served, &scans) > 340, "{config}: {} of 360", right(&served, &scans));
        replica.stop();
    }
}

#[tokio::test]
async fn the_same_model_is_served_without_a_script() {
    let scans = held_out();
    let model = folder().join("digits.onnx");
    let replica =
        crate::support::outrigger().args(["--model", &format!("digits={}", model.display())]).start();
    let flat: Vec<f64> = scans.images.iter().flatten().copied().collect();
    let request = json!({
        "id": "all",
        "inputs": [{"name": "image", "shape": [360, 64], "datatype": "FP32", "data": flat}],
        "outputs": [{"name": "label"}],
    });
    let (status, _, body) =
        outcome(infer(&replica, "digits", request.to_string()).send().await.unwrap()).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!((&body["id"], &body["model_name"]), (&json!("all"), &json!("digits")));
    assert_eq!(body["outputs"][0]["shape"], json!([360]));
    let served: Vec<i64> =
        body["outputs"][0]["data"].as_array().unwrap().iter().map(|l| l.as_i64().unwrap()).collect();
    assert_eq!(served, scans.onnx_labels);

    let (status, _, body) = outcome(score(&replica, "x").send().await.unwrap()).await;
    assert_eq!(status, 404, "{body}");
    assert!(body["message"].as_str().unwrap().contains("/v2/models"), "{body}");
}

#[tokio::test]
async fn a_model_directory_alone_is_served() {
    let replica = crate::support::outrigger().args(["--model-dir", folder().to_str().unwrap()]).start();
    let url = format!("{}/v2/models/digits", replica.score);
    let (status, _, body) = outcome(client().get(url).bearer_auth(KEY).send().await.unwrap()).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["inputs"], json!([{"name": "image", "datatype": "FP32", "shape": [-1, 64]}]));
    assert_eq!(body["platform"], "onnx_cpu");
}

#[tokio::test]
async fn a_script_asks_for_what_is_not_there_and_gets_a_clear_error() {
    let script = "from outrigger import model\nhandle = None\ndef init():\n    pass\ndef run(data):\n    return model(data).name\n";
    let model = folder().join("digits.onnx");
    let launch: Launch = crate::support::outrigger().script(script);
    let mut replica = launch.args(["--model", &format!("digits={}", model.display())]).start();
    let (status, _, body) = outcome(score(&replica, "digits").send().await.unwrap()).await;
    assert_eq!((status, body), (200, Value::from("digits")));
    let (status, code, _) = outcome(score(&replica, "digit").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (500, "script_error"));
    replica.wait_for_text("model `digit` is not served here, did you mean `digits`?");
}
