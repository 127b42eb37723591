//! What a lane sends its worker: which of the waiting calls, how many at once, and where their bodies lie.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{AHEAD, Active, Devices, Lane};
use crate::scripts::call::{Body, Job};
use crate::scripts::frame::{self, CallBody, CallHead};
use crate::scripts::worker::{CallKind, Worker};

/// Calls that are sent ahead take at most so many bytes.
const AHEAD_BYTES: usize = 48 * 1024;

impl Lane {
    /// Hands the worker what it can take.
    pub(super) fn fill(&mut self, worker: &mut Worker) {
        match worker.ready.kind {
            CallKind::Sync => {
                if self.active.is_empty() {
                    let Some(job) = self.shared.queue.take(self.number, true, usize::MAX) else { return };
                    self.send(worker, job, true, false);
                }
                if self.shared.sends_ahead() {
                    self.fill_ahead(worker);
                }
            }
            CallKind::Async => {
                while self.active.len() < self.shared.config.concurrency {
                    let Some(job) = self.shared.queue.take(self.number, true, usize::MAX) else { break };
                    self.send(worker, job, true, false);
                }
            }
            CallKind::Batch => self.fill_batch(worker),
        }
    }

    /// Sends the worker small calls that it will come to next.
    fn fill_ahead(&mut self, worker: &mut Worker) {
        let mut room = AHEAD_BYTES;
        for active in self.active.iter().filter(|active| !active.begun) {
            room = room.saturating_sub(active.job.call.size());
        }
        while self.active.len() <= AHEAD {
            let Some(job) = self.shared.queue.take(self.number, false, room) else { break };
            room -= job.call.size().min(room);
            self.send(worker, job, false, false);
        }
    }

    fn fill_batch(&mut self, worker: &mut Worker) {
        if !self.active.is_empty() {
            return;
        }
        let (most, delay) = (self.shared.config.max_batch, self.shared.config.max_delay);
        while self.forming.len() < most {
            let Some(job) = self.shared.queue.take(self.number, true, usize::MAX) else { break };
            self.forming.push(job);
        }
        self.forming.retain(|job| !job.is_abandoned());
        if self.forming.is_empty() {
            self.formed_since = None;
            return;
        }
        let now = Instant::now();
        let due = *self.formed_since.get_or_insert(now) + delay;
        if self.forming.len() < most && now < due {
            return self.alarm.set(due);
        }
        self.formed_since = None;
        self.shared.queue.not_idle(self.number);
        let jobs = std::mem::take(&mut self.forming);
        let last = jobs.len() - 1;
        for (at, job) in jobs.into_iter().enumerate() {
            self.send(worker, job, true, at < last);
        }
    }

    fn send(&mut self, worker: &mut Worker, mut job: Job, begun: bool, more: bool) {
        let limit = self.shared.config.timeout;
        let now = Instant::now();
        let id = self.next;
        self.next += 1;
        if begun {
            job.slot.begin();
        }
        // Not before the worker is at it does its time run; until then the deadline says nothing.
        let deadline = now + limit;
        let until = job.until(deadline);
        // The script hears of whichever is earlier; 0 would be no limit.
        let told = until.saturating_duration_since(now).max(Duration::from_nanos(1));
        if begun {
            self.alarm.set(until);
        }
        let body = std::mem::replace(&mut job.call.body, Body::Bytes(Bytes::new()));
        let (place, bytes) = match body {
            // It may go to the next worker, which cannot read this one's regions.
            Body::Bytes(bytes) if !begun => (CallBody::Follows(bytes.len()), bytes),
            Body::Shared(filled) if !begun => {
                let bytes = Bytes::from_owner(filled);
                (CallBody::Follows(bytes.len()), bytes)
            }
            Body::Shared(filled) => match worker.connection.regions.lend(filled) {
                Ok(reference) => (CallBody::In(reference), Bytes::new()),
                Err(filled) => {
                    let bytes = Bytes::from_owner(filled);
                    (CallBody::Follows(bytes.len()), bytes)
                }
            },
            Body::Bytes(bytes) => match worker.connection.regions.lend_copy(bytes.len(), &[(0, &bytes)]) {
                Some(reference) => (CallBody::In(reference), Bytes::new()),
                None => (CallBody::Follows(bytes.len()), bytes),
            },
        };
        let call = &job.call;
        let head = CallHead {
            id,
            method: call.method,
            more,
            request_id: call.request_id.as_bytes(),
            // A native script has it among the headers.
            trace: if self.shared.config.native.is_none() { &call.trace } else { &[] },
            query: call.query.as_bytes(),
            headers: call.headers.as_ref(),
            limit: told,
            body: place,
        };
        worker.connection.put(|out| frame::encode_call(&head, out));
        worker.connection.put_bytes(bytes.clone());
        // It goes to the next worker if this one dies before it has begun.
        job.call.body = Body::Bytes(bytes);
        self.active.push_back(Active {
            id,
            job,
            begun,
            deadline,
            cancelled: false,
            overdue: None,
            expired: false,
            ending: false,
            stream: None,
            stalled: None,
            devices: Devices::default(),
        });
    }
}
