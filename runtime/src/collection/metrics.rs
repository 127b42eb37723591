//! What is shown of collections when somebody asks.

use std::collections::HashMap;
use std::sync::Arc;

use outrigger_collect::{Reason, Status};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Metric, MetricFamily, MetricType};

use super::Collecting;
use crate::metrics::{counter, family, gauge};

/// Shows collections; it has no values of its own that could lag behind.
pub(super) struct Shown {
    collecting: Arc<Collecting>,
    descriptions: Vec<Desc>,
}

/// One number of each collection: name, help, whether it only grows, and where it comes from.
type Row = (&'static str, &'static str, bool, fn(&Status) -> f64);

const ROWS: &[Row] = &[
    (
        "outrigger_collect_offered_total",
        "Records of the collection that were offered: sampled out, dropped, persisted or pending, each exactly one of these",
        true,
        |status| status.counts.offered as f64,
    ),
    (
        "outrigger_collect_recovered_total",
        "Records, of those offered, that an earlier process had left on disk",
        true,
        |status| status.counts.recovered as f64,
    ),
    ("outrigger_collect_sampled_out_total", "Records that sampling left out", true, |status| {
        status.counts.sampled_out as f64
    }),
    ("outrigger_collect_persisted_total", "Records that are in blob storage", true, |status| {
        status.counts.persisted as f64
    }),
    (
        "outrigger_collect_pending",
        "Records in memory or on disk that are not in blob storage",
        false,
        |status| status.counts.pending as f64,
    ),
    (
        "outrigger_collect_lag_seconds",
        "How long the oldest record has been waiting that is not in blob storage",
        false,
        |status| status.lag.unwrap_or_default().as_secs_f64(),
    ),
    ("outrigger_collect_memory_bytes", "Bytes that wait in memory to be written to disk", false, |status| {
        status.ring_bytes as f64
    }),
    ("outrigger_collect_disk_bytes", "Bytes of the collection on disk", false, |status| {
        status.disk_bytes as f64
    }),
    (
        "outrigger_collect_uploads_total",
        "Objects written to blob storage, each time they were",
        true,
        |status| status.uploads as f64,
    ),
    ("outrigger_collect_uploaded_bytes_total", "Bytes of these", true, |status| status.uploaded_bytes as f64),
    (
        "outrigger_collect_upload_failures_total",
        "Attempts to write to blob storage that failed",
        true,
        |status| status.upload_failures as f64,
    ),
    ("outrigger_collect_disk_failures_total", "Attempts to write to disk that failed", true, |status| {
        status.disk_failures as f64
    }),
    ("outrigger_collect_stalled", "1 while there is no room on disk", false, |status| {
        f64::from(u8::from(status.stalled))
    }),
];

const DROPPED: (&str, &str) = ("outrigger_collect_dropped_total", "Records that were dropped, by why");
const HELD: (&str, &str) = (
    "outrigger_collect_held_bytes",
    "Bytes of requests and answers that are held while their calls go on, of collect.bodies",
);

const TRUNCATED: (&str, &str) = (
    "outrigger_collect_truncated_total",
    "Requests and answers of which only the beginning is kept, by which of collect.body and collect.bodies was too small",
);

impl Shown {
    pub(super) fn new(collecting: Arc<Collecting>) -> Result<Self, prometheus::Error> {
        let describe = |name: &str, help: &str, labels: &[&str]| {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new(name.into(), help.into(), labels, HashMap::new())
        };
        let mut descriptions =
            vec![describe(DROPPED.0, DROPPED.1, &["collection", "reason"])?, describe(HELD.0, HELD.1, &[])?];
        descriptions.push(describe(TRUNCATED.0, TRUNCATED.1, &["limit"])?);
        for (name, help, ..) in ROWS {
            descriptions.push(describe(name, help, &["collection"])?);
        }
        Ok(Self { collecting, descriptions })
    }
}

impl Collector for Shown {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Once for all of them, so that they add up.
        let all = self.collecting.status();
        let mut families: Vec<_> = ROWS
            .iter()
            .map(|(name, help, grows, value)| {
                let shown = |status: &Status| metric(&[("collection", &status.name)], *grows, value(status));
                family(name, help, kind(*grows), all.iter().map(shown).collect())
            })
            .collect();
        let dropped = all.iter().flat_map(|status| {
            Reason::ALL.iter().map(move |reason| (status, reason, status.counts.dropped(*reason)))
        });
        let dropped = dropped.filter(|(_, _, count)| *count > 0).map(|(status, reason, count)| {
            counter(&[("collection", &status.name), ("reason", reason.name())], count as f64)
        });
        families.push(family(DROPPED.0, DROPPED.1, MetricType::COUNTER, dropped.collect()));
        let held = gauge(&[], self.collecting.held.bytes() as f64);
        families.push(family(HELD.0, HELD.1, MetricType::GAUGE, vec![held]));
        let cut = self.collecting.held.cut().map(|(limit, count)| counter(&[("limit", limit)], count as f64));
        families.push(family(TRUNCATED.0, TRUNCATED.1, MetricType::COUNTER, cut.into()));
        families
    }
}

fn kind(grows: bool) -> MetricType {
    if grows { MetricType::COUNTER } else { MetricType::GAUGE }
}

fn metric(labels: &[(&str, &str)], grows: bool, value: f64) -> Metric {
    if grows { counter(labels, value) } else { gauge(labels, value) }
}
