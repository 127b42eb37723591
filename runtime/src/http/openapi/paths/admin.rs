//! Management.

use outrigger_protocol::error::ErrorCode;
use serde_json::json;

use super::super::errors::{LOADED, NAMED, WAITS};
use super::super::operation::{Operation, get, json_of, post, text};
use super::super::place::Place;
use super::super::tags::Tag;
use crate::http::admin::Status;
use crate::http::labels::Labelled;
use crate::http::logs::{Lines, MAX_LINES};
use crate::http::models::{Events, Page};
use crate::keys::KeyReport;
use crate::models::NamedStatus;

pub(in crate::http) fn status(place: &mut Place<'_>) {
    let answer = place.answer::<Status<'_>>();
    place.add(get(Tag::Management, "What the replica is doing").ok("All of it.", [json_of(answer)]));
}

pub(in crate::http) fn keys(place: &mut Place<'_>) {
    let answer = place.answer::<KeyReport>();
    let operation = get(Tag::Management, "The keys that hold, and when each was last used")
        .text("What can be told of them: no key is among it, and no hash of one.");
    place.add(operation.ok("The keys.", [json_of(answer)]));
}

pub(in crate::http) fn models(place: &mut Place<'_>) {
    let page = place.answer::<Page>();
    place.add(
        get(Tag::Management, "The models, and how they are")
            .query("after", "The name after which the page begins.", json!({ "type": "string" }))
            .query(
                "limit",
                "How many there are on it.",
                json!({ "type": "integer", "minimum": 1, "maximum": 1000, "default": 100 }),
            )
            .ok("A page of them.", [json_of(page)])
            .errors(LOADED)
            .errors(&[ErrorCode::BadRequest]),
    );
}

pub(in crate::http) fn model(place: &mut Place<'_>) {
    let answer = place.answer::<NamedStatus>();
    place.add(
        get(Tag::Management, "A model, and how it is").ok("How it is.", [json_of(answer)]).errors(NAMED),
    );
}

/// Loading, unloading, pinning and unpinning.
pub(in crate::http) fn model_control(place: &mut Place<'_>) {
    let answer = place.answer::<NamedStatus>();
    let (summary, waits) = match place.path.rsplit('/').next() {
        Some("load") => ("Has a model loaded, and answers once it is", true),
        Some("unload") => ("Has a model leave once the calls are through that have it", false),
        Some("pin") => ("Has a model never make way for others", false),
        Some("unpin") => ("Has a model make way for others again", false),
        _ => return,
    };
    let operation = post(Tag::Management, summary).ok("How it is now.", [json_of(answer)]);
    place.add(match waits {
        true => operation.takes(&["Deadline"]).errors(WAITS),
        false => operation.errors(NAMED),
    });
}

pub(in crate::http) fn label(place: &mut Place<'_>) {
    let (answer, request) = (place.answer::<NamedStatus>(), place.request::<Labelled>());
    place.add(
        Operation::new(
            "put",
            Tag::Management,
            "Calls a version of a model so, once it is fetched, loaded and tried",
        )
        .takes(&["Deadline"])
        .body([json_of(request)])
        .ok("It is called so.", [json_of(answer.clone())])
        .answer(202, "It is on its way.", [json_of(answer.clone())])
        .errors(&[ErrorCode::BodyTooLarge, ErrorCode::BodyTimeout, ErrorCode::Conflict])
        .errors(WAITS),
    );
    place.add(
        Operation::new("delete", Tag::Management, "Has no version of a model be called so")
            .takes(&["Deadline"])
            .ok("None is.", [json_of(answer)])
            .errors(&[ErrorCode::Conflict])
            .errors(WAITS),
    );
}

pub(in crate::http) fn logs(place: &mut Place<'_>) {
    let lines = place.answer::<Lines>();
    place.add(
        get(Tag::Management, "The last lines of the log, those of scripts among them")
            .query("request", "Only those that belong to a request.", json!({ "type": "string" }))
            .query(
                "level",
                "No less severe ones.",
                json!({ "enum": ["trace", "debug", "info", "warn", "error"] }),
            )
            .query("source", "Only those of one.", json!({ "enum": ["replica", "script"] }))
            .query(
                "lines",
                "How many there are at most.",
                json!({ "type": "integer", "minimum": 0, "maximum": MAX_LINES, "default": 1000 }),
            )
            .query(
                "watch",
                "With any value or none: server-sent events, those to come among them.",
                json!({ "type": "string" }),
            )
            .ok("Those that are kept, or lines as they come.", [json_of(lines), text("text/event-stream")])
            .headers(&["CacheControl"])
            .errors(&[ErrorCode::BadRequest, ErrorCode::NotFound, ErrorCode::Overloaded]),
    );
}

pub(in crate::http) fn events(place: &mut Place<'_>) {
    let events = place.answer::<Events>();
    place.add(
        get(Tag::Management, "What has happened to models")
            .query(
                "after",
                "The number of the last event that is known.",
                json!({ "type": "integer", "minimum": 0, "default": 0 }),
            )
            .query(
                "watch",
                "With any value or none: server-sent events, those to come among them.",
                json!({ "type": "string" }),
            )
            .takes(&["LastEvent"])
            .ok("Those that are kept, or events as they come.", [json_of(events), text("text/event-stream")])
            .headers(&["CacheControl"])
            .errors(LOADED)
            .errors(&[ErrorCode::BadRequest, ErrorCode::Overloaded]),
    );
}
