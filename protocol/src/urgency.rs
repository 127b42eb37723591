//! What a request says of when it wants its answer: by when, and before which others.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use crate::headers::{REQUEST_DEADLINE_MS, REQUEST_PRIORITY};
use crate::priority::Priority;
use crate::{CallError, ErrorCode};

/// What a request wishes for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Urgency {
    /// How long after it came it has lost its worth; `None` if it does not say.
    pub deadline: Option<Duration>,
    /// How urgent it is; `None` if it does not say.
    pub priority: Option<Priority>,
}

impl Urgency {
    /// The longest deadline: a day. What asks for more has that.
    pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

    /// What headers say, and what the body says beside: the earlier deadline; the headers' priority, for a proxy on the way may set it.
    #[must_use]
    pub fn beside(self, body: Self) -> Self {
        let deadline = self.deadline.into_iter().chain(body.deadline).min();
        Self { deadline, priority: self.priority.or(body.priority) }
    }

    /// Reads `x-request-deadline-ms` (whole milliseconds from the arrival of the request) and `x-request-priority` (`high`, `normal` or
    /// `low`).
    ///
    /// # Errors
    /// `bad_request` for a value that is neither, and for a header that is there twice.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, CallError> {
        let wrong = |text: &'static str| CallError::new(ErrorCode::BadRequest, text);
        let one = |name| -> Result<Option<&HeaderValue>, ()> {
            let mut values = headers.get_all(name).iter();
            let first = values.next();
            if values.next().is_some() { Err(()) } else { Ok(first) }
        };
        let deadline = || -> Result<Option<Duration>, ()> {
            let Some(value) = one(REQUEST_DEADLINE_MS)? else { return Ok(None) };
            let text = value.as_bytes();
            if text.is_empty() || text.len() > 18 || !text.iter().all(u8::is_ascii_digit) {
                return Err(());
            }
            let millis = text.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
            Ok(Some(Duration::from_millis(millis).min(Self::LONGEST)))
        };
        let priority = || -> Result<Option<Priority>, ()> {
            let Some(value) = one(REQUEST_PRIORITY)? else { return Ok(None) };
            value.to_str().ok().and_then(Priority::from_name).map(Some).ok_or(())
        };
        Ok(Self {
            deadline: deadline().map_err(|()| {
                wrong("the header `x-request-deadline-ms` takes one whole number of milliseconds")
            })?,
            priority: priority()
                .map_err(|()| wrong("the header `x-request-priority` takes one of high, normal and low"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&'static str, &str)]) -> Result<Urgency, CallError> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap()));
        let mut map = HeaderMap::new();
        headers.for_each(|(name, value): (http::HeaderName, _)| {
            map.append(name, value);
        });
        Urgency::from_headers(&map)
    }

    #[test]
    fn what_is_not_said_is_not_there() {
        assert_eq!(read(&[]).unwrap(), Urgency::default());
        let said = read(&[("x-request-deadline-ms", "250"), ("x-request-priority", "low")]).unwrap();
        let low = Some(Priority::Low);
        assert_eq!(said, Urgency { deadline: Some(Duration::from_millis(250)), priority: low });
        let long = read(&[("X-Request-Deadline-Ms", "999999999999999999")]).unwrap();
        assert_eq!(long.deadline, Some(Duration::from_secs(86_400)));
        assert_eq!(read(&[("x-request-deadline-ms", "0")]).unwrap().deadline, Some(Duration::ZERO));
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_named() {
        for value in ["", "-1", "1.5", "+1", "0x10", " 1", "1s", "9999999999999999999", "\u{e9}"] {
            let error = read(&[("x-request-deadline-ms", value)]).unwrap_err();
            assert!(error.code == ErrorCode::BadRequest && error.message.contains("x-request-deadline-ms"));
        }
        for value in ["", "urgent", "High", "1", "high,low"] {
            let error = read(&[("x-request-priority", value)]).unwrap_err();
            assert!(error.code == ErrorCode::BadRequest && error.message.contains("x-request-priority"));
        }
        let twice = [("x-request-deadline-ms", "1"), ("x-request-deadline-ms", "2")];
        assert!(read(&twice).is_err());
    }
}
