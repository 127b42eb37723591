//! A worker: a process and our end of the conversation, from its start until it is ready.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::bell::Bell;
use super::connection::{Connection, ExchangeError};
use super::frame::{self, FrameError, Kind, LogLine, LogSource};
use super::log::{self, Origin};
use super::process::{Death, Launch, Process};
use super::questions::Questions;
use super::regions::{self, Pool, Regions};
use crate::config::ScriptConfig;
use crate::models::Models;

/// What a worker does after it has imported the script, as it is shown.
const INIT: &str = "init()";
const WARMUP: &str = "warmup()";
/// How long a worker that closed its socket has to end by itself.
const EXIT_GRACE: Duration = Duration::from_secs(1);

/// What READY says.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Ready {
    /// How `run()` takes its input: `plain`, `schema`, `raw`, `native`.
    pub mode: String,
    /// How it takes its calls.
    pub kind: CallKind,
    /// Which headers it asks for.
    pub headers: Headers,
    /// The methods that reach it.
    pub methods: Vec<String>,
    /// The interpreter's version; empty for a native script.
    pub python: String,
    /// The script's file.
    pub script: String,
    /// Schemas of input and output for each version of the description; `null` where the version cannot express them.
    pub swagger: Option<serde_json::Value>,
    /// A request that the script takes.
    pub sample: Option<serde_json::Value>,
}

impl Ready {
    /// The versions of the description, and whether the script can be said in each.
    pub fn versions(&self) -> [(&'static str, bool); 3] {
        let there = |version: &str| match &self.swagger {
            Some(serde_json::Value::Object(versions)) => {
                versions.get(version).is_some_and(|schemas| !schemas.is_null())
            }
            _ => true,
        };
        ["2", "3", "3.1"].map(|version| (version, there(version)))
    }

    /// Whether requests of this method reach the script.
    pub fn takes(&self, method: &str) -> bool {
        self.methods.iter().any(|known| known == method)
    }
}

/// How a script takes its calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CallKind {
    /// One after the other.
    #[default]
    Sync,
    /// Several at once, answered in any order.
    Async,
    /// Several together.
    Batch,
}

/// Which headers of a request a script asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Headers {
    /// None.
    #[default]
    None,
    /// Those that say what the body is and what the answer may be.
    Some,
    /// All but the caller's credentials.
    All,
}

#[derive(Serialize)]
struct Start<'a> {
    app_root: &'a Path,
    entry_script: Option<&'a Path>,
    source_directory: Option<&'a str>,
    args: &'a [String],
    compat: bool,
    max_payload: usize,
    window: usize,
    region_threshold: usize,
    regions: usize,
    concurrency: usize,
    max_batch: usize,
    bisect: bool,
    native: Option<&'a Path>,
    init: bool,
}

/// What FAILED says.
#[derive(Clone, Debug, Deserialize)]
pub struct Failure {
    /// `import`, `signature`, `init` or `warmup`.
    pub phase: String,
    /// What went wrong.
    pub message: String,
    /// The Python stack.
    #[serde(default)]
    pub traceback: String,
}

/// Why a worker did not come up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The program does not start.
    #[error("cannot start {program}")]
    Spawn {
        /// What it is, and where it is set.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// The script does not load, or `init()` raised.
    #[error("entry script failed in {}: {}", .0.phase, .0.message)]
    Script(Failure),
    /// The process ended before it was ready.
    #[error("worker ended before it was ready: {0}")]
    Died(Death),
    /// A phase took too long.
    #[error("{phase} took longer than {key} ({limit:?})")]
    Timeout {
        /// `import`, `init` or `warmup`.
        phase: &'static str,
        /// The key of the limit.
        key: &'static str,
        /// The limit.
        limit: Duration,
        /// What the process wrote last, its Python stack among it.
        death: Death,
    },
}

/// A worker and our end of the conversation.
pub(super) struct Worker {
    process: Process,
    pub(super) connection: Connection,
    /// What it has asked for and has no answer to yet.
    pub(super) questions: Questions,
    pub(super) ready: Ready,
    /// Its number among the workers, for the log.
    pub(super) number: usize,
}

/// What a worker is given beside its process.
pub(super) struct Surroundings<'a> {
    pub(super) models: &'a Arc<Models>,
    pub(super) pool: Option<&'a Arc<Pool>>,
    pub(super) bell: &'a Arc<Bell>,
    /// The longest payload that the worker may send.
    pub(super) limit: usize,
    pub(super) compat: bool,
    /// Whether `init()` and `warmup()` are called.
    pub(super) init: bool,
}

enum Begun {
    Ready(Ready),
    Failed(Failure),
}

impl CallKind {
    /// The word that the protocol has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Async => "async",
            Self::Batch => "batch",
        }
    }
}

impl Headers {
    /// The word that the protocol has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Some => "some",
            Self::All => "all",
        }
    }
}

impl Worker {
    /// Starts a process, has it load the script, and waits until `init()` and `warmup()` have returned.
    pub(super) async fn start(launch: &Launch<'_>, around: Surroundings<'_>) -> Result<Self, StartError> {
        let config = launch.config;
        let spawned = Process::spawn(launch).await;
        let (process, ends) =
            spawned.map_err(|source| StartError::Spawn { program: config.program(), source })?;
        let regions = Regions::new(ends.regions, around.pool.cloned(), around.limit, Arc::clone(around.bell));
        let mut worker = Self {
            process,
            connection: Connection::new(ends.stream, regions, around.limit),
            questions: Questions::new(Arc::clone(around.models)),
            ready: Ready::default(),
            number: launch.worker,
        };
        let mut phase = Phase { name: "import", key: "script.import_timeout", limit: config.import_timeout };
        match worker.begin(config, &around, &mut phase).await {
            Some(Ok(Begun::Ready(ready))) => {
                worker.ready = ready;
                Ok(worker)
            }
            Some(Ok(Begun::Failed(mut failure))) => {
                worker.process.reap(EXIT_GRACE).await;
                if let Some(hint) = launch.confinement.hint(&failure.message) {
                    failure.traceback = format!("{}\nnote: {hint}", failure.traceback.trim_end());
                }
                Err(StartError::Script(failure))
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "worker did not come up");
                Err(StartError::Died(worker.process.reap(EXIT_GRACE).await))
            }
            None => {
                let death = worker.process.terminate().await;
                let Phase { name: phase, key, limit } = phase;
                Err(StartError::Timeout { phase, key, limit, death })
            }
        }
    }

    /// START and what comes up to READY or FAILED; `None` when the phase took too long.
    async fn begin(
        &mut self,
        config: &ScriptConfig,
        around: &Surroundings<'_>,
        phase: &mut Phase,
    ) -> Option<Result<Begun, ExchangeError>> {
        let start = Start {
            app_root: &config.app_root,
            entry_script: Some(&config.entry).filter(|_| config.native.is_none()).map(AsRef::as_ref),
            source_directory: config.source_directory.as_deref(),
            args: &config.args,
            compat: around.compat,
            max_payload: around.limit,
            window: config.stream_window,
            region_threshold: around.pool.map_or(0, |pool| pool.threshold()),
            regions: regions::MOST,
            concurrency: config.concurrency,
            max_batch: config.max_batch,
            bisect: config.bisect,
            native: config.native.as_deref(),
            init: around.init,
        };
        let Ok(json) = serde_json::to_vec(&start) else {
            return Some(Err(FrameError::Malformed("START").into()));
        };
        self.connection.put_frame(Kind::Start, 0, &json);
        self.connection.flush();
        let mut deadline = Instant::now() + phase.limit;
        loop {
            // `timeout_at` asks the worker first, and one that talks without end always has something to say.
            if Instant::now() >= deadline {
                return None;
            }
            let step = tokio::time::timeout_at(deadline, self.step()).await.ok()?;
            match step {
                Ok(Step::Begun(begun)) => return Some(Ok(begun)),
                Ok(Step::Next(name)) => {
                    // Each comes once and in order: naming one anew would be time anew.
                    if name == phase.name || phase.name == WARMUP {
                        return Some(Err(FrameError::Malformed("PHASE").into()));
                    }
                    *phase = Phase { name, key: "script.init_timeout", limit: config.init_timeout };
                    deadline = Instant::now() + phase.limit;
                }
                Ok(Step::Other) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    async fn step(&mut self) -> Result<Step, ExchangeError> {
        let frame = tokio::select! {
            frame = self.connection.frame() => frame?,
            answer = self.questions.answered() => {
                answer.put(&mut self.connection);
                self.connection.flush();
                return Ok(Step::Other);
            }
        };
        let malformed = |what| ExchangeError::from(FrameError::Malformed(what));
        let step = match frame.kind {
            Kind::Ready => serde_json::from_slice(&frame.payload)
                .map(|ready| Step::Begun(Begun::Ready(ready)))
                .map_err(|_| malformed("READY"))?,
            Kind::Failed => serde_json::from_slice(&frame.payload)
                .map(|failure| Step::Begun(Begun::Failed(failure)))
                .map_err(|_| malformed("FAILED"))?,
            Kind::Phase => match &frame.payload[..] {
                b"init" => Step::Next(INIT),
                b"warmup" => Step::Next(WARMUP),
                _ => return Err(malformed("PHASE")),
            },
            _ => {
                self.serve(frame)?;
                Step::Other
            }
        };
        self.connection.release_done();
        self.connection.flush();
        Ok(step)
    }

    /// Takes care of what a worker may say at any time. What belongs to a call is not for here. Where that is the run of a model, says on
    /// which device.
    ///
    /// # Errors
    /// The frame is malformed or has no place here.
    pub(super) fn serve(
        &mut self,
        frame: super::connection::Frame,
    ) -> Result<Option<HeaderValue>, FrameError> {
        match frame.kind {
            Kind::Infer => return self.questions.infer(frame.id, frame.payload, frame.tail),
            Kind::Model => self.questions.describe(frame.id, &frame.payload)?,
            Kind::Log => {
                let line = frame::decode_log(frame.payload)?;
                self.log(&line, None);
            }
            Kind::Release => {
                if let Some(number) = self.connection.regions.released(frame.id) {
                    self.connection.put_frame(Kind::Forget, u64::from(number), &[]);
                }
            }
            Kind::Forget => self.connection.regions.forget(frame.id)?,
            Kind::Leave => {
                for number in self.connection.regions.retire() {
                    self.connection.put_frame(Kind::Forget, u64::from(number), &[]);
                }
            }
            _ => return Err(FrameError::Malformed("unexpected")),
        }
        Ok(None)
    }

    /// Logs a line of the worker's.
    pub(super) fn log(&self, line: &LogLine, request: Option<&HeaderValue>) {
        log::emit(line, &Origin { worker: self.number, pid: self.pid(), request });
        if line.source == LogSource::Stderr {
            self.process.remember(&line.text);
        }
    }

    /// The process's number.
    pub(super) fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// The worker has failed by itself: waits for its end.
    pub(super) async fn bury(self) -> Death {
        self.process.reap(EXIT_GRACE).await
    }

    /// The worker hangs: ends it.
    pub(super) async fn terminate(self) -> Death {
        self.process.terminate().await
    }

    /// The worker hangs: ends it, and gives what it has sent and nobody has read.
    pub(super) async fn terminate_and_keep(self) -> (Death, Connection) {
        (self.process.terminate().await, self.connection)
    }

    /// Has the worker end in order; its exit handlers run.
    pub(super) async fn stop(mut self, grace: Duration) -> Death {
        // Closing our half is how the worker is told.
        self.connection.close().await;
        self.process.reap(grace).await
    }
}

/// What a worker that is not ready is at, and how long it may be.
struct Phase {
    name: &'static str,
    key: &'static str,
    limit: Duration,
}

enum Step {
    Begun(Begun),
    /// It begins with the next phase.
    Next(&'static str),
    Other,
}
