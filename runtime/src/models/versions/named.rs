//! A model by its name. Calls ask for a version by its own name or by what it is called; who says nothing gets the one that is `stable`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use outrigger_backend::ModelInfo;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_store::Label;
use serde::Serialize;
use tokio::sync::Mutex as Turn;
use tokio_util::sync::CancellationToken;

use super::outcomes::Counts;
use crate::models::residency::ModelStatus;
use crate::models::served::ServedModel;
use crate::telemetry::ModelSeries;

/// What the version is called that calls get which say nothing.
pub(super) const STABLE: &str = "stable";

/// A model, in one or more versions.
pub struct NamedModel {
    /// Its name.
    pub name: String,
    /// Its number among what calls can be for.
    pub(crate) kind: u16,
    versions: RwLock<Versions>,
    /// Had by who changes which versions there are.
    pub(super) turn: Arc<Turn<()>>,
    /// The version that is on its way.
    loading: Mutex<Option<Rollout>>,
    /// The one that is watched.
    watch: Mutex<Option<Watched>>,
    /// What has been asked for and is not done: the label, and the number of who asked last.
    asked: Mutex<BTreeMap<Label, u64>>,
    /// How often something has been asked for.
    times: AtomicU64,
    /// What is counted of its calls.
    pub(crate) series: OnceLock<ModelSeries>,
}

struct Versions {
    stable: Arc<ServedModel>,
    /// The stable one, or, while that is watched, the one that calls would have again.
    confirmed: Arc<ServedModel>,
    /// What else versions are called.
    labels: BTreeMap<Label, Arc<ServedModel>>,
    /// All of them, those too that are called nothing.
    all: Vec<Arc<ServedModel>>,
}

impl Versions {
    /// Whether a version is the stable one, and has to prove itself.
    fn is_new(&self, version: &Arc<ServedModel>) -> bool {
        Arc::ptr_eq(&self.stable, version) && !Arc::ptr_eq(&self.confirmed, version)
    }
}

/// A version that takes the place of another.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub(super) struct Rollout {
    /// What it is to be called.
    pub(super) label: String,
    /// The version.
    pub(super) to: String,
    /// The one before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<String>,
    pub(super) stage: Stage,
    /// Ends it, because something else is decided.
    #[serde(skip)]
    pub(super) overtaken: CancellationToken,
}

/// A version that is watched.
#[derive(Clone)]
pub(super) struct Watched {
    pub(super) shown: Rollout,
    pub(super) new: Arc<ServedModel>,
    /// How calls of the confirmed version went before.
    pub(super) before: Counts,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// It is fetched, loaded and tried; calls have the one before it.
    Loading,
    /// Calls have it; the one before it is there still, in case that it does worse.
    Watching,
}

/// What has become of a version that is called otherwise than before.
pub(super) struct Called {
    /// The one that was called so, if any.
    pub(super) old: Option<Arc<ServedModel>>,
    pub(super) standing: Standing,
}

/// How it stands with a version that has just been called so.
pub(super) enum Standing {
    /// It is not the stable one.
    Beside,
    /// It had been confirmed before.
    Known,
    /// It is confirmed by that.
    Confirmed,
    /// It has to prove itself; until then this one is confirmed.
    New(Arc<ServedModel>),
}

/// How a model is, in all its versions.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct NamedStatus {
    /// The stable version.
    #[serde(flatten)]
    pub(crate) stable: ModelStatus,
    /// What versions are called.
    pub(crate) labels: BTreeMap<String, String>,
    /// The versions that are not the stable one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) others: Vec<ModelStatus>,
    /// What goes on with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rollout: Option<Rollout>,
}

impl NamedModel {
    /// One that has one version.
    pub(in crate::models) fn new(stable: Arc<ServedModel>) -> Arc<Self> {
        let (name, kind, all) = (stable.name.clone(), stable.kind, vec![Arc::clone(&stable)]);
        let confirmed = Arc::clone(&stable);
        let versions = RwLock::new(Versions { stable, confirmed, labels: BTreeMap::new(), all });
        let (turn, loading, watch, asked, times) = Default::default();
        let series = OnceLock::new();
        Arc::new(Self { name, kind, versions, turn, loading, watch, asked, times, series })
    }

    fn read<T>(&self, look: impl FnOnce(&Versions) -> T) -> T {
        look(&self.versions.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Versions) -> T) -> T {
        change(&mut self.versions.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// The version that calls get which say nothing.
    pub fn stable(&self) -> Arc<ServedModel> {
        self.read(|versions| Arc::clone(&versions.stable))
    }

    /// The version that is asked for, by its own name or by what it is called; by nothing, the stable one.
    ///
    /// # Errors
    /// `model_not_found`.
    pub fn version(&self, which: Option<&str>) -> Result<Arc<ServedModel>, CallError> {
        let Some(which) = which else { return Ok(self.stable()) };
        self.find(which).ok_or_else(|| {
            let versions = self.versions().iter().map(|one| one.version.clone()).collect::<Vec<_>>();
            let text = format!(
                "this version of model `{}` is not served here; there is {}",
                self.name,
                versions.join(", ")
            );
            CallError::new(ErrorCode::ModelNotFound, text)
        })
    }

    pub(super) fn find(&self, which: &str) -> Option<Arc<ServedModel>> {
        self.read(|versions| {
            let own = versions.all.iter().find(|version| version.version == which);
            let called = || versions.labels.iter().find(|(label, _)| label.as_str() == which);
            let stable = || (which == STABLE).then_some(&versions.stable);
            own.or_else(stable).or_else(|| called().map(|(_, version)| version)).cloned()
        })
    }

    /// How it is, if it is known how its versions are.
    pub(in crate::models) fn status(
        &self,
        of: impl Fn(&ServedModel) -> Option<ModelStatus>,
    ) -> Option<NamedStatus> {
        let stable = self.stable();
        let others = self.versions().into_iter().filter(|version| !Arc::ptr_eq(version, &stable));
        Some(NamedStatus {
            labels: self.labels(),
            others: others.filter_map(|version| of(&version)).collect(),
            rollout: self.rollout(),
            stable: of(&stable)?,
        })
    }

    /// All versions, those too that are on their way or leave.
    pub fn versions(&self) -> Vec<Arc<ServedModel>> {
        self.read(|versions| versions.all.clone())
    }

    /// What versions are called.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.read(|versions| {
            let others = versions.labels.iter();
            let others = others.map(|(label, version)| (label.to_string(), version.version.clone()));
            others.chain([(STABLE.to_owned(), versions.stable.version.clone())]).collect()
        })
    }

    /// One more version, which is called nothing yet.
    pub(super) fn add(&self, version: &Arc<ServedModel>) {
        self.change(|versions| versions.all.push(Arc::clone(version)));
    }

    /// Has a version be called so, at once for whoever asks from now on. A new stable one has to prove itself, if that is `watched`.
    pub(super) fn call(&self, label: &Label, new: &Arc<ServedModel>, watched: bool) -> Called {
        self.change(|versions| {
            if label.as_str() != STABLE {
                let old = versions.labels.insert(label.clone(), Arc::clone(new));
                return Called { old, standing: Standing::Beside };
            }
            let old = std::mem::replace(&mut versions.stable, Arc::clone(new));
            let standing = if Arc::ptr_eq(new, &versions.confirmed) {
                Standing::Known
            } else if watched && !Arc::ptr_eq(new, &old) {
                Standing::New(Arc::clone(&versions.confirmed))
            } else {
                versions.confirmed = Arc::clone(new);
                Standing::Confirmed
            };
            Called { old: Some(old), standing }
        })
    }

    /// Has no version be called so any more; not for `stable`. Says whether one was.
    pub(super) fn call_nothing(&self, label: &Label) -> bool {
        self.change(|versions| versions.labels.remove(label).is_some())
    }

    /// The stable version need not prove itself any more, if it is this one. Says whether it had to.
    pub(super) fn confirm(&self, version: &Arc<ServedModel>) -> bool {
        self.change(|versions| {
            let is_new = versions.is_new(version);
            if is_new {
                versions.confirmed = Arc::clone(version);
            }
            is_new
        })
    }

    /// Calls have the confirmed version again, if they have this one, which has to prove itself. Says whether that is so.
    pub(super) fn go_back(&self, from: &Arc<ServedModel>) -> bool {
        self.change(|versions| {
            let is_new = versions.is_new(from);
            if is_new {
                versions.stable = Arc::clone(&versions.confirmed);
            }
            is_new
        })
    }

    /// Takes away the versions that are called nothing, unless somebody needs them by their own name: nobody gets them any more.
    pub(super) fn take_unnamed(&self, is_needed: impl Fn(&ServedModel) -> bool) -> Vec<Arc<ServedModel>> {
        // Who asks others looks at versions, and may not while they are changed.
        let all = self.versions();
        let needed: Vec<_> =
            all.iter().filter(|version| is_needed(version)).map(|version| version.version.clone()).collect();
        self.change(|versions| {
            let named = versions.labels.values().chain([&versions.stable, &versions.confirmed]);
            let named: Vec<_> = named.cloned().collect();
            let is_named = |version: &Arc<ServedModel>| named.iter().any(|one| Arc::ptr_eq(one, version));
            let stays = |version: &Arc<ServedModel>| is_named(version) || needed.contains(&version.version);
            let (stay, go) = std::mem::take(&mut versions.all).into_iter().partition(stays);
            versions.all = stay;
            go
        })
    }

    /// What goes on with its versions.
    fn rollout(&self) -> Option<Rollout> {
        self.lock_loading().clone().or_else(|| Some(self.watched()?.shown))
    }

    fn lock_loading(&self) -> MutexGuard<'_, Option<Rollout>> {
        self.loading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_watch(&self) -> MutexGuard<'_, Option<Watched>> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is to be called so: what is on its way for that, or waits to be, is given up. Gives the number of who asks.
    pub(super) fn overtake(&self, label: &Label) -> u64 {
        let mut asked = self.lock_asked();
        let number = self.times.fetch_add(1, Ordering::Relaxed);
        asked.insert(label.clone(), number);
        let loading = self.lock_loading();
        let same = loading.iter().filter(|rollout| rollout.label == label.as_str());
        same.for_each(|rollout| rollout.overtaken.cancel());
        number
    }

    /// What is on its way to be called so is not meant any more.
    pub(super) fn overtaken(&self, label: &Label) {
        let number = self.overtake(label);
        self.forget(label, number);
    }

    /// A version is on its way, unless somebody has asked for something else meanwhile; says whether it is.
    pub(super) fn begin_loading(&self, label: &Label, number: u64, rollout: Rollout) -> bool {
        let asked = self.lock_asked();
        let is_last = asked.get(label) == Some(&number);
        if is_last {
            *self.lock_loading() = Some(rollout);
        }
        is_last
    }

    /// It is not on its way any more.
    pub(super) fn end_loading(&self, label: &Label, number: u64) {
        let mut asked = self.lock_asked();
        *self.lock_loading() = None;
        if asked.get(label) == Some(&number) {
            asked.remove(label);
        }
    }

    /// Who asked gives up.
    pub(super) fn forget(&self, label: &Label, number: u64) {
        self.lock_asked().retain(|asked, last| asked != label || *last != number);
    }

    fn lock_asked(&self) -> MutexGuard<'_, BTreeMap<Label, u64>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watch that there is.
    pub(super) fn watched(&self) -> Option<Watched> {
        self.lock_watch().clone()
    }

    /// Ends the watch that there is, and begins another.
    pub(super) fn set_watch(&self, watch: Option<Watched>) {
        let former = std::mem::replace(&mut *self.lock_watch(), watch);
        former.iter().for_each(|former| former.shown.overtaken.cancel());
    }

    /// A watch is over, if it is still that of this version.
    pub(super) fn end_watch(&self, of: &Arc<ServedModel>) {
        self.lock_watch().take_if(|watch| Arc::ptr_eq(&watch.new, of));
    }

    /// Whether calls that its stable version does not take had been taken by the one before, as far as inputs tell: only while that is
    /// watched.
    pub(crate) fn was_taken(&self, by: impl FnOnce(&ModelInfo) -> bool) -> bool {
        let confirmed = self.read(|versions| {
            let is_watched = !Arc::ptr_eq(&versions.stable, &versions.confirmed);
            is_watched.then(|| Arc::clone(&versions.confirmed))
        });
        confirmed.is_some_and(|confirmed| confirmed.known().is_some_and(|(_, info)| by(info)))
    }
}
