//! Answers that are produced piece by piece, through real sockets.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::KEY;
use reqwest::Client;

use crate::proof::{memory, say, scale};
use crate::support::{client, header, outcome, outrigger, score};

fn two() -> Client {
    Client::builder().no_proxy().http2_prior_knowledge().build().unwrap()
}

/// A request as `curl` sends it; the stream with the answer's head already read, and that head.
fn curl(replica: &ReplicaProcess, body: &str, accept: &str) -> (BufReader<TcpStream>, String) {
    let mut stream = TcpStream::connect(replica.score.trim_start_matches("http://")).unwrap();
    let head = format!(
        "POST /score HTTP/1.1\r\nHost: t\r\nUser-Agent: curl/8\r\nAccept: {accept}\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut head).unwrap() > 0, "{head}");
    }
    (stream, head.to_lowercase())
}

/// The next chunk of a chunked body.
fn chunk(stream: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut size = String::new();
    stream.read_line(&mut size).ok().filter(|read| *read > 0)?;
    let mut bytes = vec![0; usize::from_str_radix(size.trim(), 16).ok()? + 2];
    stream.read_exact(&mut bytes).ok()?;
    bytes.truncate(bytes.len() - 2);
    Some(bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_come_when_they_are_produced() {
    // Each piece is made only when the file for it is there.
    let script = r#"
import os, time
def init():
    pass
def run(data):
    for piece in range(3):
        while not os.path.exists(f"outputs/{piece}"):
            time.sleep(0.002)
        yield {"piece": piece}
"#;
    let replica = outrigger().script(script).file("app/outputs/x", "").start();
    let allow = |piece: usize| {
        std::fs::write(replica.directory().join(format!("app/outputs/{piece}")), "").unwrap();
    };
    let forbid = || {
        for piece in 0..3 {
            std::fs::remove_file(replica.directory().join(format!("app/outputs/{piece}"))).unwrap();
        }
    };
    allow(0);
    let (mut stream, head) = curl(&replica, "x", "*/*");
    assert!(head.contains("transfer-encoding: chunked") && !head.contains("content-length"), "{head}");
    assert_eq!(chunk(&mut stream).unwrap(), b"{\"piece\": 0}\n");
    allow(1);
    assert_eq!(chunk(&mut stream).unwrap(), b"{\"piece\": 1}\n");
    allow(2);
    assert_eq!(chunk(&mut stream).unwrap(), b"{\"piece\": 2}\n");
    assert_eq!(chunk(&mut stream).unwrap(), b"", "the end");
    forbid();

    allow(0);
    let (mut stream, head) = curl(&replica, "x", "text/event-stream");
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    assert_eq!(chunk(&mut stream).unwrap(), b"data: {\"piece\": 0}\n\n");
    allow(1);
    assert_eq!(chunk(&mut stream).unwrap(), b"data: {\"piece\": 1}\n\n");
    allow(2);
    assert_eq!(chunk(&mut stream).unwrap(), b"data: {\"piece\": 2}\n\n");
    assert_eq!(chunk(&mut stream).unwrap(), b"", "the end");
    forbid();

    allow(0);
    let request = two().post(format!("{}/score", replica.score)).bearer_auth(KEY).body("x");
    let mut answer = request.send().await.unwrap();
    assert_eq!(answer.version(), reqwest::Version::HTTP_2);
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "{\"piece\": 0}\n");
    allow(1);
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "{\"piece\": 1}\n");
    allow(2);
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "{\"piece\": 2}\n");
    assert_eq!(answer.bytes().await.unwrap(), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_up_its_own_generator_only() {
    let script = r#"
def init():
    pass
def run(data):
    if not data.startswith("stream"):
        return data
    return pieces(int(data.split()[1]))
def pieces(size):
    for piece in range(1 << 30):
        print(f"piece {piece}")
        yield bytes([piece % 251]) * size
"#;
    let made = |replica: &ReplicaProcess| {
        let log = replica.log_text();
        let last = log.rsplit_once("\"piece ").map_or("0", |(_, rest)| rest);
        last.split(|c: char| !c.is_ascii_digit())
            .next()
            .and_then(|digits| digits.parse().ok())
            .unwrap_or(0_u64)
    };
    // Below and above `script.region_threshold`.
    for size in [20_000, 300_000] {
        let args = ["--script-workers", "2", "--script-gap-timeout", "200ms"];
        let replica = outrigger().script(script).args(args).start();
        let before = memory(replica.pid(), "VmRSS");
        let (mut stream, _) = curl(&replica, &format!("stream {size}"), "*/*");
        // The other worker answers all the while; longer than the gap, which does not count against who waits for the client.
        let begun = std::time::Instant::now();
        let mut calls = 0;
        while calls < scale(300, 5_000) || begun.elapsed() < std::time::Duration::from_millis(600) {
            assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
            calls += 1;
        }
        let ahead = made(&replica) * size as u64;
        let grown = memory(replica.pid(), "VmRSS").saturating_sub(before) / 1024;
        say(format!(
            "pieces of {size}: the generator is {ahead} bytes ahead of a client that does not read, the replica has grown by {grown} MiB; {calls} other calls answered"
        ));
        // The window and what the kernel keeps for the connection.
        assert!(ahead < 32 << 20, "{ahead}");
        assert!(grown < 64, "{grown}");
        let (mut read, mut piece) = (0_u64, 0_usize);
        let mut rest = 0;
        while read < 48 << 20 {
            let bytes = chunk(&mut stream).expect("more");
            read += bytes.len() as u64;
            for byte in bytes {
                assert_eq!(byte, (piece % 251) as u8, "in order and whole");
                rest += 1;
                if rest == size {
                    (rest, piece) = (0, piece + 1);
                }
            }
        }
        let grown = memory(replica.pid(), "VmRSS").saturating_sub(before) / 1024;
        say(format!("pieces of {size}: after 48 MiB the replica has grown by {grown} MiB"));
        assert!(grown < 64, "{grown}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_before_the_first_chunk_is_an_answer_and_after_it_a_break() {
    let script = r#"
import os, time
def init():
    pass
def run(data):
    if data == "before":
        raise ValueError("too early")
    yield b"first"
    if data == "raise":
        raise ValueError("too late")
    if data == "die":
        os._exit(3)
    if data == "hang":
        time.sleep(3600)
    if data == "c loop":
        sum(range(10 ** 18))
    yield b"last"
"#;
    let mut replica = outrigger().script(script).args(["--script-gap-timeout", "300ms"]).start();
    for client in [client(), two()] {
        let call = async |body: &'static str| {
            let request = client.post(format!("{}/score", replica.score)).bearer_auth(KEY).body(body);
            request.send().await.unwrap()
        };
        assert_eq!(call("good").await.bytes().await.unwrap(), "firstlast");
        let early = call("before").await;
        assert_eq!(
            (early.status().as_u16(), header(&early, "outrigger-code").as_str()),
            (500, "script_error")
        );
        for body in ["raise", "die", "hang", "c loop"] {
            let mut answer = call(body).await;
            assert_eq!(answer.status(), 200, "{body}");
            assert_eq!(answer.chunk().await.unwrap().unwrap(), "first", "{body}");
            assert!(answer.chunk().await.is_err(), "{body}: the body does not look complete");
            assert_eq!(call("good").await.bytes().await.unwrap(), "firstlast");
        }
    }
    for part in ["ValueError: too late", "exit code 3", "script.gap_timeout", "line 14 in run"] {
        replica.wait_for_text(part);
    }
    let busy = client().get(format!("{}/busy", replica.observe)).send().await.unwrap();
    let busy = outcome(busy).await.2;
    assert_eq!(
        (&busy["executing"], &busy["failed"], &busy["cancelled"]),
        (&0.into(), &10.into(), &0.into()),
        "{busy}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_for_too_long_loses_the_worker() {
    let script = r#"
def init():
    pass
def run(data):
    if data != "stream":
        return data
    return pieces()
def pieces():
    try:
        while True:
            yield b"x" * 100_000
    finally:
        print("closed")
"#;
    let args = ["--script-gap-timeout", "100ms", "--script-stall-timeout", "300ms"];
    let mut replica = outrigger().script(script).args(args).start();
    let (mut stream, _) = curl(&replica, "stream", "*/*");
    // The only worker: this one waits until it is free.
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
    replica.wait_for_text("\"closed\"");
    replica.wait_for_text("a client does not read its stream");
    // What was on the way comes, and then the body breaks off instead of ending.
    while chunk(&mut stream).is_some() {}
}
