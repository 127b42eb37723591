//! What is counted and shown of an upstream.

use http::StatusCode;
use outrigger_protocol::error::ErrorCode;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// The metrics of an upstream.
pub(crate) struct UpstreamMetrics {
    /// 1 while it is ready.
    pub(super) ready: IntGauge,
    /// 1 while it is alive, as far as that is asked.
    pub(super) live: IntGauge,
    /// Connections, those that calls have and those that are kept.
    pub(super) connections: IntGauge,
    /// Connections that were made for calls.
    pub(super) connects: IntCounter,
    answers: IntCounterVec,
    failures: IntCounterVec,
}

impl UpstreamMetrics {
    /// Registers everything.
    ///
    /// # Errors
    /// [`prometheus::Error`] if two metrics have one name.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let counters = |name: &str, help: &str, label: &str| -> Result<IntCounterVec, prometheus::Error> {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let connects = IntCounter::new(
            "outrigger_upstream_connects_total",
            "Connections that were made to the upstream for calls; the others were there already",
        )?;
        registry.register(Box::new(connects.clone()))?;
        let live = gauge("outrigger_upstream_live", "1 while the upstream is alive, as far as it is asked")?;
        live.set(1);
        Ok(Self {
            ready: gauge("outrigger_upstream_ready", "1 while the upstream is ready")?,
            live,
            connections: gauge("outrigger_upstream_connections", "Connections to the upstream for calls")?,
            connects,
            answers: counters(
                "outrigger_upstream_answers_total",
                "Answers of the upstream by the class of their status, broken off ones among them",
                "status",
            )?,
            failures: counters(
                "outrigger_upstream_failures_total",
                "Calls that the upstream did not answer to their end, by code",
                "code",
            )?,
        })
    }

    /// An answer has begun.
    pub(super) fn answered(&self, status: StatusCode) {
        let class = match status.as_u16() / 100 {
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            5 => "5xx",
            _ => "other",
        };
        self.answers.with_label_values(&[class]).inc();
    }

    /// A call has failed.
    pub(super) fn failed(&self, code: ErrorCode) {
        self.failures.with_label_values(&[code.as_str()]).inc();
    }
}
