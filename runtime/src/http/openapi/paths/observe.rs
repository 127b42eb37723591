//! Probes, the busy signal and metrics.

use outrigger_protocol::busy::BusySnapshot;
use outrigger_protocol::error::ErrorCode;
use serde_json::json;

use super::super::operation::{bytes, get, json_of, text};
use super::super::place::Place;
use super::super::tags::Tag;
use crate::http::observe::Health;

pub(in crate::http) fn healthy(place: &mut Place<'_>) {
    let healthy = text("text/plain").such_as(json!("Healthy"));
    place.add(get(Tag::Health, "Whether the server is up").ok("It is.", [healthy]));
}

pub(in crate::http) fn live(place: &mut Place<'_>) {
    let live = text("text/plain").such_as(json!("live\n"));
    place.add(get(Tag::Health, "Whether the process is alive").ok("It is.", [live]));
}

pub(in crate::http) fn ready(place: &mut Place<'_>) {
    let ready = text("text/plain").such_as(json!("ready\n"));
    let operation = get(Tag::Health, "Whether calls are taken").ok("They are.", [ready]);
    place.add(operation.errors(&[ErrorCode::NotReady]));
}

pub(in crate::http) fn started(place: &mut Place<'_>) {
    let started = text("text/plain").such_as(json!("started\n"));
    let operation = get(Tag::Health, "Whether everything has been loaded once").ok("It has.", [started]);
    place.add(operation.errors(&[ErrorCode::NotReady]));
}

pub(in crate::http) fn health(place: &mut Place<'_>) {
    let health = place.answer::<Health>();
    let operation = get(Tag::Health, "How the replica is, and what is not as it should be");
    place.add(operation.ok("How it is.", [json_of(health)]));
}

pub(in crate::http) fn busy(place: &mut Place<'_>) {
    let snapshot = place.answer::<BusySnapshot>();
    place.add(
        get(Tag::Load, "How busy the replica is")
            .query(
                "watch",
                "With any value or none: server-sent events, each with all of it, as it changes.",
                json!({ "type": "string" }),
            )
            .ok("The signal as it stands, or events.", [json_of(snapshot), text("text/event-stream")])
            .headers(&["CacheControl"])
            .errors(&[ErrorCode::Overloaded]),
    );
}

pub(in crate::http) fn metrics(place: &mut Place<'_>) {
    place.add(
        get(Tag::Load, "Metrics in Prometheus's text, or Knative's statistics where those are accepted")
            .ok("The metrics.", [text("text/plain"), bytes("application/protobuf")]),
    );
}
