//! One version takes the place of another: fetched, loaded and tried beside it, then switched to at once, and given up again if it does worse.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_store::id::version_of;
use outrigger_store::{Label, ModelId, ModelName, ModelWish, Which};
use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::named::{NamedModel, Rollout, STABLE, Stage};
use super::outcomes::Counts;
use super::verdict::{Rule, is_worse};
use crate::config::Config;
use crate::fetching::{Fetched, FetchingError, Storage};
use crate::models::files::Files;
use crate::models::residency::Happening;
use crate::models::served::ServedModel;
use crate::models::wanted::{self, Wanted};
use crate::models::{Models, ModelsError};
use crate::scheduler;

/// What is asked of the registry at once.
const ASKED_AT_ONCE: usize = 16;
/// Longer than anything takes.
const EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// How it stands with a version when whoever asked for it hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rolled {
    /// It is called so.
    Done,
    /// It is still being fetched, loaded or tried, and will be called so then.
    UnderWay,
}

/// Changes which versions there are.
pub(crate) struct Rollouts {
    models: Arc<Models>,
    config: Arc<Config>,
    /// Of each model that is registered, as what, and which version was asked for.
    registered: BTreeMap<String, (ModelId, ModelWish)>,
    storage: Option<Arc<Storage>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Calls have a new version, and are looked at.
struct Watch {
    label: Label,
    /// The version before, which stays for as long.
    old: Arc<ServedModel>,
    new: Arc<ServedModel>,
    /// How calls of the old one went at last.
    before: Counts,
    /// How those of the new one had gone until calls had it that name none.
    start: Counts,
    /// Ends it.
    overtaken: CancellationToken,
}

impl Watch {
    fn shown(&self) -> Rollout {
        Rollout {
            label: self.label.to_string(),
            to: self.new.version.clone(),
            from: Some(self.old.version.clone()),
            stage: Stage::Watching,
            overtaken: self.overtaken.clone(),
        }
    }
}

/// Why a version does not take another's place.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Fetching(#[from] FetchingError),
    #[error(transparent)]
    Models(#[from] ModelsError),
    #[error("it does not load: {0}")]
    Load(String),
    #[error("model `{0}` was not fetched, and is no folder of versions")]
    Alone(String),
    #[error("there is no `{}`", .0.display())]
    NoFolder(PathBuf),
    #[error("`{0}` is no version, and no label of one")]
    NoVersion(String),
    #[error("there are {0} versions of it already (rollout.versions); take a label from one of them")]
    TooMany(usize),
    #[error("it was broken off")]
    Broken(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Call(#[from] CallError),
}

impl Refusal {
    fn into_error(self, named: &NamedModel, which: &str) -> CallError {
        let missing = matches!(&self, Self::Fetching(error) if error.is_not_found());
        let code = match &self {
            Self::Call(error) => return error.clone(),
            Self::NoFolder(_) | Self::NoVersion(_) => ErrorCode::ModelNotFound,
            _ if missing => ErrorCode::ModelNotFound,
            _ => ErrorCode::Conflict,
        };
        let why = outrigger_backend::chain(&self);
        CallError::new(code, format!("version `{which}` of model `{}` does not serve: {why}", named.name))
    }
}

impl Rollouts {
    /// For these models.
    pub(crate) fn new(models: Arc<Models>, config: Arc<Config>, fetched: Option<&Fetched>) -> Arc<Self> {
        let registered = fetched.map(Fetched::registered).unwrap_or_default();
        let storage = fetched.map(|fetched| Arc::clone(fetched.storage()));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        Arc::new(Self { models, config, registered, storage, tasks, stop })
    }

    /// Nothing changes any more.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Has a version be called so: fetches, loads and tries it first, if it is not there. Whoever cannot wait for that hears that it is under way.
    ///
    /// # Errors
    /// `model_not_found`, `conflict` if it does not load or another one is on its way, `draining`.
    pub(crate) async fn label(
        self: &Arc<Self>,
        named: &Arc<NamedModel>,
        label: Label,
        which: &str,
        until: Instant,
    ) -> Result<Rolled, CallError> {
        let turn = self.turn(named, &label, until).await?;
        let (done, hear) = oneshot::channel();
        let (this, named, which) = (Arc::clone(self), Arc::clone(named), which.to_owned());
        self.tasks.spawn(async move { this.roll(&named, label, &which, done, turn).await });
        match tokio::time::timeout_at(until.into(), hear).await {
            Ok(Ok(ended)) => ended.map(|()| Rolled::Done),
            Ok(Err(_)) => Err(scheduler::draining()),
            Err(_) => Ok(Rolled::UnderWay),
        }
    }

    /// Has no version be called so any more.
    ///
    /// # Errors
    /// `model_not_found` if none is; `conflict` for `stable`, or while versions change.
    pub(crate) async fn unlabel(
        self: &Arc<Self>,
        named: &Arc<NamedModel>,
        label: &Label,
        until: Instant,
    ) -> Result<(), CallError> {
        if label.as_str() == STABLE {
            let text = "one version is always `stable`: it is what calls get which name none";
            return Err(CallError::new(ErrorCode::Conflict, text));
        }
        let none = || {
            let text = format!("no version of model `{}` is called `{label}`", named.name);
            CallError::new(ErrorCode::ModelNotFound, text)
        };
        if !named.labels().contains_key(label.as_str()) {
            return Err(none());
        }
        let turn = self.turn(named, label, until).await?;
        if !named.call_nothing(label) {
            return Err(none());
        }
        let (this, named) = (Arc::clone(self), Arc::clone(named));
        self.tasks.spawn(async move {
            this.sweep(&named).await;
            drop(turn);
        });
        Ok(())
    }

    /// The turn of who changes a model's versions. Who only watches a new one makes way for who decides what is to be called so.
    async fn turn(
        &self,
        named: &Arc<NamedModel>,
        label: &Label,
        until: Instant,
    ) -> Result<OwnedMutexGuard<()>, CallError> {
        if let Ok(turn) = Arc::clone(&named.turn).try_lock_owned() {
            return Ok(turn);
        }
        let rollout = named.rollout();
        let watched = rollout.as_ref().filter(|rollout| rollout.stage == Stage::Watching);
        if let Some(rollout) = watched.filter(|rollout| rollout.label == label.as_str()) {
            rollout.overtaken.cancel();
            if let Ok(turn) =
                tokio::time::timeout_at(until.into(), Arc::clone(&named.turn).lock_owned()).await
            {
                return Ok(turn);
            }
        }
        let name = &named.name;
        let text = match (watched, &rollout) {
            (Some(new), _) => format!(
                "version {} of model `{name}` is watched; ask again when it is confirmed, or confirm it: have it be `{}` once more",
                new.to, new.label
            ),
            (None, Some(new)) => {
                format!("versions of model `{name}` are changing, to {}; ask again when they have", new.to)
            }
            (None, None) => format!("versions of model `{name}` are changing; ask again when they have"),
        };
        Err(CallError::new(ErrorCode::Conflict, text).with_retry_after(Duration::from_secs(1)))
    }

    async fn roll(
        &self,
        named: &Arc<NamedModel>,
        label: Label,
        which: &str,
        done: oneshot::Sender<Result<(), CallError>>,
        turn: OwnedMutexGuard<()>,
    ) {
        // Whoever asked may have left.
        match self.switch(named, label, which).await {
            Ok((new, watch)) => {
                // Whoever asks for something else from now on hears how it stands.
                named.set_rollout(watch.as_ref().map(Watch::shown));
                let _ = done.send(Ok(()));
                let overtaken = match &watch {
                    Some(watch) => self.watch(named, watch).await,
                    None => false,
                };
                self.models.keep(&new, false);
                if overtaken || self.stop.is_cancelled() {
                    // What becomes of the versions is for who comes now.
                    return;
                }
            }
            Err(refusal) => {
                let error = refusal.into_error(named, which);
                tracing::error!(model = %named.name, version = which, reason = %error.message, "a version is refused");
                named.set_rollout(None);
                let _ = done.send(Err(error));
            }
        }
        named.set_rollout(None);
        self.sweep(named).await;
        drop(turn);
    }

    /// Loads a version beside the others, and has it be called so. It stays until it is let go of. Says what is to be watched, if anything.
    async fn switch(
        &self,
        named: &Arc<NamedModel>,
        label: Label,
        which: &str,
    ) -> Result<(Arc<ServedModel>, Option<Watch>), Refusal> {
        let new = self.target(named, which).await?;
        let from = named.find(label.as_str());
        named.set_rollout(Some(Rollout {
            label: label.to_string(),
            to: new.version.clone(),
            from: from.as_ref().map(|from| from.version.clone()),
            stage: Stage::Loading,
            overtaken: CancellationToken::new(),
        }));
        self.models.keep(&new, true);
        let brought = tokio::select! {
            brought = self.models.bring(&new, Instant::now() + EVER) => brought,
            () = self.stop.cancelled() => Err(scheduler::draining()),
        };
        if let Err(error) = brought {
            self.models.keep(&new, false);
            let load = self.models.status(&new).and_then(|status| status.last_load);
            let refusal = match load.and_then(|load| load.failure) {
                Some(failure) if error.code == ErrorCode::ModelUnavailable => Refusal::Load(failure),
                _ => Refusal::Call(error),
            };
            self.models.tell(&new, Happening::Refused, refusal.to_string());
            return Err(refusal);
        }
        let start = new.outcomes.all();
        let old = named.call(&label, &new).filter(|old| !Arc::ptr_eq(old, &new));
        if from.is_none_or(|from| !Arc::ptr_eq(&from, &new)) {
            let from = old.as_ref().map_or("none", |old| old.version.as_str());
            let text = format!("`{label}` was version {from} and is version {}", new.version);
            tracing::info!(model = %named.name, %label, from, to = %new.version, "a version is switched to");
            self.models.tell(&new, Happening::Switched, text);
        }
        let old = old.filter(|_| label.as_str() == STABLE && !self.config.rollout.watch.is_zero());
        let watch = old.map(|old| {
            let (before, overtaken) = (old.outcomes.recent(), CancellationToken::new());
            self.models.keep(&old, true);
            Watch { label, old, new: Arc::clone(&new), before, start, overtaken }
        });
        Ok((new, watch))
    }

    /// The version that is meant, which may be one that has to be fetched or loaded.
    async fn target(&self, named: &Arc<NamedModel>, which: &str) -> Result<Arc<ServedModel>, Refusal> {
        if let Some(there) = named.find(which) {
            return Ok(there);
        }
        let (folder, source) = match self.registered.get(&named.name) {
            Some((id, _)) => (PathBuf::new(), Some(self.resolve(&id.name, which).await?)),
            None => (self.folder(named, which)?, None),
        };
        let own = |id: &ModelId| named.find(&id.version.to_string());
        if let Some(there) = source.as_ref().and_then(own) {
            return Ok(there);
        }
        let there = named.versions().len();
        if there >= self.config.rollout.versions {
            return Err(Refusal::TooMany(there));
        }
        let mut model = self.config.models.get(&named.name).cloned().unwrap_or_default();
        let (files, later) = match (source.clone(), &self.storage) {
            (Some(id), Some(storage)) => {
                model.version = Some(id.version.to_string());
                let announced = storage.announce(&id).await?;
                model.path = announced.path;
                let files = announced.places.map_or(Files::Disk, Files::Awaited);
                (files, announced.later)
            }
            _ => {
                (model.path, model.version) = (folder, None);
                (Files::Disk, None)
            }
        };
        let (config, name, number) = (Arc::clone(&self.config), named.name.clone(), which.to_owned());
        let wanted = move || wanted::at(&config, &name, model, Some(number), &files);
        let wanted: Wanted = tokio::task::spawn_blocking(wanted).await??;
        // Its author may call it otherwise than its folder is called.
        let is_it = |there: &Arc<ServedModel>| source.is_none() && there.wanted.path == wanted.path;
        if let Some(there) = named.versions().into_iter().find(is_it) {
            return Ok(there);
        }
        let version = self.models.add(wanted, later, source, named.kind)?;
        named.add(&version);
        Ok(version)
    }

    async fn resolve(&self, name: &ModelName, which: &str) -> Result<ModelId, Refusal> {
        let no_version = || Refusal::NoVersion(which.chars().take(100).collect());
        let which = match (version_of(which), which) {
            (Ok(version), _) => Which::Version(version),
            (_, "latest") => Which::Latest,
            (_, label) => Which::Label(label.parse().map_err(|_| no_version())?),
        };
        let storage = self.storage.as_ref().ok_or_else(no_version)?;
        Ok(storage.resolve(&ModelWish { name: name.clone(), which }).await?)
    }

    /// A version that lies beside the first one: `NAME/VERSION`.
    fn folder(&self, named: &NamedModel, which: &str) -> Result<PathBuf, Refusal> {
        let said = self.config.models.get(&named.name).map(|model| model.path.clone());
        let folder = said.or_else(|| Some(self.config.model_dir.as_ref()?.join(&named.name)));
        let folder = folder.filter(|folder| folder.is_dir());
        let folder = folder.ok_or_else(|| Refusal::Alone(named.name.clone()))?;
        let version = version_of(which).map_err(|_| Refusal::NoVersion(which.chars().take(100).collect()))?;
        let path = folder.join(version.to_string());
        if path.is_dir() { Ok(path) } else { Err(Refusal::NoFolder(path)) }
    }

    /// Has calls go back to the old version if they do worse with the new one. Says whether somebody else has decided that meanwhile.
    async fn watch(&self, named: &Arc<NamedModel>, watch: &Watch) -> bool {
        let Watch { old, new, before, start, overtaken, .. } = watch;
        let said = &self.config.rollout;
        let rule = Rule { failures: said.failures as u64, margin: said.margin / 100.0 };
        let mut end = pin!(tokio::time::sleep(said.watch));
        loop {
            let mut failure = pin!(new.outcomes.failure());
            // From here on nothing is missed.
            failure.as_mut().enable();
            let after = new.outcomes.all().since(*start);
            if is_worse(*before, after, rule) {
                self.go_back(named, watch, after);
                break;
            }
            tokio::select! {
                () = failure => {}
                () = &mut end => {
                    self.models.tell(new, Happening::Confirmed, shares(*before, after));
                    break;
                }
                () = overtaken.cancelled() => break,
                () = self.stop.cancelled() => break,
            }
        }
        self.models.keep(old, false);
        overtaken.is_cancelled()
    }

    fn go_back(&self, named: &NamedModel, watch: &Watch, after: Counts) {
        let Watch { label, old, new, before, .. } = watch;
        named.call(label, old);
        let why = shares(*before, after);
        tracing::error!(model = %named.name, %label, from = %new.version, to = %old.version, why, "a version does worse and is given up");
        let text = format!("`{label}` is version {} again: {why}", old.version);
        self.models.tell(new, Happening::Returned, text);
    }

    /// Takes away what is called nothing any more.
    async fn sweep(&self, named: &NamedModel) {
        for version in named.take_unnamed() {
            let (models, retired) = (Arc::clone(&self.models), Arc::clone(&version));
            if let Err(error) = tokio::task::spawn_blocking(move || models.retire(&retired)).await {
                tracing::error!(%error, model = %named.name, "a version was not taken away");
                continue;
            }
            self.models.tell(&version, Happening::Retired, "nothing calls it any more".into());
            let Some(id) = &version.source else { continue };
            let others = self.models.versions();
            if others.iter().any(|other| other.source.as_ref() == Some(id)) {
                continue;
            }
            if let Some(storage) = &self.storage
                && let Err(error) = storage.remove(id.clone()).await
            {
                tracing::warn!(%error, model = %id, "the files of a version were not removed");
            }
        }
    }

    /// Looks from time to time whether what was asked for is another version now, which is then rolled out.
    pub(crate) fn follow(self: &Arc<Self>) {
        let every = self.config.store.refresh;
        let fixed = |wish: &ModelWish| matches!(wish.which, Which::Version(_));
        let mut followed: Vec<_> = self.registered.iter().filter(|(_, (_, wish))| !fixed(wish)).collect();
        if every.is_zero() || followed.is_empty() {
            return;
        }
        let this = Arc::clone(self);
        let mut seen: BTreeMap<String, ModelId> =
            followed.drain(..).map(|(name, (id, _))| (name.clone(), id.clone())).collect();
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(every) => {}
                    () = this.stop.cancelled() => return,
                }
                tokio::select! {
                    () = this.look(&mut seen) => {}
                    () = this.stop.cancelled() => return,
                }
            }
        });
    }

    async fn look(self: &Arc<Self>, seen: &mut BTreeMap<String, ModelId>) {
        let Some(storage) = self.storage.clone() else { return };
        let wish = |name: &String| Some(self.registered.get(name)?.1.clone());
        let asked = seen.iter().filter_map(|(name, id)| Some((name.clone(), id.clone(), wish(name)?)));
        // Owned, so that it can be told that all this may move between threads.
        let asked: Vec<_> = asked.collect();
        let asked = asked.into_iter().map(|(name, id, wish)| {
            let storage = Arc::clone(&storage);
            async move { (name, id, storage.resolve(&wish).await) }
        });
        let found: Vec<_> = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).collect().await;
        for (name, id, now) in found {
            let now = match now {
                Ok(now) if now == id => continue,
                Ok(now) => now,
                Err(error) => {
                    tracing::warn!(model = %name, %error, "the registry does not say which version is meant now");
                    continue;
                }
            };
            let (Ok(named), Ok(label)) = (self.models.get(&name), STABLE.parse()) else { continue };
            let version = now.version.to_string();
            tracing::info!(model = %name, from = id.version, to = now.version, "another version is meant now");
            // How it goes the log tells. Where others are at it, it is looked at again.
            match self.label(named, label, &version, Instant::now()).await {
                Err(error) if error.code == ErrorCode::Conflict && error.retry_after.is_some() => continue,
                _ => {}
            }
            seen.insert(name, now);
        }
    }
}

/// How many calls failed.
fn shares(before: Counts, after: Counts) -> String {
    format!(
        "{} of {} calls failed; of the version before it, {} of the last {}",
        after.failures, after.calls, before.failures, before.calls
    )
}
