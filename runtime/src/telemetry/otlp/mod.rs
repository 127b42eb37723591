//! Spans and metrics on their way to a collector, by OpenTelemetry's protocol (OTLP).
//!
//! Requests hand over what a span is made of and never wait: what finds no room is counted. Tasks of their own gather and send; a collector that
//! is away costs memory for `telemetry.queue` spans, and nobody else notices.

mod insights;
mod metrics;
mod send;
mod spans;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::concerns::Part;
use crate::config::OtlpConfig;
use crate::replica::Replica;
use insights::Insights;
use send::{Client, SendError, Signal};
pub(super) use spans::Recorded;

/// Spans that are sent at once.
const BATCH: usize = 512;
/// How long spans wait for others.
const GATHER: Duration = Duration::from_secs(1);
/// How often sending is tried, and after which pauses.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];
/// How long the end of the replica waits for what is still to be sent.
const LAST: Duration = Duration::from_secs(2);

/// Where requests leave their spans.
pub(crate) struct Spans {
    queue: mpsc::Sender<Recorded>,
    dropped: IntCounter,
}

impl Spans {
    /// Leaves one to be sent; it is dropped, and counted, where there is no room.
    pub(super) fn leave(&self, span: impl FnOnce() -> Option<Recorded>) {
        match self.queue.try_reserve() {
            Ok(place) => {
                if let Some(span) = span() {
                    place.send(span);
                }
            }
            Err(_) => self.dropped.inc(),
        }
    }
}

/// What sends, not started yet.
pub(crate) struct Exporter {
    client: Client,
    insights: Option<Insights>,
    resource: Resource,
    received: mpsc::Receiver<Recorded>,
    spans: IntCounterVec,
    failures: IntCounterVec,
    config: OtlpConfig,
}

impl Exporter {
    /// For a collector that is configured.
    ///
    /// # Errors
    /// [`prometheus::Error`] if two metrics have one name.
    pub(crate) fn new(config: &OtlpConfig, registry: &Registry) -> Result<(Spans, Self), prometheus::Error> {
        let spans = Opts::new(
            "outrigger_telemetry_spans_total",
            "Spans of requests by what became of them: sent, failed, or dropped where too many waited",
        );
        let spans = IntCounterVec::new(spans, &["outcome"])?;
        registry.register(Box::new(spans.clone()))?;
        let failures = Opts::new(
            "outrigger_telemetry_failures_total",
            "Times that the collector did not take what was sent, by signal: traces, metrics, or insights",
        );
        let failures = IntCounterVec::new(failures, &["signal"])?;
        registry.register(Box::new(failures.clone()))?;
        let (queue, received) = mpsc::channel(config.queue.max(1));
        let dropped = spans.with_label_values(&["dropped"]);
        let exporter = Self {
            client: Client::new(config),
            insights: Insights::new(config),
            resource: resource(config),
            received,
            spans,
            failures,
            config: config.clone(),
        };
        Ok((Spans { queue, dropped }, exporter))
    }

    /// Sends until it is to stop, and then what is there.
    pub(crate) async fn run(self, replica: Arc<Replica>, stop: CancellationToken) {
        let Self { client, insights, resource, mut received, spans, failures, config } = self;
        let traces = async {
            let mut batch = Vec::new();
            loop {
                let ends = tokio::select! {
                    count = received.recv_many(&mut batch, BATCH) => count == 0,
                    () = stop.cancelled() => true,
                };
                if ends {
                    received.close();
                    while received.recv_many(&mut batch, usize::MAX).await > 0 {}
                } else if batch.len() < BATCH {
                    // Those that come meanwhile go along.
                    tokio::select! {
                        () = tokio::time::sleep(GATHER) => {}
                        () = stop.cancelled() => {}
                    }
                    while batch.len() < BATCH
                        && let Ok(span) = received.try_recv()
                    {
                        batch.push(span);
                    }
                }
                if !batch.is_empty() {
                    let count = batch.len() as u64;
                    let limit = stop.is_cancelled().then_some(LAST);
                    let recorded = match &insights {
                        Some(insights) => insights.send(&batch, limit).await,
                        None => Ok(()),
                    };
                    if let Err(error) = &recorded {
                        failures.with_label_values(&["insights"]).inc();
                        tracing::warn!(%error, "Application Insights does not take records of requests");
                    }
                    let request = request(&resource, batch.drain(..));
                    let sent = deliver(&client, Signal::Traces, &request, &failures, &stop).await;
                    tell(&replica, "insights", &recorded);
                    tell(&replica, Signal::Traces.as_str(), &sent);
                    spans
                        .with_label_values(&[if sent.is_ok() && recorded.is_ok() {
                            "sent"
                        } else {
                            "failed"
                        }])
                        .inc_by(count);
                }
                if ends {
                    return;
                }
            }
        };
        let measures = async {
            if config.metrics.is_none() {
                return;
            }
            let started = SystemTime::now();
            loop {
                let ends = tokio::select! {
                    () = tokio::time::sleep(config.interval) => false,
                    () = stop.cancelled() => true,
                };
                let request = metrics::request(&resource, &replica.metrics.gather(), started);
                let sent = deliver(&client, Signal::Metrics, &request, &failures, &stop).await;
                tell(&replica, Signal::Metrics.as_str(), &sent);
                if ends {
                    return;
                }
            }
        };
        tokio::join!(traces, measures);
    }
}

/// Says how it is with the collector, for who asks how the replica is.
fn tell(replica: &Replica, signal: &str, sent: &Result<(), SendError>) {
    match sent {
        Ok(()) => replica.concerns.settle(Part::Telemetry, signal),
        Err(error) => replica.concerns.raise(Part::Telemetry, signal, error.to_string()),
    }
}

/// Sends, some times over where the collector is away for a moment; once, and not for long, when the replica ends.
async fn deliver(
    client: &Client,
    signal: Signal,
    message: &impl prost::Message,
    failures: &IntCounterVec,
    stop: &CancellationToken,
) -> Result<(), SendError> {
    let body = message.encode_to_vec();
    let mut pauses = PAUSES.iter();
    loop {
        let limit = if stop.is_cancelled() { Some(LAST) } else { None };
        let Err(error) = client.send(signal, body.clone(), limit).await else { return Ok(()) };
        failures.with_label_values(&[signal.as_str()]).inc();
        let pause = pauses.next().filter(|_| error.may_pass() && !stop.is_cancelled());
        let Some(pause) = pause else {
            tracing::warn!(signal = signal.as_str(), %error, "the collector does not take telemetry");
            return Err(error);
        };
        tokio::select! {
            () = tokio::time::sleep(*pause) => {}
            () = stop.cancelled() => {}
        }
    }
}

fn request(resource: &Resource, spans: impl Iterator<Item = Recorded>) -> ExportTraceServiceRequest {
    let spans = spans.flat_map(Recorded::spans).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope()), spans, schema_url: String::new() }];
    let resource = Some(resource.clone());
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { resource, scope_spans, schema_url: String::new() }],
    }
}

/// Who tells.
fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "outrigger".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..InstrumentationScope::default()
    }
}

fn resource(config: &OtlpConfig) -> Resource {
    let own = [
        ("service.name", config.service.as_str()),
        ("service.version", config.version.as_str()),
        ("service.instance.id", config.instance.as_str()),
        ("telemetry.sdk.name", "outrigger"),
        ("telemetry.sdk.language", "rust"),
        ("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
    ];
    let said = |name: &str| config.attributes.iter().any(|(known, _)| known == name);
    let own = own.into_iter().filter(|(name, value)| !value.is_empty() && !said(name));
    let own = own.map(|(name, value)| text(name, value));
    let more = config.attributes.iter().map(|(name, value)| text(name, value));
    Resource { attributes: own.chain(more).collect(), ..Resource::default() }
}

fn pair(name: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: name.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn text(name: &str, value: &str) -> KeyValue {
    pair(name, any_value::Value::StringValue(value.into()))
}

fn number(name: &str, value: i64) -> KeyValue {
    pair(name, any_value::Value::IntValue(value))
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    u64::try_from(since).unwrap_or(u64::MAX)
}
