//! Handing a message to a collector: by HTTP, or by gRPC, of which each call is one request over HTTP/2.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::config::{OtlpConfig, OtlpProtocol};

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
}

impl SendError {
    /// Whether the same may be taken in a moment. Source: OTLP's specification, sections "Failures" and "Retryable Response Codes".
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::NoClient => false,
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

    /// Hands over a message. It has `limit` where that is less than it has otherwise.
    pub(super) async fn send(
        &self,
        signal: Signal,
        message: Vec<u8>,
        limit: Option<Duration>,
    ) -> Result<(), SendError> {
        let url = match signal {
            Signal::Traces => &self.traces,
            Signal::Metrics => &self.metrics,
        };
        // What is not configured is not sent.
        let Some(url) = url else { return Ok(()) };
        let client = self.client.as_ref().ok_or(SendError::NoClient)?;
        let timeout = limit.map_or(self.timeout, |limit| limit.min(self.timeout));
        let request = client.post(url).headers(self.headers.clone()).timeout(timeout);
        let request = match self.protocol {
            OtlpProtocol::Http => {
                request.header(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf")).body(message)
            }
            OtlpProtocol::Grpc => request
                .header(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
                .header("te", HeaderValue::from_static("trailers"))
                .body(framed(&message)),
        };
        let answer = request.send().await.map_err(unreachable)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        if !status.is_success() {
            return Err(SendError::Refused(status));
        }
        let body = answer.bytes().await.map_err(unreachable)?;
        if self.protocol == OtlpProtocol::Grpc {
            // What fails has no message, and says why in its head: the client does not see what comes behind a body.
            let code = headers.get("grpc-status").and_then(|code| code.to_str().ok()).unwrap_or("2");
            if body.len() < 5 && code != "0" {
                return Err(SendError::Status(code.to_owned()));
            }
        }
        Ok(())
    }
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

/// A message as gRPC has it: not compressed, its length, itself.
fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.extend_from_slice(message);
    framed.freeze()
}
