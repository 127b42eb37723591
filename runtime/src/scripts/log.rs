//! What scripts print and log, in the replica's log: each line with its worker and, where there is one, its request.

use http::HeaderValue;

use super::frame::{LogLevel, LogLine, LogSource};

/// Where a line comes from.
pub(super) struct Origin<'a> {
    pub(super) worker: usize,
    pub(super) pid: i32,
    pub(super) request: Option<&'a HeaderValue>,
}

/// Writes a line to the log. Its text is a field of the record, never its format.
pub(super) fn emit(line: &LogLine, origin: &Origin<'_>) {
    let Origin { worker, pid, request } = *origin;
    let request = request.and_then(|request| request.to_str().ok());
    let text = &line.text;
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
