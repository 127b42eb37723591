//! Bodies that are passed on as they come, both ways.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use outrigger_store::Digest;
use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::KEY;
use outrigger_testkit::upstream::App;
use serde_json::json;
use tokio::task::JoinSet;

use super::{both, control, in_front_of, metric, pass, seen, until_left, until_seen};
use crate::devices::until;
use crate::support::{busy, header, outcome, score, until_busy};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_one_by_one_for_as_long_as_they_take() {
    let app = App::start();
    let replica = in_front_of(&app).start();
    for (version, client) in both() {
        let gate = version.replace('/', "");
        let url = format!("{}/app/events/{gate}", replica.score);
        let mut answer = client.get(url).bearer_auth(KEY).send().await.unwrap();
        assert!(header(&answer, "content-type").starts_with("text/event-stream"), "{version}");
        for number in 0..3 {
            assert_eq!(busy(&replica).await["executing"], 1, "{version}");
            control(&app, &format!("open/{gate}{number}")).await;
            let event = answer.chunk().await.unwrap().unwrap();
            assert_eq!(event, format!("data: {number}\n\n"), "{version}");
        }
        assert_eq!(answer.bytes().await.unwrap(), "");
        let busy = busy(&replica).await;
        assert_eq!(busy["executing"], 0, "the slot is free when the end is here: {busy}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_ends_a_stream_that_has_begun() {
    let app = App::start();
    let replica = in_front_of(&app).start();
    control(&app, "open/late0").await;
    for (version, client) in both() {
        let url = format!("{}/app/events/late", replica.score);
        // As long as it takes here until a stream has begun.
        let mut limit = 500;
        let mut answer = loop {
            let request = client.get(&url).bearer_auth(KEY).header("x-request-deadline-ms", limit);
            let mut answer = request.send().await.unwrap();
            if answer.status() == 200 && matches!(answer.chunk().await, Ok(Some(_))) {
                break answer;
            }
            limit *= 2;
            assert!(limit < 100_000, "{version}: {answer:?}");
        };
        assert!(answer.chunk().await.is_err(), "{version}: the next event never comes");
        until_busy(&replica, 0, 0).await;
        until_seen(&app, "an end", |seen| seen["running"] == 0).await;
    }
    let failures = "outrigger_upstream_failures_total{code=\"deadline_exceeded\"}";
    assert!(metric(&replica, failures).await >= Some(2.0));
}

/// A caller's place is free once it has the last byte, also where it knows beforehand which that is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_is_free_when_a_long_answer_is_there() {
    let app = App::start();
    let key = "the-key-of-one-0123456789";
    let callers = format!("[callers.one]\nkey = '{key}'\nconcurrency = 1\n");
    let launch = in_front_of(&app).file("o.toml", callers).args(["--config", "o.toml"]);
    let replica = launch.args(["--upstream-window", "8KiB", "--upstream-idle-timeout", "1h"]).start();
    for number in 0..60 {
        for (version, client) in both() {
            let length = 8193 + number * 4000;
            let request = client.get(format!("{}/app/length/{length}", replica.score)).bearer_auth(key);
            let answer = request.send().await.unwrap();
            let (status, code) = (answer.status().as_u16(), header(&answer, "outrigger-code"));
            let body = answer.bytes().await.unwrap();
            assert_eq!((status, code.as_str(), body.len()), (200, "", length), "{number} {version}");
        }
    }
    let busy = busy(&replica).await;
    assert_eq!((&busy["answered"], &busy["cancelled"]), (&json!(120), &json!(0)), "{busy}");
    assert_eq!(metric(&replica, "outrigger_upstream_connects_total").await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_body_of_get_s_is_passed_on_too() {
    let app = App::start();
    let replica = in_front_of(&app).args(["--upstream-stream-threshold", "64KiB"]).start();
    for (version, client) in both() {
        let (sender, body) = pieces();
        let mut request = client.get(format!("{}/app/hash", replica.score)).bearer_auth(KEY);
        if version == "HTTP/1.1" {
            request = request.header("transfer-encoding", "chunked");
        }
        let answer = tokio::spawn(request.body(body).send());
        for _ in 0..5 {
            sender.send(vec![7; 50_000].into()).await.unwrap();
        }
        drop(sender);
        let told = outcome(answer.await.unwrap().unwrap()).await.2;
        assert_eq!(
            (&told["length"], &told["framing"]),
            (&json!(250_000), &json!("chunked")),
            "{version}: {told}"
        );
    }
}

/// A body that gives out what a channel brings.
struct Pieces(tokio::sync::mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// A body without a length, and where its pieces go.
pub(super) fn pieces() -> (tokio::sync::mpsc::Sender<Bytes>, reqwest::Body) {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    (sender, reqwest::Body::wrap(Pieces(receiver)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_wait_do_not_keep_others_of_their_connection_from_sending() {
    // More than is taken before there is a slot.
    const PIECE: usize = 2 << 20;
    const WAIT: u64 = 32;
    let app = App::start();
    let replica = in_front_of(&app).args(["--upstream-slots", "1"]).start();
    let [_, (_, client)] = both();
    let url = format!("{}/app/hash", replica.score);
    let (sender, body) = pieces();
    let first = tokio::spawn(client.post(&url).bearer_auth(KEY).body(body).send());
    sender.send(vec![b'x'; PIECE].into()).await.unwrap();
    until_seen(&app, "the first piece", |seen| seen["taken"] == PIECE).await;
    let mut others = JoinSet::new();
    for _ in 0..WAIT {
        let request = client.post(&url).bearer_auth(KEY).body(vec![b'y'; PIECE]);
        others.spawn(async move { outcome(request.send().await.unwrap()).await });
    }
    until_busy(&replica, 1, WAIT).await;
    // Nothing of theirs is read before they have the slot.
    for _ in 1..8 {
        sender.send(vec![b'x'; PIECE].into()).await.unwrap();
    }
    drop(sender);
    let (status, _, told) = outcome(first.await.unwrap().unwrap()).await;
    assert_eq!((status, &told["length"]), (200, &json!(8 * PIECE)), "{told}");
    for (status, _, told) in others.join_all().await {
        assert_eq!((status, &told["length"]), (200, &json!(PIECE)), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_is_passed_on_while_it_comes() {
    let app = App::start();
    let replica = in_front_of(&app).args(["--limits-body", "64MiB", "--limits-bodies", "64MiB"]).start();
    let whole: Vec<u8> =
        (0..32u32 << 18).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let digest = Digest::of(&whole).to_string();
    for (version, client) in both() {
        let url = format!("{}/app/hash", replica.score);
        // Of known length.
        let answer = client.post(&url).bearer_auth(KEY).body(whole.clone()).send().await.unwrap();
        let told = outcome(answer).await.2;
        assert_eq!(
            (&told["sha256"], &told["length"]),
            (&json!(digest), &json!(whole.len())),
            "{version}: {told}"
        );
        assert_eq!(told["framing"], "length", "{version}");
        // Piece by piece: the upstream has the first before the last is sent.
        let (sender, body) = pieces();
        let answer = tokio::spawn(client.post(&url).bearer_auth(KEY).body(body).send());
        let (first, rest) = whole.split_at(4 << 20);
        for piece in first.chunks(1 << 20) {
            sender.send(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        until_seen(&app, "the first pieces", |seen| seen["taken"] == first.len()).await;
        assert!(!answer.is_finished(), "{version}");
        let held = metric(&replica, "outrigger_body_bytes").await.unwrap();
        assert!(held <= f64::from(2 << 20), "no more is held than was there before its slot: {held}");
        for piece in rest.chunks(1 << 20) {
            sender.send(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        drop(sender);
        let told = outcome(answer.await.unwrap().unwrap()).await.2;
        assert_eq!(
            (&told["sha256"], &told["length"]),
            (&json!(digest), &json!(whole.len())),
            "{version}: {told}"
        );
        assert_eq!(told["framing"], "chunked", "{version}");
    }
    assert_eq!(metric(&replica, "outrigger_body_bytes").await, Some(0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_too_large_is_refused_where_that_is_seen() {
    let app = App::start();
    let limits = ["--limits-body", "4MiB", "--upstream-stream-threshold", "1MiB"];
    let replica = in_front_of(&app).args(limits).start();
    // Of neither more is sent than is read: who is still sending may lose the answer.
    let mut announced = slowly(&replica, (4 << 20) + 1, 0);
    let mut answer = [0; 12];
    announced.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    assert_eq!(seen(&app).await["requests"], json!([]));
    let (sender, body) = pieces();
    let answer = tokio::spawn(pass(&replica, "/app/hash").body(body).send());
    for length in [1 << 20, 1 << 20, 1 << 20, 1 << 20, 1] {
        sender.send(vec![0; length].into()).await.unwrap();
    }
    let (status, code, _) = outcome(answer.await.unwrap().unwrap()).await;
    assert_eq!((status, code.as_str()), (413, "body_too_large"));
    let busy = until_busy(&replica, 0, 0).await;
    assert_eq!(busy["failed"], 1, "{busy}");
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
}

/// A call whose body is announced and not all sent.
fn slowly(replica: &ReplicaProcess, length: usize, sent: usize) -> TcpStream {
    let mut stream = TcpStream::connect(replica.score.trim_start_matches("http://")).unwrap();
    let head = format!(
        "POST /app/hash HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // It may have been refused by the end of it.
    let _ = stream.write_all(&vec![b'x'; sent]);
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_sender_holds_no_slot() {
    let app = App::start();
    let replica = in_front_of(&app).args(["--upstream-stream-threshold", "64KiB"]).start();
    let waiting = slowly(&replica, 200_000, 60_000);
    for _ in 0..5 {
        assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200, "the only slot is free");
    }
    let requests = seen(&app).await["requests"].clone();
    assert!(!requests.to_string().contains("hash"), "{requests}");
    drop(waiting);
    // One that goes away once enough of it has come for a slot.
    let gone = slowly(&replica, 2_000_000, 1_000_000);
    until_seen(&app, "the body", |seen| seen["requests"].to_string().contains("hash")).await;
    drop(gone);
    until_busy(&replica, 0, 0).await;
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_stops_does_not_hold_a_slot_for_long() {
    let app = App::start();
    let flags = ["--upstream-stream-threshold", "64KiB", "--upstream-pause-timeout", "300ms"];
    let replica = in_front_of(&app).args(flags).start();
    // A sender that is refused while it still sends may lose the answer: then once more.
    until("the answer", async || {
        let mut stopped = slowly(&replica, 2_000_000, 1_000_000);
        let mut answer = Vec::new();
        let _ = stopped.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
        answer.contains("body_timeout") && answer.contains("upstream.pause_timeout")
    })
    .await;
    until_busy(&replica, 0, 0).await;
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_may_come_before_the_body_has() {
    let app = App::start();
    let replica = in_front_of(&app).start();
    for (version, client) in both() {
        let (sender, body) = pieces();
        let url = format!("{}/app/early", replica.score);
        let answer = tokio::spawn(client.post(url).bearer_auth(KEY).body(body).send());
        for length in [1 << 20, 1] {
            sender.send(vec![0; length].into()).await.unwrap();
        }
        let (status, code, body) = outcome(answer.await.unwrap().unwrap()).await;
        assert_eq!((status, code.as_str(), &body["error"]), (413, "", &json!("not today")), "{version}");
        until_busy(&replica, 0, 0).await;
        drop(sender);
    }
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_does_not_take_is_not_produced() {
    let app = App::start();
    let flags = ["--upstream-stall-timeout", "500ms", "--upstream-window", "64KiB"];
    let replica = in_front_of(&app).args(flags).start();
    let length = 256 << 20;
    for (version, client) in both() {
        let url = format!("{}/app/bytes/{length}", replica.score);
        let mut answer = client.get(&url).bearer_auth(KEY).send().await.unwrap();
        // Nothing of it is read, and after a while that is enough.
        until_seen(&app, "an end", |seen| seen["running"] == 0).await;
        let produced = seen(&app).await["produced"].as_u64().unwrap();
        assert!(produced < length / 2, "{version}: {produced}");
        until_busy(&replica, 0, 0).await;
        let end = loop {
            match answer.chunk().await {
                Ok(Some(_)) => {}
                end => break end,
            }
        };
        assert!(end.is_err(), "{version}: it does not end as if it were complete");
    }
    drop(replica);
    // One that takes it gets all of it.
    let replica = in_front_of(&app).args(["--upstream-window", "64KiB"]).start();
    for (version, client) in both() {
        let url = format!("{}/app/bytes/50000000", replica.score);
        let mut answer = client.get(url).bearer_auth(KEY).send().await.unwrap();
        let mut taken = 0;
        while let Some(chunk) = answer.chunk().await.unwrap() {
            taken += chunk.len();
        }
        assert_eq!(taken, 50_000_000, "{version}");
    }
    assert_eq!(metric(&replica, "outrigger_answer_bytes").await, Some(0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_in_the_middle_ends_its_stream() {
    let app = App::start();
    let replica = in_front_of(&app).start();
    for (version, client) in both() {
        let url = format!("{}/app/bytes/{}", replica.score, 1u64 << 40);
        let mut answer = client.get(url).bearer_auth(KEY).send().await.unwrap();
        assert!(answer.chunk().await.unwrap().is_some());
        assert_eq!(busy(&replica).await["executing"], 1, "{version}");
        drop(answer);
        drop(client);
        until_seen(&app, "an end", |seen| seen["running"] == 0).await;
        until_left(&app, "bytes").await;
        let seen = until_busy(&replica, 0, 0).await;
        assert_eq!(seen["failed"], 0, "{version}: {seen}");
    }
    assert_eq!(busy(&replica).await["cancelled"], 2);
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
}
