//! Clients of the Open Inference Protocol and of TensorFlow Serving that are not ours (`tritonclient`, gRPC's reflection and health), as they come from PyPI, against a
//! replica: REST, gRPC, binary data, streams, shared memory. What they do stands in
//! `cli/tests/triton/client.py` and `cli/tests/tensorflow/client.py`.

use std::process::Command;

use outrigger_backend::DataType;
use outrigger_testkit::onnx::Dim;
use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess, onnx, repository};

use crate::support::outrigger;

/// Runs a case of the clients.
fn clients(replica: &ReplicaProcess, case: &str) {
    let python = repository().join(".venv-triton/bin/python");
    if !python.exists() {
        println!("skipped: no tritonclient");
        return;
    }
    let client = repository().join("cli/tests/triton/client.py");
    let number = std::process::id().to_string();
    run(replica, Command::new(python).arg(client).args([case, address(replica), KEY, &number]));
}

fn address(replica: &ReplicaProcess) -> &str {
    replica.score.trim_start_matches("http://")
}

/// Runs a client to its end, which must be a good one.
fn run(replica: &ReplicaProcess, client: &mut Command) {
    let ran = client.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{client:?}: {said}\n{}", replica.log_text());
}

/// The identity of each datatype, as `id-DATATYPE`.
fn identities() -> Launch {
    let mut launch = outrigger();
    for data_type in DataType::ALL {
        let model = onnx::identity(data_type, &[Dim::Named("batch"), Dim::Fixed(2)]);
        let file = format!("{}.onnx", data_type.name().to_lowercase());
        launch = launch.file(&file, model).args(["--model", &format!("id-{}={file}", data_type.name())]);
    }
    launch
}

#[test]
fn every_datatype_goes_both_ways() {
    clients(&identities().start(), "datatypes");
}

#[test]
fn outputs_are_those_asked_for_and_errors_say_what_is_wrong() {
    clients(&identities().start(), "outputs");
}

#[test]
fn server_and_models_are_described() {
    clients(&identities().start(), "description");
}

#[test]
fn models_are_loaded_and_unloaded_where_that_is_switched_on() {
    clients(&identities().start(), "no-control");
    clients(&identities().args(["--score-model-control"]).start(), "control");
}

#[test]
fn tensors_are_in_shared_memory_where_that_is_switched_on() {
    clients(&identities().args(["--score-shared-memory", "/dev/shm"]).start(), "memory");
}

#[test]
fn a_stream_is_answered_in_its_order() {
    clients(&identities().start(), "stream");
}

#[test]
fn contents_may_be_typed() {
    clients(&identities().start(), "typed");
}

#[test]
fn tensorflow_s_clients_predict() {
    let python = repository().join(".venv-tensorflow/bin/python");
    if !python.exists() {
        println!("skipped: no client of TensorFlow Serving's");
        return;
    }
    let replica = identities().args(["--score-model", "id-FP32"]).start();
    let client = repository().join("cli/tests/tensorflow/client.py");
    run(&replica, Command::new(python).arg(client).args([address(&replica), KEY]));
}

#[test]
fn tools_find_out_what_there_is() {
    clients(&identities().start(), "tools");
}
