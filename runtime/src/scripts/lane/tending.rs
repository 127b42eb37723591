//! What a lane looks after while its worker works: whose caller has gone, who is over time, whose client does not read.

use std::time::Duration;

use outrigger_protocol::error::CallError;
use tokio::time::Instant;

use super::{Active, End, Lane, timeout};
use crate::config::ScriptConfig;
use crate::scripts::connection::Connection;
use crate::scripts::frame::Kind;
use crate::scripts::stream::{Producer, StreamError};
use crate::scripts::worker::{CallKind, Worker};

/// How long an event loop that works on several calls has to say that it turns: longer than a callback of any of them should take.
const WORD: Duration = Duration::from_millis(250);

/// Why a call is not wanted any more, as CANCEL says it.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Unwanted {
    ClientLeft = 1,
    OutOfTime = 2,
}

impl Lane {
    /// Looks after all calls, and sets the alarm for when that is due again.
    pub(super) fn tend(&mut self, worker: &mut Worker) -> Option<End> {
        if self.shared.break_off.is_cancelled() {
            if self.active.iter().any(|active| active.begun) {
                tracing::warn!(worker = self.number, "calls broken off by the end of shutdown.drain");
            }
            return Some(End::BrokenOff);
        }
        // Others would end with its worker.
        let shared_loop = worker.ready.kind == CallKind::Async && self.active.len() > 1;
        let mut care = Care {
            config: &self.shared.config,
            connection: &mut worker.connection,
            worker: self.number,
            shared_loop,
            now: Instant::now(),
            late: timeout(&self.shared),
        };
        let mut earliest = self.formed_since.map(|since| since + self.shared.config.max_delay);
        for active in &mut self.active {
            let stall = care.stream(active);
            // First: its caller has left because of that.
            let deadline = care.deadline(active);
            care.caller(active);
            let limit = match active.begun.then(|| care.time(active)) {
                Some(Time::Over) => return Some(End::Hangs),
                Some(Time::Until(at)) => Some(at),
                None => None,
            };
            earliest = [earliest, stall, limit, deadline].into_iter().flatten().min();
        }
        if let Some(at) = earliest {
            self.alarm.set(at);
        }
        None
    }
}

/// Whether there is time left.
enum Time {
    Until(Instant),
    Over,
}

/// What looking after one call takes.
struct Care<'a> {
    config: &'a ScriptConfig,
    connection: &'a mut Connection,
    worker: usize,
    /// Whether other calls are on the same event loop.
    shared_loop: bool,
    now: Instant,
    /// What the caller of a call that is over its time is told.
    late: CallError,
}

impl Care<'_> {
    fn cancel(&mut self, active: &mut Active, why: Unwanted) {
        active.cancelled = true;
        self.connection.put_frame(Kind::Cancel, active.id, &[why as u8]);
    }

    /// Gives a stream its credit. Where there is none to give, the worker waits for the client, which is not its fault; but a client
    /// that takes nothing for too long loses its right to a lane. When to look again.
    fn stream(&mut self, active: &mut Active) -> Option<Instant> {
        let stream = active.stream.as_ref()?;
        let gap_ends = self.now + self.config.gap_timeout;
        if let Some(credit) = stream.take_credit() {
            self.connection.put_frame(Kind::Credit, active.id, &credit.to_le_bytes());
            active.deadline = gap_ends;
        }
        if stream.has_credit() {
            active.stalled = None;
            return None;
        }
        let since = *active.stalled.get_or_insert(self.now);
        // One that was told to end has the time that it has.
        if active.cancelled {
            return None;
        }
        active.deadline = gap_ends;
        let until = since + self.config.stall_timeout;
        if self.now < until {
            return Some(until);
        }
        let request = &active.job.call.request_id;
        tracing::warn!(
            worker = self.worker,
            request = request.to_str().ok(),
            "a client does not read its stream, which is broken off"
        );
        stream.end(Err(StreamError::Stalled));
        self.cancel(active, Unwanted::ClientLeft);
        None
    }

    /// Cancels a call whose caller has gone.
    fn caller(&mut self, active: &mut Active) {
        let left = active.job.is_abandoned() || active.stream.as_ref().is_some_and(Producer::is_left);
        if left && !active.cancelled {
            self.cancel(active, Unwanted::ClientLeft);
        }
    }

    /// Tells a caller whose deadline is over. When to look again.
    fn deadline(&mut self, active: &mut Active) -> Option<Instant> {
        let deadline = active.job.slot.deadline().filter(|_| active.begun && !active.expired)?;
        if self.now < deadline {
            return Some(deadline);
        }
        active.expired = true;
        active.tell(Err(crate::scheduler::expired()));
        if let Some(stream) = &active.stream {
            stream.end(Err(StreamError::Lost));
        }
        if !active.cancelled {
            self.cancel(active, Unwanted::OutOfTime);
        }
        None
    }

    /// Answers a call that is over its limit, and gives its worker the grace to come back from it.
    fn time(&mut self, active: &mut Active) -> Time {
        if let Some(since) = active.overdue {
            let until = since + self.grace(active.ending);
            return if self.now >= until { Time::Over } else { Time::Until(until) };
        }
        if self.now < active.deadline {
            return Time::Until(active.deadline);
        }
        let (key, limit, text) = match active.stream {
            None => ("script.timeout", self.config.timeout, "run() is over its time limit"),
            Some(_) => ("script.gap_timeout", self.config.gap_timeout, "a stream gives nothing more"),
        };
        let request = &active.job.call.request_id;
        tracing::error!(
            worker = self.worker,
            request = request.to_str().ok(),
            key,
            millis = limit.as_millis(),
            "{text}"
        );
        self.cancel(active, Unwanted::OutOfTime);
        active.overdue = Some(self.now);
        // The caller need not wait for the worker.
        active.tell(Err(self.late.clone()));
        if let Some(stream) = &active.stream {
            stream.end(Err(StreamError::Lost));
        }
        Time::Until(self.now + self.grace(false))
    }

    /// How long a call that is over its time may go on before its worker ends; `ending` as its worker says it.
    fn grace(&self, ending: bool) -> Duration {
        let grace = match (self.shared_loop, ending) {
            (false, _) => Duration::ZERO,
            (true, false) => WORD,
            (true, true) => self.config.task_grace,
        };
        grace.max(self.config.cancel_grace)
    }
}
