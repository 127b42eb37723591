//! The workers of a service: how they are started, fed and ended together.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::breaker::Breaker;
use super::call::{Job, ScriptCall, ScriptResult};
use super::confinement::Confinement;
use super::forkserver::{ForkServer, ForkServerError};
use super::process::{self, Launch};
use super::queue::{Door, Queue};
use super::regions::Pool;
use super::worker::{Ready, StartError, Surroundings, Worker};
use super::{ScriptError, ScriptLimits, WorkerStatus, lane};
use crate::busy::Busy;
use crate::config::ScriptConfig;
use crate::models::Models;
use crate::scheduler::Slot;

/// How long the fork-server may take to end when its workers have.
const FORK_SERVER_GRACE: Duration = Duration::from_secs(2);
/// How long after a failure the fork-server is not tried again.
const FORK_SERVER_RETRY: Duration = Duration::from_secs(30);

/// The workers of a service.
pub(super) struct Workers {
    pub(super) shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
}

/// What the lanes of a service share.
pub(super) struct Shared {
    pub(super) config: ScriptConfig,
    host: PathBuf,
    model_dir: Option<PathBuf>,
    models: Arc<Models>,
    pub(super) busy: Arc<Busy>,
    limits: ScriptLimits,
    pub(super) confinement: Confinement,
    fork_server: tokio::sync::Mutex<Kept>,
    pub(super) pool: Option<Arc<Pool>>,
    pub(super) queue: Queue,
    pub(super) breaker: Breaker,
    pub(super) stop: CancellationToken,
    /// Calls that are still running are not waited for any more.
    pub(super) break_off: CancellationToken,
    pub(super) restarts: AtomicU64,
    /// Workers that can take calls.
    alive: Mutex<usize>,
    /// Workers that are being ended.
    graves: TaskTracker,
}

/// What has become of the fork-server.
#[derive(Default)]
enum Kept {
    /// It was not asked for yet, or is not wanted any more.
    #[default]
    None,
    Running(Arc<ForkServer>),
    /// It did not come up.
    Failed(Instant),
}

impl Workers {
    pub(super) async fn start(shared: Arc<Shared>) -> Result<(Self, Ready), StartError> {
        let mut starts = JoinSet::new();
        for number in 0..shared.config.workers {
            let shared = Arc::clone(&shared);
            starts.spawn(
                async move { (number, shared.start_worker(number, &shared.queue.doors[number]).await) },
            );
        }
        let mut tasks = JoinSet::new();
        let mut ready = Ready::default();
        while let Some(started) = starts.join_next().await {
            // A task that panicked is a bug of ours, and the panic has been reported.
            let Ok((number, started)) = started else { continue };
            let worker = started?;
            ready = worker.ready.clone();
            let door = Arc::clone(&shared.queue.doors[number]);
            door.pid.store(worker.pid(), Ordering::Relaxed);
            tasks.spawn(lane::Lane::new(Arc::clone(&shared), number, door).run(worker));
        }
        Ok((Self { shared, tasks: Mutex::new(tasks) }, ready))
    }

    pub(super) fn status(&self) -> Vec<WorkerStatus> {
        let pid = |door: &Arc<Door>| door.pid.load(Ordering::Relaxed);
        let doors = self.shared.queue.doors.iter().enumerate();
        doors.map(|(worker, door)| WorkerStatus { worker, pid: pid(door) }).collect()
    }

    pub(super) async fn call(&self, call: ScriptCall, slot: Slot) -> ScriptResult {
        let shared = &self.shared;
        let (reply, answer) = oneshot::channel();
        let job = Job { call, slot, reply: Some(reply), since: Instant::now() };
        if shared.break_off.is_cancelled() {
            job.refuse(&crate::scheduler::draining());
        } else if shared.breaker.is_broken() && !shared.is_alive() {
            job.refuse(&restarting(shared));
        } else {
            shared.queue.put(job);
        }
        let mut caller = Caller { shared, waits: true };
        let answer = answer.await;
        caller.waits = false;
        answer.unwrap_or_else(|_| {
            Err(CallError::new(ErrorCode::WorkerLost, "the worker ended during the call"))
        })
    }

    pub(super) fn break_off(&self) {
        self.shared.break_off.cancel();
        self.shared.queue.ring_all();
        if !self.shared.is_alive() {
            self.shared.queue.refuse_all(&crate::scheduler::draining());
        }
    }

    pub(super) async fn stop(&self, limit: Duration) {
        self.shared.stop.cancel();
        self.shared.queue.ring_all();
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let all = async {
            while tasks.join_next().await.is_some() {}
            self.shared.graves.close();
            self.shared.graves.wait().await;
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("workers did not end in time and were killed");
        }
        let fork_server = std::mem::take(&mut *self.shared.fork_server.lock().await);
        if let Kept::Running(fork_server) = fork_server {
            fork_server.end(FORK_SERVER_GRACE).await;
        }
    }
}

/// Somebody who waits for an answer. When they go away, the lanes look whose call that was.
struct Caller<'a> {
    shared: &'a Shared,
    waits: bool,
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.shared.queue.ring_all();
        }
    }
}

/// The refusal while there is no worker.
pub(super) fn restarting(shared: &Shared) -> CallError {
    let why = shared.breaker.reason().map(|reason| format!(": {reason}")).unwrap_or_default();
    CallError::new(ErrorCode::NotReady, format!("the script's workers are being started again{why}"))
        .with_retry_after(Duration::from_secs(1))
}

impl Shared {
    pub(super) fn new(
        config: &ScriptConfig,
        model_dir: Option<&Path>,
        models: Arc<Models>,
        busy: Arc<Busy>,
        limits: ScriptLimits,
    ) -> Result<Self, ScriptError> {
        let host = process::find_host(config).map_err(|tried| ScriptError::Host { tried })?;
        Ok(Self {
            confinement: Confinement::prepare(config, &host, model_dir, limits.compat),
            host,
            model_dir: model_dir.map(Path::to_owned),
            models,
            busy,
            limits,
            fork_server: tokio::sync::Mutex::default(),
            pool: Pool::new(config.region_threshold, config.workers),
            queue: Queue::new(config.workers),
            breaker: Breaker::new(config.workers, config.breaker),
            stop: CancellationToken::new(),
            break_off: CancellationToken::new(),
            restarts: AtomicU64::new(0),
            alive: Mutex::new(0),
            graves: TaskTracker::new(),
            config: config.clone(),
        })
    }

    fn alive(&self) -> std::sync::MutexGuard<'_, usize> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a worker that can take calls.
    pub(super) fn is_alive(&self) -> bool {
        *self.alive() > 0
    }

    /// Counts a worker in. Whether there is one is said under the lock, so that who says it last has counted last.
    fn comes(&self) {
        let mut alive = self.alive();
        *alive += 1;
        self.busy.set_able(true);
    }

    /// Counts a worker out.
    pub(super) fn goes(&self) {
        let mut alive = self.alive();
        *alive = alive.saturating_sub(1);
        self.busy.set_able(*alive > 0);
    }

    /// Refuses those who have waited for a worker for too long.
    pub(super) fn expire_waiting(&self) {
        let expired = self.queue.take_expired(self.limits.queue_wait);
        if !expired.is_empty() {
            let error = restarting(self);
            for job in expired {
                job.refuse(&error);
            }
        }
    }

    /// Starts a worker, and counts it as alive; its lane counts it out again.
    pub(super) async fn start_worker(&self, number: usize, door: &Door) -> Result<Worker, StartError> {
        let _loading = self.busy.loading();
        let fork_server = self.fork_server().await?;
        let launch = Launch {
            config: &self.config,
            host: &self.host,
            model_dir: self.model_dir.as_deref(),
            worker: number,
            confinement: &self.confinement,
            fork_server: fork_server.as_deref(),
        };
        let around = Surroundings {
            models: &self.models,
            pool: self.pool.as_ref(),
            bell: &door.bell,
            // A reply's message and a tensor block's names come on top.
            limit: self.limits.answer.saturating_add(1 << 20),
            compat: self.limits.compat,
            init: true,
        };
        let worker = Worker::start(&launch, around).await?;
        self.comes();
        self.breaker.started();
        let Ready { python, mode, kind, .. } = &worker.ready;
        tracing::info!(worker = number, pid = worker.pid(), %python, %mode, ?kind, "worker ready");
        if self.limits.compat {
            // What tools of the system that we succeed look for in its log.
            tracing::info!("Worker with pid {} ready for serving traffic", worker.pid());
        }
        Ok(worker)
    }

    /// The fork-server, started anew if it has ended; `None` where workers are programs of their own.
    async fn fork_server(&self) -> Result<Option<Arc<ForkServer>>, StartError> {
        if !self.config.fork_server || self.config.native.is_some() {
            return Ok(None);
        }
        let mut kept = self.fork_server.lock().await;
        match &*kept {
            Kept::Running(server) if !server.is_gone() => return Ok(Some(Arc::clone(server))),
            // Whoever waited for the lock need not wait for the same failure again.
            Kept::Failed(when) if when.elapsed() < FORK_SERVER_RETRY => return Ok(None),
            _ => {}
        }
        let model_dir = self.model_dir.as_deref();
        match ForkServer::start(&self.config, &self.host, model_dir, &self.confinement).await {
            Ok(server) => {
                let server = Arc::new(server);
                *kept = Kept::Running(Arc::clone(&server));
                Ok(Some(server))
            }
            Err(ForkServerError::Preload(failure)) => Err(StartError::Script(failure)),
            Err(ForkServerError::Spawn(source)) => {
                Err(StartError::Spawn { program: self.config.program(), source })
            }
            Err(error) => {
                tracing::warn!(%error, "workers are started as programs of their own");
                *kept = Kept::Failed(Instant::now());
                Ok(None)
            }
        }
    }

    /// Whether calls may be sent to the worker while it works on another.
    pub(super) fn sends_ahead(&self) -> bool {
        // With one worker; and where models are served beside the script, their calls need slots of the same kind.
        self.config.workers == 1
            && self.config.concurrency == 1
            && self.config.max_batch == 1
            && self.models.iter().next().is_none()
    }

    /// Sees to the end of a worker that hangs, without anybody waiting for it.
    pub(super) fn bury(&self, number: usize, worker: Worker) {
        self.graves.spawn(async move {
            let death = worker.terminate().await;
            for line in &death.tail {
                tracing::debug!(worker = number, line);
            }
            tracing::warn!(worker = number, %death, "worker ended");
        });
    }
}
