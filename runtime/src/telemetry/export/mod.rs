//! Spans and metrics on their way out: to a collector by OpenTelemetry's protocol (OTLP), and spans to Application Insights.
//!
//! Requests hand over what a span is made of and never wait: what finds no room is counted. Tasks of their own gather and send, one for each who
//! takes spans; one that is away costs memory for `telemetry.queue` requests, and nobody else notices.

mod insights;
mod metrics;
mod queue;
mod record;
mod send;
mod spans;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use tokio_util::sync::CancellationToken;

use crate::concerns::Part;
use crate::config::OtlpConfig;
use crate::replica::Replica;
use insights::Insights;
pub(super) use queue::Spans;
use queue::{Left, Stop, Taker};
pub(super) use record::Recorded;
use send::{Client, Framed, SendError, Signal};
use spans::Body;

/// How often sending is tried, and after which pauses.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];

/// What is sent to Application Insights, among signals.
const INSIGHTS: &str = "insights";

/// What sends, not started yet.
pub(crate) struct Exporter {
    collector: Collector,
    traces: Option<Left>,
    insights: Option<(Insights, Left)>,
    config: OtlpConfig,
}

/// The collector, as it is reached, and what is counted of that.
struct Collector {
    client: Client,
    resource: Resource,
    failures: IntCounterVec,
    rejected: IntCounterVec,
}

impl Exporter {
    /// For who is configured to take any.
    ///
    /// # Errors
    /// [`prometheus::Error`] if two metrics have one name.
    pub(crate) fn new(config: &OtlpConfig, registry: &Registry) -> Result<(Spans, Self), prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let requests = counters(
            "outrigger_telemetry_requests_total",
            "Requests that are recorded, by who takes their spans and what became of them: sent, failed, or dropped where too many waited",
            &["to", "outcome"],
        )?;
        let failures = counters(
            "outrigger_telemetry_failures_total",
            "Times that what was sent was not taken, by signal: traces, metrics, or insights",
            &["signal"],
        )?;
        let rejected = counters(
            "outrigger_telemetry_rejected_total",
            "Spans and points of metrics that the collector has rejected of what it took",
            &["signal"],
        )?;
        let mut spans = Spans::default();
        let mut place = |to: &str| spans.place(to, config.queue, &requests);
        let traces = config.traces.is_some().then(|| place("collector"));
        let insights = Insights::new(config).map(|insights| (insights, place(INSIGHTS)));
        let collector =
            Collector { client: Client::new(config), resource: resource(config), failures, rejected };
        Ok((spans, Self { collector, traces, insights, config: config.clone() }))
    }

    /// Sends until it is to stop, and then what is there.
    pub(crate) async fn run(self, replica: Arc<Replica>, stop: CancellationToken) {
        let Self { collector, traces, insights, config } = self;
        let (collector, replica, stop) = (&collector, &replica, &Stop::new(stop));
        let spans = async {
            if let Some(left) = traces {
                let body = Body::new(&collector.resource);
                left.hand_over(stop, ToCollector { collector, replica, stop, body }).await;
            }
        };
        let records = async {
            if let Some((insights, left)) = insights {
                let failures = collector.failures.with_label_values(&[INSIGHTS]);
                let batch = Vec::new();
                left.hand_over(stop, ToInsights { insights, failures, replica, stop, batch }).await;
            }
        };
        let measures = async {
            if config.metrics.is_none() {
                return;
            }
            let started = SystemTime::now();
            while !stop.is_near() {
                tokio::select! {
                    () = tokio::time::sleep(config.interval) => {}
                    () = stop.comes() => {}
                }
                let gathering = Arc::clone(replica);
                // It takes a while where there are many models.
                let gathered = tokio::task::spawn_blocking(move || gathering.metrics.gather()).await;
                let Ok(families) = gathered else { continue };
                let request = metrics::request(&collector.resource, &families, started);
                // Told of where it failed; the next ones have all that was counted.
                let _ = collector.deliver(Signal::Metrics, &Framed::of(&request), replica, stop).await;
            }
        };
        tokio::join!(spans, records, measures);
    }
}

/// Hands spans to the collector.
struct ToCollector<'a> {
    collector: &'a Collector,
    replica: &'a Replica,
    stop: &'a Stop,
    body: Body,
}

impl Taker for ToCollector<'_> {
    fn add(&mut self, record: Recorded) {
        self.body.add(&record);
    }

    fn is_full(&self) -> bool {
        self.body.is_full()
    }

    async fn send(&mut self) -> Result<(), SendError> {
        let message = self.body.finish();
        let sent = self.collector.deliver(Signal::Traces, &message, self.replica, self.stop).await;
        self.body.take_back(message);
        sent
    }
}

/// Hands records to Application Insights.
struct ToInsights<'a> {
    insights: Insights,
    failures: IntCounter,
    replica: &'a Replica,
    stop: &'a Stop,
    batch: Vec<Recorded>,
}

impl Taker for ToInsights<'_> {
    fn add(&mut self, record: Recorded) {
        self.batch.push(record);
    }

    fn is_full(&self) -> bool {
        false
    }

    async fn send(&mut self) -> Result<(), SendError> {
        let batch = std::mem::take(&mut self.batch);
        let sent = self.stop.bound(self.insights.send(&batch)).await;
        if let Err(error) = &sent {
            self.failures.inc();
            tracing::warn!(%error, "Application Insights does not take records of requests");
        }
        tell(self.replica, INSIGHTS, &sent);
        sent
    }
}

impl Collector {
    /// Sends, some times over where the collector is away for a moment; once, and not for long, when the replica ends.
    async fn deliver(
        &self,
        signal: Signal,
        message: &Framed,
        replica: &Replica,
        stop: &Stop,
    ) -> Result<(), SendError> {
        let mut pauses = PAUSES.iter();
        let sent = loop {
            let error = match stop.bound(self.client.send(signal, message)).await {
                Ok(rejected) => {
                    self.rejected.with_label_values(&[signal.as_str()]).inc_by(rejected);
                    break Ok(());
                }
                Err(error) => error,
            };
            self.failures.with_label_values(&[signal.as_str()]).inc();
            let pause = pauses.next().filter(|_| error.may_pass() && !stop.is_near());
            let Some(pause) = pause else {
                tracing::warn!(signal = signal.as_str(), %error, "the collector does not take telemetry");
                break Err(error);
            };
            tokio::select! {
                () = tokio::time::sleep(*pause) => {}
                () = stop.comes() => {}
            }
        };
        tell(replica, signal.as_str(), &sent);
        sent
    }
}

/// Says how it is with who takes telemetry, for who asks how the replica is.
fn tell(replica: &Replica, signal: &str, sent: &Result<(), SendError>) {
    match sent {
        Ok(()) => replica.concerns.settle(Part::Telemetry, signal),
        Err(error) => replica.concerns.raise(Part::Telemetry, signal, error.to_string()),
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

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    u64::try_from(since).unwrap_or(u64::MAX)
}
