//! KEDA's external scaler: how KEDA asks whether there should be replicas at all (`IsActive`, `StreamIsActive`), and how many
//! (`GetMetricSpec`, `GetMetrics`).
//!
//! The metric is in calls: what would be here if nothing were refused ([`BusySnapshot::demand`]), with the slots times the wanted
//! utilisation as its target. A replica speaks for itself alone, so the trigger's `metricType` is `Value`: as many
//! replicas as there are, times metric over target.
//!
//! Source: KEDA's `pkg/scalers/externalscaler/externalscaler.proto` (numbers and names of the fields) and `external_scaler.go` (what it
//! does with them). Not tested under KEDA itself.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message;

use crate::busy::BusySnapshot;

/// Path of a method: whether there is anything to do.
pub const IS_ACTIVE: &str = "/externalscaler.ExternalScaler/IsActive";
/// The same as a stream of changes.
pub const STREAM_IS_ACTIVE: &str = "/externalscaler.ExternalScaler/StreamIsActive";
/// What is measured, and what is aimed at.
pub const GET_METRIC_SPEC: &str = "/externalscaler.ExternalScaler/GetMetricSpec";
/// The measurement.
pub const GET_METRICS: &str = "/externalscaler.ExternalScaler/GetMetrics";
/// The one metric.
pub const METRIC: &str = "outrigger-calls";

/// What is scaled, and the trigger's settings.
#[derive(Clone, PartialEq, Message)]
pub struct ScaledObjectRef {
    /// Name of the scaled object.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// The trigger's `metadata`: ours, and KEDA's own.
    #[prost(map = "string, string", tag = "3")]
    pub scaler_metadata: HashMap<String, String>,
}

/// Whether there should be replicas.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct IsActiveResponse {
    /// So it is.
    #[prost(bool, tag = "1")]
    pub result: bool,
}

/// The metrics that there are.
#[derive(Clone, PartialEq, Message)]
pub struct GetMetricSpecResponse {
    /// One.
    #[prost(message, repeated, tag = "1")]
    pub metric_specs: Vec<MetricSpec>,
}

/// A metric and its target.
#[derive(Clone, PartialEq, Message)]
pub struct MetricSpec {
    /// Its name.
    #[prost(string, tag = "1")]
    pub metric_name: String,
    /// The target for a KEDA that knows no fractions.
    #[prost(int64, tag = "2")]
    pub target_size: i64,
    /// The target.
    #[prost(double, tag = "3")]
    pub target_size_float: f64,
}

/// Asks for a metric.
#[derive(Clone, PartialEq, Message)]
pub struct GetMetricsRequest {
    /// What is scaled.
    #[prost(message, optional, tag = "1")]
    pub scaled_object_ref: Option<ScaledObjectRef>,
    /// The metric's name.
    #[prost(string, tag = "2")]
    pub metric_name: String,
}

/// Metrics.
#[derive(Clone, PartialEq, Message)]
pub struct GetMetricsResponse {
    /// One.
    #[prost(message, repeated, tag = "1")]
    pub metric_values: Vec<MetricValue>,
}

/// A metric.
#[derive(Clone, PartialEq, Message)]
pub struct MetricValue {
    /// Its name.
    #[prost(string, tag = "1")]
    pub metric_name: String,
    /// Its value for a KEDA that knows no fractions, rounded up.
    #[prost(int64, tag = "2")]
    pub metric_value: i64,
    /// Its value.
    #[prost(double, tag = "3")]
    pub metric_value_float: f64,
}

/// What a trigger's `metadata` may say to us.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trigger {
    /// `utilisation`: the wanted [load](BusySnapshot::load), by default 0.7.
    pub utilisation: f64,
    /// `activeFor`: how long after its last call a replica still counts as active, in seconds; by default 60. KEDA asks every
    /// 30 seconds, and would miss calls in between.
    pub active_for: Duration,
}

/// A setting of the trigger's that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` of the trigger must be {expected}, not `{value}`")]
pub struct TriggerError {
    name: &'static str,
    expected: &'static str,
    value: String,
}

impl Trigger {
    /// Reads the settings. Those of KEDA's own, such as `scalerAddress`, come with them and are skipped.
    ///
    /// # Errors
    /// [`TriggerError`] for a value that cannot be.
    pub fn read(metadata: &HashMap<String, String>) -> Result<Self, TriggerError> {
        let number = |name: &'static str, default: f64, most: f64, expected: &'static str| {
            let Some(text) = metadata.get(name) else { return Ok(default) };
            let number = text.trim().parse().ok().filter(|number| *number > 0.0 && *number <= most);
            // Cut short: it goes back to who sent it, in a header.
            number.ok_or_else(|| TriggerError { name, expected, value: text.chars().take(40).collect() })
        };
        let utilisation = number("utilisation", 0.7, 10.0, "a number above 0 and at most 10")?;
        let seconds = number("activeFor", 60.0, 86_400.0, "seconds, above 0 and at most 86400")?;
        Ok(Self { utilisation, active_for: Duration::from_secs_f64(seconds) })
    }

    /// Whether there is anything to do, or was until a moment ago.
    pub fn is_active(&self, seen: &BusySnapshot) -> bool {
        seen.busy || seen.idle_seconds < self.active_for.as_secs_f64()
    }

    /// The metric and its target.
    pub fn spec(&self, seen: &BusySnapshot) -> GetMetricSpecResponse {
        let target = f64::from(seen.slots.max(1)) * self.utilisation;
        let spec = MetricSpec {
            metric_name: METRIC.into(),
            target_size: (target.round() as i64).max(1),
            target_size_float: target,
        };
        GetMetricSpecResponse { metric_specs: vec![spec] }
    }
}

/// The metric's value.
pub fn metrics(seen: &BusySnapshot) -> GetMetricsResponse {
    let demand = seen.demand();
    let value = MetricValue {
        metric_name: METRIC.into(),
        metric_value: demand.ceil() as i64,
        metric_value_float: demand,
    };
    GetMetricsResponse { metric_values: vec![value] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::busy::tests::snapshot;

    fn trigger(settings: &[(&str, &str)]) -> Result<Trigger, TriggerError> {
        let owned = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Trigger::read(&owned.collect())
    }

    #[test]
    fn settings() {
        let default = Trigger { utilisation: 0.7, active_for: Duration::from_secs(60) };
        assert_eq!(trigger(&[("scalerAddress", "replica:5002")]), Ok(default));
        let set = Trigger { utilisation: 1.5, active_for: Duration::from_millis(500) };
        assert_eq!(trigger(&[("utilisation", "1.5"), ("activeFor", "0.5")]), Ok(set));
        for wrong in [("utilisation", "0"), ("utilisation", "NaN"), ("activeFor", "-1"), ("activeFor", "1e9")]
        {
            let error = trigger(&[wrong]).unwrap_err().to_string();
            assert!(error.contains(wrong.0) && error.contains(wrong.1), "{error}");
        }
        let long = trigger(&[("activeFor", &"9".repeat(10_000))]).unwrap_err().to_string();
        assert!(long.len() < 200, "{long}");
    }

    #[test]
    fn active_while_busy_and_for_a_time_after() {
        let trigger = trigger(&[("activeFor", "30")]).unwrap();
        let check = |busy: bool, idle_seconds: f64, expected: bool| {
            let seen = BusySnapshot { busy, idle_seconds, ..snapshot() };
            assert_eq!(trigger.is_active(&seen), expected, "{busy} {idle_seconds}");
        };
        check(true, 0.0, true);
        check(false, 29.0, true);
        check(false, 30.5, false);
    }

    #[test]
    fn the_metric_is_in_calls() {
        let spec = trigger(&[]).unwrap().spec(&snapshot()).metric_specs.remove(0);
        assert_eq!((spec.metric_name.as_str(), spec.target_size), (METRIC, 3));
        assert!((spec.target_size_float - 2.8).abs() < 1e-9);
        let value = metrics(&snapshot()).metric_values.remove(0);
        assert_eq!((value.metric_value, value.metric_value_float), (10, 10.0));
    }

    /// By hand, from the numbers of the contract: field 1 of the request is the object, whose field 3 is a map.
    #[test]
    fn the_messages_are_those_of_the_contract() {
        let bytes = b"\x0a\x10\x0a\x01n\x12\x01s\x1a\x08\x0a\x01k\x12\x03v=1\x12\x01m";
        let request = GetMetricsRequest::decode(&bytes[..]).unwrap();
        let object = request.scaled_object_ref.unwrap();
        assert_eq!(
            (object.name.as_str(), object.namespace.as_str(), request.metric_name.as_str()),
            ("n", "s", "m")
        );
        assert_eq!(object.scaler_metadata["k"], "v=1");
        assert_eq!(IsActiveResponse { result: true }.encode_to_vec(), b"\x08\x01");
        let spec = MetricSpec { metric_name: "m".into(), target_size: 3, target_size_float: 2.5 };
        let spec = GetMetricSpecResponse { metric_specs: vec![spec] };
        assert_eq!(spec.encode_to_vec(), b"\x0a\x0e\x0a\x01m\x10\x03\x19\0\0\0\0\0\0\x04\x40");
        let value = MetricValue { metric_name: "m".into(), metric_value: 3, metric_value_float: 2.5 };
        let value = GetMetricsResponse { metric_values: vec![value] };
        assert_eq!(value.encode_to_vec(), b"\x0a\x0e\x0a\x01m\x10\x03\x19\0\0\0\0\0\0\x04\x40");
    }
}
