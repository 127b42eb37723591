//! `[log]`, `[metrics]` and `[telemetry]`: what is told of requests, where, and how much of it.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use outrigger_auth::Secret;

use super::getter::Getter;
use super::key::Key;
use super::value::Value;
use super::{Settings, Sources, key};
use crate::telemetry::Sampler;

/// `[log]`.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// `error` to `trace`.
    pub level: String,
    /// What lines look like, and where they go.
    pub format: LogFormat,
    /// Lines that may wait to be written, bytes.
    pub buffer: usize,
    /// Which requests get a line.
    pub requests: LogRequests,
    /// From when on a request is slow.
    pub slow: Duration,
    /// Lines of one kind in a second; 0 for any number.
    pub rate: usize,
    /// Lines that are kept for `outrigger logs`, bytes.
    pub kept: usize,
}

/// What log lines look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text where stderr is a terminal, else JSON.
    Auto,
    /// Text for people, on stderr.
    Text,
    /// A JSON object for each line, on stderr.
    Json,
    /// `2024-01-31 12:00:00,123 I [pid] logger - text` in UTC, on stdout.
    AzureMl,
}

/// Which requests get a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogRequests {
    /// None.
    Off,
    /// Those that are refused or fail.
    Errors,
    /// And those that take long.
    Slow,
    /// All of them.
    All,
}

/// Which answers say how their time was spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// None.
    Off,
    /// Those whose request asks.
    Asked,
    /// All of them.
    Always,
}

/// `[metrics]` and `[telemetry]`.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// Models that have series of their own.
    pub models: usize,
    /// Which answers have `server-timing`.
    pub timing: Timing,
    /// The collector, if there is one.
    pub otlp: Option<OtlpConfig>,
}

/// A collector of OpenTelemetry's.
#[derive(Clone, Debug)]
pub struct OtlpConfig {
    /// Where traces go, if anywhere.
    pub traces: Option<String>,
    /// Where metrics go, if anywhere.
    pub metrics: Option<String>,
    /// How.
    pub protocol: OtlpProtocol,
    /// Headers of what is sent, which may hold secrets.
    pub headers: HeaderMap,
    /// How long it has to take something.
    pub timeout: Duration,
    /// Requests whose spans may wait.
    pub queue: usize,
    /// Time from one sending of metrics to the next.
    pub interval: Duration,
    /// Which requests are traced.
    pub sampler: Sampler,
    /// What it knows the service by.
    pub service: String,
    /// The service's version.
    pub version: String,
    /// What it knows this replica by.
    pub instance: String,
    /// The connection string of Application Insights.
    pub insights: Option<Secret>,
    /// What the workspace is called there.
    pub workspace: String,
    /// What else it is told of it.
    pub attributes: Vec<(String, String)>,
}

/// How a collector is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// HTTP with messages as bodies.
    Http,
    /// gRPC.
    Grpc,
}

/// From settings, each valid by itself.
pub(super) fn log(settings: &Settings) -> LogConfig {
    let get = Getter { settings };
    LogConfig {
        level: get.text(key::LOG_LEVEL),
        format: match get.text(key::LOG_FORMAT).as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            "azureml" => LogFormat::AzureMl,
            _ => LogFormat::Auto,
        },
        buffer: get.size(key::LOG_BUFFER),
        requests: match get.text(key::LOG_REQUESTS).as_str() {
            "off" => LogRequests::Off,
            "slow" => LogRequests::Slow,
            "all" => LogRequests::All,
            _ => LogRequests::Errors,
        },
        slow: get.duration(key::LOG_SLOW),
        rate: get.count(key::LOG_RATE),
        kept: get.size(key::LOG_KEPT),
    }
}

/// The same of the others. What is wrong is told with its key.
pub(super) fn telemetry(
    settings: &Settings,
    sources: &Sources,
) -> Result<TelemetryConfig, (&'static Key, String)> {
    let get = Getter { settings };
    Ok(TelemetryConfig {
        models: get.count(key::METRICS_MODELS),
        timing: match get.text(key::TELEMETRY_TIMING).as_str() {
            "off" => Timing::Off,
            "always" => Timing::Always,
            _ => Timing::Asked,
        },
        otlp: otlp(&get, sources)?,
    })
}

fn otlp(get: &Getter<'_>, sources: &Sources) -> Result<Option<OtlpConfig>, (&'static Key, String)> {
    let protocol = match get.text(key::TELEMETRY_PROTOCOL).as_str() {
        "grpc" => OtlpProtocol::Grpc,
        _ => OtlpProtocol::Http,
    };
    let traces = endpoint(get, key::TELEMETRY_TRACES_ENDPOINT, protocol, TRACES)?;
    let metrics = endpoint(get, key::TELEMETRY_METRICS_ENDPOINT, protocol, METRICS)?;
    let headers = match get.value(key::TELEMETRY_HEADERS) {
        Some(Value::Secret(text)) => headers(text).ok_or_else(|| {
            let problem = "`telemetry.headers` is NAME=VALUE, several with commas between them".into();
            (key::TELEMETRY_HEADERS, problem)
        })?,
        _ => HeaderMap::new(),
    };
    let attributes = pairs(&get.text(key::TELEMETRY_ATTRIBUTES)).ok_or_else(|| {
        let problem = "`telemetry.attributes` is NAME=VALUE, several with commas between them".into();
        (key::TELEMETRY_ATTRIBUTES, problem)
    })?;
    let insights = insights(get, sources)?;
    if (traces.is_none() && metrics.is_none() && insights.is_none()) || get.flag(key::TELEMETRY_DISABLED) {
        return Ok(None);
    }
    let sampler = get.text(key::TELEMETRY_SAMPLER);
    let (follows_parent, rest) = match sampler.strip_prefix("parentbased_") {
        Some(rest) => (true, rest),
        None => (false, sampler.as_str()),
    };
    let ratio = match rest {
        "always_off" => 0.0,
        "traceidratio" => get.number(key::TELEMETRY_RATIO),
        _ => 1.0,
    };
    let named = get.text(key::TELEMETRY_SERVICE);
    let service = if named.is_empty() { get.text(key::SERVICE_NAME) } else { named };
    Ok(Some(OtlpConfig {
        traces,
        metrics,
        protocol,
        headers,
        timeout: get.duration(key::TELEMETRY_TIMEOUT),
        queue: get.count(key::TELEMETRY_QUEUE),
        interval: get.duration(key::TELEMETRY_INTERVAL),
        sampler: Sampler { follows_parent, ratio },
        service,
        version: get.text(key::SERVICE_VERSION),
        instance: String::new(),
        insights,
        workspace: get.text(key::TELEMETRY_WORKSPACE),
        attributes,
    }))
}

/// Where records of requests go: as the connection string says, or, of AzureML's variables, to the key's own place.
fn insights(get: &Getter<'_>, sources: &Sources) -> Result<Option<Secret>, (&'static Key, String)> {
    if let Some(Value::Secret(text)) = get.value(key::TELEMETRY_INSIGHTS) {
        let has_key = text.split(';').any(|part| {
            part.split_once('=').is_some_and(|(name, _)| name.eq_ignore_ascii_case("InstrumentationKey"))
        });
        let problem = "`telemetry.application_insights` is NAME=VALUE, several with `;` between them, InstrumentationKey among them";
        let pairs = text.split(';').all(|part| part.matches('=').count() == 1);
        if !(has_key && pairs) {
            return Err((key::TELEMETRY_INSIGHTS, problem.into()));
        }
        return Ok(Some(Secret::new(text.clone())));
    }
    let variable = |name: &str| {
        let found = sources.environment.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    };
    let on = variable("AML_APP_INSIGHTS_ENABLED") == Some("true");
    let key = variable("AML_APP_INSIGHTS_KEY").filter(|key| on && is_uuid(key));
    Ok(key.map(|key| Secret::new(format!("InstrumentationKey={key}"))))
}

/// Whether a text is what AzureML's server takes for an instrumentation key.
pub(super) fn is_uuid(text: &str) -> bool {
    let lengths = text.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

/// Where each signal goes below a collector's own URL, over HTTP and over gRPC.
/// Source: OTLP's specification, "OTLP/HTTP Request" and the services of its `.proto` files.
const TRACES: [&str; 2] = ["/v1/traces", "/opentelemetry.proto.collector.trace.v1.TraceService/Export"];
const METRICS: [&str; 2] = ["/v1/metrics", "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"];

/// Where one goes: as is said for it alone, else below the collector's URL.
fn endpoint(
    get: &Getter<'_>,
    own: &'static Key,
    protocol: OtlpProtocol,
    [http, grpc]: [&str; 2],
) -> Result<Option<String>, (&'static Key, String)> {
    let (key, text, below) = match get.text(own) {
        text if !text.is_empty() => (own, text, ""),
        _ => (key::TELEMETRY_ENDPOINT, get.text(key::TELEMETRY_ENDPOINT), http),
    };
    if text.is_empty() {
        return Ok(None);
    }
    let uri = text.parse::<Uri>().ok();
    let known = uri
        .is_some_and(|uri| uri.authority().is_some() && matches!(uri.scheme_str(), Some("http" | "https")));
    if !known {
        return Err((key, format!("`{}` is a URL such as http://127.0.0.1:4318", key.name)));
    }
    let base = text.trim_end_matches('/');
    Ok(Some(match protocol {
        OtlpProtocol::Grpc => format!("{base}{grpc}"),
        OtlpProtocol::Http if below.is_empty() => text,
        OtlpProtocol::Http => format!("{base}{below}"),
    }))
}

fn headers(text: &str) -> Option<HeaderMap> {
    let one = |(name, value): (String, String)| {
        let mut value = HeaderValue::try_from(value).ok()?;
        value.set_sensitive(true);
        Some((HeaderName::try_from(name).ok()?, value))
    };
    pairs(text)?.into_iter().map(one).collect()
}

/// `a=1,b=2`, as the variables of OpenTelemetry have it.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let pair = |part: &str| {
        let (name, value) = part.split_once('=')?;
        let decode = |text: &str| {
            let decoded = percent_encoding::percent_decode_str(text.trim()).decode_utf8().ok()?;
            Some(decoded.into_owned())
        };
        let name = name.trim();
        if name.is_empty() { None } else { Some((name.to_owned(), decode(value)?)) }
    };
    parts.map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_as_opentelemetry_has_them() {
        let pairs = |text: &str| super::pairs(text);
        assert_eq!(pairs(""), Some(vec![]));
        let both = vec![("a".to_owned(), "1=2".to_owned()), ("b".to_owned(), "x y".to_owned())];
        assert_eq!(pairs("a=1=2, b=x%20y,"), Some(both));
        assert_eq!((pairs("a"), pairs("=1")), (None, None));
        assert!(headers("authorization=Bearer%20k").unwrap()["authorization"].is_sensitive());
        assert_eq!(headers("a b=1"), None);
    }
}
