//! Which models are on devices: loaded at the start or with the first call that needs them, each by one load that others join, within
//! what devices may hold; the least valuable that nobody uses make way.
//!
//! What is decided is a pure function of what has happened ([`core`]); the rest of this carries it out. Models whose files a script reads
//! itself are no concern of this: they lie on disk for as long as the replica lives.

mod accounts;
mod assembly;
mod calls;
mod core;
mod ensembles;
mod eta;
mod fetch;
mod history;
mod parts;
#[cfg(test)]
mod properties;
mod residents;
mod room;
mod show;
#[cfg(test)]
mod simulation;
mod state;
#[cfg(test)]
mod tests;
mod thrash;
mod together;
#[cfg(test)]
mod traces;
mod value;
mod victims;
mod work;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outrigger_backend::BackendError;

use super::health::DeviceHealth;
use super::instance::{LoadedModel, ModelInstance};
use super::lease::Door;
use super::loader::{Counters, Ground, Loader, Others};
use super::served::ServedModel;
use super::survey::{self, OpenDevice, Surveyed};
use super::wanted::Wanted;
use super::{Lanes, ModelsError, threads};
use crate::config::{Config, LoadTime};
use crate::fetching::Storage;
use crate::placement::DeviceId;

pub(in crate::models) use self::core::Usage;
use self::core::{Core, Options};
use accounts::{Account, Charges};
use fetch::Fetches;
use history::History;
pub use history::{Happening, ModelEvent, Timeline};
pub(in crate::models) use residents::Residents;
pub use show::ModelStatus;
pub use state::ModelState;

/// The models of a replica, where they may be, and the threads that load them.
pub(in crate::models) struct Residency {
    residents: Arc<Residents>,
    /// By their numbers. Changed under the lock of `residents` too, so that who has that sees the models that the core knows.
    served: RwLock<Served>,
    backends: Vec<Surveyed>,
    devices: Vec<(OpenDevice, Arc<DeviceHealth>)>,
    lanes: Lanes,
    /// Of each device, whether there is what runs models on it.
    used: Vec<bool>,
    config: Config,
    counters: Counters,
    history: History,
    /// The beginning of the core's time.
    start: Instant,
    /// Calls that wait for loads.
    waiting: AtomicUsize,
    /// Nothing is loaded any more, and who waits is told so.
    stopping: AtomicBool,
    loaders: Mutex<Vec<JoinHandle<()>>>,
    /// Had by a call of an ensemble that holds some of its models while it waits for others.
    gathering: tokio::sync::Mutex<()>,
    /// Had by who looks what pinned ensembles are made of.
    holding: Mutex<()>,
    /// Where files come from that are not here; nothing where all are.
    fetches: Option<Fetches>,
}

/// Models by their numbers. One that is no more is there until its number is another's.
type Served = Arc<Vec<Arc<ServedModel>>>;

impl Residency {
    /// Loads what is to be there from the start, and starts the threads that load the rest. Says of each device whether models may be on it.
    ///
    /// # Errors
    /// [`ModelsError`], for the first model that does not load.
    pub(in crate::models) fn start(
        config: &Config,
        counters: Counters,
        served: Vec<Arc<ServedModel>>,
        backends: Vec<Surveyed>,
        devices: Vec<(OpenDevice, Arc<DeviceHealth>)>,
        storage: Option<Arc<Storage>>,
        start: Instant,
    ) -> Result<(Arc<Self>, Vec<bool>), ModelsError> {
        let is_eager = |model: &&Arc<ServedModel>| model.load != LoadTime::Use && model.ensemble.is_none();
        let eager: Vec<_> = served.iter().filter(is_eager).collect();
        // Its loads are asked for by tasks.
        let runtime = tokio::runtime::Handle::try_current().ok();
        let fetches = storage.zip(runtime);
        let fetches =
            fetches.map(|(storage, runtime)| Fetches::new(storage, runtime, config.residency.fetches));
        let wanted: Vec<&Wanted> = eager.iter().map(|model| &model.wanted).collect();
        let ground = Ground { config, counters: &counters, backends: &backends, devices: &devices };
        let before: Vec<u64> = devices.iter().map(|(open, _)| open.status.memory_held).collect();
        let held = || before.clone();
        let others = Others { held: &held, staying: before.clone(), is_start: true, models: 0 };
        let estimates = survey::estimate(&config.backends, &wanted, &backends);
        let loaded = Loader::new(ground, &wanted, estimates, others, &|_| ()).all()?;

        let main = |open: &OpenDevice, own: usize| {
            devices.iter().position(|(other, _)| other.id == open.main).unwrap_or(own)
        };
        let accounts = devices.iter().enumerate().map(|(own, (open, _))| Account {
            budget: open.budget,
            main: main(open, own),
            held: open.status.memory_held,
        });
        let said = &config.residency;
        let options = Options {
            loads: said.loads,
            loading_bytes: said.loading_memory,
            half_life: said.half_life,
            retry: said.retry,
            max_retry: said.max_retry,
        };
        let mut core = Core::new(options, accounts.collect(), served.len());
        let ensembles = served.iter().filter(|model| model.ensemble.is_some());
        ensembles.for_each(|model| core.is_assembled(model.number));
        // Where nothing can fetch them, a load says that they are missing, instead of waiting for ever.
        for model in served.iter().filter(|_| fetches.is_some()) {
            model.later.iter().for_each(|manifest| core.is_away(model.number, manifest.size()));
        }
        let mut homes = Homes::new(&devices);
        for (model, loaded) in eager.iter().zip(&loaded) {
            for instance in &loaded.instances {
                instance.place.iter().for_each(|place| homes.is_on(&place.device, model.wanted.max_batch));
            }
        }
        // One that is loaded from the start may have to come back to another device.
        served.iter().for_each(|model| homes.may_be(&model.wanted, model.load == LoadTime::Use));
        for (model, loaded) in eager.iter().zip(&loaded) {
            let now = start.elapsed();
            let began = now.saturating_sub(loaded.took);
            core.want(model.number, began);
            core.next(began);
            core.loaded(model.number, charges(&devices, &loaded.held), now);
            core.pin(model.number, model.load == LoadTime::Pinned);
        }
        let eager: Vec<_> = eager.into_iter().cloned().collect();
        // One that becomes an ensemble later, on a replica that has none, has its runs one after the other: there is room for no more.
        let has_ensembles = served.iter().any(|model| model.ensemble.is_some());
        let runs = if has_ensembles { config.limits.ensemble_runs } else { 1 };
        let (lanes, used) = (homes.lanes().with_runs(runs), homes.used);
        let residency = Arc::new(Self {
            residents: Arc::new(Residents::new(core)),
            history: History::new(served.len(), said.events),
            lanes,
            served: RwLock::new(Arc::new(served)),
            used: used.clone(),
            backends,
            devices,
            config: config.clone(),
            counters,
            start,
            waiting: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            loaders: Mutex::default(),
            gathering: tokio::sync::Mutex::default(),
            holding: Mutex::default(),
            fetches,
        });
        for (model, loaded) in eager.iter().zip(loaded) {
            residency.note_measured(model, &loaded.held);
            model.put(residency.settled(model, loaded.instances)?);
        }
        residency.assemble_at_start()?;
        // Also of one that comes later.
        let pinned = |model: &&Arc<ServedModel>| model.ensemble.is_some() && model.load == LoadTime::Pinned;
        residency
            .served()
            .iter()
            .filter(pinned)
            .for_each(|model| residency.residents.lock().pin(model.number, true));
        residency.hold_parts();
        residency.start_loaders().map_err(ModelsError::Thread)?;
        Ok((residency, used))
    }

    /// Every model, in the order of their numbers.
    pub(in crate::models) fn served(&self) -> Served {
        Arc::clone(&self.served.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn at(&self, number: usize) -> Option<Arc<ServedModel>> {
        self.served().get(number).cloned()
    }

    /// One more model, made with its number. It is loaded as soon as somebody needs it.
    pub(in crate::models) fn add(&self, model: impl FnOnce(usize) -> ServedModel) -> Arc<ServedModel> {
        let mut core = self.residents.lock();
        let number = core.add();
        let model = Arc::new(model(number));
        let later = model.later.iter().filter(|_| self.fetches.is_some());
        later.for_each(|manifest| core.is_away(number, manifest.size()));
        core.pin(number, model.load == LoadTime::Pinned);
        if model.ensemble.is_some() {
            core.is_assembled(number);
        }
        self.history.begin(number);
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        let all = Arc::make_mut(&mut served);
        match all.get_mut(number) {
            Some(former) => *former = Arc::clone(&model),
            None => all.push(Arc::clone(&model)),
        }
        drop((served, core));
        if model.load == LoadTime::Pinned {
            self.hold_parts();
        }
        model
    }

    /// Takes a model away for good, once the calls are through that have it; not if the replica ends before. Not for an async task.
    pub(in crate::models) fn remove(&self, model: &ServedModel) -> bool {
        {
            // Who looks whether it is there has this.
            let _core = self.residents.lock();
            model.retire();
        }
        // A load of it that waits is given up.
        self.residents.has_changed();
        loop {
            self.unload(model);
            let mut core = self.residents.lock();
            // It may have been wanted before it was taken away.
            if core.remove(model.number) {
                break;
            }
            if self.stopping.load(Ordering::Acquire) {
                return false;
            }
        }
        self.hold_parts();
        model.changed.notify_waiters();
        true
    }

    /// The beginning of its time.
    pub(in crate::models) fn start_of_time(&self) -> Instant {
        self.start
    }

    /// Tells of something that has happened to a model, and why.
    pub(in crate::models) fn told(&self, model: &ServedModel, event: Happening, why: String) {
        let outcome = match event {
            Happening::Switched => Some("switched"),
            Happening::Confirmed => Some("confirmed"),
            Happening::Returned => Some("returned"),
            Happening::Refused => Some("refused"),
            _ => None,
        };
        outcome.iter().for_each(|outcome| self.counters.models.rolled(&model.name, outcome));
        drop(self.tell(model, event).with(|event| event.reason = Some(why)));
    }

    /// How many calls device threads take at once.
    pub(in crate::models) fn lanes(&self) -> Lanes {
        self.lanes
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// What calls have of instances that are loaded.
    fn settled(
        &self,
        model: &ServedModel,
        mut instances: Vec<ModelInstance>,
    ) -> Result<Arc<LoadedModel>, ModelsError> {
        for instance in &mut instances {
            let place = instance.place.as_ref();
            let at =
                self.devices.iter().position(|(open, _)| place.is_some_and(|place| place.device == open.id));
            instance.device = at.unwrap_or(usize::MAX);
            instance.statistics = Some(Arc::clone(&model.statistics));
            if let (Some(at), Some(place)) = (at, place)
                && !self.used.get(at).is_some_and(|used| *used)
            {
                let (name, device) = (model.name.clone(), place.device.to_string());
                return Err(ModelsError::Unused { name, device });
            }
            if let Some(former) = &mut instance.former {
                former.let_wait(self.lanes.waiting().saturating_add(threads::WAITING));
            }
        }
        let wanted = &model.wanted;
        let mut instances = instances.into_iter().map(Arc::new);
        let first = instances.next().ok_or_else(|| ModelsError::Load {
            name: wanted.name.clone(),
            path: wanted.path.clone(),
            source: BackendError::Internal("it has no instance".into()),
        })?;
        Ok(Arc::new(LoadedModel {
            name: wanted.name.clone(),
            version: wanted.version.clone(),
            platform: platform(wanted, &first, &self.backends),
            info: Arc::clone(&first.info),
            first: Some(first),
            others: instances.collect(),
            identity: model.identity(),
            keeping: wanted.cache,
            outcomes: Some(Arc::clone(&model.outcomes)),
            statistics: Some(Arc::clone(&model.statistics)),
            door: Door::new(Arc::clone(&self.residents)),
        }))
    }

    /// Tells of something that has happened to a model.
    fn tell(&self, model: &ServedModel, event: Happening) -> Told<'_> {
        let event = ModelEvent {
            number: 0,
            at_ms: 0,
            model: model.name.clone(),
            version: model.version.clone(),
            event,
            bytes: None,
            seconds: None,
            reason: None,
        };
        Told { history: &self.history, event: Some(event) }
    }

    /// Ends the threads, once what they are loading is through; who waits for a load is told.
    pub(in crate::models) fn stop(&self) {
        self.break_off();
        let loaders = std::mem::take(&mut *self.loaders.lock().unwrap_or_else(PoisonError::into_inner));
        for loader in loaders {
            if loader.join().is_err() {
                tracing::error!("a thread that loads models ended by a panic");
            }
        }
    }
}

/// An event that is told once all of it is said.
struct Told<'a> {
    history: &'a History,
    event: Option<ModelEvent>,
}

impl Told<'_> {
    fn with(mut self, add: impl FnOnce(&mut ModelEvent)) -> Self {
        if let Some(event) = &mut self.event {
            add(event);
        }
        self
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.event.take().into_iter().for_each(|event| self.history.add(event));
    }
}

/// Bytes by the numbers of devices.
fn charges(devices: &[(OpenDevice, Arc<DeviceHealth>)], held: &[(DeviceId, u64)]) -> Charges {
    let number = |id: &DeviceId| devices.iter().position(|(open, _)| open.id == *id);
    held.iter().filter_map(|(id, bytes)| Some((number(id)?, *bytes))).collect()
}

/// Where models are and may be.
struct Homes<'a> {
    devices: &'a [(OpenDevice, Arc<DeviceHealth>)],
    /// Whether models may be there.
    used: Vec<bool>,
    /// The widest batch of those that are there or should be.
    widest: Vec<Option<usize>>,
}

impl<'a> Homes<'a> {
    fn new(devices: &'a [(OpenDevice, Arc<DeviceHealth>)]) -> Self {
        Self { devices, used: vec![false; devices.len()], widest: vec![None; devices.len()] }
    }

    fn is_on(&mut self, device: &DeviceId, max_batch: usize) {
        for (at, (open, _)) in self.devices.iter().enumerate() {
            if open.id == *device {
                self.used[at] = true;
                self.widest[at] = self.widest[at].max(Some(max_batch));
            }
        }
    }

    /// Where a model may go; one that is loaded `later` most likely to what the first entry of its list means of which there is any.
    fn may_be(&mut self, wanted: &Wanted, later: bool) {
        let takes =
            |open: &OpenDevice| wanted.format.as_ref().is_none_or(|format| open.formats.contains(format));
        let mut likely = BTreeSet::new();
        for wish in wanted.wishes() {
            let means =
                |open: &OpenDevice| wish.means(&open.id.backend) && wish.has(open.id.index) && takes(open);
            let meant: Vec<_> = (0..self.devices.len()).filter(|at| means(&self.devices[*at].0)).collect();
            meant.iter().for_each(|at| self.used[*at] = true);
            if likely.is_empty() && later {
                likely.extend(meant);
            }
        }
        for at in likely {
            self.widest[at] = self.widest[at].max(Some(wanted.max_batch));
        }
    }

    fn lanes(&self) -> Lanes {
        let lanes = self.devices.iter().zip(&self.widest);
        Lanes::sum(lanes.filter_map(|((open, _), widest)| Some(Lanes::of(open.threads, (*widest)?))))
    }
}

/// `onnx_cpu`: the format, and the backend of the first instance.
fn platform(wanted: &Wanted, first: &ModelInstance, backends: &[Surveyed]) -> String {
    let name = first.place.as_ref().map_or("", |place| &place.device.backend);
    let backend = backends.iter().find(|seen| seen.name == name).and_then(|seen| seen.backend.as_ref().ok());
    let own = backend.and_then(|backend| backend.info().formats.first());
    format!("{}_{name}", wanted.format.as_ref().or(own).map_or("unknown", String::as_str))
}
