//! ORCA: how a replica tells load balancers (Envoy, gRPC) what is asked of it. In band a report is a header of an answer, out of
//! band a message of the stream `xds.service.orca.v3.OpenRcaService/StreamCoreMetrics`.
//!
//! What they make of it: the weight of a replica is its calls per second over its utilisation, which is what it could do; errors per
//! call are added to the utilisation. So rate and utilisation cover the same stretch of time, and a queue counts: of two
//! replicas that are full, the one with the longer queue gets less. `cpu_utilization` is not said: it is not measured.
//!
//! Sources: `xds/data/orca/v3/orca_load_report.proto` and `xds/service/orca/v3/orca.proto` (numbers and names of the fields), gRPC's
//! proposals A51 and A58, Envoy's `orca_parser.cc` (the forms of the header).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message;

use crate::busy::BusySnapshot;

/// Path of the service's one method.
pub const STREAM_CORE_METRICS: &str = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics";
/// What a request carries to be told the load, with a [`Format`].
pub const FORMAT: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");
/// The load, as text or JSON.
pub const METRICS: HeaderName = HeaderName::from_static("endpoint-load-metrics");
/// The load, as the message in Base64.
pub const METRICS_BIN: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");

/// `xds.data.orca.v3.OrcaLoadReport`, without the fields that are never set.
#[derive(Clone, PartialEq, Message)]
pub struct LoadReport {
    /// Calls per second that ended with a result or failed.
    #[prost(double, tag = "6")]
    pub rps_fractional: f64,
    /// Calls per second that failed or were refused.
    #[prost(double, tag = "7")]
    pub eps: f64,
    /// `executing`, `queued` and `slots`, at this moment.
    #[prost(btree_map = "string, double", tag = "8")]
    pub named_metrics: BTreeMap<String, f64>,
    /// [`BusySnapshot::load`]; above 1 calls queue.
    #[prost(double, tag = "9")]
    pub application_utilization: f64,
}

/// `xds.service.orca.v3.OrcaLoadReportRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct LoadReportRequest {
    /// Time between two reports.
    #[prost(message, optional, tag = "1")]
    pub report_interval: Option<Interval>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Interval {
    /// Whole seconds.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// The rest.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl LoadReportRequest {
    /// The interval that is asked for, at least `least` and at most a day; `least` where none is, or none that makes sense.
    pub fn interval(&self, least: Duration) -> Duration {
        let asked = self.report_interval.and_then(|interval| {
            let (seconds, nanos) =
                (u64::try_from(interval.seconds).ok()?, u32::try_from(interval.nanos).ok()?);
            Duration::from_secs(seconds).checked_add(Duration::from_nanos(nanos.into()))
        });
        asked.unwrap_or(least).min(Duration::from_secs(86_400)).max(least)
    }
}

/// Form of a report in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `TEXT name=value, …`
    Text,
    /// `JSON {…}`
    Json,
    /// The message in Base64, in a header of its own.
    Bin,
}

impl Format {
    /// Reads what a request asks for; `None` for what is not known.
    pub fn from_header(value: &HeaderValue) -> Option<Self> {
        [("TEXT", Self::Text), ("JSON", Self::Json), ("BIN", Self::Bin)]
            .into_iter()
            .find(|(name, _)| value.as_bytes().eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, format)| format)
    }
}

/// The moment's numbers beside the rates.
fn named(seen: &BusySnapshot) -> [(&'static str, u32); 3] {
    [("executing", seen.executing), ("queued", seen.queued), ("slots", seen.slots)]
}

/// The report as a message.
pub fn report(seen: &BusySnapshot) -> LoadReport {
    LoadReport {
        rps_fractional: seen.recent.ended,
        eps: seen.recent.errors,
        named_metrics: named(seen).map(|(name, value)| (name.to_owned(), value.into())).into(),
        application_utilization: seen.load(),
    }
}

/// Writes the report into the headers of an answer.
pub fn write(headers: &mut HeaderMap, format: Format, seen: &BusySnapshot) {
    let mut text = String::with_capacity(192);
    let (load, rps, eps) = (seen.load(), seen.recent.ended, seen.recent.errors);
    // Writing to memory does not fail.
    let _ = match format {
        Format::Text => {
            let begun = write!(text, "TEXT application_utilization={load}, rps_fractional={rps}, eps={eps}");
            named(seen)
                .iter()
                .fold(begun, |done, (name, value)| done.and(write!(text, ", named_metrics.{name}={value}")))
        }
        Format::Json => {
            let [(_, executing), (_, queued), (_, slots)] = named(seen);
            write!(
                text,
                "JSON {{\"application_utilization\":{load},\"rps_fractional\":{rps},\"eps\":{eps},\"named_metrics\":\
                 {{\"executing\":{executing},\"queued\":{queued},\"slots\":{slots}}}}}"
            )
        }
        Format::Bin => {
            STANDARD.encode_string(report(seen).encode_to_vec(), &mut text);
            Ok(())
        }
    };
    let name = if format == Format::Bin { METRICS_BIN } else { METRICS };
    // Numbers, names of ours and Base64: always a header.
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::busy::{Window, tests::snapshot};

    fn header(format: Format) -> (HeaderName, String) {
        let mut headers = HeaderMap::new();
        write(&mut headers, format, &snapshot());
        let (name, value) = headers.into_iter().next().unwrap();
        (name.unwrap(), value.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_forms_of_the_header() {
        let text = "TEXT application_utilization=1.25, rps_fractional=2.5, eps=0.5, \
                    named_metrics.executing=3, named_metrics.queued=2, named_metrics.slots=4";
        assert_eq!(header(Format::Text), (METRICS, text.to_owned()));
        let (name, json) = header(Format::Json);
        assert_eq!(name, METRICS);
        let json: serde_json::Value = serde_json::from_str(json.strip_prefix("JSON ").unwrap()).unwrap();
        let expected = serde_json::json!({
            "application_utilization": 1.25, "rps_fractional": 2.5, "eps": 0.5,
            "named_metrics": {"executing": 3, "queued": 2, "slots": 4},
        });
        assert_eq!(json, expected);
        let (name, bin) = header(Format::Bin);
        assert_eq!(name, METRICS_BIN);
        assert_eq!(LoadReport::decode(&STANDARD.decode(bin).unwrap()[..]).unwrap(), report(&snapshot()));
    }

    /// The bytes are those of Google's implementation for the same values, with the messages of PyPI's `xds-protos` 1.85:
    /// `OrcaLoadReport(application_utilization=0.75, rps_fractional=12.5, eps=0.5, named_metrics={"slots": 4})`, and a request
    /// whose `report_interval` is 1500 ms.
    #[test]
    fn the_messages_are_those_of_the_protocol() {
        let report = LoadReport {
            rps_fractional: 12.5,
            eps: 0.5,
            named_metrics: BTreeMap::from([("slots".to_owned(), 4.0)]),
            application_utilization: 0.75,
        };
        let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            hex(report.encode_to_vec()),
            "31000000000000294039000000000000e03f42100a05736c6f747311000000000000104049000000000000e83f"
        );
        let request = LoadReportRequest::decode(&b"\x0a\x08\x08\x01\x10\x80\xca\xb5\xee\x01"[..]).unwrap();
        assert_eq!(request.interval(Duration::ZERO), Duration::from_millis(1500));
    }

    #[test]
    fn intervals_are_bounded() {
        let check = |interval: Option<(i64, i32)>, expected: u64| {
            let report_interval = interval.map(|(seconds, nanos)| Interval { seconds, nanos });
            let asked = LoadReportRequest { report_interval };
            assert_eq!(asked.interval(Duration::from_secs(2)), Duration::from_secs(expected), "{interval:?}");
        };
        check(None, 2);
        check(Some((0, 0)), 2);
        check(Some((0, 1)), 2);
        check(Some((3, 0)), 3);
        check(Some((-3, 0)), 2);
        check(Some((3, -1)), 2);
        check(Some((i64::MAX, i32::MAX)), 86_400);
    }

    #[test]
    fn what_is_asked_for() {
        let asked = |text: &'static str| Format::from_header(&HeaderValue::from_static(text));
        assert_eq!(asked("TEXT"), Some(Format::Text));
        assert_eq!(asked("json"), Some(Format::Json));
        assert_eq!(asked("BIN"), Some(Format::Bin));
        assert_eq!(asked("XML"), None);
    }

    #[test]
    fn an_idle_replica_reports_zeros() {
        let idle = BusySnapshot { executing: 0, queued: 0, recent: Window::default(), ..snapshot() };
        let mut headers = HeaderMap::new();
        write(&mut headers, Format::Text, &idle);
        assert!(
            headers[METRICS]
                .to_str()
                .unwrap()
                .starts_with("TEXT application_utilization=0, rps_fractional=0,")
        );
    }
}
