//! A lane: the task that keeps one worker alive and has it work on jobs, one after the other.
//!
//! Where a service is a script with one worker, and calls are fast (see [`crate::slots`]), calls are sent to the worker *ahead*: while it works on one, the next
//! few lie in its socket, so that neither side has to go to sleep between two calls. The worker answers in order and one by one,
//! so when it dies exactly the first unanswered call is lost; the others were never begun and go to its successor.
//! With more than one worker nothing is sent ahead: a call could wait behind a slow one while another worker is idle.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use http::HeaderValue;
use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::sync::mpsc;

use super::frame::Reply;
use super::process::{Death, Launch};
use super::worker::{ExchangeError, StartError, Worker};
use super::{Job, ScriptResult, Shared, restarting};
use crate::busy::Outcome;
use crate::config::ScriptConfig;
use crate::models::Models;

/// The first wait before a worker that keeps dying is started again; it doubles from time to time.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest such wait.
const BACKOFF_MOST: Duration = Duration::from_secs(10);
/// How long a worker has to end in order.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Calls that are sent ahead.
pub(super) const AHEAD: usize = 7;
/// Bodies of calls that are sent ahead, together at most; they surely fit into the socket, so that sending never waits for a
/// worker that is itself waiting to send.
const AHEAD_BYTES: usize = 48 * 1024;
pub(super) struct Lane {
    pub(super) shared: Arc<Shared>,
    pub(super) number: usize,
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) pid: Arc<AtomicI32>,
    /// Jobs that are not answered, oldest first.
    taken: VecDeque<Job>,
    /// As many of them are with the worker.
    sent: usize,
    /// Number of the next call that is answered.
    next: u64,
}

/// How it ended with a worker.
enum End {
    /// It is gone; `served` calls were answered before.
    Lost { served: u64 },
    /// The service is over, and so is the worker.
    Over,
}

/// What a call says of its worker.
enum Verdict {
    /// It can take the next one.
    Well,
    /// It died, or broke the protocol.
    Gone(ExchangeError),
    /// It does not come back from `run()`.
    Hangs,
    /// The service does not wait for it any more.
    BrokenOff,
}

impl Lane {
    pub(super) fn new(
        shared: Arc<Shared>,
        number: usize,
        jobs: mpsc::Receiver<Job>,
        pid: Arc<AtomicI32>,
    ) -> Self {
        Self { shared, number, jobs, pid, taken: VecDeque::new(), sent: 0, next: 0 }
    }

    /// Works on jobs for as long as the service lives; starts the worker again whenever it is lost.
    pub(super) async fn run(mut self, worker: Worker) {
        let mut worker = Some(worker);
        let mut deaths = 0u32;
        while let Some(ready) = worker.take() {
            self.pid.store(ready.pid(), Ordering::Relaxed);
            let end = self.serve(ready).await;
            match end {
                End::Over => {}
                End::Lost { served } => {
                    self.sent = 0;
                    deaths = if served > 0 { 0 } else { deaths + 1 };
                    worker = self.start_again(&mut deaths).await;
                }
            }
        }
        self.refuse_all(&crate::slots::draining());
    }

    /// Starts a worker until one comes up, ever more slowly; `None` when the service ends meanwhile.
    async fn start_again(&mut self, deaths: &mut u32) -> Option<Worker> {
        let shared = Arc::clone(&self.shared);
        loop {
            // The first start after a good time is made at once.
            if *deaths > 1 {
                let wait = BACKOFF_FIRST.saturating_mul(1 << (*deaths - 2).min(10)).min(BACKOFF_MOST);
                tracing::warn!(
                    worker = self.number,
                    ?wait,
                    failures = *deaths,
                    "worker keeps failing, waiting before the next start"
                );
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = shared.stop.cancelled() => return None,
                    () = shared.break_off.cancelled() => return None,
                }
            }
            shared.restarts.fetch_add(1, Ordering::Relaxed);
            let started = tokio::select! {
                started = shared.start_worker(self.number) => started,
                () = shared.stop.cancelled() => return None,
                () = shared.break_off.cancelled() => return None,
            };
            match started {
                Ok(worker) => {
                    shared.broken.store(false, Ordering::Release);
                    return Some(worker);
                }
                Err(error) => {
                    tracing::error!(worker = self.number, %error, "worker did not start again");
                    shared.broken.store(true, Ordering::Release);
                    // Whoever waits for a worker hears at once.
                    shared.came_idle.notify_waiters();
                    self.refuse_all(&restarting());
                    *deaths += 1;
                }
            }
        }
    }

    async fn serve(&mut self, mut worker: Worker) -> End {
        let shared = Arc::clone(&self.shared);
        let mut served = 0;
        loop {
            if self.taken.is_empty() {
                self.offer();
                tokio::select! {
                    // A death is seen before a job is taken: a job that was never begun waits for the next worker.
                    biased;
                    error = worker.closed() => {
                        self.leave();
                        let death = worker.bury().await;
                        tracing::error!(worker = self.number, %error, %death, "worker ended between calls");
                        return End::Lost { served };
                    }
                    job = self.jobs.recv() => match job {
                        Some(job) => {
                            // It may have been sent without being taken off the list.
                            self.withdraw();
                            self.taken.push_back(job);
                        }
                        None => {
                            self.leave();
                            worker.stop(STOP_GRACE).await;
                            return End::Over;
                        }
                    },
                    () = shared.stop.cancelled() => {
                        self.leave();
                        worker.stop(STOP_GRACE).await;
                        return End::Over;
                    }
                }
            }
            while self.taken.len() <= AHEAD
                && let Ok(job) = self.jobs.try_recv()
            {
                self.taken.push_back(job);
            }
            self.drop_abandoned();
            if self.taken.is_empty() {
                continue;
            }
            let verdict = self.one_call(&mut worker).await;
            if !matches!(verdict, Verdict::Well) {
                self.leave();
            }
            match verdict {
                Verdict::Well => served += 1,
                Verdict::Gone(error) => {
                    let death = worker.bury().await;
                    self.lose(&error, &death);
                    return End::Lost { served };
                }
                Verdict::Hangs => {
                    let death = worker.terminate().await;
                    tracing::warn!(worker = self.number, %death, "worker ended");
                    // It did come up well: the next one is started at once.
                    return End::Lost { served: served + 1 };
                }
                Verdict::BrokenOff => {
                    self.refuse_all(&crate::slots::draining());
                    worker.terminate().await;
                    return End::Over;
                }
            }
        }
    }

    /// Has the worker work on the first job that is taken, and answers it, unless the worker is gone.
    async fn one_call(&mut self, worker: &mut Worker) -> Verdict {
        let shared = Arc::clone(&self.shared);
        let Some(front) = self.taken.front_mut() else { return Verdict::Well };
        front.slot.begin();
        let limit = shared.config.timeout;
        let exchange = tokio::select! {
            biased;
            exchange = tokio::time::timeout(limit, self.exchange(worker)) => exchange,
            () = shared.break_off.cancelled() => {
                tracing::warn!(worker = self.number, "calls broken off by the end of shutdown.drain");
                return Verdict::BrokenOff;
            }
        };
        let exchange = match exchange {
            Ok(Err(error)) => return Verdict::Gone(error),
            Ok(Ok(reply)) => Some(reply),
            Err(_) => None,
        };
        let Some(job) = self.taken.pop_front() else { return Verdict::Well };
        match exchange {
            Some((reply, run)) => {
                self.sent -= 1;
                self.next += 1;
                let result = interpret(reply, run, &job.call.request_id);
                job.answer(result);
                Verdict::Well
            }
            None => {
                let (request, millis) = (&job.call.request_id, limit.as_millis());
                tracing::error!(
                    worker = self.number,
                    ?request,
                    millis,
                    "run() is over its time limit, ending the worker"
                );
                // The caller need not wait for the worker's end.
                job.answer(Err(outrigger_protocol::aml::scoring_timeout(limit)));
                Verdict::Hangs
            }
        }
    }

    /// The worker is gone, and the first job with it.
    fn lose(&mut self, error: &ExchangeError, death: &Death) {
        if let Some(job) = self.taken.pop_front() {
            let request = &job.call.request_id;
            tracing::error!(worker = self.number, ?request, %error, %death, "worker lost during a call");
            let message = format!("the worker ended during the call: {death}");
            job.answer(Err(CallError::new(ErrorCode::WorkerLost, message)));
        }
    }

    /// Sends what is taken and not yet sent, and waits for the first reply.
    async fn exchange(&mut self, worker: &mut Worker) -> Result<(Reply, Duration), ExchangeError> {
        let mut batch = Vec::with_capacity(self.taken.len() - self.sent);
        let mut bytes: usize = self.taken.iter().take(self.sent).map(|job| job.call.size()).sum();
        for (at, job) in self.taken.iter().enumerate().skip(self.sent) {
            bytes += job.call.size();
            // The first may be of any size: nothing is before it, so the worker is reading.
            if at > 0 && bytes > AHEAD_BYTES {
                break;
            }
            batch.push((self.next + at as u64, &job.call));
        }
        if !batch.is_empty() {
            match worker.send(&batch).await {
                Ok(()) => self.sent += batch.len(),
                // The worker is gone, perhaps after it has answered calls that were sent before: those replies are still
                // to be read. What was to be sent now was not begun.
                Err(error) if self.sent > 0 => tracing::debug!(%error, "calls could not be sent ahead"),
                Err(error) => return Err(error),
            }
        }
        worker.reply(self.next).await
    }

    fn refuse_all(&mut self, error: &CallError) {
        while let Ok(job) = self.jobs.try_recv() {
            self.taken.push_back(job);
        }
        for job in self.taken.drain(..) {
            job.slot.finish(Outcome::Refused);
            let _ = job.reply.send(Err(error.clone()));
        }
        self.sent = 0;
    }

    /// Forgets jobs whose callers have gone, as long as the worker does not have them.
    fn drop_abandoned(&mut self) {
        let mut at = 0;
        let sent = self.sent;
        // Dropping a job counts it as cancelled and frees its slot.
        self.taken.retain(|job| {
            at += 1;
            at <= sent || !job.reply.is_closed()
        });
    }

    /// Says that this lane can take a job.
    fn offer(&self) {
        let mut idle = self.shared.idle();
        if !idle.contains(&self.number) {
            idle.push(self.number);
        }
        drop(idle);
        self.shared.came_idle.notify_one();
    }

    /// The worker can take no more jobs: off the list, and out of the count, before anything is waited for.
    fn leave(&self) {
        self.withdraw();
        self.pid.store(0, Ordering::Relaxed);
        if self.shared.alive.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.busy.set_able(false);
        }
    }

    /// Takes this lane off the list. A job that was sent to it in the same moment stays in its channel.
    fn withdraw(&self) {
        self.shared.idle().retain(|idle| *idle != self.number);
    }
}

impl Shared {
    /// Starts a worker, and counts it as alive; its lane counts it out again.
    pub(super) async fn start_worker(&self, number: usize) -> Result<Worker, StartError> {
        let _loading = self.busy.loading();
        let model_dir = self.model_dir.as_deref();
        let launch = Launch { config: &self.config, host: &self.host, model_dir, worker: number };
        let worker = Worker::start(&launch, Arc::clone(&self.models), self.limit).await?;
        self.alive.fetch_add(1, Ordering::AcqRel);
        self.busy.set_able(true);
        let (python, mode) = (&worker.ready.python, &worker.ready.mode);
        tracing::info!(worker = number, pid = worker.pid(), %python, %mode, "worker ready");
        Ok(worker)
    }

    /// Whether calls may be sent to the worker while it works on another.
    pub(super) fn sends_ahead(&self) -> bool {
        sends_ahead(&self.config, &self.models)
    }
}

/// With one worker; and where models are served beside the script, their calls need slots of the same kind.
pub(super) fn sends_ahead(config: &ScriptConfig, models: &Models) -> bool {
    config.workers == 1 && models.iter().next().is_none()
}

impl Job {
    /// Ends the job: the slot first, so that whoever has the answer finds it free.
    fn answer(self, result: ScriptResult) {
        self.slot.finish(if result.is_ok() { Outcome::Answered } else { Outcome::Failed });
        let _ = self.reply.send(result);
    }
}

/// A script's reply as the caller sees it; what belongs in the log goes there.
fn interpret(reply: Reply, run: Duration, request: &HeaderValue) -> ScriptResult {
    match reply {
        Reply::Returned(body) => Ok((body, run)),
        Reply::Raised { message, traceback } => {
            tracing::error!(?request, %message, "run() raised\n{traceback}");
            Err(outrigger_protocol::aml::script_error())
        }
        Reply::BadInput(message) => Err(CallError::new(ErrorCode::BadRequest, message)),
        Reply::Unserialisable { message, traceback } => {
            tracing::error!(?request, %message, "what run() returned cannot be serialised\n{traceback}");
            Err(outrigger_protocol::aml::internal_error(ErrorCode::ScriptResultUnserialisable))
        }
    }
}
