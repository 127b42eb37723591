//! Everything from outside is hostile: each mistake gets its clear error, and the next good request is answered.

use std::time::Duration;

use outrigger_testkit::{ReplicaProcess, onnx};
use serde_json::{Value, json};

use crate::support::{ECHO, client, header, infer, outcome, outrigger, raw, score, still_serves};

/// A replica with a script that gives back its input and a model that adds: `x` and `y` of shape `[batch, 3]`.
fn replica(args: &[&str]) -> ReplicaProcess {
    let launch = outrigger().file("add.onnx", onnx::add(3)).script(ECHO);
    launch.args(["--model", "add=add.onnx"]).args(args.iter().copied()).start()
}

fn tensor(name: &str, shape: Value, datatype: &str, data: Value) -> Value {
    json!({"name": name, "shape": shape, "datatype": datatype, "data": data})
}

#[tokio::test]
async fn bad_tensors_are_named_and_refused() {
    let replica = replica(&[]);
    let good = || tensor("y", json!([1, 3]), "FP32", json!([1, 2, 3]));
    let with = |x: Value| json!({"inputs": [x, good()]}).to_string();
    let cases: Vec<(String, &str, &str)> = vec![
        ("{\"inputs\": [".into(), "malformed_json", ""),
        ("[1, 2]".into(), "bad_request", ""),
        ("".into(), "malformed_json", ""),
        (with(tensor("x", json!([1, 4]), "FP32", json!([1, 2, 3, 4]))), "invalid_tensor", "shape"),
        (with(tensor("x", json!([3]), "FP32", json!([1, 2, 3]))), "invalid_tensor", "shape"),
        (with(tensor("x", json!([1, 3]), "INT64", json!([1, 2, 3]))), "invalid_tensor", "INT64"),
        (with(tensor("x", json!([1, 3]), "FP32", json!(["a", "b", "c"]))), "invalid_tensor", "x"),
        (with(tensor("x", json!([1, 3]), "FP32", json!([1, 2]))), "invalid_tensor", "x"),
        (with(tensor("x", json!([1, 3]), "FP32", json!([1, 2, 3, 4]))), "invalid_tensor", "x"),
        (with(tensor("x", json!([1, 3]), "FP32", json!([1, null, 3]))), "invalid_tensor", "x"),
        (with(tensor("x", json!([1, 3]), "FP32", json!([1e39, 2, 3]))), "invalid_tensor", "x"),
        (with(tensor("x", json!([-1, 3]), "FP32", json!([1, 2, 3]))), "bad_request", "shape"),
        (with(tensor("x", json!([1u64 << 40, 3]), "FP32", json!([1, 2, 3]))), "invalid_tensor", "x"),
        (with(tensor("z", json!([1, 3]), "FP32", json!([1, 2, 3]))), "invalid_tensor", "z"),
        (json!({"inputs": [good()]}).to_string(), "invalid_tensor", "x"),
        (
            with(tensor("x", json!([1, 3]), "FP32", json!([1, 2, 3]))).replace("[1,2,3]", "[1,NaN,3]"),
            "malformed_json",
            "",
        ),
        (
            with(tensor("x", json!([1, 3]), "FP32", json!([1, 2, 3]))).replace("[1,2,3]", "[1,Infinity,3]"),
            "malformed_json",
            "",
        ),
        (with(tensor("x", json!([2, 3]), "FP32", json!([1, 2, 3, 4, 5, 6]))), "invalid_tensor", ""),
    ];
    for (body, code, part) in cases {
        let response = infer(&replica, "add", body.clone()).send().await.unwrap();
        assert_eq!(header(&response, "outrigger-retryable"), "false");
        let (status, got, answer) = outcome(response).await;
        assert_eq!((status, got.as_str()), (400, code), "{body}: {answer}");
        let text = answer["error"].as_str().unwrap_or_else(|| panic!("{answer}"));
        assert!(text.contains(part), "{body}: {text}");
    }
    let body =
        json!({"inputs": [tensor("x", json!([1, 3]), "FP32", json!([10, 20, 30])), good()]}).to_string();
    let (status, _, answer) = outcome(infer(&replica, "add", body).send().await.unwrap()).await;
    assert_eq!((status, &answer["outputs"][0]["data"]), (200, &json!([11.0, 22.0, 33.0])), "{answer}");
    still_serves(&replica).await;
}

#[tokio::test]
async fn models_that_are_not_there_are_404() {
    let replica = replica(&[]);
    let response = infer(&replica, "ad", "{}").send().await.unwrap();
    let (status, code, answer) = outcome(response).await;
    assert_eq!((status, code.as_str()), (404, "model_not_found"));
    assert!(answer["error"].as_str().unwrap().contains("did you mean `add`?"), "{answer}");
    for name in ["..%2f..%2fetc%2fpasswd", "%ff%fe", "add%00", &"x".repeat(3000)] {
        let (status, code, _) = outcome(infer(&replica, name, "{}").send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), (404, "model_not_found"), "{name}");
    }
    still_serves(&replica).await;
}

#[tokio::test]
async fn keys_are_needed_for_everything_but_health() {
    let replica = replica(&[]);
    let routes = [
        ("POST", "/score"),
        ("GET", "/score"),
        ("GET", "/swagger.json"),
        ("GET", "/v2"),
        ("GET", "/v2/models/add"),
        ("GET", "/v2/models/add/ready"),
        ("POST", "/v2/models/add/infer"),
        ("POST", "/v2/models/unknown/infer"),
        ("POST", "/v2/models/add/versions/1/infer"),
        ("POST", "/v2/models/add/versions/9/infer"),
        ("GET", "/v2/models/%ff%fe"),
    ];
    for (method, path) in routes {
        for credential in
            [None, Some("Bearer wrong-key-0123456789-wrong"), Some("Basic dTpw"), Some("Bearer"), Some("")]
        {
            let mut request = client().request(method.parse().unwrap(), format!("{}{path}", replica.score));
            if let Some(credential) = credential {
                request = request.header("authorization", credential);
            }
            let response = request.send().await.unwrap();
            assert_eq!(header(&response, "www-authenticate"), "Bearer");
            assert!(!header(&response, "x-request-id").is_empty());
            let (status, code, body) = outcome(response).await;
            assert_eq!((status, code.as_str()), (401, "unauthenticated"), "{method} {path} {credential:?}");
            assert!(!body.to_string().contains("wrong-key"), "{body}");
        }
    }
    for path in ["/", "/v2/health/live", "/v2/health/ready"] {
        assert_eq!(
            client().get(format!("{}{path}", replica.score)).send().await.unwrap().status(),
            200,
            "{path}"
        );
    }
    let secondary = client()
        .post(format!("{}/score", replica.score))
        .bearer_auth(outrigger_testkit::replica::SECONDARY_KEY);
    assert_eq!(secondary.body("x").send().await.unwrap().status(), 200);
    let log = replica.log_text();
    assert!(!log.contains(outrigger_testkit::replica::KEY), "a key must never be logged");
}

#[tokio::test]
async fn all_bodies_together_have_a_limit() {
    let replica = replica(&["--limits-body", "64KiB", "--limits-bodies", "64KiB"]);
    // A client that announces a body and does not send it holds the memory for it. `100 Continue` says that it is being waited for.
    let mut slow = std::net::TcpStream::connect(replica.score.trim_start_matches("http://")).unwrap();
    let head = format!(
        "POST /score HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {}\r\nExpect: 100-continue\r\nContent-Length: 65536\r\n\r\n",
        outrigger_testkit::replica::KEY
    );
    std::io::Write::write_all(&mut slow, head.as_bytes()).unwrap();
    let mut asked = [0; 12];
    std::io::Read::read_exact(&mut slow, &mut asked).unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100");
    let refused = score(&replica, "x").send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(header(&refused, "retry-after"), "1");
    assert_eq!(outcome(refused).await.1, "overloaded");
    drop(slow);
    // The memory is free again as soon as the replica has seen the client go.
    while score(&replica, "x").send().await.unwrap().status() != 200 {}
}

/// Waits for something that is to be so soon.
async fn until(holds: impl AsyncFn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(std::time::Instant::now() < deadline, "it does not come to be");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Bytes of answers that clients have not taken.
async fn held(replica: &ReplicaProcess) -> usize {
    let metrics = client().get(format!("{}/metrics", replica.observe)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix("outrigger_answer_bytes "));
    line.unwrap().parse().unwrap()
}

#[tokio::test]
async fn answers_that_nobody_takes_have_a_limit_and_a_time() {
    use std::io::{Read, Write};
    // More than the kernel holds between two sockets.
    const SIZE: usize = 64 << 20;
    let script = format!(
        "def init():\n    pass\ndef run(data):\n    return 'x' * {SIZE} if data == 'much' else data\n"
    );
    let ask = |replica: &ReplicaProcess| {
        let mut stream = std::net::TcpStream::connect(replica.score.trim_start_matches("http://")).unwrap();
        let key = outrigger_testkit::replica::KEY;
        let head = "POST /score HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: 4";
        write!(stream, "{head}\r\nAuthorization: Bearer {key}\r\n\r\nmuch").unwrap();
        // The answer has begun.
        stream.read_exact(&mut [0; 12]).unwrap();
        stream
    };

    let replica = outrigger().script(&script).args(["--limits-answers", "1MiB"]).start();
    let mut slow = ask(&replica);
    assert!(held(&replica).await > SIZE);
    let refused = score(&replica, "x").send().await.unwrap();
    assert_eq!((refused.status().as_u16(), header(&refused, "retry-after")), (503, "1".into()));
    let (_, code, body) = outcome(refused).await;
    assert!(code == "overloaded" && body["message"].as_str().unwrap().contains("limits.answers"), "{body}");
    for base in [&replica.score, &replica.observe] {
        let described = client().get(format!("{base}/openapi.json"));
        let described = described.bearer_auth(outrigger_testkit::replica::KEY).send().await.unwrap();
        let (status, code, _) = outcome(described).await;
        assert_eq!((status, code.as_str()), (503, "overloaded"), "{base}");
    }
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).unwrap();
    assert!(rest.len() > SIZE, "the whole answer");
    until(async || held(&replica).await == 0).await;
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);

    let replica = outrigger().script(&script).args(["--limits-write-timeout", "300ms"]).start();
    let mut slow = ask(&replica);
    until(async || held(&replica).await == 0).await;
    let mut rest = Vec::new();
    // Cut off, or reset.
    let _ = slow.read_to_end(&mut rest);
    assert!(rest.len() < SIZE, "{}", rest.len());
    still_serves(&replica).await;
}

/// One who speaks HTTP/2 can answer pings, open no window for an answer, and so hold it without ever being silent.
#[tokio::test]
async fn over_http2_too_an_answer_that_nobody_takes_has_a_time() {
    const SIZE: usize = 4 << 20;
    let script = format!(
        "import time\ndef init():\n    pass\ndef run(data):\n    if data == 'slow':\n        time.sleep(1.3)\n    return 'x' * {SIZE} if data == 'much' else data\n"
    );
    let replica =
        outrigger().script(&script).args(["--limits-write-timeout", "1s", "--script-workers", "2"]).start();
    let client =
        reqwest::Client::builder().http2_prior_knowledge().http2_initial_stream_window_size(16 << 10);
    let client = client.build().unwrap();
    let ask = |data: &'static str| {
        let key = outrigger_testkit::replica::KEY;
        client.post(format!("{}/score", replica.score)).bearer_auth(key).body(data).send()
    };
    let untaken = ask("much").await.unwrap();
    assert!(untaken.status() == 200 && held(&replica).await > SIZE);
    let neighbour = ask("slow").await.unwrap();
    assert_eq!(neighbour.text().await.unwrap(), "\"slow\"", "another answer on the same connection");
    until(async || held(&replica).await == 0).await;
    assert!(untaken.bytes().await.is_err(), "it is broken off");
    // What is taken, however slowly, is not.
    let mut slow = ask("much").await.unwrap();
    let mut taken = 0;
    while let Some(chunk) = slow.chunk().await.unwrap() {
        if taken == 0 {
            let later = std::time::Instant::now() + std::time::Duration::from_millis(200);
            until(async || std::time::Instant::now() >= later).await;
        }
        taken += chunk.len();
    }
    assert_eq!(taken, SIZE + 2);
    still_serves(&replica).await;
}

#[tokio::test]
async fn nonsense_on_the_wire_is_answered_or_closed() {
    let replica = replica(&[]);
    for bytes in [
        &b"\0\0\0\0\0\0\0\0\r\n\r\n"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /score\r\n\r\n",
        b"POST /score HTTP/1.1\r\nHost: t\r\nContent-Length: -5\r\nConnection: close\r\n\r\n",
        b"POST /score HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999999999999999\r\nConnection: close\r\n\r\n",
        b"POST /score HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nZZ\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let answer = raw(&replica, bytes);
        assert!(answer.is_empty() || !answer.starts_with("HTTP/1.1 2"), "{answer}");
    }
    still_serves(&replica).await;
}

#[tokio::test]
async fn scripts_that_misbehave_cost_their_own_call_only() {
    let script = r#"
import json, os, sys, ctypes, time

def init():
    pass

def run(data):
    what = json.loads(data)
    if what == "raise":
        raise ValueError("wrong")
    if what == "exit":
        sys.exit(3)
    if what == "die":
        os._exit(7)
    if what == "crash":
        ctypes.string_at(0)
    if what == "python loop":
        while True:
            pass
    if what == "c loop":
        # Holds the interpreter's lock in C for far longer than the test.
        return len(str(7 ** (10 ** 9)))
    if what == "object":
        return object()
    if what == "bytes":
        return b"x"
    if what == "huge":
        return "x" * (4 << 20)
    if what == "nan":
        return {"score": float("nan")}
    return data
"#;
    let args = ["--script-timeout", "500ms", "--limits-answer", "1MiB"];
    let mut replica = outrigger().script(script).args(args).start();
    let cases = [
        (
            "raise",
            500,
            "script_error",
            "An unexpected error occurred in scoring script. Check the logs for more info.",
            "True",
        ),
        (
            "exit",
            500,
            "script_error",
            "An unexpected error occurred in scoring script. Check the logs for more info.",
            "True",
        ),
        ("die", 500, "worker_lost", "the worker ended during the call: exit code 7", "True"),
        ("crash", 500, "worker_lost", "signal 11", "True"),
        ("python loop", 500, "scoring_timeout", "Scoring timeout after 500 ms", "True"),
        ("c loop", 500, "scoring_timeout", "Scoring timeout after 500 ms", "True"),
        (
            "object",
            500,
            "script_result_unserialisable",
            "An unexpected internal error occurred. Check the logs for more info.",
            "False",
        ),
        (
            "bytes",
            500,
            "script_result_unserialisable",
            "An unexpected internal error occurred. Check the logs for more info.",
            "False",
        ),
        (
            "nan",
            500,
            "script_result_unserialisable",
            "An unexpected internal error occurred. Check the logs for more info.",
            "False",
        ),
        (
            "huge",
            500,
            "script_result_unserialisable",
            "An unexpected internal error occurred. Check the logs for more info.",
            "False",
        ),
    ];
    for (what, expected, code, text, failed) in cases {
        let response = score(&replica, json!(what).to_string()).send().await.unwrap();
        assert_eq!(header(&response, "x-ms-run-function-failed"), failed, "{what}");
        let (status, got, body) = outcome(response).await;
        assert_eq!((status, got.as_str()), (expected, code), "{what}: {body}");
        assert!(body["message"].as_str().unwrap().contains(text), "{what}: {body}");
        still_serves(&replica).await;
    }
    for part in [
        "ValueError: wrong",
        "in run",
        "SIGTERM",
        "SIGSEGV",
        "not JSON serializable",
        "run() is over its time limit",
    ] {
        replica.wait_for_text(part);
    }
}

#[tokio::test]
async fn a_call_that_hangs_leaves_the_other_worker_alone() {
    let script = "import time\ndef init():\n    pass\ndef run(data):\n    while data == 'hang':\n        time.sleep(1)\n    return data\n";
    let replica =
        outrigger().script(script).args(["--script-workers", "2", "--script-timeout", "2s"]).start();
    let hanging = tokio::spawn(score(&replica, "hang").send());
    for _ in 0..50 {
        let answer = tokio::time::timeout(Duration::from_secs(60), score(&replica, "ok").send())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(answer.status(), 200);
    }
    assert_eq!(outcome(hanging.await.unwrap().unwrap()).await.1, "scoring_timeout");
}

#[tokio::test]
async fn outputs_have_a_limit_too() {
    let replica = outrigger().file("outer.onnx", onnx::outer()).args(["--model", "outer=outer.onnx"]);
    let replica = replica.args(["--limits-answer", "1MiB"]).start();
    let request = |n: u64, m: u64, data: Value| {
        json!({"inputs": [tensor("x", json!([n, m]), "FP32", data.clone()), tensor("z", json!([m, n]), "FP32", data)]}).to_string()
    };
    // A few bytes that ask for 40 GB, then for a bit more than the limit.
    for (n, m, data) in [(100_000, 0, json!([])), (600, 1, json!(vec![1; 600]))] {
        let (status, code, body) =
            outcome(infer(&replica, "outer", request(n, m, data)).send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), (400, "invalid_tensor"), "{body}");
        assert!(body["error"].as_str().unwrap().contains("limits.answer"), "{body}");
    }
    let (status, _, body) =
        outcome(infer(&replica, "outer", request(2, 1, json!([1, 2]))).send().await.unwrap()).await;
    assert_eq!((status, &body["outputs"][0]["data"]), (200, &json!([1.0, 2.0, 2.0, 4.0])), "{body}");
}
