//! Entry scripts: worker processes, one call at a time each, kept alive by a task each.

pub mod frame;
mod outputs;
mod process;
pub mod tensors;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::busy::{Busy, Outcome};
use crate::config::ScriptConfig;
use crate::models::Models;
use crate::slots::Slot;

use frame::Reply;
pub use outputs::OutputsError;
use process::Launch;
use worker::Worker;
pub use worker::{Failure, Ready, StartError};

/// The first wait before a worker that keeps dying is started again; it doubles from time to time.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest such wait.
const BACKOFF_MOST: Duration = Duration::from_secs(10);

/// What a script is called with.
pub struct ScriptCall {
    /// The request's id.
    pub request_id: HeaderValue,
    /// GET rather than POST.
    pub get: bool,
    /// The query string as it stands in the URL.
    pub query: String,
    /// The request's headers; sent only if the script asks for them.
    pub headers: Option<HeaderMap>,
    /// The body.
    pub body: Bytes,
}

/// What a script answers: the JSON text and the time in `run()`.
pub type ScriptResult = Result<(Bytes, Duration), CallError>;

struct Job {
    call: ScriptCall,
    slot: Slot,
    reply: oneshot::Sender<ScriptResult>,
}

/// Why scripts cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScriptError {
    /// A worker did not come up.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The worker host is not where it should be.
    #[error("outrigger_worker was not found; looked in {}; set script.host", .tried.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    Host {
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
    /// `./outputs` cannot be led to where it is kept.
    #[error(transparent)]
    Outputs(#[from] OutputsError),
}

/// Limits of calls to a script.
#[derive(Clone, Copy, Debug)]
pub struct ScriptLimits {
    /// Largest answer, bytes.
    pub answer: usize,
    /// How long a call waits for a worker that is being started again.
    pub queue_wait: Duration,
}

/// The workers of a service.
pub struct Scripts {
    shared: Arc<Shared>,
    lanes: Vec<Arc<Lane>>,
    tasks: Mutex<JoinSet<()>>,
    wants_headers: bool,
    _outputs: Option<outputs::Link>,
}

struct Shared {
    config: ScriptConfig,
    host: PathBuf,
    model_dir: Option<PathBuf>,
    models: Arc<Models>,
    busy: Arc<Busy>,
    limit: usize,
    /// Numbers of lanes that wait for a job; the last one to come is the first to go, since its caches are warm.
    idle: Mutex<Vec<usize>>,
    came_idle: Notify,
    stop: CancellationToken,
    /// Calls that are still running are not waited for any more.
    break_off: CancellationToken,
    restarts: AtomicU64,
    alive: AtomicU64,
    /// The last start of a worker failed.
    broken: AtomicBool,
    queue_wait: Duration,
}

struct Lane {
    jobs: mpsc::Sender<Job>,
    pid: Arc<AtomicI32>,
}

/// What one worker is doing, for the admin listener.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct WorkerStatus {
    /// Its number.
    pub worker: usize,
    /// Its process, or 0 while there is none.
    pub pid: i32,
}

impl Scripts {
    /// Starts all workers and waits until each has returned from `init()`.
    ///
    /// # Errors
    /// The first failure of any worker; the others are ended.
    pub async fn start(
        config: &ScriptConfig,
        model_dir: Option<&Path>,
        models: Arc<Models>,
        busy: Arc<Busy>,
        limits: ScriptLimits,
    ) -> Result<Self, ScriptError> {
        let host = process::find_host(config.host.as_deref()).map_err(|tried| ScriptError::Host { tried })?;
        let outputs =
            config.outputs_dir.as_deref().map(|kept| outputs::link(&config.app_root, kept)).transpose()?;
        let shared = Arc::new(Shared {
            config: config.clone(),
            host,
            model_dir: model_dir.map(Path::to_owned),
            models,
            busy,
            // A reply's message and a tensor block's names come on top.
            limit: limits.answer.saturating_add(1 << 20),
            idle: Mutex::new(Vec::with_capacity(config.workers)),
            came_idle: Notify::new(),
            stop: CancellationToken::new(),
            break_off: CancellationToken::new(),
            restarts: AtomicU64::new(0),
            alive: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            queue_wait: limits.queue_wait,
        });
        let mut starts = JoinSet::new();
        for number in 0..config.workers {
            let shared = Arc::clone(&shared);
            starts.spawn(async move { (number, shared.start_worker(number).await) });
        }
        let mut lanes: Vec<Option<Arc<Lane>>> = (0..config.workers).map(|_| None).collect();
        let mut tasks = JoinSet::new();
        let mut wants_headers = false;
        while let Some(started) = starts.join_next().await {
            // A task that panicked is a bug of ours, and the panic has been reported.
            let Ok((number, started)) = started else { continue };
            let worker = started?;
            wants_headers |= worker.ready.request_headers;
            let (jobs, inbox) = mpsc::channel(1);
            let pid = Arc::new(AtomicI32::new(worker.pid()));
            lanes[number] = Some(Arc::new(Lane { jobs, pid: Arc::clone(&pid) }));
            tasks.spawn(Arc::clone(&shared).run_lane(number, worker, inbox, pid));
        }
        let lanes = lanes.into_iter().flatten().collect();
        Ok(Self { shared, lanes, tasks: Mutex::new(tasks), wants_headers, _outputs: outputs })
    }

    /// Whether calls should carry the request's headers.
    pub fn wants_headers(&self) -> bool {
        self.wants_headers
    }

    /// Whether at least one worker can take calls.
    pub fn is_alive(&self) -> bool {
        self.shared.alive.load(Ordering::Acquire) > 0
    }

    /// Workers started again so far.
    pub fn restarts(&self) -> u64 {
        self.shared.restarts.load(Ordering::Relaxed)
    }

    /// What each worker is.
    pub fn status(&self) -> Vec<WorkerStatus> {
        let pid = |lane: &Arc<Lane>| lane.pid.load(Ordering::Relaxed);
        self.lanes.iter().enumerate().map(|(worker, lane)| WorkerStatus { worker, pid: pid(lane) }).collect()
    }

    /// Has a worker work on a call. The slot goes along, so that it is taken for exactly as long as a worker is, also when
    /// the caller goes away before the end.
    ///
    /// # Errors
    /// What [`CallError`] can say of a script: it raised, hung, died, or returned what cannot be sent.
    pub async fn call(&self, call: ScriptCall, slot: Slot) -> ScriptResult {
        let (reply, answer) = oneshot::channel();
        let mut job = Job { call, slot, reply };
        // There are as many slots as workers: with a slot and no idle worker, one is being started again.
        let patience = tokio::time::sleep(self.shared.queue_wait);
        tokio::pin!(patience);
        loop {
            let idle = self.shared.idle().pop();
            if let Some(lane) = idle.and_then(|number| self.lanes.get(number)) {
                match lane.jobs.try_send(job) {
                    Ok(()) => break,
                    // The lane ended in this very moment.
                    Err(mpsc::error::TrySendError::Full(back) | mpsc::error::TrySendError::Closed(back)) => {
                        job = back;
                        continue;
                    }
                }
            }
            if self.shared.broken.load(Ordering::Acquire) && !self.is_alive() {
                job.slot.finish(Outcome::Refused);
                return Err(restarting());
            }
            // A lane that came meanwhile has left a permit here.
            tokio::select! {
                () = self.shared.came_idle.notified() => {}
                () = &mut patience => {
                    job.slot.finish(Outcome::Refused);
                    return Err(restarting());
                }
            }
        }
        answer.await.unwrap_or_else(|_| {
            Err(CallError::new(ErrorCode::WorkerLost, "the worker ended during the call"))
        })
    }

    /// Ends the calls that are still running, each with an answer that says so.
    pub fn break_off(&self) {
        self.shared.break_off.cancel();
    }

    /// Ends all workers in order, each within `grace`.
    pub async fn stop(&self, grace: Duration) {
        self.shared.stop.cancel();
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(grace + Duration::from_secs(2), all).await.is_err() {
            tracing::warn!("workers did not end in time and were killed");
        }
    }
}

fn restarting() -> CallError {
    CallError::new(ErrorCode::NotReady, "the script's workers are being started again")
        .with_retry_after(Duration::from_secs(1))
}

/// What a lane does after a call.
enum After {
    Next(Worker),
    /// The worker is gone and had answered this many calls.
    Restart {
        served: u64,
    },
    Stop(Worker),
    /// The service is over, and the worker too.
    End,
}

impl Shared {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<usize>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a worker, and counts it as alive; `run_lane` counts it out again.
    async fn start_worker(&self, number: usize) -> Result<Worker, StartError> {
        let _loading = self.busy.loading();
        let launch = Launch {
            config: &self.config,
            host: &self.host,
            model_dir: self.model_dir.as_deref(),
            worker: number,
        };
        let worker = Worker::start(&launch, Arc::clone(&self.models), self.limit).await?;
        self.alive.fetch_add(1, Ordering::AcqRel);
        tracing::info!(worker = number, pid = worker.pid(), python = %worker.ready.python, mode = %worker.ready.mode, "worker ready");
        Ok(worker)
    }

    /// Works on jobs for as long as the service lives; starts the worker again whenever it is lost.
    async fn run_lane(
        self: Arc<Self>,
        number: usize,
        worker: Worker,
        mut jobs: mpsc::Receiver<Job>,
        pid: Arc<AtomicI32>,
    ) {
        let mut worker = Some(worker);
        let mut deaths = 0u32;
        while let Some(ready) = worker.take() {
            pid.store(ready.pid(), Ordering::Relaxed);
            let after = self.serve(number, ready, &mut jobs).await;
            self.alive.fetch_sub(1, Ordering::AcqRel);
            pid.store(0, Ordering::Relaxed);
            match after {
                After::Stop(worker) => {
                    worker.stop(BACKOFF_FIRST * 20).await;
                    return;
                }
                After::Restart { served } => {
                    deaths = if served > 0 { 0 } else { deaths + 1 };
                    worker = self.start_again(number, &mut deaths, &mut jobs).await;
                }
                After::Next(_) | After::End => return,
            }
        }
    }

    /// Starts a worker until one comes up, ever more slowly; `None` when the service ends meanwhile.
    async fn start_again(
        &self,
        number: usize,
        deaths: &mut u32,
        jobs: &mut mpsc::Receiver<Job>,
    ) -> Option<Worker> {
        loop {
            // The first start after a good time is made at once.
            if *deaths > 1 {
                let wait = BACKOFF_FIRST.saturating_mul(1 << (*deaths - 2).min(10)).min(BACKOFF_MOST);
                tracing::warn!(
                    worker = number,
                    ?wait,
                    failures = *deaths,
                    "worker keeps failing, waiting before the next start"
                );
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = self.stop.cancelled() => return None,
                }
            }
            self.restarts.fetch_add(1, Ordering::Relaxed);
            tokio::select! {
                started = self.start_worker(number) => match started {
                    Ok(worker) => {
                        self.broken.store(false, Ordering::Release);
                        return Some(worker);
                    }
                    Err(error) => {
                        self.broken.store(true, Ordering::Release);
                        // Whoever waits for a worker hears at once.
                        self.came_idle.notify_waiters();
                        if let Ok(job) = jobs.try_recv() {
                            job.slot.finish(Outcome::Refused);
                            let _ = job.reply.send(Err(restarting()));
                        }
                        tracing::error!(worker = number, %error, "worker did not start again");
                        *deaths += 1;
                    }
                },
                () = self.stop.cancelled() => return None,
            }
        }
    }

    async fn serve(&self, number: usize, mut worker: Worker, jobs: &mut mpsc::Receiver<Job>) -> After {
        let mut served = 0;
        self.offer(number);
        loop {
            tokio::select! {
                // A death is seen before a job is taken: a job that was never begun waits for the next worker.
                biased;
                error = worker.closed() => {
                    let death = worker.bury().await;
                    tracing::error!(worker = number, %error, %death, "worker ended between calls");
                    self.withdraw(number);
                    return After::Restart { served };
                }
                job = jobs.recv() => {
                    let Some(job) = job else { return After::Stop(worker) };
                    match self.work(number, worker, job, served).await {
                        After::Next(next) => worker = next,
                        after => return after,
                    }
                    served += 1;
                }
                () = self.stop.cancelled() => {
                    self.withdraw(number);
                    return After::Stop(worker);
                }
            }
        }
    }

    /// Says that lane `number` can take a job.
    fn offer(&self, number: usize) {
        self.idle().push(number);
        self.came_idle.notify_one();
    }

    /// Takes lane `number` off the list. A job that was sent to it in the same moment stays in its channel.
    fn withdraw(&self, number: usize) {
        self.idle().retain(|idle| *idle != number);
    }

    async fn work(&self, number: usize, mut worker: Worker, job: Job, served: u64) -> After {
        let Job { call, slot, reply } = job;
        let request = &call.request_id;
        let exchange = tokio::select! {
            biased;
            exchange = tokio::time::timeout(self.config.timeout, worker.call(served, &call)) => exchange,
            () = self.break_off.cancelled() => {
                tracing::warn!(worker = number, ?request, "call broken off by the end of shutdown.drain");
                slot.finish(Outcome::Failed);
                let _ = reply.send(Err(crate::slots::draining()));
                worker.terminate().await;
                return After::End;
            }
        };
        match exchange {
            Ok(Ok((answer, run))) => {
                let result = interpret(answer, run, request);
                let outcome = if result.is_ok() { Outcome::Answered } else { Outcome::Failed };
                self.offer(number);
                slot.finish(outcome);
                let _ = reply.send(result);
                After::Next(worker)
            }
            Ok(Err(error)) => {
                let death = worker.bury().await;
                tracing::error!(worker = number, ?request, %error, %death, "worker lost during a call");
                let message = format!("the worker ended during the call: {death}");
                slot.finish(Outcome::Failed);
                let _ = reply.send(Err(CallError::new(ErrorCode::WorkerLost, message)));
                After::Restart { served }
            }
            Err(_) => {
                let millis = self.config.timeout.as_millis();
                tracing::error!(
                    worker = number,
                    ?request,
                    millis,
                    "run() is over its time limit, ending the worker"
                );
                let error =
                    CallError::new(ErrorCode::ScoringTimeout, format!("Scoring timeout after {millis} ms"));
                // The caller need not wait for the worker's end.
                let _ = reply.send(Err(error));
                let death = worker.terminate().await;
                tracing::warn!(worker = number, %death, "worker ended");
                slot.finish(Outcome::Failed);
                // A worker that ran into the limit did come up well.
                After::Restart { served: served + 1 }
            }
        }
    }
}

/// A script's reply as the caller sees it; what belongs in the log goes there.
fn interpret(reply: Reply, run: Duration, request: &HeaderValue) -> ScriptResult {
    match reply {
        Reply::Returned(body) => Ok((body, run)),
        Reply::Raised { message, traceback } => {
            tracing::error!(?request, %message, "run() raised\n{traceback}");
            Err(CallError::new(ErrorCode::ScriptError, outrigger_protocol::aml::SCRIPT_ERROR))
        }
        Reply::BadInput(message) => Err(CallError::new(ErrorCode::BadRequest, message)),
        Reply::Unserialisable { message, traceback } => {
            tracing::error!(?request, %message, "what run() returned cannot be serialised\n{traceback}");
            Err(CallError::new(
                ErrorCode::ScriptResultUnserialisable,
                outrigger_protocol::aml::INTERNAL_ERROR,
            ))
        }
    }
}
