//! Somebody else's server that the replica stands in front of: a lane like a script, which takes as many calls as it has slots.
//!
//! A call takes a slot, a connection is found or made for it, and the answer goes to the client as it comes. Whoever waits for the answer drives
//! the connection; so a caller that leaves closes it, and the slot is free after that.

mod call;
pub(crate) mod headers;
mod link;
mod metrics;
mod paths;
mod pieces;
mod pool;
mod probe;
mod pulse;
mod sent;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use outrigger_protocol::error::{CallError, ErrorCode};
use prometheus::Registry;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::busy::Busy;
use crate::config::{UpstreamAddress, UpstreamConfig};

pub(crate) use call::UpstreamCall;
use metrics::UpstreamMetrics;
pub use paths::PathPattern;
pub(crate) use pieces::Pieces;
use pool::Pool;
use probe::Health;
use pulse::Pulse;
pub(crate) use sent::{ComingLimits, Sent};

/// A server behind the replica.
pub(crate) struct Upstream {
    config: UpstreamConfig,
    /// What it is called in requests.
    host: HeaderValue,
    /// Largest header block of an answer, bytes.
    header: usize,
    busy: Arc<Busy>,
    metrics: UpstreamMetrics,
    pool: Pool,
    health: Health,
    pulse: Arc<Pulse>,
    /// Answers that are passed on as they come, and what asks how it is.
    tasks: TaskTracker,
    /// Calls that are still running are to end.
    broken_off: CancellationToken,
    ended: CancellationToken,
}

/// How an upstream is, for the admin listener.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub(crate) struct UpstreamStatus {
    url: String,
    ready: bool,
    not_ready_because: Option<String>,
    /// Nothing where it is not asked.
    live: Option<bool>,
    not_live_because: Option<String>,
    connections: i64,
    idle_connections: usize,
}

impl Upstream {
    /// One that is not asked yet. `header` is the largest header block of an answer.
    ///
    /// # Errors
    /// [`prometheus::Error`] if two metrics have one name.
    pub(crate) fn new(
        config: &UpstreamConfig,
        header: usize,
        busy: Arc<Busy>,
        registry: &Registry,
    ) -> Result<Arc<Self>, prometheus::Error> {
        busy.set_able(false);
        Ok(Arc::new(Self {
            host: host(&config.address),
            header,
            busy,
            metrics: UpstreamMetrics::new(registry)?,
            pool: Pool::new(config.connections, config.idle_timeout),
            health: Health::new(),
            pulse: Pulse::new(),
            tasks: TaskTracker::new(),
            broken_off: CancellationToken::new(),
            ended: CancellationToken::new(),
            config: config.clone(),
        }))
    }

    /// Begins to ask it, and comes back once it is ready.
    pub(crate) async fn start(self: &Arc<Self>) {
        let (upstream, ended) = (Arc::clone(self), self.ended.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                ((), ()) = async { tokio::join!(probe::keep(&upstream), upstream.pool.keep()) } => {}
            }
        });
        self.health.until_ready().await;
    }

    /// How it is reached, and what is passed on.
    pub(crate) fn config(&self) -> &UpstreamConfig {
        &self.config
    }

    /// What it is called in requests.
    pub(crate) fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// Refuses a call while it is not ready.
    ///
    /// # Errors
    /// `upstream_unavailable`, with the reason.
    pub(crate) fn check(&self) -> Result<(), CallError> {
        if self.health.is_ready() {
            return Ok(());
        }
        self.busy.refuse();
        Err(unavailable(self.trouble().unwrap_or_else(|| "the upstream is not ready".into())))
    }

    /// Why it is not ready; nothing where it is, or nobody has begun to ask.
    pub(crate) fn trouble(&self) -> Option<String> {
        Some(format!("the upstream is not ready: {}", self.health.reason()?))
    }

    /// How it is.
    pub(crate) fn status(&self) -> UpstreamStatus {
        let (ready, live) = (self.health.is_ready(), self.health.is_live());
        let is_asked = self.config.probes.live_path.is_some();
        UpstreamStatus {
            url: self.config.address.to_string(),
            ready,
            not_ready_because: self.health.reason(),
            live: is_asked.then_some(live),
            not_live_because: self.health.live_reason().filter(|_| is_asked && !live),
            connections: self.metrics.connections.get(),
            idle_connections: self.pool.len(),
        }
    }

    /// Ends the calls that are still running, each with an answer that says so.
    pub(crate) fn break_off(&self) {
        self.broken_off.cancel();
    }

    /// Asks no more, and lets go of it.
    pub(crate) async fn stop(&self, limit: Duration) {
        self.break_off();
        self.ended.cancel();
        self.tasks.close();
        // Each of them ends as soon as it is told.
        let _ = tokio::time::timeout(limit, self.tasks.wait()).await;
        self.pool.clear();
    }
}

/// What an upstream is called in requests.
fn host(address: &UpstreamAddress) -> HeaderValue {
    HeaderValue::from_str(&address.authority()).unwrap_or(HeaderValue::from_static("localhost"))
}

fn unavailable(text: String) -> CallError {
    CallError::new(ErrorCode::UpstreamUnavailable, text).with_retry_after(Duration::from_secs(1))
}
