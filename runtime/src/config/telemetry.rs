//! `[log]`, `[metrics]` and `[telemetry]`: what is told of requests, where, and how much of it.

use std::time::Duration;

use super::getter::Getter;
use super::{Settings, key};

/// `[log]`.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// `error` to `trace`.
    pub level: String,
    /// What lines look like, and where they go.
    pub format: LogFormat,
    /// Lines that may wait to be written, bytes.
    pub buffer: usize,
    /// Which requests get a line.
    pub requests: LogRequests,
    /// From when on a request is slow.
    pub slow: Duration,
    /// Lines of one kind in a second; 0 for any number.
    pub rate: usize,
    /// Lines that are kept for `outrigger logs`, bytes.
    pub kept: usize,
}

/// What log lines look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text where stderr is a terminal, else JSON.
    Auto,
    /// Text for people, on stderr.
    Text,
    /// A JSON object for each line, on stderr.
    Json,
    /// `2024-01-31 12:00:00,123 I [pid] logger - text` in UTC, on stdout.
    AzureMl,
}

/// Which requests get a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogRequests {
    /// None.
    Off,
    /// Those that are refused or fail.
    Errors,
    /// And those that take long.
    Slow,
    /// All of them.
    All,
}

/// Which answers say how their time was spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// None.
    Off,
    /// Those whose request asks.
    Asked,
    /// All of them.
    Always,
}

/// `[metrics]` and `[telemetry]`.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// Models that have series of their own.
    pub models: usize,
    /// Which answers have `server-timing`.
    pub timing: Timing,
}

/// From settings, each valid by itself.
pub(super) fn log(settings: &Settings) -> LogConfig {
    let get = Getter { settings };
    LogConfig {
        level: get.text(key::LOG_LEVEL),
        format: match get.text(key::LOG_FORMAT).as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            "azureml" => LogFormat::AzureMl,
            _ => LogFormat::Auto,
        },
        buffer: get.size(key::LOG_BUFFER),
        requests: match get.text(key::LOG_REQUESTS).as_str() {
            "off" => LogRequests::Off,
            "slow" => LogRequests::Slow,
            "all" => LogRequests::All,
            _ => LogRequests::Errors,
        },
        slow: get.duration(key::LOG_SLOW),
        rate: get.count(key::LOG_RATE),
        kept: get.size(key::LOG_KEPT),
    }
}

/// The same of the others.
pub(super) fn telemetry(settings: &Settings) -> TelemetryConfig {
    let get = Getter { settings };
    TelemetryConfig {
        models: get.count(key::METRICS_MODELS),
        timing: match get.text(key::TELEMETRY_TIMING).as_str() {
            "off" => Timing::Off,
            "always" => Timing::Always,
            _ => Timing::Asked,
        },
    }
}
