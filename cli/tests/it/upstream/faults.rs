//! What no server should do: a socket that breaks off, answers what is not HTTP, or not at all.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::Receiver;

use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::http::Head;
use serde_json::json;

use super::{metric, patiently};
use crate::support::{busy, outcome, outrigger, score, until_busy};

/// Answers each request with what `answer` does with its connection; one request for each connection. Says when each is closed.
fn server(answer: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> (SocketAddr, Receiver<()>) {
    let (sender, closed) = std::sync::mpsc::channel();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = std::sync::Arc::new(answer);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let (answer, closed) = (std::sync::Arc::clone(&answer), sender.clone());
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                // Who only looks whether somebody is there asks nothing.
                let Ok(Some(head)) = Head::read(&mut reader) else { return };
                let length = head.field("content-length").map_or(0, |length| length.parse().unwrap());
                let _ = reader.read_exact(&mut vec![0; length]);
                answer(&mut stream);
                drop((stream, reader));
                let _ = closed.send(());
            });
        }
    });
    (address, closed)
}

/// With these limits where they are what ends a call, and ones that are far away else.
fn in_front_of(server: SocketAddr, timeout: &str, gap: &str) -> ReplicaProcess {
    let flags = ["--upstream-timeout", timeout, "--upstream-gap-timeout", gap];
    patiently(outrigger()).args(["--upstream-url", &format!("http://{server}")]).args(flags).start()
}

fn patient(server: SocketAddr) -> ReplicaProcess {
    in_front_of(server, "1h", "1h")
}

/// Waits until the other end has closed.
fn hold(stream: &mut TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_has_its_own_error_and_the_next_call_its_own_chance() {
    type Answer = fn(&mut TcpStream);
    let cases: &[(&str, Answer, u16, &str, &str)] = &[
        ("closes", |_| {}, 502, "upstream_lost", "before it answered"),
        (
            "closes in the head",
            |stream| drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le")),
            502,
            "upstream_lost",
            "before it answered",
        ),
        (
            "closes in a short answer",
            |stream| drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789")),
            502,
            "upstream_lost",
            "in the middle",
        ),
        (
            "stops in a short answer",
            |stream| {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789");
                hold(stream);
            },
            502,
            "upstream_lost",
            "upstream.gap_timeout",
        ),
        ("never answers", hold, 500, "scoring_timeout", "Scoring timeout after 500 ms"),
        (
            "is no HTTP",
            |stream| drop(stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")),
            502,
            "upstream_failed",
            "not HTTP",
        ),
        (
            "has a status that is none",
            |stream| drop(stream.write_all(b"HTTP/1.1 20x OK\r\nContent-Length: 0\r\n\r\n")),
            502,
            "upstream_failed",
            "not HTTP",
        ),
        (
            "has two lengths",
            |stream| {
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"))
            },
            502,
            "upstream_failed",
            "not HTTP",
        ),
        (
            "has large headers",
            |stream| {
                let large = format!(
                    "HTTP/1.1 200 OK\r\nX-Large: {}\r\nContent-Length: 0\r\n\r\n",
                    "x".repeat(40 << 10)
                );
                drop(stream.write_all(large.as_bytes()));
            },
            502,
            "upstream_failed",
            "limits.header",
        ),
        (
            "has endless headers",
            |stream| {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX-Large: ");
                while stream.write_all(&[b'x'; 4096]).is_ok() {}
            },
            502,
            "upstream_failed",
            "limits.header",
        ),
        (
            "has too many headers",
            |stream| {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
                let _ = stream.write_all("X-A: b\r\n".repeat(1000).as_bytes());
                let _ = stream.write_all(b"\r\n");
            },
            502,
            "upstream_failed",
            "",
        ),
        (
            "changes the protocol",
            |stream| {
                let _ = stream.write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
                );
                hold(stream);
            },
            502,
            "upstream_failed",
            "",
        ),
    ];
    for (name, answer, status, code, text) in cases {
        let timeout = if *code == "scoring_timeout" { "500ms" } else { "1h" };
        let gap = if text.contains("gap_timeout") { "500ms" } else { "1h" };
        let replica = in_front_of(server(*answer).0, timeout, gap);
        for _ in 0..2 {
            let got = outcome(score(&replica, "x").send().await.unwrap()).await;
            assert_eq!((got.0, got.1.as_str()), (*status, *code), "{name}: {}", got.2);
            assert!(got.2["message"].as_str().unwrap().contains(text), "{name}: {}", got.2);
        }
        let busy = busy(&replica).await;
        assert_eq!((&busy["executing"], &busy["failed"]), (&json!(0), &json!(2)), "{name}: {busy}");
        let failures = format!("outrigger_upstream_failures_total{{code=\"{code}\"}}");
        assert_eq!(metric(&replica, &failures).await, Some(2.0), "{name}");
        assert_eq!(metric(&replica, "outrigger_upstream_connections").await, Some(0.0), "{name}");
        assert!(!replica.log_text().contains("panicked"), "{}", replica.log_text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_does_not_look_complete() {
    type Answer = fn(&mut TcpStream);
    let cases: &[(&str, Answer)] = &[
        ("in a chunk", |stream| {
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n5\r\nse");
        }),
        ("between chunks", |stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        }),
        ("in a chunk's size", |stream| {
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\nzz\r\n");
        }),
        ("in a long answer", |stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nfirst");
        }),
        ("in silence, of an old version", |stream| {
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nfirst");
            hold(stream);
        }),
        ("in a long answer of an old version", |stream| {
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 1000000\r\n\r\nfirst");
        }),
        ("in silence", |stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
            hold(stream);
        }),
    ];
    for (name, answer) in cases {
        let gap = if name.contains("silence") { "500ms" } else { "1h" };
        let replica = in_front_of(server(*answer).0, "1h", gap);
        for two in [false, true] {
            let mut client = reqwest::Client::builder().no_proxy();
            if two {
                client = client.http2_prior_knowledge();
            }
            let request = client.build().unwrap().post(format!("{}/score", replica.score));
            let mut got =
                request.bearer_auth(outrigger_testkit::replica::KEY).body("x").send().await.unwrap();
            assert_eq!(got.status(), 200, "{name}");
            assert_eq!(got.chunk().await.unwrap().unwrap(), "first", "{name}");
            assert!(got.bytes().await.is_err(), "{name}, HTTP/2: {two}");
        }
        let busy = until_busy(&replica, 0, 0).await;
        assert_eq!(busy["failed"], 2, "{name}: {busy}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_caller_does_wrong_after_the_answer_has_begun_is_not_the_upstream_s() {
    type Answer = fn(&mut TcpStream);
    // Of a body without a length it has the head alone, and answers before the rest.
    let cases: &[(&str, Answer)] = &[
        ("a short answer", |stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789");
            hold(stream);
        }),
        ("a stream", |stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
            hold(stream);
        }),
    ];
    for (name, answer) in cases {
        let (sender, begun) = std::sync::mpsc::channel();
        let (server, _) = server(move |stream| {
            let _ = sender.send(());
            answer(stream);
        });
        let limits = ["--limits-body", "64KiB", "--upstream-stream-threshold", "1KiB"];
        let launch = patiently(outrigger()).args(["--upstream-url", &format!("http://{server}")]);
        let replica = launch.args(limits).start();
        let (pieces, body) = super::streams::pieces();
        let call = tokio::spawn(score(&replica, body).send());
        pieces.send(vec![0; 2048].into()).await.unwrap();
        tokio::task::spawn_blocking(move || begun.recv().unwrap()).await.unwrap();
        if *name == "a stream" {
            let mut got = call.await.unwrap().unwrap();
            assert_eq!(got.chunk().await.unwrap().unwrap(), "first");
            pieces.send(vec![0; 64 << 10].into()).await.unwrap();
            assert!(got.bytes().await.is_err());
        } else {
            // Most of the head of the answer has been read by now; where it has not, the error is the same.
            pieces.send(vec![0; 64 << 10].into()).await.unwrap();
            let (status, code, body) = outcome(call.await.unwrap().unwrap()).await;
            assert_eq!((status, code.as_str()), (413, "body_too_large"), "{body}");
        }
        let failures = |code: &str| format!("outrigger_upstream_failures_total{{code=\"{code}\"}}");
        crate::devices::until("the failure", async || {
            metric(&replica, &failures("body_too_large")).await.is_some()
        })
        .await;
        assert_eq!(metric(&replica, &failures("upstream_lost")).await, None, "{name}");
        assert!(!replica.log_text().contains("broke off"), "{name}: {}", replica.log_text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_whose_end_is_that_of_the_connection_is_whole() {
    let replica = patient(server(|stream| drop(stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nall of it"))).0);
    for _ in 0..3 {
        let answer = score(&replica, "x").send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (200, "all of it"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_beside_chunks_does_not_count() {
    let replica = patient(
        server(|stream| {
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n";
            drop(stream.write_all(&[head.as_slice(), b"9\r\nall of it\r\n0\r\n\r\n"].concat()));
        })
        .0,
    );
    let answer = score(&replica, "x").send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers().get("content-length")), (200, None));
    assert_eq!(answer.text().await.unwrap(), "all of it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_closed_while_nobody_had_it_costs_no_call() {
    // It says nothing of closing, and does so after each answer.
    let answer: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let (server, closed) = server(move |stream| drop(stream.write_all(answer)));
    let replica = patient(server);
    for _ in 0..20 {
        let got = outcome(score(&replica, "x").send().await.unwrap()).await;
        assert_eq!((got.0, got.2), (200, json!("ok")));
        closed.recv().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_listens_any_more_a_call_is_told_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let launch = patiently(outrigger()).args(["--upstream-url", &url, "--upstream-probe-period", "1h"]);
    let replica = launch.start();
    drop(listener);
    let (status, code, body) = outcome(score(&replica, "x").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (503, "upstream_unavailable"));
    assert!(body["message"].as_str().unwrap().contains("nobody listens at http://127.0.0.1:"), "{body}");
}
