//! Native scripts in the replica's own process, where the operator trusts them with it: threads that call the library.
//!
//! A thread cannot be ended from outside. A call that is over its time limit is answered for; the thread, and the slot with it, is
//! taken until the library returns. When no other thread is left, the replica is not ready.

mod running;
mod shared;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use outrigger_native::{self as native, InProcess, Level, LoadError};
use outrigger_protocol::aml;
use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::call::{Job, ScriptCall, ScriptResult};
use super::log::Origin;
use super::worker::{CallKind, Headers, Ready};
use super::{ScriptLimits, WorkerStatus};
use crate::busy::Busy;
use crate::config::ScriptConfig;

use running::{Seat, emit};
use shared::Shared;

/// The stack of a thread that calls a library: as much as the one thread of a worker process usually has.
const STACK: usize = 8 << 20;
/// Calls that may be handed over before their slots are free, for each thread.
const AHEAD_PER_THREAD: usize = 8;

/// Why a library cannot be served from this process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NativeError {
    /// It does not load, or its `init` failed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It is still at it.
    #[error("`{path}` did not start within script.import_timeout and script.init_timeout ({limit:?})")]
    Slow {
        /// The library.
        path: PathBuf,
        /// Both limits together.
        limit: Duration,
    },
    /// The system has no more threads.
    #[error("cannot start a thread for the native script")]
    Thread(#[source] std::io::Error),
}

/// The threads that call a library.
pub(super) struct Threads {
    shared: Arc<Shared>,
    /// Until the last thread has ended, and the script with it.
    ended: TaskTracker,
    /// Looks after the time limits; ends when this is dropped.
    _watch: JoinSet<()>,
}

impl Threads {
    /// Loads the library, starts its script and the threads.
    pub(super) async fn start(
        path: &Path,
        config: &ScriptConfig,
        model_dir: Option<&Path>,
        busy: Arc<Busy>,
        limits: ScriptLimits,
    ) -> Result<(Self, Ready), NativeError> {
        tracing::warn!(
            library = %path.display(),
            "script.trusted = true: this code runs in the replica's own process and is NOT SANDBOXED; it can read keys and \
             requests, its crash is the replica's, and a call that does not return cannot be ended"
        );
        let script = Arc::new(load(path, config, model_dir, &busy).await?);
        let (asked, safe) = (config.workers, script.thread_safe());
        let count = if safe { asked } else { 1 };
        if count < asked {
            tracing::warn!(
                "script.workers is {asked}, and the library has one thread: it is not thread-safe"
            );
        }
        tracing::info!(threads = count, thread_safe = safe, "native script ready");
        let shared = Arc::new(Shared {
            timeout: config.timeout,
            gap_timeout: config.gap_timeout,
            stall_timeout: config.stall_timeout,
            stream_window: config.stream_window as u64,
            limits,
            busy,
            handle: Handle::current(),
            seats: (0..count).map(|_| Seat::default()).collect(),
            queue: Mutex::default(),
            work: Condvar::new(),
            stuck: Mutex::new(0),
            due: AtomicU64::new(u64::MAX),
            begun: Instant::now(),
            sooner: Notify::new(),
            break_off: CancellationToken::new(),
        });
        let ready = ready(&script, path);
        let mut watch = JoinSet::new();
        watch.spawn(Arc::clone(&shared).watch());
        // If a thread does not start, dropping this ends the others.
        let threads = Self { shared, ended: TaskTracker::new(), _watch: watch };
        for number in 0..count {
            let (shared, script) = (Arc::clone(&threads.shared), Arc::clone(&script));
            let token = threads.ended.token();
            let work = move || {
                while let Some(job) = shared.take() {
                    shared.run(number, &script, job);
                }
                // The last one shuts the script down.
                drop(script);
                drop(token);
            };
            spawn(&format!("script-{number}"), work)?;
        }
        Ok((threads, ready))
    }

    /// As many calls as can be worked on at once.
    pub(super) fn count(&self) -> usize {
        self.shared.seats.len()
    }

    /// Calls that may be handed over before their slots are free.
    pub(super) fn ahead(&self) -> usize {
        self.count() * AHEAD_PER_THREAD
    }

    /// Why no call can be worked on.
    pub(super) fn trouble(&self) -> Option<String> {
        let stuck = *self.shared.stuck();
        (stuck == self.count()).then(|| {
            format!(
                "all {stuck} threads of the native script are in calls that are over their time limit; they cannot be ended, \
                 restart the replica"
            )
        })
    }

    /// What each thread is.
    pub(super) fn status(&self) -> Vec<WorkerStatus> {
        (0..self.count()).map(|worker| WorkerStatus { worker, pid: own_pid() }).collect()
    }

    /// Has a thread work on a call; see [`super::Scripts::call`].
    pub(super) async fn call(&self, call: ScriptCall, slot: crate::scheduler::Slot) -> ScriptResult {
        let (reply, answer) = oneshot::channel();
        let job = Job { call, slot, reply: Some(reply), since: Instant::now() };
        if let Some(trouble) = self.trouble() {
            job.refuse(&CallError::new(ErrorCode::NotReady, trouble));
        } else {
            self.shared.put(job);
        }
        let mut caller = Waiting { shared: &self.shared, waits: true };
        let answer = answer.await;
        caller.waits = false;
        answer.unwrap_or_else(|_| Err(aml::internal_error(ErrorCode::Internal)))
    }

    /// Answers for the calls that are still running.
    pub(super) fn break_off(&self) {
        self.shared.break_off.cancel();
        let jobs = std::mem::take(&mut self.shared.queue().jobs);
        for job in jobs {
            job.refuse(&crate::scheduler::draining());
        }
        self.shared.sooner.notify_one();
    }

    /// Waits for the threads to end after their calls, and for the script's shutdown.
    pub(super) async fn stop(&self, limit: Duration) {
        self.shared.close();
        self.ended.close();
        if tokio::time::timeout(limit, self.ended.wait()).await.is_err() {
            tracing::warn!("the native script did not end in time; it ends with the process");
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// A caller who waits for an answer. When one goes away, its job need not wait for a thread.
struct Waiting<'a> {
    shared: &'a Shared,
    waits: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.shared.queue().jobs.retain(|job| !job.is_abandoned());
        }
    }
}

/// Opens the library and runs its `init`, on a thread that is left alone if that takes too long.
async fn load(
    path: &Path,
    config: &ScriptConfig,
    model_dir: Option<&Path>,
    busy: &Arc<Busy>,
) -> Result<InProcess, NativeError> {
    let _loading = busy.loading();
    let limit = config.import_timeout.saturating_add(config.init_timeout);
    let settings = native::Settings {
        app_root: config.app_root.clone(),
        model_dir: model_dir.map(Path::to_owned),
        args: config.args.clone(),
    };
    let (done, started) = oneshot::channel();
    let library = path.to_owned();
    let start = move || {
        let logger = |level: Level, line: &str| {
            emit(level, line, &Origin { worker: 0, pid: own_pid(), request: None })
        };
        let _ = done.send(InProcess::start(&library, settings, logger));
    };
    spawn("script-init", start)?;
    match tokio::time::timeout(limit, started).await {
        Ok(Ok(started)) => Ok(started?),
        Ok(Err(_)) => {
            Err(LoadError::Broken { path: path.to_owned(), what: "its start panicked".into() }.into())
        }
        Err(_) => Err(NativeError::Slow { path: path.to_owned(), limit }),
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), NativeError> {
    let thread = std::thread::Builder::new().name(name.into()).stack_size(STACK);
    thread.spawn(body).map(drop).map_err(NativeError::Thread)
}

fn ready(script: &InProcess, path: &Path) -> Ready {
    Ready {
        mode: "native".into(),
        kind: CallKind::Sync,
        headers: Headers::All,
        methods: script.methods().map(|method| method.as_str().to_owned()).collect(),
        script: path.to_string_lossy().into_owned(),
        ..Ready::default()
    }
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(0)
}
