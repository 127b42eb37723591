//! What is counted of calls by model. Names of models are the operator's; how many have series of their own is [`super::Shown`]'s.

use std::time::Instant;

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use super::Passage;

/// The family that says how much traffic models have.
pub(super) const REQUESTS: &str = "outrigger_model_requests_total";

/// From 100 µs to 100 s, as of all requests.
const SECONDS: &[f64] = &[
    1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0,
    100.0,
];

/// The calls of all models.
pub(super) struct ModelCalls {
    requests: IntCounterVec,
    seconds: HistogramVec,
}

/// Those of one model.
pub(crate) struct ModelSeries {
    answered: IntCounter,
    failed: IntCounter,
    seconds: Histogram,
}

impl ModelCalls {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let requests = Opts::new(REQUESTS, "Calls of models by how they ended: ok or error");
        let requests = IntCounterVec::new(requests, &["model", "outcome"])?;
        registry.register(Box::new(requests.clone()))?;
        let seconds = HistogramOpts::new(
            "outrigger_model_request_seconds",
            "Time from the head of a model's call to its answer",
        );
        let seconds = HistogramVec::new(seconds.buckets(SECONDS.into()), &["model"])?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self { requests, seconds })
    }

    /// Counts a call that is over.
    pub(super) fn count(&self, passage: &Passage, now: Instant) {
        let Some(model) = passage.named_model() else { return };
        if !passage.asked().is_some_and(|asked| asked.operation.work()) {
            return;
        }
        let series = model.series.get_or_init(|| self.of(&model.name));
        let answered = passage.answered();
        let failed = answered.is_none_or(|answered| answered.code.is_some());
        let counter = if failed { &series.failed } else { &series.answered };
        counter.inc();
        let end = answered.map_or(now, |answered| answered.at);
        series.seconds.observe(end.saturating_duration_since(passage.begun()).as_secs_f64());
    }

    fn of(&self, model: &str) -> ModelSeries {
        ModelSeries {
            answered: self.requests.with_label_values(&[model, "ok"]),
            failed: self.requests.with_label_values(&[model, "error"]),
            seconds: self.seconds.with_label_values(&[model]),
        }
    }
}
