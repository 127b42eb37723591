//! What a line of the log consists of, whatever it then looks like.

use std::fmt::{self, Write as _};

use outrigger_runtime::telemetry::{self, Severity};
use tracing::field::{Field, Visit};
use tracing::{Event, Level};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// What scripts print and log.
pub(super) const SCRIPT: &str = "outrigger::script";
/// The lines of requests.
pub(super) const ACCESS: &str = "outrigger::access";

/// A field's value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Flag(bool),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Unsigned(number) => number.fmt(f),
            Self::Signed(number) => number.fmt(f),
            Self::Float(number) => number.fmt(f),
            Self::Flag(flag) => flag.fmt(f),
        }
    }
}

/// A line taken apart.
pub(super) struct Parts {
    /// `2024-01-31T12:00:00.123456Z`.
    pub(super) time: String,
    pub(super) level: Level,
    pub(super) target: &'static str,
    pub(super) message: String,
    /// In their order, the request's among them.
    pub(super) fields: Vec<(&'static str, Value)>,
}

impl Parts {
    /// Those of an event, and of the request in the course of which it happens.
    pub(super) fn of(event: &Event<'_>) -> Self {
        let mut time = String::with_capacity(32);
        // Writing to a `String` cannot fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        let metadata = event.metadata();
        let (level, target) = (*metadata.level(), metadata.target());
        let mut parts = Self { time, level, target, message: String::new(), fields: Vec::new() };
        event.record(&mut parts);
        telemetry::about(|about| {
            parts.add("request", about.request);
            parts.add("caller", about.caller);
            parts.add("model", about.model);
        });
        parts
    }

    /// What a field says, where it is text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| *known == name).and_then(|(_, value)| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Whether it is a script's.
    pub(super) fn is_scripts(&self) -> bool {
        self.target.starts_with(SCRIPT)
    }

    pub(super) fn severity(&self) -> Severity {
        match self.level {
            Level::ERROR => Severity::Error,
            Level::WARN => Severity::Warn,
            Level::INFO => Severity::Info,
            Level::DEBUG => Severity::Debug,
            Level::TRACE => Severity::Trace,
        }
    }

    /// Adds what the event does not say itself.
    fn add(&mut self, name: &'static str, text: Option<&str>) {
        if let Some(text) = text
            && self.fields.iter().all(|(known, _)| *known != name)
        {
            self.fields.push((name, Value::Text(text.to_owned())));
        }
    }

    fn note(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", value) => self.message = value.to_string(),
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Parts {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        self.note(field, Value::Text(text));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.note(field, Value::Text(value.to_owned()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.note(field, Value::Unsigned(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.note(field, Value::Signed(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.note(field, Value::Float(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.note(field, Value::Flag(value));
    }
}

/// Appends a text for people, in which nothing moves a terminal's cursor or looks like another line: control characters are escaped, and
/// what comes after the end of a line stands in from its edge.
pub(super) fn push_safe(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\n    "),
            '\t' => out.push('\t'),
            c if c.is_control() || is_direction(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
}

/// Characters that have what comes after them shown in another order.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_looks_like_another_line() {
        for (text, expected) in [
            ("plain é\ttab", "plain é\ttab"),
            ("two\n2024-01-31T12:00:00Z ERROR forged", "two\n    2024-01-31T12:00:00Z ERROR forged"),
            ("\r\u{1b}[31mred\u{85}", "\\r\\u{1b}[31mred\\u{85}"),
            ("\u{202e}gnp", "\\u{202e}gnp"),
        ] {
            let mut out = String::new();
            push_safe(&mut out, text);
            assert_eq!(out, expected);
        }
    }
}
