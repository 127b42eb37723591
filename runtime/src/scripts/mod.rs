//! Entry scripts: worker processes, each kept alive and fed by a task; or, for a native script that the operator trusts, threads
//! of our own.

mod bell;
mod breaker;
mod call;
mod confinement;
mod connection;
mod forkserver;
pub mod frame;
mod lane;
mod log;
mod native;
mod outputs;
mod process;
mod questions;
mod regions;
mod scratch;
mod stream;
pub mod tensors;
mod worker;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::busy::Busy;
use crate::config::ScriptConfig;
use crate::models::Models;
use crate::slots::Slot;

use bell::Bell;
use breaker::Breaker;
use call::Job;
use confinement::Confinement;
use forkserver::{ForkServer, ForkServerError};
use process::Launch;
use worker::{Surroundings, Worker};

pub use call::{Body, ScriptAnswer, ScriptCall, ScriptResult};
pub use frame::{Method, ReplyHead};
pub use native::NativeError;
pub use outputs::OutputsError;
pub use regions::{Filled, Pool};
pub use stream::{StreamBody, StreamError};
pub use worker::{CallKind, Failure, Headers, Ready, StartError};

/// How long the fork-server may take to end when its workers have.
const FORK_SERVER_GRACE: Duration = Duration::from_secs(2);

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
    /// A native script does not come up in our own process.
    #[error(transparent)]
    Native(#[from] NativeError),
}

/// What holds for calls to a script.
#[derive(Clone, Copy, Debug)]
pub struct ScriptLimits {
    /// Largest answer, bytes.
    pub answer: usize,
    /// How long a call waits for a worker that is being started again.
    pub queue_wait: Duration,
    /// Whether the contract is kept to the letter where that and good sense differ.
    pub compat: bool,
}

/// What works on the calls of a service's script.
pub struct Scripts {
    lanes: Lanes,
    ready: Ready,
    _outputs: outputs::Outputs,
}

enum Lanes {
    Workers(Workers),
    /// In our own process.
    Threads(native::Threads),
}

/// The workers of a service.
struct Workers {
    shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
}

struct Shared {
    config: ScriptConfig,
    host: PathBuf,
    model_dir: Option<PathBuf>,
    models: Arc<Models>,
    busy: Arc<Busy>,
    limits: ScriptLimits,
    confinement: Confinement,
    fork_server: tokio::sync::Mutex<Kept>,
    pool: Option<Arc<Pool>>,
    queue: Mutex<Queue>,
    doors: Vec<Arc<Door>>,
    breaker: Breaker,
    stop: CancellationToken,
    /// Calls that are still running are not waited for any more.
    break_off: CancellationToken,
    restarts: AtomicU64,
    alive: AtomicU64,
    /// Workers that are being ended.
    graves: TaskTracker,
}

/// Jobs that no lane has taken, and lanes that wait for one. There are never more jobs than slots, those that come ahead counted in.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Numbers of lanes; the last one to come is the first to go, since its caches are warm.
    idle: Vec<usize>,
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

/// How long after a failure the fork-server is not tried again.
const FORK_SERVER_RETRY: Duration = Duration::from_secs(30);

/// How a lane is reached.
struct Door {
    bell: Arc<Bell>,
    pid: AtomicI32,
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
    /// Starts all workers, or the threads of a native script that is trusted, and waits until `init()` has returned in each.
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
        let outputs = outputs::prepare(&config.app_root, config.outputs_dir.as_deref())?;
        let (lanes, ready) = match config.native.as_deref().filter(|_| config.trusted) {
            Some(library) => {
                let (threads, ready) =
                    native::Threads::start(library, config, model_dir, busy, limits).await?;
                (Lanes::Threads(threads), ready)
            }
            None => {
                let shared = Shared::new(config, model_dir, models, busy, limits)?;
                let (workers, ready) = Workers::start(Arc::new(shared)).await?;
                (Lanes::Workers(workers), ready)
            }
        };
        Ok(Self { lanes, ready, _outputs: outputs })
    }

    /// What the script says of itself.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Shared memory for bodies, if it is used.
    pub fn pool(&self) -> Option<&Arc<Pool>> {
        match &self.lanes {
            Lanes::Workers(workers) => workers.shared.pool.as_ref(),
            Lanes::Threads(_) => None,
        }
    }

    /// Calls that can be worked on at once.
    pub fn slots(&self) -> usize {
        match &self.lanes {
            Lanes::Workers(workers) => {
                let config = &workers.shared.config;
                config.workers * config.calls_per_worker(self.ready.kind)
            }
            Lanes::Threads(threads) => threads.count(),
        }
    }

    /// Calls that may come ahead of their slots, where no models are served beside the script.
    pub fn ahead(&self) -> usize {
        match &self.lanes {
            Lanes::Workers(workers) if workers.shared.sends_ahead() => lane::AHEAD,
            Lanes::Workers(_) => 0,
            Lanes::Threads(threads) => threads.ahead(),
        }
    }

    /// Why no call can be worked on, or fewer than should be.
    pub fn trouble(&self) -> Option<String> {
        match &self.lanes {
            Lanes::Workers(workers) => workers.shared.breaker.reason(),
            Lanes::Threads(threads) => threads.trouble(),
        }
    }

    /// Workers started again so far.
    pub fn restarts(&self) -> u64 {
        match &self.lanes {
            Lanes::Workers(workers) => workers.shared.restarts.load(Ordering::Relaxed),
            Lanes::Threads(_) => 0,
        }
    }

    /// What each worker is; a thread has the replica's own process.
    pub fn status(&self) -> Vec<WorkerStatus> {
        match &self.lanes {
            Lanes::Workers(workers) => workers.status(),
            Lanes::Threads(threads) => threads.status(),
        }
    }

    /// Has a lane work on a call. The slot goes along, so that it is taken for exactly as long as a lane is, also when the caller
    /// goes away before the end.
    ///
    /// # Errors
    /// What [`CallError`] can say of a script: it raised, hung, died, or returned what cannot be sent.
    pub async fn call(&self, call: ScriptCall, slot: Slot) -> ScriptResult {
        match &self.lanes {
            Lanes::Workers(workers) => workers.call(call, slot).await,
            Lanes::Threads(threads) => threads.call(call, slot).await,
        }
    }

    /// Ends the calls that are still running, each with an answer that says so.
    pub fn break_off(&self) {
        match &self.lanes {
            Lanes::Workers(workers) => workers.break_off(),
            Lanes::Threads(threads) => threads.break_off(),
        }
    }

    /// Ends all lanes in order; workers that take longer than `limit` are killed.
    pub async fn stop(&self, limit: Duration) {
        match &self.lanes {
            Lanes::Workers(workers) => workers.stop(limit).await,
            Lanes::Threads(threads) => threads.stop(limit).await,
        }
    }
}

impl Workers {
    async fn start(shared: Arc<Shared>) -> Result<(Self, Ready), StartError> {
        let mut starts = JoinSet::new();
        for number in 0..shared.config.workers {
            let shared = Arc::clone(&shared);
            starts.spawn(async move { (number, shared.start_worker(number, &shared.doors[number]).await) });
        }
        let mut tasks = JoinSet::new();
        let mut ready = Ready::default();
        while let Some(started) = starts.join_next().await {
            // A task that panicked is a bug of ours, and the panic has been reported.
            let Ok((number, started)) = started else { continue };
            let worker = started?;
            ready = worker.ready.clone();
            let door = Arc::clone(&shared.doors[number]);
            door.pid.store(worker.pid(), Ordering::Relaxed);
            tasks.spawn(lane::Lane::new(Arc::clone(&shared), number, door).run(worker));
        }
        Ok((Self { shared, tasks: Mutex::new(tasks) }, ready))
    }

    fn status(&self) -> Vec<WorkerStatus> {
        let pid = |door: &Arc<Door>| door.pid.load(Ordering::Relaxed);
        let doors = self.shared.doors.iter().enumerate();
        doors.map(|(worker, door)| WorkerStatus { worker, pid: pid(door) }).collect()
    }

    async fn call(&self, call: ScriptCall, slot: Slot) -> ScriptResult {
        let shared = &self.shared;
        let (reply, answer) = oneshot::channel();
        let job = Job { call, slot, reply: Some(reply), since: Instant::now() };
        if shared.break_off.is_cancelled() {
            job.refuse(&crate::slots::draining());
        } else if !shared.is_alive() && shared.breaker.is_broken() {
            job.refuse(&restarting(shared));
        } else {
            shared.put(job);
        }
        let mut caller = Caller { shared, waits: true };
        let answer = answer.await;
        caller.waits = false;
        answer.unwrap_or_else(|_| {
            Err(CallError::new(ErrorCode::WorkerLost, "the worker ended during the call"))
        })
    }

    fn break_off(&self) {
        self.shared.break_off.cancel();
        self.shared.wake_all();
        if !self.shared.is_alive() {
            self.shared.refuse_waiting(&crate::slots::draining());
        }
    }

    async fn stop(&self, limit: Duration) {
        self.shared.stop.cancel();
        self.shared.wake_all();
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

/// Has a worker import a script, and call its `init()` only if asked to; says what the script is. The worker then ends in order. There
/// are no models of the replica's for it.
///
/// # Errors
/// The script does not come up.
pub async fn examine(
    config: &ScriptConfig,
    model_dir: Option<&Path>,
    init: bool,
    compat: bool,
) -> Result<Ready, StartError> {
    let host = process::find_host(config).map_err(|_| StartError::Spawn {
        program: config.program(),
        source: std::io::ErrorKind::NotFound.into(),
    })?;
    let confinement = Confinement::prepare(config, &host, model_dir, compat);
    let launch =
        Launch { config, host: &host, model_dir, worker: 0, confinement: &confinement, fork_server: None };
    let (models, bell) = (Arc::new(Models::none()), Arc::default());
    let around = Surroundings { models: &models, pool: None, bell: &bell, limit: 1 << 20, compat, init };
    let worker = Worker::start(&launch, around).await?;
    let ready = worker.ready.clone();
    worker.stop(Duration::from_secs(2)).await;
    Ok(ready)
}

/// Somebody who waits for an answer. When they go away, the lanes look whose call that was.
struct Caller<'a> {
    shared: &'a Shared,
    waits: bool,
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.shared.wake_all();
        }
    }
}

/// The refusal while there is no worker.
fn restarting(shared: &Shared) -> CallError {
    let why = shared.breaker.reason().map(|reason| format!(": {reason}")).unwrap_or_default();
    CallError::new(ErrorCode::NotReady, format!("the script's workers are being started again{why}"))
        .with_retry_after(Duration::from_secs(1))
}

impl Shared {
    fn new(
        config: &ScriptConfig,
        model_dir: Option<&Path>,
        models: Arc<Models>,
        busy: Arc<Busy>,
        limits: ScriptLimits,
    ) -> Result<Self, ScriptError> {
        let host = process::find_host(config).map_err(|tried| ScriptError::Host { tried })?;
        let door = |_| Arc::new(Door { bell: Arc::default(), pid: AtomicI32::new(0) });
        Ok(Self {
            confinement: Confinement::prepare(config, &host, model_dir, limits.compat),
            host,
            model_dir: model_dir.map(Path::to_owned),
            models,
            busy,
            limits,
            fork_server: tokio::sync::Mutex::default(),
            pool: Pool::new(config.region_threshold, config.workers),
            queue: Mutex::default(),
            doors: (0..config.workers).map(door).collect(),
            breaker: Breaker::new(config.workers, config.breaker),
            stop: CancellationToken::new(),
            break_off: CancellationToken::new(),
            restarts: AtomicU64::new(0),
            alive: AtomicU64::new(0),
            graves: TaskTracker::new(),
            config: config.clone(),
        })
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire) > 0
    }

    /// Counts a worker in, or out, and says whether there is one. Under a lock, so that who says it last has counted last.
    fn count(&self, comes: bool) {
        let _queue = self.queue();
        match comes {
            true => self.alive.fetch_add(1, Ordering::AcqRel),
            false => self.alive.fetch_sub(1, Ordering::AcqRel),
        };
        self.busy.set_able(self.is_alive());
    }

    fn wake_all(&self) {
        for door in &self.doors {
            door.bell.ring();
        }
    }

    /// Leaves a job for whichever lane is idle, or comes to it first.
    fn put(&self, job: Job) {
        let mut queue = self.queue();
        queue.jobs.push_back(job);
        let idle = queue.idle.pop();
        drop(queue);
        if let Some(door) = idle.and_then(|number| self.doors.get(number)) {
            door.bell.ring();
        }
    }

    /// Takes the job that has waited longest, if it is at most `most` bytes; a lane that is `idle` is rung for when there is none.
    fn take(&self, lane: usize, idle: bool, most: usize) -> Option<Job> {
        let mut queue = self.queue();
        while let Some(job) = queue.jobs.front() {
            // Dropping a job counts it as cancelled and frees its slot.
            if job.is_abandoned() {
                queue.jobs.pop_front();
            } else if most < usize::MAX && job.call.size() > most {
                return None;
            } else {
                queue.idle.retain(|number| *number != lane);
                return queue.jobs.pop_front();
            }
        }
        if idle && !queue.idle.contains(&lane) {
            queue.idle.push(lane);
        }
        None
    }

    /// Takes a lane off the list of those that wait for a job. One that it has been rung for, and does not come to take, is for the
    /// others.
    fn not_idle(&self, lane: usize) {
        let mut queue = self.queue();
        queue.idle.retain(|number| *number != lane);
        if queue.jobs.is_empty() {
            return;
        }
        let idle = std::mem::take(&mut queue.idle);
        drop(queue);
        for number in idle {
            if let Some(door) = self.doors.get(number) {
                door.bell.ring();
            }
        }
    }

    /// Gives back jobs that were taken and not begun, in their order, to the front.
    fn put_back(&self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let mut queue = self.queue();
        for job in jobs.into_iter().rev() {
            queue.jobs.push_front(job);
        }
        let idle = std::mem::take(&mut queue.idle);
        drop(queue);
        for number in idle {
            if let Some(door) = self.doors.get(number) {
                door.bell.ring();
            }
        }
    }

    /// Refuses all who wait.
    fn refuse_waiting(&self, error: &CallError) {
        let jobs = std::mem::take(&mut self.queue().jobs);
        for job in jobs {
            job.refuse(error);
        }
    }

    /// Refuses those who have waited for a worker for too long, and forgets those who have left.
    fn expire_waiting(&self) {
        let mut expired = Vec::new();
        {
            let mut queue = self.queue();
            queue.jobs.retain(|job| !job.is_abandoned());
            while queue.jobs.front().is_some_and(|job| job.since.elapsed() >= self.limits.queue_wait) {
                expired.extend(queue.jobs.pop_front());
            }
        }
        if !expired.is_empty() {
            let error = restarting(self);
            for job in expired {
                job.refuse(&error);
            }
        }
    }

    /// Starts a worker, and counts it as alive; its lane counts it out again.
    async fn start_worker(&self, number: usize, door: &Door) -> Result<Worker, StartError> {
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
        self.count(true);
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
    fn sends_ahead(&self) -> bool {
        // With one worker; and where models are served beside the script, their calls need slots of the same kind.
        self.config.workers == 1
            && self.config.concurrency == 1
            && self.config.max_batch == 1
            && self.models.iter().next().is_none()
    }

    /// Sees to the end of a worker that hangs, without anybody waiting for it.
    fn bury(&self, number: usize, worker: Worker) {
        self.graves.spawn(async move {
            let death = worker.terminate().await;
            for line in &death.tail {
                tracing::debug!(worker = number, line);
            }
            tracing::warn!(worker = number, %death, "worker ended");
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Sources};
    use crate::slots::{Admission, Slots};

    fn shared(workers: usize) -> Shared {
        let directory = std::env::temp_dir();
        let sources = Sources {
            file: Some((
                directory.join("outrigger.toml"),
                format!(
                    "[script]\nentry = 'score.py'\nworkers = {workers}\nsandbox_off = ['all']\ncgroups = false"
                ),
            )),
            environment: vec![("HOME".into(), "/nowhere".into())],
            working_directory: directory,
            ..Sources::default()
        };
        let (config, _) = config::load(&sources).unwrap();
        let limits = ScriptLimits { answer: 1 << 20, queue_wait: Duration::from_secs(1), compat: false };
        Shared::new(&config.script.unwrap(), None, Arc::new(Models::none()), Busy::new(workers), limits)
            .unwrap()
    }

    async fn job(slots: &Arc<Slots>) -> (Job, oneshot::Receiver<ScriptResult>) {
        let (reply, answer) = oneshot::channel();
        let call = ScriptCall {
            request_id: http::HeaderValue::from_static("id"),
            method: Method::Post,
            query: String::new(),
            headers: None,
            body: Body::Bytes(bytes::Bytes::new()),
            memory: None,
        };
        let slot = slots.admit(Admission::Now).await.ok().unwrap();
        (Job { call, slot, reply: Some(reply), since: Instant::now() }, answer)
    }

    async fn is_rung(shared: &Shared, lane: usize) -> bool {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(shared.doors[lane].bell.poll_rung(context).is_ready())
        })
        .await
    }

    #[tokio::test]
    async fn a_job_that_a_lane_was_rung_for_and_cannot_take_is_another_s() {
        let shared = shared(2);
        let slots = Slots::new(Arc::clone(&shared.busy), 2, 0, Duration::ZERO);
        assert!(shared.take(0, true, usize::MAX).is_none());
        assert!(shared.take(1, true, usize::MAX).is_none());
        let (first, _answer) = job(&slots).await;
        shared.put(first);
        assert!(is_rung(&shared, 1).await && !is_rung(&shared, 0).await);
        // Its worker dies before it comes to take the job.
        shared.not_idle(1);
        assert!(is_rung(&shared, 0).await, "the job would wait although there is an idle lane");
        assert!(shared.take(0, true, usize::MAX).is_some());
    }
}
