//! What scripts print and log, in the replica's log: each line with its worker and, where there is one, its request.

use std::borrow::Cow;

use http::HeaderValue;

use super::frame::{LogLevel, LogLine, LogSource};

/// Where a line comes from.
pub(super) struct Origin<'a> {
    pub(super) worker: usize,
    pub(super) pid: i32,
    pub(super) request: Option<&'a HeaderValue>,
}

/// The text with its control characters escaped, for what a script writes must not look like a line of ours.
pub(super) fn one_line(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| !c.is_control() || c == '\t';
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if harmless(c) { escaped.push(c) } else { escaped.extend(c.escape_default()) }
    }
    Cow::Owned(escaped)
}

/// Writes a line to the log. Its text is a field of the record, never its format.
pub(super) fn emit(line: &LogLine, origin: &Origin<'_>) {
    let Origin { worker, pid, request } = *origin;
    let request = request.and_then(|request| request.to_str().ok());
    let text = one_line(&line.text);
    let (stream, logger) = match line.source {
        LogSource::Logger => (None, Some(line.logger.as_str())),
        LogSource::Stdout => (Some("stdout"), None),
        LogSource::Stderr => (Some("stderr"), None),
    };
    macro_rules! at {
        ($level:ident) => {
            tracing::event!(
                target: "outrigger::script",
                tracing::Level::$level,
                worker, pid, stream, logger, request, "{text}"
            )
        };
    }
    match line.level {
        LogLevel::Debug => at!(DEBUG),
        LogLevel::Info => at!(INFO),
        LogLevel::Warning => at!(WARN),
        LogLevel::Error | LogLevel::Critical => at!(ERROR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_s_line_stays_one() {
        for (text, expected) in [
            ("plain é\ttab", "plain é\ttab"),
            ("two\nlines", "two\\nlines"),
            ("\r\u{1b}[31mred", "\\r\\u{1b}[31mred"),
        ] {
            assert_eq!(one_line(text), expected);
        }
    }
}
