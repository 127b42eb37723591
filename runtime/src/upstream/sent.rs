//! The body of a request on its way to an upstream: what is here as a whole, or one that is passed on as it comes.
//!
//! While one is passed on its call holds a slot, so its sender may neither pause nor take long: `upstream.pause_timeout` bounds each
//! pause, `limits.body_timeout` all of them, and what came before the slot. Time that the upstream takes is not the sender's.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::time::{Instant, Sleep};

use super::pieces::Pieces;
use crate::busy::Reserved;

/// A body.
pub(crate) enum Sent {
    /// All of it is here.
    Whole {
        /// What is left of it, without empty ones.
        pieces: VecDeque<Bytes>,
        /// The memory that it takes, counted until the last of them has been sent.
        memory: Option<Reserved>,
    },
    /// It comes.
    Coming(Box<Coming>),
}

/// A body that is passed on as it comes.
pub(crate) struct Coming {
    /// What came first.
    first: VecDeque<Bytes>,
    rest: Body,
    /// Counted for as long as it lasts, in place of the pieces that are under way.
    _memory: Reserved,
    length: usize,
    limits: ComingLimits,
    /// When a pause is too long.
    alarm: Pin<Box<Sleep>>,
    paused: Option<Instant>,
    turn: Arc<Turn>,
}

/// What holds for a body that is passed on as it comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ComingLimits {
    /// Most bytes.
    pub(crate) body: usize,
    /// Longest time for all of it, for the message.
    pub(crate) body_timeout: Duration,
    /// What is left of that.
    pub(crate) left: Duration,
    /// Longest pause.
    pub(crate) pause: Duration,
}

/// The sender is at fault.
#[derive(Debug, thiserror::Error)]
#[error("the caller's body does not come to its end")]
pub(crate) struct SenderError;

/// Whose turn it is, the caller's to send or the upstream's to take and to answer; and what the caller did wrong.
pub(crate) struct Turn {
    began: Instant,
    /// Since when it is the upstream's, in microseconds since `began`; [`CALLERS`] while it is the caller's.
    since: AtomicU64,
    fault: OnceLock<CallError>,
}

const CALLERS: u64 = u64::MAX;

impl Turn {
    /// From now on it is the upstream's.
    fn new() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), since: AtomicU64::new(0), fault: OnceLock::new() })
    }

    fn is_the_upstreams(&self) {
        let micros = self.began.elapsed().as_micros();
        self.since.store(u64::try_from(micros).unwrap_or(CALLERS - 1), Ordering::Relaxed);
    }

    fn is_the_callers(&self) {
        self.since.store(CALLERS, Ordering::Relaxed);
    }

    /// Since when it has been the upstream's.
    fn since(&self) -> Option<Instant> {
        let micros = self.since.load(Ordering::Relaxed);
        (micros != CALLERS).then(|| self.began + Duration::from_micros(micros))
    }

    /// Comes back once it has been the upstream's for `limit`.
    pub(super) async fn is_too_long(&self, limit: Duration) {
        loop {
            let end = match self.since() {
                Some(since) if since.elapsed() >= limit => return,
                Some(since) => since + limit,
                None => Instant::now() + limit,
            };
            tokio::time::sleep_until(end).await;
        }
    }

    /// What the caller did wrong, if that is why nothing came of it.
    pub(super) fn fault(&self) -> Option<&CallError> {
        self.fault.get()
    }
}

impl Sent {
    /// A body that is here.
    pub(crate) fn whole(pieces: Pieces, memory: Reserved) -> Self {
        Self::Whole { pieces: pieces.finish(), memory: Some(memory) }
    }

    /// None at all.
    pub(super) fn empty() -> Self {
        Self::Whole { pieces: VecDeque::new(), memory: None }
    }

    /// A body whose `first` pieces are here.
    pub(crate) fn coming(first: Pieces, rest: Body, memory: Reserved, limits: ComingLimits) -> Self {
        Self::Coming(Box::new(Coming {
            first: first.finish(),
            rest,
            _memory: memory,
            length: 0,
            limits,
            alarm: Box::pin(tokio::time::sleep(limits.left)),
            paused: None,
            turn: Turn::new(),
        }))
    }

    /// Begins with it: times count from now on.
    pub(super) fn begin(&mut self) -> Arc<Turn> {
        match self {
            Self::Whole { .. } => Turn::new(),
            Self::Coming(coming) => {
                coming.turn = Turn::new();
                Arc::clone(&coming.turn)
            }
        }
    }
}

impl Coming {
    fn fail(&self, code: ErrorCode, text: String) -> Poll<Option<Result<Frame<Bytes>, SenderError>>> {
        let _ = self.turn.fault.set(CallError::new(code, text));
        Poll::Ready(Some(Err(SenderError)))
    }

    fn too_late(&self) -> Poll<Option<Result<Frame<Bytes>, SenderError>>> {
        let (pause, whole) = (self.limits.pause, self.limits.body_timeout);
        let text = if pause < self.limits.left {
            format!("the body paused for {pause:?} while it was passed on (upstream.pause_timeout)")
        } else {
            format!("the body did not arrive within {whole:?}")
        };
        self.fail(ErrorCode::BodyTimeout, text)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, SenderError>>> {
        if let Some(first) = self.first.pop_front() {
            self.length += first.len();
            self.turn.is_the_upstreams();
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        loop {
            match http_body::Body::poll_frame(Pin::new(&mut self.rest), context) {
                Poll::Ready(None) => {
                    self.turn.is_the_upstreams();
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Err(_))) => {
                    return self.fail(ErrorCode::BadRequest, "the body broke off".into());
                }
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(paused) = self.paused.take() {
                        self.limits.left = self.limits.left.saturating_sub(paused.elapsed());
                    }
                    // Trailers are not passed on.
                    let Ok(data) = frame.into_data() else { continue };
                    self.length += data.len();
                    if self.length > self.limits.body {
                        let text = format!("the body is larger than limits.body, {} bytes", self.limits.body);
                        return self.fail(ErrorCode::BodyTooLarge, text);
                    }
                    self.turn.is_the_upstreams();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Poll::Pending => {
                    if self.paused.is_none() {
                        let now = Instant::now();
                        self.paused = Some(now);
                        self.turn.is_the_callers();
                        self.alarm.as_mut().reset(now + self.limits.pause.min(self.limits.left));
                    }
                    return match self.alarm.as_mut().poll(context) {
                        Poll::Ready(()) => self.too_late(),
                        Poll::Pending => Poll::Pending,
                    };
                }
            }
        }
    }
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = SenderError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SenderError>>> {
        match self.get_mut() {
            Self::Whole { pieces, memory } => {
                let Some(bytes) = pieces.pop_front() else { return Poll::Ready(None) };
                // The last goes last.
                let memory = if pieces.is_empty() { memory.take() } else { None };
                Poll::Ready(Some(Ok(Frame::data(match memory {
                    Some(memory) => Bytes::from_owner(Counted { bytes, _memory: memory }),
                    None => bytes,
                }))))
            }
            Self::Coming(coming) => coming.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole { pieces, .. } => pieces.is_empty(),
            Self::Coming(coming) => coming.first.is_empty() && http_body::Body::is_end_stream(&coming.rest),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole { pieces, .. } => SizeHint::with_exact(length(pieces)),
            Self::Coming(coming) => match http_body::Body::size_hint(&coming.rest).exact() {
                Some(rest) => SizeHint::with_exact(rest.saturating_add(length(&coming.first))),
                None => SizeHint::default(),
            },
        }
    }
}

fn length(pieces: &VecDeque<Bytes>) -> u64 {
    pieces.iter().map(|piece| piece.len() as u64).sum()
}

/// Bytes whose memory is counted until they have been sent.
struct Counted {
    bytes: Bytes,
    _memory: Reserved,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::busy::Busy;

    /// A body whose sender has sent `pieces`, with pauses in between, and then sends nothing.
    struct Slow {
        pieces: Vec<usize>,
        pause: Duration,
        sleep: Option<Pin<Box<Sleep>>>,
    }

    impl http_body::Body for Slow {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            let pause = self.pause;
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
            std::task::ready!(sleep.as_mut().poll(context));
            self.sleep = None;
            match self.pieces.pop() {
                Some(piece) => Poll::Ready(Some(Ok(Frame::data(vec![0; piece].into())))),
                None => Poll::Ready(None),
            }
        }
    }

    /// What comes of it: bytes, or the caller's fault; and after how many milliseconds.
    async fn outcome(pieces: &[usize], pause: u64) -> (Result<usize, CallError>, u128) {
        let millis = Duration::from_millis;
        let limits =
            ComingLimits { body: 100, body_timeout: millis(2000), left: millis(1000), pause: millis(300) };
        let rest = Body::new(Slow { pieces: pieces.to_vec(), pause: millis(pause), sleep: None });
        let memory = Busy::new(1).reserve(2, 100).unwrap();
        let mut first = Pieces::default();
        first.add(Bytes::from_static(b"ab"));
        let mut sent = Sent::coming(first, rest, memory, limits);
        let turn = sent.begin();
        let (began, mut length) = (Instant::now(), 0);
        loop {
            match sent.frame().await {
                Some(Ok(frame)) => length += frame.into_data().unwrap().len(),
                Some(Err(_)) => return (Err(turn.fault().unwrap().clone()), began.elapsed().as_millis()),
                None => return (Ok(length), began.elapsed().as_millis()),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_may_neither_pause_nor_take_nor_send_too_much() {
        assert_eq!(outcome(&[10, 20, 30], 100).await, (Ok(62), 400));
        let (end, after) = outcome(&[10], 400).await;
        let fault = end.unwrap_err();
        assert_eq!((fault.code, after), (ErrorCode::BodyTimeout, 300), "{fault}");
        assert!(fault.message.contains("upstream.pause_timeout"), "{fault}");
        let (end, after) = outcome(&[1; 20], 200).await;
        let fault = end.unwrap_err();
        assert_eq!((fault.code, after), (ErrorCode::BodyTimeout, 1000), "{fault}");
        assert!(fault.message.contains("within 2s"), "{fault}");
        let (end, _) = outcome(&[50, 49, 2], 1).await;
        assert_eq!(end.unwrap_err().code, ErrorCode::BodyTooLarge);
        assert_eq!(outcome(&[49, 49], 1).await.0, Ok(100));
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_that_the_sender_takes_is_not_the_upstream_s() {
        let limit = Duration::from_secs(5);
        let turn = Turn::new();
        let began = Instant::now();
        turn.is_too_long(limit).await;
        assert_eq!(began.elapsed().as_secs(), 5);
        turn.is_the_callers();
        let waits = tokio::time::timeout(Duration::from_secs(60), turn.is_too_long(limit)).await;
        assert!(waits.is_err(), "it is the caller's turn");
        turn.is_the_upstreams();
        let began = Instant::now();
        turn.is_too_long(limit).await;
        assert_eq!(began.elapsed().as_secs(), 5);
    }
}
