//! Lines of the log: which requests have one, whose lines they are, and how many there may be.

use outrigger_testkit::replica::{KEY, message};
use outrigger_testkit::{Launch, onnx};
use serde_json::{Value, json};

use super::{is_line_of, is_printed};
use crate::devices::until;
use crate::support::{client, infer, outcome, outrigger, score};

const SCRIPT: &str = "
import logging

def init():
    pass

def run(data):
    print('asked ' + data)
    logging.getLogger('mine').warning('warned ' + data)
    if data == 'bad':
        raise ValueError('two\\nlines')
    return data
";

fn scripted() -> Launch {
    outrigger().script(SCRIPT)
}

#[tokio::test]
async fn a_request_that_fails_has_a_line_and_all_lines_of_it_have_its_id() {
    let mut replica = scripted().start();
    for (id, body) in [("first", "good"), ("second", "bad")] {
        drop(score(&replica, body).header("x-request-id", id).send().await.unwrap().bytes().await);
    }
    let line = replica.wait_for(|line| is_line_of(line, "second"));
    let fields = &line["fields"];
    let said = ["caller", "operation", "code"].map(|name| fields[name].as_str().unwrap());
    assert_eq!(said, ["primary", "score", "script_error"], "{line}");
    assert_eq!(fields["status"], 500);
    assert!(fields["run_us"].is_u64() && fields["auth_us"].is_u64(), "{line}");
    assert!(message(&line).starts_with("POST /score 500 "), "{line}");
    let log = replica.log_text();
    assert!(!log.lines().any(|line| is_line_of(&serde_json::from_str(line).unwrap(), "first")), "{log}");
    for (id, text) in
        [("first", "asked good"), ("second", "asked bad"), ("first", "warned good"), ("second", "warned bad")]
    {
        let line = replica.log_text();
        let line = line.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let line = line.into_iter().find(|line| is_printed(line, text)).unwrap();
        assert_eq!(line["fields"]["request"], id, "{line}");
    }
    let raised = log.lines().find(|line| line.contains("run() raised")).unwrap();
    let raised: Value = serde_json::from_str(raised).unwrap();
    assert_eq!(raised["fields"]["request"], "second");
}

#[tokio::test]
async fn a_model_s_line_names_the_model_and_one_that_is_made_up_is_not() {
    let mut replica = outrigger()
        .file("add.onnx", onnx::add(3))
        .args(["--model", "add=add.onnx", "--log-requests", "all"])
        .start();
    let tensor = |name: &str| json!({"name": name, "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]});
    let body = json!({"inputs": [tensor("x"), tensor("y")]}).to_string();
    let asked = infer(&replica, "add", body).header("x-request-id", "known").send().await.unwrap();
    assert_eq!(outcome(asked).await.0, 200);
    let line = replica.wait_for(|line| is_line_of(line, "known"));
    let fields = &line["fields"];
    assert_eq!(
        (&fields["model"], &fields["operation"], &fields["code"]),
        (&"add".into(), &"infer".into(), &Value::Null)
    );
    for phase in ["receive", "auth", "queue", "batch", "copy_in", "run", "copy_out", "send"] {
        assert!(fields[format!("{phase}_us")].is_u64(), "{phase}: {line}");
    }
    let asked = infer(&replica, "made-up", "{}").header("x-request-id", "unknown").send().await.unwrap();
    assert_eq!(outcome(asked).await.0, 404);
    let line = replica.wait_for(|line| is_line_of(line, "unknown"));
    assert_eq!(line["fields"]["model"], Value::Null, "{line}");
    // A query may hold what nobody is to read.
    let asked = client().get(format!("{}/v2?key=hidden", replica.score)).bearer_auth(KEY);
    drop(asked.header("x-request-id", "queried").send().await.unwrap().bytes().await);
    let line = replica.wait_for(|line| is_line_of(line, "queried"));
    assert!(!line.to_string().contains("hidden"), "{line}");
}

#[tokio::test]
async fn slow_requests_have_a_line_where_that_is_asked_for() {
    let mut replica = outrigger()
        .args(["--log-requests", "slow", "--log-slow", "1ms"])
        .script(
            "
import time
def init():
    pass
def run(data):
    time.sleep(0.05)
    return data
",
        )
        .start();
    drop(score(&replica, "x").header("x-request-id", "slow").send().await.unwrap().bytes().await);
    let line = replica.wait_for(|line| is_line_of(line, "slow"));
    assert_eq!(line["fields"]["status"], 200);
}

#[tokio::test]
async fn a_flood_of_refused_requests_does_not_fill_the_log() {
    let replica = scripted().args(["--log-rate", "2"]).start();
    let url = format!("{}/score", replica.score);
    for _ in 0..60 {
        assert_eq!(client().post(&url).body("x").send().await.unwrap().status(), 401);
    }
    // Some are left out, which the next one says that is not.
    let tells = |line: &Value| line["target"] == "outrigger::access" && line["fields"]["left_out"].is_u64();
    let mut told = None;
    until("a line that says so", async || {
        assert_eq!(client().post(&url).body("x").send().await.unwrap().status(), 401);
        let text = replica.log_text();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        told = lines.into_iter().find(tells);
        told.is_some()
    })
    .await;
    let told = told.unwrap();
    assert_eq!(
        (&told["fields"]["code"], &told["fields"]["reason"]),
        (&json!("unauthenticated"), &json!("no_header"))
    );
}

#[tokio::test]
async fn a_refused_request_has_one_line_that_says_why_and_whose_it_is() {
    const OTHER: &str = "other-caller-0123456789-abcdefghijkl";
    let rules = format!("[callers.reporter]\nkey = '{OTHER}'\noperations = ['status']\n");
    let mut replica = scripted().file("outrigger.toml", rules).args(["--config", "outrigger.toml"]).start();
    let ask = |key: &str, id: &str| {
        let url = format!("{}/score", replica.score);
        client().post(url).bearer_auth(key).header("x-request-id", id).body("x").send()
    };
    let (wrong, forbidden) = (ask("no-such-key", "wrong"), ask(OTHER, "forbidden"));
    assert_eq!(
        (wrong.await.unwrap().status(), forbidden.await.unwrap().status()),
        (401.try_into().unwrap(), 403.try_into().unwrap())
    );
    let line = replica.wait_for(|line| is_line_of(line, "wrong"));
    assert_eq!(line["fields"]["reason"], "wrong_key", "{line}");
    let line = replica.wait_for(|line| is_line_of(line, "forbidden"));
    assert_eq!((&line["fields"]["caller"], &line["fields"]["status"]), (&json!("reporter"), &json!(403)));
    assert_eq!(replica.log_text().matches("\"wrong\"").count(), 1, "{}", replica.log_text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_has_a_line() {
    let mut replica = outrigger()
        .script(
            "
import threading
def init():
    pass
def run(data):
    print('begun')
    threading.Event().wait(600)
",
        )
        .start();
    let asked = score(&replica, "x").header("x-request-id", "left");
    let asked = tokio::spawn(async move { asked.send().await.map(drop) });
    replica.wait_for(|line| is_printed(line, "begun"));
    asked.abort();
    let line = replica.wait_for(|line| is_line_of(line, "left"));
    assert_eq!((&line["fields"]["status"], &line["fields"]["code"]), (&499.into(), &"client_left".into()));
}

#[test]
fn where_nobody_looks_the_log_is_json_unless_text_is_asked_for() {
    for (format, json) in [("auto", true), ("text", false)] {
        let (mut command, _directory) = outrigger()
            .env("OUTRIGGER_LOG_FORMAT", format)
            .args(["--script-entry", "not-there.py"])
            .into_command();
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!text.is_empty());
        assert_eq!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), json, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
