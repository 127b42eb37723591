//! A request on its way through the house: when it came, what is known of it, and how long which part of it took.
//!
//! It is one allocation for each request, shared by the future that answers it, the slot that it has, and its answer's body. Nothing in
//! it is behind a lock: times are added to atomics, and what is known is written once.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::extract::MatchedPath;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};
use outrigger_auth::AuthError;
use outrigger_protocol::error::ErrorCode;
use outrigger_protocol::operation::Operation;

use super::context::{Carried, SpanId};
use super::phase::Times;
use super::trace::Trace;
use super::{Phase, Telemetry};
use crate::models::NamedModel;

/// What a request asks for.
pub(crate) struct Asked {
    pub(crate) operation: Operation,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    /// Whether it came by TLS.
    pub(crate) is_encrypted: bool,
    /// The pattern that the path is of, where it is one.
    pub(crate) route: Option<MatchedPath>,
    /// The answer's `x-request-id`.
    pub(crate) id: Option<HeaderValue>,
    /// Its `x-ms-client-request-id`.
    pub(crate) client_id: Option<HeaderValue>,
}

/// What it is answered.
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) code: Option<ErrorCode>,
    /// Bytes of the body; none where that is not known before its end.
    pub(crate) length: Option<u64>,
    /// When the head of the answer was there.
    pub(crate) at: Instant,
}

impl Answered {
    /// The status that says how it ended: what the call failed with, as in gRPC all are 200 on the outside, or what was made by who answers it.
    pub(crate) fn outcome(&self) -> StatusCode {
        self.code.map_or(self.status, ErrorCode::status)
    }

    /// Whether it failed, and not for what was asked.
    pub(crate) fn is_failure(&self) -> bool {
        self.outcome().is_server_error()
    }
}

/// A request on its way.
pub(crate) struct Passage {
    telemetry: Arc<Telemetry>,
    begun: Instant,
    /// Of each phase, plus 1 as soon as anything has been added.
    nanos: [AtomicU64; Phase::ALL.len()],
    /// When something was last added to it, since it came; only where that is recorded.
    ends: [AtomicU64; Phase::ALL.len()],
    /// When a lane began with it, since it came, plus 1.
    lane: AtomicU64,
    /// Parts of its answer that are not gone, and the future that makes it.
    open: AtomicUsize,
    asked: OnceLock<Asked>,
    answered: OnceLock<Answered>,
    caller: OnceLock<Box<str>>,
    /// Why nobody knows who calls.
    refused: OnceLock<AuthError>,
    model: OnceLock<Arc<NamedModel>>,
    /// Its span, where it is recorded.
    trace: OnceLock<Trace>,
    /// To which trace it belongs, for who is asked in the course of it.
    carried: OnceLock<Carried>,
    /// With which others it has run.
    together: OnceLock<Together>,
    /// Whether it has calls as its parts, each with phases of its own.
    is_whole: AtomicBool,
    /// Whether it ended by a panic.
    panicked: AtomicBool,
}

/// The most requests that the span of one names with which it has run.
pub(crate) const MAX_LINKS: usize = 32;

/// Calls that have run as one.
#[derive(Clone, Debug)]
pub(crate) struct Together {
    /// How many, itself counted in.
    pub(crate) calls: usize,
    /// Those that are recorded, itself among them; of many, as many as have to be named.
    pub(crate) recorded: Arc<[SpanId]>,
}

impl Passage {
    /// One that comes now.
    pub(crate) fn new(telemetry: &Arc<Telemetry>) -> Arc<Self> {
        Arc::new(Self {
            telemetry: Arc::clone(telemetry),
            begun: Instant::now(),
            nanos: Default::default(),
            ends: Default::default(),
            lane: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            asked: OnceLock::new(),
            answered: OnceLock::new(),
            caller: OnceLock::new(),
            refused: OnceLock::new(),
            model: OnceLock::new(),
            trace: OnceLock::new(),
            carried: OnceLock::new(),
            together: OnceLock::new(),
            is_whole: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
        })
    }

    /// A call that is a part of it.
    pub(super) fn part(&self) -> Arc<Self> {
        self.is_whole.store(true, Ordering::Relaxed);
        let part = Self::new(&self.telemetry);
        let asked = self.asked().map(|asked| Asked {
            operation: asked.operation,
            method: asked.method.clone(),
            uri: asked.uri.clone(),
            version: asked.version,
            is_encrypted: asked.is_encrypted,
            route: asked.route.clone(),
            id: asked.id.clone(),
            client_id: asked.client_id.clone(),
        });
        asked.into_iter().for_each(|asked| part.asks(asked));
        part
    }

    /// Whether its parts are what is counted, and not itself.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole.load(Ordering::Relaxed)
    }

    /// What it is told by.
    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// When it came.
    pub(crate) fn begun(&self) -> Instant {
        self.begun
    }

    /// It has spent so much more time with this.
    pub(crate) fn add(&self, phase: Phase, time: Duration) {
        if self.trace.get().is_some() {
            self.add_until(phase, time, Instant::now());
        } else {
            self.count(phase, time);
        }
    }

    /// The same for what has ended then.
    pub(crate) fn add_until(&self, phase: Phase, time: Duration, end: Instant) {
        self.count(phase, time);
        if let Some(ends) = self.ends.get(phase as usize).filter(|_| self.trace.get().is_some()) {
            let end = end.saturating_duration_since(self.begun).as_nanos();
            ends.store(u64::try_from(end).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// It has spent the time since then with this.
    pub(crate) fn add_since(&self, phase: Phase, since: Instant) {
        let now = Instant::now();
        self.add_until(phase, now.saturating_duration_since(since), now);
    }

    /// All that is known of its phases.
    pub(super) fn times(&self) -> Times {
        let all = |of: &[AtomicU64; Phase::ALL.len()]| of.each_ref().map(|one| one.load(Ordering::Relaxed));
        Times { spent: all(&self.nanos), ends: all(&self.ends) }
    }

    fn count(&self, phase: Phase, time: Duration) {
        if let Some(nanos) = self.nanos.get(phase as usize) {
            let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2);
            let mark = u64::from(nanos.load(Ordering::Relaxed) == 0);
            nanos.fetch_add(time.saturating_add(mark), Ordering::Relaxed);
        }
    }

    /// How long it has spent with this; nothing where it has not come to it.
    pub(crate) fn spent(&self, phase: Phase) -> Option<Duration> {
        let nanos = self.nanos.get(phase as usize)?.load(Ordering::Relaxed);
        nanos.checked_sub(1).map(Duration::from_nanos)
    }

    /// A lane begins with it, which was let through then.
    pub(crate) fn begin(&self, through: Instant, now: Instant) {
        self.add_until(Phase::Batch, now.saturating_duration_since(through), now);
        let since = now.saturating_duration_since(self.begun).as_nanos();
        self.lane.store(u64::try_from(since).unwrap_or(u64::MAX - 1).saturating_add(1), Ordering::Relaxed);
    }

    /// A lane has given it back, of which the work itself took so long, if that is known. The rest is the way there and back.
    pub(crate) fn end(&self, run: Option<Duration>) {
        let Some(since) = self.lane.load(Ordering::Relaxed).checked_sub(1) else { return };
        let all = self.begun.elapsed().saturating_sub(Duration::from_nanos(since));
        let run = run.unwrap_or(all).min(all);
        let (way, now) = (all.saturating_sub(run), Instant::now());
        self.add_until(Phase::CopyIn, way, now.checked_sub(run).unwrap_or(now));
        self.add_until(Phase::Run, run, now);
    }

    /// Finds out to which trace it belongs, and whether it is recorded.
    pub(crate) fn belongs(&self, headers: &HeaderMap, operation: Operation) {
        // Probes come every few seconds, and nobody looks for them.
        if let Some(sampler) = self.telemetry.sampler().filter(|_| !operation.public()) {
            let (trace, carried) = Trace::begin(sampler, headers);
            let _ = self.carried.set(carried);
            if trace.sampled {
                let _ = self.trace.set(trace);
            }
        } else if Carried::are_there(headers) {
            let _ = self.carried.set(Carried::through(headers));
        }
    }

    /// Its span, where it is recorded.
    pub(crate) fn trace(&self) -> Option<&Trace> {
        self.trace.get()
    }

    /// To which trace it belongs, if to any.
    pub(crate) fn carried(&self) -> Option<&Carried> {
        self.carried.get()
    }

    /// It has run together with those.
    pub(crate) fn ran_with(&self, together: Together) {
        let _ = self.together.set(together);
    }

    /// With which others it has run, if with any.
    pub(crate) fn together(&self) -> Option<&Together> {
        self.together.get()
    }

    /// What it asks for is known.
    pub(crate) fn asks(&self, asked: Asked) {
        let _ = self.asked.set(asked);
    }

    /// What it asks for.
    pub(crate) fn asked(&self) -> Option<&Asked> {
        self.asked.get()
    }

    /// The head of its answer is there.
    pub(crate) fn is_answered(&self, answered: Answered) {
        let _ = self.answered.set(answered);
    }

    /// What it is answered.
    pub(crate) fn answered(&self) -> Option<&Answered> {
        self.answered.get()
    }

    /// Its caller is known. That is a name of the configuration's.
    pub(crate) fn is_of(&self, caller: &str) {
        if self.caller.get().is_none() {
            let _ = self.caller.set(caller.into());
        }
    }

    /// Who calls.
    pub(crate) fn caller(&self) -> Option<&str> {
        self.caller.get().map(|caller| &**caller)
    }

    /// Nobody knows who calls.
    pub(crate) fn is_refused(&self, error: AuthError) {
        let _ = self.refused.set(error);
    }

    /// Why nobody knows who calls, if that is so.
    pub(crate) fn refusal(&self) -> Option<AuthError> {
        self.refused.get().copied()
    }

    /// What it is called that it ended without an answer.
    pub(crate) fn unanswered(&self) -> &'static str {
        if self.panicked.load(Ordering::Relaxed) { ErrorCode::Internal.as_str() } else { "client_left" }
    }

    /// The model that it asks for has been found.
    pub(crate) fn is_for(&self, model: &Arc<NamedModel>) {
        if self.model.get().is_none() {
            let _ = self.model.set(Arc::clone(model));
        }
    }

    /// The model that it asks for.
    pub(crate) fn model(&self) -> Option<&str> {
        self.model.get().map(|model| &*model.name)
    }

    /// The same model itself.
    pub(super) fn named_model(&self) -> Option<&NamedModel> {
        self.model.get().map(|model| &**model)
    }

    /// The answer's `x-request-id`.
    pub(crate) fn request_id(&self) -> Option<&str> {
        self.asked.get()?.id.as_ref()?.to_str().ok()
    }
}

/// Held by whoever has a part of an answer that is not gone yet. With the last of it the request is over.
pub(crate) struct Ending(Arc<Passage>);

impl Ending {
    /// The end of a request.
    pub(crate) fn of(passage: &Arc<Passage>) -> Self {
        passage.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(passage))
    }
}

impl Clone for Ending {
    fn clone(&self) -> Self {
        Self::of(&self.0)
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // What others have added before they let go is seen here.
        if self.0.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            if std::thread::panicking() {
                self.0.panicked.store(true, Ordering::Relaxed);
            }
            self.0.telemetry.ended(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LogConfig, LogFormat, LogRequests};

    fn passage() -> Arc<Passage> {
        let log = LogConfig {
            level: "info".into(),
            format: LogFormat::Json,
            buffer: 1,
            requests: LogRequests::Off,
            slow: Duration::from_secs(1),
            rate: 0,
            kept: 0,
        };
        let telemetry = Telemetry::new(&log, None, &prometheus::Registry::new()).unwrap();
        Passage::new(&telemetry)
    }

    #[test]
    fn what_a_request_does_not_come_to_is_not_counted() {
        let passage = passage();
        assert_eq!(passage.spent(Phase::Run), None);
        passage.add(Phase::Run, Duration::ZERO);
        assert_eq!(passage.spent(Phase::Run), Some(Duration::ZERO));
        passage.add(Phase::Run, Duration::from_nanos(5));
        passage.add(Phase::Run, Duration::from_nanos(7));
        assert_eq!(passage.spent(Phase::Run), Some(Duration::from_nanos(12)));
    }

    #[test]
    fn the_time_of_a_lane_is_the_run_and_the_way_there_and_back() {
        let passage = passage();
        passage.end(None);
        assert_eq!(passage.spent(Phase::Run), None, "no lane has begun");
        let now = Instant::now();
        passage.begin(now - Duration::from_millis(3), now);
        assert_eq!(passage.spent(Phase::Batch), Some(Duration::from_millis(3)));
        passage.end(Some(Duration::from_secs(3600)));
        let run = passage.spent(Phase::Run).unwrap();
        assert!(run <= now.elapsed(), "no run is longer than its lane had it: {run:?}");
        assert_eq!(passage.spent(Phase::CopyIn), Some(Duration::ZERO));
    }

    #[test]
    fn a_request_is_over_with_the_last_part_of_its_answer() {
        let passage = passage();
        passage.is_answered(Answered {
            status: StatusCode::OK,
            code: None,
            length: None,
            at: Instant::now(),
        });
        let ending = Ending::of(&passage);
        let piece = ending.clone();
        drop(ending);
        assert_eq!(passage.spent(Phase::Send), None);
        drop(piece);
        assert!(passage.spent(Phase::Send).is_some());
    }
}
