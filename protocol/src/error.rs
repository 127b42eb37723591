//! What can go wrong with a call: the short list of codes, and the one place that turns a code into an HTTP
//! status.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderValue, StatusCode};

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $text:literal, $status:ident, $retryable:literal;)+) => {
        /// Why a call was not answered with a result. The strings are stable: clients may match on them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl ErrorCode {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable name, in snake case, as it travels in `outrigger-code`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// What it means, in a sentence or two.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// The HTTP status. No other place chooses one.
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)+ }
            }

            /// Whether the same request, sent again later or to another replica, may succeed.
            pub const fn retryable(self) -> bool {
                match self { $(Self::$variant => $retryable,)+ }
            }
        }
    };
}

error_codes! {
    /// The request breaks a rule of its contract that has no code of its own.
    BadRequest = "bad_request", BAD_REQUEST, false;
    /// The body is not JSON.
    MalformedJson = "malformed_json", BAD_REQUEST, false;
    /// A tensor has a name, shape, datatype or value that the model does not take.
    InvalidTensor = "invalid_tensor", BAD_REQUEST, false;
    /// The datatype is one that this contract does not carry yet.
    UnsupportedDatatype = "unsupported_datatype", BAD_REQUEST, false;
    /// No key, or not a valid one.
    Unauthenticated = "unauthenticated", UNAUTHORIZED, false;
    /// The key is valid and does not allow this operation on this model.
    Forbidden = "forbidden", FORBIDDEN, false;
    /// There is nothing at this URL.
    NotFound = "not_found", NOT_FOUND, false;
    /// The service has no such model or version.
    ModelNotFound = "model_not_found", NOT_FOUND, false;
    /// The URL exists and does not take this method.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, false;
    /// What is asked for cannot be done as things are.
    Conflict = "conflict", CONFLICT, false;
    /// The body did not arrive in time.
    BodyTimeout = "body_timeout", REQUEST_TIMEOUT, true;
    /// The body is over its limit.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, false;
    /// The content type is not one that the operation takes.
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE, false;
    /// The caller has made more calls than its rate allows.
    RateLimited = "rate_limited", TOO_MANY_REQUESTS, true;
    /// The caller has as many calls in the house as it may have.
    TooManyCalls = "too_many_calls", TOO_MANY_REQUESTS, true;
    /// The headers are over their limit.
    HeaderTooLarge = "header_too_large", REQUEST_HEADER_FIELDS_TOO_LARGE, false;
    /// A request identifier is over its limit.
    RequestIdTooLong = "request_id_too_long", REQUEST_HEADER_FIELDS_TOO_LARGE, false;
    /// The user's script raised.
    ScriptError = "script_error", INTERNAL_SERVER_ERROR, false;
    /// The user's script returned something that has no JSON form.
    ScriptResultUnserialisable = "script_result_unserialisable", INTERNAL_SERVER_ERROR, false;
    /// The result holds NaN or an infinity, which JSON cannot say.
    ResultNotFinite = "result_not_finite", INTERNAL_SERVER_ERROR, false;
    /// The call ran longer than the scoring timeout.
    ScoringTimeout = "scoring_timeout", INTERNAL_SERVER_ERROR, false;
    /// The worker that ran the call died.
    WorkerLost = "worker_lost", INTERNAL_SERVER_ERROR, true;
    /// The model failed while it ran.
    ModelFailed = "model_failed", INTERNAL_SERVER_ERROR, false;
    /// The server behind this replica answered with what cannot be passed on.
    UpstreamFailed = "upstream_failed", BAD_GATEWAY, false;
    /// The server behind this replica broke off before its answer was complete.
    UpstreamLost = "upstream_lost", BAD_GATEWAY, true;
    /// The server behind this replica cannot be reached, or says that it is not ready.
    UpstreamUnavailable = "upstream_unavailable", SERVICE_UNAVAILABLE, true;
    /// A mistake of the server's own.
    Internal = "internal", INTERNAL_SERVER_ERROR, false;
    /// No slot is free and the queue is full, or the deadline cannot be met.
    Overloaded = "overloaded", SERVICE_UNAVAILABLE, true;
    /// The deadline that the call came with is over.
    DeadlineExceeded = "deadline_exceeded", GATEWAY_TIMEOUT, false;
    /// The replica is ending and takes no new calls.
    Draining = "draining", SERVICE_UNAVAILABLE, true;
    /// The replica has not finished starting.
    NotReady = "not_ready", SERVICE_UNAVAILABLE, true;
    /// The model is known and cannot run at the moment.
    ModelUnavailable = "model_unavailable", SERVICE_UNAVAILABLE, true;
}

impl ErrorCode {
    /// Whether it was the user's `run()` that failed, for `x-ms-run-function-failed`. A result that came and
    /// cannot be sent does not count, as in the contract.
    pub const fn run_function_failed(self) -> bool {
        matches!(self, Self::ScriptError | Self::ScoringTimeout | Self::WorkerLost | Self::UpstreamLost)
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A call that failed: the code, a text for the caller, and when to come back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// What went wrong.
    pub code: ErrorCode,
    /// For the caller; goes into the body of the answer, so it holds no secret and no detail of the server's
    /// inside.
    pub message: Cow<'static, str>,
    /// When a retry makes sense, if that is known.
    pub retry_after: Option<Duration>,
    /// The devices that the call was on, as `outrigger-device` says them.
    pub devices: Option<HeaderValue>,
}

impl CallError {
    /// Makes an error that says nothing of when to retry.
    pub fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), retry_after: None, devices: None }
    }

    /// The same error with a time after which to retry.
    #[must_use]
    pub fn with_retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// The same error of a call that was on these devices.
    #[must_use]
    pub fn on(mut self, devices: Option<HeaderValue>) -> Self {
        self.devices = devices;
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_in_snake_case() {
        let names: HashSet<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), ErrorCode::ALL.len());
        for name in names {
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
        }
    }

    #[test]
    fn a_retry_helps_where_the_server_was_busy_or_unlucky_only() {
        for code in ErrorCode::ALL {
            let expected = matches!(code.status().as_u16(), 429 | 503)
                || matches!(code, ErrorCode::BodyTimeout | ErrorCode::WorkerLost | ErrorCode::UpstreamLost);
            assert_eq!(code.retryable(), expected, "{code}");
        }
    }

    #[test]
    fn every_code_is_an_error_status() {
        for code in ErrorCode::ALL {
            assert!(code.status().is_client_error() || code.status().is_server_error(), "{code}");
        }
    }

    #[test]
    fn codes_have_the_statuses_of_the_contract() {
        use ErrorCode::*;
        let table = [
            (BadRequest, 400),
            (MalformedJson, 400),
            (InvalidTensor, 400),
            (UnsupportedDatatype, 400),
            (Unauthenticated, 401),
            (Forbidden, 403),
            (NotFound, 404),
            (ModelNotFound, 404),
            (MethodNotAllowed, 405),
            (BodyTimeout, 408),
            (BodyTooLarge, 413),
            (UnsupportedMediaType, 415),
            (RateLimited, 429),
            (TooManyCalls, 429),
            (HeaderTooLarge, 431),
            (RequestIdTooLong, 431),
            (ScriptError, 500),
            (ScoringTimeout, 500),
            (UpstreamFailed, 502),
            (UpstreamLost, 502),
            (UpstreamUnavailable, 503),
            (Overloaded, 503),
            (Draining, 503),
        ];
        for (code, status) in table {
            assert_eq!(code.status().as_u16(), status, "{code}");
        }
    }
}
