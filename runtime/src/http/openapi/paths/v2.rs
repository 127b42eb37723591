//! The Open Inference Protocol's REST routes.

use outrigger_protocol::error::ErrorCode::{self, Conflict, NotFound};
use outrigger_protocol::oip::messages::{
    ModelConfig, ModelIndex, ModelMetadataResponse, ModelStatisticsResponse, RegionStatus,
    ServerMetadataResponse,
};
use serde_json::{Value, json};

use super::super::bodies::{self, Bodies};
use super::super::errors::{BODY, INFER, LOADED, LOADS, NAMED, SMALL, WAITS, WORK};
use super::super::operation::{Operation, bytes, get, json_of, post};
use super::super::place::Place;
use super::super::tags::Tag;
use crate::http::v2::{Control, IndexWanted, RegionWanted};

pub(in crate::http) fn server(place: &mut Place<'_>) {
    let answer = place.answer::<ServerMetadataResponse>();
    place.add(
        get(Tag::Metadata, "Name, version and extensions of the server").ok("What it is.", [json_of(answer)]),
    );
}

fn flag(name: &str) -> Value {
    json!({ "type": "object", "required": [name], "properties": { name: { "type": "boolean" } } })
}

pub(in crate::http) fn server_live(place: &mut Place<'_>) {
    place.add(get(Tag::Health, "Whether the server is alive").ok("It is.", [json_of(flag("live"))]));
}

pub(in crate::http) fn server_ready(place: &mut Place<'_>) {
    place.add(
        get(Tag::Health, "Whether the server takes calls").ok("It does.", [json_of(flag("ready"))]).answer(
            503,
            "It does not, or not yet.",
            [json_of(flag("ready"))],
        ),
    );
}

pub(in crate::http) fn metadata(place: &mut Place<'_>) {
    let answer = place.answer::<ModelMetadataResponse>();
    place.add(
        get(Tag::Metadata, "What a model takes and gives")
            .text("A model that has never been loaded is loaded for it, which needs the right to call it. A free extent is −1.")
            .takes(&["Deadline"])
            .ok("Inputs, outputs, versions and platform.", [json_of(answer)])
            .errors(WAITS)
            .errors(LOADS),
    );
}

pub(in crate::http) fn config(place: &mut Place<'_>) {
    let answer = place.answer::<ModelConfig>();
    place.add(
        get(Tag::Metadata, "The same as a configuration, for clients that ask for one")
            .takes(&["Deadline"])
            .ok("The configuration.", [json_of(answer)])
            .errors(WAITS)
            .errors(LOADS),
    );
}

pub(in crate::http) fn model_ready(place: &mut Place<'_>) {
    let ready = json!({
        "type": "object",
        "required": ["name", "ready"],
        "properties": { "name": { "type": "string" }, "ready": { "type": "boolean" } },
    });
    place.add(
        get(Tag::Metadata, "Whether calls of a model are taken")
            .ok("They are.", [json_of(ready.clone())])
            .answer(503, "They are not, or not yet.", [json_of(ready)])
            .errors(NAMED),
    );
}

pub(in crate::http) fn statistics(place: &mut Place<'_>) {
    let answer = place.answer::<ModelStatisticsResponse>();
    place.add(
        get(Tag::Metadata, "How calls of a model went")
            .ok("Numbers of calls, and nanoseconds, of each version.", [json_of(answer)])
            .errors(NAMED),
    );
}

pub(in crate::http) fn all_statistics(place: &mut Place<'_>) {
    let answer = place.answer::<ModelStatisticsResponse>();
    place.add(
        get(Tag::Metadata, "How calls of all models went")
            .ok("Numbers of calls, and nanoseconds, of each version of each model.", [json_of(answer)])
            .errors(LOADED),
    );
}

/// A call of a model by tensors: with these bodies in JSON.
pub(in crate::http::openapi) fn call(operation: Operation, [request, answer]: Bodies) -> Operation {
    operation
        .takes(&["JsonLength", "Encoding", "CacheControl"])
        .body([request, bytes("application/octet-stream")])
        .ok(
            "The outputs: JSON, and behind it the elements of those that are asked for as bytes.",
            [answer, bytes("application/octet-stream")],
        )
        .headers(&["JsonLength", "Cache", "Device"])
        .errors(BODY)
        .errors(WORK)
        .errors(INFER)
}

const INFER_TEXT: &str = "Elements are in the JSON, flat or nested. Those of an input with `binary_data_size` follow the JSON as little-endian \
    bytes in the order of the inputs; the header `Inference-Header-Content-Length` then says how many bytes are JSON. Strings are each \
    preceded by their length in four bytes.";

pub(in crate::http) fn infer(place: &mut Place<'_>) {
    let operation = post(Tag::Inference, "Runs a model on tensors").text(INFER_TEXT);
    place.add(call(operation, bodies::tensors(None)));
}

pub(in crate::http) fn index(place: &mut Place<'_>) {
    let (request, one) = (place.request::<IndexWanted>(), place.answer::<ModelIndex>());
    place.add(
        post(Tag::Repository, "Which models there are, and how they are")
            .optional_body(json_of(request).such_as(json!({ "ready": true })))
            .ok("Each version of each model.", [json_of(json!({ "type": "array", "items": one }))])
            .errors(SMALL)
            .errors(LOADED),
    );
}

/// Whether models are loaded and unloaded here; else there is nothing to describe.
fn controls(place: &Place<'_>) -> bool {
    place.facts.config.score.contracts.model_control
}

fn control(place: &mut Place<'_>, summary: &'static str, done: &'static str, errors: &[ErrorCode]) {
    if !controls(place) {
        return;
    }
    let request = place.request::<Control>();
    place.add(
        post(Tag::Repository, summary)
            .text("What a model is stands in the configuration, so no parameter is taken.")
            .takes(&["Deadline"])
            .optional_body(json_of(request).such_as(json!({})))
            .ok(done, [])
            .errors(SMALL)
            .errors(errors),
    );
}

pub(in crate::http) fn load(place: &mut Place<'_>) {
    control(place, "Has a model loaded", "It is loaded.", WAITS);
}

pub(in crate::http) fn unload(place: &mut Place<'_>) {
    control(place, "Has a model leave once the calls are through that have it", "It has left.", NAMED);
}

/// Whether memory can be shared; else there is nothing to describe.
fn shares(place: &Place<'_>) -> bool {
    place.facts.config.score.contracts.shared_memory.is_some()
}

fn regions(place: &mut Place<'_>, summary: &'static str, errors: &[ErrorCode]) {
    if shares(place) {
        let region = place.answer::<RegionStatus>();
        let answer = json_of(json!({ "type": "array", "items": region }));
        place.add(get(Tag::SharedMemory, summary).ok("The regions.", [answer]).errors(errors));
    }
}

pub(in crate::http) fn all_regions(place: &mut Place<'_>) {
    regions(place, "The regions that this caller has registered", &[]);
}

pub(in crate::http) fn region(place: &mut Place<'_>) {
    regions(place, "A region that this caller has registered", &[ErrorCode::BadRequest, NotFound]);
}

pub(in crate::http) fn register_region(place: &mut Place<'_>) {
    if shares(place) {
        let request = place.request::<RegionWanted>();
        let example = json!({ "key": "/example", "offset": 0, "byte_size": 64 });
        place.add(
            post(Tag::SharedMemory, "Registers a file of score.shared_memory as a region")
                .body([json_of(request).such_as(example)])
                .ok("It is registered.", [])
                .errors(SMALL)
                .errors(&[
                    NotFound,
                    Conflict,
                    ErrorCode::Forbidden,
                    ErrorCode::Overloaded,
                    ErrorCode::Internal,
                ]),
        );
    }
}

fn forget(place: &mut Place<'_>, summary: &'static str, errors: &[ErrorCode]) {
    if shares(place) {
        place.add(post(Tag::SharedMemory, summary).ok("It is forgotten.", []).errors(errors));
    }
}

pub(in crate::http) fn forget_region(place: &mut Place<'_>) {
    forget(place, "Forgets a region", &[ErrorCode::BadRequest]);
}

pub(in crate::http) fn forget_all_regions(place: &mut Place<'_>) {
    forget(place, "Forgets all regions of this caller", &[]);
}
