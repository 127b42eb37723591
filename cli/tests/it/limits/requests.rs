//! Bodies, headers and identifiers: at the limit, and one beyond it, by every contract.

use std::io::{Read, Write};
use std::net::TcpStream;

use outrigger_backend::DataType;
use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess, onnx};
use prost::Message as _;
use serde_json::json;

use super::{is_silent, long_and_short};
use crate::grpc::{Grpc, INFER, STREAM, call, framed, padded};
use crate::support::{ECHO, client, header, infer, outcome, outrigger, raw, score, still_serves};

pub(super) const PREDICT: &str = "/tensorflow.serving.PredictionService/Predict";

/// A script that gives back its input, and models that do: `f` with `FP32`, `b` with `UINT8`, `s` with strings, each of `[n, m]`.
pub(super) fn serving() -> Launch {
    models().script(ECHO)
}

/// The models alone.
pub(super) fn models() -> Launch {
    let mut launch = outrigger().args(["--score-model", "f"]);
    for (name, data_type) in [("f", DataType::Fp32), ("b", DataType::Uint8), ("s", DataType::Bytes)] {
        let free = [onnx::Dim::Named("n"), onnx::Dim::Named("m")];
        let file = format!("{name}.onnx");
        launch = launch.file(&file, onnx::identity(data_type, &free));
        launch = launch.args(["--model", &format!("{name}={file}")]);
    }
    launch
}

/// Tensors of a call of `f` with one row of two.
pub(super) fn tensors() -> serde_json::Value {
    json!({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]})
}

/// The same as a message.
pub(super) fn message() -> Vec<u8> {
    call("f", "", "FP32", &[1, 2], [1f32.to_le_bytes(), 2f32.to_le_bytes()].concat()).encode_to_vec()
}

/// A JSON text with white space behind it, so that it has so many bytes.
pub(super) fn spaced(text: &str, length: usize) -> String {
    text.to_owned() + &" ".repeat(length - text.len())
}

/// Status and code of `POST`.
pub(super) async fn post(
    replica: &ReplicaProcess,
    path: &str,
    body: impl Into<reqwest::Body>,
) -> (u16, String) {
    let request = client().post(format!("{}{path}", replica.score)).bearer_auth(KEY).body(body);
    let (status, code, _) = outcome(request.send().await.unwrap()).await;
    (status, code)
}

/// What a model answers that works as it should.
pub(super) async fn models_still_serve(replica: &ReplicaProcess) {
    let (status, _, body) = outcome(infer(replica, "f", tensors().to_string()).send().await.unwrap()).await;
    assert_eq!((status, &body["outputs"][0]["data"]), (200, &json!([1.0, 2.0])), "{body}");
    assert!(!replica.log_text().contains("panicked"), "{}", replica.log_text());
}

pub(super) async fn body() {
    const LIMIT: usize = 64 << 10;
    let replica = serving().args(["--limits-body", "64KiB"]).start();
    let alone = models().args(["--limits-body", "64KiB"]).start();
    let (tensors, rows) = (tensors().to_string(), json!({"instances": [[1, 2]]}).to_string());
    let infer = "/v2/models/f/infer";
    for (replica, path, text) in [
        (&replica, "/score", "x"),
        (&replica, "/invocations", "x"),
        (&replica, "/vertex/predict", "x"),
        (&replica, infer, &tensors),
        (&alone, "/invocations", &tensors),
        (&alone, "/models/f/invoke", &tensors),
        (&alone, "/vertex/predict", &rows),
    ] {
        for (length, expected) in [(LIMIT, (200, "")), (LIMIT + 1, (413, "body_too_large"))] {
            let (status, code) = post(replica, path, spaced(text, length)).await;
            assert_eq!((status, code.as_str()), expected, "{path}: {length}");
        }
    }
    // Chunked, so that the size is known only when it is over.
    let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
    let head = format!(
        "POST /score HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {KEY}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    );
    let answer = raw(&replica, format!("{head}{chunk}{chunk}{chunk}0\r\n\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let mut grpc = Grpc::connect(&replica).await;
    for (path, length, expected) in [
        (INFER, LIMIT, (0, "")),
        (INFER, LIMIT + 1, (8, "body_too_large")),
        (STREAM, LIMIT, (0, "")),
        (STREAM, LIMIT + 1, (8, "body_too_large")),
        (PREDICT, LIMIT + 1, (8, "body_too_large")),
    ] {
        let told = grpc.ask(path, &[], framed(&padded(message(), length))).await;
        assert_eq!(told.outcome(), expected, "{path}: {length}");
    }
    still_serves(&replica).await;
    models_still_serve(&alone).await;
}

pub(super) async fn body_timeout() {
    let [long, short] = long_and_short(serving, "--limits-body-timeout");
    let head = format!("Host: t\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 5\r\nConnection: close");
    for path in ["/score", "/v2/models/f/infer", "/vertex/predict", "/v2/repository/index"] {
        let request = format!("POST {path} HTTP/1.1\r\n{head}\r\n\r\nab");
        let mut in_long = TcpStream::connect(long.score.trim_start_matches("http://")).unwrap();
        in_long.write_all(request.as_bytes()).unwrap();
        let answer = raw(&short, request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{path}: {answer}");
        assert!(is_silent(&mut in_long), "{path}");
    }
    let whole = framed(&message());
    let (mut grpc_of_long, mut grpc) = (Grpc::connect(&long).await, Grpc::connect(&short).await);
    for path in [INFER, STREAM, PREDICT, "/inference.GRPCInferenceService/ModelMetadata"] {
        for there in [3, whole.len() - 1] {
            let part = || whole[..there].to_vec().into();
            let (sender_of_long, answer) = grpc_of_long.open(path, &[]).await;
            sender_of_long.send(part()).await.unwrap();
            let in_long = tokio::spawn(answer.told());
            let (sender, answer) = grpc.open(path, &[]).await;
            sender.send(part()).await.unwrap();
            assert_eq!(answer.told().await.outcome(), (4, "body_timeout"), "{path}: {there}");
            assert!(!in_long.is_finished(), "{path}: {there}");
            drop((sender, sender_of_long));
            in_long.abort();
        }
    }
    // A stream in which nothing is said is not late, as a message is that was begun after it.
    let (sender, mut answer) = grpc.open(STREAM, &[]).await;
    for _ in 0..2 {
        let (late, told) = grpc.open(STREAM, &[]).await;
        late.send(whole[..3].to_vec().into()).await.unwrap();
        assert_eq!(told.told().await.outcome(), (4, "body_timeout"));
        sender.send(whole.clone().into()).await.unwrap();
        assert!(answer.next().await.is_some());
    }
    still_serves(&short).await;
}

/// Bytes of a header block of HTTP/1.1 with this long field: of `GET /`, and of a host.
fn block(length: usize) -> usize {
    "/".len() + "host".len() + "t".len() + 4 + "x-long".len() + length + 4
}

pub(super) async fn header_block() {
    let replica = serving().args(["--limits-header", "4KiB"]).start();
    let fits = 4096 - block(0);
    for (length, status) in [(fits, "200"), (fits + 1, "431")] {
        let request = format!("GET / HTTP/1.1\r\nhost: t\r\nx-long: {}\r\n\r\n", "y".repeat(length));
        let mut stream = TcpStream::connect(replica.score.trim_start_matches("http://")).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer[9..], status.as_bytes(), "{length}");
    }
    let over = score(&replica, "x").header("x-long", "y".repeat(5000)).send().await.unwrap();
    let (status, code, body) = outcome(over).await;
    assert_eq!((status, code.as_str()), (431, "header_too_large"), "{body}");
    // The same by HTTP/2, where the host is no header.
    let http2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let long_path = |length: usize| format!("{}/{}", replica.score, "y".repeat(length));
    for (length, expected) in [(4000, (404, "not_found")), (4200, (431, "header_too_large"))] {
        let (status, code, _) = outcome(http2.get(long_path(length)).send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), expected, "{length}");
    }
    let told =
        Grpc::connect(&replica).await.ask(INFER, &[("x-long", &"y".repeat(5000))], framed(&message())).await;
    assert_eq!(told.outcome(), (8, "header_too_large"));
    // What is far beyond it is cut off, by either version.
    let far_over = format!("GET / HTTP/1.1\r\nHost: t\r\nx-long: {}\r\n\r\n", "y".repeat(2 << 20));
    let answer = raw(&replica, far_over.as_bytes());
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let cut = http2.get(&replica.score).header("x-long", "y".repeat(2 << 20)).send().await;
    assert!(cut.map_or(true, |answer| answer.status() == 431));
    still_serves(&replica).await;
}

pub(super) async fn headers() {
    let replica = serving().start();
    let many = |count: usize| (0..count).map(|number| format!("x-{number}: 1\r\n")).collect::<String>();
    for (count, status) in [(98, "200"), (99, "431")] {
        // With a host, and what closes the connection.
        let head = format!("GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n{}\r\n", many(count));
        let answer = raw(&replica, head.as_bytes());
        assert_eq!(answer.get(9..12), Some(status), "{count}: {answer}");
    }
    let http2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    // reqwest adds `accept`.
    for (count, expected) in [(99, (200, "")), (100, (431, "header_too_large"))] {
        let mut request = http2.get(&replica.score);
        for number in 0..count {
            request = request.header(format!("x-{number}"), "1");
        }
        let (status, code, _) = outcome(request.send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), expected, "{count}");
    }
    still_serves(&replica).await;
}

pub(super) async fn identifiers() {
    let replica = serving().start();
    for (name, ids) in [("x-request-id", false), ("x-ms-request-id", true), ("x-ms-client-request-id", true)]
    {
        let longest = score(&replica, "x").header(name, "i".repeat(100)).send().await.unwrap();
        assert_eq!(header(&longest, name), "i".repeat(100));
        let response = score(&replica, "x").header(name, "i".repeat(101)).send().await.unwrap();
        assert_eq!(!header(&response, "x-request-id").is_empty(), ids, "{name}");
        let (status, code, _) = outcome(response).await;
        assert_eq!((status, code.as_str()), (431, "request_id_too_long"), "{name}");
        let told =
            Grpc::connect(&replica).await.ask(INFER, &[(name, &"i".repeat(101))], framed(&message())).await;
        assert_eq!(told.outcome(), (8, "request_id_too_long"), "{name}");
    }
    still_serves(&replica).await;
}

pub(super) async fn keys() {
    let longest = "k".repeat(512);
    let replica = serving().env("OUTRIGGER_AUTH_PRIMARY_KEY", &longest).start();
    let with =
        |key: &str| client().post(format!("{}/score", replica.score)).bearer_auth(key).body("x").send();
    assert_eq!(with(&longest).await.unwrap().status(), 200);
    let response = with(&(longest.clone() + "k")).await.unwrap();
    assert_eq!(header(&response, "www-authenticate"), "Bearer");
    let (status, code, _) = outcome(response).await;
    assert_eq!((status, code.as_str()), (401, "unauthenticated"));
    let mut grpc = Grpc::connect(&replica).await;
    for (key, expected) in [(longest.clone(), (0, "")), (longest.clone() + "k", (16, "unauthenticated"))] {
        let key = format!("Bearer {key}");
        let told = grpc.ask(INFER, &[("authorization", &key)], framed(&message())).await;
        assert_eq!(told.outcome(), expected);
    }
    assert_eq!(with(&longest).await.unwrap().status(), 200);
}

pub(super) async fn small_messages() {
    let replica = models().args([
        "--limits-message",
        "2KiB",
        "--score-model-control",
        "--score-shared-memory",
        "/dev/shm",
    ]);
    let replica = replica.start();
    let index = "/v2/repository/index";
    for path in [index, "/models"] {
        let (status, code) = post(&replica, path, spaced("{}", 2049)).await;
        assert_eq!((status, code.as_str()), (413, "body_too_large"), "{path}");
    }
    assert_eq!(post(&replica, index, spaced("{}", 2048)).await.0, 200);
    let mut grpc = Grpc::connect(&replica).await;
    // The model's name is the first field, as it is that of a call.
    let name = [&[0x0a, 1][..], b"f"].concat();
    for (length, expected) in [(2048, (0, "")), (2049, (8, "body_too_large"))] {
        let path = "/inference.GRPCInferenceService/ModelMetadata";
        let told = grpc.ask(path, &[], framed(&padded(name.clone(), length))).await;
        assert_eq!(told.outcome(), expected, "{length}");
    }
    models_still_serve(&replica).await;
}

pub(super) async fn health_messages() {
    let replica = models().start();
    let mut grpc = Grpc::connect(&replica).await;
    for path in ["/grpc.health.v1.Health/Check", "/inference.GRPCInferenceService/ServerLive"] {
        for (length, expected) in [(1024, (0, "")), (1025, (8, "body_too_large"))] {
            let told = grpc.ask(path, &[("authorization", "")], framed(&padded(Vec::new(), length))).await;
            assert_eq!(told.outcome(), expected, "{path}: {length}");
        }
    }
    models_still_serve(&replica).await;
}
