//! What scripts hand over for collection: events as `azureml-ai-monitoring` posts them, and rows as our `azureml.monitoring` does.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, header};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{CallError, ErrorCode};

/// Where events are posted.
pub const EVENTS: &str = "/modeldata/log";
/// Where rows are posted.
pub const ROWS: &str = "/modeldata/csv";

/// Before a collection's name in `ce-type`.
const TYPE: &str = "azureml.inference.";
/// Longest value of a header that is kept, bytes.
const MAX_VALUE: usize = 1024;
/// Most columns of rows.
const MAX_COLUMNS: usize = 16_384;
/// Headers that are fields of an event.
const FIELDS: [&str; 4] = ["ce-time", "ce-type", "ce-x-request-id", "ce-model-version"];

/// An event, as the headers of its post say it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Of which collection.
    pub collection: String,
    /// Its identifier, where it has one.
    pub id: Option<String>,
    /// When it happened, where that is said.
    pub time: Option<SystemTime>,
    /// What joins it with others.
    pub correlation_id: Option<String>,
    /// The model's version.
    pub version: Option<String>,
    /// Of its data.
    pub content_type: Option<String>,
    /// What else its `ce-` headers say, under names without that prefix, of which letters and digits are kept: `collectdatatype`, `agent`.
    pub attributes: Vec<(String, String)>,
}

impl Event {
    /// Reads the headers of a post.
    ///
    /// # Errors
    /// `bad_request` if they name no collection, or hold what is no text.
    pub fn read(headers: &HeaderMap) -> Result<Self, CallError> {
        let kind = text(headers, "ce-type")?.unwrap_or_default();
        let Some(collection) = kind.strip_prefix(TYPE).filter(|name| !name.is_empty()) else {
            return Err(wrong(format!("the header `ce-type` is not `{TYPE}` and the name of a collection")));
        };
        let time =
            match text(headers, "ce-time")? {
                Some(said) => Some(seconds(said).ok_or_else(|| {
                    wrong("the header `ce-time` is no time in seconds since 1970".to_owned())
                })?),
                None => None,
            };
        let mut attributes = Vec::new();
        for name in headers.keys().map(http::HeaderName::as_str) {
            let Some(bare) = name.strip_prefix("ce-").filter(|_| !FIELDS.contains(&name)) else { continue };
            let bare: String = bare.chars().filter(char::is_ascii_alphanumeric).collect();
            if let Some(value) = text(headers, name)?.filter(|_| !bare.is_empty()) {
                attributes.push((bare, value.to_owned()));
            }
        }
        let owned = |name| text(headers, name).map(|said| said.map(str::to_owned));
        Ok(Self {
            collection: collection.to_owned(),
            id: owned("trace-id")?,
            time,
            correlation_id: owned("ce-x-request-id")?,
            version: owned("ce-model-version")?,
            content_type: owned(header::CONTENT_TYPE.as_str())?,
            attributes,
        })
    }
}

/// The value of a header, where there is one and it says something.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, CallError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) if text.len() <= MAX_VALUE => Ok(Some(text).filter(|text| !text.is_empty())),
        _ => Err(wrong(format!("the header `{name}` is no text of {MAX_VALUE} bytes at most"))),
    }
}

/// Seconds since 1970, which may have a fraction.
fn seconds(text: &str) -> Option<SystemTime> {
    let seconds: f64 = text.parse().ok()?;
    at(Duration::try_from_secs_f64(seconds).ok()?)
}

/// That long after 1970, up to the year 9999.
fn at(since: Duration) -> Option<SystemTime> {
    const YEAR_10000: u64 = 253_402_300_800;
    (since.as_secs() < YEAR_10000).then(|| UNIX_EPOCH + since)
}

/// Rows of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// What they are: `inputs`, `predictions`, `labels`, `signals` or `general`.
    pub designation: String,
    /// What their file is called, where it has a name of its own.
    pub file: Option<String>,
    /// `subscription/group/workspace`.
    pub workspace: Option<String>,
    /// Of which service.
    pub service: Option<String>,
    /// Of which model.
    pub model: String,
    /// Its version.
    pub version: String,
    /// Whether the columns follow that tell which rows belong together.
    pub correlated: bool,
    /// When they came to be, where that is said.
    pub time: Option<SystemTime>,
    /// What joins them with others.
    pub correlation_id: Option<String>,
    /// The request that they came from.
    pub request_id: String,
    /// Names of columns; none where none are known.
    pub columns: Vec<String>,
    /// The rows: a JSON array of arrays, which is not looked into here. It is part of the body, and no copy.
    pub rows: Bytes,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Posted<'a> {
    designation: String,
    #[serde(default)]
    file: Option<String>,
    #[serde(default)]
    workspace: Option<String>,
    #[serde(default)]
    service: Option<String>,
    model: String,
    version: String,
    #[serde(default)]
    correlated: bool,
    /// Microseconds since 1970.
    #[serde(default)]
    time: Option<u64>,
    #[serde(default)]
    correlation_id: Option<String>,
    #[serde(default)]
    request_id: String,
    #[serde(default)]
    columns: Option<Vec<String>>,
    #[serde(borrow)]
    rows: &'a RawValue,
}

impl Rows {
    /// Reads the body of a post.
    ///
    /// # Errors
    /// `bad_request` if it has another form.
    pub fn read(body: &Bytes) -> Result<Self, CallError> {
        let posted: Posted<'_> = serde_json::from_slice(body)
            .map_err(|error| wrong(format!("the body is not what azureml.monitoring sends: {error}")))?;
        let columns = posted.columns.unwrap_or_default();
        if columns.len() > MAX_COLUMNS {
            return Err(wrong(format!("there are {} columns, {MAX_COLUMNS} are the most", columns.len())));
        }
        let time = posted.time.map(|time| at(Duration::from_micros(time)));
        let said = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(Self {
            designation: posted.designation,
            file: said(posted.file),
            workspace: said(posted.workspace),
            service: said(posted.service),
            model: posted.model,
            version: posted.version,
            correlated: posted.correlated,
            time: time
                .map(|time| time.ok_or_else(|| wrong("`time` is behind the year 9999".to_owned())))
                .transpose()?,
            correlation_id: said(posted.correlation_id),
            request_id: posted.request_id,
            columns,
            rows: body.slice_ref(posted.rows.get().as_bytes()),
        })
    }
}

fn wrong(text: String) -> CallError {
    CallError::new(ErrorCode::BadRequest, text)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn an_event_as_the_package_sends_it() {
        let event = Event::read(&headers(&[
            ("content-type", "application/json"),
            ("trace-id", "3b3c"),
            ("ce-time", "1700000000"),
            ("ce-type", "azureml.inference.model_inputs"),
            ("ce-collect-data-type", "pandas.core.frame.DataFrame"),
            ("ce-agent", "azureml-ai-monitoring/1.0.0"),
            ("ce-x-request-id", "abc"),
            ("ce-model-version", "default"),
            ("ce-my-own", "x"),
        ]))
        .unwrap();
        assert_eq!((event.collection.as_str(), event.id.as_deref()), ("model_inputs", Some("3b3c")));
        assert_eq!(event.time, Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
        assert_eq!(
            (event.correlation_id.as_deref(), event.version.as_deref()),
            (Some("abc"), Some("default"))
        );
        assert_eq!(event.content_type.as_deref(), Some("application/json"));
        let mut attributes = event.attributes;
        attributes.sort();
        let wanted = [
            ("agent", "azureml-ai-monitoring/1.0.0"),
            ("collectdatatype", "pandas.core.frame.DataFrame"),
            ("myown", "x"),
        ];
        assert_eq!(attributes, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn headers_that_say_nothing_of_use_are_refused() {
        for (name, value) in [
            ("ce-type", ""),
            ("ce-type", "azureml.inference."),
            ("ce-type", "other.x"),
            ("ce-time", "yesterday"),
            ("ce-time", "-1"),
            ("ce-time", "1e300"),
            ("ce-time", "nan"),
        ] {
            let mut all = headers(&[("ce-type", "azureml.inference.a")]);
            all.insert(name, HeaderValue::from_static(value));
            assert_eq!(Event::read(&all).unwrap_err().code, ErrorCode::BadRequest, "{name}: {value}");
        }
        let mut all = headers(&[("ce-type", "azureml.inference.a")]);
        all.insert("ce-agent", HeaderValue::from_bytes(b"\xff").unwrap());
        assert!(Event::read(&all).unwrap_err().message.contains("ce-agent"));
        all.insert("ce-agent", HeaderValue::from_str(&"x".repeat(1025)).unwrap());
        assert!(Event::read(&all).is_err());
    }

    #[test]
    fn rows_are_part_of_their_body() {
        let text = r#"{"designation":"inputs","model":"m","version":"3","correlated":true,"time":1500000,
            "request_id":"r","columns":["a"],"rows":[["1"], ["x,y"]]}"#;
        let body = Bytes::from_static(text.as_bytes());
        let rows = Rows::read(&body).unwrap();
        assert_eq!(rows.rows, r#"[["1"], ["x,y"]]"#);
        assert!(body.as_ptr_range().contains(&rows.rows.as_ptr()), "it is no copy");
        assert_eq!(rows.time, Some(UNIX_EPOCH + Duration::from_millis(1500)));
        assert_eq!((rows.columns, rows.file, rows.correlation_id), (vec!["a".to_owned()], None, None));
    }

    #[test]
    fn other_bodies_are_refused_by_what_is_wrong() {
        for (text, said) in [
            ("", "EOF"),
            ("{}", "designation"),
            (r#"{"designation":"x","model":"m","version":"1"}"#, "rows"),
            (r#"{"designation":"x","model":"m","version":"1","rows":[],"more":1}"#, "more"),
            (r#"{"designation":"x","model":"m","version":"1","rows":[],"time":-1}"#, "-1"),
            (
                r#"{"designation":"x","model":"m","version":"1","rows":[],"time":18446744073709551615}"#,
                "9999",
            ),
        ] {
            let error = Rows::read(&Bytes::from_static(text.as_bytes())).unwrap_err();
            assert_eq!(error.code, ErrorCode::BadRequest);
            assert!(error.message.contains(said), "{text}: {}", error.message);
        }
    }
}
