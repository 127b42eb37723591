//! Streams of calls over gRPC: how many are worked on at once, what is held for a client that reads nothing, what a caller may
//! have there, and how they end.

use std::time::Duration;

use bytes::Bytes;
use outrigger_testkit::{Launch, ReplicaProcess};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::requests::{message, models, models_still_serve};
use super::{held, resident};
use crate::devices::until;
use crate::grpc::{Grpc, Input, STREAM, StreamReply, call, framed, padded};
use crate::residency::{go, lazily};
use crate::support::{busy, until_busy};

/// Bytes of an answer.
const ANSWER: usize = 256 << 10;
/// More than a client takes that reads nothing.
const WINDOW: u32 = 16 << 10;

/// A call whose answer is as long.
fn large(id: usize) -> Vec<u8> {
    framed(&call("b", &id.to_string(), "UINT8", &[1, ANSWER as i64], vec![7; ANSWER]).encode_to_vec())
}

/// A replica whose model `a` adds, and waits with its first calls until it is told to [`go`].
fn waiting(rest: &str) -> Launch {
    lazily(100, "'load=held:a.txt'", &[("a", "add 3\n")], rest)
}

/// A call of it.
fn sum(id: usize) -> Vec<u8> {
    let rows = ANSWER / 12;
    let mut call = call("a", &id.to_string(), "FP32", &[rows as i64, 3], vec![0; rows * 12]);
    let y = Input { name: "y".into(), ..call.inputs[0].clone() };
    call.inputs.push(y);
    call.raw.push(vec![0; rows * 12]);
    framed(&call.encode_to_vec())
}

/// Has a client send calls of it, one after the other.
fn send_sums(sender: mpsc::Sender<Bytes>, calls: std::ops::Range<usize>) -> JoinHandle<()> {
    tokio::spawn(async move {
        for id in calls {
            sender.send(sum(id).into()).await.unwrap();
        }
    })
}

pub(super) async fn calls() {
    const CALLS: usize = 64;
    let replica = waiting("").args(["--score-stream-calls", "3"]).start();
    let before = resident(&replica);
    let mut grpc = Grpc::with_window(&replica, WINDOW).await;
    let (sender, mut answer) = grpc.open(STREAM, &[]).await;
    let sending = send_sums(sender, 0..CALLS);
    until_busy(&replica, 0, 3).await;
    let moment = || tokio::time::sleep(Duration::from_millis(10));
    for _ in 0..20 {
        moment().await;
        assert_eq!(busy(&replica).await["arrived"], 3, "more are not read");
    }
    go(&replica, "a");
    // They are answered, and nobody takes the answers.
    until("an answer", async || held(&replica).await > 0).await;
    for _ in 0..20 {
        moment().await;
        let held = held(&replica).await;
        // Beside the three, the one that is being sent.
        assert!(held < 5 * ANSWER, "{held} bytes of answers are held");
    }
    assert!(!sending.is_finished());
    let grown = resident(&replica).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
    for id in 0..CALLS {
        let said = StreamReply::of(&answer.next().await.unwrap());
        assert_eq!(said, (id.to_string(), String::new()));
    }
    sending.await.unwrap();
    assert_eq!(answer.told().await.outcome(), (0, ""));
    assert!(!replica.log_text().contains("panicked"));
}

pub(super) async fn untaken() {
    let replica = models().args(["--limits-write-timeout", "500ms"]).start();
    let mut grpc = Grpc::with_window(&replica, WINDOW).await;
    let (sender, answer) = grpc.open(STREAM, &[]).await;
    let sending = tokio::spawn(async move {
        for id in 0..64 {
            if sender.send(large(id).into()).await.is_err() {
                return;
            }
        }
    });
    until("answers", async || busy(&replica).await["answered"] != 0).await;
    until("the end of it", async || held(&replica).await == 0).await;
    assert_eq!(answer.told().await.status, -1, "it is broken off");
    sending.await.unwrap();
    models_still_serve(&replica).await;
}

pub(super) async fn drained() {
    let replica = models().args(["--shutdown-drain", "60s"]).start();
    let mut grpc = Grpc::connect(&replica).await;
    let (sender, mut answer) = grpc.open(STREAM, &[]).await;
    sender.send(framed(&message()).into()).await.unwrap();
    assert_eq!(StreamReply::of(&answer.next().await.unwrap()).1, "");
    // One stream whose next message never comes, and one in the middle of a message.
    let (half, cut) = grpc.open(STREAM, &[]).await;
    half.send(large(0)[..1000].to_vec().into()).await.unwrap();
    until("the half", async || bodies(&replica).await > 0).await;
    replica.signal("TERM");
    for answer in [answer, cut] {
        assert_eq!(answer.told().await.outcome(), (14, "draining"));
    }
    let ended = replica.wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.text());
    drop((sender, half));

    // One whose client takes nothing holds the end up for no longer than that.
    let replica = models().args(["--shutdown-drain", "500ms"]).start();
    let mut grpc = Grpc::with_window(&replica, WINDOW).await;
    let (sender, answer) = grpc.open(STREAM, &[]).await;
    sender.send(large(0).into()).await.unwrap();
    until("an answer", async || held(&replica).await > 0).await;
    replica.signal("TERM");
    let ended = replica.wait();
    assert_eq!(ended.status.code(), Some(4), "{}", ended.text());
    assert!(ended.text().contains("shutdown.drain"), "{}", ended.text());
    assert_eq!(answer.told().await.status, -1, "it is broken off");
}

/// Bytes of bodies that are in the house.
async fn bodies(replica: &ReplicaProcess) -> usize {
    super::metric(replica, "outrigger_body_bytes ").await
}

/// The key of the caller `one`.
const ONE: &str = "the-key-of-a-caller-0123456789";

pub(super) async fn rate() {
    let rules = format!("[callers.one]\nkey = '{ONE}'\nrate = 0.001\nburst = 2\n");
    let replica = models().file("o.toml", rules).args(["--config", "o.toml"]).start();
    let mut grpc = Grpc::connect(&replica).await;
    let (sender, mut answer) = grpc.open(STREAM, &[("authorization", &format!("Bearer {ONE}"))]).await;
    let before = resident(&replica);
    for (id, code) in [(1, ""), (2, ""), (3, "rate_limited"), (4, "rate_limited")] {
        sender.send(large(id).into()).await.unwrap();
        // The stream goes on, and says each time which call is meant.
        assert_eq!(StreamReply::of(&answer.next().await.unwrap()), (id.to_string(), code.into()));
    }
    // What is refused is not kept, not even while it comes.
    let huge = framed(&padded(call("b", "5", "UINT8", &[1, 1], vec![0]).encode_to_vec(), 64 << 20));
    let (most, rest) = huge.split_at(huge.len() - 1);
    for piece in most.chunks(1 << 20) {
        sender.send(piece.to_vec().into()).await.unwrap();
    }
    assert_eq!(bodies(&replica).await, 0);
    sender.send(rest.to_vec().into()).await.unwrap();
    assert_eq!(StreamReply::of(&answer.next().await.unwrap()), ("5".into(), "rate_limited".into()));
    let grown = resident(&replica).saturating_sub(before);
    assert!(grown < 48 << 20, "{grown} bytes");
    // What is not read is not looked at either.
    sender.send(framed(b"nonsense").into()).await.unwrap();
    assert_eq!(StreamReply::of(&answer.next().await.unwrap()), (String::new(), "rate_limited".into()));
    drop(sender);
    assert_eq!(answer.told().await.outcome(), (0, ""));
    models_still_serve(&replica).await;
}

pub(super) async fn concurrency() {
    let replica = waiting(&format!("[callers.one]\nkey = '{ONE}'\nconcurrency = 2")).start();
    let mut grpc = Grpc::connect(&replica).await;
    let (sender, mut answer) = grpc.open(STREAM, &[("authorization", &format!("Bearer {ONE}"))]).await;
    send_sums(sender.clone(), 0..4).await.unwrap();
    // Two wait for the model, and so do others' answers for theirs.
    until_busy(&replica, 0, 2).await;
    let refused = "outrigger_caller_requests_total{answer=\"too_many_calls\",caller=\"one\"} ";
    until("the refusals", async || super::metric(&replica, refused).await == 2).await;
    go(&replica, "a");
    for (id, code) in [(0, ""), (1, ""), (2, "too_many_calls"), (3, "too_many_calls")] {
        assert_eq!(StreamReply::of(&answer.next().await.unwrap()), (id.to_string(), code.into()));
    }
    // The places are free again.
    until("a place", async || {
        sender.send(sum(5).into()).await.unwrap();
        StreamReply::of(&answer.next().await.unwrap()).1.is_empty()
    })
    .await;
    drop(sender);
    assert_eq!(answer.told().await.outcome(), (0, ""));
    assert!(!replica.log_text().contains("panicked"));
}
