//! How models are, for who looks at the replica.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use super::super::graph::{Ensemble, EnsembleNode, Unfit};
use super::super::served::ServedModel;
use super::Residency;
use super::history::{Happening, Timeline};
use super::state::ModelState;
use super::thrash::Thrash;

/// How a model is.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct ModelStatus {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Whether it is loaded.
    pub state: ModelState,
    /// When it is loaded: `start`, `use` or `pinned`.
    pub load: &'static str,
    /// Whether it never makes way.
    pub pinned: bool,
    /// Its format and backend; nothing while it is not loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// The devices that it is on.
    pub devices: Vec<String>,
    /// The nodes that it has, if it is an ensemble.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<EnsembleNode>,
    /// Why calls of an ensemble were refused last, as long as none has been answered since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Where the steps before and after it run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
    /// Bytes that it holds.
    pub bytes_held: u64,
    /// Calls that have had it, ever.
    pub uses: u64,
    /// Seconds since the last one came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<f64>,
    /// How its last load went, or goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_load: Option<Timeline>,
    /// Seconds until it is likely to be loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<f64>,
}

impl Residency {
    /// How a model is.
    pub(in crate::models) fn status(&self, model: &ServedModel) -> ModelStatus {
        let parts = self.parts(model);
        let (phase, pinned, eta) = {
            let core = self.residents.lock();
            // An ensemble is as far as the least of what it is made of.
            let phases = parts.iter().map(|part| core.phase(part.number));
            let phase = phases.chain([core.phase(model.number)]).min_by_key(|phase| phase.rank());
            let all = parts.iter().map(|part| part.number).chain([model.number]);
            let under_way = all.filter(|number| core.phase(*number).is_under_way());
            let eta = under_way.map(|number| core.eta(number, self.now())).max();
            (phase.unwrap_or(ModelState::OnDisk), core.is_pinned(model.number), eta)
        };
        let (resident, usage) = (model.resident(), model.usage());
        let loaded: Vec<_> =
            resident.iter().cloned().chain(parts.iter().filter_map(|part| part.resident())).collect();
        let mut devices: Vec<String> = Vec::new();
        for device in loaded.iter().flat_map(|loaded| loaded.devices()).map(ToString::to_string) {
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        let ensemble = model.ensemble.as_ref();
        let idle = || self.now().saturating_sub(usage.last).as_secs_f64();
        ModelStatus {
            name: model.name.clone(),
            version: model.version.clone(),
            state: phase,
            load: model.load.as_str(),
            pinned,
            platform: resident.as_ref().map(|resident| resident.platform.clone()),
            devices,
            nodes: ensemble.map(|ensemble| ensemble.parts(&model.name)).unwrap_or_default(),
            refused: ensemble.and_then(|ensemble| ensemble.refusal()).map(|why| why.to_string()),
            steps: resident.as_ref().map(|resident| resident.steps()).unwrap_or_default(),
            bytes_held: resident.as_ref().map_or(0, |resident| resident.bytes_held()),
            uses: usage.uses,
            idle_seconds: (usage.uses > 0).then(idle),
            last_load: self.history.timeline(model.number),
            eta_seconds: eta.map(|eta: Duration| eta.as_secs_f64()),
        }
    }

    /// Whether calls of a model are answered: it is loaded, or is as soon as one needs it; so is all that it is made of.
    pub(in crate::models) fn can_be_had(&self, model: &ServedModel) -> bool {
        // Of what cannot be wired, because its models do not go together, there is none.
        let is_fit =
            |ensemble: &Arc<Ensemble>| matches!(ensemble.wire(model), Ok(_) | Err(Unfit::Unknown(_)));
        if !model.ensemble.as_ref().is_none_or(is_fit) {
            return false;
        }
        let parts = self.parts(model);
        let core = self.residents.lock();
        parts.iter().map(Arc::as_ref).chain([model]).all(|one| match core.phase(one.number) {
            ModelState::Failed => !core.is_barred(one.number, self.now()),
            ModelState::Ready => one.resident().is_none_or(|resident| resident.is_able()),
            _ => true,
        })
    }

    /// Whether a model is loaded, and all that it is made of.
    pub(in crate::models) fn is_loaded(&self, model: &ServedModel) -> bool {
        model.resident().is_some() && self.parts(model).iter().all(|part| part.resident().is_some())
    }

    /// Calls that wait for a model to be loaded.
    pub(in crate::models) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How many models there are in each state.
    pub(in crate::models) fn states(&self) -> Vec<(ModelState, usize)> {
        let core = self.residents.lock();
        let mut states: Vec<_> = ModelState::ALL.into_iter().map(|state| (state, 0)).collect();
        for model in self.served().iter().filter(|model| !model.is_retired()) {
            let state = core.phase(model.number);
            states.iter_mut().filter(|(known, _)| *known == state).for_each(|(_, count)| *count += 1);
        }
        states
    }

    /// Models that did not load when that was last tried, with the reason.
    pub(in crate::models) fn failures(&self) -> Vec<(String, String)> {
        let core = self.residents.lock();
        let served = self.served();
        let failed = served.iter().filter(|model| !model.is_retired()).filter_map(|model| {
            let reason = core.failure(model.number)?;
            Some((model.name.clone(), reason.to_string()))
        });
        failed.collect()
    }

    /// Warns of models that are loaded again and again.
    pub(super) fn warn_of(&self, thrash: &Thrash, last: &ServedModel) {
        let budgets: Vec<_> = thrash
            .budgets
            .iter()
            .filter_map(|(device, bytes)| {
                let backend = &self.devices.get(*device)?.0.id.backend;
                Some(format!("backends.{backend}.memory = {}MiB", bytes.div_ceil(1 << 20)))
            })
            .collect();
        let suggestion = match budgets.as_slice() {
            [] => String::new(),
            budgets => format!("; with {} all would stay that were used", budgets.join(", ")),
        };
        let text = format!(
            "{} of {} loads in {:?} were of models that had just made way, and loading took {:?}{suggestion}",
            thrash.reloads, thrash.loads, thrash.window, thrash.loading
        );
        tracing::warn!("{text}");
        drop(self.tell(last, Happening::Thrashing).with(|event| event.reason = Some(text)));
    }
}
