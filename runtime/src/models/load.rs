//! Loads models where the plan has them.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use outrigger_backend::{BackendError, Model, ModelInfo};

use super::batch::{self, Former};
use super::health::{DeviceHealth, Watch};
use super::instance::{LoadedModel, ModelInstance, Place};
use super::ledger::Ledger;
use super::survey::{self, OpenDevice, Surveyed};
use super::threads::{self, Threads};
use super::wanted::{self, Wanted};
use super::{Lanes, LoadedDevice, Models, ModelsError, SCRIPT, samples};
use crate::busy::Busy;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::placement::{self, DeviceId, Placed, Plan, Reason};

impl Models {
    /// Loads every model that the configuration names, or, without a script, every model that the model directory holds, each where
    /// it is placed. Takes as long as loading takes; not for an async task.
    ///
    /// # Errors
    /// [`ModelsError`], for the first model that fails.
    pub fn load(config: &Config, busy: &Arc<Busy>, metrics: &Metrics) -> Result<Self, ModelsError> {
        let wanted = wanted::all(config)?;
        if wanted.is_empty() {
            return Ok(Self::none());
        }
        let _loading = busy.loading();
        let watch = Arc::<Watch>::default();
        let backends = survey::open_for(&config.backends, &wanted, &watch)?;
        let plan = place(&wanted, &backends)?;
        let devices = used(&plan, &backends);
        let lanes = |device: &OpenDevice| {
            let on = |model: &&Wanted| {
                plan.placed.iter().any(|placed| placed.model == model.name && placed.device == device.id)
            };
            let widest = wanted.iter().filter(on).map(|model| model.max_batch).max().unwrap_or(1);
            Lanes::of(device.threads, widest)
        };
        let lanes = Lanes::sum(devices.iter().map(lanes));
        let health = |open: &OpenDevice| {
            let (id, device, status) = (open.id.clone(), Arc::clone(&open.device), open.status.clone());
            Arc::new(DeviceHealth::new(id, device, status, Arc::clone(&watch)))
        };
        let health: Vec<_> = devices.iter().map(health).collect();
        let limits = batch::Limits {
            bytes: config.limits.answer,
            waiting: lanes.slots + lanes.ahead + threads::WAITING,
        };
        let mut loader =
            Loader { devices: &devices, health: &health, config, metrics, limits, ledger: ledger(&devices) };
        let mut models: BTreeMap<String, Arc<LoadedModel>> = BTreeMap::new();
        // There are at most `limits.models`.
        for (kind, model) in (SCRIPT + 1..).zip(&wanted) {
            let placed: Vec<_> = plan.placed.iter().filter(|placed| placed.model == model.name).collect();
            let loaded = loader.load(kind, model, &placed, &backends)?;
            models.insert(model.name.clone(), Arc::new(loaded));
        }
        let all: Vec<_> = models.values().cloned().collect();
        let able = move || all.iter().all(|model| model.is_able());
        let watcher = watch.start(health.clone(), Arc::clone(busy), able).map_err(ModelsError::Thread)?;
        let start = |(device, health): (OpenDevice, Arc<DeviceHealth>)| {
            let name = match device.id.index {
                0 => device.id.backend.clone(),
                index => format!("{}{index}", device.id.backend),
            };
            // Any of them may get all calls that are let in.
            let threads =
                Threads::start(&name, device.threads, lanes.slots + lanes.ahead, config.limits.answer)?;
            Ok(LoadedDevice { device, health, threads })
        };
        let infos = backends.iter().filter_map(|seen| Some(seen.backend.as_ref().ok()?.info().clone()));
        Ok(Self {
            models,
            backends: infos.collect(),
            devices: devices
                .into_iter()
                .zip(health)
                .map(start)
                .collect::<Result<_, _>>()
                .map_err(ModelsError::Thread)?,
            lanes,
            runs: AtomicU64::new(1),
            watch,
            watcher: Mutex::new(Some(watcher)),
        })
    }
}

/// Places models; says of each that goes elsewhere than it should why.
fn place(wanted: &[Wanted], backends: &[Surveyed]) -> Result<Plan, ModelsError> {
    let mut estimates = survey::estimate(wanted, backends);
    let states: Vec<_> = backends.iter().map(Surveyed::state).collect();
    let plan = placement::plan(&estimates.models, &states);
    for unplaced in &plan.unplaced {
        // Nothing but the file is wrong.
        if !unplaced.tried.iter().all(|tried| matches!(tried.reason, Reason::Unreadable { .. })) {
            continue;
        }
        let failed = estimates.failures.keys().find(|(name, _)| *name == unplaced.model).cloned();
        if let Some(source) = failed.and_then(|key| estimates.failures.remove(&key))
            && let Some(model) = wanted.iter().find(|model| model.name == unplaced.model)
        {
            return Err(ModelsError::Load { name: model.name.clone(), path: model.path.clone(), source });
        }
    }
    if !plan.unplaced.is_empty() {
        return Err(ModelsError::NoPlace(plan.unplaced));
    }
    let mut last = "";
    for placed in &plan.placed {
        if let Some(from) = placed.fallback_from.as_ref().filter(|_| placed.model != last) {
            let why = placed.tried.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            tracing::warn!(model = %placed.model, device = %placed.device, from, why, "model is not where its list of devices begins");
            last = &placed.model;
        }
    }
    Ok(plan)
}

/// The devices that models go to.
fn used(plan: &Plan, backends: &[Surveyed]) -> Vec<OpenDevice> {
    let open = backends.iter().flat_map(|seen| &seen.devices).filter_map(|seen| seen.opened.as_ref().ok());
    open.filter(|open| plan.placed.iter().any(|placed| placed.device == open.id)).cloned().collect()
}

struct Loader<'a> {
    devices: &'a [OpenDevice],
    /// Of the same devices.
    health: &'a [Arc<DeviceHealth>],
    config: &'a Config,
    metrics: &'a Metrics,
    limits: batch::Limits,
    ledger: Ledger,
}

impl Loader<'_> {
    fn load(
        &mut self,
        kind: u16,
        wanted: &Wanted,
        placed: &[&Placed],
        backends: &[Surveyed],
    ) -> Result<LoadedModel, ModelsError> {
        let mut loaded = Vec::new();
        let mut instances = Vec::with_capacity(placed.len());
        for placed in placed {
            let (at, open) = self.device(&placed.device).map_err(|source| self.failed(wanted, source))?;
            let model = self.once(wanted, open, &mut loaded)?;
            let instance = Arc::new(self.instance(wanted, placed, at, model.as_ref())?);
            instances.push(Arc::clone(&instance));
            self.ledger.check(&wanted.name, &held(&instances))?;
            samples::run(wanted, &instance, &self.config.limits)?;
        }
        for (device, bytes) in held(&instances) {
            tracing::info!(model = %wanted.name, %device, bytes, "model ready");
        }
        self.ledger.add(&held(&instances));
        let mut instances = instances.into_iter();
        let missing = || self.failed(wanted, BackendError::Internal("it has no instance".into()));
        let first = instances.next().ok_or_else(missing)?;
        Ok(LoadedModel {
            name: wanted.name.clone(),
            version: wanted.version.clone(),
            platform: platform(wanted, &first, backends),
            info: Arc::clone(&first.info),
            kind,
            first,
            others: instances.collect(),
        })
    }

    /// The model on a device. Copies on one device share its weights, so it is loaded there once.
    fn once(
        &self,
        wanted: &Wanted,
        open: &OpenDevice,
        loaded: &mut Vec<(DeviceId, Arc<dyn Model>)>,
    ) -> Result<Arc<dyn Model>, ModelsError> {
        if let Some((_, model)) = loaded.iter().find(|(device, _)| *device == open.id) {
            return Ok(Arc::clone(model));
        }
        let model = open.device.load(&wanted.options()).map_err(|source| self.failed(wanted, source))?;
        if let Some((first, _)) = loaded.first().filter(|(_, first)| differ(first.info(), model.info())) {
            let (first, other) = (first.clone(), open.id.clone());
            return Err(ModelsError::Differs { name: wanted.name.clone(), first, other });
        }
        self.check(wanted, model.info())?;
        loaded.push((open.id.clone(), Arc::clone(&model)));
        Ok(model)
    }

    fn instance(
        &self,
        wanted: &Wanted,
        placed: &Placed,
        at: usize,
        model: &dyn Model,
    ) -> Result<ModelInstance, ModelsError> {
        let instance = model.instance().map_err(|source| self.failed(wanted, source))?;
        let info = Arc::new(model.info().clone());
        let place = self.health.get(at).map(|health| {
            Place::new(placed.device.clone(), Arc::clone(health), placed.fallback_from.as_deref())
        });
        let device = placed.device.to_string();
        let runs = self.metrics.models.runs(&wanted.name, &device, placed.fallback_from.is_some());
        let mut instance = ModelInstance::new(&wanted.name, info, instance, place, runs);
        instance.device = at;
        instance.former =
            Former::new(&wanted.name, wanted, &instance.info, self.limits, &self.metrics.batches).map_err(
                |reason| ModelsError::Batch {
                    name: wanted.name.clone(),
                    max_batch: wanted.max_batch,
                    reason: Box::new(reason),
                },
            )?;
        Ok(instance)
    }

    fn device(&self, id: &DeviceId) -> Result<(usize, &OpenDevice), BackendError> {
        let found = self.devices.iter().enumerate().find(|(_, open)| open.id == *id);
        found.ok_or_else(|| BackendError::Internal(format!("{id} is not open")))
    }

    /// Whether the manifest says the same of inputs and outputs.
    fn check(&self, wanted: &Wanted, info: &ModelInfo) -> Result<(), ModelsError> {
        let Some(manifest) = &wanted.manifest else { return Ok(()) };
        manifest.check(info).map_err(|problem| ModelsError::Manifest { path: manifest.path.clone(), problem })
    }

    fn failed(&self, wanted: &Wanted, source: BackendError) -> ModelsError {
        ModelsError::Load { name: wanted.name.clone(), path: wanted.path.clone(), source }
    }
}

fn ledger(devices: &[OpenDevice]) -> Ledger {
    Ledger::new(devices.iter().map(|open| (open.id.clone(), open.budget, open.status.memory_held)))
}

/// What instances hold, and where.
fn held(instances: &[Arc<ModelInstance>]) -> Vec<(DeviceId, u64)> {
    // Those of one device share what they hold, so that each holds less with every further one.
    instances.iter().for_each(|instance| instance.measure());
    let held = |instance: &Arc<ModelInstance>| {
        Some((instance.place.as_ref()?.device.clone(), instance.bytes_held()))
    };
    instances.iter().filter_map(held).collect()
}

/// `onnx_cpu`: the format, and the backend of the first instance.
fn platform(wanted: &Wanted, first: &ModelInstance, backends: &[Surveyed]) -> String {
    let name = first.place.as_ref().map_or("", |place| &place.device.backend);
    let backend = backends.iter().find(|seen| seen.name == name).and_then(|seen| seen.backend.as_ref().ok());
    let own = backend.and_then(|backend| backend.info().formats.first());
    format!("{}_{name}", wanted.format.as_ref().or(own).map_or("unknown", String::as_str))
}

/// Whether two devices make something else of one file: a call has to fit both.
fn differ(one: &ModelInfo, other: &ModelInfo) -> bool {
    let same = |one: &[outrigger_backend::TensorInfo], other: &[outrigger_backend::TensorInfo]| {
        one.len() == other.len()
            && one.iter().zip(other).all(|(one, other)| {
                one.name == other.name && one.data_type == other.data_type && one.shape == other.shape
            })
    };
    !(same(&one.inputs, &other.inputs) && same(&one.outputs, &other.outputs))
}
