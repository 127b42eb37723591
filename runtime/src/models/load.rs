//! Loads models, and starts what runs them.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use outrigger_backend::BackendError;

use super::health::{DeviceHealth, Watch};
use super::instance::{LoadedModel, ModelInstance};
use super::loader::Loader;
use super::survey::{self, OpenDevice, Surveyed};
use super::threads::{self, Threads};
use super::wanted::{self, Wanted};
use super::{Lanes, LoadedDevice, Models, ModelsError, SCRIPT};
use crate::busy::Busy;
use crate::config::Config;
use crate::metrics::Metrics;

impl Models {
    /// Loads every model that the configuration names, or, without a script, every model that the model directory holds, each where
    /// it is placed; what does not load there is placed anew. Takes as long as loading takes; not for an async task.
    ///
    /// # Errors
    /// [`ModelsError`], for the first model that cannot be served.
    pub fn load(config: &Config, busy: &Arc<Busy>, metrics: &Metrics) -> Result<Self, ModelsError> {
        let wanted = wanted::all(config)?;
        if wanted.is_empty() {
            return Ok(Self::none());
        }
        let _loading = busy.loading();
        let watch = Arc::<Watch>::default();
        let backends = survey::open_for(&config.backends, &wanted, &watch)?;
        let health = |open: &OpenDevice| {
            let (id, device, status) = (open.id.clone(), Arc::clone(&open.device), open.status.clone());
            Arc::new(DeviceHealth::new(id, device, status, Arc::clone(&watch)))
        };
        let open =
            backends.iter().flat_map(|seen| &seen.devices).filter_map(|seen| seen.opened.as_ref().ok());
        let mut devices: Vec<_> = open.map(|open| (open.clone(), health(open))).collect();
        let mut loaded = Loader::new(config, metrics, &wanted, &backends, &devices).all()?;
        // Where models are is not known before.
        devices.retain(|(open, _)| loaded.iter().any(|instances| is_on(instances, open)));
        let lanes = Lanes::sum(devices.iter().map(|(open, _)| lanes(open, &wanted, &loaded)));
        for instance in loaded.iter_mut().flatten() {
            settle(instance, &devices, lanes);
        }
        let mut models: BTreeMap<String, Arc<LoadedModel>> = BTreeMap::new();
        // There are at most `limits.models`.
        for (kind, (model, instances)) in (SCRIPT + 1..).zip(wanted.iter().zip(loaded)) {
            models.insert(model.name.clone(), Arc::new(join(kind, model, instances, &backends)?));
        }
        let all: Vec<_> = models.values().cloned().collect();
        let able = move || all.iter().all(|model| model.is_able());
        let health = devices.iter().map(|(_, health)| Arc::clone(health)).collect();
        let watcher = watch.start(health, Arc::clone(busy), able).map_err(ModelsError::Thread)?;
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
            devices: devices.into_iter().map(start).collect::<Result<_, _>>().map_err(ModelsError::Thread)?,
            lanes,
            runs: AtomicU64::new(1),
            watch,
            watcher: Mutex::new(Some(watcher)),
        })
    }
}

/// Whether one of a model's instances is on a device.
fn is_on(instances: &[ModelInstance], open: &OpenDevice) -> bool {
    instances.iter().any(|instance| instance.place.as_ref().is_some_and(|place| place.device == open.id))
}

/// Those of a device with the models that are on it.
fn lanes(open: &OpenDevice, wanted: &[Wanted], loaded: &[Vec<ModelInstance>]) -> Lanes {
    let on = wanted.iter().zip(loaded).filter(|(_, instances)| is_on(instances, open));
    Lanes::of(open.threads, on.map(|(model, _)| model.max_batch).max().unwrap_or(1))
}

/// Tells an instance which of the devices it is on, and how many calls may wait for it.
fn settle(instance: &mut ModelInstance, devices: &[(OpenDevice, Arc<DeviceHealth>)], lanes: Lanes) {
    let place = instance.place.as_ref();
    let at = devices.iter().position(|(open, _)| place.is_some_and(|place| place.device == open.id));
    instance.device = at.unwrap_or(usize::MAX);
    if let Some(former) = &mut instance.former {
        former.let_wait(lanes.slots + lanes.ahead + threads::WAITING);
    }
}

fn join(
    kind: u16,
    wanted: &Wanted,
    instances: Vec<ModelInstance>,
    backends: &[Surveyed],
) -> Result<LoadedModel, ModelsError> {
    let mut instances = instances.into_iter().map(Arc::new);
    let first = instances.next().ok_or_else(|| ModelsError::Load {
        name: wanted.name.clone(),
        path: wanted.path.clone(),
        source: BackendError::Internal("it has no instance".into()),
    })?;
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

/// `onnx_cpu`: the format, and the backend of the first instance.
fn platform(wanted: &Wanted, first: &ModelInstance, backends: &[Surveyed]) -> String {
    let name = first.place.as_ref().map_or("", |place| &place.device.backend);
    let backend = backends.iter().find(|seen| seen.name == name).and_then(|seen| seen.backend.as_ref().ok());
    let own = backend.and_then(|backend| backend.info().formats.first());
    format!("{}_{name}", wanted.format.as_ref().or(own).map_or("unknown", String::as_str))
}
