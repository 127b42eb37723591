//! Whether an upstream is ready and alive: it is asked in turns, by one task, and what it says has to hold for some turns before it counts.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderValue, Request, header};
use outrigger_protocol::headers::SERVER_VERSION;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};

use super::link::{Link, LinkError};
use super::sent::Sent;
use super::{Upstream, host};
use crate::config::{ProbeConfig, UpstreamAddress};

/// So much of an answer is read: its head has to fit in.
const HEAD: usize = 64 << 10;

/// What is known of an upstream.
pub(super) struct Health {
    state: Mutex<State>,
    /// Told of each change of readiness.
    ready: watch::Sender<bool>,
}

struct State {
    ready: Latch,
    live: Latch,
}

/// A state that changes only after several answers in a row.
#[derive(Debug)]
struct Latch {
    is_up: bool,
    /// Answers in a row that contradict it.
    contrary: usize,
    /// Why it is down, or what it said last.
    reason: Option<String>,
}

impl Latch {
    fn new(is_up: bool) -> Self {
        Self { is_up, contrary: 0, reason: None }
    }

    /// Hears an answer; whether that changes anything.
    fn hear(&mut self, said: Result<(), String>, config: &ProbeConfig) -> bool {
        let is_good = said.is_ok();
        self.reason = said.err();
        if is_good == self.is_up {
            self.contrary = 0;
            return false;
        }
        self.contrary += 1;
        let enough = if is_good { config.successes } else { config.failures };
        if self.contrary < enough {
            return false;
        }
        self.contrary = 0;
        self.is_up = is_good;
        true
    }
}

impl Health {
    /// Not ready before it has said so; alive before it says otherwise.
    pub(super) fn new() -> Self {
        let state = State { ready: Latch::new(false), live: Latch::new(true) };
        Self { state: Mutex::new(state), ready: watch::Sender::new(false) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is ready.
    pub(super) fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Comes back once it is.
    pub(super) async fn until_ready(&self) {
        // The sender is here, so that the wait does not fail.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// Whether it is alive.
    pub(super) fn is_live(&self) -> bool {
        self.lock().live.is_up
    }

    /// Why it is not ready; nothing where it is, or nobody has begun to ask.
    pub(super) fn reason(&self) -> Option<String> {
        let state = self.lock();
        let ready = &state.ready;
        let not_often =
            || Some("it has not answered well often enough in a row".into()).filter(|_| ready.contrary > 0);
        ready.reason.clone().or_else(not_often).filter(|_| !ready.is_up)
    }

    /// Why it is not alive.
    pub(super) fn live_reason(&self) -> Option<String> {
        self.lock().live.reason.clone()
    }
}

/// An answer that is not a good one.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    reason: String,
    /// None has come in time.
    is_silent: bool,
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self { reason, is_silent: false }
    }
}

/// Asks until the upstream is let go of. Of its two routes neither waits for the other.
pub(super) async fn keep(upstream: &Upstream) {
    let probes = &upstream.config.probes;
    upstream.health.lock().ready.reason = Some("it has not been asked yet".into());
    tokio::time::sleep(probes.initial_delay).await;
    let ready = async {
        let mut said = None;
        let mut turns = turns(probes);
        loop {
            turns.tick().await;
            let answer = ask(&probes.ready_at, probes.ready_path.as_ref(), probes.timeout).await;
            upstream.hear_ready(answer, &mut said);
        }
    };
    let live = async {
        let Some(path) = &probes.live_path else { return };
        let mut turns = turns(probes);
        loop {
            turns.tick().await;
            upstream.hear_live(ask(&probes.live_at, Some(path), probes.timeout).await);
        }
    };
    tokio::join!(ready, live);
}

fn turns(probes: &ProbeConfig) -> Interval {
    let mut turns = tokio::time::interval(probes.period);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    turns
}

impl Upstream {
    /// What an answer says; nothing where there is none because it is at work.
    fn heard(&self, answer: Result<(), Failure>, is_up: bool) -> Option<Result<(), String>> {
        let config = &self.config;
        match answer {
            Ok(()) => {
                self.pulse.beat();
                Some(Ok(()))
            }
            // A call that it has takes up to `timeout`, and the last question before that was some time ago.
            Err(failure)
                if failure.is_silent
                    && is_up
                    && self
                        .pulse
                        .is_at_work(config.timeout + config.probes.period + config.probes.timeout) =>
            {
                None
            }
            Err(failure) => Some(Err(failure.reason)),
        }
    }

    /// `said` is the reason that the log has last been told before the first start.
    fn hear_ready(&self, answer: Result<(), Failure>, said: &mut Option<String>) {
        let Some(answer) = self.heard(answer, self.health.is_ready()) else { return };
        let (is_changed, is_up, reason) = {
            let mut state = self.health.lock();
            let is_changed = state.ready.hear(answer, &self.config.probes);
            (is_changed, state.ready.is_up, state.ready.reason.clone())
        };
        let upstream = &self.config.address;
        if is_changed {
            self.metrics.ready.set(i64::from(is_up));
            self.busy.set_able(is_up);
            self.health.ready.send_replace(is_up);
            match &reason {
                None => tracing::info!(%upstream, "the upstream is ready"),
                Some(reason) => tracing::warn!(%upstream, reason, "the upstream is not ready any more"),
            }
            said.clone_from(&reason);
        } else if !is_up && reason.is_some() && reason != *said {
            tracing::info!(%upstream, reason = reason.as_deref(), "waiting for the upstream");
            *said = reason;
        }
    }

    fn hear_live(&self, answer: Result<(), Failure>) {
        let Some(answer) = self.heard(answer, self.health.is_live()) else { return };
        let (is_changed, is_up, reason) = {
            let mut state = self.health.lock();
            let is_changed = state.live.hear(answer, &self.config.probes);
            (is_changed, state.live.is_up, state.live.reason.clone())
        };
        if is_changed {
            self.metrics.live.set(i64::from(is_up));
            let upstream = &self.config.address;
            match &reason {
                None => tracing::info!(%upstream, "the upstream is alive again"),
                Some(reason) => tracing::error!(%upstream, reason, "the upstream is not alive"),
            }
        }
    }
}

/// Asks once: for an answer of 2xx, or, without a path, for a connection.
async fn ask(at: &UpstreamAddress, path: Option<&PathAndQuery>, limit: Duration) -> Result<(), Failure> {
    let asked = async {
        let connected = Link::connect(at, limit, HEAD, None).await;
        let mut link = connected.map_err(|error| Failure {
            reason: unreachable(at, &error),
            is_silent: error.kind() == std::io::ErrorKind::TimedOut,
        })?;
        let Some(path) = path else { return Ok(()) };
        let mut request = Request::new(Sent::empty());
        *request.uri_mut() = path.clone().into();
        let headers = request.headers_mut();
        headers.insert(header::HOST, host(at));
        headers.insert(header::USER_AGENT, SERVER_VERSION);
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        match link.ask(request).await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(format!("{at}{path} answers {}", answer.status()).into()),
            Err(LinkError::Broken(error)) => Err(format!("{at}{path} does not answer: {error}").into()),
            Err(LinkError::NotSent(_)) => {
                Err(format!("{at}{path} does not answer: the connection is closed").into())
            }
        }
    };
    let over = || match path {
        Some(path) => format!("{at}{path} has not answered within {limit:?}"),
        None => format!("{at} takes no connection within {limit:?}"),
    };
    tokio::time::timeout(limit, asked)
        .await
        .unwrap_or_else(|_| Err(Failure { reason: over(), is_silent: true }))
}

/// In words without the system's numbers for errors.
pub(super) fn unreachable(at: &UpstreamAddress, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => format!("nobody listens at {at}"),
        std::io::ErrorKind::NotFound => format!("there is no socket at {at}"),
        std::io::ErrorKind::TimedOut => format!("{at} takes no connection"),
        _ => format!("{at} cannot be connected to: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(successes: usize, failures: usize) -> ProbeConfig {
        let at = UpstreamAddress::Tcp("127.0.0.1".into(), 1);
        ProbeConfig {
            ready_path: None,
            ready_at: at.clone(),
            live_path: None,
            live_at: at,
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            successes,
            failures,
        }
    }

    #[test]
    fn a_state_changes_after_enough_answers_in_a_row() {
        let check = |start: bool, successes, failures, said: &str, expected: &str| {
            let (mut latch, config) = (Latch::new(start), config(successes, failures));
            let seen: String = said
                .chars()
                .map(|said| {
                    let said = if said == '+' { Ok(()) } else { Err("no".to_owned()) };
                    latch.hear(said, &config);
                    if latch.is_up { '+' } else { '-' }
                })
                .collect();
            assert_eq!(seen, expected, "{said} with {successes} and {failures}");
        };
        check(false, 1, 3, "-+--+---+", "-++++++-+");
        check(false, 1, 3, "+--+--+---", "+++++++++-");
        check(false, 2, 1, "+-++-+++", "---+--++");
        check(true, 1, 1, "-+-", "-+-");
    }
}
