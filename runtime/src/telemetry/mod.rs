//! What is told of requests: how long which part of one took, in histograms, headers and the log.

mod access;
mod calls;
mod context;
mod export;
mod kept;
mod passage;
mod phase;
mod shown;
mod timing;
mod trace;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use prometheus::Registry;

use crate::config::{LogConfig, LogFormat, LogRequests};
use calls::ModelCalls;
use context::Carried;
pub(crate) use export::Exporter;
pub(crate) use kept::Wanted;
pub use trace::Sampler;

use export::{Recorded, Spans};
pub use kept::{KeptLine, KeptLines, Severity, Source};
use phase::PhaseMetrics;

pub(crate) use calls::ModelSeries;
pub(crate) use passage::{Answered, Asked, Ending, MAX_LINKS, Passage, Together};
pub(crate) use phase::Phase;
pub(crate) use shown::Shown;
pub(crate) use timing::asks_for_timing;

tokio::task_local! {
    /// The request that is being worked on: in the future that answers it, and where a thread works on one.
    static CURRENT: Arc<Passage>;
}

/// What requests are told by.
pub(crate) struct Telemetry {
    phases: PhaseMetrics,
    models: ModelCalls,
    requests: LogRequests,
    slow: Duration,
    format: LogFormat,
    /// Where spans are left, and of which requests.
    spans: Option<(Spans, Sampler)>,
}

impl Telemetry {
    /// Registers everything.
    ///
    /// # Errors
    /// [`prometheus::Error`] if two metrics have one name.
    pub(crate) fn new(
        log: &LogConfig,
        spans: Option<(Spans, Sampler)>,
        registry: &Registry,
    ) -> Result<Arc<Self>, prometheus::Error> {
        let (phases, models) = (PhaseMetrics::new(registry)?, ModelCalls::new(registry)?);
        let (requests, slow, format) = (log.requests, log.slow, log.format);
        Ok(Arc::new(Self { phases, models, requests, slow, format, spans }))
    }

    /// A request is over.
    fn ended(&self, passage: &Passage) {
        let now = Instant::now();
        if let Some(answered) = passage.answered() {
            passage.add_until(Phase::Send, now.saturating_duration_since(answered.at), now);
        }
        self.count(passage, now);
        if let Some((spans, _)) = self.spans.as_ref().filter(|_| passage.trace().is_some()) {
            spans.leave(|| Recorded::of(passage, now));
        }
    }

    /// Which requests are recorded, if any.
    fn sampler(&self) -> Option<Sampler> {
        self.spans.as_ref().map(|(_, sampler)| *sampler)
    }

    /// Counts and tells a call, and what it has spent its time with.
    fn count(&self, passage: &Passage, now: Instant) {
        if let Some(asked) = passage.asked().filter(|_| !passage.is_whole()) {
            self.phases.observe(asked.operation, passage);
        }
        self.models.count(passage, now);
        self.log(passage, now);
    }

    /// Whether a request that is refused has a line that says why. AzureML's lines have no place for it.
    pub(crate) fn tells_why(&self) -> bool {
        self.requests != LogRequests::Off && self.format != LogFormat::AzureMl
    }
}

/// Does the work of a request, so that what it comes through knows whose it is.
pub(crate) async fn within<F: Future>(passage: Arc<Passage>, work: F) -> F::Output {
    CURRENT.scope(passage, work).await
}

/// The same of a call that is a part of a request which has many, and counted by itself.
pub(crate) fn within_part<F: Future>(
    whole: Option<&Arc<Passage>>,
    work: F,
) -> impl Future<Output = F::Output> + use<F> {
    let part = whole.map(|whole| whole.part());
    async move {
        let Some(part) = part else { return work.await };
        let done = within(Arc::clone(&part), work).await;
        part.telemetry().count(&part, Instant::now());
        done
    }
}

/// The same on a thread.
pub(crate) fn during<R>(passage: Option<&Arc<Passage>>, work: impl FnOnce() -> R) -> R {
    match passage {
        Some(passage) => CURRENT.sync_scope(Arc::clone(passage), work),
        None => work(),
    }
}

/// Does something with the request that is being worked on, if there is one.
pub(crate) fn with<R>(then: impl FnOnce(&Arc<Passage>) -> R) -> Option<R> {
    CURRENT.try_with(then).ok()
}

/// The request that is being worked on has spent the time since then so.
pub(crate) fn spent(phase: Phase, since: Instant) {
    with(|passage| passage.add_since(phase, since));
}

/// Tells whoever gets these headers to which trace the request belongs that is being worked on.
pub(crate) fn carry(headers: &mut HeaderMap) {
    with(|passage| passage.carried().into_iter().for_each(|carried| carried.write(headers)));
}

/// The same in lines, for a worker.
pub(crate) fn carried_lines() -> Vec<u8> {
    with(|passage| passage.carried().map(Carried::lines)).flatten().unwrap_or_default()
}

/// What a line of the log belongs to.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The request's id.
    pub request: Option<&'a str>,
    /// Who calls, once that is known.
    pub caller: Option<&'a str>,
    /// The model that is asked for, if it is there.
    pub model: Option<&'a str>,
}

/// Tells whoever writes a line of the log to which request it belongs, if it is written in the course of one.
pub fn about<R>(then: impl FnOnce(About<'_>) -> R) -> Option<R> {
    with(|passage| {
        let (request, caller, model) = (passage.request_id(), passage.caller(), passage.model());
        then(About { request, caller, model })
    })
}
