//! Request identifiers: which ones a client sent, and which ones the answer carries.

use http::{HeaderMap, HeaderValue};
use uuid::Uuid;

use crate::error::{CallError, ErrorCode};
use crate::headers::{MS_CLIENT_REQUEST_ID, MS_REQUEST_ID, REQUEST_ID};

/// The most characters that an identifier may have.
pub const MAX_ID_CHARS: usize = 100;

/// The identifiers of one request, as they go into its answer.
///
/// Of A = `x-request-id`, B = `x-ms-request-id` and C = `x-ms-client-request-id`, the answer's A is the
/// request's or a new UUID; its B is B, else C, else the answer's A; its C is C, else B, else absent. An
/// empty value counts as none, and so does an A with a character outside ASCII, since A is what logs and
/// metrics name the request by. What the client sent is shared, not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestIds {
    request: HeaderValue,
    legacy: HeaderValue,
    client: Option<HeaderValue>,
}

/// An identifier of more than [`MAX_ID_CHARS`] characters. The texts are the contract's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// `x-request-id` is too long. The answer carries no identifiers.
    #[error("x-request-id must not exceed {MAX_ID_CHARS} characters")]
    RequestId,
    /// One of the other two is too long. The answer carries `x-request-id` alone.
    #[error("x-ms-request-id and x-ms-client-request-id must not exceed {MAX_ID_CHARS} characters")]
    OtherId {
        /// What the answer's `x-request-id` is.
        request_id: HeaderValue,
    },
}

impl RequestIds {
    /// Reads the identifiers of a request.
    ///
    /// # Errors
    /// [`IdError`] if one is too long.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, IdError> {
        let sent = |name| headers.get(name).filter(|value| !value.is_empty());
        let too_long = |value: &HeaderValue| value.len() > MAX_ID_CHARS;

        let request = sent(REQUEST_ID);
        if request.is_some_and(too_long) {
            return Err(IdError::RequestId);
        }
        let request = request.filter(|value| value.to_str().is_ok()).cloned().unwrap_or_else(new_id);

        let (legacy, client) = (sent(MS_REQUEST_ID), sent(MS_CLIENT_REQUEST_ID));
        if legacy.is_some_and(too_long) || client.is_some_and(too_long) {
            return Err(IdError::OtherId { request_id: request });
        }
        Ok(Self {
            legacy: legacy.or(client).unwrap_or(&request).clone(),
            client: client.or(legacy).cloned(),
            request,
        })
    }

    /// Puts the identifiers into an answer, in place of any that are there.
    pub fn write(&self, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID, self.request.clone());
        headers.insert(MS_REQUEST_ID, self.legacy.clone());
        match &self.client {
            Some(client) => headers.insert(MS_CLIENT_REQUEST_ID, client.clone()),
            None => headers.remove(MS_CLIENT_REQUEST_ID),
        };
    }

    /// The answer's `x-request-id`.
    pub fn request_id(&self) -> &str {
        text(&self.request)
    }

    /// The answer's `x-request-id` as a header's value.
    pub fn request_value(&self) -> &HeaderValue {
        &self.request
    }

    /// The answer's `x-ms-client-request-id`. It may hold bytes outside ASCII.
    pub fn client_request_id(&self) -> Option<&HeaderValue> {
        self.client.as_ref()
    }
}

impl IdError {
    /// Puts those identifiers into the answer that it may carry.
    pub fn write(&self, headers: &mut HeaderMap) {
        if let Self::OtherId { request_id } = self {
            headers.insert(REQUEST_ID, request_id.clone());
        }
    }

    /// The answer's `x-request-id`, where it has one.
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Self::RequestId => None,
            Self::OtherId { request_id } => Some(text(request_id)),
        }
    }
}

impl From<IdError> for CallError {
    fn from(error: IdError) -> Self {
        Self::new(ErrorCode::RequestIdTooLong, error.to_string())
    }
}

/// A random UUID (version 4).
fn new_id() -> HeaderValue {
    let mut buffer = Uuid::encode_buffer();
    let id = Uuid::new_v4().hyphenated().encode_lower(&mut buffer);
    // A UUID is hexadecimal digits and hyphens, always a valid header value.
    HeaderValue::from_str(id).unwrap_or(HeaderValue::from_static("00000000-0000-4000-8000-000000000000"))
}

fn text(id: &HeaderValue) -> &str {
    // Checked where the value came in.
    id.to_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(a: &str, b: &str, c: &str) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in [(REQUEST_ID, a), (MS_REQUEST_ID, b), (MS_CLIENT_REQUEST_ID, c)] {
            if value != "-" {
                map.insert(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
        }
        map
    }

    fn returned(map: &HeaderMap) -> [Option<&str>; 3] {
        [REQUEST_ID, MS_REQUEST_ID, MS_CLIENT_REQUEST_ID]
            .map(|name| map.get(name).map(|value| value.to_str().unwrap()))
    }

    fn is_uuid_v4(text: &str) -> bool {
        Uuid::parse_str(text).is_ok_and(|id| id.get_version_num() == 4) && text.len() == 36
    }

    #[test]
    fn the_table_of_the_contract() {
        // What was sent, and what comes back; `new` is a UUID that the server made.
        let table = [
            (["-", "-", "-"], ["new", "new", "-"]),
            (["a", "-", "-"], ["a", "a", "-"]),
            (["-", "b", "-"], ["new", "b", "b"]),
            (["-", "-", "c"], ["new", "c", "c"]),
            (["a", "b", "-"], ["a", "b", "b"]),
            (["-", "b", "c"], ["new", "b", "c"]),
            (["a", "-", "c"], ["a", "c", "c"]),
            (["a", "b", "c"], ["a", "b", "c"]),
            (["", "", ""], ["new", "new", "-"]),
            (["a", "", "c"], ["a", "c", "c"]),
        ];
        for ([a, b, c], expected) in table {
            let ids = RequestIds::from_headers(&headers(a, b, c)).unwrap();
            let mut answer = HeaderMap::new();
            ids.write(&mut answer);
            for (value, expected) in returned(&answer).into_iter().zip(expected) {
                match expected {
                    "new" => {
                        assert_eq!(value, Some(ids.request_id()));
                        assert!(value.is_some_and(is_uuid_v4), "{value:?}");
                    }
                    "-" => assert_eq!(value, None, "sent {a} {b} {c}"),
                    text => assert_eq!(value, Some(text), "sent {a} {b} {c}"),
                }
            }
        }
    }

    #[test]
    fn two_requests_get_two_ids() {
        let new = || RequestIds::from_headers(&HeaderMap::new()).unwrap();
        assert_ne!(new(), new());
    }

    #[test]
    fn one_hundred_characters_pass_and_one_more_does_not() {
        let (fits, long) = ("x".repeat(100), "x".repeat(101));
        assert!(RequestIds::from_headers(&headers(&fits, &fits, &fits)).is_ok());

        let error = RequestIds::from_headers(&headers(&long, &long, "-")).unwrap_err();
        assert_eq!(error.to_string(), "x-request-id must not exceed 100 characters");
        let mut answer = HeaderMap::new();
        error.write(&mut answer);
        assert!(answer.is_empty());
        assert_eq!(error.request_id(), None);

        for (b, c) in [(long.as_str(), "-"), ("-", long.as_str()), (long.as_str(), long.as_str())] {
            let error = RequestIds::from_headers(&headers("a", b, c)).unwrap_err();
            assert_eq!(
                error.to_string(),
                "x-ms-request-id and x-ms-client-request-id must not exceed 100 characters"
            );
            let mut answer = HeaderMap::new();
            error.write(&mut answer);
            assert_eq!(returned(&answer), [Some("a"), None, None]);
            let call = CallError::from(error);
            assert_eq!(call.code.status().as_u16(), 431);
        }
    }

    #[test]
    fn a_request_id_outside_ascii_is_replaced_and_others_are_echoed() {
        let ids = RequestIds::from_headers(&headers("é", "-", "é")).unwrap();
        assert!(is_uuid_v4(ids.request_id()));
        assert_eq!(ids.client_request_id().unwrap().as_bytes(), "é".as_bytes());
    }

    #[test]
    fn what_was_sent_is_shared() {
        let sent = headers("some-request-id", "-", "-");
        let ids = RequestIds::from_headers(&sent).unwrap();
        assert_eq!(ids.request_id().as_ptr(), sent[REQUEST_ID].as_bytes().as_ptr());
    }
}
