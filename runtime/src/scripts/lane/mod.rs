//! A lane: the task that keeps one worker alive and has it work on jobs.
//!
//! Where a service is a script with one worker, and calls are fast (see [`crate::scheduler`]), calls are sent to the worker *ahead*: while
//! it works on one, the next few lie in its socket, so that neither side has to go to sleep between two calls. A sync worker
//! answers in order and one by one, so when it dies exactly the first unanswered call is lost; the others were never begun and go to its
//! successor. With more than one worker nothing is sent ahead: a call could wait behind a slow one while another worker is idle.

mod alarm;
mod devices;
mod hearing;
mod sending;
mod tending;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::time::Instant;

use super::call::{Job, ScriptResult};
use super::connection::ExchangeError;
use super::process::Death;
use super::queue::Door;
use super::stream::Producer;
use super::worker::Worker;
use super::workers::{Shared, restarting};
use alarm::Alarm;
use devices::Devices;
use http::HeaderValue;

pub(super) use hearing::interpret;

/// How long a worker has to end in order.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Calls that are sent ahead.
pub(super) const AHEAD: usize = 7;
/// How often those are looked at who wait while no worker is alive.
const LOOK: Duration = Duration::from_millis(250);

/// A task, and what it knows of its worker.
pub(super) struct Lane {
    shared: Arc<Shared>,
    number: usize,
    door: Arc<Door>,
    /// Calls that are with the worker, oldest first.
    active: VecDeque<Active>,
    /// Calls that are to make a batch.
    forming: Vec<Job>,
    /// Since when there are any.
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
    /// Its caller's deadline is over and the caller has been told. The worker has its own time all the same: a deadline that is too
    /// short must not cost others a worker.
    expired: bool,
    /// Since then, its worker has said that it is ending the call.
    ending: bool,
    stream: Option<Producer>,
    /// Since when its client takes nothing.
    stalled: Option<Instant>,
    /// Where models ran meanwhile.
    devices: Devices,
}

impl Active {
    /// Ends the call.
    fn answer(self, result: ScriptResult) {
        self.job.answer(self.devices.mark(result));
    }

    /// Tells the caller, while the worker still works.
    fn tell(&mut self, result: ScriptResult) {
        self.job.tell(self.devices.mark(result));
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
                    self.refuse_all(&crate::scheduler::draining());
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
        self.refuse_all(&crate::scheduler::draining());
        self.shared.queue.refuse_all(&crate::scheduler::draining());
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
                            shared.queue.refuse_all(&restarting(&shared));
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
                News::Answer(answer) => {
                    answer.device.iter().for_each(|device| self.note_device(device));
                    answer.put(&mut worker.connection);
                }
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

    /// A model has run there. Which of the calls that it is at has asked, a worker with several does not say: none of them conceals a
    /// fallback.
    fn note_device(&mut self, device: &HeaderValue) {
        let begun = self.active.iter_mut().filter(|active| active.begun);
        begun.for_each(|active| active.devices.add(device));
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

    /// The worker is gone, and what it was at with it.
    fn lose(&mut self, error: &ExchangeError, death: &Death) {
        for active in take_if(&mut self.active, |active| active.begun) {
            let request = &active.job.call.request_id;
            tracing::error!(worker = self.number, request = request.to_str().ok(), %error, %death, "worker lost during a call");
            let message = format!("the worker ended during the call: {death}");
            let error = match active.overdue {
                Some(_) => timeout(&self.shared),
                None => CallError::new(ErrorCode::WorkerLost, message),
            };
            active.answer(Err(error));
        }
        if self.active.is_empty() && self.forming.is_empty() {
            tracing::warn!(worker = self.number, %error, %death, "worker ended");
        }
    }

    /// The worker is being ended because of a call that does not come back; whatever else it was at ends too.
    fn lose_hanging(&mut self) {
        for active in take_if(&mut self.active, |active| active.begun) {
            let message = "the worker was ended because another call of its did not come back in time";
            let error = match active.overdue {
                Some(_) => timeout(&self.shared),
                None => CallError::new(ErrorCode::WorkerLost, message),
            };
            active.answer(Err(error));
        }
    }

    /// Calls that were never begun wait for whichever worker is next.
    fn put_back(&mut self) {
        let never_begun = self.active.drain(..).map(|active| active.job);
        let jobs: Vec<Job> = never_begun.chain(self.forming.drain(..)).collect();
        self.formed_since = None;
        self.shared.queue.put_back(jobs);
    }

    fn refuse_all(&mut self, error: &CallError) {
        for active in self.active.drain(..) {
            if active.overdue.is_some() || active.expired {
                active.answer(Err(error.clone()));
            } else {
                active.job.refuse(error);
            }
        }
        for job in self.forming.drain(..) {
            job.refuse(error);
        }
    }

    /// The worker can take no more jobs: off the list, and out of the count, before anything is waited for.
    fn leave(&self) {
        self.shared.queue.not_idle(self.number);
        self.door.pid.store(0, Ordering::Relaxed);
        self.shared.goes();
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
