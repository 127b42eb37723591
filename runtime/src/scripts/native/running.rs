//! A call that a thread is at, and what the library can ask of us meanwhile.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use outrigger_native::{Caller, Cancelled, Gone, Head, Level};
use outrigger_protocol::error::CallError;
use tokio::time::Instant;

use super::own_pid;
use super::shared::Shared;
use crate::scripts::bell::Bell;
use crate::scripts::call::{Job, ScriptAnswer};
use crate::scripts::frame::{self, LogLevel, LogLine, LogSource, ReplyHead};
use crate::scripts::log::{self, Origin};
use crate::scripts::stream::{Producer, StreamError, flow};

/// A thread, and the call that it is at.
#[derive(Default)]
pub(super) struct Seat {
    pub(super) active: Mutex<Option<Active>>,
    /// Rung when a stream's client has taken something or has gone, and when the call is over.
    pub(super) bell: Arc<Bell>,
}

/// A call that a thread is at.
pub(super) struct Active {
    pub(super) job: Job,
    /// When it is over; while it waits for the client, when that has waited too long.
    pub(super) deadline: Instant,
    pub(super) waits: Waits,
    /// Why its caller has been answered for.
    pub(super) over: Option<Over>,
    /// Its caller's deadline is over and the caller has been told; the library has its own time all the same.
    pub(super) expired: bool,
    pub(super) stream: Option<Arc<Producer>>,
}

/// Whom a call waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    /// The library.
    Script,
    /// The client, to take what there is.
    Client,
    /// Nobody: the client has taken nothing for too long, and has lost its stream.
    Stalled,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// Its time is.
    Time,
    /// The service is.
    Service,
}

impl Seat {
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn sit(&self, job: Job, deadline: Instant) {
        *self.lock() =
            Some(Active { job, deadline, waits: Waits::Script, over: None, expired: false, stream: None });
    }

    pub(super) fn rise(&self) -> Option<Active> {
        self.lock().take()
    }
}

impl Active {
    /// Answers for the call, whose thread goes on.
    pub(super) fn end(&mut self, over: Over, error: CallError, bell: &Bell) {
        self.over = Some(over);
        self.job.tell(Err(error));
        if let Some(stream) = &self.stream {
            stream.end(Err(StreamError::Lost));
        }
        bell.ring();
    }

    /// Tells a caller whose deadline is over; the thread goes on.
    pub(super) fn expire(&mut self, bell: &Bell) {
        self.expired = true;
        self.job.tell_expired();
        if let Some(stream) = &self.stream {
            stream.end(Err(StreamError::Lost));
        }
        bell.ring();
    }

    /// Breaks off a stream whose client does not read. The library, which hears of it at its next word, has until `deadline`.
    pub(super) fn stall(&mut self, deadline: Instant, bell: &Bell) {
        self.waits = Waits::Stalled;
        self.deadline = deadline;
        if let Some(stream) = &self.stream {
            stream.end(Err(StreamError::Stalled));
        }
        bell.ring();
    }

    /// Whether its client is there and has not made room for more.
    pub(super) fn is_stalled(&self) -> bool {
        !self.is_left() && self.stream.as_ref().is_some_and(|stream| stream.room() == 0)
    }

    /// Whether nobody takes its answer any more.
    pub(super) fn is_left(&self) -> bool {
        let left = self.job.is_abandoned() || self.stream.as_ref().is_some_and(|stream| stream.is_left());
        left || self.waits == Waits::Stalled
    }

    pub(super) fn cancelled(&self) -> Cancelled {
        match self.over {
            Some(Over::Time) => Cancelled::OutOfTime,
            Some(Over::Service) => Cancelled::ClientGone,
            None if self.expired => Cancelled::OutOfTime,
            None if self.is_left() => Cancelled::ClientGone,
            None => Cancelled::No,
        }
    }
}

/// What the library can ask of us during a call.
pub(super) struct Running<'a> {
    pub(super) shared: &'a Shared,
    pub(super) seat: &'a Seat,
    pub(super) number: usize,
    pub(super) request: &'a HeaderValue,
    pub(super) begun: Instant,
}

impl Running<'_> {
    /// Does something with the call if it goes on.
    fn with<R>(&self, then: impl FnOnce(&mut Active) -> R) -> Result<R, Gone> {
        let mut seated = self.seat.lock();
        seated.as_mut().filter(|active| active.cancelled() == Cancelled::No).map(then).ok_or(Gone)
    }

    /// The next piece has to come within the limit.
    fn expect_piece(&self) -> Result<(), Gone> {
        self.wait_for(Waits::Script, self.shared.gap_timeout)
    }

    fn wait_for(&self, whom: Waits, limit: Duration) -> Result<(), Gone> {
        let deadline = Instant::now() + limit;
        self.with(|active| (active.waits, active.deadline) = (whom, deadline))?;
        self.shared.look_at(deadline);
        Ok(())
    }
}

impl Caller for Running<'_> {
    type Buffer = Vec<u8>;

    fn cancelled(&self) -> Cancelled {
        self.seat.lock().as_ref().map_or(Cancelled::No, Active::cancelled)
    }

    fn log(&self, level: Level, line: &str) {
        emit(level, line, &Origin { worker: self.number, pid: own_pid(), request: Some(self.request) });
    }

    fn allocate(&self, len: usize) -> Option<Vec<u8>> {
        let mut memory = Vec::new();
        if len > self.shared.limits.answer {
            return None;
        }
        memory.try_reserve_exact(len).ok()?;
        memory.resize(len, 0);
        Some(memory)
    }

    fn begin(&self, head: Head) -> Result<(), Gone> {
        let head = reply_head(&head).ok_or(Gone)?;
        let run = self.begun.elapsed();
        let (bell, busy) = (Arc::clone(&self.seat.bell), Arc::clone(&self.shared.busy));
        let (producer, body) = flow(self.shared.stream_window, bell, busy);
        self.with(|active| {
            active.stream = Some(Arc::new(producer));
            active.job.tell(Ok(ScriptAnswer::Stream { head, body, run, devices: None }));
        })?;
        self.expect_piece()
    }

    fn write(&self, mut piece: &[u8]) -> Result<(), Gone> {
        let stream = self.with(|active| active.stream.clone())?.ok_or(Gone)?;
        while !piece.is_empty() {
            let room = usize::try_from(stream.room()).unwrap_or(usize::MAX);
            if room == 0 {
                // That is the client's time, not the script's.
                self.wait_for(Waits::Client, self.shared.stall_timeout)?;
                self.shared
                    .handle
                    .block_on(std::future::poll_fn(|context| self.seat.bell.poll_rung(context)));
                self.with(|_| ())?;
                continue;
            }
            let (now, later) = piece.split_at(room.min(piece.len()));
            stream.push(Bytes::copy_from_slice(now)).map_err(|_| Gone)?;
            piece = later;
        }
        self.expect_piece()
    }
}

/// A line of the library's own.
pub(super) fn emit(level: Level, line: &str, origin: &Origin<'_>) {
    let level = match level {
        Level::Debug => LogLevel::Debug,
        Level::Info => LogLevel::Info,
        Level::Warning => LogLevel::Warning,
        Level::Error => LogLevel::Error,
        Level::Critical => LogLevel::Critical,
    };
    let line = LogLine { level, source: LogSource::Logger, logger: String::new(), text: line.to_owned() };
    log::emit(&line, origin);
}

/// `None` if it is none that HTTP has, which the host of native scripts has seen to.
pub(super) fn reply_head(head: &Head) -> Option<ReplyHead> {
    let status = StatusCode::from_u16(head.status).ok()?;
    Some(ReplyHead { status, headers: frame::decode_headers(&head.block).ok()?, failed: false })
}
