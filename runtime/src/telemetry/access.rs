//! The line that the log gets for a request.
//!
//! Its text is that of AzureML's server, `POST /score 200 1.234ms 27`, which our own formats have fields beside. It has the query only in
//! AzureML's lines, which name it: some clients put keys there.

use std::time::{Duration, Instant};

use outrigger_auth::AuthError;

use super::{Answered, Passage, Phase, Telemetry};
use crate::config::{LogFormat, LogRequests};

/// The most characters of a path that the line has.
const MAX_PATH: usize = 1024;

impl Telemetry {
    /// Writes the line of a request that is over, if it is to have one.
    pub(super) fn log(&self, passage: &Passage, now: Instant) {
        if self.requests == LogRequests::Off {
            return;
        }
        let answered = passage.answered();
        let end = answered.map_or(now, |answered| answered.at);
        let took = end.saturating_duration_since(passage.begun());
        let failed = answered.is_none_or(|answered| {
            answered.code.is_some() || answered.status.is_client_error() || answered.status.is_server_error()
        });
        let slow = took >= self.slow;
        match self.requests {
            LogRequests::Off => return,
            LogRequests::Errors if !failed => return,
            LogRequests::Slow if !(failed || slow) => return,
            _ => {}
        }
        let Some(asked) = passage.asked() else { return };
        let target = match self.format {
            LogFormat::AzureMl => asked.uri.path_and_query().map_or("/", |target| target.as_str()),
            _ => asked.uri.path(),
        };
        let target = target.get(..target.floor_char_boundary(MAX_PATH)).unwrap_or_default();
        // As servers behind proxies call what nobody waited for.
        let status = answered.map_or(499, |answered| answered.status.as_u16());
        let length = answered.and_then(|answered| answered.length);
        let length = length.map_or_else(|| "N/A".to_owned(), |length| length.to_string());
        let millis = took.as_secs_f64() * 1e3;
        let code = match answered {
            Some(answered) => answered.code.map(|code| code.as_str()),
            None => Some(passage.unanswered()),
        };
        let spent = |phase: Phase| passage.spent(phase).map(micros);
        macro_rules! line {
            ($level:ident, $name:literal) => {
                tracing::event!(
                    name: $name,
                    target: "outrigger::access",
                    tracing::Level::$level,
                    // The name that the system that we succeed has for it.
                    logger = "azmlinfsrv",
                    request = passage.request_id(),
                    caller = passage.caller(),
                    model = passage.model(),
                    operation = asked.operation.as_str(),
                    status,
                    code,
                    // Which who calls is told in part at most.
                    reason = passage.refusal().map(AuthError::reason),
                    receive_us = spent(Phase::Receive),
                    auth_us = spent(Phase::Auth),
                    queue_us = spent(Phase::Queue),
                    batch_us = spent(Phase::Batch),
                    copy_in_us = spent(Phase::CopyIn),
                    run_us = spent(Phase::Run),
                    copy_out_us = spent(Phase::CopyOut),
                    send_us = spent(Phase::Send),
                    "{} {target} {status} {millis:.3}ms {length}",
                    asked.method
                )
            };
        }
        // Whoever wants a line for each request has one for each; others are bounded in number (`log.rate`).
        // Each kind has a number of its own, so that whoever asks for what they may not have hides nobody's failure.
        let is_ours = answered.is_some_and(Answered::is_failure);
        match (self.requests, failed) {
            (LogRequests::All, _) => line!(INFO, "request"),
            (_, true) if is_ours => line!(WARN, "failed request"),
            (_, true) => line!(INFO, "refused request"),
            (_, false) => line!(INFO, "slow request"),
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
