//! Metrics as a collector takes them: the same families that Prometheus reads, with the same names and values.

use std::time::SystemTime;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prometheus::proto::{self, MetricFamily, MetricType};

use super::{nanos, scope, text};

/// What is counted since `started`, as it stands now.
pub(super) fn request(
    resource: &Resource,
    families: &[MetricFamily],
    started: SystemTime,
) -> ExportMetricsServiceRequest {
    let times = (nanos(started), nanos(SystemTime::now()));
    let metrics = families.iter().filter_map(|family| one(family, times)).collect();
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), metrics, schema_url: String::new() }];
    let resource = Some(resource.clone());
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics { resource, scope_metrics, schema_url: String::new() }],
    }
}

fn one(family: &MetricFamily, times: (u64, u64)) -> Option<Metric> {
    let cumulative = AggregationTemporality::Cumulative as i32;
    let metrics = family.get_metric().iter();
    let data = match family.get_field_type() {
        MetricType::COUNTER => {
            let points = metrics.map(|metric| number(metric, metric.get_counter().get_value(), times));
            let (data_points, is_monotonic) = (points.collect(), true);
            metric::Data::Sum(Sum { data_points, aggregation_temporality: cumulative, is_monotonic })
        }
        MetricType::GAUGE => {
            let points = metrics.map(|metric| number(metric, metric.get_gauge().get_value(), times));
            metric::Data::Gauge(Gauge { data_points: points.collect() })
        }
        MetricType::HISTOGRAM => {
            let data_points = metrics.map(|metric| histogram(metric, times)).collect();
            metric::Data::Histogram(Histogram { data_points, aggregation_temporality: cumulative })
        }
        _ => return None,
    };
    let (name, description) = (family.name().to_owned(), family.help().to_owned());
    let unit = unit(&name).into();
    Some(Metric { name, description, unit, data: Some(data), ..Metric::default() })
}

/// In the notation of UCUM.
fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    match name.rsplit('_').next() {
        Some("seconds") => "s",
        Some("bytes") => "By",
        _ => "1",
    }
}

fn attributes(metric: &proto::Metric) -> Vec<KeyValue> {
    metric.get_label().iter().map(|label| text(label.name(), label.value())).collect()
}

fn number(metric: &proto::Metric, value: f64, (start, now): (u64, u64)) -> NumberDataPoint {
    NumberDataPoint {
        attributes: attributes(metric),
        start_time_unix_nano: start,
        time_unix_nano: now,
        value: Some(number_data_point::Value::AsDouble(value)),
        ..NumberDataPoint::default()
    }
}

fn histogram(metric: &proto::Metric, (start, now): (u64, u64)) -> HistogramDataPoint {
    let histogram = metric.get_histogram();
    let count = histogram.get_sample_count();
    // There, a bucket has what is in those before it; the last one, without a bound, is left out.
    let bounded = histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite());
    let (mut bounds, mut counts, mut before) = (Vec::new(), Vec::new(), 0);
    for bucket in bounded {
        let up_to = bucket.cumulative_count();
        bounds.push(bucket.upper_bound());
        counts.push(up_to.saturating_sub(before));
        before = up_to;
    }
    counts.push(count.saturating_sub(before));
    HistogramDataPoint {
        attributes: attributes(metric),
        start_time_unix_nano: start,
        time_unix_nano: now,
        count,
        sum: Some(histogram.get_sample_sum()),
        bucket_counts: counts,
        explicit_bounds: bounds,
        ..HistogramDataPoint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{HistogramOpts, IntCounterVec, Opts, Registry};

    #[test]
    fn families_keep_their_names_values_and_buckets() {
        let registry = Registry::new();
        let counter = IntCounterVec::new(Opts::new("calls_total", "c"), &["code"]).unwrap();
        counter.with_label_values(&["ok"]).inc_by(3);
        registry.register(Box::new(counter)).unwrap();
        let waits = HistogramOpts::new("wait_seconds", "w").buckets(vec![1.0, 2.0]);
        let waits = prometheus::Histogram::with_opts(waits).unwrap();
        [0.5, 1.5, 1.6, 9.0].into_iter().for_each(|wait| waits.observe(wait));
        registry.register(Box::new(waits)).unwrap();
        let request = request(&Resource::default(), &registry.gather(), SystemTime::UNIX_EPOCH);
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        let (calls, waits) = (&metrics[0], &metrics[1]);
        assert_eq!((calls.name.as_str(), calls.unit.as_str()), ("calls_total", "1"));
        let Some(metric::Data::Sum(sum)) = &calls.data else { panic!("{calls:?}") };
        assert!(sum.is_monotonic);
        assert_eq!(sum.data_points[0].value, Some(number_data_point::Value::AsDouble(3.0)));
        let Some(metric::Data::Histogram(histogram)) = &waits.data else { panic!("{waits:?}") };
        let point = &histogram.data_points[0];
        assert_eq!((waits.unit.as_str(), point.count), ("s", 4));
        assert_eq!((&point.explicit_bounds[..], &point.bucket_counts[..]), (&[1.0, 2.0][..], &[1, 2, 1][..]));
    }
}
