//! What the listeners say of themselves: `/openapi.json`, all of which is so, and the page at `/docs`.

mod keys;
mod models;
mod page;
mod routes;
mod sent;
mod truth;

use std::collections::BTreeSet;
use std::process::Command;

use outrigger_backend::DataType;
use outrigger_testkit::onnx::Dim;
use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess, onnx, repository};
use serde_json::Value;

use crate::support::{client, outrigger};

/// What is switched on beside what always is.
fn everything(launch: Launch) -> Launch {
    launch.args([
        "--score-model-control",
        "--score-shared-memory",
        "/dev/shm",
        "--admin-listen",
        "127.0.0.1:0",
        "--auth-mode",
        "both",
        "--tokens-local",
        "--collect-to",
        "blob",
        "--collect-collections",
        "request",
        "--collect-listen",
        "127.0.0.1:0",
    ])
}

/// One model, which adds three numbers to three.
fn one() -> Launch {
    outrigger().file("add.onnx", onnx::add(3)).args(["--model", "add=add.onnx"])
}

/// Models of all datatypes, and one with two inputs.
fn models() -> Launch {
    let mut launch = one();
    for data_type in DataType::ALL {
        let model = onnx::identity(data_type, &[Dim::Named("batch"), Dim::Fixed(2)]);
        let file = format!("{}.onnx", data_type.name().to_lowercase());
        launch = launch.file(&file, model).args(["--model", &format!("id-{}={file}", data_type.name())]);
    }
    launch
}

/// The addresses of the listeners, by name.
fn listeners(replica: &ReplicaProcess) -> [(&'static str, String); 3] {
    let admin = format!("http://{}", replica.admin);
    [("score", replica.score.clone()), ("observe", replica.observe.clone()), ("admin", admin)]
}

async fn document(base: &str, query: &str) -> Value {
    let request = client().get(format!("{base}/openapi.json{query}")).bearer_auth(KEY);
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let document: Value = response.json().await.unwrap();
    assert_eq!(status, 200, "{document}");
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["cache-control"], "no-store");
    document
}

fn paths(document: &Value) -> BTreeSet<&str> {
    document["paths"].as_object().unwrap().keys().map(String::as_str).collect()
}

/// Has a Python script of `cli/tests/openapi` look at a listener, with a validator and a client which are not ours. Where these are not there, the test
/// says so, and is no success of `cargo xtask test`.
fn looked_at<'a>(replica: &ReplicaProcess, script: &str, arguments: impl IntoIterator<Item = &'a str>) {
    let python = repository().join(".venv-triton/bin/python");
    if !python.exists() {
        println!("skipped: no openapi-spec-validator in .venv-triton: `cargo xtask setup` makes it");
        return;
    }
    let script = repository().join("cli/tests/openapi").join(script);
    let ran = Command::new(python).arg(script).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}\n{}", replica.log_text());
}
