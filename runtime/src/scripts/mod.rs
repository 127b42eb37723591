//! Entry scripts: worker processes, one call at a time each, kept alive by a task each.

pub mod frame;
mod lane;
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

use crate::busy::{Busy, Outcome, Reserved};
use crate::config::ScriptConfig;
use crate::models::Models;
use crate::slots::Slot;

pub use outputs::OutputsError;
pub use worker::{Failure, Ready, StartError};

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
    /// The memory that the body takes, counted until the worker has it and has answered.
    pub memory: Option<Reserved>,
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
    lanes: Vec<Arc<Door>>,
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

/// The way to a lane's task.
struct Door {
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
        let mut lanes: Vec<Option<Arc<Door>>> = (0..config.workers).map(|_| None).collect();
        let mut tasks = JoinSet::new();
        let mut wants_headers = false;
        while let Some(started) = starts.join_next().await {
            // A task that panicked is a bug of ours, and the panic has been reported.
            let Ok((number, started)) = started else { continue };
            let worker = started?;
            wants_headers |= worker.ready.request_headers;
            let (jobs, inbox) = mpsc::channel(1 + lane::AHEAD);
            let pid = Arc::new(AtomicI32::new(worker.pid()));
            lanes[number] = Some(Arc::new(Door { jobs, pid: Arc::clone(&pid) }));
            tasks.spawn(lane::Lane::new(Arc::clone(&shared), number, inbox, pid).run(worker));
        }
        let lanes = lanes.into_iter().flatten().collect();
        Ok(Self { shared, lanes, tasks: Mutex::new(tasks), wants_headers, _outputs: outputs })
    }

    /// Whether calls should carry the request's headers.
    pub fn wants_headers(&self) -> bool {
        self.wants_headers
    }

    /// Calls that may come ahead of their slots.
    pub fn ahead(&self) -> usize {
        if self.shared.sends_ahead() { lane::AHEAD } else { 0 }
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
        let pid = |lane: &Arc<Door>| lane.pid.load(Ordering::Relaxed);
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
            // Enabled before the list is looked at, so that a lane which comes in between is not missed.
            let arrival = self.shared.came_idle.notified();
            tokio::pin!(arrival);
            arrival.as_mut().enable();
            let idle = self.shared.idle().pop();
            // A slot without an idle worker, while the only one is alive, is for a call that comes ahead.
            let ahead = (idle.is_none() && self.shared.sends_ahead() && self.is_alive()).then_some(0);
            if let Some(lane) = idle.or(ahead).and_then(|number| self.lanes.get(number)) {
                match lane.jobs.try_send(job) {
                    Ok(()) => break,
                    // The lane ended in this very moment, or has as much as it takes.
                    Err(mpsc::error::TrySendError::Full(back) | mpsc::error::TrySendError::Closed(back)) => {
                        job = back;
                        if ahead.is_none() {
                            continue;
                        }
                    }
                }
            }
            if self.shared.broken.load(Ordering::Acquire) && !self.is_alive() {
                job.slot.finish(Outcome::Refused);
                return Err(restarting());
            }
            tokio::select! {
                () = arrival => {}
                () = self.shared.break_off.cancelled() => {
                    job.slot.finish(Outcome::Refused);
                    return Err(crate::slots::draining());
                }
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

    /// Ends all workers in order; those that take longer than `limit` are killed.
    pub async fn stop(&self, limit: Duration) {
        self.shared.stop.cancel();
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("workers did not end in time and were killed");
        }
    }
}

fn restarting() -> CallError {
    CallError::new(ErrorCode::NotReady, "the script's workers are being started again")
        .with_retry_after(Duration::from_secs(1))
}

impl Shared {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<usize>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ScriptCall {
    /// Bytes that the call takes in the worker's socket, about.
    fn size(&self) -> usize {
        let headers = self.headers.iter().flatten();
        let headers: usize = headers.map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        self.body.len() + self.query.len() + headers + 256
    }
}
