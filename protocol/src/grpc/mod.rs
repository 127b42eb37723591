//! What all of gRPC shares over HTTP/2: statuses, the frame around a message, time limits.
//!
//! Source: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.

pub mod health;

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::headers;
use crate::urgency::Urgency;
use crate::{CallError, ErrorCode};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// How messages of a request are compressed.
pub const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
/// How messages of a request may be compressed.
pub const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
/// The encodings that are taken.
pub const ENCODINGS: HeaderValue = HeaderValue::from_static("identity,deflate,gzip");

const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// Bytes before each message: whether it is compressed, and its length.
pub const PREFIX: usize = 5;

/// What is escaped in a message: all but what is printed in ASCII, and `%`.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// Whether a request is gRPC's.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = content_type.and_then(|value| value.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b";") || rest.starts_with(b"+proto"))
}

/// The status of a code. No other place chooses one.
pub const fn status(code: ErrorCode) -> i32 {
    match code {
        // UNIMPLEMENTED: how clients learn that they can do without.
        ErrorCode::NotFound | ErrorCode::MethodNotAllowed | ErrorCode::UnsupportedMediaType => 12,
        // ABORTED and FAILED_PRECONDITION differ in whether the whole may be tried again; here it may not.
        ErrorCode::Conflict => 9,
        code => match code.status().as_u16() {
            400 => 3,             // INVALID_ARGUMENT
            401 => 16,            // UNAUTHENTICATED
            403 => 7,             // PERMISSION_DENIED
            404 => 5,             // NOT_FOUND
            408 | 504 => 4,       // DEADLINE_EXCEEDED
            413 | 429 | 431 => 8, // RESOURCE_EXHAUSTED
            502 | 503 => 14,      // UNAVAILABLE
            _ => 13,              // INTERNAL
        },
    }
}

/// The head of an answer whose messages and trailers follow.
pub fn encode_ok() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().reserve(8);
    response.headers_mut().insert(CONTENT_TYPE, MEDIA_TYPE);
    response.headers_mut().insert(ACCEPT_ENCODING, ENCODINGS);
    response
}

/// The trailers of an answer that is whole.
pub fn ok_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert(STATUS, HeaderValue::from_static("0"));
    trailers
}

/// The answer for a call that failed before there was anything else to say: all is in the head.
pub fn encode_error(error: &CallError) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.headers_mut() = error_trailers(error);
    response.headers_mut().insert(CONTENT_TYPE, MEDIA_TYPE);
    response.headers_mut().insert(ACCEPT_ENCODING, ENCODINGS);
    response
}

/// The same for one that fails later.
pub fn error_trailers(error: &CallError) -> HeaderMap {
    let mut trailers = headers::of_error(error);
    trailers.insert(STATUS, HeaderValue::from(status(error.code)));
    let text = utf8_percent_encode(&error.message, ESCAPED).to_string();
    if let Ok(text) = HeaderValue::try_from(text) {
        trailers.insert(MESSAGE, text);
    }
    trailers
}

/// How long the caller waits, from `grpc-timeout`; a day at most.
///
/// # Errors
/// [`ErrorCode::BadRequest`] for a value that is none.
pub fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, CallError> {
    let Some(value) = headers.get(TIMEOUT) else { return Ok(None) };
    let wrong = || CallError::new(ErrorCode::BadRequest, "`grpc-timeout` is up to 8 digits and a unit");
    let (unit, digits) = value.as_bytes().split_last().ok_or_else(wrong)?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(wrong());
    }
    let count = digits.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    let timeout = match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return Err(wrong()),
    };
    Ok(Some(timeout.min(Urgency::LONGEST)))
}

/// What stands before a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Whether the message is compressed.
    pub compressed: bool,
    /// Its length in bytes.
    pub length: usize,
}

impl Prefix {
    /// Reads one.
    ///
    /// # Errors
    /// [`ErrorCode::BadRequest`] if its first byte is neither 0 nor 1.
    pub fn parse(bytes: [u8; PREFIX]) -> Result<Self, CallError> {
        let [flag, length @ ..] = bytes;
        if flag > 1 {
            return Err(CallError::new(ErrorCode::BadRequest, "a message begins with neither 0 nor 1"));
        }
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        Ok(Self { compressed: flag == 1, length })
    }

    /// Writes that of a message that is not compressed.
    ///
    /// # Errors
    /// [`ErrorCode::Internal`] if it has 4 GiB and more.
    pub fn encode(length: usize) -> Result<[u8; PREFIX], CallError> {
        let too_long = |_| CallError::new(ErrorCode::Internal, "an answer is too long for a message");
        let [a, b, c, d] = u32::try_from(length).map_err(too_long)?.to_be_bytes();
        Ok([0, a, b, c, d])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_status_that_says_whether_to_come_again() {
        for code in ErrorCode::ALL {
            let status = status(*code);
            assert!((1..=16).contains(&status), "{code}");
            if code.status().as_u16() == 503 {
                assert_eq!(status, 14, "{code}");
            }
        }
        assert_eq!(status(ErrorCode::DeadlineExceeded), 4);
        assert_eq!(status(ErrorCode::ModelNotFound), 5);
        assert_eq!(status(ErrorCode::NotFound), 12);
    }

    #[test]
    fn errors_are_in_the_head_and_escaped() {
        let error =
            CallError::new(ErrorCode::Overloaded, "voll: 100 %\nö").with_retry_after(Duration::from_secs(2));
        let response = encode_error(&error);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], "voll: 100 %25%0A%C3%B6");
        assert_eq!(response.headers()["outrigger-code"], "overloaded");
        assert_eq!(response.headers()["outrigger-retryable"], "true");
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["content-type"], "application/grpc");
    }

    #[test]
    fn timeouts_have_units() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", value.parse().unwrap());
            timeout(&headers)
        };
        let table = [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("250m", Duration::from_millis(250)),
            ("7u", Duration::from_micros(7)),
            ("0n", Duration::ZERO),
            ("99999999H", Duration::from_secs(86_400)),
        ];
        for (value, expected) in table {
            assert_eq!(read(value).unwrap(), Some(expected), "{value}");
        }
        for value in ["", "S", "1", "123456789S", "-1S", "1s", "1.5S"] {
            assert_eq!(read(value).unwrap_err().code, ErrorCode::BadRequest, "{value}");
        }
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn prefixes_go_both_ways() {
        let bytes = Prefix::encode(0x0102_0304).unwrap();
        assert_eq!(Prefix::parse(bytes).unwrap(), Prefix { compressed: false, length: 0x0102_0304 });
        assert!(Prefix::parse([1, 0, 0, 0, 9]).unwrap().compressed);
        assert_eq!(Prefix::parse([2, 0, 0, 0, 9]).unwrap_err().code, ErrorCode::BadRequest);
        assert!(Prefix::encode(1 << 32).is_err());
    }
}
