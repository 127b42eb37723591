//! AzureML's contract.

use outrigger_protocol::error::ErrorCode;
use serde_json::{Value, json};

use super::super::errors::{BODY, SCRIPT, UPSTREAM, WORK};
use super::super::operation::{Content, Operation, bytes, get, json_of, post, text};
use super::super::place::{Lane, Place};
use super::super::tags::Tag;
use crate::http::token::AccessToken;

pub(in crate::http) fn root(place: &mut Place<'_>) {
    let healthy = text("text/html").such_as(json!("Healthy"));
    place.add(get(Tag::Health, "Whether the server is up").ok("It is.", [healthy]));
}

/// Of answers that scripts make themselves.
pub(super) const SCRIPTS_OWN: &str = "The script's own answer, where it makes one.";
/// Of answers of a server behind.
pub(super) const SERVERS_OWN: &str = "The answer of the server behind, whatever it is.";

/// What a script takes and gives: by its schema, which has an example where the script says one, or anything.
pub(super) fn script_bodies(input: &Value, output: &Value) -> (Vec<Content>, Content) {
    let mut body = json_of(input.clone());
    // What its schema says is such as it takes; an empty one says nothing.
    body.example = input.get("example").filter(|example| **example != json!({})).cloned();
    (vec![body], json_of(output.clone()))
}

/// The query, of which a script gets an object with a text for each name.
fn query(input: &Value) -> Value {
    json!({
        "name": "input",
        "in": "query",
        "description": "What the script is run on, each value as text.",
        "required": input.get("properties").is_some(),
        "schema": { "type": "object", "additionalProperties": { "type": "string" } },
    })
}

pub(in crate::http) fn score(place: &mut Place<'_>) {
    let facts = place.facts;
    match &facts.lane {
        Lane::Nothing => {}
        Lane::Script { methods, input, output } => {
            for method in methods {
                let (method, summary) = match method.as_str() {
                    "POST" => ("post", "Runs the script"),
                    "GET" => ("get", "Runs the script on the query"),
                    "OPTIONS" => ("options", "Asks the script what it takes"),
                    "HEAD" => ("head", "Runs the script for the headers of its answer"),
                    _ => continue,
                };
                let (body, answer) = script_bodies(input, output);
                let mut operation = Operation::new(method, Tag::Scoring, summary).text(
                    "What is taken and given is the script's. One that makes its own answers may give another status and media type, and \
                     pieces as they come.",
                );
                if method != "post" {
                    operation.parameters.push(query(input));
                }
                if method == "post" {
                    operation = operation.body(body);
                    operation.body_needed = false;
                }
                let answers = if method == "head" { vec![] } else { vec![answer, bytes("*/*")] };
                operation = operation.ok("What `run()` returned.", answers).others(SCRIPTS_OWN);
                place.add(
                    operation
                        .headers(&["RunFailed", "RunTime", "Device"])
                        .errors(BODY)
                        .errors(WORK)
                        .errors(SCRIPT),
                );
            }
        }
        Lane::Upstream => passed_on(place),
    }
}

pub(in crate::http) fn swagger(place: &mut Place<'_>) {
    let versions = json!({ "type": "string", "enum": ["2", "2.0", "3", "3.0", "3.1"], "default": "2" });
    place.add(
        get(Tag::Description, "The scoring route alone, in Swagger 2 or OpenAPI 3")
            .query("version", "Of Swagger or OpenAPI.", versions)
            .ok(
                "The description, or the user's own file in its place.",
                [json_of(json!({ "type": "object" }))],
            )
            .headers(&["RunFailed"])
            .errors(&[ErrorCode::NotFound, ErrorCode::NotReady]),
    );
}

/// A path that goes to the server behind.
pub(in crate::http) fn passed_on(place: &mut Place<'_>) {
    // At `/score` other methods are answered here.
    let methods: &[_] = match place.path {
        "/score" => &["post", "get"],
        _ => &["get", "put", "post", "delete", "options", "head", "patch"],
    };
    for method in methods {
        let mut operation = Operation::new(method, Tag::Scoring, "Calls the server behind")
            .text("Passed on as it is; the answer is that server's, whatever its status.")
            .body(matches!(*method, "post" | "put" | "patch" | "delete").then(|| bytes("*/*")));
        operation.body_needed = false;
        let answers = (*method != "head").then(|| bytes("*/*"));
        let operation = operation.ok("What it answered.", answers);
        let operation = operation.others(SERVERS_OWN);
        place.add(operation.errors(BODY).errors(WORK).errors(UPSTREAM));
    }
}

pub(in crate::http) fn token(place: &mut Place<'_>) {
    let answer = place.answer::<AccessToken<'_>>();
    place.add(
        post(Tag::Tokens, "Gives a token for a key")
            .text("Sent with a key; the token is sent in its place from then on, by the same caller, for as long as it holds.")
            .ok("The token, with when to ask for the next one and when it ends, in seconds since 1970.", [json_of(answer)])
            .headers(&["CacheControl"])
            .errors(&[ErrorCode::Internal]),
    );
}

pub(in crate::http) fn token_keys(place: &mut Place<'_>) {
    let keys = json!({
        "type": "object", "required": ["keys"], "additionalProperties": false,
        "properties": { "keys": { "type": "array", "items": { "type": "object" } } },
    });
    place.add(
        get(Tag::Tokens, "The public keys by which its tokens can be verified (RFC 7517)")
            .ok("The keys.", [json_of(keys)]),
    );
}
