//! The names of the headers that the contracts use, parsed once at compile time, and the pieces of an answer
//! that the contracts share.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response};

use crate::{CallError, ErrorCode};

/// Identifies the request; echoed, or made by the server.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The older name of the request's and the client's identifier.
pub const MS_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");
/// The client's own identifier.
pub const MS_CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");
/// How many milliseconds after it came a request has lost its worth.
pub const REQUEST_DEADLINE_MS: HeaderName = HeaderName::from_static("x-request-deadline-ms");
/// How urgent a request is: `high`, `normal` or `low`.
pub const REQUEST_PRIORITY: HeaderName = HeaderName::from_static("x-request-priority");
/// `TraceId`, echoed if sent.
pub const TRACE_ID: HeaderName = HeaderName::from_static("traceid");
/// Name and version of the server.
pub const MS_SERVER_VERSION: HeaderName = HeaderName::from_static("x-ms-server-version");
/// Whether it was the user's `run()` that failed: `True` or `False`.
pub const MS_RUN_FUNCTION_FAILED: HeaderName = HeaderName::from_static("x-ms-run-function-failed");
/// Wall time of the user's `run()`, in milliseconds with three decimals.
pub const MS_RUN_FN_EXEC_MS: HeaderName = HeaderName::from_static("x-ms-run-fn-exec-ms");
/// [`ErrorCode::as_str`] of an answer that is an error.
pub const CODE: HeaderName = HeaderName::from_static("outrigger-code");
/// [`ErrorCode::retryable`] of an answer that is an error: `true` or `false`.
pub const RETRYABLE: HeaderName = HeaderName::from_static("outrigger-retryable");

/// Who calls, by name, as a server behind the replica is told.
pub const CALLER: HeaderName = HeaderName::from_static("outrigger-caller");

/// The device that a model ran on, or was to when the call failed, such as `cpu:0`; where that is not what it was to go to first,
/// `; fallback-from=` and what was.
pub const DEVICE: HeaderName = HeaderName::from_static("outrigger-device");

/// Of a model whose answers are kept, how this one was come by: `hit`, `joined` where another call was at it, or `miss`.
pub const CACHE: HeaderName = HeaderName::from_static("outrigger-cache");

/// How many bytes of a body are JSON, where the bytes of tensors follow it.
pub const INFERENCE_HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// The value of [`MS_SERVER_VERSION`], for fronts that are told to send it: `outrigger/` and the version.
pub const SERVER_VERSION: HeaderValue =
    HeaderValue::from_static(concat!("outrigger/", env!("CARGO_PKG_VERSION")));

pub(crate) const APPLICATION_JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer with status, body and all headers of `error` that do not depend on the contract.
pub(crate) fn error_response(error: &CallError, body: Vec<u8>) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = error.code.status();
    *response.headers_mut() = of_error(error);
    response.headers_mut().insert(CONTENT_TYPE, APPLICATION_JSON);
    if error.code == ErrorCode::Unauthenticated {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// What every contract says of `error`: its code, whether and when to come again, and where the call was.
pub(crate) fn of_error(error: &CallError) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CODE, HeaderValue::from_static(error.code.as_str()));
    let retryable = if error.code.retryable() { "true" } else { "false" };
    headers.insert(RETRYABLE, HeaderValue::from_static(retryable));
    if let Some(delay) = error.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(delay)));
    }
    if let Some(devices) = &error.devices {
        headers.insert(DEVICE, devices.clone());
    }
    headers
}

/// `{"<key>": "<text>"}`, with `text` escaped.
pub(crate) fn single_member(key: &str, text: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(key.len() + text.len() + 16);
    body.extend_from_slice(b"{\"");
    body.extend_from_slice(key.as_bytes());
    body.extend_from_slice(b"\": ");
    write_string(&mut body, text);
    body.push(b'}');
    body
}

/// Appends `text` as a JSON string.
pub(crate) fn write_string(body: &mut Vec<u8>, text: &str) {
    if serde_json::to_writer(&mut *body, text).is_err() {
        // Cannot happen: writing to memory does not fail and every `str` has a JSON form.
        body.extend_from_slice(b"\"\"");
    }
}

/// `Retry-After` takes whole seconds; rounding up never asks a client back too early.
fn whole_seconds(delay: Duration) -> u64 {
    delay.as_secs().saturating_add(u64::from(delay.subsec_nanos() > 0))
}
