//! Connections that do not get as far as a request.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::KEY;

use super::certificates::Authority;
use super::{Caller, bare, over_tls, score, with};
use crate::support::{PATIENCE, metric};

fn handshakes(outcome: &str) -> String {
    format!("outrigger_tls_handshakes_total{{listener=\"score\",outcome=\"{outcome}\"}}")
}

async fn until(replica: &ReplicaProcess, outcome: &str, count: f64) {
    let deadline = Instant::now() + PATIENCE;
    while metric(replica, &handshakes(outcome)).await != Some(count) {
        assert!(Instant::now() < deadline, "{outcome} is never {count}: {}", replica.log_text());
        tokio::task::yield_now().await;
    }
}

/// What comes until the other end closes; a reset is an end too.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("it is not closed: {error}"),
        _ => all,
    }
}

/// The beginning of a handshake that is never gone on with.
fn hello(replica: &ReplicaProcess, authority: &Authority) -> Vec<u8> {
    let config = Arc::new(Caller::trusting(authority).config());
    let mut connection = rustls::ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    assert!(!bytes.is_empty(), "{}", replica.score);
    bytes
}

/// The limit `tls.handshake_timeout` of docs/limits.md.
#[tokio::test]
async fn a_handshake_that_does_not_go_on_is_cut_and_keeps_nobody_out() {
    let authority = Authority::new("root");
    let pair = authority.server();
    let long = with(&pair).args(["--tls-handshake-timeout", "1h"]).start();
    let short = with(&pair).args(["--tls-handshake-timeout", "2s"]).start();
    let mut all = Vec::new();
    for replica in [&long, &short] {
        let hello = hello(replica, &authority);
        for part in [&hello[..0], &hello[..1], &hello[..hello.len() - 1]] {
            let mut stream = TcpStream::connect(bare(&replica.score)).unwrap();
            stream.write_all(part).unwrap();
            all.push(stream);
        }
        // They wait, and others are served.
        assert_eq!(score(&Caller::trusting(&authority).client(), replica).await.unwrap(), 200);
    }
    let (of_long, of_short) = all.split_at_mut(3);
    for stream in of_short {
        assert!(rest(stream).is_empty());
    }
    until(&short, "timeout", 3.0).await;
    for stream in of_long {
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let error = stream.read(&mut [0]).expect_err("it waits still");
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    }
    assert_eq!(metric(&long, &handshakes("timeout")).await, Some(0.0));
}

#[tokio::test]
async fn they_count_as_connections() {
    let authority = Authority::new("root");
    let replica = with(&authority.server())
        .args(["--limits-connections", "2", "--tls-handshake-timeout", "1h"])
        .start();
    let _first = TcpStream::connect(bare(&replica.score)).unwrap();
    let second = TcpStream::connect(bare(&replica.score)).unwrap();
    let caller = Caller::trusting(&authority).client();
    let asking = score(&caller, &replica);
    tokio::pin!(asking);
    // The third has to wait in the kernel until one of the others is gone. That it waits can only be seen for a while.
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut asking).await.is_err());
    drop(second);
    assert_eq!(tokio::time::timeout(PATIENCE, asking).await.unwrap().unwrap(), 200);
    until(&replica, "closed", 1.0).await;
}

#[tokio::test]
async fn what_is_no_tls_is_closed() {
    let authority = Authority::new("root");
    let replica = with(&authority.server()).start();
    let request = format!(
        "POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 1\r\n\r\nx"
    );
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for (count, bytes) in
        [request.as_bytes(), preface.as_bytes(), &[0; 64], &[0xff; 64]].into_iter().enumerate()
    {
        let mut stream = TcpStream::connect(bare(&replica.score)).unwrap();
        stream.write_all(bytes).unwrap();
        let answer = rest(&mut stream);
        assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
        until(&replica, "not_tls", (count + 1) as f64).await;
    }
    assert_eq!(score(&Caller::trusting(&authority).client(), &replica).await.unwrap(), 200);
    assert!(!replica.log_text().contains("panicked"), "{}", replica.log_text());
    assert!(!replica.log_text().contains("handshake failed"), "it is for who looks closely");
}

#[tokio::test]
async fn clients_that_do_not_trust_the_certificate_are_counted() {
    let (authority, other) = (Authority::new("root"), Authority::new("other"));
    let replica = with(&authority.server()).env("OUTRIGGER_LOG_LEVEL", "debug").start();
    assert!(score(&Caller::trusting(&other).client(), &replica).await.is_err());
    until(&replica, "refused_by_client", 1.0).await;
    assert!(replica.log_text().contains("a TLS handshake failed"), "{}", replica.log_text());
}

#[tokio::test]
async fn the_end_waits_for_calls_and_not_for_handshakes() {
    let authority = Authority::new("root");
    let script = "import os, time\ndef init():\n    pass\ndef run(data):\n    while not os.path.exists(data):\n        time.sleep(0.01)\n    return 'done'\n";
    let launch = crate::support::outrigger().script(script);
    super::write(launch.directory(), "server", &authority.server());
    let flag = launch.directory().join("go");
    let arguments =
        ["--tls-certificate", "server.pem", "--tls-key", "server.key", "--script-sandbox-off", "all"];
    let mut replica = launch.args(arguments).args(["--tls-handshake-timeout", "1h"]).start();
    let mut calls = Vec::new();
    for protocols in [&["h2"][..], &["http/1.1"]] {
        let caller = Caller { protocols, ..Caller::trusting(&authority) }.client();
        let request = caller.post(format!("{}/score", over_tls(&replica.score))).bearer_auth(KEY);
        calls.push(tokio::spawn(request.body(flag.to_str().unwrap().to_owned()).send()));
    }
    crate::support::until_busy(&replica, 1, 1).await;
    let mut waiting = TcpStream::connect(bare(&replica.score)).unwrap();
    // One that idles, its handshake being over.
    let idle = Caller { protocols: &["http/1.1"], ..Caller::trusting(&authority) }.client();
    let probe = idle.get(format!("{}/", over_tls(&replica.score))).send().await.unwrap();
    assert_eq!(probe.text().await.unwrap(), "Healthy");
    replica.signal("TERM");
    replica.wait_for_text("draining");
    assert!(rest(&mut waiting).is_empty());
    std::fs::write(&flag, "").unwrap();
    for call in calls {
        let answer = call.await.unwrap().unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.text().await.unwrap(), "\"done\"");
    }
    let ended = replica.wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.text());
}

#[tokio::test]
async fn what_lies_still_over_tls_has_the_same_limits() {
    let authority = Authority::new("root");
    let script = "def init():\n    pass\ndef run(data):\n    return 'x' * 40_000_000\n";
    let launch = crate::support::outrigger().script(script);
    super::write(launch.directory(), "server", &authority.server());
    let arguments = ["--tls-certificate", "server.pem", "--tls-key", "server.key"];
    let limits = ["--limits-write-timeout", "1s", "--limits-idle", "2s", "--limits-header-timeout", "2s"];
    let replica = launch.args(arguments).args(limits).start();
    let open = || {
        let config = Arc::new(Caller { protocols: &["http/1.1"], ..Caller::trusting(&authority) }.config());
        let connection = rustls::ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
        let socket = TcpStream::connect(bare(&replica.score)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        rustls::StreamOwned::new(connection, socket)
    };
    // Nothing is asked; a head begins and does not end; after an answer nothing more is asked.
    for begin in ["", "POST /score HT", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut stream = open();
        stream.write_all(begin.as_bytes()).unwrap();
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        let mut said = Vec::new();
        let ended = stream.read_to_end(&mut said);
        let text = String::from_utf8_lossy(&said);
        assert_eq!(text.contains("200 OK"), begin.starts_with("GET"), "{begin}: {text} {ended:?}");
    }
    // An answer that nobody takes: its memory is free again.
    let mut stream = open();
    let request = format!(
        "POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 1\r\n\r\nx"
    );
    stream.write_all(request.as_bytes()).unwrap();
    stream.flush().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while metric(&replica, "outrigger_answer_bytes").await == Some(0.0) {
        assert!(Instant::now() < deadline, "the answer never comes: {}", replica.log_text());
    }
    while metric(&replica, "outrigger_answer_bytes").await != Some(0.0) {
        assert!(Instant::now() < deadline, "it stays: {}", replica.log_text());
    }
}
