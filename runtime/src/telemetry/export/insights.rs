//! Spans of requests as records of Application Insights, by the exporter that is kept for it.
//!
//! A request is one record, with the properties that AzureML's server gives it; its phases are properties too, for as records of their own
//! they would be dependencies, which nothing here is.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{Request, Response, Uri};
use opentelemetry::trace::{
    Event, SpanContext, SpanId as Span, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_application_insights::Exporter;
use opentelemetry_http::HttpClient;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter, SpanLinks};

use super::record::{Recorded, Text, Value};
use super::send::SendError;
use crate::config::OtlpConfig;

/// Sends to Application Insights.
pub(super) struct Insights {
    exporter: Exporter<Client>,
    /// The same in every record.
    own: Vec<KeyValue>,
    timeout: Duration,
}

impl Insights {
    /// For a connection string, which the configuration has seen to.
    pub(super) fn new(config: &OtlpConfig) -> Option<Self> {
        let connection = config.insights.as_ref()?;
        let client = reqwest::Client::builder().connect_timeout(config.timeout);
        let client = client.redirect(reqwest::redirect::Policy::none()).build();
        let client = client.inspect_err(|error| tracing::error!(%error, "no telemetry can be sent")).ok()?;
        let client = Client { client, plain: is_plain(connection.expose()) };
        let exporter = Exporter::new_from_connection_string(connection.expose(), client);
        let mut exporter = exporter
            .inspect_err(|error| tracing::error!(%error, "Application Insights gets nothing"))
            .ok()?;
        // Each record stands for so many, which is not known where who asks decides.
        if !config.sampler.follows_parent {
            exporter = exporter.with_sample_rate(config.sampler.ratio);
        }
        let resource = [
            KeyValue::new("service.name", config.service.clone()),
            KeyValue::new("service.instance.id", config.instance.clone()),
        ];
        exporter.set_resource(&Resource::builder_empty().with_attributes(resource).build());
        let own = vec![
            KeyValue::new("Container Id", config.instance.clone()),
            KeyValue::new("Workspace Name", config.workspace.clone()),
            KeyValue::new("Service Name", config.service.clone()),
        ];
        Some(Self { exporter, own, timeout: config.timeout })
    }

    /// Sends records of requests; the exporter tries some times over, within the time that there is.
    pub(super) async fn send(&self, spans: &[Recorded]) -> Result<(), SendError> {
        if spans.is_empty() {
            return Ok(());
        }
        let data = spans.iter().map(|span| self.record(span)).collect();
        match tokio::time::timeout(self.timeout, self.exporter.export(data)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(SendError::Unreachable(error.to_string())),
            Err(_) => Err(SendError::Unreachable("it does not answer in time".into())),
        }
    }

    fn record(&self, span: &Recorded) -> SpanData {
        let id = span.id;
        let context = SpanContext::new(
            TraceId::from_bytes(id.trace),
            Span::from_bytes(id.span),
            TraceFlags::SAMPLED,
            false,
            TraceState::default(),
        );
        let mut attributes = Vec::with_capacity(32);
        span.attributes(|name, value| {
            attributes.push(match value {
                Value::Text(text) => KeyValue::new(name, text.to_owned()),
                Value::Number(number) => KeyValue::new(name, number),
            });
        });
        attributes.extend(span.times.phases().map(|(phase, _, spent)| {
            let millis = Duration::from_nanos(spent).as_secs_f64() * 1e3;
            KeyValue::new(format!("outrigger.{}_ms", phase.as_str()), millis)
        }));
        let text = |name: &'static str, text: Text| KeyValue::new(name, span.text(text).to_owned());
        attributes.push(text("Request Id", Text::RequestId));
        attributes.push(text("Client Request Id", Text::ClientRequestId));
        attributes.push(KeyValue::new("http_method", span.method));
        attributes.extend_from_slice(&self.own);
        let mut events = SpanEvents::default();
        events.events.extend(span.failure().map(|code| {
            let what = vec![KeyValue::new("exception.type", code.to_owned())];
            Event::new("exception", span.begun + span.took, what, 0)
        }));
        // As AzureML's server counts it: what is refused is no success either.
        let status = match span.outcome {
            Some(status) if status.as_u16() < 400 => Status::Ok,
            _ => Status::error(""),
        };
        SpanData {
            span_context: context,
            parent_span_id: span.parent.map_or(Span::INVALID, Span::from_bytes),
            parent_span_is_remote: span.parent.is_some(),
            span_kind: SpanKind::Server,
            name: span.name().concat().into(),
            start_time: span.begun,
            end_time: span.begun + span.took,
            attributes,
            dropped_attributes_count: 0,
            events,
            links: SpanLinks::default(),
            status,
            instrumentation_scope: InstrumentationScope::builder("outrigger").build(),
        }
    }
}

/// The most of an answer that is read, bytes: what is wrong with which of a batch's records.
const MAX_ANSWER: usize = 1 << 20;

/// What the exporter sends by.
struct Client {
    client: reqwest::Client,
    /// Whether the operator has said that it is reached without TLS, which the exporter would not believe.
    plain: bool,
}

fn is_plain(connection: &str) -> bool {
    connection.split(';').filter_map(|part| part.split_once('=')).any(|(name, value)| {
        name.eq_ignore_ascii_case("IngestionEndpoint") && value.trim().starts_with("http://")
    })
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

type Sent<'a> =
    Pin<Box<dyn Future<Output = Result<Response<Bytes>, Box<dyn Error + Send + Sync>>> + Send + 'a>>;

impl HttpClient for Client {
    fn send_bytes<'a, 'b>(&'a self, request: Request<Bytes>) -> Sent<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let mut request = request;
            if self.plain {
                let mut parts = request.uri().clone().into_parts();
                parts.scheme = Some(Scheme::HTTP);
                *request.uri_mut() = Uri::from_parts(parts)?;
            }
            let request = reqwest::Request::try_from(request.map(reqwest::Body::from))?;
            let mut answer = self.client.execute(request).await.map_err(reqwest::Error::without_url)?;
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = answer.status();
            std::mem::swap(response.headers_mut(), answer.headers_mut());
            let mut body = Vec::new();
            while let Some(piece) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
                if body.len() + piece.len() > MAX_ANSWER {
                    return Err("the answer is too long".into());
                }
                body.extend_from_slice(&piece);
            }
            *response.body_mut() = body.into();
            Ok(response)
        })
    }
}
