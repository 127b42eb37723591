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
mod queue;
mod regions;
mod scratch;
mod stream;
pub mod tensors;
mod worker;
mod workers;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::busy::Busy;
use crate::config::ScriptConfig;
use crate::models::Models;
use crate::scheduler::{Slot, expired};
use crate::telemetry;

use confinement::Confinement;
use process::Launch;
use worker::{Surroundings, Worker};
use workers::{Shared, Workers};

pub(crate) use bell::Bell;
pub use call::{Body, ScriptAnswer, ScriptCall, ScriptResult};
pub use frame::{Method, ReplyHead};
pub use native::NativeError;
pub use outputs::OutputsError;
pub use regions::{Filled, Pool};
pub(crate) use stream::{Producer, flow};
pub use stream::{StreamBody, StreamError};
pub use worker::{CallKind, Failure, Headers, Ready, StartError};

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

/// What one worker is doing, for the admin listener.
#[derive(Clone, Copy, Debug, serde::Serialize, schemars::JsonSchema)]
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
    /// What the error (`outrigger_protocol::CallError`) can say of a script: it raised, hung, died, or returned what cannot be sent.
    pub async fn call(&self, call: ScriptCall, slot: Slot) -> ScriptResult {
        let deadline = slot.deadline();
        let call = async {
            match &self.lanes {
                Lanes::Workers(workers) => workers.call(call, slot).await,
                Lanes::Threads(threads) => threads.call(call, slot).await,
            }
        };
        let result = match deadline {
            None => call.await,
            // Wherever the call is by then: a lane may be busy with others, or be starting anew.
            Some(deadline) => {
                tokio::time::timeout_at(deadline, call).await.unwrap_or_else(|_| Err(expired()))
            }
        };
        telemetry::with(|passage| passage.end(result.as_ref().ok().map(ScriptAnswer::run)));
        result
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
