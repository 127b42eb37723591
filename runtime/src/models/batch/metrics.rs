//! What is counted of batches, by model. Names of models are the operator's and bounded by `limits.models`.

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

const ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// The metrics of all models that batch.
#[derive(Clone)]
pub(crate) struct BatchMetrics {
    rows: HistogramVec,
    bisections: IntCounterVec,
    unsplit: IntCounterVec,
    skipped: IntCounterVec,
}

/// Those of one model.
pub(super) struct ModelMetrics {
    pub(super) rows: Histogram,
    pub(super) bisections: IntCounter,
    pub(super) unsplit: IntCounter,
    pub(super) left: IntCounter,
    pub(super) late: IntCounter,
}

impl BatchMetrics {
    /// Registers everything.
    ///
    /// # Errors
    /// [`prometheus::Error`] if two metrics have one name.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let rows = HistogramOpts::new("outrigger_batch_rows", "Rows of each run of a model that batches");
        let rows = HistogramVec::new(rows.buckets(ROWS.into()), &["model"])?;
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        registry.register(Box::new(rows.clone()))?;
        Ok(Self {
            rows,
            bisections: counter(
                "outrigger_batch_bisections_total",
                "Batches that failed and were run again in two halves",
                &["model"],
            )?,
            unsplit: counter(
                "outrigger_batch_unsplit_total",
                "Batches whose outputs were not a row for each row, and were run again one by one",
                &["model"],
            )?,
            skipped: counter(
                "outrigger_batch_skipped_total",
                "Calls that were not run because their caller had left or their deadline was over",
                &["model", "reason"],
            )?,
        })
    }

    pub(super) fn model(&self, name: &str) -> ModelMetrics {
        ModelMetrics {
            rows: self.rows.with_label_values(&[name]),
            bisections: self.bisections.with_label_values(&[name]),
            unsplit: self.unsplit.with_label_values(&[name]),
            left: self.skipped.with_label_values(&[name, "left"]),
            late: self.skipped.with_label_values(&[name, "late"]),
        }
    }
}
