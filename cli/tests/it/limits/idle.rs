//! Connections on which nothing is asked, or a request only begun: they end, no request is lost by it, and none that is in the house is cut.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use outrigger_testkit::ReplicaProcess;

use super::connections::{
    ACK, CONTINUATION, Framed, GOAWAY, HEADERS, PING, asked, connect, frame, greeted, maybe_next,
};
use super::requests::{models, models_still_serve};
use super::waiting::WAITS;
use super::{is_silent, long_and_short};
use crate::support::{PATIENCE, until_busy};

/// What the server asks after the first GOAWAY, to know when the client has heard of it.
/// Source: h2, `Payload::SHUTDOWN`; any that is none of those before would do.
const SHUTDOWN: [u8; 8] = [0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];
/// The last stream of which a first GOAWAY speaks: any.
const ANY: u32 = (1 << 31) - 1;

/// What a client gets that answers these pings, until the connection is closed.
fn until_closed(stream: &mut TcpStream, answers: impl Fn(&[u8]) -> bool) -> Vec<Framed> {
    let begun = Instant::now();
    let mut seen = Vec::new();
    while let Some(framed) = maybe_next(stream) {
        assert!(begun.elapsed() < PATIENCE, "the connection stays open");
        if (framed.0, framed.1) == (PING, 0) && answers(&framed.3) {
            // It may be closed by now.
            let _ = stream.write_all(&frame(PING, ACK, 0, &framed.3));
        }
        seen.push(framed);
    }
    seen
}

/// The GOAWAYs among them: last stream, and reason.
fn partings(frames: &[Framed]) -> Vec<(u32, u32)> {
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
    let partings = frames.iter().filter(|framed| framed.0 == GOAWAY);
    partings.map(|(_, _, _, payload)| (number(&payload[..4]), number(&payload[4..8]))).collect()
}

/// Where the answer to the only request begins, which is a good one, and whether a GOAWAY has come before it.
fn answered(frames: &[Framed]) -> bool {
    let place = frames.iter().position(|framed| framed.0 == HEADERS).expect("an answer");
    // `:status: 200`, by its place in the table of RFC 7541, appendix A.
    assert_eq!((frames[place].2, frames[place].3[0]), (1, 0x88));
    !partings(&frames[..place]).is_empty()
}

pub(super) async fn idle() {
    let launch = models().script(WAITS).file("app/outputs/.kept", "");
    let replica = launch.args(["--limits-idle", "2s"]).start();
    let (mut calling, ..) = greeted(&replica);
    calling.write_all(&asked(1)).unwrap();
    until_busy(&replica, 1, 0).await;

    // Two that say that they are there, one after the other, so that the call is there for longer than either.
    for _ in 0..2 {
        let (mut stream, ..) = greeted(&replica);
        let frames = until_closed(&mut stream, |_| true);
        assert_eq!(partings(&frames), [(ANY, 0), (0, 0)]);
    }
    std::fs::write(replica.directory().join("app/outputs/go"), "").unwrap();
    let frames = until_closed(&mut calling, |_| true);
    assert!(!answered(&frames), "it ends although there is a call");
    assert_eq!(partings(&frames), [(ANY, 0), (1, 0)]);

    // One that asks before it has heard of it.
    let (mut stream, ..) = greeted(&replica);
    while maybe_next(&mut stream).expect("a connection").0 != GOAWAY {}
    stream.write_all(&asked(1)).unwrap();
    let frames = until_closed(&mut stream, |_| true);
    answered(&frames);
    assert_eq!(partings(&frames), [(1, 0)]);
    assert!(!replica.log_text().contains("panicked"));

    // Over HTTP/1.1, whatever may be taken for a head.
    let times = ["--limits-idle", "2s", "--limits-header-timeout", "1h"];
    let replica = models().args(times).start();
    for connect in [connect, connect_to_admin] {
        let mut stream = connect(&replica);
        exchange(&mut stream);
        assert!(is_closed(&mut stream));
    }

    // One that says that it is there, and not that it has heard of it.
    let replica = models().args(["--limits-idle", "1s", "--limits-silence", "2s"]).start();
    let (mut stream, ..) = greeted(&replica);
    let frames = until_closed(&mut stream, |ping| ping != SHUTDOWN);
    assert_eq!(partings(&frames)[0], (ANY, 0));
    assert!(frames.iter().any(|framed| framed.3 == SHUTDOWN));
    models_still_serve(&replica).await;
}

/// The same for the admin listener's Unix socket, which is one as any other once it is there.
fn connect_to_admin(replica: &ReplicaProcess) -> TcpStream {
    let stream = TcpStream::from(OwnedFd::from(UnixStream::connect(replica.admin_socket()).unwrap()));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Asks for something over HTTP/1.1 on a connection that is kept.
fn exchange(stream: &mut TcpStream) {
    stream.write_all(b"GET /nothing HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 404"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
}

fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0))
}

pub(super) async fn heads() {
    let [long, short] = long_and_short(models, "--limits-header-timeout");
    for connect in [connect, connect_to_admin] {
        let mut kept = connect(&short);
        exchange(&mut kept);
        for (requests, begun) in
            [(0, ""), (0, "PRI * HT"), (0, "GET / HTTP/1.1\r\nHo"), (1, "GET / HTTP/1.1\r\nHo"), (2, "\r\n")]
        {
            let [mut in_long, mut in_short] = [&long, &short].map(|replica| {
                let mut stream = connect(replica);
                (0..requests).for_each(|_| exchange(&mut stream));
                stream.write_all(begun.as_bytes()).unwrap();
                stream
            });
            assert!(is_closed(&mut in_short), "{begun:?}");
            assert!(is_silent(&mut in_long), "{begun:?}");
        }
        // Where nothing is begun, nothing is late.
        assert!(is_silent(&mut kept));
        exchange(&mut kept);
    }
    models_still_serve(&short).await;
}

pub(super) async fn heads_of_http2() {
    let [long, short] = long_and_short(models, "--limits-silence");
    let begun = frame(HEADERS, 0, 1, &[]);
    // Whether it does nothing more, sends more of them whenever it is asked whether it is there, or says that it is.
    for answer in [None, Some(frame(CONTINUATION, 0, 1, &[])), Some(frame(PING, ACK, 0, &[0; 8]))] {
        let [mut in_long, mut in_short] = [&long, &short].map(|replica| {
            let (mut stream, ..) = greeted(replica);
            stream.write_all(&begun).unwrap();
            stream
        });
        let since = Instant::now();
        while let Some((kind, flags, ..)) = maybe_next(&mut in_short) {
            assert!(since.elapsed() < PATIENCE, "the connection stays open");
            if let (PING, 0, Some(answer)) = (kind, flags, &answer) {
                let _ = in_short.write_all(answer);
            }
        }
        while !is_silent(&mut in_long) {
            // What it was greeted with.
            maybe_next(&mut in_long).expect("it stays open");
        }
    }
    models_still_serve(&short).await;
}
