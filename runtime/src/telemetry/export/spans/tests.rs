//! What is written is what the generated messages would have written.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{StatusCode, Version};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{Span, Status, span};
use outrigger_protocol::operation::Operation;
use proptest::prelude::*;

use super::super::record::{TEXTS, Texts};
use super::*;
use crate::telemetry::context::SpanId;
use crate::telemetry::phase::Times;
use crate::telemetry::{MAX_LINKS, Together};

const PHASES: [&str; 8] = ["receive", "auth", "queue", "batch", "copy_in", "run", "copy_out", "send"];

fn resource() -> Resource {
    Resource { attributes: vec![text("service.name", "digits")], ..Resource::default() }
}

fn pair(name: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: name.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn text(name: &str, value: &str) -> KeyValue {
    pair(name, any_value::Value::StringValue(value.into()))
}

fn number(name: &str, value: i64) -> KeyValue {
    pair(name, any_value::Value::IntValue(value))
}

/// What a collector has to get for these requests.
fn expected(records: &[(Recorded, [String; TEXTS])]) -> ExportTraceServiceRequest {
    let spans = records.iter().flat_map(|(record, texts)| spans(record, texts)).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope()), spans, schema_url: String::new() }];
    let resource = Some(resource());
    let schema_url = String::new();
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { resource, scope_spans, schema_url }] }
}

fn spans(record: &Recorded, texts: &[String; TEXTS]) -> Vec<Span> {
    let [path, route, request_id, _, caller, model, state] =
        texts.each_ref().map(|text| &text[..text.floor_char_boundary(1024)]);
    let of = |span: [u8; 8], parent: Vec<u8>| Span {
        trace_id: record.id.trace.into(),
        span_id: span.into(),
        parent_span_id: parent,
        trace_state: state.into(),
        ..Span::default()
    };
    let begun =
        u64::try_from(record.begun.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos()).unwrap();
    let mut spans = Vec::new();
    for (at, phase) in PHASES.into_iter().enumerate() {
        let (spent, ended) = (record.times.spent[at], record.times.ends[at]);
        if spent == 0 {
            continue;
        }
        let mut id = record.id.span;
        id[7] ^= at as u8 + 1;
        let mut span = Span {
            name: phase.into(),
            kind: span::SpanKind::Internal as i32,
            start_time_unix_nano: begun.saturating_add(ended.saturating_sub(spent - 1)),
            end_time_unix_nano: begun.saturating_add(ended),
            ..of(id, record.id.span.into())
        };
        if let Some(together) = record.together.as_ref().filter(|all| phase == "run" && all.calls > 1) {
            span.attributes.push(number("outrigger.batch.calls", together.calls as i64));
            let others = together.recorded.iter().filter(|id| **id != record.id).take(MAX_LINKS);
            span.links.extend(others.map(|id| span::Link {
                trace_id: id.trace.into(),
                span_id: id.span.into(),
                ..span::Link::default()
            }));
        }
        spans.push(span);
    }
    let status = record.outcome.map(|status| status.as_u16().to_string());
    let failed = record.outcome.is_some_and(|outcome| outcome.is_server_error());
    let error = record.code.map(str::to_owned).or(status.filter(|_| failed));
    let mut attributes = vec![
        text("http.request.method", record.method),
        text("url.path", path),
        text("url.scheme", if record.is_encrypted { "https" } else { "http" }),
        text("network.protocol.name", "http"),
        text("network.protocol.version", if record.version == Version::HTTP_2 { "2" } else { "1.1" }),
        text("outrigger.operation", record.operation.as_str()),
    ];
    let known = [
        ("http.route", route),
        ("outrigger.request_id", request_id),
        ("outrigger.caller", caller),
        ("outrigger.model", model),
        ("error.type", error.as_deref().unwrap_or_default()),
    ];
    attributes.extend(known.iter().filter(|(_, is)| !is.is_empty()).map(|(name, is)| text(name, is)));
    attributes.extend(record.status.map(|is| number("http.response.status_code", is.as_u16().into())));
    let length = record.length.and_then(|length| i64::try_from(length).ok());
    attributes.extend(length.map(|length| number("http.response.body.size", length)));
    let method = if record.method == "_OTHER" { "HTTP" } else { record.method };
    let own = of(record.id.span, record.parent.map(Vec::from).unwrap_or_default());
    spans.push(Span {
        name: if route.is_empty() { method.into() } else { format!("{method} {route}") },
        kind: span::SpanKind::Server as i32,
        start_time_unix_nano: begun,
        end_time_unix_nano: begun + u64::try_from(record.took.as_nanos()).unwrap(),
        attributes,
        status: error
            .filter(|_| failed)
            .map(|message| Status { message, code: status::StatusCode::Error as i32 }),
        ..own
    });
    spans
}

/// As short and as long as they come, around where lengths take another byte.
fn any_text() -> impl Strategy<Value = String> {
    let length = prop_oneof![Just(0), 1..4_usize, 20..140_usize, 1000..1200_usize, Just(9000)];
    let letter = prop_oneof![Just('a'), Just('é'), Just('漢')];
    (length, letter).prop_map(|(length, letter)| std::iter::repeat_n(letter, length).collect())
}

fn any_id() -> impl Strategy<Value = SpanId> {
    (any::<[u8; 16]>(), any::<[u8; 8]>()).prop_map(|(trace, span)| SpanId { trace, span })
}

fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), 120..140_u64, 0..1_u64 << 40, any::<u64>()]
}

prop_compose! {
    fn any_record()(
        id in any_id(),
        parent in any::<Option<[u8; 8]>>(),
        (begun, took) in (0..1_u64 << 62, 0..1_u64 << 62),
        method in prop_oneof![Just("GET"), Just("OPTIONS"), Just("_OTHER")],
        (is_encrypted, is_new) in any::<(bool, bool)>(),
        statuses in prop::option::of((100..1000_u16, 100..1000_u16)),
        code in prop::option::of(prop_oneof![Just("overloaded"), Just("client_left")]),
        length in prop::option::of(any_number()),
        times in prop::collection::vec((any_number(), any_number()), 8),
        calls in 0..1000_usize,
        others in prop::collection::vec(any_id(), 0..40),
        texts in prop::collection::vec(any_text(), TEXTS),
    ) -> (Recorded, [String; TEXTS]) {
        let (spent, ends): (Vec<_>, Vec<_>) = times.into_iter().unzip();
        let (spent, ends) = (spent.try_into().unwrap(), ends.try_into().unwrap());
        let texts: [String; TEXTS] = texts.try_into().unwrap();
        let status = |code| StatusCode::from_u16(code).unwrap();
        let recorded: Arc<[SpanId]> = [id].into_iter().chain(others).collect();
        let record = Recorded {
            id,
            parent,
            begun: SystemTime::UNIX_EPOCH + Duration::from_nanos(begun),
            took: Duration::from_nanos(took),
            method,
            operation: Operation::Infer,
            version: if is_new { Version::HTTP_2 } else { Version::HTTP_11 },
            is_encrypted,
            status: statuses.map(|(first, _)| status(first)),
            outcome: statuses.map(|(_, second)| status(second)),
            code,
            length,
            times: Times { spent, ends },
            together: (calls % 2 == 1).then_some(Together { calls, recorded }),
            texts: Texts::new(texts.each_ref().map(String::as_str)),
        };
        (record, texts)
    }
}

/// Without the frame, whose length has to be that of the message.
fn message(framed: Framed) -> Bytes {
    let mut bytes = Bytes::from(framed);
    let frame = bytes.split_to(FRAME);
    assert_eq!((frame[0], &frame[1..]), (0, &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..]));
    bytes
}

proptest! {
    #[test]
    fn each_byte_is_that_of_the_generated_messages(records in prop::collection::vec(any_record(), 0..6)) {
        let mut body = Body::new(&resource());
        records.iter().for_each(|(record, _)| body.add(record));
        let (written, expected) = (message(body.finish()), expected(&records));
        prop_assert_eq!(&ExportTraceServiceRequest::decode(written.clone()).unwrap(), &expected);
        prop_assert_eq!(written, expected.encode_to_vec());
    }
}

#[test]
fn what_follows_is_written_to_the_same_memory_and_has_nothing_of_what_was_before() {
    let mut body = Body::new(&resource());
    let record = |phase: usize| {
        let mut record = Recorded::empty();
        record.times.spent[phase] = 1;
        // The generated messages leave out a 0.
        record.begun += Duration::from_secs(1);
        (record, <[String; TEXTS]>::default())
    };
    for phase in 0..8 {
        let record = record(phase);
        body.add(&record.0);
        let framed = body.finish();
        let copy = framed.clone();
        assert_eq!(message(copy), expected(&[record]).encode_to_vec());
        body.take_back(framed);
        assert!(phase == 0 || body.bytes.capacity() > 2 * body.room(), "{}", body.bytes.capacity());
    }
    // Somebody still has it.
    let framed = body.finish();
    let _copy = framed.clone();
    body.take_back(framed);
    assert_eq!(message(body.finish()), expected(&[]).encode_to_vec());
}

#[test]
fn it_is_full_before_a_collector_refuses_it_for_its_length() {
    let texts = ["x"; TEXTS].map(|text| text.repeat(9000));
    let mut record = Recorded::empty();
    record.texts = Texts::new(texts.each_ref().map(String::as_str));
    record.times.spent = [1; 8];
    let recorded: Arc<[SpanId]> = (0..MAX_LINKS + 1).map(|_| SpanId::new()).collect();
    record.together = Some(Together { calls: 40, recorded });
    let mut body = Body::new(&resource());
    while !body.is_full() {
        body.add(&record);
    }
    // What is taken from the queue in one go is added in one go.
    (0..super::super::queue::SOME).for_each(|_| body.add(&record));
    assert!(body.finish().len() < 4_000_000);
}
