//! The description itself.

use outrigger_protocol::error::ErrorCode;
use serde_json::json;

use super::super::errors::{LOADED, LOADS, NAMED, WAITS};
use super::super::operation::{get, json_of, text};
use super::super::place::Place;
use super::super::tags::Tag;

pub(in crate::http) fn document(place: &mut Place<'_>) {
    let scoring = place.route.listener == "score";
    let mut operation = get(Tag::Description, "This listener in OpenAPI 3.1").ok(
        "The description.",
        [json_of(json!({ "type": "object", "required": ["openapi", "info", "paths"] }))],
    );
    if scoring {
        let text = format!(
            "Names the models that the caller may know of, {} at a time (`openapi.models`), or as many as fit into {} bytes (`openapi.bytes`): `info.x-outrigger-models` says how many there are, and what the \
             next ones are asked for with. A model that has not been loaded yet is loaded only where it is asked for by its name.",
            place.facts.config.openapi.models, place.facts.config.openapi.bytes
        );
        operation = operation
            .text(text)
            .query("model", "The only model that is described.", json!({ "type": "string" }))
            .query("after", "The name after which models are described.", json!({ "type": "string" }))
            .errors(LOADED)
            .errors(NAMED)
            .takes(&["Deadline"])
            .errors(WAITS)
            .errors(LOADS);
    }
    let headers = ["CacheControl", "ContentEncoding", "Vary"];
    place.add(operation.headers(&headers).errors(&[ErrorCode::Overloaded]));
}

pub(in crate::http) fn page(place: &mut Place<'_>) {
    place.add(
        get(Tag::Description, "This description as a page")
            .text("Loads nothing from elsewhere, and asks for a key where one is needed, which it stores nowhere.")
            .ok("The page.", [text("text/html")])
            .headers(&["CacheControl", "ContentEncoding", "Vary", "ContentPolicy", "ContentTypeOptions"])
            .headers(&["FrameOptions", "OpenerPolicy", "ReferrerPolicy"]),
    );
}
