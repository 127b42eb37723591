//! Answers that their clients do not take. What a socket does not take has a time limit of its own; but a client that speaks HTTP/2
//! can read all that comes, and yet open no window for an answer that it has asked for. So each piece of an answer that is the client's
//! to take notes when any of it was last taken, and a connection learns when one lies still for too long.
//!
//! Time is counted in parts of the limit: a piece is counted under the part in which it last moved, and only a change of
//! part costs anything.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use tokio::time::{Interval, MissedTickBehavior};

use super::idle::Open;
use crate::telemetry::Ending;

/// Parts of the limit. What is to be found after it is found at most one part later.
pub(super) const PARTS: usize = 4;
/// The present part, and those before it until a piece has lain still for the limit.
const COUNTED: usize = PARTS + 2;

/// Ticks at once, and then with each part of the limit.
pub(super) fn parts(limit: Duration) -> Interval {
    let mut parts = tokio::time::interval((limit / PARTS as u32).max(Duration::from_millis(1)));
    parts.set_missed_tick_behavior(MissedTickBehavior::Delay);
    parts
}

/// The pieces of a connection's answers.
pub(super) struct Watch {
    part: AtomicUsize,
    /// Pieces by the part in which they last moved, modulo the length.
    pieces: [AtomicUsize; COUNTED],
    limit: Duration,
}

impl Watch {
    pub(super) fn new(limit: Duration) -> Arc<Self> {
        Arc::new(Self { part: AtomicUsize::new(0), pieces: Default::default(), limit })
    }

    /// Comes back once a piece has lain still for the limit. To be called once.
    pub(super) async fn stalled(&self) {
        let mut parts = parts(self.limit);
        // The first is at once.
        parts.tick().await;
        loop {
            parts.tick().await;
            let part = self.part.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            // Of the part after this one, which is the oldest that is still counted.
            if self.count(part.wrapping_add(1)).load(Ordering::Relaxed) > 0 {
                return;
            }
        }
    }

    fn count(&self, part: usize) -> &AtomicUsize {
        &self.pieces[part % COUNTED]
    }

    /// Whether nothing is the client's to take.
    pub(super) fn all_are_taken(&self) -> bool {
        self.pieces.iter().all(|count| count.load(Ordering::Relaxed) == 0)
    }

    /// Has the client's answer watched. The request is open for as long as there may be more of it; `ending` is let go of with the last piece.
    pub(super) fn body(self: &Arc<Self>, body: Body, open: Open, ending: Option<Ending>) -> Watched {
        Watched { body, piece: Some(Piece::new(self)), watch: Arc::clone(self), ending, _open: open }
    }
}

/// Something that is the client's to take.
struct Piece {
    watch: Arc<Watch>,
    /// The part in which it last moved.
    moved: usize,
}

impl Piece {
    fn new(watch: &Arc<Watch>) -> Self {
        let moved = watch.part.load(Ordering::Relaxed);
        watch.count(moved).fetch_add(1, Ordering::Relaxed);
        Self { watch: Arc::clone(watch), moved }
    }

    fn moves(&mut self) {
        let now = self.watch.part.load(Ordering::Relaxed);
        if now != self.moved {
            self.watch.count(now).fetch_add(1, Ordering::Relaxed);
            self.watch.count(self.moved).fetch_sub(1, Ordering::Relaxed);
            self.moved = now;
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.watch.count(self.moved).fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer.
pub(super) struct Watched {
    body: Body,
    watch: Arc<Watch>,
    /// None while it is the turn of whoever makes the answer.
    piece: Option<Piece>,
    ending: Option<Ending>,
    _open: Open,
}

impl http_body::Body for Watched {
    type Data = Data;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Data>, axum::Error>>> {
        // A poll is the client's asking for more.
        let mut piece = self.piece.take();
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            let frame = frame?;
            let mut piece = piece.take().unwrap_or_else(|| Piece::new(&self.watch));
            piece.moves();
            if !self.body.is_end_stream() {
                self.piece = Some(Piece::new(&self.watch));
            }
            let ending = self.ending.clone();
            Ok(frame.map_data(|bytes| Data { bytes, piece, _ending: ending }))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes on their way to the client.
pub(super) struct Data {
    bytes: Bytes,
    piece: Piece,
    _ending: Option<Ending>,
}

impl Buf for Data {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.piece.moves();
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(4);

    fn watched(watch: &Arc<Watch>, body: Body) -> Watched {
        watch.body(body, Arc::<super::super::idle::Requests>::default().begin(), None)
    }

    async fn within(watch: &Watch, seconds: u64) -> bool {
        tokio::time::timeout(Duration::from_secs(seconds), watch.stalled()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_not_asked_for_is_found() {
        let watch = Watch::new(LIMIT);
        let body = watched(&watch, Body::from("x"));
        let begun = tokio::time::Instant::now();
        watch.stalled().await;
        assert!((LIMIT..=LIMIT * 5 / 4).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        drop(body);
        assert!(!within(&Watch::new(LIMIT), 3600).await, "an idle connection is not stalled");
    }

    #[tokio::test(start_paused = true)]
    async fn what_lies_in_a_buffer_is_found_and_what_moves_is_not() {
        let watch = Watch::new(LIMIT);
        let mut data =
            watched(&watch, Body::from("xxxx")).frame().await.unwrap().unwrap().into_data().ok().unwrap();
        let begun = tokio::time::Instant::now();
        let stalled = watch.stalled();
        tokio::pin!(stalled);
        for _ in 0..4 {
            tokio::select! {
                () = &mut stalled => panic!("it moves"),
                () = tokio::time::sleep(Duration::from_secs(3)) => data.advance(1),
            }
        }
        stalled.await;
        assert!(begun.elapsed() >= LIMIT + Duration::from_secs(12));
        drop(data);
        assert!(watch.all_are_taken());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_the_clients_to_take_only_once_there_is_something() {
        let (send, receive) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
        let chunks = chunks(receive);
        let watch = Watch::new(LIMIT);
        let mut body = watched(&watch, Body::new(chunks));
        let waits = tokio::time::timeout(Duration::ZERO, body.frame()).await;
        assert!(waits.is_err(), "its maker has nothing yet");
        assert!(!within(&watch, 3600).await);
        send.send(Bytes::from_static(b"x")).unwrap();
        drop(body.frame().await);
        assert!(within(&watch, 3600).await, "more was not asked for");
        drop(send);
        assert!(body.frame().await.is_none());
        assert!(!within(&watch, 3600).await);
    }

    /// A body that gives out what a channel brings.
    fn chunks(
        mut receive: tokio::sync::mpsc::UnboundedReceiver<Bytes>,
    ) -> impl http_body::Body<Data = Bytes, Error = std::convert::Infallible> + Send {
        struct Chunks<F>(F);
        impl<F: FnMut(&mut Context<'_>) -> Poll<Option<Bytes>> + Unpin> http_body::Body for Chunks<F> {
            type Data = Bytes;
            type Error = std::convert::Infallible;
            fn poll_frame(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
                (self.get_mut().0)(context).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
            }
        }
        Chunks(move |context: &mut Context<'_>| receive.poll_recv(context))
    }
}
