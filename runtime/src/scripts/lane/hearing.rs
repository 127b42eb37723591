//! What a lane hears from its worker: answers, pieces of answers, lines for the log.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::time::Instant;

use super::{Active, Lane, timeout};
use crate::busy::Outcome;
use crate::scripts::call::{ScriptAnswer, ScriptResult};
use crate::scripts::confinement::Confinement;
use crate::scripts::connection::Frame;
use crate::scripts::frame::{self, FrameError, Kind, Reply, Trouble};
use crate::scripts::stream::{StreamError, flow};
use crate::scripts::worker::Worker;

/// How long the last words of a worker that has ended are waited for: something that it has started may hold its socket open.
const LAST_WORDS: Duration = Duration::from_millis(250);

impl Lane {
    /// The worker says something.
    pub(super) fn hear(&mut self, worker: &mut Worker, frame: Frame) -> Result<(), FrameError> {
        match frame.kind {
            Kind::Reply => self.hear_reply(frame),
            Kind::Chunk => {
                let (gap, stall) = (self.shared.config.gap_timeout, self.shared.config.stall_timeout);
                let now = Instant::now();
                let active = self.find(frame.id).ok_or(FrameError::Malformed("CHUNK"))?;
                let stream = active.stream.as_ref().ok_or(FrameError::Malformed("CHUNK"))?;
                let chunk = frame.tail.unwrap_or(frame.payload);
                stream.push(chunk).map_err(|_| FrameError::Malformed("CHUNK without credit"))?;
                active.deadline = now + gap;
                if !stream.has_credit() {
                    // From now on it is the client that is waited for.
                    active.stalled.get_or_insert(now);
                    self.alarm.set(now + stall);
                }
                Ok(())
            }
            Kind::End => self.hear_end(frame),
            Kind::Cancelling => {
                match self.find(frame.id) {
                    Some(active) if active.overdue.is_some() || active.expired => active.ending = true,
                    Some(_) => return Err(FrameError::Malformed("CANCELLING")),
                    // It has ended meanwhile.
                    None => {}
                }
                Ok(())
            }
            Kind::Log => {
                let line = frame::decode_log(frame.payload)?;
                let request = self.find(frame.id).map(|active| active.job.call.request_id.clone());
                worker.log(&line, request.as_ref());
                Ok(())
            }
            _ => {
                worker.serve(frame)?.iter().for_each(|device| self.note_device(device));
                Ok(())
            }
        }
    }

    fn find(&mut self, id: u64) -> Option<&mut Active> {
        self.active.iter_mut().find(|active| active.id == id)
    }

    /// Takes the call with this number, which the worker has begun, off the list; the next one has begun, then.
    fn take_begun(&mut self, id: u64) -> Option<Active> {
        let at = self.active.iter().position(|active| active.id == id && active.begun)?;
        let taken = self.active.remove(at);
        if let Some(next) = self.active.front_mut().filter(|next| !next.begun) {
            next.begun = true;
            next.job.slot.begin();
            next.deadline = Instant::now() + self.shared.config.timeout;
            self.alarm.set(next.job.until(next.deadline));
        }
        taken
    }

    fn hear_reply(&mut self, frame: Frame) -> Result<(), FrameError> {
        const BAD: FrameError = FrameError::Malformed("REPLY");
        let (reply, run) = frame::decode_reply(frame.payload, frame.tail)?;
        if let Reply::Stream(head) = reply {
            let window = self.shared.config.stream_window as u64;
            let (producer, body) = flow(window, Arc::clone(&self.door.bell), Arc::clone(&self.shared.busy));
            let deadline = Instant::now() + self.shared.config.gap_timeout;
            let active =
                self.find(frame.id).filter(|active| active.begun && active.stream.is_none()).ok_or(BAD)?;
            active.stream = Some(producer);
            active.deadline = deadline;
            // A call that is over its time has been answered; its stream has lost its reader and is cancelled.
            active.tell(Ok(ScriptAnswer::Stream { head, body, run, devices: None }));
            self.alarm.set(deadline);
            return Ok(());
        }
        let active = self.take_begun(frame.id).filter(|active| active.stream.is_none()).ok_or(BAD)?;
        self.served += 1;
        self.shared.breaker.served(self.number);
        if active.expired {
            active.job.finish(Outcome::Failed);
            return Ok(());
        }
        if active.overdue.is_none() && active.cancelled && matches!(reply, Reply::Cancelled) {
            // Dropping the job counts it as cancelled.
            return Ok(());
        }
        let result = interpret(reply, run, &active.job.call.request_id, Some(&self.shared.confinement))?;
        let is_overdue = active.overdue.is_some();
        active.answer(if is_overdue { Err(timeout(&self.shared)) } else { result });
        Ok(())
    }

    fn hear_end(&mut self, frame: Frame) -> Result<(), FrameError> {
        const BAD: FrameError = FrameError::Malformed("END");
        let (reply, _) = frame::decode_reply(frame.payload, frame.tail)?;
        let active = self.take_begun(frame.id).ok_or(BAD)?;
        let stream = active.stream.ok_or(BAD)?;
        self.served += 1;
        self.shared.breaker.served(self.number);
        if active.overdue.is_none() && !active.expired && active.cancelled && is_cancellation(&reply) {
            // Dropping the job counts it as cancelled.
            return Ok(());
        }
        if active.overdue.is_some() || active.expired {
            // Its client has been told; how it came to its end does not matter any more.
            active.job.finish(Outcome::Failed);
            return Ok(());
        }
        let ended = match reply {
            Reply::Returned(_) | Reply::Cancelled => Ok(()),
            Reply::Raised(trouble) => {
                log_raised(&trouble, &active.job.call.request_id, Some(&self.shared.confinement));
                Err(StreamError::Raised)
            }
            _ => return Err(BAD),
        };
        // The slot first, as in `Job::settle`: whoever sees the end finds it free, and the caller's place with it.
        active.job.finish(if ended.is_ok() { Outcome::Answered } else { Outcome::Failed });
        stream.end(ended);
        Ok(())
    }

    /// Ends a worker that hangs and takes the replies that were still under way, so that a call which it has begun is not begun again.
    pub(super) async fn hear_out(&mut self, worker: Worker) {
        let number = self.number;
        let (death, mut connection) = worker.terminate_and_keep().await;
        tracing::warn!(worker = number, %death, "worker ended");
        while let Ok(Ok(frame)) = tokio::time::timeout(LAST_WORDS, connection.frame()).await {
            if frame.kind == Kind::Reply && self.hear_reply(frame).is_err() {
                break;
            }
        }
    }
}

/// Whether a stream says that it has ended because it was cancelled, and not that closing its generator raised.
fn is_cancellation(end: &Reply) -> bool {
    match end {
        Reply::Cancelled => true,
        Reply::Raised(trouble) => trouble.message == "cancelled" && trouble.traceback.is_empty(),
        _ => false,
    }
}

/// A script's reply as the caller sees it; what belongs in the log goes there.
pub(in crate::scripts) fn interpret(
    reply: Reply,
    run: Duration,
    request: &HeaderValue,
    confinement: Option<&Confinement>,
) -> Result<ScriptResult, FrameError> {
    Ok(match reply {
        Reply::Returned(text) => Ok(ScriptAnswer::Json { text, run, devices: None }),
        Reply::Answer(head, body) => Ok(ScriptAnswer::Whole { head, body, run, devices: None }),
        Reply::Raised(trouble) => {
            log_raised(&trouble, request, confinement);
            Err(outrigger_protocol::aml::script_error())
        }
        Reply::Refused { status, message, log } => {
            if !log.is_empty() {
                tracing::warn!(request = request.to_str().ok(), error = %message, "the input was refused\n{log}");
            }
            let code = match status {
                400 => ErrorCode::BadRequest,
                405 => ErrorCode::MethodNotAllowed,
                415 => ErrorCode::UnsupportedMediaType,
                500 => ErrorCode::ScriptError,
                _ => return Err(FrameError::Malformed("REPLY")),
            };
            Err(CallError::new(code, message))
        }
        Reply::Unserialisable(trouble) => {
            let (error, traceback) = (&trouble.message, &trouble.traceback);
            tracing::error!(request = request.to_str().ok(), %error, "what run() returned cannot be serialised\n{traceback}");
            Err(outrigger_protocol::aml::internal_error(ErrorCode::ScriptResultUnserialisable))
        }
        Reply::Cancelled => Err(CallError::new(ErrorCode::ScriptError, "the call was cancelled")),
        Reply::Stream(_) => return Err(FrameError::Malformed("REPLY")),
    })
}

/// Says in the log what a script raised, and which setting may be behind it.
fn log_raised(trouble: &Trouble, request: &HeaderValue, confinement: Option<&Confinement>) {
    let hint = confinement.and_then(|confinement| confinement.hint(&trouble.message));
    let hint = hint.map(|hint| format!("\nnote: {hint}")).unwrap_or_default();
    let traceback = trouble.traceback.trim_end();
    tracing::error!(request = request.to_str().ok(), error = %trouble.message, "run() raised\n{traceback}{hint}");
}
