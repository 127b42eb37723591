//! One version takes the place of another: fetched, loaded and tried beside it, and then switched to at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_store::{Label, ModelId, ModelWish};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::named::{Called, NamedModel, Rollout, STABLE, Stage, Standing};
use super::refusal::Refusal;
use super::target::can_be_called;
use crate::config::Config;
use crate::fetching::{Fetched, Storage};
use crate::models::Models;
use crate::models::graph::Graph;
use crate::models::residency::Happening;
use crate::models::served::ServedModel;
use crate::scheduler;

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
    pub(super) models: Arc<Models>,
    pub(super) config: Arc<Config>,
    /// Of each model that is registered, as what, and which version was asked for.
    pub(super) registered: BTreeMap<String, (ModelId, ModelWish)>,
    pub(super) storage: Option<Arc<Storage>>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

/// That a version stays loaded, until this is dropped; of an ensemble, what it is made of.
pub(super) struct Kept {
    models: Arc<Models>,
    versions: Vec<Arc<ServedModel>>,
}

impl Kept {
    pub(super) fn new(models: &Arc<Models>, version: &Arc<ServedModel>) -> Self {
        let versions = models.with_parts(version);
        versions.iter().for_each(|version| models.keep(version, true));
        Self { models: Arc::clone(models), versions }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.versions.iter().for_each(|version| self.models.keep(version, false));
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

    /// Has a version be called so: fetches, loads and tries it first, if it is not there. What is on its way for that label is given up. Whoever
    /// cannot wait hears that it is under way.
    ///
    /// # Errors
    /// `model_not_found`, `conflict` if it does not serve, `draining`.
    pub(crate) async fn label(
        self: &Arc<Self>,
        named: &Arc<NamedModel>,
        label: Label,
        which: &str,
        until: Instant,
    ) -> Result<Rolled, CallError> {
        if !can_be_called(&label) {
            let text = format!("`{label}` is always the version with the highest number in the registry");
            return Err(CallError::new(ErrorCode::Conflict, text));
        }
        let (done, hear) = oneshot::channel();
        let (this, of, which) = (Arc::clone(self), Arc::clone(named), which.to_owned());
        // It goes on also if whoever asked leaves.
        self.tasks.spawn(async move {
            let rolled = this.roll(&of, label, &which).await;
            let _ = done.send(rolled.map_err(|refusal| refusal.into_error(&of, &which)));
        });
        match tokio::time::timeout_at(until.into(), hear).await {
            Ok(Ok(ended)) => ended.map(|()| Rolled::Done),
            Ok(Err(_)) => Err(scheduler::draining()),
            Err(_) => Ok(Rolled::UnderWay),
        }
    }

    /// Has no version be called so any more.
    ///
    /// # Errors
    /// `model_not_found` if none is; `conflict` for `stable`, or where versions go on changing.
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
        let number = named.overtake(label);
        let turn = tokio::time::timeout_at(until.into(), named.turn.lock()).await;
        let turn = turn.map_err(|_| {
            let text = format!("versions of model `{}` are changing; ask again when they have", named.name);
            CallError::new(ErrorCode::Conflict, text).with_retry_after(Duration::from_secs(1))
        });
        let _turn = turn.inspect_err(|_| named.forget(label, number))?;
        named.end_loading(label, number);
        if !named.call_nothing(label) {
            let text = format!("no version of model `{}` is called `{label}`", named.name);
            return Err(CallError::new(ErrorCode::ModelNotFound, text));
        }
        self.sweep(named);
        Ok(())
    }

    /// The same as [`Rollouts::label`] for who waits until it is done.
    pub(super) async fn roll(
        self: &Arc<Self>,
        named: &Arc<NamedModel>,
        label: Label,
        which: &str,
    ) -> Result<(), Refusal> {
        let number = named.overtake(&label);
        let _turn = tokio::select! {
            turn = named.turn.lock() => turn,
            () = self.stop.cancelled() => return Err(scheduler::draining().into()),
        };
        let brought = self.bring(named, &label, number, which).await;
        named.end_loading(&label, number);
        let rolled = match brought {
            Ok((new, _kept)) => {
                self.switch(named, &label, &new);
                Ok(())
            }
            Err(refusal) => Err(refusal),
        };
        if !self.stop.is_cancelled() {
            self.sweep(named);
        }
        rolled
    }

    /// Loads a version beside the others. It stays for as long as what is given with it.
    async fn bring(
        &self,
        named: &Arc<NamedModel>,
        label: &Label,
        number: u64,
        which: &str,
    ) -> Result<(Arc<ServedModel>, Kept), Refusal> {
        let (from, overtaken) = (named.find(label.as_str()), CancellationToken::new());
        let loading = |to: &str| {
            let rollout = Rollout {
                label: label.to_string(),
                to: super::refusal::shown(to),
                from: from.as_ref().map(|from| from.version.clone()),
                stage: Stage::Loading,
                overtaken: overtaken.clone(),
            };
            named.begin_loading(label, number, rollout)
        };
        if !loading(which) {
            return Err(Refusal::Overtaken);
        }
        let found = tokio::select! {
            found = self.target(named, which, &overtaken) => found,
            () = self.stop.cancelled() => Err(scheduler::draining().into()),
        };
        let new = found.inspect_err(|refusal| self.log(named, which, refusal))?;
        if !loading(&new.version) {
            return Err(Refusal::Overtaken);
        }
        let kept = Kept::new(&self.models, &new);
        // The one that serves does not make way for its successor.
        let serving = from.as_ref().filter(|from| from.resident().is_some());
        let _serving = serving.map(|from| Kept::new(&self.models, from));
        let error = tokio::select! {
            brought = self.models.bring(&new, Instant::now() + EVER) => match brought {
                Ok(()) => return Ok((new, kept)),
                Err(error) => error,
            },
            () = overtaken.cancelled() => return Err(Refusal::Overtaken),
            () = self.stop.cancelled() => return Err(scheduler::draining().into()),
        };
        let load = self.models.status(&new).and_then(|status| status.last_load);
        let refusal = match load.and_then(|load| load.failure) {
            Some(failure) if error.code == ErrorCode::ModelUnavailable => Refusal::Load(failure),
            _ => Refusal::Call(error),
        };
        self.log(named, which, &refusal);
        self.models.tell(&new, Happening::Refused, refusal.to_string());
        Err(refusal)
    }

    fn log(&self, named: &NamedModel, which: &str, refusal: &Refusal) {
        let reason = outrigger_backend::chain(refusal);
        let version = super::refusal::shown(which);
        tracing::error!(model = %named.name, version, reason, "a version does not take the place of another");
    }

    /// Has a version that is loaded be called so.
    fn switch(self: &Arc<Self>, named: &Arc<NamedModel>, label: &Label, new: &Arc<ServedModel>) {
        let start = new.outcomes.all();
        let Called { old, standing } = named.call(label, new, !self.config.rollout.watch.is_zero());
        let changed = old.as_ref().is_none_or(|old| !Arc::ptr_eq(old, new));
        if changed {
            let from = old.as_ref().map_or("none", |old| old.version.as_str());
            let text = format!("`{label}` was version {from} and is version {}", new.version);
            tracing::info!(model = %named.name, %label, from, to = %new.version, "a version is switched to");
            old.iter().for_each(|old| self.models.have_moved(old, new));
            self.models.tell(new, Happening::Switched, text);
        }
        match standing {
            Standing::Beside => {}
            // Calls have it again because somebody says so.
            Standing::Known => named.set_watch(None),
            Standing::Confirmed => {
                named.set_watch(None);
                let why = if changed { "it is not watched (rollout.watch)" } else { "somebody says so" };
                self.models.tell(new, Happening::Confirmed, why.into());
            }
            Standing::New(confirmed) => self.begin_watch(named, new, confirmed, start),
        }
    }

    /// Takes away what is called nothing any more; that its calls end is not waited for. For whoever has the turn.
    pub(super) fn sweep(self: &Arc<Self>, named: &NamedModel) {
        for version in named.take_unnamed(|version| self.is_named_by_a_node(version)) {
            let this = Arc::clone(self);
            self.tasks.spawn(async move { this.retire(version).await });
        }
    }

    /// Whether a node of an ensemble means this version by its own name.
    fn is_named_by_a_node(&self, version: &ServedModel) -> bool {
        let ensembles = self.models.versions().into_iter().filter_map(|model| model.ensemble.clone());
        ensembles.into_iter().any(|ensemble| ensemble.names(version))
    }

    /// Takes away versions that only an ensemble has named which is no more.
    async fn sweep_parts(self: &Arc<Self>, gone: &ServedModel) {
        for named in
            gone.graph().into_iter().flat_map(Graph::models).filter_map(|name| self.models.get(name).ok())
        {
            // Whoever changes versions now sees to the rest.
            let _turn = named.turn.lock().await;
            self.sweep(named);
        }
    }

    async fn retire(self: &Arc<Self>, version: Arc<ServedModel>) {
        let (models, retired) = (Arc::clone(&self.models), Arc::clone(&version));
        let gone = tokio::task::spawn_blocking(move || models.retire(&retired)).await;
        match gone {
            Ok(true) => {}
            // The replica ends.
            Ok(false) => return,
            Err(error) => {
                tracing::error!(%error, model = %version.name, "a version was not taken away");
                return;
            }
        }
        self.models.tell(&version, Happening::Retired, "nothing calls it any more".into());
        if let Some(source) = &version.source {
            self.let_go(&source.id).await;
        }
        Box::pin(self.sweep_parts(&version)).await;
    }
}
