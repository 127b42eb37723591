//! A model that is served, whether it is loaded or not.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use outrigger_backend::ModelInfo;
use outrigger_store::Manifest;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::graph::{Directory, Ensemble, Graph};
use super::instance::LoadedModel;
use super::lease::{Inside, Lease};
use super::residency::Usage;
use super::statistics::Statistics;
use super::versions::Outcomes;
use super::wanted::Wanted;
use crate::cache::Identity;
use crate::config::LoadTime;
use crate::fetching::Source;
use crate::placement::DeviceId;

/// A model that the replica serves.
pub struct ServedModel {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// When it is loaded.
    pub load: LoadTime,
    /// Its number among what calls can be for.
    pub(crate) kind: u16,
    /// Its place among the models.
    pub(super) number: usize,
    pub(super) wanted: Wanted,
    /// What is fetched before it can be loaded, if that is not here from the start.
    pub(super) later: Option<Arc<Manifest>>,
    /// Which registered model it is, if it is one.
    pub(super) source: Option<Source>,
    /// If it is made of others, what that takes.
    pub(super) ensemble: Option<Arc<Ensemble>>,
    /// How its calls went.
    pub(super) outcomes: Arc<Outcomes>,
    /// Its calls and their times.
    pub(crate) statistics: Arc<Statistics>,
    /// It is no more, and nobody gets it who has not got it yet.
    retired: CancellationToken,
    resident: RwLock<Option<Arc<LoadedModel>>>,
    /// What it is, once it has been loaded.
    known: OnceLock<Known>,
    /// Calls that have had it, ever.
    uses: AtomicU64,
    /// When the last one came, nanoseconds since `start`.
    last: AtomicU64,
    start: Instant,
    /// What it was measured to hold when it was loaded last, a copy on each device.
    measured: Mutex<Vec<(DeviceId, u64)>>,
    /// Calls that wait for it to be loaded.
    waiting: AtomicUsize,
    /// Told whenever a load of it has ended, and when it has left.
    pub(super) changed: Notify,
}

/// What stays known of a model that has left.
struct Known {
    platform: String,
    info: Arc<ModelInfo>,
}

impl ServedModel {
    /// One that is not loaded.
    pub(super) fn new(
        number: usize,
        kind: u16,
        wanted: Wanted,
        (later, source): (Option<Arc<Manifest>>, Option<Source>),
        start: Instant,
    ) -> Self {
        Self {
            name: wanted.name.clone(),
            version: wanted.version.clone(),
            load: wanted.load,
            kind,
            number,
            wanted,
            later,
            source,
            ensemble: None,
            outcomes: Arc::new(Outcomes::new(start)),
            statistics: Arc::default(),
            retired: CancellationToken::new(),
            resident: RwLock::default(),
            known: OnceLock::new(),
            uses: AtomicU64::new(0),
            last: AtomicU64::new(0),
            start,
            measured: Mutex::default(),
            waiting: AtomicUsize::new(0),
            changed: Notify::new(),
        }
    }

    /// The same, with where an ensemble finds what it is made of.
    pub(super) fn made_of(mut self, directory: &Arc<Directory>) -> Self {
        let graph = self.wanted.graph.clone();
        self.ensemble = graph.map(|graph| Arc::new(Ensemble::new(graph, directory)));
        self
    }

    /// What an ensemble is made of.
    pub(super) fn graph(&self) -> Option<&Graph> {
        self.wanted.graph.as_deref()
    }

    /// The loaded model, to look at: it may be on its way out.
    pub fn resident(&self) -> Option<Arc<LoadedModel>> {
        self.resident.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it takes and gives, and its format and library; nothing as long as it has not been loaded once.
    pub fn known(&self) -> Option<(&str, &Arc<ModelInfo>)> {
        self.known.get().map(|known| (known.platform.as_str(), &known.info))
    }

    /// What it takes and gives, for who keeps it.
    pub(super) fn known_info(&self) -> Option<Arc<ModelInfo>> {
        self.known.get().map(|known| Arc::clone(&known.info))
    }

    /// What it takes and gives: as is known, or as its manifest says, if that says all of it.
    pub(super) fn said(&self) -> Option<ModelInfo> {
        let described = || {
            let described = &self.wanted.manifest.as_ref()?.described;
            let is_whole = !described.inputs.is_empty() && !described.outputs.is_empty();
            is_whole.then(|| described.clone())
        };
        self.known().map(|(_, info)| ModelInfo::clone(info)).or_else(described)
    }

    /// Shows a model that has been loaded to calls.
    pub(super) fn put(&self, model: Arc<LoadedModel>) {
        // What it takes and gives is the same wherever it is loaded.
        self.known.get_or_init(|| Known { platform: model.platform.clone(), info: Arc::clone(&model.info) });
        *self.resident.write().unwrap_or_else(PoisonError::into_inner) = Some(model);
    }

    /// Takes it away. Calls that have it still do.
    pub(super) fn take(&self) -> Option<Arc<LoadedModel>> {
        self.resident.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Takes it away if no call has it and none waits for it.
    pub(super) fn take_if_idle(&self) -> Option<Arc<LoadedModel>> {
        let mut resident = self.resident.write().unwrap_or_else(PoisonError::into_inner);
        let closed = self.waiting.load(Ordering::SeqCst) == 0
            && resident.as_ref().is_some_and(|model| model.door.gate.close_if_idle());
        if closed { resident.take() } else { None }
    }

    /// A lease for a call, if it is loaded, and all that it is made of.
    pub fn lease(&self) -> Option<Lease> {
        let gathered = match &self.ensemble {
            None => None,
            Some(ensemble) => Some((Arc::new(ensemble.gather(self).ok()??), Arc::clone(ensemble))),
        };
        let lease = self.hold()?;
        gathered.iter().for_each(|(gathered, _)| gathered.is_used());
        self.is_used();
        Some(Lease { gathered, ..lease })
    }

    /// A lease of what it is itself, for who does not use it yet: that can be run only if it is no ensemble.
    pub(super) fn hold(&self) -> Option<Lease> {
        let model = self.resident()?;
        let inside = Inside::enter(&model.door)?;
        Some(Lease { model, inside, gathered: None })
    }

    /// A call has it.
    pub(super) fn is_used(&self) {
        self.uses.fetch_add(1, Ordering::Relaxed);
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last.fetch_max(now, Ordering::Relaxed);
    }

    /// It is no more.
    pub(super) fn retire(&self) {
        self.retired.cancel();
    }

    /// Whether it is no more: whoever needs it has to look what has taken its place.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.is_cancelled()
    }

    /// Comes when it is.
    pub(super) async fn gone(&self) {
        self.retired.cancelled().await;
    }

    /// What its answers depend on from now on, where it has just been loaded.
    pub(super) fn identity(&self) -> Identity {
        let of_files = |source: &Source| Identity::of_files(&self.name, &source.digest);
        self.source.as_ref().map_or_else(Identity::of_this_load, of_files)
    }

    /// How it is used.
    pub(super) fn usage(&self) -> Usage {
        let idle = self.waiting.load(Ordering::SeqCst) == 0
            && self.resident().is_none_or(|model| model.door.gate.is_idle());
        Usage {
            uses: self.uses.load(Ordering::Relaxed),
            last: Duration::from_nanos(self.last.load(Ordering::Relaxed)),
            idle,
        }
    }

    /// A call waits for it, until this is dropped: a model that is waited for does not make way before it has been used.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Waiting(self)
    }

    /// What it was measured to hold when it was loaded last, a copy on each device.
    pub(super) fn measured(&self) -> Vec<(DeviceId, u64)> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps what it was measured to hold.
    pub(super) fn note_measured(&self, measured: Vec<(DeviceId, u64)>) {
        *self.measured.lock().unwrap_or_else(PoisonError::into_inner) = measured;
    }
}

pub(super) struct Waiting<'a>(&'a ServedModel);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::SeqCst) == 1
            && let Some(resident) = self.0.resident()
        {
            // It may make way, if nobody has come to use it after all.
            resident.door.home.fell_idle();
        }
    }
}
