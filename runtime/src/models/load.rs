//! Opens devices, loads what has to be there from the start, and starts what runs models.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::graph::{Directory, Ensemble};
use super::health::{DeviceHealth, Watch};
use super::loader::Counters;
use super::residency::Residency;
use super::served::ServedModel;
use super::survey::{self, OpenDevice};
use super::threads::Threads;
use super::versions::NamedModel;
use super::wanted::{self, Wanted};
use super::{LoadedDevice, Models, ModelsError, SCRIPT};
use crate::busy::Busy;
use crate::config::{Config, LoadTime};
use crate::fetching::Fetched;
use crate::metrics::Metrics;

/// Models that are to be loaded, by name.
pub(super) struct Named {
    pub(super) served: Vec<Arc<ServedModel>>,
    pub(super) models: BTreeMap<String, Arc<NamedModel>>,
    pub(super) directory: Arc<Directory>,
}

impl Named {
    /// Makes them, and holds ensembles against what is known of the others by now.
    ///
    /// # Errors
    /// [`ModelsError::Graph`].
    pub(super) fn new(
        wanted: Vec<Wanted>,
        fetched: Option<&Fetched>,
        start: Instant,
    ) -> Result<Self, ModelsError> {
        let directory = Arc::<Directory>::default();
        // There are at most `limits.models`.
        let served: Vec<_> = (SCRIPT + 1..)
            .zip(wanted)
            .enumerate()
            .map(|(number, (kind, wanted))| {
                let registered = fetched.and_then(|fetched| fetched.served(&wanted.name));
                let later = registered.and_then(|registered| registered.later.clone());
                let source = registered.map(|registered| registered.source.clone());
                let model = ServedModel::new(number, kind, wanted, (later, source), start);
                Arc::new(model.made_of(&directory))
            })
            .collect();
        let models: BTreeMap<_, _> =
            served.iter().map(|model| (model.name.clone(), NamedModel::new(Arc::clone(model)))).collect();
        directory.set(&models);
        for model in &served {
            let check = |ensemble: &Arc<Ensemble>| ensemble.check(&model.name, model.load == LoadTime::Use);
            model.ensemble.iter().try_for_each(check)?;
        }
        Ok(Self { served, models, directory })
    }
}

impl Models {
    /// Takes every model that the configuration names, or, without a script, every model that the model directory holds, and loads those
    /// that are not left to their first call, each where it is placed; what does not load there is placed anew. Takes as long as loading
    /// takes; not for an async task. Where things were fetched is in the configuration; where more is to be fetched later, there has to be a
    /// runtime of tokio around this.
    ///
    /// # Errors
    /// [`ModelsError`], for the first model that cannot be served.
    pub fn load(
        config: &Config,
        fetched: Option<&Fetched>,
        busy: &Arc<Busy>,
        metrics: &Metrics,
    ) -> Result<Self, ModelsError> {
        let wanted = wanted::all(config, fetched)?;
        if wanted.is_empty() {
            return Ok(Self::none());
        }
        let _loading = busy.loading();
        let start = Instant::now();
        let Named { served, models, directory } = Named::new(wanted, fetched, start)?;
        let wanted: Vec<_> = served.iter().map(|model| &model.wanted).collect();
        let watch = Arc::<Watch>::default();
        let backends = survey::open_for(&config.backends, &wanted, &watch)?;
        let health = |open: &OpenDevice| {
            let (id, device, status) = (open.id.clone(), Arc::clone(&open.device), open.status.clone());
            Arc::new(DeviceHealth::new(id, device, status, Arc::clone(&watch)))
        };
        let open =
            backends.iter().flat_map(|seen| &seen.devices).filter_map(|seen| seen.opened.as_ref().ok());
        let devices: Vec<_> = open.map(|open| (open.clone(), health(open))).collect();
        let infos = backends.iter().filter_map(|seen| Some(seen.backend.as_ref().ok()?.info().clone()));
        let infos = infos.collect();
        let counters = Counters { models: metrics.models.counters.clone(), batches: metrics.batches.clone() };
        let storage = fetched.map(|fetched| Arc::clone(fetched.storage()));
        let (residency, used) =
            Residency::start(config, counters, served, backends, devices.clone(), storage, start)?;
        let all: Vec<_> = models.values().cloned().collect();
        // One that is not loaded is not in the way of the others.
        let able =
            move || all.iter().filter_map(|model| model.stable().resident()).all(|model| model.is_able());
        let used_devices = || devices.iter().zip(&used).filter(|(_, used)| **used).map(|(device, _)| device);
        let health = used_devices().map(|(_, health)| Arc::clone(health)).collect();
        let watcher = watch.start(health, Arc::clone(busy), able).map_err(ModelsError::Thread)?;
        let lanes = residency.lanes();
        let ended = |error| {
            residency.break_off();
            ModelsError::Thread(error)
        };
        let start = |((device, health), used): ((OpenDevice, Arc<DeviceHealth>), &bool)| {
            let name = match device.id.index {
                0 => device.id.backend.clone(),
                index => format!("{}{index}", device.id.backend),
            };
            // Any of them may get all runs of all calls that are let in.
            let threads = used
                .then(|| Threads::start(&name, device.threads, lanes.waiting(), config.limits.answer))
                .transpose()?;
            Ok(LoadedDevice { device, health, threads })
        };
        let devices = devices.into_iter().zip(&used).map(start).collect::<Result<_, _>>();
        Ok(Self {
            models,
            backends: infos,
            devices: devices.map_err(ended)?,
            residency: Some(residency),
            lanes,
            runs: AtomicU64::new(1),
            directory,
            ensemble_bytes: config.limits.ensemble,
            ensemble_runs: lanes.runs(),
            run_bytes: config.limits.answer,
            watch,
            watcher: Mutex::new(Some(watcher)),
        })
    }
}
