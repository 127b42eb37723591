//! Who is served when, and who is told that they are not: deadlines, priorities, callers that share the slots.

use outrigger_testkit::replica::{KEY, SECONDARY_KEY};
use outrigger_testkit::{ReplicaProcess, onnx};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{busy, client, header, infer, outcome, outrigger, score, until_busy};

/// Says which process it is and what it was asked, in the order in which it was; `wait` until there is a file, and `sleep N` for so many
/// milliseconds.
const SCRIPT: &str = r#"
import os, time
from outrigger import ctx
def init():
    pass
def run(data):
    print(f"begun {data}")
    if data == "wait":
        while not os.path.exists("go"):
            time.sleep(0.002)
    if data == "until cancelled":
        while not ctx.cancelled:
            time.sleep(0.002)
        print(f"cancelled at its deadline, {ctx.deadline is not None}")
    if data.startswith("sleep"):
        time.sleep(int(data.split()[1]) / 1000)
    return os.getpid()
"#;

fn go(replica: &ReplicaProcess) {
    std::fs::write(replica.directory().join("app/go"), "").unwrap();
}

/// A call on its way.
fn call(replica: &ReplicaProcess, key: &str, priority: &str, data: &str) -> JoinHandle<(u16, String, Value)> {
    let request = client().post(format!("{}/score", replica.score)).bearer_auth(key);
    let request = request.header("x-request-priority", priority).body(data.to_owned());
    tokio::spawn(async move { outcome(request.send().await.unwrap()).await })
}

/// What the script was asked, in order, up to the call that came to it last. The log is written beside the answers, so a call may be
/// answered before its line is there.
fn asked(replica: &mut ReplicaProcess, last: &str) -> Vec<String> {
    replica.wait_for_text(&format!("begun {last}\""));
    let log = replica.log_text();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let messages = lines.filter_map(|line| line["fields"]["message"].as_str().map(str::to_owned));
    messages.filter_map(|message| message.strip_prefix("begun ").map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_deadline_ends_the_wait_for_an_answer_and_costs_nobody_a_worker() {
    let mut replica = outrigger().script(SCRIPT).start();
    let pid = outcome(score(&replica, "x").send().await.unwrap()).await.2;
    let late = score(&replica, "until cancelled").header("x-request-deadline-ms", "60");
    let (status, code, body) = outcome(late.send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (504, "deadline_exceeded"), "{body}");
    replica.wait_for_text("cancelled at its deadline, True");
    let (_, _, again) = outcome(score(&replica, "x").send().await.unwrap()).await;
    assert_eq!(again, pid, "the same worker");
    let seen = until_busy(&replica, 0, 0).await;
    assert_eq!((&seen["answered"], &seen["failed"], &seen["expired"]), (&json!(2), &json!(1), &json!(0)));
}

#[tokio::test]
async fn a_deadline_holds_for_streams_and_async_scripts_too() {
    let stream = "import time\ndef init():\n    pass\ndef run(data):\n    while True:\n        yield 'x'\n        time.sleep(0.005)\n";
    let replica = outrigger().script(stream).start();
    let endless = score(&replica, "x").header("x-request-deadline-ms", "100").send().await.unwrap();
    assert_eq!(endless.status(), 200);
    assert!(endless.bytes().await.is_err(), "it is broken off");
    until_busy(&replica, 0, 0).await;

    let slow = "import asyncio\ndef init():\n    pass\nasync def run(data):\n    await asyncio.sleep(0 if data == 'x' else 600)\n    return data\n";
    let mut replica = outrigger().script(slow).start();
    let late = score(&replica, "slow").header("x-request-deadline-ms", "60").send().await.unwrap();
    assert_eq!(outcome(late).await.1, "deadline_exceeded");
    until_busy(&replica, 0, 0).await;
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
    assert!(
        replica.ended().is_none() && !replica.log_text().contains("worker ended"),
        "{}",
        replica.log_text()
    );
}

/// Fast calls are sent to a worker ahead of their turn, where nobody looks after them before it comes.
#[tokio::test]
async fn a_deadline_holds_for_a_call_that_lies_behind_a_slow_one() {
    let replica = outrigger().script(SCRIPT).start();
    for _ in 0..40 {
        assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
    }
    let slow = call(&replica, KEY, "normal", "wait");
    until_busy(&replica, 1, 0).await;
    let late = score(&replica, "late").header("x-request-deadline-ms", "100").send().await.unwrap();
    assert_eq!(outcome(late).await.1, "deadline_exceeded");
    assert!(!slow.is_finished(), "it was told while the other went on");
    go(&replica);
    assert_eq!(slow.await.unwrap().0, 200);
    until_busy(&replica, 0, 0).await;
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_deadline_holds_for_models_and_is_counted() {
    let config = "[models.add]\npath = 'add.onnx'\n";
    let replica = outrigger().file("add.onnx", onnx::add(3)).file("o.toml", config);
    let replica = replica.args(["--config", "o.toml"]).start();
    let tensor = |name: &str| json!({"name": name, "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]});
    let body = json!({"inputs": [tensor("x"), tensor("y")]}).to_string();
    let late =
        infer(&replica, "add", body.clone()).header("x-request-deadline-ms", "0").send().await.unwrap();
    assert_eq!((late.status().as_u16(), header(&late, "outrigger-code")), (504, "deadline_exceeded".into()));
    let met =
        infer(&replica, "add", body.clone()).header("x-request-deadline-ms", "60000").send().await.unwrap();
    assert_eq!(met.status(), 200);
    let wrong = infer(&replica, "add", body).header("x-request-deadline-ms", "soon").send().await.unwrap();
    assert_eq!(outcome(wrong).await.1, "bad_request");
    let seen = busy(&replica).await;
    assert_eq!((&seen["expired"], &seen["answered"]), (&json!(1), &json!(1)));
}

#[tokio::test]
async fn who_waits_past_a_deadline_hears_of_it_and_is_not_executed() {
    let mut replica = outrigger().script(SCRIPT).start();
    let first = call(&replica, KEY, "normal", "wait");
    until_busy(&replica, 1, 0).await;
    let late = score(&replica, "late").header("x-request-deadline-ms", "50").send().await.unwrap();
    assert_eq!(outcome(late).await.1, "deadline_exceeded");
    let seen = busy(&replica).await;
    assert_eq!((&seen["expired"], &seen["queued"], &seen["cancelled"]), (&json!(1), &json!(0), &json!(0)));
    let over = score(&replica, "over").header("x-request-deadline-ms", "0").send().await.unwrap();
    assert_eq!((over.status().as_u16(), header(&over, "outrigger-retryable")), (504, "false".into()));
    go(&replica);
    assert_eq!(first.await.unwrap().0, 200);
    assert_eq!(asked(&mut replica, "wait"), ["wait"]);
    let metrics = client().get(format!("{}/metrics", replica.observe)).send().await.unwrap();
    assert!(metrics.text().await.unwrap().contains("outrigger_expired_total 2"));
}

#[tokio::test]
async fn what_cannot_meet_its_deadline_is_refused_at_once() {
    let replica = outrigger().script(SCRIPT).start();
    assert_eq!(score(&replica, "sleep 1500").send().await.unwrap().status(), 200);
    let first = call(&replica, KEY, "normal", "wait");
    until_busy(&replica, 1, 0).await;
    let second = call(&replica, KEY, "normal", "y");
    until_busy(&replica, 1, 1).await;
    // Some 1500 ms for each of those, and as much for itself: more, also if the first one is nearly over by then.
    let refused = score(&replica, "x").header("x-request-deadline-ms", "2000").send().await.unwrap();
    assert!(header(&refused, "retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0));
    let (status, code, body) = outcome(refused).await;
    assert_eq!((status, code.as_str()), (503, "overloaded"));
    assert!(body["message"].as_str().unwrap().contains("deadline cannot be met"), "{body}");
    let patient = score(&replica, "x").header("x-request-deadline-ms", "60000");
    let patient = tokio::spawn(async move { patient.send().await.unwrap().status() });
    until_busy(&replica, 1, 2).await;
    go(&replica);
    assert!(first.await.unwrap().0 == 200 && second.await.unwrap().0 == 200 && patient.await.unwrap() == 200);
}

#[tokio::test]
async fn what_a_request_says_of_its_urgency_is_checked() {
    let replica = outrigger().script(SCRIPT).start();
    let table =
        [("x-request-deadline-ms", "soon"), ("x-request-deadline-ms", "-1"), ("x-request-priority", "first")];
    for (name, value) in table {
        let request = score(&replica, "x").header(name, value);
        let (status, code, body) = outcome(request.send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), (400, "bad_request"), "{name}: {value}");
        assert!(body["message"].as_str().unwrap().contains(name), "{body}");
    }
}

#[tokio::test]
async fn urgent_calls_go_first_within_what_a_caller_may_ask_for() {
    let mut replica = outrigger()
        .script(SCRIPT)
        .file("outrigger.toml", "[callers.secondary]\npriority = \"high\"\n")
        .args(["--config", "outrigger.toml"])
        .start();
    let mut calls = vec![call(&replica, SECONDARY_KEY, "high", "wait")];
    until_busy(&replica, 1, 0).await;
    let order = [(SECONDARY_KEY, "low"), (SECONDARY_KEY, "normal"), (SECONDARY_KEY, "high"), (KEY, "high")];
    for (queued, (key, priority)) in (1..).zip(order) {
        let name = format!("{priority} {}", if key == KEY { "primary" } else { "secondary" });
        calls.push(call(&replica, key, priority, &name));
        until_busy(&replica, 1, queued).await;
    }
    go(&replica);
    for call in calls {
        assert_eq!(call.await.unwrap().0, 200);
    }
    let expected = ["wait", "high secondary", "normal secondary", "high primary", "low secondary"];
    assert_eq!(asked(&mut replica, "low secondary"), expected, "the primary key's calls are normal at most");
}

#[tokio::test]
async fn a_greedy_caller_takes_nobody_s_turn_and_nobody_s_place() {
    let mut replica = outrigger().script(SCRIPT).args(["--queue-items", "8"]).start();
    let mut calls = vec![call(&replica, KEY, "normal", "wait")];
    until_busy(&replica, 1, 0).await;
    for number in 1..=8 {
        calls.push(call(&replica, KEY, "normal", &format!("greedy {number}")));
        until_busy(&replica, 1, number).await;
    }
    let (status, code, _) = outcome(score(&replica, "one too many").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (503, "overloaded"));
    // The other caller finds a place, for which the last call of the greedy one makes way.
    let other = call(&replica, SECONDARY_KEY, "normal", "other");
    let displaced = calls.pop().unwrap().await.unwrap();
    assert_eq!((displaced.0, displaced.1.as_str()), (503, "overloaded"), "{displaced:?}");
    go(&replica);
    assert_eq!(other.await.unwrap().0, 200);
    for call in calls {
        assert_eq!(call.await.unwrap().0, 200);
    }
    let asked = asked(&mut replica, "greedy 7");
    assert!(asked[..3].contains(&"other".into()), "{asked:?}");
}
