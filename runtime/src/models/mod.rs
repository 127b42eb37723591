//! Models that the replica holds, and the threads that run them.

mod batch;
mod bed;
mod discover;
mod job;
mod plugin;
#[cfg(test)]
mod tests;
mod threads;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use outrigger_backend::{
    BackendError, BackendInfo, Device, Instance, LoadOptions, ModelInfo, Run, RunId, Tensor,
};
use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::sync::oneshot;

use crate::busy::{Busy, MAX_CALLS};
use crate::config::{Config, ModelConfig};
use crate::metrics::Metrics;
use crate::scheduler::Slot;

pub(crate) use batch::BatchMetrics;
use batch::Former;
pub use batch::NotBatchable;
use job::{Failure, Job};
pub use plugin::PluginError;
use threads::Threads;

/// So many find the next run at hand without sleeping in between.
const AHEAD_PER_THREAD: usize = 8;

/// What the scheduler calls a call of the script; models are numbered from the next.
pub(crate) const SCRIPT: u16 = 0;

/// A model that is loaded.
pub struct LoadedModel {
    /// Its name.
    pub name: String,
    /// Its file format and library, as the Open Inference Protocol calls a platform.
    pub platform: String,
    /// The device it is on.
    pub device: String,
    /// Its inputs and outputs.
    pub info: ModelInfo,
    /// Its number among what calls can be for.
    pub(crate) kind: u16,
    instance: Arc<dyn Instance>,
    /// Where calls wait for each other, if it is said to batch.
    former: Option<Former>,
}

impl LoadedModel {
    /// Bytes of device memory it holds; 0 if not known.
    pub fn bytes_held(&self) -> u64 {
        self.instance.bytes_held()
    }
}

/// Why models cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelsError {
    /// The backend's library is not there, or has no device.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// A model's file does not load.
    #[error("model `{name}` ({path}) does not load")]
    Load {
        /// The model.
        name: String,
        /// Its file.
        path: PathBuf,
        /// Why.
        source: BackendError,
    },
    /// A model is said to batch and cannot.
    #[error(
        "`models.{name}.max_batch` is {max_batch}, and model `{name}` cannot run several calls at once: {reason}; set max_batch = 1, or export the model with a free first dimension, the rows, in every input and output"
    )]
    Batch {
        /// The model.
        name: String,
        /// What was asked for.
        max_batch: usize,
        /// Why it cannot.
        reason: Box<NotBatchable>,
    },
    /// The model directory cannot be read.
    #[error("model_dir `{path}` cannot be read")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is nothing to serve.
    #[error("model_dir `{0}` holds no .onnx file and there is no script")]
    Nothing(PathBuf),
    /// More models than allowed.
    #[error("{found} models found, limits.models is {limit}")]
    TooMany {
        /// Found.
        found: usize,
        /// Allowed.
        limit: usize,
    },
    /// Two files would be served under one name.
    #[error("two files for model `{name}`: {first} and {second}")]
    Twice {
        /// The model.
        name: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread for models")]
    Thread(#[source] std::io::Error),
}

/// The models of a replica.
pub struct Models {
    models: BTreeMap<String, Arc<LoadedModel>>,
    threads: Option<Threads>,
    backend: Option<BackendInfo>,
    lanes: Lanes,
    /// The number of the next run.
    runs: AtomicU64,
}

/// How many calls the device threads take at once.
#[derive(Clone, Copy, Debug, Default)]
struct Lanes {
    threads: usize,
    /// Rows of the widest batch of any model.
    widest: usize,
}

impl Lanes {
    fn of(threads: usize, models: &BTreeMap<String, ModelConfig>) -> Self {
        Self { threads, widest: models.values().map(|model| model.max_batch).max().unwrap_or(1) }
    }

    fn slots(self) -> usize {
        // What is ahead and in the queue has to find room in the same counts.
        self.threads.saturating_mul(self.widest).clamp(1, MAX_CALLS / 4)
    }

    fn ahead(self) -> usize {
        self.threads.saturating_mul(self.widest.max(AHEAD_PER_THREAD)).min(MAX_CALLS / 4)
    }
}

impl Models {
    /// Loads every model that the configuration names, or, without a script, every model that the model directory holds.
    /// Takes as long as loading takes; not for an async task.
    ///
    /// # Errors
    /// [`ModelsError`], for the first model that fails.
    pub fn load(config: &Config, busy: &Arc<Busy>, metrics: &Metrics) -> Result<Self, ModelsError> {
        let mut wanted = config.models.clone();
        if config.script.is_none()
            && wanted.is_empty()
            && let Some(directory) = &config.model_dir
        {
            wanted = discover::models(directory, config.limits.models)?;
        }
        if wanted.is_empty() {
            return Ok(Self::none());
        }
        let _loading = busy.loading();
        let backend = plugin::open_cpu(&config.backends)?;
        let device = plugin::first_device(backend.as_ref())?;
        let lanes = Lanes::of(config.backends.cpu_threads, &wanted);
        let waiting = lanes.slots() + lanes.ahead() + threads::WAITING;
        let limits = batch::Limits { bytes: config.limits.answer, waiting };
        let mut models = BTreeMap::new();
        // There are at most `limits.models`.
        for (kind, (name, model)) in (SCRIPT + 1..).zip(wanted) {
            let mut loaded =
                load_one(&name, kind, &model, backend.info(), device.as_ref()).map_err(|source| {
                    ModelsError::Load { name: name.clone(), path: model.path.clone(), source }
                })?;
            loaded.former =
                Former::new(&name, &model, &loaded.info, limits, &metrics.batches).map_err(|reason| {
                    ModelsError::Batch {
                        name: name.clone(),
                        max_batch: model.max_batch,
                        reason: Box::new(reason),
                    }
                })?;
            tracing::info!(model = %name, device = %loaded.device, bytes = loaded.bytes_held(), "model ready");
            models.insert(name, Arc::new(loaded));
        }
        let threads = Threads::start(lanes.threads, lanes.slots() + lanes.ahead(), config.limits.answer)
            .map_err(ModelsError::Thread)?;
        Ok(Self {
            models,
            threads: Some(threads),
            backend: Some(backend.info().clone()),
            lanes,
            runs: AtomicU64::new(1),
        })
    }

    /// No models at all.
    pub(crate) fn none() -> Self {
        Self {
            models: BTreeMap::new(),
            threads: None,
            backend: None,
            lanes: Lanes::default(),
            runs: AtomicU64::new(1),
        }
    }

    /// Calls that the device threads work on at once: each one, or a batch of the widest model's.
    pub(crate) fn slots(&self) -> usize {
        self.lanes.slots()
    }

    /// Runs that may wait in front of the device threads before a slot is free, where there is no script: so that the next one, or
    /// the next batch, is at hand.
    pub(crate) fn ahead(&self) -> usize {
        self.lanes.ahead()
    }

    /// Every model, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<LoadedModel>> {
        self.models.values()
    }

    /// What the backend says of itself, if one is open.
    pub fn backend(&self) -> Option<&BackendInfo> {
        self.backend.as_ref()
    }

    /// Finds a model.
    ///
    /// # Errors
    /// `model_not_found`, naming it.
    pub fn get(&self, name: &str) -> Result<&Arc<LoadedModel>, CallError> {
        self.models.get(name).ok_or_else(|| {
            // Longer ones are no model's name, and comparing them is work that a stranger could order.
            let known = self.models.keys().map(String::as_str).filter(|_| name.len() <= 255);
            let near = crate::config::suggestion(name, known);
            let shown: String = name.chars().take(100).collect();
            CallError::new(ErrorCode::ModelNotFound, format!("model `{shown}` is not served here{near}"))
        })
    }

    /// Runs a model on inputs in its own order, and gives the outputs with the numbers in `outputs`, in that order; together with other
    /// calls, if the model batches. The slot, if the run is a call of its own, is taken until the run is over. It is not begun after
    /// the deadline.
    ///
    /// # Errors
    /// `invalid_tensor` for inputs that do not fit, `model_failed`, `overloaded`.
    pub async fn infer(
        &self,
        model: &Arc<LoadedModel>,
        inputs: Vec<Tensor>,
        outputs: Vec<usize>,
        slot: Option<Slot>,
        deadline: Option<Instant>,
    ) -> Result<Vec<Tensor>, CallError> {
        let threads =
            self.threads.as_ref().ok_or_else(|| CallError::new(ErrorCode::ModelUnavailable, "no device"))?;
        let (done, answer) = oneshot::channel();
        // Runs of one instance are told apart by it; it starts anew after some centuries.
        let run = Run { id: RunId::new(self.runs.fetch_add(1, Ordering::Relaxed)) };
        let job = Job { model: Arc::clone(model), inputs, outputs, slot, deadline, run, done };
        threads.run(job, answer).await?.map_err(|failure| call_error(&model.name, failure))
    }

    /// Runs a model for a script: inputs by name, all outputs with theirs.
    ///
    /// # Errors
    /// As [`Models::get`] and [`Models::infer`].
    pub async fn infer_named(
        &self,
        name: &str,
        mut inputs: Vec<(String, Tensor)>,
    ) -> Result<Vec<(String, Tensor)>, CallError> {
        let model = self.get(name)?;
        let invalid = |text: String| CallError::new(ErrorCode::InvalidTensor, text);
        let mut ordered = Vec::with_capacity(model.info.inputs.len());
        for wanted in &model.info.inputs {
            let at = inputs
                .iter()
                .position(|(given, _)| *given == wanted.name)
                .ok_or_else(|| invalid(format!("input `{}` of model `{name}` is missing", wanted.name)))?;
            ordered.push(inputs.swap_remove(at).1);
        }
        if let Some((extra, _)) = inputs.first() {
            return Err(invalid(format!("model `{name}` has no input `{extra}`")));
        }
        let outputs = (0..model.info.outputs.len()).collect();
        let tensors = self.infer(model, ordered, outputs, None, None).await?;
        Ok(model.info.outputs.iter().map(|output| output.name.clone()).zip(tensors).collect())
    }

    /// A model's inputs and outputs as JSON, for a script.
    ///
    /// # Errors
    /// As [`Models::get`].
    pub fn describe(&self, name: &str) -> Result<Bytes, CallError> {
        let model = self.get(name)?;
        Ok(outrigger_protocol::oip::model_metadata(&model.name, &["1"], &model.platform, &model.info))
    }

    /// Runs that have not begun are not begun any more.
    pub fn break_off(&self) {
        if let Some(threads) = &self.threads {
            threads.break_off();
        }
    }

    /// Ends the threads; calls that wait for one are answered with an error.
    pub fn stop(&self) {
        if let Some(threads) = &self.threads {
            threads.stop();
        }
    }
}

fn load_one(
    name: &str,
    kind: u16,
    config: &ModelConfig,
    backend: &BackendInfo,
    device: &dyn Device,
) -> Result<LoadedModel, BackendError> {
    let model =
        device.load(&LoadOptions { intra_threads: config.intra_threads, ..LoadOptions::of(&config.path) })?;
    let instance = model.instance()?;
    let format = backend.formats.first().map_or("unknown", String::as_str);
    Ok(LoadedModel {
        name: name.to_owned(),
        platform: format!("{format}_{}", backend.name),
        device: backend.devices.first().map_or_else(String::new, |device| device.name.clone()),
        info: model.info().clone(),
        kind,
        instance,
        former: None,
    })
}

/// A backend's error as the caller sees it. What the caller did wrong is said in full; the rest is for the log.
fn call_error(model: &str, failure: Failure) -> CallError {
    let error = match failure {
        Failure::Backend(error) => error,
        Failure::Late => return crate::scheduler::expired(),
    };
    match error {
        BackendError::Input(text) => CallError::new(ErrorCode::InvalidTensor, text),
        BackendError::Lost(_) => {
            // Said once by whoever looks after the device.
            tracing::debug!(model, %error, "a run was lost with its device");
            CallError::new(
                ErrorCode::ModelUnavailable,
                format!("the device that model `{model}` runs on was lost; it is being started again"),
            )
            .with_retry_after(Duration::from_secs(1))
        }
        // Whoever it was for has left, or has been told that it is too late.
        BackendError::Cancelled => crate::scheduler::expired(),
        BackendError::OutOfMemory(_) => {
            tracing::error!(model, %error, "model ran out of memory");
            CallError::new(ErrorCode::ModelUnavailable, format!("model `{model}` ran out of memory"))
        }
        error => {
            tracing::error!(model, %error, "model failed");
            CallError::new(ErrorCode::ModelFailed, format!("model `{model}` failed; the log says why"))
        }
    }
}
