//! ONNX models on a portable GPU in a process of its own, on a driver in software that can be told to fail (see `outrigger_testkit::webgpu`).

use std::process::Command;
use std::time::{Duration, Instant};

use outrigger_testkit::webgpu::{self, FailingDriver, Failure};
use outrigger_testkit::{Launch, ReplicaProcess, onnx};
use serde_json::json;

use crate::support::{infer, outcome, outrigger};

/// How long anything may take here before a test fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// A replica that has a model on `devices`, with the driver in `folder`; nothing where something is missing, which it says.
fn configured(folder: &std::path::Path, devices: &str) -> Option<(Launch, FailingDriver)> {
    let there = webgpu::set_up();
    let webgpu = there.inspect_err(|missing| println!("skipped: {missing}")).ok()?;
    let driver = FailingDriver::make(folder, &webgpu.driver);
    let mut told = Command::new("true");
    webgpu::driver(&mut told, &driver.file());
    let config = format!(
        "[backends.gpu]\nsettings = ['software=true', 'onnxruntime={}']\n[models.sum]\npath = 'sum.onnx'\ndevices = {devices}\n",
        webgpu.library.display()
    );
    let mut launch = outrigger()
        .args(["--config", "outrigger.toml"])
        .file("outrigger.toml", config)
        .file("sum.onnx", onnx::add(3));
    for (name, value) in told.get_envs() {
        let name = name.to_str().unwrap().to_owned();
        launch = launch.env(&name, value.unwrap());
    }
    Some((launch, driver))
}

/// Status, the device, and what the sum is.
async fn sum(replica: &ReplicaProcess) -> (u16, String, serde_json::Value) {
    let x = |name: &str| json!({ "name": name, "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3] });
    let body = json!({ "inputs": [x("x"), x("y")] }).to_string();
    let response = infer(replica, "sum", body).send().await.unwrap();
    let device = crate::support::header(&response, "outrigger-device");
    let (status, _, body) = outcome(response).await;
    (status, device, body["outputs"][0]["data"].clone())
}

#[tokio::test]
async fn a_device_that_is_lost_has_another_process_soon() {
    let folder = tempfile::tempdir().unwrap();
    let Some((launch, driver)) = configured(folder.path(), "['gpu']") else { return };
    let mut replica = launch.start();
    let served = (200, "gpu:0".to_owned(), json!([2.0, 4.0, 6.0]));
    assert_eq!(sum(&replica).await, served);
    driver.fail(Failure::Lost);
    assert_eq!(sum(&replica).await.0, 503);
    replica.wait_for_text("the device host of `gpu` was ended: ");
    driver.mend(Failure::Lost);
    let deadline = Instant::now() + PATIENCE;
    while sum(&replica).await != served {
        assert!(Instant::now() < deadline, "{}", replica.log_text());
    }
    assert!(replica.log_text().contains("the device host was restarted"), "{}", replica.log_text());
}

#[tokio::test]
async fn a_device_that_runs_nothing_at_the_start_is_not_where_the_model_goes() {
    let folder = tempfile::tempdir().unwrap();
    let Some((launch, driver)) = configured(folder.path(), "['gpu', 'cpu']") else { return };
    driver.fail(Failure::Lost);
    let mut replica = launch.start();
    let (status, device, data) = sum(&replica).await;
    assert_eq!((status, device.as_str()), (200, "cpu:0; fallback-from=gpu"));
    assert_eq!(data, json!([2.0, 4.0, 6.0]));
    replica.wait_for_text("this device takes no ONNX models: ");
    // Not for ever: the process in which it failed is another one by and by.
    replica.wait_for_text("the device host of `gpu` was ended: ");
    driver.mend(Failure::Lost);
    replica.wait_for_text("the device host was restarted");
}

#[test]
fn what_is_wrong_with_a_file_is_said_where_the_device_would_not_have_taken_it_either() {
    let add = onnx::add(3);
    let ended = outrigger()
        .args(["--config", "outrigger.toml"])
        .file(
            "outrigger.toml",
            "[backends.gpu]\nsettings = ['software=true']\n[models.sum]\npath = 'sum.onnx'\ndevices = ['gpu', 'cpu']\n",
        )
        .file("sum.onnx", &add[..add.len() - 10])
        .run();
    assert_eq!(ended.status.code(), Some(3), "{}", ended.text());
    let text = ended.text();
    assert!(text.contains("sum.onnx") && text.contains("is cut off, or no ONNX model"), "{text}");
}
