//! What is recorded of a request that is over: little, and in one piece, as requests pay for it. Names and texts are made of it by who sends them.
//!
//! Names of attributes are OpenTelemetry's semantic conventions for HTTP servers, and `outrigger.*` for what those have no name for.

use std::time::{Duration, Instant, SystemTime};

use http::{HeaderValue, StatusCode, Version};
use outrigger_protocol::operation::Operation;
use smallvec::SmallVec;

use crate::methods;
use crate::telemetry::context::SpanId;
use crate::telemetry::phase::Times;
use crate::telemetry::{Answered, MAX_LINKS, Passage, Together};

/// The most bytes of a text: callers have chosen some of them.
const MAX_TEXT: usize = 1024;
/// What a method is called that HTTP does not know.
const OTHER: &str = "_OTHER";
/// Bytes for the texts of a request that need no memory of their own, which is what most have.
const ROOM: usize = 176;

/// What is recorded of a request.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(super) id: SpanId,
    /// The span that it belongs to, in somebody else's process.
    pub(super) parent: Option<[u8; 8]>,
    pub(super) begun: SystemTime,
    pub(super) took: Duration,
    /// As the conventions write it.
    pub(super) method: &'static str,
    pub(super) operation: Operation,
    pub(super) version: Version,
    pub(super) is_encrypted: bool,
    /// The status that it was answered with.
    pub(super) status: Option<StatusCode>,
    /// The one that says how it ended.
    pub(super) outcome: Option<StatusCode>,
    pub(super) code: Option<&'static str>,
    /// Bytes of its answer.
    pub(super) length: Option<u64>,
    pub(super) times: Times,
    pub(super) together: Option<Together>,
    pub(super) texts: Texts,
}

/// What an attribute says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Text(&'a str),
    Number(i64),
}

/// The texts of a request.
#[derive(Clone, Copy)]
pub(super) enum Text {
    Path,
    Route,
    RequestId,
    ClientRequestId,
    Caller,
    Model,
    /// The state of its trace.
    State,
}

/// How many they are.
pub(super) const TEXTS: usize = 7;

/// They stand one behind the other; each ends there. One that is not known is empty.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    all: SmallVec<[u8; ROOM]>,
    ends: [u16; TEXTS],
}

impl Texts {
    /// In the order of [`Text`]; of each no more than there is room for.
    pub(super) fn new(texts: [&str; TEXTS]) -> Self {
        let (mut all, mut ends) = (SmallVec::new(), [0; TEXTS]);
        for (end, text) in ends.iter_mut().zip(texts) {
            all.extend_from_slice(
                text.as_bytes().get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or_default(),
            );
            *end = u16::try_from(all.len()).unwrap_or(u16::MAX);
        }
        Self { all, ends }
    }

    fn get(&self, text: Text) -> &str {
        let end = |at: usize| self.ends.get(at).map_or(0, |end| usize::from(*end));
        let begin = (text as usize).checked_sub(1).map_or(0, end);
        let text = self.all.get(begin..end(text as usize)).unwrap_or_default();
        str::from_utf8(text).unwrap_or_default()
    }
}

impl Recorded {
    /// What there is to record of one that ends now; nothing where it is not recorded.
    pub(in crate::telemetry) fn of(passage: &Passage, now: Instant) -> Option<Self> {
        let (trace, asked) = (passage.trace()?, passage.asked()?);
        let took = now.saturating_duration_since(passage.begun());
        let clock = SystemTime::now();
        let answered = passage.answered();
        let texts = [
            asked.uri.path(),
            asked.route.as_ref().map_or("", |route| route.as_str()),
            passage.request_id().unwrap_or_default(),
            text(asked.client_id.as_ref()),
            passage.caller().unwrap_or_default(),
            passage.model().unwrap_or_default(),
            text(trace.state.as_ref()),
        ];
        Some(Self {
            id: trace.id,
            parent: trace.parent,
            begun: clock.checked_sub(took).unwrap_or(clock),
            took,
            method: methods::known(&asked.method).unwrap_or(OTHER),
            operation: asked.operation,
            version: asked.version,
            is_encrypted: asked.is_encrypted,
            status: answered.map(|answered| answered.status),
            outcome: answered.map(Answered::outcome),
            code: match answered {
                Some(answered) => answered.code.map(|code| code.as_str()),
                None => Some(passage.unanswered()),
            },
            length: answered.and_then(|answered| answered.length),
            times: passage.times(),
            together: passage.together().cloned(),
            texts: Texts::new(texts),
        })
    }

    /// One of its texts; empty where it is not known.
    pub(super) fn text(&self, text: Text) -> &str {
        self.texts.get(text)
    }

    /// Its name, in parts: the method, and the route where it has one.
    pub(super) fn name(&self) -> [&str; 3] {
        let method = if self.method == OTHER { "HTTP" } else { self.method };
        match self.text(Text::Route) {
            "" => [method, "", ""],
            route => [method, " ", route],
        }
    }

    /// The code of what it failed with. A script and an upstream may fail with a status alone.
    fn error(&self) -> Option<&str> {
        self.code.or_else(|| {
            self.outcome.as_ref().filter(|status| status.is_server_error()).map(StatusCode::as_str)
        })
    }

    /// The same of what the server is at fault for.
    pub(super) fn failure(&self) -> Option<&str> {
        self.outcome.filter(StatusCode::is_server_error)?;
        self.error()
    }

    /// Tells each of its attributes.
    pub(super) fn attributes(&self, mut each: impl FnMut(&'static str, Value<'_>)) {
        let mut text = |name, text| each(name, Value::Text(text));
        text("http.request.method", self.method);
        text("url.path", self.text(Text::Path));
        text("url.scheme", if self.is_encrypted { "https" } else { "http" });
        text("network.protocol.name", "http");
        text("network.protocol.version", version(self.version));
        text("outrigger.operation", self.operation.as_str());
        for (name, one) in [
            ("http.route", Text::Route),
            ("outrigger.request_id", Text::RequestId),
            ("outrigger.caller", Text::Caller),
            ("outrigger.model", Text::Model),
        ] {
            match self.text(one) {
                "" => {}
                known => text(name, known),
            }
        }
        if let Some(error) = self.error() {
            text("error.type", error);
        }
        if let Some(status) = self.status {
            each("http.response.status_code", Value::Number(status.as_u16().into()));
        }
        if let Some(length) = self.length.and_then(|length| i64::try_from(length).ok()) {
            each("http.response.body.size", Value::Number(length));
        }
    }

    /// How many calls it has run with as one, itself counted in, and which of the others are recorded; nothing where it has run alone.
    pub(super) fn others(&self) -> Option<(usize, impl Iterator<Item = &SpanId>)> {
        let together = self.together.as_ref().filter(|together| together.calls > 1)?;
        let others = together.recorded.iter().filter(|id| **id != self.id);
        Some((together.calls, others.take(MAX_LINKS)))
    }
}

fn text(value: Option<&HeaderValue>) -> &str {
    value.and_then(|value| value.to_str().ok()).unwrap_or_default()
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
            begun: SystemTime::UNIX_EPOCH,
            took: Duration::ZERO,
            method: "GET",
            operation: Operation::Infer,
            version: Version::HTTP_11,
            is_encrypted: false,
            status: None,
            outcome: None,
            code: None,
            length: None,
            times: Times::default(),
            together: None,
            texts: Texts::new([""; TEXTS]),
        }
    }
}
