//! Ensembles: a call of one has leases of all that it is made of before it begins, so that nothing of it leaves meanwhile.
//!
//! What is not loaded is brought, at first by one load after the other as for any call, with nothing held. Only if something has made way again by then
//! a call holds what there is while it waits for the rest, and one call at a time does that: two that did could wait for each other's room for
//! ever. Whether all of it can be there together is asked before.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures_util::future::try_join_all;
use outrigger_backend::RunId;
use outrigger_protocol::error::{CallError, ErrorCode};
use prometheus::IntCounter;

use super::super::ModelsError;
use super::super::graph::{Ensemble, Gathered, GraphCounters, GraphInstance, Leaf, PLATFORM, Unfit};
use super::super::instance::{LoadedModel, ModelInstance};
use super::super::samples;
use super::super::served::{Door, Lease, ServedModel};
use super::Residency;
use super::accounts::Charges;
use super::calls::{SOON, retired};
use super::core::Want;
use super::history::{Happening, ModelEvent, Step};
use super::room::Failure;
use crate::config::LoadTime;
use crate::scheduler;

/// Leases of all of them, if all are loaded.
fn all_leased(leaves: &[Leaf]) -> Option<Vec<Lease>> {
    leaves.iter().map(|(_, leaf)| leaf.lease_itself()).collect()
}

fn late(model: &ServedModel) -> CallError {
    let text = format!("the models of ensemble `{}` are not loaded yet", model.name);
    CallError::new(ErrorCode::ModelUnavailable, text).with_retry_after(SOON)
}

impl Residency {
    /// A lease of an ensemble, with those of all that it is made of.
    ///
    /// # Errors
    /// As [`Residency::lease`], of any of them; and `model_unavailable` if it cannot be made of the versions that there are, or devices do
    /// not hold all of it together.
    pub(in crate::models) async fn lease_ensemble(
        self: &Arc<Self>,
        model: &ServedModel,
        is_meant: &(dyn Fn() -> bool + Sync),
        until: Instant,
    ) -> Result<Lease, CallError> {
        let (Some(ensemble), Some(own)) = (&model.ensemble, self.at(model.number)) else {
            return Err(retired(model));
        };
        let _counted = self.count_waiter()?;
        let _waiting = model.wait();
        loop {
            if let Some(lease) = model.lease() {
                return Ok(lease);
            }
            if self.stopping.load(Ordering::Acquire) {
                return Err(scheduler::draining());
            }
            if model.is_retired() || !is_meant() || !std::ptr::eq(Arc::as_ptr(&own), model) {
                return Err(retired(model));
            }
            if Instant::now() >= until {
                return Err(late(model));
            }
            let leaves = ensemble.leaves(&model.name);
            let leaves = leaves.map_err(|unfit| self.refused(model, ensemble, &[], &unfit))?;
            let Some(_held) = self.bring_together(model, &leaves, until).await? else { continue };
            let wired = match ensemble.wire(model) {
                Ok(wired) => wired,
                // Another version is meant since, which has never been loaded.
                Err(Unfit::Unknown(_)) => continue,
                Err(unfit) => return Err(self.refused(model, ensemble, &leaves, &unfit)),
            };
            for group in wired.groups.iter().chain([&own]) {
                if !self.assembled(group, until).await? {
                    break;
                }
            }
            // While all are still held: who let go of them first would have to gather them again.
            if let Some(lease) = model.lease() {
                return Ok(lease);
            }
        }
    }

    /// Leases of all models of an ensemble; nothing if other versions are meant meanwhile.
    async fn bring_together(
        self: &Arc<Self>,
        model: &ServedModel,
        leaves: &[Leaf],
        until: Instant,
    ) -> Result<Option<Vec<Lease>>, CallError> {
        if let Some(all) = all_leased(leaves) {
            return Ok(Some(all));
        }
        self.check_place(model, leaves).await?;
        if self.bring_each(model, leaves, until).await?.is_none() {
            return Ok(None);
        }
        if let Some(all) = all_leased(leaves) {
            return Ok(Some(all));
        }
        let turn = tokio::time::timeout_at(until.into(), self.gathering.lock()).await;
        let _turn = turn.map_err(|_| late(model))?;
        let each = leaves.iter().map(|(_, leaf)| self.bring_one(model, leaf, until));
        Ok(try_join_all(each).await?.into_iter().collect())
    }

    /// Has each of them loaded, and holds none; nothing if one is not meant any more.
    async fn bring_each(
        self: &Arc<Self>,
        model: &ServedModel,
        leaves: &[Leaf],
        until: Instant,
    ) -> Result<Option<()>, CallError> {
        let each = leaves.iter().map(|(_, leaf)| async move {
            Ok::<_, CallError>(self.bring_one(model, leaf, until).await?.map(drop))
        });
        Ok(try_join_all(each).await?.into_iter().collect())
    }

    async fn bring_one(
        self: &Arc<Self>,
        model: &ServedModel,
        leaf: &Arc<ServedModel>,
        until: Instant,
    ) -> Result<Option<Lease>, CallError> {
        match self.lease_uncounted(leaf, &|| true, until).await {
            Ok(lease) => Ok(Some(lease)),
            Err(_) if leaf.is_retired() => Ok(None),
            Err(error) => {
                let message = format!("ensemble `{}`: {}", model.name, error.message);
                Err(CallError { message: message.into(), ..error })
            }
        }
    }

    /// Whether devices hold all models of an ensemble together, as far as that can be told: else it is not tried.
    async fn check_place(self: &Arc<Self>, model: &ServedModel, leaves: &[Leaf]) -> Result<(), CallError> {
        let models: Vec<_> = leaves.iter().map(|(_, leaf)| Arc::clone(leaf)).collect();
        let this = Arc::clone(self);
        let place = tokio::task::spawn_blocking(move || this.have_place(&models)).await;
        let Ok(Err(unplaced)) = place else { return Ok(()) };
        let text = ModelsError::Together { name: model.name.clone(), unplaced }.to_string();
        if model.ensemble.as_ref().is_some_and(|ensemble| ensemble.refused(Some(&text))) {
            tracing::error!(model = %model.name, reason = text, "an ensemble cannot be had");
            drop(
                self.tell(model, Happening::Refused)
                    .with(|event: &mut ModelEvent| event.reason = Some(text.clone())),
            );
        }
        Err(CallError::new(ErrorCode::ModelUnavailable, text))
    }

    /// It cannot be made of the versions that there are. If one of those is watched which took the place of one that would do, that counts against it.
    fn refused(&self, model: &ServedModel, ensemble: &Ensemble, leaves: &[Leaf], unfit: &Unfit) -> CallError {
        let text = format!("ensemble `{}` cannot be had: {unfit}", model.name);
        if ensemble.refused(Some(&text)) {
            tracing::error!(model = %model.name, reason = %unfit, "an ensemble cannot be had with the versions that there are now");
            drop(
                self.tell(model, Happening::Refused)
                    .with(|event: &mut ModelEvent| event.reason = Some(text.clone())),
            );
        }
        let at_fault =
            leaves.iter().filter(|(named, leaf)| ensemble.did_with_the_one_before(model, named, leaf));
        at_fault.for_each(|(_, leaf)| leaf.outcomes.note(true));
        CallError::new(ErrorCode::ModelUnavailable, text)
    }

    /// Has an ensemble put together of which all models are loaded; says whether it is, which it is not if something else is meant meanwhile.
    async fn assembled(
        self: &Arc<Self>,
        model: &Arc<ServedModel>,
        until: Instant,
    ) -> Result<bool, CallError> {
        let Some(ensemble) = &model.ensemble else { return Ok(false) };
        loop {
            let mut changed = pin!(model.changed.notified());
            // From here on nothing is missed.
            changed.as_mut().enable();
            if model.lease_itself().is_some() {
                return Ok(true);
            }
            if self.stopping.load(Ordering::Acquire) {
                return Err(scheduler::draining());
            }
            let Ok(Some(gathered)) = ensemble.gather(model) else { return Ok(false) };
            // Another has taken its place: the wiring is made anew.
            if model.is_retired() {
                return Ok(false);
            }
            match self.want(model)? {
                Want::Ready => continue,
                Want::Assemble => {
                    let (this, model) = (Arc::clone(self), Arc::clone(model));
                    // It goes on also if whoever asked leaves.
                    drop(tokio::task::spawn_blocking(move || this.assemble(&model, gathered)));
                }
                Want::Loading { .. } | Want::Failed { .. } => drop(gathered),
            }
            tokio::time::timeout_at(until.into(), changed).await.map_err(|_| late(model))?;
        }
    }

    fn assemble(&self, model: &Arc<ServedModel>, gathered: Gathered) {
        // A panic is a bug of ours. It costs this, not the thread.
        let put = catch_unwind(AssertUnwindSafe(|| self.put_together(model, gathered)));
        self.end(model, put.unwrap_or(Err(Failure::Broken)));
    }

    /// Tries an ensemble with its samples, and shows it to calls.
    fn put_together(&self, model: &Arc<ServedModel>, gathered: Gathered) -> Result<u64, Failure> {
        let (Some(ensemble), false) = (&model.ensemble, model.is_retired()) else {
            return Err(Failure::Unwanted);
        };
        let (wanted, info) = (&model.wanted, gathered.info());
        if let Some(manifest) = &wanted.manifest {
            let failed = |problem| ModelsError::Manifest { path: manifest.path.clone(), problem };
            manifest.check(&info).map_err(failed)?;
        }
        self.history.over(model.number, Step::Load);
        self.residents.lock().warming(model.number);
        let [on_device, on_host] = self.counters.models.between(&model.name);
        // Samples are not counted.
        let runs = IntCounter::new("samples", "samples").map_err(|_| Failure::Broken)?;
        let id = RunId::MAX.get().saturating_sub(model.number as u64);
        let instance = GraphInstance::new(
            Arc::new(gathered),
            RunId::new(id).unwrap_or(RunId::MAX),
            self.config.limits.answer,
        );
        let instance = ModelInstance::new(&model.name, Arc::clone(&info), Arc::new(instance), None, runs);
        samples::run(wanted, instance, &self.config.limits).map_err(|trouble| {
            let (sample, problem) = match trouble {
                samples::Trouble::Device(error) => ("a sample".to_owned(), error.to_string()),
                samples::Trouble::Sample { sample, problem } => (sample, problem),
            };
            ModelsError::Sample { name: model.name.clone(), device: "its models".into(), sample, problem }
        })?;
        // It is put together again after it was unloaded.
        let _ = ensemble.counters.set(GraphCounters { on_device, on_host });
        let loaded = LoadedModel {
            name: wanted.name.clone(),
            version: wanted.version.clone(),
            platform: PLATFORM.into(),
            info,
            first: None,
            others: Vec::new(),
            identity: model.identity(),
            keeps_answers: wanted.cache,
            outcomes: Some(Arc::clone(&model.outcomes)),
            statistics: Some(Arc::clone(&model.statistics)),
            door: Door::new(Arc::clone(&self.residents)),
        };
        self.history.over(model.number, Step::Warm);
        self.history.ended(model.number, Ok(0));
        model.put(Arc::new(loaded));
        self.residents.lock().loaded(model.number, Charges::new(), self.now());
        Ok(0)
    }

    /// Puts those together, at the start, whose models are loaded by then, and holds the others against what devices hold.
    ///
    /// # Errors
    /// [`ModelsError`], for the first that cannot be had.
    pub(super) fn assemble_at_start(&self) -> Result<(), ModelsError> {
        let served = self.served();
        let ensembles = || served.iter().filter_map(|model| Some((model, model.ensemble.as_ref()?)));
        let mut has_changed = true;
        while std::mem::take(&mut has_changed) {
            for (model, ensemble) in ensembles() {
                if model.load == LoadTime::Use || model.resident().is_some() {
                    continue;
                }
                let gathered = match ensemble.gather(model) {
                    Ok(Some(gathered)) => gathered,
                    Ok(None) | Err(Unfit::Unknown(_)) => continue,
                    Err(unfit) => return Err(ensemble.wrong(&unfit)),
                };
                let began = Instant::now();
                self.history.asked(model.number);
                self.residents.lock().want(model.number, self.now());
                match self.put_together(model, gathered) {
                    Ok(_) => {
                        let took = began.elapsed();
                        tracing::info!(model = %model.name, ?took, "ensemble ready");
                        self.residents.lock().pin(model.number, model.load == LoadTime::Pinned);
                    }
                    Err(Failure::Models(error)) => return Err(error),
                    Err(failure) => {
                        return Err(ensemble.wrong(&Unfit::Graph(outrigger_backend::chain(&failure))));
                    }
                }
                has_changed = true;
            }
        }
        for (model, ensemble) in ensembles().filter(|(model, _)| model.resident().is_none()) {
            // What versions lack has been told.
            let leaves = ensemble.leaves(&model.name).unwrap_or_default();
            let models: Vec<_> = leaves.into_iter().map(|(_, leaf)| leaf).collect();
            let name = || model.name.clone();
            self.have_place(&models).map_err(|unplaced| ModelsError::Together { name: name(), unplaced })?;
        }
        Ok(())
    }

    /// The models that an ensemble is made of just now; none of another.
    pub(super) fn parts(&self, model: &ServedModel) -> Vec<Arc<ServedModel>> {
        let leaves = model.ensemble.as_ref().and_then(|ensemble| ensemble.leaves(&model.name).ok());
        leaves.unwrap_or_default().into_iter().map(|(_, leaf)| leaf).collect()
    }
}
