//! Models that the replica holds, the devices that they are on, and the threads that run them.

mod batch;
mod bed;
mod begun;
mod cancels;
mod discover;
mod error;
mod files;
mod format;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod gate;
mod golden;
mod graph;
mod health;
mod instance;
mod job;
mod lanes;
mod lease;
mod ledger;
mod load;
mod loader;
mod manifest;
mod metrics;
mod picked;
pub(crate) mod plugin;
mod recovery;
mod refusal;
pub mod report;
mod residency;
mod samples;
mod served;
mod statistics;
mod steps;
mod survey;
#[cfg(test)]
mod tests;
mod threads;
mod turn;
mod versions;
mod wanted;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use outrigger_backend::{BackendInfo, ModelInfo, Run, RunId, Tensor};
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::oip::messages::model_metadata;
use outrigger_store::Manifest;
use tokio::sync::oneshot;

use crate::concerns::{self, Concern, Part};
use crate::fetching::Source;
use crate::scheduler::Slot;

pub(crate) use batch::BatchMetrics;
pub use batch::NotBatchable;
pub(crate) use begun::Begun;
pub use error::ModelsError;
pub use graph::EnsembleNode;
use graph::{Directory, Ensemble};
use health::{DeviceHealth, Watch};
pub use instance::LoadedModel;
pub(crate) use instance::ModelInstance;
use job::{Failure, Job};
use lanes::Lanes;
pub use lease::Lease;
pub(crate) use metrics::ModelMetrics;
pub use picked::Picked;
use picked::Runs;
pub use plugin::PluginError;
use refusal::call_error;
use residency::Residency;
pub use residency::{Happening, ModelEvent, ModelState, ModelStatus, Timeline};
pub use served::ServedModel;
pub(crate) use statistics::Times;
use survey::OpenDevice;
use threads::Threads;
use turn::Turn;
pub use versions::{NamedModel, NamedStatus};
pub(crate) use versions::{Rolled, Rollouts};

/// The longest name for which the nearest that is served is looked for...
const NEAR_NAMES: usize = 64;
/// ...and how much longer or shorter that may be: comparing names is work that a stranger could order.
const NEAR_LENGTHS: usize = 3;

/// What a model is called of which nobody says a version.
const DEFAULT_VERSION: &str = "1";

/// What the scheduler calls a call of the script; models are numbered from the next.
pub(crate) const SCRIPT: u16 = 0;

/// The models of a replica.
pub struct Models {
    models: BTreeMap<String, Arc<NamedModel>>,
    /// Those that models are on; an instance knows its own by its place here.
    devices: Vec<LoadedDevice>,
    /// Loads them; nothing where there are none.
    residency: Option<Arc<Residency>>,
    backends: Vec<BackendInfo>,
    lanes: Lanes,
    /// The number of the next run.
    runs: AtomicU64,
    /// Where ensembles find what they are made of.
    directory: Arc<Directory>,
    /// Bytes that may go from run to run in a call of an ensemble.
    ensemble_bytes: usize,
    /// Runs of such a call that may be under way at once.
    ensemble_runs: usize,
    /// Bytes that the outputs of one run may take.
    run_bytes: usize,
    /// Looks after the devices.
    watch: Arc<Watch>,
    watcher: Mutex<Option<JoinHandle<()>>>,
}

/// A device that is open.
struct LoadedDevice {
    device: OpenDevice,
    health: Arc<DeviceHealth>,
    /// Nothing where no model goes.
    threads: Option<Threads>,
}

impl Models {
    /// No models at all.
    pub(crate) fn none() -> Self {
        Self {
            models: BTreeMap::new(),
            devices: Vec::new(),
            residency: None,
            backends: Vec::new(),
            lanes: Lanes::sum(std::iter::empty()),
            runs: AtomicU64::new(1),
            directory: Arc::default(),
            ensemble_bytes: 0,
            ensemble_runs: 1,
            run_bytes: 0,
            watch: Arc::default(),
            watcher: Mutex::default(),
        }
    }

    /// Calls that the device threads work on at once: each one, or a batch of the widest model's.
    pub(crate) fn slots(&self) -> usize {
        self.lanes.slots
    }

    /// Runs that may wait in front of the device threads before a slot is free, where there is no script: so that the next one, or
    /// the next batch, is at hand.
    pub(crate) fn ahead(&self) -> usize {
        self.lanes.ahead
    }

    /// Every model, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<NamedModel>> {
        self.models.values()
    }

    /// Every model with a name after that one, by name.
    pub(crate) fn after(&self, name: &str) -> impl Iterator<Item = &Arc<NamedModel>> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.models.range::<str, _>((Excluded(name), Unbounded)).map(|(_, model)| model)
    }

    /// Every version of every model.
    pub fn versions(&self) -> Vec<Arc<ServedModel>> {
        self.models.values().flat_map(|model| model.versions()).collect()
    }

    /// What the backends of the models say of themselves.
    pub fn backends(&self) -> &[BackendInfo] {
        &self.backends
    }

    /// Finds a model.
    ///
    /// # Errors
    /// `model_not_found`, naming it.
    pub fn get(&self, name: &str) -> Result<&Arc<NamedModel>, CallError> {
        self.models.get(name).ok_or_else(|| {
            let known =
                self.models.keys().map(String::as_str).filter(|known| {
                    name.len() <= NEAR_NAMES && known.len().abs_diff(name.len()) <= NEAR_LENGTHS
                });
            let near = crate::config::suggestion(name, known);
            let shown: String = name.chars().take(100).collect();
            CallError::new(ErrorCode::ModelNotFound, format!("model `{shown}` is not served here{near}"))
        })
    }

    /// Runs an instance, or an ensemble, on inputs in its model's own order, and gives the outputs with the numbers in `outputs`, in that order; together
    /// with other calls, if the model batches. The slot, if the run is a call of its own, is taken until the run is over. It is not begun
    /// after the deadline.
    ///
    /// # Errors
    /// `invalid_tensor` for inputs that do not fit, `model_failed`, `overloaded`.
    pub async fn infer(
        &self,
        picked: Picked,
        inputs: Vec<Tensor>,
        outputs: Vec<usize>,
        slot: Option<Slot>,
        deadline: Option<Instant>,
    ) -> Result<Vec<Tensor>, CallError> {
        match picked.runs {
            Runs::Graph(call) => {
                let _held = picked.held;
                // Apart, so that calls of models are not the larger for it.
                Box::pin(self.infer_graph(call, inputs, outputs, slot, deadline)).await
            }
            runs => {
                let (picked, slot) = (Picked { runs, held: picked.held }, slot.map(Turn::Own));
                let answer = self.failing_on(picked, inputs, (outputs, Vec::new()), slot, deadline).await?;
                answer.map_err(|(instance, failure)| call_error(&instance, failure))
            }
        }
    }

    /// Runs an instance. Of the outputs, the second ones stay on the device. The outer error is for a run that did not come to a device; the inner
    /// one is not yet as callers see it.
    async fn failing_on(
        &self,
        picked: Picked,
        inputs: Vec<Tensor>,
        (outputs, stay): (Vec<usize>, Vec<usize>),
        slot: Option<Turn>,
        deadline: Option<Instant>,
    ) -> Result<Result<Vec<Tensor>, (Arc<ModelInstance>, Failure)>, CallError> {
        let no_device = || CallError::new(ErrorCode::ModelUnavailable, "no device");
        let Picked { runs: Runs::Instance(instance), held } = picked else { return Err(no_device()) };
        let threads = self.devices.get(instance.device).and_then(|device| device.threads.as_ref());
        let threads = threads.ok_or_else(no_device)?;
        let (done, answer) = oneshot::channel();
        // Runs of one instance are told apart by it; it starts anew after some centuries.
        let run = Run { id: RunId::new(self.runs.fetch_add(1, Ordering::Relaxed)) };
        let held = Some(held);
        let job =
            Job { model: Arc::clone(&instance), inputs, outputs, stay, slot, deadline, run, done, held };
        Ok(threads.run(job, answer).await?.map_err(|failure| (instance, failure)))
    }

    /// Runs one of a model's instances for a script: inputs by name, all outputs with theirs.
    ///
    /// # Errors
    /// As [`Models::infer`].
    pub async fn infer_named(
        &self,
        model: &Lease,
        picked: Picked,
        mut inputs: Vec<(String, Tensor)>,
    ) -> Result<Vec<(String, Tensor)>, CallError> {
        let name = &model.name;
        let given: Vec<String> = inputs.iter().map(|(name, _)| name.clone()).collect();
        let invalid = |text: String| {
            // A version may have other inputs than the one before it, of which the script does not know.
            let fits = |info: &ModelInfo| {
                let known = |name: &String| info.inputs.iter().any(|input| input.name == *name);
                given.len() == info.inputs.len() && given.iter().all(known)
            };
            if self.get(name).is_ok_and(|named| named.was_taken(fits)) {
                model.begin().ended(false);
            }
            CallError::new(ErrorCode::InvalidTensor, text)
        };
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
        let begun = model.begin();
        let tensors = self.infer(picked, ordered, outputs, None, None).await;
        let tensors = match tensors {
            Ok(tensors) => tensors,
            Err(error) => {
                begun.ended_as(&error);
                return Err(error);
            }
        };
        begun.ended(true);
        Ok(model.info.outputs.iter().map(|output| output.name.clone()).zip(tensors).collect())
    }

    /// A lease of a model. One that is not loaded is loaded first, within `until`.
    ///
    /// # Errors
    /// `model_unavailable` if it does not load, or not in time; `overloaded` if too many calls wait for loads.
    pub async fn lease(&self, model: &ServedModel, until: Instant) -> Result<Lease, CallError> {
        self.lease_meant(model, &|| true, until).await
    }

    async fn lease_meant(
        &self,
        model: &ServedModel,
        is_meant: &(dyn Fn() -> bool + Sync),
        until: Instant,
    ) -> Result<Lease, CallError> {
        match (model.lease(), &self.residency) {
            (Some(lease), _) => Ok(lease),
            (None, Some(residency)) if model.ensemble.is_some() => {
                residency.lease_ensemble(model, is_meant, until).await
            }
            (None, Some(residency)) => residency.lease(model, is_meant, until).await,
            (None, None) => Err(CallError::new(ErrorCode::ModelUnavailable, "no device")),
        }
    }

    /// A lease of a version, by what it is called, or of the stable one. Where another takes its place meanwhile, it is one of that.
    ///
    /// # Errors
    /// As [`Models::lease`], and `model_not_found`.
    pub(crate) async fn lease_version(
        &self,
        named: &NamedModel,
        which: Option<&str>,
        until: Instant,
    ) -> Result<Lease, CallError> {
        loop {
            let version = named.version(which)?;
            let is_meant = || named.version(which).is_ok_and(|now| Arc::ptr_eq(&now, &version));
            match self.lease_meant(&version, &is_meant, until).await {
                Err(_) if !is_meant() => {}
                leased => return leased,
            }
        }
    }

    /// One more version of a model, which is loaded as soon as somebody needs it.
    fn add(
        &self,
        wanted: wanted::Wanted,
        later: Option<Arc<Manifest>>,
        source: Option<Source>,
        kind: u16,
    ) -> Result<Arc<ServedModel>, ModelsError> {
        let residency = self.residency.as_ref().ok_or(ModelsError::NoDevices)?;
        let start = residency.start_of_time();
        if let Some(graph) = &wanted.graph {
            Ensemble::new(Arc::clone(graph), &self.directory).check(&wanted.name, false)?;
        }
        Ok(residency.add(|number| {
            ServedModel::new(number, kind, wanted, (later, source), start).made_of(&self.directory)
        }))
    }

    /// Takes a version away for good, once the calls are through that have it, and says whether it did. Not for an async task.
    fn retire(&self, model: &ServedModel) -> bool {
        self.residency.as_ref().is_none_or(|residency| residency.remove(model))
    }

    /// Calls that are for a version have another one from now on.
    fn have_moved(&self, from: &ServedModel, to: &ServedModel) {
        self.residency.iter().for_each(|residency| residency.have_moved(from, to));
    }

    /// A version, and what it is made of if it is an ensemble.
    fn with_parts(&self, model: &Arc<ServedModel>) -> Vec<Arc<ServedModel>> {
        self.residency.as_ref().map(|residency| residency.with_parts(model)).unwrap_or_default()
    }

    /// Whether a model is loaded, and all that it is made of.
    pub(crate) fn is_loaded(&self, model: &ServedModel) -> bool {
        self.residency.as_ref().is_some_and(|residency| residency.is_loaded(model))
    }

    /// Has a version stay for a while, or not any more.
    fn keep(&self, model: &ServedModel, kept: bool) {
        self.residency.iter().for_each(|residency| residency.keep(model, kept));
    }

    /// Tells of something that has happened to a version, and why.
    fn tell(&self, model: &ServedModel, event: Happening, why: String) {
        self.residency.iter().for_each(|residency| residency.told(model, event, why.clone()));
    }

    /// How a model is, in all its versions.
    pub fn status_of(&self, named: &NamedModel) -> Option<NamedStatus> {
        named.status(|version| self.status(version))
    }

    /// How a version is.
    pub fn status(&self, model: &ServedModel) -> Option<ModelStatus> {
        Some(self.residency.as_ref()?.status(model))
    }

    /// How many models there are in each state.
    pub fn states(&self) -> Vec<(ModelState, usize)> {
        self.residency.as_ref().map(|residency| residency.states()).unwrap_or_default()
    }

    /// What is wrong with devices, and with models that did not load; some of them, where that is very many.
    pub(crate) fn concerns(&self) -> Vec<Concern> {
        let served = self.devices.iter().filter(|loaded| loaded.threads.is_some());
        let devices = served.filter_map(|loaded| {
            let reason = loaded.health.concern()?;
            Some(Concern { part: Part::Device, name: loaded.device.id.to_string(), reason })
        });
        let failed = self.residency.iter().flat_map(|residency| residency.failures());
        let failed = failed.map(|(name, reason)| Concern { part: Part::Model, name, reason });
        devices.chain(failed).take(concerns::MOST).collect()
    }

    /// Calls that wait for a model to be loaded.
    pub(crate) fn waiting(&self) -> usize {
        self.residency.as_ref().map_or(0, |residency| residency.waiting())
    }

    /// Whether calls of a model are answered: it is loaded, or is as soon as one needs it.
    pub(crate) fn can_be_had(&self, model: &ServedModel) -> bool {
        self.residency.as_ref().is_some_and(|residency| residency.can_be_had(model))
    }

    /// Has a model loaded, also where its last load has just failed; does not wait for that longer than `until`.
    ///
    /// # Errors
    /// As [`Models::lease`].
    pub(crate) async fn bring(&self, model: &ServedModel, until: Instant) -> Result<(), CallError> {
        self.residency.iter().for_each(|residency| residency.forgive(model));
        self.lease(model, until).await.map(drop)
    }

    /// The same of the version that is stable, whichever that is by then.
    ///
    /// # Errors
    /// As [`Models::lease_version`].
    pub(crate) async fn bring_stable(&self, named: &NamedModel, until: Instant) -> Result<(), CallError> {
        self.residency.iter().for_each(|residency| residency.forgive(&named.stable()));
        self.lease_version(named, None, until).await.map(drop)
    }

    /// Has a model leave once the calls are through that have it. With the next call that needs it, it is loaded again.
    pub(crate) async fn unload(&self, model: &Arc<ServedModel>) {
        let Some(residency) = self.residency.clone() else { return };
        let model = Arc::clone(model);
        let left = tokio::task::spawn_blocking(move || residency.unload(&model)).await;
        if let Err(error) = left {
            tracing::error!(%error, "a model was not unloaded");
        }
    }

    /// Says whether a model may make way for others.
    pub(crate) fn pin(&self, model: &ServedModel, pinned: bool) {
        self.residency.iter().for_each(|residency| residency.pin(model, pinned));
    }

    /// The events after that number which are kept, and those to come; nothing where there are no models.
    pub(crate) fn events(
        &self,
        after: u64,
    ) -> Option<(Vec<ModelEvent>, tokio::sync::broadcast::Receiver<ModelEvent>)> {
        Some(self.residency.as_ref()?.events(after))
    }

    /// The same for a script, which has its own limit of time: within what calls wait at most.
    ///
    /// # Errors
    /// As [`Models::lease`], and `model_not_found`.
    pub(crate) async fn lease_named(&self, name: &str) -> Result<Lease, CallError> {
        let model = self.get(name)?;
        let patience = self.residency.as_ref().map_or(Duration::ZERO, |residency| residency.patience());
        self.lease_version(model, None, Instant::now() + patience).await
    }

    /// A model's inputs and outputs as JSON, for a script.
    ///
    /// # Errors
    /// As [`Models::lease_named`].
    pub(crate) async fn describe(&self, name: &str) -> Result<Bytes, CallError> {
        let model = self.lease_named(name).await?;
        let version = &[model.version.as_str()];
        let metadata = model_metadata(&model.name, version, &model.platform, &model.info);
        // Texts and numbers have a JSON form: this does not fail.
        Ok(serde_json::to_vec(&metadata).unwrap_or_default().into())
    }

    /// Runs that have not begun are not begun any more.
    pub fn break_off(&self) {
        self.residency.iter().for_each(|residency| residency.break_off());
        self.threads().for_each(Threads::break_off);
    }

    /// Why calls of some model cannot succeed: its devices cannot be used.
    pub(crate) fn trouble(&self) -> Option<String> {
        let loaded = self.models.values().filter_map(|model| model.stable().resident());
        let all: Vec<_> = loaded.filter(|model| !model.is_able()).collect();
        let (stranded, others) = all.split_first()?;
        let places = stranded.instances().filter_map(|instance| instance.place.as_ref());
        let mut reasons: Vec<String> = places
            .filter_map(|place| Some(format!("{}: {}", place.device, place.health.trouble()?)))
            .collect();
        reasons.dedup();
        let more = match others.len() {
            0 => String::new(),
            others => format!(", as {others} more have not"),
        };
        if reasons.is_empty() {
            reasons.push("a run was lost, and it has not said yet that it is well".into());
        }
        let (name, reasons) = (&stranded.name, reasons.join("; "));
        Some(format!("model `{name}` has no device that can be used{more}: {reasons}"))
    }

    /// Ends the threads; calls that wait for one are answered with an error.
    pub fn stop(&self) {
        self.watch.stop();
        let watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner).take();
        if watcher.is_some_and(|watcher| watcher.join().is_err()) {
            tracing::error!("the thread that looks after devices ended by a panic");
        }
        self.residency.iter().for_each(|residency| residency.stop());
        self.threads().for_each(Threads::stop);
    }

    fn threads(&self) -> impl Iterator<Item = &Threads> {
        self.devices.iter().filter_map(|device| device.threads.as_ref())
    }
}

impl Drop for Models {
    fn drop(&mut self) {
        // Its thread has models of its own, and would go on.
        self.watch.stop();
        // As have those that load.
        self.residency.iter().for_each(|residency| residency.break_off());
    }
}
