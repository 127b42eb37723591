//! A request as spans: one of its own, and a child for each phase.
//!
//! Names of attributes are OpenTelemetry's semantic conventions for HTTP servers, and `outrigger.*` for what those have no name for.

use std::time::{Duration, SystemTime};

use http::{StatusCode, Version};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::trace::v1::{Span, Status, span, status};

use super::{nanos, number, text};
use crate::telemetry::context::SpanId;
use crate::telemetry::{Answered, Passage, Phase};

/// The most characters of a text that a caller has chosen.
const MAX_TEXT: usize = 1024;

/// What is recorded of a request that is over.
pub(crate) struct Recorded {
    pub(super) id: SpanId,
    pub(super) parent: Option<[u8; 8]>,
    state: String,
    pub(super) name: String,
    pub(super) begun: SystemTime,
    pub(super) took: Duration,
    pub(super) attributes: Vec<KeyValue>,
    /// The code of what the server is at fault for.
    pub(super) failure: Option<String>,
    pub(super) status: Option<u16>,
    pub(super) method: String,
    pub(super) request_id: Option<String>,
    pub(super) client_request_id: Option<String>,
    /// When each phase ended, since the beginning, and how long it was.
    pub(super) phases: Vec<(Phase, Duration, Duration)>,
    /// Requests that have run together with it.
    together: Vec<SpanId>,
    /// Calls that ran as one, itself counted in; 0 where that is not known.
    calls: usize,
}

impl Recorded {
    /// What there is to record of one that ends now; nothing where it is not recorded.
    pub(in crate::telemetry) fn of(passage: &Passage) -> Option<Self> {
        let (trace, asked) = (passage.trace()?, passage.asked()?);
        let took = passage.begun().elapsed();
        let now = SystemTime::now();
        let begun = now.checked_sub(took).unwrap_or(now);
        let route = asked.route.as_ref().map(|route| route.as_str());
        let name = match route {
            Some(route) => format!("{} {route}", asked.method),
            None => asked.method.to_string(),
        };
        let path = asked.uri.path();
        let mut attributes = vec![
            text("http.request.method", asked.method.as_str()),
            text("url.path", path.get(..path.floor_char_boundary(MAX_TEXT)).unwrap_or_default()),
            text("url.scheme", if asked.is_encrypted { "https" } else { "http" }),
            text("network.protocol.name", "http"),
            text("network.protocol.version", version(asked.version)),
            text("outrigger.operation", asked.operation.as_str()),
        ];
        let mut known = |name: &str, value: Option<&str>| {
            attributes.extend(value.map(|value| text(name, value)));
        };
        known("http.route", route);
        known("outrigger.request_id", passage.request_id());
        known("outrigger.caller", passage.caller());
        known("outrigger.model", passage.model());
        let answered = passage.answered();
        // A script and an upstream may fail with a status alone.
        let bare = answered.map(Answered::outcome).filter(StatusCode::is_server_error);
        let code = match answered {
            Some(answered) => {
                answered.code.map(|code| code.as_str()).or(bare.as_ref().map(StatusCode::as_str))
            }
            None => Some(passage.unanswered()),
        };
        known("error.type", code);
        if let Some(answered) = answered {
            attributes.push(number("http.response.status_code", answered.status.as_u16().into()));
            let size = answered.length.and_then(|length| i64::try_from(length).ok());
            attributes.extend(size.map(|size| number("http.response.body.size", size)));
        }
        // A server's span says that it has failed where the server has.
        let failed = answered.is_some_and(Answered::is_failure);
        let phases = Phase::ALL
            .into_iter()
            .filter_map(|phase| Some((phase, passage.ended_at(phase)?, passage.spent(phase)?)));
        let state = trace.state.as_ref().and_then(|state| state.to_str().ok()).unwrap_or_default();
        let client = asked.client_id.as_ref().and_then(|id| id.to_str().ok());
        Some(Self {
            id: trace.id,
            parent: trace.parent,
            state: state.to_owned(),
            name,
            begun,
            took,
            attributes,
            status: answered.map(|answered| answered.outcome().as_u16()),
            method: asked.method.to_string(),
            request_id: passage.request_id().map(str::to_owned),
            client_request_id: client.map(str::to_owned),
            failure: failed.then(|| code.unwrap_or_default().to_owned()),
            phases: phases.collect(),
            together: passage.together().map(|together| together.others.clone()).unwrap_or_default(),
            calls: passage.together().map_or(0, |together| together.calls),
        })
    }

    /// The span and its children.
    pub(super) fn spans(&self) -> Vec<Span> {
        let at = |since: Duration| nanos(self.begun.checked_add(since).unwrap_or(self.begun));
        let mut spans = Vec::with_capacity(self.phases.len() + 1);
        for (phase, ended, spent) in &self.phases {
            let mut span = Span {
                trace_id: self.id.trace.to_vec(),
                span_id: self.id.another().span.to_vec(),
                parent_span_id: self.id.span.to_vec(),
                trace_state: self.state.clone(),
                name: phase.as_str().into(),
                kind: span::SpanKind::Internal as i32,
                start_time_unix_nano: at(ended.saturating_sub(*spent)),
                end_time_unix_nano: at(*ended),
                ..Span::default()
            };
            if *phase == Phase::Run && self.calls > 1 {
                let calls = i64::try_from(self.calls).unwrap_or(i64::MAX);
                span.attributes.push(number("outrigger.batch.calls", calls));
                span.links = self.together.iter().map(link).collect();
            }
            spans.push(span);
        }
        spans.push(Span {
            trace_id: self.id.trace.to_vec(),
            span_id: self.id.span.to_vec(),
            parent_span_id: self.parent.map(Vec::from).unwrap_or_default(),
            trace_state: self.state.clone(),
            name: self.name.clone(),
            kind: span::SpanKind::Server as i32,
            start_time_unix_nano: nanos(self.begun),
            end_time_unix_nano: nanos(self.begun.checked_add(self.took).unwrap_or(self.begun)),
            attributes: self.attributes.clone(),
            status: self
                .failure
                .clone()
                .map(|message| Status { message, code: status::StatusCode::Error as i32 }),
            ..Span::default()
        });
        spans
    }
}

/// As the conventions write it.
fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

#[cfg(test)]
impl Recorded {
    /// One of nothing.
    pub(super) fn empty() -> Self {
        Self {
            id: SpanId::new(),
            parent: None,
            state: String::new(),
            name: String::new(),
            begun: SystemTime::UNIX_EPOCH,
            took: Duration::ZERO,
            attributes: Vec::new(),
            failure: None,
            status: None,
            method: String::new(),
            request_id: None,
            client_request_id: None,
            phases: Vec::new(),
            together: Vec::new(),
            calls: 0,
        }
    }
}

fn link(id: &SpanId) -> span::Link {
    span::Link { trace_id: id.trace.to_vec(), span_id: id.span.to_vec(), ..span::Link::default() }
}
