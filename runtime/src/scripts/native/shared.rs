//! What the threads share: the queue in front of them, the way of a call through one of them, and the watch over time limits.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use outrigger_native::{self as native, Answer, InProcess};
use outrigger_protocol::aml;
use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::running::{Active, Over, Running, Seat, Waits, reply_head};
use crate::busy::{Busy, Outcome};
use crate::scripts::ScriptLimits;
use crate::scripts::call::{Body, Job, ScriptAnswer};
use crate::scripts::frame::{Method, Reply, Trouble};
use crate::scripts::lane::interpret;
use crate::scripts::stream::StreamError;

pub(super) struct Shared {
    pub(super) timeout: Duration,
    pub(super) gap_timeout: Duration,
    pub(super) stall_timeout: Duration,
    pub(super) stream_window: u64,
    pub(super) limits: ScriptLimits,
    pub(super) busy: Arc<Busy>,
    /// For waiting inside a thread.
    pub(super) handle: Handle,
    pub(super) seats: Vec<Seat>,
    pub(super) queue: Mutex<Queue>,
    /// There is a job, or no more will come.
    pub(super) work: Condvar,
    /// Threads whose call is over its time limit.
    pub(super) stuck: Mutex<usize>,
    /// When the watch looks next, in microseconds since `begun`.
    pub(super) due: AtomicU64,
    pub(super) begun: Instant,
    /// It has to look earlier.
    pub(super) sooner: Notify,
    /// Calls that are still running are not waited for any more.
    pub(super) break_off: CancellationToken,
}

/// Jobs that no thread has taken. Slots bound their number.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) jobs: VecDeque<Job>,
    /// Threads that wait for one.
    pub(super) idle: usize,
    /// No more jobs are taken in; the threads end after the last one.
    pub(super) stopped: bool,
}

impl Shared {
    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stuck(&self) -> MutexGuard<'_, usize> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes no more jobs in.
    pub(super) fn close(&self) {
        self.queue().stopped = true;
        self.work.notify_all();
    }

    /// Leaves a job for whichever thread comes to it first.
    pub(super) fn put(&self, job: Job) {
        let mut queue = self.queue();
        if queue.stopped || self.break_off.is_cancelled() {
            drop(queue);
            return job.refuse(&crate::scheduler::draining());
        }
        let expires = job.since + self.limits.queue_wait;
        queue.jobs.push_back(job);
        let idle = queue.idle > 0;
        drop(queue);
        if idle {
            self.work.notify_one();
        } else {
            self.look_at(expires);
        }
    }

    /// Waits for a job; `None` when no more will come.
    pub(super) fn take(&self) -> Option<Job> {
        let mut queue = self.queue();
        loop {
            match queue.jobs.pop_front() {
                // Dropping it counts it as cancelled and frees its slot.
                // First: its caller has left because of that.
                Some(job) if job.is_expired(Instant::now()) => job.expire(),
                Some(job) if job.is_abandoned() => drop(job),
                Some(job) => return Some(job),
                None if queue.stopped => return None,
                None => {
                    queue.idle += 1;
                    queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
                    queue.idle -= 1;
                }
            }
        }
    }

    /// Works on a job.
    pub(super) fn run(&self, number: usize, script: &InProcess, mut job: Job) {
        let Some(seat) = self.seats.get(number) else { return };
        job.slot.begin();
        let call = &mut job.call;
        let id = call.request_id.clone();
        let (asked, query, headers) = (call.method, std::mem::take(&mut call.query), call.headers.take());
        let body = std::mem::replace(&mut call.body, Body::Bytes(Bytes::new()));
        let begun = Instant::now();
        let deadline = begun + self.timeout;
        let until = job.until(deadline);
        seat.sit(job, deadline);
        self.look_at(until);
        let headers = borrowed(headers.as_ref());
        let request = native::Request {
            method: method(asked),
            id: id.as_bytes(),
            query: query.as_bytes(),
            headers: &headers,
            body: body.as_ref(),
            deadline: Some(until.into_std()),
        };
        let running = Running { shared: self, seat, number, request: &id, begun };
        // A panic that comes up to here is a bug of ours; it costs the call, not the thread.
        let answer = catch_unwind(AssertUnwindSafe(|| script.call(&request, &running)));
        let run = begun.elapsed();
        let reply = match answer {
            Ok(answer) => self.reply(answer),
            Err(_) => raised("the call panicked".into()),
        };
        if let Some(active) = seat.rise() {
            self.finish(number, active, reply, run);
        }
    }

    /// What the library answers, in the terms of a worker's REPLY.
    fn reply(&self, answer: Result<Answer<Vec<u8>>, native::CallError>) -> Reply {
        match answer {
            Ok(Answer::Whole(head, body)) => {
                let (size, most) = (body.as_ref().len(), self.limits.answer);
                match reply_head(&head) {
                    _ if size > most => {
                        raised(format!("its answer has {size} bytes, limits.answer is {most}"))
                    }
                    Some(head) => Reply::Answer(head, Bytes::from_owner(body)),
                    None => raised("its answer has headers that HTTP does not have".into()),
                }
            }
            Ok(Answer::Streamed) => Reply::Cancelled,
            Err(native::CallError::Input { message }) => {
                Reply::Refused { status: 400, message, log: String::new() }
            }
            Err(native::CallError::Failed { message }) => raised(message),
            Err(error) => raised(error.to_string()),
        }
    }

    /// The thread has returned from a call.
    fn finish(&self, number: usize, active: Active, reply: Reply, run: Duration) {
        let left = active.is_left();
        let Active { job, over, expired, stream, .. } = active;
        let request = &job.call.request_id;
        if over == Some(Over::Time) {
            self.note_free();
            tracing::warn!(
                worker = number,
                request = request.to_str().ok(),
                ?run,
                "a call that was over its time limit has returned"
            );
        }
        if let Some(over) = over {
            return job.answer(Err(self.error(over)));
        }
        if expired {
            return job.finish(Outcome::Failed);
        }
        let Some(stream) = stream else {
            let result = interpret(reply, run, request, None);
            return job.answer(result.unwrap_or_else(|_| Err(aml::internal_error(ErrorCode::Internal))));
        };
        if left {
            // Whatever the library makes of that. Dropping the job counts it as cancelled.
            return;
        }
        let ended = match reply {
            Reply::Cancelled => Ok(()),
            reply => match interpret(reply, run, request, None) {
                Ok(Err(error)) => Err(error),
                Ok(Ok(_)) | Err(_) => Err(aml::internal_error(ErrorCode::Internal)),
            },
        };
        let end = ended.as_ref().copied().map_err(|_| StreamError::Raised);
        // The slot first, so that whoever sees the end finds it free.
        job.answer(ended.map(|()| ScriptAnswer::Json { text: Bytes::new(), run, devices: None }));
        stream.end(end);
    }

    fn error(&self, over: Over) -> CallError {
        match over {
            Over::Time => aml::scoring_timeout(self.timeout),
            Over::Service => crate::scheduler::draining(),
        }
    }

    /// Sees to it that the watch looks at `at`, or before. Costs nothing when it does anyhow.
    pub(super) fn look_at(&self, at: Instant) {
        if self.due_by(at) {
            self.sooner.notify_one();
        }
    }

    /// Sets the time of the next look, if that is earlier than it was.
    fn due_by(&self, at: Instant) -> bool {
        let micros = at.saturating_duration_since(self.begun).as_micros();
        // Rounded up, so that what is due then is due.
        let micros = u64::try_from(micros).unwrap_or(u64::MAX).saturating_add(1);
        micros < self.due.fetch_min(micros, Ordering::AcqRel)
    }

    /// Looks after time limits, and after what is left when the service does not wait any more.
    pub(super) async fn watch(self: Arc<Self>) {
        loop {
            self.tend();
            let due = match self.due.load(Ordering::Acquire) {
                u64::MAX => None,
                micros => Some(self.begun + Duration::from_micros(micros)),
            };
            let alarm = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = alarm => {}
                () = self.sooner.notified() => {}
            }
        }
    }

    fn tend(&self) {
        // Before looking: a limit that is set meanwhile is seen by the look, or makes this small again.
        self.due.store(u64::MAX, Ordering::Release);
        let now = Instant::now();
        for (number, seat) in self.seats.iter().enumerate() {
            let mut seated = seat.lock();
            let Some(active) = seated.as_mut().filter(|active| active.over.is_none()) else { continue };
            match active.job.slot.deadline().filter(|_| !active.expired) {
                Some(deadline) if deadline > now => {
                    self.due_by(deadline);
                }
                Some(_) => active.expire(&seat.bell),
                None => {}
            }
            let request = &active.job.call.request_id;
            if self.break_off.is_cancelled() {
                tracing::warn!(
                    worker = number,
                    request = request.to_str().ok(),
                    "a call was broken off by the end of shutdown.drain"
                );
                active.end(Over::Service, self.error(Over::Service), &seat.bell);
            } else if active.deadline > now {
                self.due_by(active.deadline);
            } else if active.waits == Waits::Client && !active.is_stalled() {
                // The client has just read, or gone: its thread goes on as soon as it is awake.
                active.waits = Waits::Script;
                active.deadline = now + self.gap_timeout;
                self.due_by(active.deadline);
            } else if active.waits == Waits::Client {
                tracing::warn!(
                    worker = number,
                    request = request.to_str().ok(),
                    "a client does not read its stream, which is broken off"
                );
                let deadline = now + self.gap_timeout;
                active.stall(deadline, &seat.bell);
                self.due_by(deadline);
            } else {
                let (key, limit) = match active.stream {
                    None => ("script.timeout", self.timeout),
                    Some(_) => ("script.gap_timeout", self.gap_timeout),
                };
                let millis = limit.as_millis();
                tracing::error!(
                    worker = number,
                    request = request.to_str().ok(),
                    key,
                    millis,
                    "a call is over its time limit; its thread cannot be ended and is taken until the library returns"
                );
                active.end(Over::Time, self.error(Over::Time), &seat.bell);
                self.note_stuck();
            }
        }
        self.expire(now);
    }

    fn note_stuck(&self) {
        let mut stuck = self.stuck();
        *stuck += 1;
        if *stuck == self.seats.len() {
            tracing::error!("no thread of the native script is left that could take calls");
            self.busy.set_able(false);
        }
    }

    fn note_free(&self) {
        let mut stuck = self.stuck();
        *stuck = stuck.saturating_sub(1);
        self.busy.set_able(true);
    }

    /// Refuses those that have waited for a thread for too long, and all of them where none is left.
    fn expire(&self, now: Instant) {
        let none_left = *self.stuck() == self.seats.len();
        let mut expired = Vec::new();
        {
            let mut queue = self.queue();
            while let Some(job) = queue.jobs.front() {
                let expires = job.since + self.limits.queue_wait;
                if expires > now && !none_left {
                    self.due_by(expires);
                    break;
                }
                expired.extend(queue.jobs.pop_front());
            }
        }
        for job in expired {
            let text = "no thread of the native script became free in time";
            job.refuse(&CallError::new(ErrorCode::Overloaded, text).with_retry_after(Duration::from_secs(1)));
        }
    }
}

fn raised(message: String) -> Reply {
    Reply::Raised(Trouble { message, traceback: String::new() })
}

fn borrowed(headers: Option<&HeaderMap>) -> Vec<(&[u8], &[u8])> {
    let headers = headers.into_iter().flatten();
    headers.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())).collect()
}

fn method(method: Method) -> native::Method {
    match method {
        Method::Get => native::Method::Get,
        Method::Post => native::Method::Post,
        Method::Options => native::Method::Options,
        Method::Head => native::Method::Head,
    }
}
