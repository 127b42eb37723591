//! Requests as spans in OpenTelemetry's protocol: each is one of its own, and a child for each phase.
//!
//! They are written as bytes straight from what is recorded. As generated messages a request is a hundred texts on the heap, which cost ten times
//! what the bytes do. Source: opentelemetry-proto, `trace/v1/trace.proto` and `common/v1/common.proto`, whose numbers of fields are here; the
//! tests hold every byte against the generated messages.

use bytes::Bytes;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, status};
use prost::Message as _;
use prost::encoding::{encode_varint, encoded_len_varint};

use super::record::{Recorded, Text, Value};
use super::send::{FRAME, Framed};
use super::{nanos, scope};
use crate::telemetry::Phase;

/// Bytes of spans from which on no more go along: with what is added at once, and names of the resource, it is below the 4 MiB that gRPC takes.
const FULL: usize = 3 << 20;
/// Bytes of a length: four, as far as messages go.
const LENGTH: usize = 4;

/// A request to the collector that is being written.
pub(super) struct Body {
    /// Room for what is before the spans, and they.
    bytes: Vec<u8>,
    /// What is before them: of whom they are, and who tells, as fields.
    resource: Vec<u8>,
    scope: Vec<u8>,
}

impl Body {
    pub(super) fn new(resource: &Resource) -> Self {
        let resource = ResourceSpans { resource: Some(resource.clone()), ..ResourceSpans::default() };
        let scope = ScopeSpans { scope: Some(scope()), ..ScopeSpans::default() };
        let mut body =
            Self { bytes: Vec::new(), resource: resource.encode_to_vec(), scope: scope.encode_to_vec() };
        body.begin();
        body
    }

    fn room(&self) -> usize {
        FRAME + 2 * (1 + LENGTH) + self.resource.len() + self.scope.len()
    }

    fn begin(&mut self) {
        self.bytes.clear();
        self.bytes.resize(self.room(), 0);
    }

    /// Whether no more should be added.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= FULL
    }

    /// Adds the span of a request, and its children.
    pub(super) fn add(&mut self, record: &Recorded) {
        let common = Common { record, state: record.text(Text::State), begun: nanos(record.begun) };
        record.times.phases().for_each(|phase| common.child(&mut self.bytes, phase));
        common.own(&mut self.bytes);
    }

    /// What is to be sent, as `ExportTraceServiceRequest`. The next is empty.
    pub(super) fn finish(&mut self) -> Framed {
        let room = self.room();
        let spans = self.bytes.len().saturating_sub(room);
        let (mut scoped, mut all) = (Vec::with_capacity(room), Vec::with_capacity(room));
        start(&mut scoped, SCOPE_SPANS, self.scope.len() + spans);
        scoped.extend_from_slice(&self.scope);
        start(&mut all, RESOURCE_SPANS, self.resource.len() + scoped.len() + spans);
        all.extend_from_slice(&self.resource);
        all.extend_from_slice(&scoped);
        // It ends where the spans begin, so that they need not be moved.
        let begin = room.saturating_sub(all.len());
        if let Some(place) = self.bytes.get_mut(begin..room) {
            place.copy_from_slice(&all);
        }
        let framed = Framed::behind(std::mem::take(&mut self.bytes), begin);
        self.begin();
        framed
    }

    /// Takes the memory back of what has been sent, for the next, unless that was much more than it took.
    pub(super) fn take_back(&mut self, sent: Framed) {
        let length = sent.len();
        if let Ok(mut bytes) = Bytes::from(sent).try_into_mut() {
            bytes.clear();
            let bytes = Vec::from(bytes);
            if bytes.capacity() / 4 <= length && self.bytes.len() <= self.room() {
                self.bytes = bytes;
                self.begin();
            }
        }
    }
}

/// Fields whose value is a length and so many bytes, by their numbers.
const fn bytes(number: u8) -> u8 {
    number << 3 | 2
}

/// `ExportTraceServiceRequest.resource_spans`
const RESOURCE_SPANS: u8 = bytes(1);
/// `ResourceSpans.scope_spans`
const SCOPE_SPANS: u8 = bytes(2);
/// `ScopeSpans.spans`
const SPANS: u8 = bytes(2);
/// Of `Span`, and of `Span.Link` those that that has.
const TRACE_ID: u8 = bytes(1);
const SPAN_ID: u8 = bytes(2);
const TRACE_STATE: u8 = bytes(3);
const PARENT_SPAN_ID: u8 = bytes(4);
const NAME: u8 = bytes(5);
const KIND: u8 = 6 << 3;
const START_TIME: u8 = 7 << 3 | 1;
const END_TIME: u8 = 8 << 3 | 1;
const ATTRIBUTES: u8 = bytes(9);
const LINKS: u8 = bytes(13);
const STATUS: u8 = bytes(15);
/// Of `Status`.
const MESSAGE: u8 = bytes(2);
const CODE: u8 = 3 << 3;
/// Of `KeyValue`.
const KEY: u8 = bytes(1);
const VALUE: u8 = bytes(2);
/// Of `AnyValue`.
const STRING_VALUE: u8 = bytes(1);
const INT_VALUE: u8 = 3 << 3;

/// What all spans of a request have in common.
struct Common<'a> {
    record: &'a Recorded,
    /// The state of its trace.
    state: &'a str,
    /// When it came, nanoseconds since 1970.
    begun: u64,
}

impl Common<'_> {
    /// The span of a phase.
    fn child(&self, to: &mut Vec<u8>, (phase, ended, spent): (Phase, u64, u64)) {
        nested(to, SPANS, 1, |to| {
            let id = &self.record.id;
            self.numbers(to, &id.child(phase), Some(&id.span));
            field(to, NAME, phase.as_str());
            let begun = self.begun.saturating_add(ended.saturating_sub(spent));
            kind(to, SpanKind::Internal, (begun, self.begun.saturating_add(ended)));
            if let Some((calls, others)) = self.record.others().filter(|_| phase == Phase::Run) {
                let calls = i64::try_from(calls).unwrap_or(i64::MAX);
                attribute(to, "outrigger.batch.calls", Value::Number(calls));
                for id in others {
                    nested(to, LINKS, 1, |to| {
                        id_field(to, TRACE_ID, &id.trace);
                        id_field(to, SPAN_ID, &id.span);
                    });
                }
            }
        });
    }

    /// The span of the request itself.
    fn own(&self, to: &mut Vec<u8>) {
        let record = self.record;
        nested(to, SPANS, 2, |to| {
            self.numbers(to, &record.id.span, record.parent.as_ref());
            let name = record.name();
            start(to, NAME, name.iter().map(|part| part.len()).sum());
            name.iter().for_each(|part| to.extend_from_slice(part.as_bytes()));
            let took = u64::try_from(record.took.as_nanos()).unwrap_or(u64::MAX);
            kind(to, SpanKind::Server, (self.begun, self.begun.saturating_add(took)));
            record.attributes(|name, value| attribute(to, name, value));
            if let Some(failure) = record.failure() {
                nested(to, STATUS, 1, |to| {
                    field(to, MESSAGE, failure);
                    to.extend_from_slice(&[CODE, status::StatusCode::Error as u8]);
                });
            }
        });
    }

    /// To which trace a span belongs, and where in it.
    fn numbers(&self, to: &mut Vec<u8>, span: &[u8; 8], parent: Option<&[u8; 8]>) {
        id_field(to, TRACE_ID, &self.record.id.trace);
        id_field(to, SPAN_ID, span);
        if !self.state.is_empty() {
            field(to, TRACE_STATE, self.state);
        }
        if let Some(parent) = parent {
            id_field(to, PARENT_SPAN_ID, parent);
        }
    }
}

fn id_field<const N: usize>(to: &mut Vec<u8>, tag: u8, id: &[u8; N]) {
    to.extend_from_slice(&[tag, N as u8]);
    to.extend_from_slice(id);
}

/// Of which kind it is, when it began, and when it ended.
fn kind(to: &mut Vec<u8>, kind: SpanKind, (begun, ended): (u64, u64)) {
    to.extend_from_slice(&[KIND, kind as u8]);
    for (tag, time) in [(START_TIME, begun), (END_TIME, ended)] {
        to.push(tag);
        to.extend_from_slice(&time.to_le_bytes());
    }
}

fn attribute(to: &mut Vec<u8>, name: &str, value: Value<'_>) {
    let inner = match value {
        Value::Text(text) => sized(text.len()),
        Value::Number(number) => 1 + encoded_len_varint(number as u64),
    };
    start(to, ATTRIBUTES, sized(name.len()) + sized(inner));
    field(to, KEY, name);
    start(to, VALUE, inner);
    match value {
        Value::Text(text) => field(to, STRING_VALUE, text),
        Value::Number(number) => {
            to.push(INT_VALUE);
            encode_varint(number as u64, to);
        }
    }
}

/// Bytes of a field with so many in it.
fn sized(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

/// A text.
fn field(to: &mut Vec<u8>, tag: u8, text: &str) {
    start(to, tag, text.len());
    to.extend_from_slice(text.as_bytes());
}

/// The beginning of a field of so many bytes.
#[inline]
fn start(to: &mut Vec<u8>, tag: u8, length: usize) {
    match u8::try_from(length) {
        Ok(length) if length < 0x80 => to.extend_from_slice(&[tag, length]),
        _ => {
            to.push(tag);
            encode_varint(length as u64, to);
        }
    }
}

/// A message in a message. Its length, which is before it, is known behind it: it is given as many bytes as it mostly takes.
fn nested(to: &mut Vec<u8>, tag: u8, mostly: usize, write: impl FnOnce(&mut Vec<u8>)) {
    to.push(tag);
    let at = to.len();
    to.resize(at + mostly, 0);
    write(to);
    let length = to.len().saturating_sub(at + mostly) as u64;
    let width = encoded_len_varint(length);
    if width != mostly {
        to.splice(at..at + mostly, std::iter::repeat_n(0, width));
    }
    if let Some(mut place) = to.get_mut(at..at + width) {
        encode_varint(length, &mut place);
    }
}

#[cfg(test)]
mod tests;
