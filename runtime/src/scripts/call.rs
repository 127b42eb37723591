//! A call of a script, and its answer.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use outrigger_protocol::error::CallError;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::frame::{Method, ReplyHead};
use super::regions::Filled;
use super::stream::StreamBody;
use crate::busy::{Outcome, Reserved};
use crate::scheduler::{Slot, expired};

/// What a script is called with.
pub struct ScriptCall {
    /// The request's id.
    pub request_id: HeaderValue,
    /// To which trace it belongs: `traceparent`, `tracestate` and `baggage`, each behind the end of a line; nothing where there is none.
    pub trace: Vec<u8>,
    /// How it is asked.
    pub method: Method,
    /// The query string as it stands in the URL.
    pub query: String,
    /// Those of the request's headers that the script asks for.
    pub headers: Option<HeaderMap>,
    /// The body.
    pub body: Body,
    /// The memory that the body takes, counted until the worker has it and has answered.
    pub memory: Option<Reserved>,
}

/// A request's body.
pub enum Body {
    /// In the replica's memory.
    Bytes(Bytes),
    /// In memory that a worker can map.
    Shared(Filled),
}

impl Body {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.as_ref().len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Shared(filled) => filled.bytes(),
        }
    }
}

impl ScriptCall {
    /// Bytes that the call takes in the worker's socket, about.
    pub(super) fn size(&self) -> usize {
        let headers = self.headers.iter().flatten();
        let headers: usize = headers.map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        self.body.len() + self.query.len() + headers + self.trace.len() + 256
    }
}

/// What a script answers.
pub enum ScriptAnswer {
    /// What `run()` returned, as JSON text.
    Json {
        /// The text.
        text: Bytes,
        /// Time in `run()`.
        run: Duration,
        /// Where models ran that it asked for.
        devices: Option<HeaderValue>,
    },
    /// An answer that the script has made itself.
    Whole {
        /// Status and headers.
        head: ReplyHead,
        /// Body.
        body: Bytes,
        /// Time in `run()`.
        run: Duration,
        /// Where models ran that it asked for.
        devices: Option<HeaderValue>,
    },
    /// An answer that comes as it is produced.
    Stream {
        /// Status and headers.
        head: ReplyHead,
        /// Body.
        body: StreamBody,
        /// Time in `run()` up to the first piece.
        run: Duration,
        /// Where models ran that it asked for.
        devices: Option<HeaderValue>,
    },
}

impl ScriptAnswer {
    /// Time in `run()`.
    pub(super) fn run(&self) -> Duration {
        let (Self::Json { run, .. } | Self::Whole { run, .. } | Self::Stream { run, .. }) = self;
        *run
    }

    /// The same, for a call whose runs of models were on these devices.
    pub(super) fn on(mut self, on: Option<HeaderValue>) -> Self {
        let (Self::Json { devices, .. } | Self::Whole { devices, .. } | Self::Stream { devices, .. }) =
            &mut self;
        *devices = on;
        self
    }
}

/// What becomes of a call.
pub type ScriptResult = Result<ScriptAnswer, CallError>;

/// A call on its way.
pub(super) struct Job {
    pub(super) call: ScriptCall,
    pub(super) slot: Slot,
    pub(super) reply: Option<oneshot::Sender<ScriptResult>>,
    /// When it was let through.
    pub(super) since: Instant,
}

impl Job {
    /// Ends the job: the slot first, so that whoever has the answer finds it free.
    fn settle(mut self, outcome: Outcome, result: ScriptResult) {
        let reply = self.reply.take();
        self.slot.finish(outcome);
        if let Some(reply) = reply {
            let _ = reply.send(result);
        }
    }

    /// Ends a job that a lane has worked on.
    pub(super) fn answer(self, result: ScriptResult) {
        self.settle(if result.is_ok() { Outcome::Answered } else { Outcome::Failed }, result);
    }

    /// Ends a job that was never begun.
    pub(super) fn refuse(self, error: &CallError) {
        self.settle(Outcome::Refused, Err(error.clone()));
    }

    /// Ends a job that was never begun, and whose deadline is over.
    pub(super) fn expire(self) {
        self.settle(Outcome::Expired, Err(expired()));
    }

    /// When it is over for whoever asks first: its lane, at `limit`, or its caller.
    pub(super) fn until(&self, limit: Instant) -> Instant {
        self.slot.deadline().map_or(limit, |deadline| deadline.min(limit))
    }

    /// The deadline of its caller is over while it is executed: the caller is told, and the lane goes on.
    pub(super) fn tell_expired(&mut self) {
        self.tell(Err(expired()));
    }

    /// Whether the deadline that its caller has set is over.
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        self.slot.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Ends a job whose caller has the answer already.
    pub(super) fn finish(self, outcome: Outcome) {
        self.slot.finish(outcome);
    }

    /// Tells the caller, while the lane still works.
    pub(super) fn tell(&mut self, result: ScriptResult) {
        if let Some(reply) = self.reply.take() {
            let _ = reply.send(result);
        }
    }

    /// Whether nobody waits for the answer any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}
