//! Prometheus metrics: counters per operation, and the busy signal as it stands when asked.

use std::sync::{Arc, Weak};
use std::time::Duration;

use outrigger_auth::Policy;
use outrigger_protocol::error::ErrorCode;
use outrigger_protocol::operation::Operation;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
};

use crate::busy::Busy;
use crate::concerns::Part;
use crate::models::{BatchMetrics, ModelMetrics};
use crate::replica::Replica;
use crate::telemetry::Shown;

/// From 100 µs to 100 s, three to a decade.
const LATENCY: &[f64] = &[
    1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0,
    100.0,
];

/// From 5 µs, which is a lane that was idle, to 50 s.
const WAIT: &[f64] =
    &[5e-6, 1e-5, 1.5e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 2e-2, 0.1, 0.5, 2.0, 10.0, 50.0];

/// The metrics of a replica, in a registry of their own.
pub struct Metrics {
    registry: Registry,
    /// By operation, then by code with "ok" first; found by number, since every request counts here.
    requests: Vec<Vec<IntCounter>>,
    seconds: Vec<Histogram>,
    pub(crate) batches: BatchMetrics,
    pub(crate) models: ModelMetrics,
    /// From a call's arrival at the scheduler until a lane begins with it.
    pub(crate) waits: Histogram,
    shown: Shown,
}

impl Metrics {
    /// Registers everything. So many models have series of their own.
    ///
    /// # Errors
    /// [`prometheus::Error`] if two metrics have one name: a mistake in this file.
    pub fn new(busy: Arc<Busy>, policy: Arc<Policy>, models: usize) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let total = Opts::new(
            "outrigger_requests_total",
            "Requests on the score listener by operation and outcome code",
        );
        let total = IntCounterVec::new(total, &["operation", "code"])?;
        registry.register(Box::new(total.clone()))?;
        let seconds =
            HistogramOpts::new("outrigger_request_seconds", "Time from a request's head to its answer");
        let seconds = HistogramVec::new(seconds.buckets(LATENCY.into()), &["operation"])?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(BusyCollector::new(busy)?))?;
        registry.register(Box::new(CallerCollector::new(policy)?))?;
        let batches = BatchMetrics::new(&registry)?;
        let of_models = ModelMetrics::new(&registry)?;
        let waits = HistogramOpts::new(
            "outrigger_wait_seconds",
            "Time that calls wait until a lane begins with them",
        );
        let waits = Histogram::with_opts(waits.buckets(WAIT.into()))?;
        registry.register(Box::new(waits.clone()))?;

        let codes: Vec<&str> =
            std::iter::once("ok").chain(ErrorCode::ALL.iter().map(|code| code.as_str())).collect();
        let mut requests = Vec::new();
        let mut histograms = Vec::new();
        for operation in Operation::ALL {
            let row =
                codes.iter().map(|code| total.get_metric_with_label_values(&[operation.as_str(), code]));
            requests.push(row.collect::<Result<Vec<_>, _>>()?);
            histograms.push(seconds.get_metric_with_label_values(&[operation.as_str()])?);
        }
        Ok(Self {
            registry,
            requests,
            seconds: histograms,
            batches,
            models: of_models,
            waits,
            shown: Shown::new(models),
        })
    }

    /// Shows what is wrong with a replica.
    ///
    /// # Errors
    /// [`prometheus::Error`] if two metrics have one name.
    pub(crate) fn show_degraded(&self, replica: Weak<Replica>) -> Result<(), prometheus::Error> {
        let (name, help) = DEGRADED;
        let labels = vec!["part".to_owned()];
        let description = Desc::new(name.into(), help.into(), labels, std::collections::HashMap::new())?;
        self.registry.register(Box::new(DegradedCollector { replica, description }))
    }

    /// Where parts that not every replica has show theirs.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Counts a request that is answered.
    pub fn request(&self, operation: Operation, code: Option<ErrorCode>, took: Duration) {
        let Some(row) = Operation::ALL.iter().position(|known| *known == operation) else { return };
        let column = code
            .and_then(|code| ErrorCode::ALL.iter().position(|known| *known == code))
            .map_or(0, |at| at + 1);
        if let Some(counter) = self.requests.get(row).and_then(|row| row.get(column)) {
            counter.inc();
        }
        if let Some(histogram) = self.seconds.get(row) {
            histogram.observe(took.as_secs_f64());
        }
    }

    /// Everything in Prometheus's text format. Rows that never counted are left out.
    ///
    /// # Errors
    /// [`prometheus::Error`] if a component gives a metric without a value.
    pub fn encode(&self) -> Result<String, prometheus::Error> {
        let families = self.gather();
        TextEncoder::new().encode_to_string(&families)
    }

    /// The same as families of metrics: those of many models summed up, and without rows that never counted.
    pub(crate) fn gather(&self) -> Vec<MetricFamily> {
        let mut families = self.registry.gather();
        self.shown.fold(&mut families);
        for family in &mut families {
            if family.name() == "outrigger_requests_total" {
                let used = family
                    .take_metric()
                    .into_iter()
                    .filter(|metric| metric.get_counter().get_value() > 0.0)
                    .collect();
                family.set_metric(used);
            } else if ["outrigger_request_seconds", "outrigger_phase_seconds"].contains(&family.name()) {
                let used = family
                    .take_metric()
                    .into_iter()
                    .filter(|metric| metric.get_histogram().get_sample_count() > 0)
                    .collect();
                family.set_metric(used);
            }
        }
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}

/// Shows the busy signal; it has no values of its own that could lag behind.
struct BusyCollector {
    busy: Arc<Busy>,
    descriptions: Vec<Desc>,
}

/// Name, help, and whether it only grows.
const BUSY: &[(&str, &str, bool)] = &[
    ("outrigger_busy", "1 while at least one call is executing or queued", false),
    ("outrigger_slots", "Calls that the replica accepts at once", false),
    ("outrigger_executing", "Calls that occupy a slot", false),
    ("outrigger_queued", "Calls that wait for a slot", false),
    ("outrigger_utilisation", "Occupied slots over slots", false),
    ("outrigger_oldest_wait_seconds", "How long the call at the head of the queue has waited", false),
    ("outrigger_arrived_total", "Calls that came, refused ones counted in", true),
    ("outrigger_refused_total", "Calls that were refused", true),
    ("outrigger_answered_total", "Calls that were answered with a result", true),
    ("outrigger_failed_total", "Calls that were admitted and failed", true),
    ("outrigger_cancelled_total", "Calls whose client went away", true),
    ("outrigger_expired_total", "Calls whose deadline was over before they were executed", true),
    ("outrigger_service_seconds_total", "Time spent in slots by all finished calls", true),
    ("outrigger_service_calls_total", "Finished calls that outrigger_service_seconds_total counts", true),
    ("outrigger_busy_seconds_total", "Time during which the replica was busy", true),
    ("outrigger_call_seconds_total", "Calls executing or queued, integrated over the clock", true),
    ("outrigger_load", "Calls executing or queued over slots, mean of the last second or more", false),
    ("outrigger_watchers", "Readers of the busy signal that stay connected, of observe.watchers", false),
    ("outrigger_uptime_seconds_total", "Time since the replica started", true),
    ("outrigger_loading", "1 while a model or worker is being loaded", false),
    ("outrigger_draining", "1 while the replica is ending", false),
    ("outrigger_ready", "1 while the replica takes calls", false),
    ("outrigger_body_bytes", "Memory that request bodies hold, of limits.bodies", false),
    (
        "outrigger_answer_bytes",
        "Memory that answers hold which clients have not taken, of limits.answers",
        false,
    ),
    ("outrigger_epoch", "When the replica started, in milliseconds since 1970", false),
];

impl BusyCollector {
    fn new(busy: Arc<Busy>) -> Result<Self, prometheus::Error> {
        let describe = |(name, help, _): &(&str, &str, bool)| {
            Desc::new((*name).into(), (*help).into(), Vec::new(), std::collections::HashMap::new())
        };
        Ok(Self { busy, descriptions: BUSY.iter().map(describe).collect::<Result<_, _>>()? })
    }
}

impl Collector for BusyCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let seen = self.busy.snapshot();
        let flag = |flag: bool| f64::from(u8::from(flag));
        let values = [
            flag(seen.busy),
            seen.slots.into(),
            seen.executing.into(),
            seen.queued.into(),
            seen.utilisation,
            seen.oldest_wait_seconds.unwrap_or(0.0),
            seen.arrived as f64,
            seen.refused as f64,
            seen.answered as f64,
            seen.failed as f64,
            seen.cancelled as f64,
            seen.expired as f64,
            seen.service_seconds_sum,
            seen.service_count as f64,
            seen.busy_seconds,
            seen.call_seconds,
            seen.load(),
            self.busy.watchers() as f64,
            seen.uptime_seconds,
            flag(seen.loading),
            flag(seen.draining),
            flag(seen.ready),
            self.busy.bodies() as f64,
            self.busy.unsent() as f64,
            seen.epoch as f64,
        ];
        let show = |((name, help, grows), value): (&(&str, &str, bool), f64)| match grows {
            true => family(name, help, MetricType::COUNTER, vec![counter(&[], value)]),
            false => family(name, help, MetricType::GAUGE, vec![gauge(&[], value)]),
        };
        BUSY.iter().zip(values).map(show).collect()
    }
}

/// Shows what callers were answered. Their names are the configuration's, so there are few.
struct CallerCollector {
    policy: Arc<Policy>,
    descriptions: Vec<Desc>,
}

/// Name, help, labels.
const CALLERS: [(&str, &str, &[&str]); 2] = [
    (
        "outrigger_caller_requests_total",
        "Requests of callers that are known, by what the policy said",
        &["answer", "caller"],
    ),
    ("outrigger_caller_calls", "Calls that a caller has in the house, where they are limited", &["caller"]),
];

impl CallerCollector {
    fn new(policy: Arc<Policy>) -> Result<Self, prometheus::Error> {
        let describe = |(name, help, labels): &(&str, &str, &[&str])| {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new((*name).into(), (*help).into(), labels, std::collections::HashMap::new())
        };
        Ok(Self { policy, descriptions: CALLERS.iter().map(describe).collect::<Result<_, _>>()? })
    }
}

impl Collector for CallerCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (mut requests, mut calls) = (Vec::new(), Vec::new());
        for (caller, counts) in self.policy.callers() {
            let answers = [
                ("granted", counts.granted),
                ("forbidden", counts.forbidden),
                ("rate_limited", counts.rate_limited),
                ("too_many_calls", counts.too_many_calls),
            ];
            for (answer, count) in answers.into_iter().filter(|(_, count)| *count > 0) {
                requests.push(counter(&[("answer", answer), ("caller", caller)], count as f64));
            }
            calls.extend(counts.calls.map(|calls| gauge(&[("caller", caller)], calls.into())));
        }
        let types = [MetricType::COUNTER, MetricType::GAUGE];
        let families = CALLERS.iter().zip(types).zip([requests, calls]);
        families.map(|(((name, help, _), kind), metrics)| family(name, help, kind, metrics)).collect()
    }
}

/// Name and help.
const DEGRADED: (&str, &str) =
    ("outrigger_degraded", "Reasons why the replica is not as it should be, by the part that they are about");

/// Shows how many reasons there are; the replica has the metrics, and not these it.
struct DegradedCollector {
    replica: Weak<Replica>,
    description: Desc,
}

impl Collector for DegradedCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.description]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let concerns = self.replica.upgrade().map(|replica| replica.degraded()).unwrap_or_default();
        let count = |part: Part| concerns.iter().filter(|concern| concern.part == part).count();
        let one = |part: Part| gauge(&[("part", part.as_str())], count(part) as f64);
        vec![family(DEGRADED.0, DEGRADED.1, MetricType::GAUGE, Part::ALL.map(one).into())]
    }
}

pub(crate) fn counter(labels: &[(&str, &str)], value: f64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = Metric::from_label(pairs(labels));
    metric.set_counter(counter);
    metric
}

pub(crate) fn gauge(labels: &[(&str, &str)], value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = Metric::from_label(pairs(labels));
    metric.set_gauge(gauge);
    metric
}

fn pairs(labels: &[(&str, &str)]) -> Vec<LabelPair> {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).into());
        pair.set_value((*value).into());
        pair
    };
    labels.iter().map(pair).collect()
}

pub(crate) fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.into());
    family.set_help(help.into());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

#[cfg(test)]
mod tests {
    use outrigger_auth::{CallerRules, PolicyConfig};

    use super::*;

    #[test]
    fn the_busy_signal_and_the_requests_are_shown() {
        let busy = Busy::new(3);
        let rules = CallerRules { concurrency: std::num::NonZeroU32::new(9), ..CallerRules::default() };
        let open = PolicyConfig { open: true, anonymous: rules, ..PolicyConfig::default() };
        let (now, headers) = (std::time::Instant::now(), http::HeaderMap::new());
        let policy = Arc::new(Policy::new(None, &open, now).unwrap());
        let metrics = Metrics::new(Arc::clone(&busy), Arc::clone(&policy), 50).unwrap();
        let _grant = policy.ask(&headers, Operation::Score, None, now).unwrap();
        let _ticket = busy.arrive().unwrap();
        metrics.request(Operation::Score, None, Duration::from_millis(3));
        metrics.request(Operation::Infer, Some(ErrorCode::ModelNotFound), Duration::from_millis(3));
        let text = metrics.encode().unwrap();
        for line in [
            "outrigger_busy 1",
            "outrigger_slots 3",
            "outrigger_queued 1",
            "outrigger_arrived_total 1",
            "outrigger_caller_requests_total{answer=\"granted\",caller=\"anonymous\"} 1",
            "outrigger_caller_calls{caller=\"anonymous\"} 1",
            "outrigger_requests_total{code=\"ok\",operation=\"score\"} 1",
            "outrigger_requests_total{code=\"model_not_found\",operation=\"infer\"} 1",
            "outrigger_request_seconds_bucket{operation=\"score\",le=\"0.005\"} 1",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} not in\n{text}");
        }
        assert!(!text.contains("swagger"), "what never counted is left out");
    }
}
