//! The AzureML scoring contract (`/score`): its texts and its answers.
//!
//! Source: azureml-inference-server-http 1.5.1, in the strict reading: identifiers on every answer, no bare
//! NaN.

use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response};

use crate::error::{CallError, ErrorCode};
use crate::headers::{
    APPLICATION_JSON, MS_RUN_FN_EXEC_MS, MS_RUN_FUNCTION_FAILED, error_response, single_member,
};

/// The body of `GET /`.
pub const HEALTHY: &str = "Healthy";
/// 400: an empty body where a JSON object is expected.
pub const BODY_EMPTY: &str = "POST body is empty. Expecting a JSON dictionary.";
/// 400: a body that is JSON and no object.
pub const BODY_NOT_A_DICTIONARY: &str = "POST body should be a JSON dictionary.";
/// 404: nothing at this URL.
pub const NOT_FOUND: &str = "The requested URL was not found on the server. If you entered the URL manually please check your spelling and try again.";
/// 405: for `HEAD /score`.
pub const METHOD_NOT_ALLOWED: &str = "Method not allowed";
/// 405: for a method that the URL does not have at all.
pub const METHOD_NOT_ALLOWED_FOR_URL: &str = "The method is not allowed for the requested URL.";
/// 415: a content type that is not JSON where JSON is expected.
pub const EXPECTS_JSON: &str = "Expects Content-Type to be application/json";
/// 500: the script raised.
pub const SCRIPT_ERROR: &str =
    "An unexpected error occurred in scoring script. Check the logs for more info.";
/// 500: the result cannot be sent, or the server made a mistake.
pub const INTERNAL_ERROR: &str = "An unexpected internal error occurred. Check the logs for more info.";

/// 400: the body is not UTF-8.
pub fn input_not_utf8(error: std::str::Utf8Error) -> CallError {
    CallError::new(ErrorCode::BadRequest, format!("Input cannot be decoded as UTF-8: {error}"))
}

/// 400: the body is not JSON. `detail` says where and why.
pub fn body_not_json(detail: impl std::fmt::Display) -> CallError {
    CallError::new(ErrorCode::MalformedJson, format!("POST body could not be decoded as JSON: {detail}"))
}

/// 400: a parameter of `run()` that has no default is missing.
pub fn value_missing(parameter: &str) -> CallError {
    CallError::new(ErrorCode::BadRequest, format!("A value is not provided for the '{parameter}' parameter."))
}

/// 500: the call ran longer than `limit`.
pub fn scoring_timeout(limit: Duration) -> CallError {
    CallError::new(ErrorCode::ScoringTimeout, format!("Scoring timeout after {} ms", limit.as_millis()))
}

/// 500: the script raised.
pub fn script_error() -> CallError {
    CallError::new(ErrorCode::ScriptError, SCRIPT_ERROR)
}

/// 500: a failure of the kind `code` whose details stay in the log.
pub fn internal_error(code: ErrorCode) -> CallError {
    CallError::new(code, INTERNAL_ERROR)
}

/// 404: nothing at this URL.
pub fn not_found() -> CallError {
    CallError::new(ErrorCode::NotFound, NOT_FOUND)
}

/// The answer for a failed call: `{"message": "..."}`, `x-ms-run-function-failed`, and the headers that every
/// contract has (`outrigger-code`, `outrigger-retryable`, `outrigger-device`, `Retry-After`, `WWW-Authenticate`).
pub fn encode_error(error: &CallError) -> Response<Bytes> {
    let mut response = error_response(error, single_member("message", &error.message));
    let failed = if error.code.run_function_failed() { "True" } else { "False" };
    response.headers_mut().insert(MS_RUN_FUNCTION_FAILED, HeaderValue::from_static(failed));
    response
}

/// The answer for a call whose `run()` returned after `run_time`. `body` is the result as JSON.
pub fn encode_ok(body: Bytes, run_time: Duration) -> Response<Bytes> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.reserve(8);
    headers.insert(CONTENT_TYPE, APPLICATION_JSON);
    mark(headers, false, Some(run_time));
    response
}

/// Puts what the contract says of `run()` into an answer: whether it failed, and its time where it has returned.
pub fn mark(headers: &mut HeaderMap, failed: bool, run_time: Option<Duration>) {
    headers.insert(MS_RUN_FUNCTION_FAILED, HeaderValue::from_static(if failed { "True" } else { "False" }));
    if let Some(run_time) = run_time {
        headers.insert(MS_RUN_FN_EXEC_MS, milliseconds(run_time));
    }
}

/// `time` in milliseconds with three decimals, rounded to the nearest.
pub fn milliseconds(time: Duration) -> HeaderValue {
    let micros = time.as_nanos().saturating_add(500) / 1000;
    let mut buffer = [0u8; 48];
    let capacity = buffer.len();
    let mut rest = &mut buffer[..];
    // The longest `Duration` has 23 digits here, so the buffer always suffices.
    let written = match write!(rest, "{}.{:03}", micros / 1000, micros % 1000) {
        Ok(()) => capacity - rest.len(),
        Err(_) => 0,
    };
    HeaderValue::from_bytes(&buffer[..written]).unwrap_or(HeaderValue::from_static("0.000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header<'a>(response: &'a Response<Bytes>, name: &str) -> Option<&'a str> {
        response.headers().get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn errors_have_one_member_and_all_headers() {
        let table = [
            (script_error(), 500, "True", "false"),
            (scoring_timeout(Duration::from_secs(3)), 500, "True", "false"),
            (internal_error(ErrorCode::ScriptResultUnserialisable), 500, "False", "false"),
            (internal_error(ErrorCode::WorkerLost), 500, "True", "true"),
            (not_found(), 404, "False", "false"),
            (CallError::new(ErrorCode::MethodNotAllowed, METHOD_NOT_ALLOWED), 405, "False", "false"),
            (value_missing("x"), 400, "False", "false"),
            (CallError::new(ErrorCode::Overloaded, "no slot is free"), 503, "False", "true"),
        ];
        for (error, status, failed, retryable) in table {
            let response = encode_error(&error);
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(header(&response, "content-type"), Some("application/json"));
            assert_eq!(header(&response, "x-ms-run-function-failed"), Some(failed), "{error:?}");
            assert_eq!(header(&response, "outrigger-code"), Some(error.code.as_str()));
            assert_eq!(header(&response, "outrigger-retryable"), Some(retryable));
            assert_eq!(header(&response, "retry-after"), None);
            assert_eq!(header(&response, "www-authenticate"), None);
            assert_eq!(&response.body()[..], format!("{{\"message\": \"{}\"}}", error.message).as_bytes());
        }
    }

    #[test]
    fn texts_are_the_contracts() {
        let invalid = String::from_utf8(vec![b'a', 0xff]).unwrap_err().utf8_error();
        assert!(input_not_utf8(invalid).message.starts_with("Input cannot be decoded as UTF-8: "));
        assert_eq!(body_not_json("x").message, "POST body could not be decoded as JSON: x");
        assert_eq!(value_missing("x").message, "A value is not provided for the 'x' parameter.");
        assert_eq!(scoring_timeout(Duration::from_secs(3)).message, "Scoring timeout after 3000 ms");
    }

    #[test]
    fn messages_are_escaped() {
        let error = CallError::new(ErrorCode::BadRequest, "a \"quoted\"\nline");
        let response = encode_error(&error);
        assert_eq!(&response.body()[..], br#"{"message": "a \"quoted\"\nline"}"#);
    }

    #[test]
    fn waiting_times_are_rounded_up_to_seconds() {
        for (millis, expected) in [(0, "0"), (1, "1"), (1000, "1"), (1001, "2")] {
            let error =
                CallError::new(ErrorCode::Overloaded, "full").with_retry_after(Duration::from_millis(millis));
            assert_eq!(header(&encode_error(&error), "retry-after"), Some(expected));
        }
    }

    #[test]
    fn a_missing_key_is_asked_for() {
        let response = encode_error(&CallError::new(ErrorCode::Unauthenticated, "no key"));
        assert_eq!(response.status().as_u16(), 401);
        assert_eq!(header(&response, "www-authenticate"), Some("Bearer"));
    }

    #[test]
    fn results_go_out_as_they_are() {
        let body = Bytes::from_static(b"{\"result\": [1]}");
        let response = encode_ok(body.clone(), Duration::from_micros(1234));
        assert_eq!(response.status().as_u16(), 200);
        assert_eq!(header(&response, "content-type"), Some("application/json"));
        assert_eq!(header(&response, "x-ms-run-function-failed"), Some("False"));
        assert_eq!(header(&response, "x-ms-run-fn-exec-ms"), Some("1.234"));
        assert_eq!(response.body().as_ptr(), body.as_ptr());
    }

    #[test]
    fn times_have_three_decimals() {
        let table = [
            (Duration::ZERO, "0.000"),
            (Duration::from_nanos(499), "0.000"),
            (Duration::from_nanos(500), "0.001"),
            (Duration::from_micros(42), "0.042"),
            (Duration::from_millis(1500), "1500.000"),
            (Duration::MAX, "18446744073709551616000.000"),
        ];
        for (time, expected) in table {
            assert_eq!(milliseconds(time), expected);
        }
    }
}
