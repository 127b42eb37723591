//! Vertex AI's routes.

use super::super::bodies;
use outrigger_protocol::error::ErrorCode;
use serde_json::json;

use super::super::errors::{BODY, INFER, SCRIPT, UPSTREAM, WORK};
use super::super::operation::{bytes, get, json_of, post};
use super::super::place::{Lane, Place};
use super::super::tags::Tag;
use super::score::{SCRIPTS_OWN, SERVERS_OWN, script_bodies};

pub(in crate::http) fn health(place: &mut Place<'_>) {
    place.add(
        get(Tag::Vertex, "Whether calls are taken")
            .ok("They are.", [json_of(json!({ "type": "object" })).such_as(json!({}))])
            .errors(&[ErrorCode::NotReady]),
    );
}

pub(in crate::http) fn predict(place: &mut Place<'_>) {
    let facts = place.facts;
    let operation = post(Tag::Vertex, "Calls the service");
    let operation = match &facts.lane {
        Lane::Nothing => {
            let [instances, predictions] = bodies::rows(facts.meant);
            operation
            .text("An instance is what one row of each input holds: an object of them by name, or, where there is one input, that itself.")
            .body([instances])
            .ok("A prediction for each instance, in the same form.", [predictions])
            .takes(&["Encoding", "CacheControl"])
            .headers(&["Cache", "Device"])
            .errors(INFER)
        }
        Lane::Script { input, output, .. } => {
            let (body, _) = script_bodies(input, output);
            let predictions = json!({ "type": "object", "required": ["predictions"], "properties": { "predictions": output } });
            operation
                .text("What is taken is the script's, and so is what it gives, which is put in `predictions` where it has none.")
                .body(body)
                .ok("What `run()` returned.", [json_of(predictions), bytes("*/*")])
                .others(SCRIPTS_OWN)
                .headers(&["RunFailed", "RunTime", "Device"])
                .errors(SCRIPT)
        }
        Lane::Upstream => operation
            .text("Passed on as it is; JSON that comes back is put in `predictions` where it has none.")
            .body([bytes("*/*")])
            .ok("What it answered.", [bytes("*/*")])
            .others(SERVERS_OWN)
            .errors(UPSTREAM),
    };
    place.add(operation.errors(BODY).errors(WORK));
}
