//! Records as CloudEvents, in the fields of AzureML's v2 collector.

use super::Layout;
use super::date::Date;
use super::json::{self, Document};
use crate::record::Record;

/// Longest name or value of an attribute, bytes.
const MAX_ATTRIBUTE: usize = 1024;
/// What attributes do not replace.
const FIELDS: [&str; 15] = [
    "specversion",
    "id",
    "source",
    "type",
    "datacontenttype",
    "time",
    "data",
    "path",
    "method",
    "contentrange",
    "correlationid",
    "xrequestid",
    "modelversion",
    "datainblob",
    "status",
];

/// What nearly everything is.
const JSON: &str = "application/json";

/// Whether the content type says JSON.
pub(crate) fn is_json(record: &Record) -> bool {
    let Some(kind) = &record.content_type else { return true };
    if &**kind == JSON {
        return true;
    }
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let (_, subtype) = essence.split_once('/').unwrap_or_default();
    let suffix = subtype.rsplit('+').next().unwrap_or_default();
    suffix.eq_ignore_ascii_case("json")
}

/// Whether the content type says that it is a form.
pub(crate) fn is_form(record: &Record) -> bool {
    let essence = record.content_type.as_deref().and_then(|kind| kind.split(';').next()).unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// Whether the data can be a part of a line.
pub(crate) fn is_text(record: &Record) -> bool {
    let Some(kind) = &record.content_type else { return str::from_utf8(&record.data).is_ok() };
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let (main, _) = essence.split_once('/').unwrap_or_default();
    let xml = essence.eq_ignore_ascii_case("application/xml");
    let says =
        is_json(record) || main.eq_ignore_ascii_case("text") || is_form(record) || xml || essence.is_empty();
    says && str::from_utf8(&record.data).is_ok()
}

/// Appends a JSON string.
pub(crate) fn push_string(to: &mut Vec<u8>, text: &str) {
    // Nearly all of them are as they are: that is found out many bytes at a time, as no byte ends it.
    let is_odd = |byte: u8| (byte < 0x20) | (byte == b'"') | (byte == b'\\');
    if !text.bytes().fold(false, |odd, byte| odd | is_odd(byte)) {
        to.push(b'"');
        to.extend_from_slice(text.as_bytes());
        to.push(b'"');
        return;
    }
    // Writing to memory does not fail.
    let _ = serde_json::to_writer(&mut *to, text);
}

/// Appends JSON without what is between its parts, where that would not be in one line.
fn push_compact(to: &mut Vec<u8>, json: &[u8], document: Document) {
    if !document.has_lines {
        return to.extend_from_slice(json.trim_ascii());
    }
    let (mut inside, mut escaped) = (false, false);
    for byte in json {
        if inside {
            inside = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
        } else if byte.is_ascii_whitespace() {
            continue;
        } else {
            inside = *byte == b'"';
        }
        to.push(*byte);
    }
}

/// What is the same in each event of a collection.
#[derive(Debug)]
pub(super) struct Fields {
    source: Vec<u8>,
    kind: Vec<u8>,
}

impl Fields {
    pub(super) fn new(source: &str, collection: &str) -> Self {
        let field = |name: &str, value: &str| {
            let mut to = Vec::new();
            push_field(&mut to, name, value);
            to
        };
        Self {
            source: field("source", source),
            kind: field("type", &format!("azureml.inference.{collection}")),
        }
    }
}

/// Appends a member of an event that is not its first.
fn push_field(to: &mut Vec<u8>, name: &str, value: &str) {
    to.extend_from_slice(b",\"");
    to.extend_from_slice(name.as_bytes());
    to.extend_from_slice(b"\":");
    push_string(to, value);
}

fn push_number(to: &mut Vec<u8>, number: impl itoa::Integer) {
    to.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

impl Layout {
    /// Appends the line.
    pub(super) fn write_event(&self, record: &Record, date: Date, side: Option<&str>, to: &mut Vec<u8>) {
        to.extend_from_slice(br#"{"specversion":"1.0","id":"#);
        match &record.id {
            Some(id) => push_string(to, id),
            None => {
                to.push(b'"');
                let mut text = uuid::Uuid::encode_buffer();
                to.extend_from_slice(uuid::Uuid::new_v4().hyphenated().encode_lower(&mut text).as_bytes());
                to.push(b'"');
            }
        }
        to.extend_from_slice(&self.fields.source);
        match &record.kind {
            Some(kind) => push_field(to, "type", kind),
            None => to.extend_from_slice(&self.fields.kind),
        }
        push_field(to, "datacontenttype", record.content_type.as_deref().unwrap_or(JSON));
        to.extend_from_slice(br#","time":""#);
        date.write_iso(to);
        to.extend_from_slice(br#"Z","data":"#);
        let size = record.data.len();
        match side {
            Some(side) => push_string(to, &format!("{}/{side}", self.url)),
            None if size == 0 => to.extend_from_slice(b"null"),
            None => push_data(to, record),
        }
        if let Some(path) = &record.path {
            push_field(to, "path", path);
        }
        if let Some(method) = &record.method {
            push_field(to, "method", method);
        }
        match size.checked_sub(1) {
            Some(last) => {
                to.extend_from_slice(br#","contentrange":"bytes 0-"#);
                push_number(to, last);
                to.push(b'/');
                push_number(to, size);
                to.push(b'"');
            }
            None => to.extend_from_slice(br#","contentrange":"*""#),
        }
        if side.is_some() {
            to.extend_from_slice(br#","datainblob":true"#);
        }
        push_field(to, "correlationid", correlation(record));
        push_field(to, "xrequestid", &record.request_id);
        push_field(to, "modelversion", record.version.as_deref().unwrap_or("default"));
        if let Some(model) = &record.model {
            push_field(to, "modelname", model);
        }
        if let Some(status) = record.outcome.status {
            to.extend_from_slice(br#","status":"#);
            push_number(to, status);
        }
        if let Some(latency) = record.outcome.latency {
            let micros = latency.as_micros();
            to.extend_from_slice(br#","latencyms":"#);
            push_number(to, micros / 1000);
            // The leading 1 becomes the point, so that there are three digits behind it.
            let point = to.len();
            push_number(to, 1000 + micros % 1000);
            to.get_mut(point).into_iter().for_each(|digit| *digit = b'.');
        }
        let mut kept: Vec<&str> = Vec::new();
        for (name, value) in &record.attributes {
            let name: &str = name;
            let taken =
                FIELDS.contains(&name) || matches!(name, "modelname" | "latencyms") || kept.contains(&name);
            let long = name.len() > MAX_ATTRIBUTE || value.len() > MAX_ATTRIBUTE;
            if kept.len() < self.attributes && !taken && !long && !name.is_empty() {
                to.push(b',');
                push_string(to, name);
                to.push(b':');
                push_string(to, value);
                kept.push(name);
            }
        }
        to.extend_from_slice(b"}\n");
    }
}

fn push_data(to: &mut Vec<u8>, record: &Record) {
    if is_json(record)
        && let Some(document) = json::document(&record.data)
    {
        return push_compact(to, &record.data, document);
    }
    match str::from_utf8(&record.data) {
        Ok(text) => push_string(to, text),
        // What is no text is an object of its own, so this is not come to.
        Err(_) => to.extend_from_slice(b"null"),
    }
}

/// What joins a record with others.
pub(crate) fn correlation(record: &Record) -> &str {
    record.correlation_id.as_deref().unwrap_or(&record.request_id)
}
