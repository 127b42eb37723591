//! What is counted and shown of models by device. Names of models and backends are the operator's and bounded by `limits.models` and
//! the configuration.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use outrigger_backend::Health;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry};

use super::{ModelState, Models};
use crate::metrics::{family, gauge};

/// From 1 ms to 500 s, two to three in a decade.
const LOAD: &[f64] =
    &[1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0, 500.0];

/// The metrics of all models.
#[derive(Clone)]
pub(crate) struct ModelMetrics {
    pub(super) counters: ModelCounters,
    /// Those that are loaded; nothing is shown before.
    models: Arc<OnceLock<Arc<Models>>>,
}

/// What models count in. They have no part in what shows them: that has them, and neither would ever go.
#[derive(Clone)]
pub(super) struct ModelCounters {
    runs: IntCounterVec,
    loads: IntCounterVec,
    evictions: IntCounter,
    fetches: IntCounter,
    fetched_bytes: IntCounter,
    rollouts: IntCounterVec,
    between: IntCounterVec,
    load_seconds: Histogram,
}

impl ModelMetrics {
    /// Registers everything.
    ///
    /// # Errors
    /// [`prometheus::Error`] if two metrics have one name.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let runs = Opts::new(
            "outrigger_model_runs_total",
            "Runs of models by device; a batch is one run; fallback: whether the device is not the first of the model's list",
        );
        let runs = IntCounterVec::new(runs, &["model", "device", "fallback"])?;
        registry.register(Box::new(runs.clone()))?;
        let loads = Opts::new(
            "outrigger_model_loads_total",
            "Loads of models after the start, by how they ended: ready or failed",
        );
        let loads = IntCounterVec::new(loads, &["outcome"])?;
        registry.register(Box::new(loads.clone()))?;
        let evictions = Opts::new("outrigger_model_evictions_total", "Models that made way for others");
        let evictions = IntCounter::with_opts(evictions)?;
        registry.register(Box::new(evictions.clone()))?;
        let fetches = IntCounter::new(
            "outrigger_model_fetches_total",
            "Models of which files were fetched after the start, with their first use",
        )?;
        registry.register(Box::new(fetches.clone()))?;
        let fetched_bytes = IntCounter::new(
            "outrigger_model_fetched_bytes_total",
            "Bytes that came from the storage for these; what was in the cache does not count",
        )?;
        registry.register(Box::new(fetched_bytes.clone()))?;
        let rollouts = Opts::new(
            "outrigger_model_rollouts_total",
            "Versions that were to take the place of others, by what became of that: switched, and then confirmed or returned, or refused",
        );
        let rollouts = IntCounterVec::new(rollouts, &["model", "outcome"])?;
        registry.register(Box::new(rollouts.clone()))?;
        let between = Opts::new(
            "outrigger_ensemble_tensors_total",
            "Tensors that went from node to node of an ensemble, by where: device, where both nodes are on it and keep them there, or host",
        );
        let between = IntCounterVec::new(between, &["ensemble", "place"])?;
        registry.register(Box::new(between.clone()))?;
        let load_seconds = HistogramOpts::new(
            "outrigger_model_load_seconds",
            "Time from when a model is first wanted until calls can have it",
        );
        let load_seconds = Histogram::with_opts(load_seconds.buckets(LOAD.into()))?;
        registry.register(Box::new(load_seconds.clone()))?;
        let models = Arc::default();
        registry.register(Box::new(DeviceCollector::new(Arc::clone(&models))?))?;
        Ok(Self {
            counters: ModelCounters {
                runs,
                loads,
                evictions,
                fetches,
                fetched_bytes,
                rollouts,
                between,
                load_seconds,
            },
            models,
        })
    }

    /// Shows these from now on.
    pub(crate) fn show(&self, models: &Arc<Models>) {
        // A replica is loaded once.
        let _ = self.models.set(Arc::clone(models));
    }
}

impl ModelCounters {
    /// The runs of an instance.
    pub(super) fn runs(&self, model: &str, device: &str, fallback: bool) -> IntCounter {
        self.runs.with_label_values(&[model, device, if fallback { "true" } else { "false" }])
    }

    /// The tensors between the nodes of an ensemble: those that stay on a device, and those of the host.
    pub(super) fn between(&self, ensemble: &str) -> [IntCounter; 2] {
        ["device", "host"].map(|place| self.between.with_label_values(&[ensemble, place]))
    }

    /// A model has been loaded, which took so many seconds.
    pub(super) fn loaded(&self, seconds: Option<f64>) {
        self.loads.with_label_values(&["ready"]).inc();
        seconds.iter().for_each(|seconds| self.load_seconds.observe(*seconds));
    }

    /// A model's files have been fetched, so many bytes of them from the storage.
    pub(super) fn fetched(&self, bytes: u64) {
        self.fetches.inc();
        self.fetched_bytes.inc_by(bytes);
    }

    /// Something has become of a version that was to take the place of another.
    pub(super) fn rolled(&self, model: &str, outcome: &str) {
        self.rollouts.with_label_values(&[model, outcome]).inc();
    }

    /// A model did not load.
    pub(super) fn failed(&self) {
        self.loads.with_label_values(&["failed"]).inc();
    }

    /// A model has made way.
    pub(super) fn evicted(&self) {
        self.evictions.inc();
    }
}

/// Shows what models hold and how devices are, as they said last.
struct DeviceCollector {
    models: Arc<OnceLock<Arc<Models>>>,
    descriptions: Vec<Desc>,
}

/// Name, help, labels.
const DEVICES: [(&str, &str, &[&str]); 5] = [
    ("outrigger_model_bytes", "Memory that models hold, by device", &["model", "device"]),
    (
        "outrigger_device_memory_bytes",
        "Memory of devices: total, free, held by models and buffers, and budget, what models may hold; what is not known is left out",
        &["device", "memory"],
    ),
    (
        "outrigger_device_health",
        "1 for what a device is: healthy, degraded, recovering or lost",
        &["device", "state"],
    ),
    ("outrigger_model_waiting", "Calls that wait for a model to be loaded", &[]),
    (
        "outrigger_models",
        "Models by state: registered, fetching, on_disk, queued, loading, warming, ready, draining or failed",
        &["state"],
    ),
];

impl DeviceCollector {
    fn new(models: Arc<OnceLock<Arc<Models>>>) -> Result<Self, prometheus::Error> {
        let describe = |(name, help, labels): &(&str, &str, &[&str])| {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new((*name).into(), (*help).into(), labels, std::collections::HashMap::new())
        };
        let descriptions = DEVICES.iter().map(describe).collect::<Result<_, _>>()?;
        Ok(Self { models, descriptions })
    }
}

impl Collector for DeviceCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (mut bytes, mut memory, mut health) = (Vec::new(), Vec::new(), Vec::new());
        // Versions of one model are together.
        let mut held: BTreeMap<(String, String), u64> = BTreeMap::new();
        let (mut waiting, mut states) = (Vec::new(), Vec::new());
        if let Some(models) = self.models.get() {
            let count =
                |(state, count): (ModelState, usize)| gauge(&[("state", state.as_str())], count as f64);
            waiting.push(gauge(&[], models.waiting() as f64));
            states.extend(models.states().into_iter().map(count));
            for model in models.versions().iter().filter_map(|model| model.resident()) {
                for device in model.devices() {
                    let name = device.to_string();
                    let on = model
                        .instances()
                        .filter(|one| one.place.as_ref().is_some_and(|place| place.device == *device));
                    let bytes = on.map(|instance| instance.bytes_held()).fold(0, u64::saturating_add);
                    let of_name = held.entry((name, model.name.clone())).or_default();
                    *of_name = bytes.saturating_add(*of_name);
                }
            }
            for ((device, model), held) in held {
                bytes.push(gauge(&[("device", &device), ("model", &model)], held as f64));
            }
            for loaded in models.devices.iter().filter(|loaded| loaded.threads.is_some()) {
                let status = loaded.health.status();
                let name = loaded.device.id.to_string();
                let sizes = status
                    .as_ref()
                    .map_or([0; 3], |status| [status.memory_total, status.memory_free, status.memory_held]);
                let known = ["total", "free", "held"].into_iter().zip(sizes).filter(|(_, size)| *size > 0);
                let budget = loaded.device.budget.map(|budget| ("budget", budget));
                memory.extend(
                    known
                        .chain(budget)
                        .map(|(what, size)| gauge(&[("device", &name), ("memory", what)], size as f64)),
                );
                let state = match status.map(|status| status.health) {
                    Some(Health::Healthy) => "healthy",
                    Some(Health::Degraded(_)) => "degraded",
                    Some(Health::Recovering(_)) => "recovering",
                    _ => "lost",
                };
                health.extend(["healthy", "degraded", "recovering", "lost"].map(|known| {
                    gauge(&[("device", &name), ("state", known)], f64::from(u8::from(known == state)))
                }));
            }
        }
        let families = DEVICES.iter().zip([bytes, memory, health, waiting, states]);
        families.map(|((name, help, _), metrics)| family(name, help, MetricType::GAUGE, metrics)).collect()
    }
}
