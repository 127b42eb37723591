//! Connections, and what HTTP/2 has within one. What a server allows there is in its first frames, so these are read here.
//!
//! Source: RFC 9113, section 6, and RFC 7541, section 6.2.2, for header fields as they are.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::KEY;
use outrigger_testkit::upstream::App;

use super::requests::serving;
use super::{is_silent, long_and_short, resident};
use crate::support::{PATIENCE, outrigger, still_serves, until_busy};

const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;

const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;
/// The longest payload of a frame.
const PIECE: usize = 16 << 10;
/// What a connection's window is before anybody has said anything.
const FIRST_WINDOW: u32 = 65_535;

pub(super) fn connect(replica: &ReplicaProcess) -> TcpStream {
    let stream = TcpStream::connect(replica.score.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub(super) async fn connections() {
    let replica = serving().args(["--limits-connections", "2"]).start();
    let ask = |stream: &mut TcpStream| stream.write_all(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    let is_answered = |stream: &mut TcpStream| {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    };
    let mut kept: Vec<_> = (0..2).map(|_| connect(&replica)).collect();
    for stream in &mut kept {
        ask(stream);
        is_answered(stream);
    }
    // The next one is connected by the kernel, and nobody answers.
    let mut third = connect(&replica);
    ask(&mut third);
    third.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let silence = third.read(&mut [0]).unwrap_err();
    assert!(matches!(silence.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence}");
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    drop(kept);
    is_answered(&mut third);
    drop(third);
    still_serves(&replica).await;
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A request whose body is to come.
pub(super) fn begun(stream: u32) -> Vec<u8> {
    begun_by(KEY, stream)
}

fn begun_by(key: &str, stream: u32) -> Vec<u8> {
    let key = format!("Bearer {key}");
    let mut fields = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "t"),
        (":path", "/score"),
        ("authorization", &key),
    ] {
        fields.push(0);
        for text in [name, value] {
            fields.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).unwrap());
            fields.extend_from_slice(text.as_bytes());
        }
    }
    frame(HEADERS, END_HEADERS, stream, &fields)
}

/// One that is all there.
pub(super) fn asked(stream: u32) -> Vec<u8> {
    [begun(stream), frame(DATA, END_STREAM, stream, b"1")].concat()
}

/// A frame: its kind, flags, stream and payload.
pub(super) type Framed = (u8, u8, u32, Vec<u8>);

/// The next one; nothing once the connection is closed.
pub(super) fn maybe_next(stream: &mut TcpStream) -> Option<Framed> {
    let still_open =
        |error: &std::io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    let mut read = |bytes: &mut [u8]| match stream.read_exact(bytes) {
        Err(error) if still_open(&error) => panic!("the connection stays open"),
        read => read.ok(),
    };
    let mut head = [0; 9];
    read(&mut head)?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    read(&mut payload)?;
    Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

fn next(stream: &mut TcpStream) -> Framed {
    maybe_next(stream).expect("a connection")
}

/// A connection, and the frames with which the server begins.
pub(super) fn greeted(replica: &ReplicaProcess) -> (TcpStream, Vec<(u16, u32)>, u32) {
    let mut stream = connect(replica);
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    let (mut settings, mut window) = (Vec::new(), None);
    while settings.is_empty() || window.is_none() {
        match next(&mut stream) {
            (SETTINGS, 0, 0, payload) => {
                // Before that they are not held to.
                stream.write_all(&frame(SETTINGS, ACK, 0, &[])).unwrap();
                let pairs = payload.chunks_exact(6).map(|pair| {
                    let number = u16::from_be_bytes([pair[0], pair[1]]);
                    (number, u32::from_be_bytes([pair[2], pair[3], pair[4], pair[5]]))
                });
                settings.extend(pairs);
            }
            (WINDOW_UPDATE, _, 0, payload) => {
                window = Some(u32::from_be_bytes(payload.try_into().unwrap()));
            }
            _ => {}
        }
    }
    (stream, settings, window.unwrap())
}

fn setting(settings: &[(u16, u32)], wanted: u16) -> Option<u32> {
    settings.iter().find(|(number, _)| *number == wanted).map(|(_, value)| *value)
}

pub(super) async fn streams() {
    let replica = serving().args(["--limits-streams", "2"]).start();
    let (mut stream, settings, _) = greeted(&replica);
    assert_eq!(setting(&settings, MAX_CONCURRENT_STREAMS), Some(2));
    // Who does not keep to it is refused what is beyond.
    for number in [1, 3, 5] {
        stream.write_all(&begun(number)).unwrap();
    }
    let refused = loop {
        if let (RST_STREAM, _, number, payload) = next(&mut stream) {
            break (number, u32::from_be_bytes(payload.try_into().unwrap()));
        }
    };
    assert_eq!(refused, (5, REFUSED_STREAM));
    still_serves(&replica).await;
}

pub(super) async fn stream_window() {
    let launch = serving().args(["--limits-stream-window", "96KiB"]);
    let replica = launch.start();
    let (_stream, settings, _) = greeted(&replica);
    assert_eq!(setting(&settings, INITIAL_WINDOW_SIZE), Some(96 << 10));
    still_serves(&replica).await;
}

pub(super) async fn connection_window() {
    let flags = ["--limits-connection-window", "1MiB", "--limits-streams", "4"];
    let replica = serving().args(flags).start();
    let (_stream, _, window) = greeted(&replica);
    assert_eq!(window + FIRST_WINDOW, 1 << 20);
    still_serves(&replica).await;

    // What is refused is not kept: all that a client without a key may be ahead, on many connections at once, is nowhere once it has come.
    let replica = serving().start();
    let before = resident(&replica);
    let connections: Vec<_> = (0..2)
        .map(|_| {
            let (mut stream, settings, window) = greeted(&replica);
            let each = setting(&settings, INITIAL_WINDOW_SIZE).unwrap() as usize;
            let all = (window + FIRST_WINDOW) as usize;
            for number in (1..).step_by(2).take(all / each) {
                stream.write_all(&begun_by("somebody-else-s", number)).unwrap();
                for _ in 0..each / PIECE {
                    stream.write_all(&frame(DATA, 0, number, &[b'x'; PIECE])).unwrap();
                }
            }
            assert_eq!(is_there(&mut stream), Ok(()));
            stream
        })
        .collect();
    let grown = resident(&replica).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
    drop(connections);
    still_serves(&replica).await;
}

/// Requests that are cancelled as soon as they have begun, in one piece, and the number of the next one.
fn cancelled(stream: &mut TcpStream, first: u32, count: u32) -> u32 {
    let mut all = Vec::new();
    for number in (first..).step_by(2).take(count as usize) {
        all.extend(begun(number));
        all.extend(frame(RST_STREAM, 0, number, &[0, 0, 0, 8]));
    }
    stream.write_all(&all).unwrap();
    first + 2 * count
}

/// Asks whether it is there, and waits until it says so.
///
/// # Errors
/// The reason, if it parts instead.
fn is_there(stream: &mut TcpStream) -> Result<(), u32> {
    stream.write_all(&frame(PING, 0, 0, b"are you?")).unwrap();
    loop {
        match next(stream) {
            (PING, ACK, 0, payload) if payload == b"are you?" => return Ok(()),
            (GOAWAY, _, _, payload) => return Err(u32::from_be_bytes(payload[4..8].try_into().unwrap())),
            _ => {}
        }
    }
}

/// Sends a request and waits for the answer to it.
fn is_answered(stream: &mut TcpStream, number: u32) {
    stream.write_all(&asked(number)).unwrap();
    loop {
        match next(stream) {
            (HEADERS, _, answered, fields) if answered == number => {
                // `:status: 200`, by its place in the table of RFC 7541, appendix A.
                return assert_eq!(fields[0], 0x88);
            }
            (GOAWAY, ..) => panic!("it is closed"),
            _ => {}
        }
    }
}

pub(super) async fn resets() {
    let replica = serving().start();
    let (mut other, ..) = greeted(&replica);
    // So many are taken as they are, time and again: it is not their sum.
    let (mut stream, ..) = greeted(&replica);
    let mut number = 1;
    for _ in 0..10 {
        number = cancelled(&mut stream, number, 20);
        // What is answered was taken after them.
        is_answered(&mut stream, number);
        number += 2;
    }
    // Of one more at a time some may have been taken between two pieces of it, but not always.
    let reason = (0..50).find_map(|_| {
        number = cancelled(&mut stream, number, 21);
        is_there(&mut stream).err()
    });
    assert_eq!(reason, Some(ENHANCE_YOUR_CALM));
    assert_eq!(maybe_next(&mut stream), None, "and it is closed");
    is_answered(&mut other, 1);
    still_serves(&replica).await;
}

pub(super) async fn empty_frames() {
    let replica = serving().start();
    let (mut stream, ..) = greeted(&replica);
    stream.write_all(&begun(1)).unwrap();
    for _ in 0..100 {
        stream.write_all(&frame(DATA, 0, 1, &[])).unwrap();
    }
    assert_eq!(is_there(&mut stream), Ok(()));
    stream.write_all(&frame(DATA, 0, 1, &[])).unwrap();
    assert_eq!(is_there(&mut stream), Err(ENHANCE_YOUR_CALM));
    still_serves(&replica).await;
}

/// Bodies in frames of a byte each, which a call has sent that waits for a slot.
pub(super) async fn crumbs() {
    let app = App::start();
    let launch = outrigger().args(["--upstream-url", &app.url(), "--upstream-stream-threshold", "0B"]);
    let windows = ["--limits-streams", "1", "--limits-stream-window", "128KiB"];
    let replica = launch.args(windows).start();
    let crumb = || frame(DATA, 0, 1, b"x");
    let [(mut first, ..), (mut waiting, ..)] = [greeted(&replica), greeted(&replica)];
    for (stream, queued) in [(&mut first, 0), (&mut waiting, 1)] {
        stream.write_all(&[begun(1), crumb()].concat()).unwrap();
        until_busy(&replica, 1, queued).await;
    }
    // Each lacks 255 bytes, and that may be half of 128 KiB.
    let most = (64 << 10) / 255;
    waiting.write_all(&crumb().repeat(most)).unwrap();
    assert_eq!(is_there(&mut waiting), Ok(()));
    waiting.write_all(&crumb()).unwrap();
    assert_eq!(is_there(&mut waiting), Err(ENHANCE_YOUR_CALM));
    assert_eq!(is_there(&mut first), Ok(()), "others go on");
}

pub(super) async fn silence() {
    let [long, short] = long_and_short(serving, "--limits-silence");
    let [mut in_long, mut in_short] = [&long, &short].map(|replica| greeted(replica).0);
    let mut is_asked = false;
    while let Some((kind, flags, _, _)) = maybe_next(&mut in_short) {
        is_asked |= (kind, flags) == (PING, 0);
    }
    assert!(is_asked, "before it is closed");
    while !is_silent(&mut in_long) {
        let (kind, ..) = maybe_next(&mut in_long).expect("it stays open");
        assert_ne!(kind, PING);
    }
    // One that answers stays open, for as long as it likes: not so long that it is slow.
    let (mut stream, ..) = greeted(&short);
    for _ in 0..3 {
        let payload = loop {
            match next(&mut stream) {
                (PING, 0, _, payload) => break payload,
                (GOAWAY, ..) => panic!("it is closed"),
                _ => {}
            }
        };
        stream.write_all(&frame(PING, ACK, 0, &payload)).unwrap();
    }
    still_serves(&short).await;
}
