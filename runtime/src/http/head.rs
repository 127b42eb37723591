//! The time in which a request's head comes, on whichever kind of socket: from the connection's first moment for the first one, and from the first
//! bytes of it that are not all for a further one over HTTP/1.1. A connection on which nothing is begun is [`super::idle`]'s, and so is one whose next head
//! has begun before the answer before it was over, and does not go on.
//!
//! Over HTTP/2 this is the time in which the preface comes. Behind it nothing can be said on a connection before a head that has begun is
//! over, the answer to a ping included: so one that does not end is found by `limits.silence`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::idle::Requests;
use super::stall::Watch;

/// What a client that speaks HTTP/2 begins with. Source: RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A socket that is not read from for longer than that.
pub(super) struct Heads<S> {
    stream: S,
    requests: Arc<Requests>,
    answers: Arc<Watch>,
    protocol: Protocol,
    /// Where the connection was when something was last read.
    heard: usize,
    limit: Duration,
    /// The end of the time for the head that begins with this turn.
    end: Option<(usize, Pin<Box<Sleep>>)>,
}

enum Protocol {
    /// So much of HTTP/2's preface has come.
    Unknown(usize),
    Http1,
    Http2,
}

impl Protocol {
    fn after(self, bytes: &[u8]) -> Self {
        match self {
            Self::Unknown(seen) => {
                let rest = PREFACE.get(seen..).unwrap_or_default();
                let length = rest.len().min(bytes.len());
                match rest.starts_with(bytes.get(..length).unwrap_or_default()) {
                    false => Self::Http1,
                    true if length == rest.len() => Self::Http2,
                    true => Self::Unknown(seen + length),
                }
            }
            known => known,
        }
    }
}

impl<S> Heads<S> {
    pub(super) fn new(stream: S, requests: Arc<Requests>, answers: Arc<Watch>, limit: Duration) -> Self {
        Self { stream, requests, answers, protocol: Protocol::Unknown(0), heard: 0, limit, end: None }
    }

    fn hear(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.heard = self.requests.turns();
            self.protocol = std::mem::replace(&mut self.protocol, Protocol::Http1).after(bytes);
        }
    }

    /// Whether a head is to come and has not in its time. To be asked when there is nothing to read.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        let turn = self.requests.turns();
        let is_due = match self.protocol {
            Protocol::Unknown(_) => true,
            // An answer that the client is taking is not cut off because it has begun with the next request.
            Protocol::Http1 => {
                !self.requests.are_open() && self.answers.all_are_taken() && self.heard == turn
            }
            Protocol::Http2 => false,
        };
        if !is_due {
            self.end = None;
            return false;
        }
        let (begun, end) = self.end.get_or_insert_with(|| (turn, Box::pin(tokio::time::sleep(self.limit))));
        if *begun != turn {
            (*begun, *end) = (turn, Box::pin(tokio::time::sleep(self.limit)));
        }
        end.as_mut().poll(context).is_ready()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heads<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Pending if self.is_late(context) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Ready(Ok(())) => {
                self.hear(buffer.filled().get(before..).unwrap_or_default());
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heads<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(4);
    const HOUR: Duration = Duration::from_secs(3600);

    fn connection() -> (DuplexStream, Heads<DuplexStream>, Arc<Requests>) {
        let (client, server) = tokio::io::duplex(64);
        let requests = Arc::<Requests>::default();
        let heads = Heads::new(server, Arc::clone(&requests), Watch::new(LIMIT), LIMIT);
        (client, heads, requests)
    }

    fn assert_is_limit(time: Duration) {
        assert!((LIMIT..LIMIT + Duration::from_millis(5)).contains(&time), "{time:?}");
    }

    /// Reads until it is over, and for how long that is.
    async fn late(heads: &mut Heads<DuplexStream>) -> Duration {
        let begun = Instant::now();
        let mut bytes = [0; 64];
        loop {
            match heads.read(&mut bytes).await {
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                    return begun.elapsed();
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_head_has_its_time_however_slowly_it_comes() {
        let (_client, mut heads, _) = connection();
        assert_is_limit(late(&mut heads).await);
        for said in ["PRI * HT", "GET / HTTP/1.1\r\nHo"] {
            let (mut client, mut heads, _) = connection();
            let slowly = async move {
                for byte in said.as_bytes().chunks(1) {
                    client.write_all(byte).await.unwrap();
                    sleep(LIMIT / 12).await;
                }
                client
            };
            let (_client, time) = tokio::join!(slowly, late(&mut heads));
            assert_is_limit(time);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn behind_a_preface_nothing_is_late() {
        let (mut client, mut heads, _) = connection();
        client.write_all(&PREFACE[..10]).await.unwrap();
        assert!(timeout(LIMIT / 2, late(&mut heads)).await.is_err());
        client.write_all(&PREFACE[10..]).await.unwrap();
        client.write_all(b"more").await.unwrap();
        assert!(timeout(HOUR, late(&mut heads)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn further_heads_have_it_once_they_begin() {
        let (mut client, mut heads, requests) = connection();
        for _ in 0..2 {
            client.write_all(b"GET / HTT").await.unwrap();
            assert!(timeout(LIMIT * 3 / 4, late(&mut heads)).await.is_err());
            let open = requests.begin();
            client.write_all(b"its body").await.unwrap();
            assert!(timeout(HOUR, late(&mut heads)).await.is_err(), "it is being answered");
            drop(open);
            assert!(timeout(HOUR, late(&mut heads)).await.is_err(), "nothing is begun");
        }
        client.write_all(b"GET / HTT").await.unwrap();
        assert_is_limit(late(&mut heads).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_still_being_taken_is_not_cut_off() {
        let (mut client, mut heads, requests) = connection();
        let mut body = heads.answers.body(Body::from("x"), requests.begin(), None);
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(timeout(LIMIT, late(&mut heads)).await.is_err());
        let piece = body.frame().await;
        drop(body);
        client.write_all(b"GET / HTT").await.unwrap();
        assert!(timeout(HOUR, late(&mut heads)).await.is_err(), "the answer is in a buffer");
        drop(piece);
        assert_is_limit(late(&mut heads).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_one_head_is_not_that_of_the_next() {
        let (mut client, mut heads, requests) = connection();
        client.write_all(b"GET / HTT").await.unwrap();
        assert!(timeout(LIMIT * 3 / 4, late(&mut heads)).await.is_err());
        drop(requests.begin());
        client.write_all(b"GET / HTT").await.unwrap();
        assert_is_limit(late(&mut heads).await);
    }
}
