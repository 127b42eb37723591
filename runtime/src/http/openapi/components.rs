//! What operations have in common: schemas, parameters, headers, and how callers say who they are.

use outrigger_protocol::{oip, orca, rows};
use serde_json::{Map, Value, json};

use super::written::Written;
use crate::config::Config;

pub(super) fn summary(listener: &str) -> &'static str {
    match listener {
        "score" => "Scoring requests, by every contract that is spoken here.",
        "observe" => "Probes, the busy signal and metrics: read-only, without a key.",
        _ => "Management of this replica.",
    }
}

/// What holds for all of it.
pub(super) fn description(listener: &str, keyed: bool, written: &Written, config: &Config) -> String {
    let mut text = String::from(
        "An answer that is no result says why: in its body in words, in the header `Outrigger-Code` in a word to match on, and in \
         `Outrigger-Retryable` whether the same request may succeed later. A `HEAD` is answered wherever a `GET` is",
    );
    text += if listener == "score" { ", but not at `/score`." } else { "." };
    if keyed {
        text += " Most operations need a key: `Authorization: Bearer KEY`. What a key allows is in the service's configuration.";
    } else if written.keyed {
        text += " Most operations need no key; those that load and unload models do: `Authorization: Bearer KEY`.";
    }
    if listener == "score" {
        let limits = &config.limits;
        text += &format!(
            " Bodies have at most {} bytes (`limits.body`), and those that carry no tensors {} (`limits.message`); URL and headers together {} \
             (`limits.header`).",
            limits.body, limits.message, limits.header
        );
    }
    let paths = config.upstream.iter().flat_map(|upstream| &upstream.paths).map(ToString::to_string);
    let paths: Vec<_> = paths.filter(|_| listener == "score").collect();
    if !paths.is_empty() {
        text += &format!(
            " Passed on to the server behind, which describes them itself: `{}`.",
            paths.join("`, `")
        );
    }
    text
}

pub(super) fn components(written: &mut Written, listener: &str) -> Value {
    let mut schemas = written.schemas();
    schemas.extend([
        ("MessageAnswer".to_owned(), failed("message")),
        ("ErrorAnswer".to_owned(), failed("error")),
    ]);
    if listener == "score" {
        schemas.extend(oip::schema::components());
        schemas.extend(rows::schema::components());
    }
    let mut components = Map::new();
    components.insert("schemas".into(), Value::Object(schemas));
    components.insert("responses".into(), Value::Object(written.responses()));
    components.insert("parameters".into(), parameters());
    components.insert("headers".into(), headers());
    let scheme = json!({ "type": "http", "scheme": "bearer", "description": "A key of the service, primary, secondary or a caller's own." });
    if written.keyed {
        components.insert("securitySchemes".into(), json!({ "key": scheme }));
    }
    Value::Object(components)
}

/// The body of an answer that is none.
fn failed(member: &str) -> Value {
    json!({
        "type": "object",
        "required": [member],
        "properties": { member: { "type": "string", "description": "What went wrong, for people." } },
    })
}

fn parameters() -> Value {
    let path = |name: &str, text: &str| json!({ "name": name, "in": "path", "required": true, "description": text, "schema": { "type": "string" } });
    let header = |name: &str, text: &str, schema: Value| json!({ "name": name, "in": "header", "description": text, "schema": schema });
    json!({
        "model": path("model", "The model's name."),
        "version": path("version", "A version of it, by its own name or by what it is called."),
        "label": path("label", "What versions are called."),
        "region": path("region", "What the region is called."),
        "RequestId": header("X-Request-Id", "Identifies the request; comes back, and is made where it is not there.", json!({ "type": "string", "maxLength": 100 })),
        "Deadline": header("X-Request-Deadline-Ms", "Milliseconds after which the answer has lost its worth.", json!({ "type": "integer", "minimum": 0 })),
        "Priority": header("X-Request-Priority", "How urgent it is.", json!({ "enum": ["high", "normal", "low"] })),
        "LoadFormat": header(orca::FORMAT.as_str(), "Asks for the replica's load (ORCA) in the answer, in this form.", json!({ "type": "string" })),
        "JsonLength": header("Inference-Header-Content-Length", "How many bytes of the body are JSON, where others follow.", json!({ "type": "integer", "minimum": 0 })),
        "CacheControl": header("Cache-Control", "Of a model whose answers are kept: `no-cache` has it run and its answer kept, `no-store` has it run alone.", json!({ "type": "string" })),
        "Encoding": header("Content-Encoding", "How the body is compressed.", json!({ "enum": ["identity", "gzip", "deflate"] })),
    })
}

fn headers() -> Value {
    let text = |text: &str| json!({ "description": text, "schema": { "type": "string" } });
    let number = |text: &str| json!({ "description": text, "schema": { "type": "integer", "minimum": 0 } });
    json!({
        "RequestId": text("That of the request, or one that was made for it."),
        "Device": text("Where the model ran; `; fallback-from=` names where it was to go first, if that is elsewhere."),
        "Cache": json!({ "description": "How the answer of a model was come by whose answers are kept: it was there, another call was at it, or it was run.", "schema": { "enum": ["hit", "joined", "miss"] } }),
        "RetryAfter": number("Seconds after which a retry makes sense, if that is known."),
        "Authenticate": text("`Bearer`"),
        "RunFailed": json!({ "description": "Whether it was `run()` that failed.", "schema": { "enum": ["True", "False"] } }),
        "RunTime": text("Milliseconds that `run()` took, with three decimals."),
        "JsonLength": number("How many bytes of the body are JSON, where others follow."),
        "LoadReport": text("The replica's load, where it was asked for."),
        "Code": text("What is wrong; stable, to match on."),
        "Retryable": json!({ "description": "Whether the same request may succeed later, or elsewhere.", "schema": { "enum": ["true", "false"] } }),
    })
}
