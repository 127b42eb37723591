//! Bodies of HTTP/2 that their sender cancels without giving a fault. No client does that by itself, so the frames are written here.
//!
//! Source: RFC 9113, section 6, and RFC 7541, section 6.2.2, for header fields as they are.

use std::io::{Read, Write};
use std::net::TcpStream;

use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::KEY;
use outrigger_testkit::upstream::App;
use serde_json::json;

use super::{in_front_of, metric, seen, until_seen};
use crate::devices::until;
use crate::support::{score, until_busy};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A connection with one request on it, whose body is to come.
fn begun(replica: &ReplicaProcess, path: &str) -> TcpStream {
    let mut fields = Vec::new();
    let key = format!("Bearer {KEY}");
    let more = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "t"),
        (":path", path),
        ("authorization", &key),
    ];
    for (name, value) in more {
        fields.push(0);
        for text in [name, value] {
            fields.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).unwrap());
            fields.extend_from_slice(text.as_bytes());
        }
    }
    let mut stream = TcpStream::connect(replica.score.trim_start_matches("http://")).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    stream.write_all(&frame(HEADERS, END_HEADERS, 1, &fields)).unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_cancelled_is_not_taken_for_a_whole_one() {
    let app = App::start();
    let replica = in_front_of(&app)
        .args(["--upstream-stream-threshold", "32KiB", "--upstream-idle-timeout", "1h"])
        .start();
    // A connection that is kept is there, which a request would be sent on at once.
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
    let refused = "outrigger_requests_total{code=\"bad_request\",operation=\"score\"}";
    for (number, path) in ["/score", "/app/hash"].into_iter().enumerate() {
        let mut stream = begun(&replica, path);
        stream.write_all(&frame(DATA, 0, 1, &[b'x'; 100])).unwrap();
        stream.write_all(&frame(RST_STREAM, 0, 1, &[0; 4])).unwrap();
        until("the refusal", async || metric(&replica, refused).await == Some(number as f64 + 1.0)).await;
        assert_eq!(seen(&app).await["requests"], json!(["/score"]), "{path}");
    }
    // One of which the upstream has had something.
    let mut stream = begun(&replica, "/app/hash");
    for _ in 0..3 {
        stream.write_all(&frame(DATA, 0, 1, &[b'x'; 16 << 10])).unwrap();
    }
    until_seen(&app, "the body", |seen| seen["taken"] == 3 * (16 << 10)).await;
    stream.write_all(&frame(RST_STREAM, 0, 1, &[0; 4])).unwrap();
    until_busy(&replica, 0, 0).await;
    let seen = until_seen(&app, "an end", |seen| seen["running"] == 0).await;
    assert_eq!(seen["hashed"], 0, "{seen}");
    // One that ends as it should, without a length, in a frame without data.
    let mut stream = begun(&replica, "/app/hash");
    stream.write_all(&frame(DATA, 0, 1, &[b'x'; 100])).unwrap();
    stream.write_all(&frame(DATA, END_STREAM, 1, &[])).unwrap();
    until_seen(&app, "the end", |seen| seen["hashed"] == 1).await;
    // And one that ends with trailers.
    let mut stream = begun(&replica, "/app/hash");
    stream.write_all(&frame(DATA, 0, 1, &[b'x'; 100])).unwrap();
    stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\0\x01x\x01y")).unwrap();
    until_seen(&app, "the end", |seen| seen["hashed"] == 2).await;
    stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    stream.read_exact(&mut [0; 9]).unwrap();
}
