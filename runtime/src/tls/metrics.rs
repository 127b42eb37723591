//! Metrics of TLS: handshakes by how they end, when certificates expire, and what came of new files.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::outcome::Outcome;
use super::server::Expiry;
use crate::config::TlsListener;

/// The metrics, in the replica's registry.
pub(super) struct Metrics {
    /// By listener, then by outcome; found by number.
    handshakes: Vec<(TlsListener, Vec<IntCounter>)>,
    server: IntGauge,
    authorities: IntGaugeVec,
    /// Files that were taken, and those that were not.
    pub(super) taken: IntCounter,
    pub(super) failed: IntCounter,
}

const AUTHORITIES: &str = "client_ca";

impl Metrics {
    pub(super) fn new(registry: &Registry, listeners: &[TlsListener]) -> Result<Self, prometheus::Error> {
        let handshakes = Opts::new("outrigger_tls_handshakes_total", "TLS handshakes by how they ended");
        let handshakes = IntCounterVec::new(handshakes, &["listener", "outcome"])?;
        registry.register(Box::new(handshakes.clone()))?;
        let expiry = Opts::new(
            "outrigger_tls_certificate_expiry_timestamp_seconds",
            "When the first certificate of a file expires, in seconds since 1970: tls.certificate is server, tls.client_ca client_ca",
        );
        let expiry = IntGaugeVec::new(expiry, &["certificate"])?;
        registry.register(Box::new(expiry.clone()))?;
        let reloads = Opts::new(
            "outrigger_tls_reloads_total",
            "New files of [tls] that came while the replica ran: taken, or failed and the old ones stay",
        );
        let reloads = IntCounterVec::new(reloads, &["outcome"])?;
        registry.register(Box::new(reloads.clone()))?;
        let row = |listener: &TlsListener| {
            let outcomes = Outcome::ALL.iter();
            let row = outcomes.map(|outcome| {
                handshakes.get_metric_with_label_values(&[listener.as_str(), outcome.as_str()])
            });
            Ok((*listener, row.collect::<Result<Vec<_>, prometheus::Error>>()?))
        };
        Ok(Self {
            handshakes: listeners.iter().map(row).collect::<Result<_, prometheus::Error>>()?,
            server: expiry.get_metric_with_label_values(&["server"])?,
            authorities: expiry,
            taken: reloads.get_metric_with_label_values(&["taken"])?,
            failed: reloads.get_metric_with_label_values(&["failed"])?,
        })
    }

    /// Counts a handshake.
    pub(super) fn handshake(&self, listener: TlsListener, outcome: Outcome) {
        let row = self.handshakes.iter().find(|(known, _)| *known == listener);
        let column = Outcome::ALL.iter().position(|known| *known == outcome);
        if let Some(counter) = row.zip(column).and_then(|((_, row), column)| row.get(column)) {
            counter.inc();
        }
    }

    /// Shows when what is in force expires.
    pub(super) fn show(&self, expiry: &Expiry) {
        self.server.set(expiry.server.0);
        if let Some(moment) = expiry.authorities
            && let Ok(gauge) = self.authorities.get_metric_with_label_values(&[AUTHORITIES])
        {
            gauge.set(moment.0);
        }
    }
}
