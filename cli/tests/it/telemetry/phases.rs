//! What calls spend their time with, as histograms and as a header, whichever contract they come by.

use std::collections::BTreeMap;

use outrigger_testkit::replica::KEY;
use outrigger_testkit::upstream::App;
use outrigger_testkit::{Launch, ReplicaProcess, onnx};
use prost::Message as _;
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::devices::until;
use crate::grpc::{Grpc, INFER, Input, STREAM, StreamReply, call, framed};
use crate::support::{client, header, metric, outcome, outrigger, score};

const ALL: [&str; 8] = ["receive", "auth", "queue", "batch", "copy_in", "run", "copy_out", "send"];

fn add() -> Launch {
    outrigger().file("add.onnx", onnx::add(3)).args(["--model", "add=add.onnx"])
}

fn tensors() -> Value {
    let tensor = |name: &str| json!({"name": name, "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]});
    json!({"inputs": [tensor("x"), tensor("y")]})
}

fn message() -> Vec<u8> {
    let mut call = call("add", "1", "FP32", &[1, 3], vec![0; 12]);
    let y = Input { name: "y".into(), ..call.inputs[0].clone() };
    call.inputs.push(y);
    call.raw.push(vec![0; 12]);
    framed(&call.encode_to_vec())
}

/// How many calls have come to a phase.
async fn count(replica: &ReplicaProcess, operation: &str, phase: &str) -> u64 {
    let name = format!("outrigger_phase_seconds_count{{operation=\"{operation}\",phase=\"{phase}\"}}");
    metric(replica, &name).await.unwrap_or_default() as u64
}

async fn seconds(replica: &ReplicaProcess, phase: &str) -> f64 {
    let name = format!("outrigger_phase_seconds_sum{{operation=\"infer\",phase=\"{phase}\"}}");
    metric(replica, &name).await.unwrap_or_default()
}

/// Waits until so many answers are gone: the last phase ends after the client has them.
async fn until_sent(replica: &ReplicaProcess, operation: &str, calls: u64) {
    until("the last answer's end", async || count(replica, operation, "send").await == calls).await;
}

/// What `server-timing` says, in milliseconds.
fn timing(text: &str) -> BTreeMap<String, f64> {
    let part = |part: &str| {
        let (name, millis) = part.trim().split_once(";dur=").unwrap_or_else(|| panic!("{text}"));
        (name.to_owned(), millis.parse().unwrap())
    };
    text.split(',').map(part).collect()
}

#[tokio::test]
async fn a_script_s_call_is_told_in_phases_that_agree_with_its_run_time() {
    let replica = outrigger().script(crate::support::ECHO).start();
    let answer = score(&replica, "{}").header("outrigger-timing", "1").send().await.unwrap();
    let (told, run) = (header(&answer, "server-timing"), header(&answer, "x-ms-run-fn-exec-ms"));
    let told = timing(&told);
    let names = ["receive", "auth", "queue", "batch", "copy_in", "run", "copy_out", "total"];
    assert!(names.iter().all(|name| told.contains_key(*name)) && told.len() == names.len(), "{told:?}");
    assert!((told["run"] - run.parse::<f64>().unwrap()).abs() <= 0.0011, "{told:?} and {run}");
    let parts: f64 = told.iter().filter(|(name, _)| *name != "total").map(|(_, millis)| millis).sum();
    assert!(parts <= told["total"] + 0.01, "{told:?}");

    let answer = score(&replica, "{}").send().await.unwrap();
    assert_eq!(header(&answer, "server-timing"), "", "nobody has asked");
    drop(answer.bytes().await);
    until_sent(&replica, "score", 2).await;
    for phase in ALL {
        assert_eq!(count(&replica, "score", phase).await, 2, "{phase}");
    }
    // Refused before its body is read.
    let refused = client().post(format!("{}/score", replica.score)).body("{}").send().await.unwrap();
    assert_eq!(refused.status(), 401);
    until_sent(&replica, "score", 3).await;
    assert_eq!((count(&replica, "score", "auth").await, count(&replica, "score", "run").await), (3, 2));
}

#[tokio::test]
async fn a_model_s_call_is_told_in_phases_by_every_contract() {
    let replica = add().args(["--telemetry-server-timing", "always"]).start();
    let post = |path: &str, body: Value| -> RequestBuilder {
        let request = client().post(format!("{}{path}", replica.score)).bearer_auth(KEY);
        request.header("content-type", "application/json").body(body.to_string())
    };
    let rows = json!({"instances": [{"x": [1, 2, 3], "y": [1, 2, 3]}]});
    let asked = [post("/v2/models/add/infer", tensors()), post("/models/add/invoke", tensors())];
    for (at, asked) in asked.into_iter().enumerate() {
        let answer = asked.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let told = timing(&header(&answer, "server-timing"));
        assert_eq!(told.len(), 8, "all but the last, and their sum: {told:?}");
        drop(answer.bytes().await);
        until_sent(&replica, "infer", at as u64 + 1).await;
        for phase in ALL {
            assert_eq!(count(&replica, "infer", phase).await, at as u64 + 1, "{phase}");
        }
    }
    let mut grpc = Grpc::connect(&replica).await;
    let told = grpc.ask(INFER, &[], message()).await;
    assert_eq!(told.outcome(), (0, ""));
    assert!(told.headers.contains_key("server-timing"));
    until_sent(&replica, "infer", 3).await;
    assert_eq!(count(&replica, "infer", "run").await, 3);

    // By routes that are for a script as well.
    for (at, asked) in
        [post("/invocations", tensors()), post("/vertex/predict", rows)].into_iter().enumerate()
    {
        let answer = asked.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        drop(answer.bytes().await);
        until_sent(&replica, "score", at as u64 + 1).await;
        for phase in ALL {
            assert_eq!(count(&replica, "score", phase).await, at as u64 + 1, "{phase}");
        }
    }

    // Each call of a stream is one by itself.
    let (sender, mut stream) = grpc.open(STREAM, &[]).await;
    for _ in 0..3 {
        sender.send(message().into()).await.unwrap();
        assert_eq!(StreamReply::of(&stream.next().await.unwrap()).1, "");
    }
    drop(sender);
    assert_eq!(stream.told().await.outcome(), (0, ""));
    until("the calls of the stream", async || count(&replica, "infer", "run").await == 6).await;
    // What fails in it is counted as well, and the stream itself is no call of a model's.
    let (sender, mut stream) = grpc.open(STREAM, &[]).await;
    sender
        .send(framed(&call("add", "1", "FP32", &[1, 3], vec![0; 12]).encode_to_vec()).into())
        .await
        .unwrap();
    assert_ne!(StreamReply::of(&stream.next().await.unwrap()).1, "", "it has one input of two");
    drop(sender);
    assert_eq!(stream.told().await.outcome(), (0, ""));
    let calls = async |outcome: &str| {
        let name = format!("outrigger_model_requests_total{{model=\"add\",outcome=\"{outcome}\"}}");
        metric(&replica, &name).await
    };
    until("the calls of the model", async || {
        (calls("ok").await, calls("error").await) == (Some(8.0), Some(1.0))
    })
    .await;
    assert_eq!(count(&replica, "infer", "send").await, 3, "an answer in a stream is not sent by itself");
}

#[tokio::test]
async fn statistics_of_a_model_and_phases_agree() {
    let replica = add().start();
    for _ in 0..5 {
        let asked = crate::support::infer(&replica, "add", tensors().to_string()).send().await.unwrap();
        assert_eq!(outcome(asked).await.0, 200);
    }
    until_sent(&replica, "infer", 5).await;
    let url = format!("{}/v2/models/add/stats", replica.score);
    let (_, _, stats) = outcome(client().get(url).bearer_auth(KEY).send().await.unwrap()).await;
    let stats = &stats["model_stats"][0]["inference_stats"];
    let told = |name: &str| stats[name]["ns"].as_f64().unwrap() / 1e9;
    for (phase, name) in [("copy_in", "compute_input"), ("copy_out", "compute_output")] {
        let (spent, told) = (seconds(&replica, phase).await, told(name));
        assert!((spent - told).abs() < 1e-8, "{phase}: {spent} and {told}");
    }
    // What is told of the queue has the way into it, and what is told of the run the way to the device and back.
    assert!(seconds(&replica, "queue").await <= told("queue"));
    let device = seconds(&replica, "batch").await + seconds(&replica, "run").await;
    assert!(device > 0.0 && device <= told("compute_infer"), "{device} and {stats}");
}

#[tokio::test]
async fn an_upstream_s_call_is_told_in_phases() {
    let app = App::start();
    let replica =
        outrigger().args(["--upstream-url", &app.url(), "--telemetry-server-timing", "always"]).start();
    let answer = score(&replica, "{}").send().await.unwrap();
    let told = timing(&header(&answer, "server-timing"));
    assert!(told["run"] > 0.0 && told["run"] <= told["total"], "{told:?}");
    drop(answer.bytes().await);
    until_sent(&replica, "score", 1).await;
    for phase in ["receive", "auth", "queue", "batch", "run"] {
        assert_eq!(count(&replica, "score", phase).await, 1, "{phase}");
    }
}
