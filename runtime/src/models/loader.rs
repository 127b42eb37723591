//! Loads copy after copy where the plan has it. What does not load there is planned anew; what is loaded stays where it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_backend::{BackendError, Instance, Model, ModelInfo};

use super::batch::{self, BatchMetrics, Former, NotBatchable};
use super::health::DeviceHealth;
use super::instance::{ModelInstance, Place};
use super::ledger::{Ledger, Over};
use super::manifest::Manifest;
use super::metrics::ModelCounters;
use super::steps::{Processed, StepBytes, StepsPlace};
use super::survey::{self, Estimates, OpenDevice, Surveyed};
use super::wanted::Wanted;
use super::{ModelsError, recovery, samples, threads};
use crate::config::{Config, StepsWish};
use crate::placement::{self, DeviceId, Placed, Plan, Reason, Unplaced};

/// What loads go by, at the start and later.
pub(super) struct Ground<'a> {
    pub(super) config: &'a Config,
    pub(super) counters: &'a Counters,
    pub(super) backends: &'a [Surveyed],
    pub(super) devices: &'a [(OpenDevice, Arc<DeviceHealth>)],
}

/// What is counted of models that are loaded.
#[derive(Clone)]
pub(super) struct Counters {
    pub(super) models: ModelCounters,
    pub(super) batches: BatchMetrics,
}

/// What has been done for a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoadStep {
    /// Its device has loaded it.
    Loaded,
    /// Its samples give what they must.
    Warmed,
}

/// The copies of a model that is loaded.
pub(super) struct Copies {
    pub(super) instances: Vec<ModelInstance>,
    /// How long it took to load them.
    pub(super) took: Duration,
    /// What each holds where, as measured, or as estimated where that is not known.
    pub(super) held: Vec<(DeviceId, u64)>,
}

/// What others hold of the devices, in their order.
pub(super) struct Others<'a> {
    /// Bytes that plans go by.
    pub(super) held: &'a (dyn Fn() -> Vec<u64> + Sync),
    /// Bytes that stay, whoever else may make way.
    pub(super) staying: Vec<u64>,
    /// Whether the replica is not ready yet.
    pub(super) is_start: bool,
    /// Models that a device has to bring back which was lost.
    pub(super) models: u32,
}

pub(super) struct Loader<'a> {
    ground: Ground<'a>,
    wanted: &'a [&'a Wanted],
    others: Others<'a>,
    /// Where everything goes to begin with, if that has been planned.
    first: Option<Plan>,
    /// Told of each step of each copy.
    watch: &'a (dyn Fn(LoadStep) + Sync),
    /// What the models want, where they have failed, and which of their copies are loaded.
    estimates: Estimates,
    ledger: Ledger,
    /// Devices that were lost with a model.
    lost: BTreeSet<DeviceId>,
    /// Those that did not come back, and why.
    gone: BTreeMap<DeviceId, String>,
}

/// Why a copy is not loaded.
enum Trouble {
    /// The device, or its backend, does not load it.
    Backend(BackendError),
    /// The device holds too much with it.
    Over(Over),
    /// The device was lost with another model, and did not come back.
    Gone(String),
    /// Wherever it went, that would be no better.
    Model(ModelsError),
}

impl From<ModelsError> for Trouble {
    fn from(error: ModelsError) -> Self {
        Self::Model(error)
    }
}

/// A model on a device, as callers see it.
#[derive(Clone)]
struct Served {
    device: DeviceId,
    model: Arc<dyn Model>,
    /// What the steps around it take, if there are any.
    step_bytes: Option<StepBytes>,
    /// Where they run.
    steps: Vec<String>,
}

/// What a model's copies on one device share.
type Shared = Vec<Served>;

impl<'a> Loader<'a> {
    pub(super) fn new(
        ground: Ground<'a>,
        wanted: &'a [&'a Wanted],
        estimates: Estimates,
        others: Others<'a>,
        watch: &'a (dyn Fn(LoadStep) + Sync),
    ) -> Self {
        let open = ground.devices.iter().map(|(open, _)| open);
        let ledger = Ledger::new(open.zip(others.staying.iter().copied()));
        let (lost, gone) = (BTreeSet::new(), BTreeMap::new());
        Self { ground, wanted, others, first: None, watch, estimates, ledger, lost, gone }
    }

    /// The same by a plan for which room has been made.
    pub(super) fn following(self, plan: Plan) -> Self {
        Self { first: Some(plan), ..self }
    }

    /// Loads all models, in their order.
    ///
    /// # Errors
    /// [`ModelsError`], for the first model that cannot be loaded anywhere.
    pub(super) fn all(mut self) -> Result<Vec<Copies>, ModelsError> {
        let mut plan = match self.first.take() {
            Some(plan) => plan,
            None => self.plan()?,
        };
        let mut all = Vec::with_capacity(self.wanted.len());
        for (number, wanted) in self.wanted.iter().enumerate() {
            let (mut shared, began) = (Shared::new(), Instant::now());
            let mut instances: Vec<ModelInstance> = Vec::with_capacity(wanted.instances);
            while let Some(placed) = next(&plan, wanted, instances.len()) {
                match self.copy(wanted, placed, &mut shared, &instances) {
                    Ok(instance) => {
                        instances.push(instance);
                        self.note(number, placed, &instances);
                    }
                    Err(Trouble::Model(error)) => return Err(error),
                    Err(Trouble::Over(over)) => {
                        self.give_up(number, &placed.device, over.to_string());
                        leave(&placed.device, &instances, &mut shared);
                        plan = self.plan()?;
                    }
                    Err(Trouble::Gone(why)) => {
                        leave(&placed.device, &instances, &mut shared);
                        self.gone.insert(placed.device.clone(), why);
                        plan = self.plan()?;
                    }
                    Err(Trouble::Backend(error)) => {
                        self.give_up(number, &placed.device, error.to_string());
                        leave(&placed.device, &instances, &mut shared);
                        self.failed(wanted, &placed.device, error);
                        plan = self.plan()?;
                    }
                }
            }
            self.through(number, &instances);
            let loaded = self.estimates.models.get(number).map(|model| model.loaded.as_slice());
            let held = loaded.unwrap_or_default().iter().map(|placed| (placed.device.clone(), placed.bytes));
            all.push(Copies { held: held.collect(), took: began.elapsed(), instances });
        }
        Ok(all)
    }

    /// Where everything goes that is not loaded yet.
    fn plan(&mut self) -> Result<Plan, ModelsError> {
        let mut states = survey::states(self.ground.backends, &(self.others.held)());
        for (id, why) in &self.gone {
            let state = states.iter_mut().find(|state| state.name == id.backend);
            if let Some(device) = state.and_then(|state| state.devices.get_mut(id.index)) {
                device.lost = Some(why.clone());
            }
        }
        let plan = placement::plan(&self.estimates.models, &states);
        if plan.unplaced.is_empty() {
            return Ok(plan);
        }
        let broken = plan.unplaced.iter().find_map(|unplaced| self.fault_of_file(unplaced));
        Err(broken.unwrap_or(ModelsError::NoPlace(plan.unplaced)))
    }

    /// Takes the error of a model of which nothing but the file is wrong.
    fn fault_of_file(&mut self, unplaced: &Unplaced) -> Option<ModelsError> {
        let wanted = self.wanted.iter().find(|wanted| wanted.name == unplaced.model)?;
        let mut broken = None;
        for tried in unplaced.tried.iter().filter(|tried| tried.reason != Reason::Forbidden) {
            let failures = self.estimates.failures.iter();
            let mut own = failures
                .filter(|((name, device), _)| *name == wanted.name && device.to_string() == tried.device);
            // Another device would not read it either.
            let (key, _) = own.find(|(_, error)| matches!(error, BackendError::Load(_)))?;
            broken.get_or_insert_with(|| key.clone());
        }
        let source = self.estimates.failures.remove(&broken?)?;
        Some(ModelsError::Load { name: wanted.name.clone(), path: wanted.path.clone(), source })
    }

    fn copy(
        &self,
        wanted: &Wanted,
        placed: &Placed,
        shared: &mut Shared,
        others: &[ModelInstance],
    ) -> Result<ModelInstance, Trouble> {
        let found = self.ground.devices.iter().find(|(open, _)| open.id == placed.device);
        let (open, health) = found.ok_or_else(|| {
            Trouble::Backend(BackendError::Internal(format!("{} is not open", placed.device)))
        })?;
        let Served { model, step_bytes, steps, .. } = self.once(wanted, open, shared)?;
        let instance = model.instance().map_err(Trouble::Backend)?;
        // Those of one device share what they hold, so that each holds less with every further one.
        let within = |instance: &dyn Instance| {
            // What is in a process of its own says what it holds when it is asked how it is.
            open.device.status().map_err(Trouble::Backend)?;
            let mut held = held(others);
            held.push((open.id.clone(), instance.bytes_held()));
            self.ledger.check(&open.id, &held).map_err(Trouble::Over)
        };
        within(&*instance)?;
        let (info, from) = (Arc::new(model.info().clone()), placed.fallback_from.as_deref());
        let former = self.former(wanted, &info, step_bytes)?;
        let place = Place::new(open.id.clone(), Arc::clone(health), from);
        let runs = self.ground.counters.models.runs(&wanted.name, &open.id.to_string(), from.is_some());
        let mut instance = ModelInstance::new(&wanted.name, info, instance, Some(place), runs);
        let has_steps = wanted.manifest.as_ref().is_some_and(Manifest::has_steps);
        // Steps reach into the host's memory alone, as does who puts calls together.
        instance.resides = open.resident && former.is_none() && !has_steps;
        instance.former = former;
        instance.steps = steps;
        instance.measure();
        (self.watch)(LoadStep::Loaded);
        let instance =
            samples::run(wanted, instance, &self.ground.config.limits).map_err(|trouble| match trouble {
                samples::Trouble::Device(error) => Trouble::Backend(error),
                samples::Trouble::Sample { sample, problem } => {
                    let (name, device) = (wanted.name.clone(), open.id.to_string());
                    Trouble::Model(ModelsError::Sample { name, device, sample, problem })
                }
            })?;
        (self.watch)(LoadStep::Warmed);
        // Runs may have made it hold more.
        within(&*instance.instance)?;
        Ok(instance)
    }

    /// The model on a device. Copies on one device share its weights, so it is loaded there once.
    fn once(&self, wanted: &Wanted, open: &OpenDevice, shared: &mut Shared) -> Result<Served, Trouble> {
        if let Some(there) = shared.iter().find(|there| there.device == open.id) {
            return Ok(there.clone());
        }
        if self.lost.contains(&open.id) {
            let loaded = self.estimates.models.iter().flat_map(|model| &model.loaded);
            let loaded = loaded.filter(|placed| placed.device == open.id).count();
            let loaded = u32::try_from(loaded).unwrap_or(u32::MAX).saturating_add(self.others.models);
            recovery::wait(&self.ground.config.backends, open, loaded).map_err(Trouble::Gone)?;
        }
        let mut steps = StepsPlace::ask(wanted, open);
        steps.check(wanted).map_err(Trouble::Backend)?;
        let model = match open.device.load(&steps.options(wanted)) {
            Err(error @ BackendError::Load(_)) if steps.has_graph() && wanted.steps == StepsWish::Auto => {
                tracing::warn!(model = %wanted.name, device = %open.id, %error, "does not load with its steps in its graph, they run on the CPU");
                steps.given_up(wanted, error);
                open.device.load(&wanted.options())
            }
            loaded => loaded,
        };
        let model = model.map_err(Trouble::Backend)?;
        let (model, step_bytes) = self.processed(wanted, model, &steps)?;
        let steps = steps.said();
        steps.iter().for_each(|said| tracing::info!(model = %wanted.name, device = %open.id, "{said}"));
        if let Some(first) = shared.first().filter(|first| differ(first.model.info(), model.info())) {
            let (first, other) = (first.device.clone(), open.id.clone());
            return Err(ModelsError::Differs { name: wanted.name.clone(), first, other }.into());
        }
        let there = Served { device: open.id.clone(), model, step_bytes, steps };
        shared.push(there.clone());
        Ok(there)
    }

    /// The model with the steps of its manifest, and as that describes it; and what the steps take.
    fn processed(
        &self,
        wanted: &Wanted,
        model: Arc<dyn Model>,
        steps: &StepsPlace,
    ) -> Result<(Arc<dyn Model>, Option<StepBytes>), ModelsError> {
        let Some(manifest) = &wanted.manifest else { return Ok((model, None)) };
        let failed = |problem| ModelsError::Manifest { path: manifest.path.clone(), problem };
        if !manifest.has_steps() {
            manifest.check(model.info()).map_err(failed)?;
            return Ok((model, None));
        }
        if wanted.max_batch > 1 {
            // What the model itself says of its rows callers may not see: steps leave none of its names for extents.
            batch::check(model.info()).map_err(|reason| not_batchable(wanted, reason))?;
        }
        let model =
            Processed::new(model, manifest, steps, self.ground.config.limits.steps).map_err(failed)?;
        match model.mixes_rows().filter(|_| wanted.max_batch > 1) {
            Some(step) => Err(not_batchable(wanted, step)),
            None => {
                let bytes = model.step_bytes();
                Ok((Arc::new(model), Some(bytes)))
            }
        }
    }

    fn former(
        &self,
        wanted: &Wanted,
        info: &ModelInfo,
        steps: Option<StepBytes>,
    ) -> Result<Option<Former>, ModelsError> {
        let limits =
            batch::Limits { bytes: self.ground.config.limits.answer, steps, waiting: threads::WAITING };
        Former::new(&wanted.name, wanted, info, limits, &self.ground.counters.batches)
            .map_err(|reason| not_batchable(wanted, reason))
    }

    /// A copy is loaded, and stays where it is.
    fn note(&mut self, number: usize, placed: &Placed, instances: &[ModelInstance]) {
        let Some(model) = self.estimates.models.get_mut(number) else { return };
        model.loaded.push(placed.clone());
        for (placed, (_, bytes)) in model.loaded.iter_mut().zip(held(instances)) {
            // Where it is not known what is held, what was planned counts.
            placed.bytes = if bytes > 0 { bytes } else { placed.bytes };
        }
    }

    /// A model goes elsewhere.
    fn give_up(&mut self, number: usize, device: &DeviceId, why: String) {
        if let Some(model) = self.estimates.models.get_mut(number) {
            model.failed.insert(device.clone(), why);
        }
    }

    /// A backend did not load a model.
    fn failed(&mut self, wanted: &Wanted, device: &DeviceId, error: BackendError) {
        if matches!(error, BackendError::Lost(_)) {
            self.lost.insert(device.clone());
            let lost = self.ground.devices.iter().find(|(open, _)| open.id == *device);
            lost.iter().for_each(|(_, health)| health.suspect());
        }
        self.estimates.failures.insert((wanted.name.clone(), device.clone()), error);
    }

    /// All copies of a model are loaded.
    fn through(&mut self, number: usize, instances: &[ModelInstance]) {
        let held = held(instances);
        self.ledger.add(&held);
        let Some(model) = self.estimates.models.get(number) else { return };
        for (device, bytes) in held {
            if self.others.is_start {
                tracing::info!(model = %model.name, %device, bytes, "model ready");
            } else {
                // There may be many, and events tell of them.
                tracing::debug!(model = %model.name, %device, bytes, "model ready");
            }
        }
        tell(&model.loaded);
    }
}

/// Where the plan has a copy, if there is to be one more.
fn next<'a>(plan: &'a Plan, wanted: &Wanted, instance: usize) -> Option<&'a Placed> {
    plan.placed.iter().find(|placed| placed.model == wanted.name && placed.instance == instance)
}

/// What was shared on a device goes, unless a copy there goes on using it.
fn leave(device: &DeviceId, instances: &[ModelInstance], shared: &mut Shared) {
    let mut places = instances.iter().filter_map(|instance| instance.place.as_ref());
    if !places.any(|place| place.device == *device) {
        shared.retain(|there| there.device != *device);
    }
}

/// Says why a model is not where it should be, once.
fn tell(copies: &[Placed]) {
    let why = |placed: &Placed| placed.tried.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let has_failed =
        |placed: &&Placed| placed.tried.iter().any(|tried| matches!(tried.reason, Reason::Failed { .. }));
    if let Some((placed, from)) =
        copies.iter().find_map(|placed| Some((placed, placed.fallback_from.as_ref()?)))
    {
        let (model, device, why) = (&placed.model, &placed.device, why(placed));
        tracing::warn!(%model, %device, from, why, "model is not where its list of devices begins");
    } else if let Some(placed) = copies.iter().find(has_failed) {
        let (model, device, why) = (&placed.model, &placed.device, why(placed));
        tracing::warn!(%model, %device, why, "model did not load on another device that is as good");
    }
}

/// What instances hold, and where.
fn held(instances: &[ModelInstance]) -> Vec<(DeviceId, u64)> {
    instances.iter().for_each(ModelInstance::measure);
    let held =
        |instance: &ModelInstance| Some((instance.place.as_ref()?.device.clone(), instance.bytes_held()));
    instances.iter().filter_map(held).collect()
}

fn not_batchable(wanted: &Wanted, reason: NotBatchable) -> ModelsError {
    let (name, max_batch) = (wanted.name.clone(), wanted.max_batch);
    ModelsError::Batch { name, max_batch, reason: Box::new(reason) }
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
