//! Backends that are opened to see what they have: devices with memory and health, and what models would take there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrigger_backend::{Backend, BackendError, Device, DeviceInfo, DeviceKind, DeviceStatus, Health, chain};

use super::health::Watch;
use super::plugin::{self, PluginError};
use super::steps::StepsPlace;
use super::wanted::Wanted;
use super::{ModelsError, recovery};
use crate::config::{BackendsConfig, StepsWish, main_backend};
use crate::placement::{self, BackendState, DeviceId, DeviceState};

/// A backend that was looked for.
pub(crate) struct Surveyed {
    pub(super) name: String,
    /// The backend whose devices it drives, if those are not its own.
    beside: Option<String>,
    pub(super) backend: Result<Arc<dyn Backend>, PluginError>,
    pub(super) devices: Vec<SeenDevice>,
}

/// One of its devices.
pub(super) struct SeenDevice {
    pub(super) info: DeviceInfo,
    pub(super) opened: Result<OpenDevice, BackendError>,
}

/// A device that is open.
#[derive(Clone)]
pub(crate) struct OpenDevice {
    pub(super) id: DeviceId,
    /// The same device, as the backend calls it whose devices these are.
    pub(super) main: DeviceId,
    pub(super) device: Arc<dyn Device>,
    pub(super) kind: DeviceKind,
    /// The formats that its backend takes.
    pub(super) formats: Vec<String>,
    /// How it was when it was opened.
    pub(super) status: DeviceStatus,
    /// Bytes that models may hold; `None` if nobody knows.
    pub(super) budget: Option<u64>,
    /// Threads that run models.
    pub(super) threads: usize,
    /// Whether tensors can stay on it.
    pub(super) resident: bool,
}

/// Opens backends and their devices. One that does not open is one without devices.
pub(super) fn open<'a>(
    config: &BackendsConfig,
    names: impl IntoIterator<Item = &'a str>,
    watch: &Arc<Watch>,
) -> Vec<Surveyed> {
    let names: BTreeSet<&str> = names.into_iter().collect();
    names.into_iter().map(|name| one(config, name, watch)).collect()
}

/// Opens the backends that models name.
///
/// # Errors
/// [`ModelsError::Plugin`] for one that does not take the settings which it is given, or whose devices have more threads than its
/// process takes calls: that is no reason to go elsewhere.
pub(super) fn open_for(
    config: &BackendsConfig,
    models: &[&Wanted],
    watch: &Arc<Watch>,
) -> Result<Vec<Surveyed>, ModelsError> {
    let names = models.iter().flat_map(|model| model.wishes()).map(|wish| wish.backend.as_str());
    let mut surveyed = open(config, names, watch);
    open_beside(config, models, watch, &mut surveyed);
    if let Some(error) = surveyed.iter().find_map(|seen| too_few_calls(config, seen)) {
        return Err(error.into());
    }
    let refused = |seen: &Surveyed| {
        let configured = config.tables.get(&seen.name).is_some_and(|table| !table.settings.is_empty());
        if !configured || !matches!(seen.backend, Err(PluginError::Open { .. })) {
            return false;
        }
        // It is the settings if it opens without them.
        let mut plain = config.clone();
        plain.tables.entry(seen.name.clone()).and_modify(|table| table.settings.clear());
        plugin::open(&plain, &seen.name, watch).is_ok()
    };
    match surveyed.iter().position(refused).map(|at| surveyed.swap_remove(at).backend) {
        Some(Err(error)) => Err(error.into()),
        _ => Ok(surveyed),
    }
}

/// Opens what stands beside the backends that models name, by the name of `NAME_…`, for models of a format that those do not take: until
/// one is found that does.
fn open_beside(
    config: &BackendsConfig,
    models: &[&Wanted],
    watch: &Arc<Watch>,
    surveyed: &mut Vec<Surveyed>,
) {
    let mut names = plugin::found(config);
    names.extend(config.tables.keys().cloned());
    for model in models {
        let Some(format) = &model.format else { continue };
        for wish in model.wishes() {
            for name in names.iter().filter(|name| wish.means(name)) {
                let taken = |seen: &Surveyed| wish.means(&seen.name) && seen.takes(format);
                if surveyed.iter().any(taken) {
                    break;
                }
                if surveyed.iter().all(|seen| seen.name != *name) {
                    surveyed.push(one(config, name, watch));
                }
            }
        }
    }
    surveyed.sort_by(|one, other| one.name.cmp(&other.name));
}

fn one(config: &BackendsConfig, name: &str, watch: &Arc<Watch>) -> Surveyed {
    let backend = plugin::open(config, name, watch);
    let main = main_backend(name, config.tables.keys().map(String::as_str));
    let table = config.of(name);
    let memory = config.memory_of(name);
    let mut devices = Vec::new();
    if let Ok(backend) = &backend {
        for (index, info) in backend.info().devices.iter().enumerate() {
            let open = || {
                let device = backend.open(index)?;
                let status = device.status()?;
                let id = DeviceId { backend: name.to_owned(), index };
                let main = DeviceId { backend: main.to_owned(), index };
                let budget = memory.or_else(|| budget(&status));
                let threads = table.threads.unwrap_or_else(|| threads(config, name, info));
                let (kind, formats) = (info.kind, backend.info().formats.clone());
                let resident = info.resident;
                Ok(OpenDevice { id, main, device, kind, formats, status, budget, threads, resident })
            };
            devices.push(SeenDevice { info: info.clone(), opened: open() });
        }
    }
    let beside = Some(main).filter(|main| *main != name).map(str::to_owned);
    Surveyed { name: name.to_owned(), beside, backend, devices }
}

/// A device whose process does not take as many calls as it has threads.
fn too_few_calls(config: &BackendsConfig, seen: &Surveyed) -> Option<PluginError> {
    let (name, table) = (seen.name.clone(), config.tables.get(&seen.name)?);
    let calls = table.host.max_calls?;
    let mut open = seen.devices.iter().filter_map(|seen| seen.opened.as_ref().ok());
    let open = open.find(|open| open.threads > calls)?;
    Some(PluginError::Calls { name, calls, device: open.id.to_string(), threads: open.threads })
}

/// What models may hold where nobody says: what is free, and what the backend holds itself.
fn budget(status: &DeviceStatus) -> Option<u64> {
    let known = [status.memory_free.saturating_add(status.memory_held), status.memory_total];
    known.into_iter().filter(|bytes| *bytes > 0).min()
}

fn threads(config: &BackendsConfig, name: &str, info: &DeviceInfo) -> usize {
    match info.lanes {
        0 if name == "cpu" || info.kind == DeviceKind::Cpu => config.cpu_threads,
        0 => 1,
        // As many as a table may name.
        lanes => (lanes as usize).min(1024),
    }
}

impl Surveyed {
    /// Whether it takes models of a format.
    fn takes(&self, format: &String) -> bool {
        self.backend.as_ref().is_ok_and(|backend| backend.info().formats.contains(format))
    }

    /// Why there are no devices.
    pub(super) fn absent(&self) -> Option<String> {
        match &self.backend {
            Err(error) => Some(chain(error)),
            Ok(_) if !self.devices.is_empty() => None,
            Ok(backend) => {
                let reason = backend.info().reason.clone().unwrap_or_else(|| "it does not say why".into());
                Some(match self.name.as_str() {
                    "cpu" => format!(
                        "{reason}; set backends.onnxruntime, or install the Python package onnxruntime where script.python finds it"
                    ),
                    "cuda" if reason.starts_with("no library of ONNX Runtime") => format!(
                        "{reason}; set backends.onnxruntime, or install the Python package onnxruntime-gpu where script.python finds it"
                    ),
                    _ => reason,
                })
            }
        }
    }

    /// As placement has to know it.
    pub(super) fn state(&self) -> BackendState {
        let device = |seen: &SeenDevice| match &seen.opened {
            Ok(open) => DeviceState {
                budget: open.budget,
                held: open.status.memory_held,
                lost: match &open.status.health {
                    Health::Lost(why) => Some(why.clone()),
                    _ => None,
                },
            },
            Err(error) => DeviceState { lost: Some(error.to_string()), ..DeviceState::default() },
        };
        BackendState {
            name: self.name.clone(),
            formats: self.backend.as_ref().map(|backend| backend.info().formats.clone()).unwrap_or_default(),
            devices: self.devices.iter().map(device).collect(),
            absent: self.absent(),
            beside: self.beside.clone(),
        }
    }
}

/// As placement has to know backends whose open devices, in their order, hold so many bytes.
pub(super) fn states(backends: &[Surveyed], held: &[u64]) -> Vec<BackendState> {
    let mut states: Vec<_> = backends.iter().map(Surveyed::state).collect();
    let seen = backends.iter().flat_map(|seen| &seen.devices);
    let devices = states.iter_mut().flat_map(|state| &mut state.devices);
    let open = seen.zip(devices).filter(|(seen, _)| seen.opened.is_ok()).map(|(_, device)| device);
    open.zip(held).for_each(|(device, held)| device.held = *held);
    states
}

/// What models want of devices, and why that could not be told.
#[derive(Default)]
pub(super) struct Estimates {
    pub(super) models: Vec<placement::Wanted>,
    pub(super) failures: BTreeMap<(String, DeviceId), BackendError>,
}

/// Asks each device what each model that may go there would take. One that is being started anew is waited for: it was lost with
/// another model.
pub(super) fn estimate(config: &BackendsConfig, models: &[&Wanted], backends: &[Surveyed]) -> Estimates {
    let mut all = Estimates::default();
    for model in models {
        let mut wanted = placement::Wanted {
            name: model.name.clone(),
            devices: model.devices.clone(),
            fallback: model.fallback,
            instances: model.instances,
            format: model.format.clone(),
            ..placement::Wanted::default()
        };
        let named = backends.iter().filter(|seen| model.devices.iter().any(|wish| wish.means(&seen.name)));
        let named = named.filter(|seen| model.format.as_ref().is_none_or(|format| seen.takes(format)));
        for open in named.flat_map(|seen| &seen.devices).filter_map(|seen| seen.opened.as_ref().ok()) {
            let mut bytes = open.device.estimate(&model.options());
            if matches!(bytes, Err(BackendError::Lost(_))) && recovery::wait(config, open, 0).is_ok() {
                bytes = open.device.estimate(&model.options());
            }
            if bytes.is_ok() && model.steps == StepsWish::Device {
                bytes = StepsPlace::ask(model, open).check(model).and(bytes);
            }
            wanted.estimates.insert(open.id.clone(), bytes.as_ref().copied().map_err(ToString::to_string));
            if let Err(error) = bytes {
                all.failures.insert((model.name.clone(), open.id.clone()), error);
            }
        }
        all.models.push(wanted);
    }
    all
}
