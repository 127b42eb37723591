//! Puts ensembles together whose models are all loaded: tried with their samples, in no queue, by whoever needs them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use outrigger_backend::RunId;
use outrigger_protocol::error::CallError;
use prometheus::IntCounter;

use super::super::ModelsError;
use super::super::graph::{Gathered, GraphCounters, GraphInstance, PLATFORM, Unfit};
use super::super::instance::{LoadedModel, ModelInstance};
use super::super::lease::Door;
use super::super::samples;
use super::super::served::ServedModel;
use super::Residency;
use super::accounts::Charges;
use super::core::Want;
use super::ensembles::late;
use super::history::Step;
use super::room::Failure;
use crate::config::LoadTime;
use crate::scheduler;

impl Residency {
    /// Has an ensemble put together of which all models are loaded; says whether it is, which it is not if something else is meant meanwhile.
    pub(super) async fn assembled(
        self: &Arc<Self>,
        model: &Arc<ServedModel>,
        until: Instant,
    ) -> Result<bool, CallError> {
        let Some(ensemble) = &model.ensemble else { return Ok(false) };
        loop {
            let mut changed = pin!(model.changed.notified());
            // From here on nothing is missed.
            changed.as_mut().enable();
            if model.hold().is_some() {
                return Ok(true);
            }
            if self.stopping.load(Ordering::Acquire) {
                return Err(scheduler::draining());
            }
            let Ok(Some(gathered)) = ensemble.gather(model) else { return Ok(false) };
            // Another has taken its place, and the wiring is made anew; or its files have left since, for which nothing is held.
            if model.is_retired() || !self.residents.lock().is_here(model.number) {
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
        let instance =
            GraphInstance::new(Arc::new(gathered), RunId::new(id).unwrap_or(RunId::MAX), &self.config.limits);
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
            keeping: wanted.cache,
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
            let members = ensemble.members(&model.name).unwrap_or_default();
            let models: Vec<_> = members.leaves.into_iter().map(|(_, leaf)| leaf).collect();
            let name = || model.name.clone();
            self.have_place(&models).map_err(|unplaced| ModelsError::Together { name: name(), unplaced })?;
        }
        Ok(())
    }
}
