//! What comes compressed: how much it may become, how many times as long, and by which codings.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::KEY;
use serde_json::json;

use super::requests::{PREDICT, message, models, models_still_serve, serving, spaced, tensors};
use super::resident;
use crate::grpc::{Grpc, INFER, STREAM, compressed, framed, padded};
use crate::support::{client, outcome, score, still_serves};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Status and code of a body in this coding.
async fn coded(replica: &ReplicaProcess, path: &str, coding: &str, body: Vec<u8>) -> (u16, String) {
    let request = client().post(format!("{}{path}", replica.score)).bearer_auth(KEY);
    let request = request.header("content-encoding", coding).body(body);
    let (status, code, _) = outcome(request.send().await.unwrap()).await;
    (status, code)
}

/// Where calls of models go that come as JSON, and a text for each.
fn contracts() -> [(&'static str, String); 3] {
    let rows = json!({"instances": [[1, 2]]}).to_string();
    [
        ("/v2/models/f/infer", tensors().to_string()),
        ("/invocations", tensors().to_string()),
        ("/vertex/predict", rows),
    ]
}

pub(super) async fn inflated() {
    const LIMIT: usize = 64 << 10;
    let replica = models().args(["--limits-body", "64KiB"]).start();
    for (path, text) in contracts() {
        for (length, expected) in [(LIMIT, (200, "")), (LIMIT + 1, (413, "body_too_large"))] {
            let body = spaced(&text, length);
            for (coding, body) in [("gzip", gzip(body.as_bytes())), ("deflate", zlib(body.as_bytes()))] {
                let (status, code) = coded(&replica, path, coding, body).await;
                assert_eq!((status, code.as_str()), expected, "{path} {coding}: {length}");
            }
        }
    }
    let mut grpc = Grpc::connect(&replica).await;
    for path in [INFER, STREAM] {
        for (length, expected) in [(LIMIT, (0, "")), (LIMIT + 1, (8, "body_too_large"))] {
            let frame = compressed(&gzip(&padded(message(), length)));
            let told = grpc.ask(path, &[("grpc-encoding", "gzip")], frame).await;
            assert_eq!(told.outcome(), expected, "{path}: {length}");
        }
    }
    models_still_serve(&replica).await;
}

/// The longest text that is at most so many times as long as what it is compressed to.
fn just(ratio: usize, with: impl Fn(usize) -> Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let is_within = |length: usize| length <= ratio * gzip(&with(length)).len();
    let mut length = 70 << 10;
    assert!(is_within(length));
    while is_within(length + 512) {
        length += 512;
    }
    // A few more do not change how long it is compressed, and what is far beyond is.
    (with(length), with(length + (8 << 10)))
}

pub(super) async fn ratio() {
    let replica = models().args(["--limits-inflate", "50"]).start();
    // Digits that do not compress much, and white space that does.
    let mut state = 1u64;
    let mut digit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'0' + (state >> 61) as u8)
    };
    let digits: String = (0..8000).map(|_| digit()).collect();
    let text = tensors().to_string().replacen('{', &format!("{{\"pad\":\"{digits}\","), 1);
    let (fits, over) = just(50, |length| spaced(&text, length).into_bytes());
    let path = "/v2/models/f/infer";
    assert_eq!(coded(&replica, path, "gzip", gzip(&fits)).await.0, 200, "{}", fits.len());
    let (status, code) = coded(&replica, path, "gzip", gzip(&over)).await;
    assert_eq!((status, code.as_str()), (413, "body_too_large"), "{}", over.len());
    // What is short may have any ratio.
    let short = spaced(&tensors().to_string(), 64 << 10);
    assert_eq!(coded(&replica, path, "gzip", gzip(short.as_bytes())).await.0, 200);

    let before = resident(&replica);
    let bomb = gzip(&padded(message(), 90 << 20));
    let mut grpc = Grpc::connect(&replica).await;
    for path in [INFER, STREAM, PREDICT] {
        let told = grpc.ask(path, &[("grpc-encoding", "gzip")], compressed(&bomb)).await;
        assert_eq!(told.outcome(), (8, "body_too_large"), "{path}");
    }
    let (status, code) = coded(&replica, path, "gzip", gzip(&vec![b' '; 90 << 20])).await;
    assert_eq!((status, code.as_str()), (413, "body_too_large"));
    let grown = resident(&replica).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
    models_still_serve(&replica).await;
}

pub(super) async fn codings() {
    let replica = models().start();
    for (path, text) in contracts() {
        for (coding, body, expected) in [
            ("identity", text.clone().into_bytes(), (200, "")),
            ("gzip", gzip(text.as_bytes()), (200, "")),
            ("deflate", zlib(text.as_bytes()), (200, "")),
            ("gzip", text.clone().into_bytes(), (400, "bad_request")),
            ("br", text.clone().into_bytes(), (415, "unsupported_media_type")),
            ("gzip, gzip", gzip(&gzip(text.as_bytes())), (415, "unsupported_media_type")),
        ] {
            let (status, code) = coded(&replica, path, coding, body).await;
            assert_eq!((status, code.as_str()), expected, "{path} {coding}");
        }
    }
    let mut grpc = Grpc::connect(&replica).await;
    for path in [INFER, STREAM, "/inference.GRPCInferenceService/ServerMetadata"] {
        let told = grpc.ask(path, &[("grpc-encoding", "gzip")], compressed(&gzip(&message()))).await;
        assert_eq!(told.status, 0, "{path}: {told:?}");
        let told = grpc.ask(path, &[("grpc-encoding", "deflate")], compressed(&zlib(&message()))).await;
        assert_eq!(told.status, 0, "{path}: {told:?}");
        // Not UNKNOWN: by this a client learns that it may do without, and what it may do.
        let told = grpc.ask(path, &[("grpc-encoding", "snappy")], compressed(&message())).await;
        assert_eq!(told.outcome(), (12, "unsupported_media_type"), "{path}");
        assert_eq!(told.headers["grpc-accept-encoding"], "identity,deflate,gzip", "{path}");
        // Which message is compressed is said by each.
        let told = grpc.ask(path, &[("grpc-encoding", "snappy")], framed(&message())).await;
        assert_eq!(told.status, 0, "{path}: {told:?}");
        let told = grpc.ask(path, &[], compressed(&gzip(&message()))).await;
        assert_eq!(told.outcome(), (3, "bad_request"), "{path}");
    }
    models_still_serve(&replica).await;
}

pub(super) async fn parts() {
    let form = "--b\r\ncontent-disposition: form-data; name=\"x\"\r\n\r\n1\r\n--b--\r\n";
    let send = async |replica: &ReplicaProcess, path: &str, media: &str| {
        let request = client().post(format!("{}{path}", replica.score)).bearer_auth(KEY);
        let (status, code, _) =
            outcome(request.header("content-type", media).body(form).send().await.unwrap()).await;
        (status, code)
    };
    let replica = models().start();
    for (path, _) in contracts() {
        for media in ["multipart/form-data; boundary=b", "Multipart/mixed; boundary=b"] {
            let (status, code) = send(&replica, path, media).await;
            assert_eq!((status, code.as_str()), (415, "unsupported_media_type"), "{path} {media}");
        }
    }
    models_still_serve(&replica).await;
    // To a script it is as any other body.
    let replica = serving().start();
    let request = score(&replica, form).header("content-type", "multipart/form-data; boundary=b");
    let (status, _, body) = outcome(request.send().await.unwrap()).await;
    assert_eq!((status, body), (200, json!(form)));
    still_serves(&replica).await;
}
