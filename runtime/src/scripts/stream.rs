//! The body of an answer that a script, or an upstream, produces piece by piece: a bounded flow of chunks from a lane to a client.
//!
//! The bound is the protocol's: a worker has at most `window` bytes of chunks unconsumed and waits for credit beyond that, so a client
//! that reads slowly holds up its own generator and nothing else.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use tokio::time::Sleep;

use super::bell::Bell;
use crate::busy::Busy;

/// An error tears a connection down with all that has not been written yet: the head and the chunks before it get so long to go out.
const MOMENT: Duration = Duration::from_millis(10);

/// The worker has sent more than it had credit for.
#[derive(Debug)]
pub(crate) struct Overrun;

/// Why a streamed answer ended before it was complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The script raised.
    #[error("the script failed while it was producing its answer")]
    Raised,
    /// The client took nothing for too long.
    #[error("the client did not read the answer")]
    Stalled,
    /// The worker, or the upstream, broke off, or its time was over.
    #[error("what was producing the answer ended before it was complete")]
    Lost,
}

struct Flow {
    state: Mutex<State>,
    /// The lane's, which gives credit and cancels.
    bell: Arc<Bell>,
    /// Counts what waits, which can outlast the call.
    busy: Arc<Busy>,
    window: u64,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Bytes>,
    /// Bytes in `chunks`.
    waiting: u64,
    /// Bytes that the client has taken and the worker has not been told of.
    consumed: u64,
    end: Option<Result<(), StreamError>>,
    /// The client has gone.
    left: bool,
    waker: Option<Waker>,
}

impl Flow {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lane's end.
pub(crate) struct Producer(Arc<Flow>);

/// The client's end.
pub struct StreamBody {
    flow: Arc<Flow>,
    /// Counts down while an error is held back.
    moment: Option<Pin<Box<Sleep>>>,
    /// Something of it has been taken.
    is_begun: bool,
}

/// A flow of at most `window` bytes; `bell` is rung when the lane has something to tell the worker.
pub(crate) fn flow(window: u64, bell: Arc<Bell>, busy: Arc<Busy>) -> (Producer, StreamBody) {
    let flow = Arc::new(Flow { state: Mutex::new(State::default()), bell, busy, window });
    (Producer(Arc::clone(&flow)), StreamBody { flow, moment: None, is_begun: false })
}

impl Producer {
    /// Passes a chunk on.
    ///
    /// # Errors
    /// [`Overrun`] if the worker had no credit for it.
    pub(crate) fn push(&self, chunk: Bytes) -> Result<(), Overrun> {
        let mut state = self.0.lock();
        let length = chunk.len() as u64;
        if state.waiting + state.consumed + length > self.0.window {
            return Err(Overrun);
        }
        if state.left {
            // Nobody takes it; the credit is given back all the same, so that the generator runs into its end.
            state.consumed += length;
            return Ok(());
        }
        if length > 0 {
            state.waiting += length;
            state.chunks.push_back(self.0.busy.hold(chunk));
            if let Some(waker) = state.waker.take() {
                drop(state);
                waker.wake();
            }
        }
        Ok(())
    }

    /// Whether the worker may send more at the moment.
    pub(crate) fn has_credit(&self) -> bool {
        let state = self.0.lock();
        state.waiting + state.consumed < self.0.window
    }

    /// Bytes that may be sent at the moment by one who needs not be told of credit.
    pub(crate) fn room(&self) -> u64 {
        self.take_credit();
        let state = self.0.lock();
        self.0.window.saturating_sub(state.waiting + state.consumed)
    }

    /// Passes on as much of `data` as there is room for, and takes that off it; whether there was any. With its last byte the answer is complete
    /// if it is the last piece. For one who needs not be told of credit.
    pub(crate) fn pass(&self, data: &mut Bytes, is_last: bool) -> bool {
        let room = usize::try_from(self.room()).unwrap_or(usize::MAX);
        let mut state = self.0.lock();
        if room > 0 && !data.is_empty() && !state.left {
            let piece = data.split_to(room.min(data.len()));
            state.waiting += piece.len() as u64;
            state.chunks.push_back(self.0.busy.hold(piece));
        }
        if is_last && data.is_empty() && state.end.is_none() {
            state.end = Some(Ok(()));
        }
        if let Some(waker) = state.waker.take() {
            drop(state);
            waker.wake();
        }
        room > 0
    }

    /// Credit to give to the worker now, if it is worth a frame.
    pub(crate) fn take_credit(&self) -> Option<u64> {
        let mut state = self.0.lock();
        (state.consumed >= self.0.window.div_ceil(4)).then(|| std::mem::take(&mut state.consumed))
    }

    /// Whether the client has gone.
    pub(crate) fn is_left(&self) -> bool {
        self.0.lock().left
    }

    /// No more chunks come to the client. What is said first holds.
    pub(crate) fn end(&self, how: Result<(), StreamError>) {
        let mut state = self.0.lock();
        if state.end.is_none() {
            state.end = Some(how);
            if how == Err(StreamError::Stalled) {
                // Who has not asked for it gets none of it, whenever the end is seen.
                state.waiting = 0;
                state.chunks.clear();
            }
            if let Some(waker) = state.waker.take() {
                drop(state);
                waker.wake();
            }
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.end(Err(StreamError::Lost));
    }
}

impl http_body::Body for StreamBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let Self { flow, moment, is_begun } = self.get_mut();
        let mut state = flow.lock();
        if let Some(chunk) = state.chunks.pop_front() {
            state.waiting -= chunk.len() as u64;
            state.consumed += chunk.len() as u64;
            let due = state.consumed >= flow.window.div_ceil(4);
            drop(state);
            *is_begun = true;
            if due {
                flow.bell.ring();
            }
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        match state.end {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(error)) => {
                drop(state);
                let moment = moment.get_or_insert_with(|| Box::pin(tokio::time::sleep(MOMENT)));
                ready!(moment.as_mut().poll(context));
                Poll::Ready(Some(Err(error)))
            }
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.flow.lock();
        // How an answer is framed must not depend on whether its end has come before its head is sent.
        self.is_begun && state.chunks.is_empty() && state.end == Some(Ok(()))
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        let mut state = self.flow.lock();
        state.left = true;
        // Whatever waits is consumed by nobody.
        state.consumed += std::mem::take(&mut state.waiting);
        state.chunks.clear();
        let over = state.end.is_some();
        drop(state);
        if !over {
            self.flow.bell.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn chunk(length: usize) -> Bytes {
        Bytes::from(vec![b'x'; length])
    }

    #[tokio::test]
    async fn chunks_arrive_in_order_and_credit_comes_back() {
        let bell = Arc::new(Bell::default());
        let (producer, mut body) = flow(100, Arc::clone(&bell), Busy::new(1));
        producer.push(Bytes::from_static(b"ab")).unwrap();
        producer.push(chunk(90)).unwrap();
        assert_eq!(producer.take_credit(), None, "nothing is consumed yet");
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "ab");
        assert_eq!(producer.take_credit(), None, "two bytes are not worth a frame");
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), 90);
        std::future::poll_fn(|context| bell.poll_rung(context)).await;
        assert_eq!(producer.take_credit(), Some(92));
        producer.end(Ok(()));
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn more_than_the_window_is_an_overrun() {
        let (producer, mut body) = flow(100, Arc::default(), Busy::new(1));
        producer.push(chunk(100)).unwrap();
        assert!(!producer.has_credit());
        assert!(producer.push(chunk(1)).is_err());
        // What the client has taken is not credit before the worker was told.
        body.frame().await.unwrap().unwrap();
        assert!(producer.push(chunk(1)).is_err());
        assert_eq!(producer.take_credit(), Some(100));
        producer.push(chunk(1)).unwrap();
    }

    #[tokio::test]
    async fn what_waits_is_counted_until_it_is_taken_and_a_stalled_client_gets_none_of_it() {
        let busy = Busy::new(1);
        let (producer, mut body) = flow(100, Arc::default(), Arc::clone(&busy));
        producer.push(chunk(10)).unwrap();
        producer.push(chunk(20)).unwrap();
        assert_eq!(busy.unsent(), 30);
        drop(body.frame().await);
        assert_eq!(busy.unsent(), 20);
        producer.end(Err(StreamError::Stalled));
        assert_eq!(busy.unsent(), 0);
        assert_eq!(body.frame().await.unwrap().unwrap_err(), StreamError::Stalled);
    }

    #[tokio::test]
    async fn the_last_byte_brings_the_end_with_it() {
        use http_body::Body as _;
        let (producer, mut body) = flow(100, Arc::default(), Busy::new(1));
        let mut data = chunk(150);
        assert!(producer.pass(&mut data, true));
        assert_eq!(data.len(), 50);
        assert!(!producer.pass(&mut data, true), "there is no room");
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), 100);
        assert!(!body.is_end_stream());
        assert!(producer.pass(&mut data, true) && data.is_empty());
        assert!(!body.is_end_stream());
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), 50);
        assert!(body.is_end_stream() && body.frame().await.is_none());
    }

    #[tokio::test]
    async fn an_end_without_a_word_is_a_loss_and_a_client_that_leaves_is_seen() {
        let (producer, mut body) = flow(100, Arc::default(), Busy::new(1));
        producer.push(chunk(1)).unwrap();
        drop(producer);
        assert!(body.frame().await.unwrap().is_ok());
        assert_eq!(body.frame().await.unwrap().unwrap_err(), StreamError::Lost);

        let bell = Arc::new(Bell::default());
        let (producer, body) = flow(100, Arc::clone(&bell), Busy::new(1));
        producer.push(chunk(60)).unwrap();
        assert!(!producer.is_left());
        drop(body);
        std::future::poll_fn(|context| bell.poll_rung(context)).await;
        assert!(producer.is_left());
        assert_eq!(producer.take_credit(), Some(60), "the generator is not held up");
        producer.push(chunk(80)).unwrap();
        assert_eq!(producer.take_credit(), Some(80));
    }
}
