//! What `outrigger plan` and `outrigger devices` show: plans and devices, with nothing loaded.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use outrigger_backend::{DeviceKind, Health};
use serde::Serialize;

use super::graph::EnsembleNode;
use super::load::Named;
use super::served::ServedModel;
use super::steps::StepsPlace;
use super::survey::{self, SeenDevice, Surveyed};
use super::{ModelsError, plugin, wanted};
use crate::config::{BackendsConfig, Config, ProcessKind};
use crate::placement::{self, DeviceId, Plan, PlannedEnsemble, PlannedNode};

/// A backend that is on the search path or that the configuration names.
#[derive(Debug, Serialize)]
pub struct BackendReport {
    /// Its name.
    pub backend: String,
    /// `in` the replica's process, or `out` of it.
    pub process: &'static str,
    /// What it says of its version; nothing if it did not open.
    pub version: Option<String>,
    /// The formats that it takes.
    pub formats: Vec<String>,
    /// Its devices.
    pub devices: Vec<DeviceReport>,
    /// Why there are none.
    pub reason: Option<String>,
}

/// One of its devices.
#[derive(Debug, Serialize)]
pub struct DeviceReport {
    /// Its name.
    pub device: DeviceId,
    /// Its kind.
    pub kind: DeviceKind,
    /// Memory in all, in bytes; 0 if not known.
    pub memory_total: u64,
    /// Memory free, in bytes; 0 if not known.
    pub memory_free: u64,
    /// Bytes that models and buffers hold; 0 if not known.
    pub memory_held: u64,
    /// Bytes that models may hold; nothing if nobody knows.
    pub budget: Option<u64>,
    /// Threads that would run models.
    pub threads: usize,
    /// Whether it can be used.
    pub health: Health,
}

/// Where models would go. Opens the backends that they name, and loads nothing.
///
/// # Errors
/// [`ModelsError`], where it cannot be said which models there are. A model without a place is no error here.
pub fn plan(config: &Config) -> Result<Plan, ModelsError> {
    let named = Named::new(wanted::all(config, None)?, None, Instant::now())?;
    let (ensembles, models): (Vec<_>, Vec<_>) =
        named.served.iter().partition(|model| model.ensemble.is_some());
    let all: Vec<_> = models.iter().map(|model| &model.wanted).collect();
    let backends = survey::open_for(&config.backends, &all, &Arc::default())?;
    let states: Vec<_> = backends.iter().map(Surveyed::state).collect();
    let mut plan = placement::plan(&survey::estimate(&config.backends, &all, &backends).models, &states);
    for placed in &mut plan.placed {
        let model = all.iter().find(|wanted| wanted.name == placed.model);
        let opened = |seen: &&SeenDevice| seen.opened.as_ref().is_ok_and(|open| open.id == placed.device);
        let seen = backends.iter().flat_map(|seen| &seen.devices).find(opened);
        if let (Some(model), Some(Ok(open))) = (model, seen.map(|seen| &seen.opened)) {
            placed.steps = StepsPlace::ask(model, open).said();
        }
    }
    let planned = |model: &&Arc<ServedModel>| {
        let nodes = model.ensemble.as_ref()?.parts(&model.name).into_iter();
        let nodes = nodes.map(|EnsembleNode { node, model, version }| {
            let own = plan.placed.iter().filter(|placed| placed.model == model);
            let devices = own.map(|placed| placed.device.clone()).collect();
            PlannedNode { node, model, version, devices }
        });
        let (ensemble, version) = (model.name.clone(), model.version.clone());
        Some(PlannedEnsemble { ensemble, version, nodes: nodes.collect() })
    };
    plan.ensembles = ensembles.iter().filter_map(planned).collect();
    Ok(plan)
}

/// All backends and their devices. One that does not open says why.
pub fn devices(config: &Config) -> Vec<BackendReport> {
    let lists = config.models.values().filter_map(|model| model.devices.as_ref());
    let wishes = lists.chain([&config.placement.devices]).flatten().map(|wish| wish.backend.clone());
    let mut names: BTreeSet<String> = plugin::found(&config.backends);
    names.extend(config.backends.tables.keys().cloned().chain(wishes));
    let seen = survey::open(&config.backends, names.iter().map(String::as_str), &Arc::default());
    seen.iter().map(|seen| backend(&config.backends, seen)).collect()
}

fn backend(config: &BackendsConfig, seen: &Surveyed) -> BackendReport {
    let info = seen.backend.as_ref().ok().map(|backend| backend.info());
    BackendReport {
        backend: seen.name.clone(),
        process: match config.process(&seen.name) {
            ProcessKind::In => "in",
            ProcessKind::Out => "out",
        },
        version: info.map(|info| info.version.clone()),
        formats: info.map(|info| info.formats.clone()).unwrap_or_default(),
        devices: seen
            .devices
            .iter()
            .enumerate()
            .map(|(index, device)| one(&seen.name, index, device))
            .collect(),
        reason: seen.absent(),
    }
}

fn one(backend: &str, index: usize, seen: &SeenDevice) -> DeviceReport {
    let open = seen.opened.as_ref();
    let status = open.map(|open| &open.status);
    DeviceReport {
        device: DeviceId { backend: backend.to_owned(), index },
        kind: seen.info.kind,
        memory_total: status.map_or(seen.info.memory_total, |status| status.memory_total),
        memory_free: status.map_or(0, |status| status.memory_free),
        memory_held: status.map_or(0, |status| status.memory_held),
        budget: open.ok().and_then(|open| open.budget),
        threads: open.map_or(0, |open| open.threads),
        health: match status {
            Ok(status) => status.health.clone(),
            Err(error) => Health::Lost(error.to_string()),
        },
    }
}
