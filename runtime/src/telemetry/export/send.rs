//! Handing a message to a collector: by HTTP, or by gRPC, of which each call is one request over HTTP/2.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;

use crate::config::{OtlpConfig, OtlpProtocol};

/// What is before a message in gRPC, bytes: whether it is compressed, and its length.
pub(super) const FRAME: usize = 5;

/// A message behind its frame, as gRPC has it: not compressed, its length, itself. By HTTP it goes without.
#[derive(Clone)]
pub(super) struct Framed(Bytes);

impl Framed {
    pub(super) fn of(message: &impl prost::Message) -> Self {
        let mut bytes = Vec::with_capacity(FRAME + message.encoded_len());
        bytes.resize(FRAME, 0);
        // A vector has room for any.
        let _ = message.encode(&mut bytes);
        Self::behind(bytes, FRAME)
    }

    /// A message that begins there, with room for its frame before it.
    pub(super) fn behind(mut bytes: Vec<u8>, begin: usize) -> Self {
        let length = u32::try_from(bytes.len().saturating_sub(begin)).unwrap_or(u32::MAX);
        let frame = begin.saturating_sub(FRAME);
        if let Some(mut place) = bytes.get_mut(frame..begin) {
            place.put_u8(0);
            place.put_u32(length);
        }
        let mut bytes = Bytes::from(bytes);
        bytes.advance(frame);
        Self(bytes)
    }

    /// Bytes, of the frame too.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Without the frame.
    fn message(&self) -> Bytes {
        self.0.slice(FRAME.min(self.0.len())..)
    }
}

impl From<Framed> for Bytes {
    fn from(framed: Framed) -> Self {
        framed.0
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        }
    }
}

/// Why a collector has not taken something.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// There is no client, which has been said at the start.
    #[error("there is no client")]
    NoClient,
    #[error("{0}")]
    Unreachable(String),
    #[error("it answers {0}")]
    Refused(StatusCode),
    #[error("it answers grpc-status {0}")]
    Status(String),
    /// There is no more time for it.
    #[error("the replica ends")]
    Ends,
}

impl SendError {
    /// Whether the same may be taken in a moment. Source: OTLP's specification, sections "Failures" and "Retryable Response Codes".
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::NoClient | Self::Ends => false,
            Self::Unreachable(_) => true,
            Self::Refused(status) => [429, 502, 503, 504].contains(&status.as_u16()),
            Self::Status(code) => ["1", "4", "8", "10", "11", "14", "15"].contains(&code.as_str()),
        }
    }
}

/// A client of the collector's.
pub(super) struct Client {
    client: Option<reqwest::Client>,
    traces: Option<String>,
    metrics: Option<String>,
    headers: HeaderMap,
    protocol: OtlpProtocol,
    timeout: Duration,
}

impl Client {
    pub(super) fn new(config: &OtlpConfig) -> Self {
        let builder = reqwest::Client::builder().connect_timeout(config.timeout).no_proxy();
        // The headers may hold what is secret, and are for the collector alone.
        let builder = builder.redirect(reqwest::redirect::Policy::none());
        let builder = match config.protocol {
            OtlpProtocol::Http => builder,
            OtlpProtocol::Grpc => builder.http2_prior_knowledge(),
        };
        let client = builder.build();
        let client = client.inspect_err(|error| tracing::error!(%error, "no telemetry can be sent"));
        Self {
            client: client.ok(),
            traces: config.traces.clone(),
            metrics: config.metrics.clone(),
            headers: config.headers.clone(),
            protocol: config.protocol,
            timeout: config.timeout,
        }
    }

    /// Hands over a message, and says how many of what is in it are rejected.
    pub(super) async fn send(&self, signal: Signal, message: &Framed) -> Result<u64, SendError> {
        let url = match signal {
            Signal::Traces => &self.traces,
            Signal::Metrics => &self.metrics,
        };
        // What is not configured is not sent.
        let Some(url) = url else { return Ok(0) };
        let client = self.client.as_ref().ok_or(SendError::NoClient)?;
        let request = client.post(url).headers(self.headers.clone()).timeout(self.timeout);
        let request = match self.protocol {
            OtlpProtocol::Http => request
                .header(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"))
                .body(message.message()),
            OtlpProtocol::Grpc => request
                .header(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
                .header("te", HeaderValue::from_static("trailers"))
                .body(message.0.clone()),
        };
        let answer = request.send().await.map_err(unreachable)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        if !status.is_success() {
            return Err(SendError::Refused(status));
        }
        let body = answer.bytes().await.map_err(unreachable)?;
        let mut message = body.clone();
        if self.protocol == OtlpProtocol::Grpc {
            // What fails has no message, and says why in its head: the client does not see what comes behind a body.
            let code = headers.get("grpc-status").and_then(|code| code.to_str().ok()).unwrap_or("2");
            if body.len() < FRAME && code != "0" {
                return Err(SendError::Status(code.to_owned()));
            }
            message.advance(message.len().min(FRAME));
        }
        Ok(rejected(message))
    }
}

/// How much of a message was not taken. What is no answer of the protocol's says nothing of that.
fn rejected(answer: Bytes) -> u64 {
    // That to metrics looks the same.
    let answer = ExportTraceServiceResponse::decode(answer).unwrap_or_default();
    let Some(partial) = answer.partial_success else { return 0 };
    if !partial.error_message.is_empty() {
        let (rejected, said) = (partial.rejected_spans, partial.error_message.as_str());
        tracing::warn!(rejected, said, "the collector says something of what it has taken");
    }
    u64::try_from(partial.rejected_spans).unwrap_or(0)
}

/// The whole chain of reasons, without the URL, which may hold what is secret.
fn unreachable(error: reqwest::Error) -> SendError {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(reason) = source {
        text.push_str(": ");
        text.push_str(&reason.to_string());
        source = reason.source();
    }
    SendError::Unreachable(text)
}
