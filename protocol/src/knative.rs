//! What Knative's autoscaler reads from each pod once a second: `GET /metrics` with `Accept: application/protobuf`, on the port that
//! its queue-proxy has for it (9090).
//!
//! Sources: Knative Serving's `pkg/autoscaler/metrics/stat.proto` (numbers and names of the fields) and `http_scrape_client.go` (how it
//! asks), `pkg/queue/protobuf_stats_reporter.go` (what the numbers mean). Not tested under Knative itself.

use http::{HeaderMap, header};
use prost::Message;

use crate::busy::BusySnapshot;

/// The media type, in question and answer.
pub const MEDIA_TYPE: &str = "application/protobuf";

/// `metrics.Stat`, without the fields on proxies.
#[derive(Clone, PartialEq, Message)]
pub struct Stat {
    /// Who says it: samples are averaged over pods by this name.
    #[prost(string, tag = "1")]
    pub pod_name: String,
    /// Mean number of calls here, executing or queued, over the last second.
    #[prost(double, tag = "2")]
    pub average_concurrent_requests: f64,
    /// Calls that came in the last second, refused ones counted in.
    #[prost(double, tag = "4")]
    pub request_count: f64,
    /// Time since the process started, in seconds.
    #[prost(double, tag = "6")]
    pub process_uptime: f64,
}

/// Whether a request to `/metrics` is Knative's. Prometheus asks for its own messages by another media type.
pub fn is_asked(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|range| range.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(MEDIA_TYPE))
}

/// The message.
pub fn encode(pod_name: &str, seen: &BusySnapshot) -> Vec<u8> {
    let stat = Stat {
        pod_name: pod_name.to_owned(),
        average_concurrent_requests: seen.second.calls,
        request_count: seen.second.arrived,
        process_uptime: seen.uptime_seconds,
    };
    stat.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::busy::tests::snapshot;

    #[test]
    fn the_message_of_the_last_second() {
        // By hand: tag and length of the string; tags (number times 8, plus 1 for a double) and doubles, low byte first.
        let double = |tag: u8, value: f64| [&[tag * 8 + 1][..], &value.to_le_bytes()].concat();
        let expected = [b"\x0a\x05pod-1".to_vec(), double(2, 6.0), double(4, 5.0), double(6, 12.5)].concat();
        assert_eq!(encode("pod-1", &snapshot()), expected);
    }

    #[test]
    fn who_asks() {
        let check = |accept: &'static str, expected: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(is_asked(&headers), expected, "{accept}");
        };
        check("application/protobuf", true);
        check("text/html, application/protobuf;q=0.9", true);
        check("*/*", false);
        check(
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,text/plain",
            false,
        );
        assert!(!is_asked(&HeaderMap::new()));
    }
}
