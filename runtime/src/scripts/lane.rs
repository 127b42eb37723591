//! A lane: the task that keeps one worker alive and has it work on jobs.
//!
//! Where a service is a script with one worker, and calls are fast (see [`crate::slots`]), calls are sent to the worker *ahead*: while
//! it works on one, the next few lie in its socket, so that neither side has to go to sleep between two calls. A sync worker
//! answers in order and one by one, so when it dies exactly the first unanswered call is lost; the others were never begun and go to its
//! successor. With more than one worker nothing is sent ahead: a call could wait behind a slow one while another worker is idle.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::time::{Instant, Sleep};

use super::call::{Body, Job, ScriptAnswer, ScriptResult};
use super::confinement::Confinement;
use super::connection::{ExchangeError, Frame};
use super::frame::{self, CallBody, CallHead, FrameError, Kind, Reply};
use super::process::Death;
use super::stream::{Producer, StreamError, flow};
use super::worker::{CallKind, Worker};
use super::{Door, Shared, restarting};

/// How long a worker has to end in order.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Calls that are sent ahead.
pub(super) const AHEAD: usize = 7;
/// Calls that are sent ahead take at most so many bytes.
const AHEAD_BYTES: usize = 48 * 1024;
/// How often those are looked at who wait while no worker is alive.
const LOOK: Duration = Duration::from_millis(250);

/// What a client is told by CANCEL's payload.
const CLIENT_LEFT: u8 = 1;
const OUT_OF_TIME: u8 = 2;

pub(super) struct Lane {
    shared: Arc<Shared>,
    number: usize,
    door: Arc<Door>,
    /// Calls that are with the worker, oldest first.
    active: VecDeque<Active>,
    /// Calls that are to make a batch, and since when.
    forming: Vec<Job>,
    formed_since: Option<Instant>,
    /// Number of the next call.
    next: u64,
    /// Calls that this worker has answered.
    served: u64,
    alarm: Alarm,
}

/// A call that is with the worker.
struct Active {
    id: u64,
    job: Job,
    /// Whether the worker is at it; false for what lies in its socket behind another.
    begun: bool,
    /// When it is over: the limit of `run()`, or of the gap in a stream.
    deadline: Instant,
    /// The worker was told that nobody waits.
    cancelled: bool,
    /// Since when it is over.
    overdue: Option<Instant>,
    stream: Option<Producer>,
    /// Since when its client takes nothing.
    stalled: Option<Instant>,
}

/// One timer for all limits of a lane. It is set again only when something is due earlier than it rings; an alarm that comes too early
/// is looked at and set again.
#[derive(Default)]
struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    set: Option<Instant>,
}

impl Alarm {
    fn set(&mut self, at: Instant) {
        if self.set.is_some_and(|set| set <= at) {
            return;
        }
        self.set = Some(at);
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(at),
            None => self.sleep = Some(Box::pin(tokio::time::sleep_until(at))),
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.set.is_none() {
            return Poll::Pending;
        }
        let Some(sleep) = &mut self.sleep else { return Poll::Pending };
        match sleep.as_mut().poll(context) {
            Poll::Ready(()) => {
                self.set = None;
                Poll::Ready(())
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

/// How it ended with a worker.
enum End {
    /// It is gone, in the middle of the calls that it was at.
    Gone(ExchangeError),
    /// It does not come back from a call.
    Hangs,
    /// The service does not wait for its calls any more.
    BrokenOff,
    /// The service is over.
    Over,
}

/// What woke a lane.
enum News {
    Read(Result<(), ExchangeError>),
    Rung,
    Alarm,
    Answer(super::questions::Answer),
}

impl Lane {
    pub(super) fn new(shared: Arc<Shared>, number: usize, door: Arc<Door>) -> Self {
        Self {
            shared,
            number,
            door,
            active: VecDeque::new(),
            forming: Vec::new(),
            formed_since: None,
            // 0 stands for no call.
            next: 1,
            served: 0,
            alarm: Alarm::default(),
        }
    }

    /// Works on jobs for as long as the service lives; starts the worker again whenever it is lost.
    pub(super) async fn run(mut self, worker: Worker) {
        let mut worker = Some(worker);
        while let Some(mut ready) = worker.take() {
            self.door.pid.store(ready.pid(), Ordering::Relaxed);
            self.served = 0;
            let end = self.serve(&mut ready).await;
            self.leave();
            match end {
                End::Over => {
                    ready.stop(STOP_GRACE).await;
                }
                End::BrokenOff => {
                    self.refuse_all(&crate::slots::draining());
                    ready.terminate().await;
                }
                End::Gone(error) => {
                    let death = ready.bury().await;
                    self.lose(&error, &death);
                    self.shared.breaker.died(self.number, self.served, &death);
                    worker = self.start_again().await;
                }
                End::Hangs => {
                    if self.active.iter().any(|active| !active.begun) {
                        // What it had to say in its last moment tells which of the calls that lie in its socket it has begun.
                        self.hear_out(ready).await;
                    } else {
                        // Its end takes as long as it takes; the next one is started meanwhile.
                        self.shared.bury(self.number, ready);
                    }
                    self.lose_hanging();
                    // It did come up well: no reason to wait.
                    worker = self.start_again().await;
                }
            }
        }
        self.refuse_all(&crate::slots::draining());
        self.shared.refuse_waiting(&crate::slots::draining());
    }

    /// Starts a worker until one comes up, ever more slowly; `None` when the service ends meanwhile.
    async fn start_again(&mut self) -> Option<Worker> {
        let shared = Arc::clone(&self.shared);
        self.put_back();
        let look = async {
            loop {
                tokio::time::sleep(LOOK).await;
                shared.expire_waiting();
            }
        };
        let start = async {
            loop {
                shared.breaker.wait(self.number).await;
                shared.restarts.fetch_add(1, Ordering::Relaxed);
                match shared.start_worker(self.number, &self.door).await {
                    Ok(worker) => return worker,
                    Err(error) => {
                        tracing::error!(worker = self.number, %error, "worker did not start again");
                        shared.breaker.did_not_start(self.number, &error);
                        if !shared.is_alive() {
                            // Whoever waits for a worker hears at once.
                            shared.refuse_waiting(&restarting(&shared));
                        }
                    }
                }
            }
        };
        tokio::select! {
            worker = start => Some(worker),
            () = look => None,
            () = shared.stop.cancelled() => None,
            () = shared.break_off.cancelled() => None,
        }
    }

    /// Works on jobs with one worker until that ends.
    async fn serve(&mut self, worker: &mut Worker) -> End {
        let shared = Arc::clone(&self.shared);
        // Whatever happened between the start of the worker and now.
        if let Some(end) = self.tend(worker) {
            return end;
        }
        loop {
            self.fill(worker);
            worker.connection.release_done();
            worker.connection.flush();
            match poll_fn(|context| self.poll_news(worker, context)).await {
                News::Read(Ok(())) => loop {
                    match worker.connection.next_frame() {
                        Ok(Some(frame)) => {
                            if let Err(error) = self.hear(worker, frame) {
                                return End::Gone(error.into());
                            }
                        }
                        Ok(None) => break,
                        Err(error) => return End::Gone(error.into()),
                    }
                },
                News::Read(Err(error)) => return End::Gone(error),
                News::Answer(answer) => answer.put(&mut worker.connection),
                News::Rung | News::Alarm => {
                    if let Some(end) = self.tend(worker) {
                        return end;
                    }
                }
            }
            if self.active.is_empty() && self.forming.is_empty() && shared.stop.is_cancelled() {
                return End::Over;
            }
        }
    }

    fn poll_news(&mut self, worker: &mut Worker, context: &mut Context<'_>) -> Poll<News> {
        // The worker comes last: one that talks without end must not keep its limits from being held.
        if self.door.bell.poll_rung(context).is_ready() {
            return Poll::Ready(News::Rung);
        }
        if self.alarm.poll(context).is_ready() {
            return Poll::Ready(News::Alarm);
        }
        if let Poll::Ready(answer) = worker.questions.poll_answered(context) {
            return Poll::Ready(News::Answer(answer));
        }
        if let Poll::Ready(result) = worker.connection.poll(context) {
            return Poll::Ready(News::Read(result));
        }
        Poll::Pending
    }

    /// Hands the worker what it can take.
    fn fill(&mut self, worker: &mut Worker) {
        match worker.ready.kind {
            CallKind::Sync => {
                if self.active.is_empty() {
                    let Some(job) = self.shared.take(self.number, true, usize::MAX) else { return };
                    self.send(worker, job, true, false);
                }
                if self.shared.sends_ahead() {
                    self.fill_ahead(worker);
                }
            }
            CallKind::Async => {
                while self.active.len() < self.shared.config.concurrency {
                    let Some(job) = self.shared.take(self.number, true, usize::MAX) else { break };
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
            let Some(job) = self.shared.take(self.number, false, room) else { break };
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
            let Some(job) = self.shared.take(self.number, true, usize::MAX) else { break };
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
        self.shared.not_idle(self.number);
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
        if begun {
            self.alarm.set(deadline);
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
            query: call.query.as_bytes(),
            headers: call.headers.as_ref(),
            limit,
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
            stream: None,
            stalled: None,
        });
    }

    /// The worker says something.
    fn hear(&mut self, worker: &mut Worker, frame: Frame) -> Result<(), FrameError> {
        match frame.kind {
            Kind::Reply => self.hear_reply(frame),
            Kind::Chunk => {
                let gap = self.shared.config.gap_timeout;
                let active = self.find(frame.id).ok_or(FrameError::Malformed("CHUNK"))?;
                let stream = active.stream.as_ref().ok_or(FrameError::Malformed("CHUNK"))?;
                let chunk = frame.tail.unwrap_or(frame.payload);
                stream.push(chunk).map_err(|_| FrameError::Malformed("CHUNK without credit"))?;
                active.deadline = Instant::now() + gap;
                Ok(())
            }
            Kind::End => self.hear_end(frame),
            Kind::Log => {
                let line = frame::decode_log(frame.payload)?;
                let request = self.find(frame.id).map(|active| active.job.call.request_id.clone());
                worker.log(&line, request.as_ref());
                Ok(())
            }
            _ => worker.serve(frame),
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
            self.alarm.set(next.deadline);
        }
        taken
    }

    fn hear_reply(&mut self, frame: Frame) -> Result<(), FrameError> {
        const BAD: FrameError = FrameError::Malformed("REPLY");
        let (reply, run) = frame::decode_reply(frame.payload, frame.tail)?;
        if let Reply::Stream(head) = reply {
            let window = self.shared.config.stream_window as u64;
            let (producer, body) = flow(window, Arc::clone(&self.door.bell));
            let deadline = Instant::now() + self.shared.config.gap_timeout;
            let active =
                self.find(frame.id).filter(|active| active.begun && active.stream.is_none()).ok_or(BAD)?;
            active.stream = Some(producer);
            active.deadline = deadline;
            // A call that is over its time has been answered; its stream has lost its reader and is cancelled.
            active.job.tell(Ok(ScriptAnswer::Stream { head, body, run }));
            self.alarm.set(deadline);
            return Ok(());
        }
        let active = self.take_begun(frame.id).filter(|active| active.stream.is_none()).ok_or(BAD)?;
        self.served += 1;
        self.shared.breaker.served(self.number);
        if active.overdue.is_none() && active.cancelled && matches!(reply, Reply::Cancelled) {
            // Dropping the job counts it as cancelled.
            return Ok(());
        }
        let result = interpret(reply, run, &active.job.call.request_id, Some(&self.shared.confinement))?;
        active.job.answer(if active.overdue.is_some() { Err(timeout(&self.shared)) } else { result });
        Ok(())
    }

    fn hear_end(&mut self, frame: Frame) -> Result<(), FrameError> {
        const BAD: FrameError = FrameError::Malformed("END");
        let (reply, run) = frame::decode_reply(frame.payload, frame.tail)?;
        let active = self.take_begun(frame.id).ok_or(BAD)?;
        let stream = active.stream.ok_or(BAD)?;
        self.served += 1;
        self.shared.breaker.served(self.number);
        if active.overdue.is_none() && active.cancelled && is_cancellation(&reply) {
            // Dropping the job counts it as cancelled.
            return Ok(());
        }
        let request = &active.job.call.request_id;
        let ended = match reply {
            Reply::Returned(_) | Reply::Cancelled => Ok(()),
            reply => match interpret(reply, run, request, Some(&self.shared.confinement))? {
                Ok(_) => return Err(BAD),
                Err(error) => Err(error),
            },
        };
        stream.end(ended.as_ref().map(|_| ()).map_err(|_| StreamError::Raised));
        let text = Bytes::new();
        active.job.answer(ended.map(|()| ScriptAnswer::Json { text, run }));
        Ok(())
    }

    /// Looks after the calls: whose caller has gone, who is over time, who may send more.
    fn tend(&mut self, worker: &mut Worker) -> Option<End> {
        if self.shared.break_off.is_cancelled() {
            if self.active.iter().any(|active| active.begun) {
                tracing::warn!(worker = self.number, "calls broken off by the end of shutdown.drain");
            }
            return Some(End::BrokenOff);
        }
        let now = Instant::now();
        let grace = self.shared.config.cancel_grace;
        let mut earliest: Option<Instant> =
            self.formed_since.map(|since| since + self.shared.config.max_delay);
        let mut sooner = |at: Instant| earliest = Some(earliest.map_or(at, |known| known.min(at)));
        for active in &mut self.active {
            if let Some(stream) = &active.stream {
                if let Some(credit) = stream.take_credit() {
                    worker.connection.put_frame(Kind::Credit, active.id, &credit.to_le_bytes());
                    active.deadline = now + self.shared.config.gap_timeout;
                }
                // Who has no credit waits for the client, which is not the worker's fault. But a client that takes nothing for
                // too long has lost its right to a lane.
                let stalled = (!stream.has_credit()).then(|| *active.stalled.get_or_insert(now));
                active.stalled = stalled;
                // One that was told to end has the time that it has.
                if let Some(since) = stalled.filter(|_| !active.cancelled) {
                    let until = since + self.shared.config.stall_timeout;
                    active.deadline = now + self.shared.config.gap_timeout;
                    if now < until {
                        sooner(until);
                    } else {
                        let request = &active.job.call.request_id;
                        tracing::warn!(
                            worker = self.number,
                            ?request,
                            "a client does not read its stream, which is broken off"
                        );
                        stream.break_off(StreamError::Stalled);
                        active.cancelled = true;
                        worker.connection.put_frame(Kind::Cancel, active.id, &[CLIENT_LEFT]);
                    }
                }
            }
            let left = active.job.is_abandoned() || active.stream.as_ref().is_some_and(Producer::is_left);
            if left && !active.cancelled {
                active.cancelled = true;
                worker.connection.put_frame(Kind::Cancel, active.id, &[CLIENT_LEFT]);
            }
            if !active.begun {
                continue;
            }
            match active.overdue {
                Some(since) if now >= since + grace => return Some(End::Hangs),
                Some(since) => sooner(since + grace),
                None if now >= active.deadline => {
                    let request = &active.job.call.request_id;
                    let config = &self.shared.config;
                    let (key, limit, text) = match active.stream {
                        None => ("script.timeout", config.timeout, "run() is over its time limit"),
                        Some(_) => ("script.gap_timeout", config.gap_timeout, "a stream gives nothing more"),
                    };
                    tracing::error!(
                        worker = self.number,
                        ?request,
                        key,
                        millis = limit.as_millis(),
                        "{text}"
                    );
                    worker.connection.put_frame(Kind::Cancel, active.id, &[OUT_OF_TIME]);
                    active.overdue = Some(now);
                    active.cancelled = true;
                    // The caller need not wait for the worker.
                    active.job.tell(Err(timeout(&self.shared)));
                    if let Some(stream) = active.stream.take() {
                        stream.end(Err(StreamError::Lost));
                        active.stream = Some(flow(u64::MAX, Arc::clone(&self.door.bell)).0);
                    }
                    sooner(now + grace);
                }
                None => sooner(active.deadline),
            }
        }
        if let Some(at) = earliest {
            self.alarm.set(at);
        }
        None
    }

    /// Ends a worker that hangs and takes the replies that were still under way, so that a call which it has begun is not begun again.
    async fn hear_out(&mut self, worker: Worker) {
        let number = self.number;
        let (death, mut connection) = worker.terminate_and_keep().await;
        tracing::warn!(worker = number, %death, "worker ended");
        while let Ok(frame) = connection.frame().await {
            if frame.kind == Kind::Reply && self.hear_reply(frame).is_err() {
                break;
            }
        }
    }

    /// The worker is gone, and what it was at with it.
    fn lose(&mut self, error: &ExchangeError, death: &Death) {
        for active in take_if(&mut self.active, |active| active.begun) {
            let request = &active.job.call.request_id;
            tracing::error!(worker = self.number, ?request, %error, %death, "worker lost during a call");
            let message = format!("the worker ended during the call: {death}");
            active.job.answer(if active.overdue.is_some() {
                Err(timeout(&self.shared))
            } else {
                Err(CallError::new(ErrorCode::WorkerLost, message))
            });
        }
        if self.active.is_empty() && self.forming.is_empty() {
            tracing::warn!(worker = self.number, %error, %death, "worker ended");
        }
    }

    /// The worker is being ended because of a call that does not come back; whatever else it was at ends too.
    fn lose_hanging(&mut self) {
        for active in take_if(&mut self.active, |active| active.begun) {
            let message = "the worker was ended because another call of its did not come back in time";
            active.job.answer(match active.overdue {
                Some(_) => Err(timeout(&self.shared)),
                None => Err(CallError::new(ErrorCode::WorkerLost, message)),
            });
        }
    }

    /// Calls that were never begun wait for whichever worker is next.
    fn put_back(&mut self) {
        let never_begun = self.active.drain(..).map(|active| active.job);
        let jobs: Vec<Job> = never_begun.chain(self.forming.drain(..)).collect();
        self.formed_since = None;
        self.shared.put_back(jobs);
    }

    fn refuse_all(&mut self, error: &CallError) {
        for active in self.active.drain(..) {
            match active.overdue {
                Some(_) => active.job.answer(Err(error.clone())),
                None => active.job.refuse(error),
            }
        }
        for job in self.forming.drain(..) {
            job.refuse(error);
        }
    }

    /// The worker can take no more jobs: off the list, and out of the count, before anything is waited for.
    fn leave(&self) {
        self.shared.not_idle(self.number);
        self.door.pid.store(0, Ordering::Relaxed);
        self.shared.count(false);
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

/// Takes those out of a list that are of a kind, in order.
fn take_if<T>(list: &mut VecDeque<T>, is: impl Fn(&T) -> bool) -> Vec<T> {
    let (taken, left) = list.drain(..).partition(is);
    *list = left;
    let taken: VecDeque<T> = taken;
    taken.into()
}

fn timeout(shared: &Shared) -> CallError {
    outrigger_protocol::aml::scoring_timeout(shared.config.timeout)
}

/// A script's reply as the caller sees it; what belongs in the log goes there.
pub(super) fn interpret(
    reply: Reply,
    run: Duration,
    request: &HeaderValue,
    confinement: Option<&Confinement>,
) -> Result<ScriptResult, FrameError> {
    Ok(match reply {
        Reply::Returned(text) => Ok(ScriptAnswer::Json { text, run }),
        Reply::Answer(head, body) => Ok(ScriptAnswer::Whole { head, body, run }),
        Reply::Raised(trouble) => {
            let hint = confinement.and_then(|confinement| confinement.hint(&trouble.message));
            let hint = hint.map(|hint| format!("\nnote: {hint}"));
            let (traceback, hint) = (trouble.traceback.trim_end(), hint.unwrap_or_default());
            tracing::error!(?request, error = %trouble.message, "run() raised\n{traceback}{hint}");
            Err(outrigger_protocol::aml::script_error())
        }
        Reply::Refused { status, message, log } => {
            if !log.is_empty() {
                tracing::warn!(?request, error = %message, "the input was refused\n{log}");
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
            tracing::error!(?request, %error, "what run() returned cannot be serialised\n{traceback}");
            Err(outrigger_protocol::aml::internal_error(ErrorCode::ScriptResultUnserialisable))
        }
        Reply::Cancelled => Err(CallError::new(ErrorCode::ScriptError, "the call was cancelled")),
        Reply::Stream(_) => return Err(FrameError::Malformed("REPLY")),
    })
}
