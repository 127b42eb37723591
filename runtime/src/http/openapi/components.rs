//! What operations have in common: schemas, parameters, headers, and how callers say who they are.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_protocol::ids::MAX_ID_CHARS;
use outrigger_protocol::{oip, rows};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::headers;
use super::written::{Methods, Written};
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

/// What operations refer to, by name.
pub(super) struct Components {
    pub(super) schemas: Map<String, Value>,
    pub(super) responses: BTreeMap<String, Value>,
    pub(super) parameters: BTreeMap<&'static str, Parameter>,
    pub(super) headers: BTreeMap<&'static str, Value>,
    /// How callers say who they are; empty where nobody is asked.
    pub(super) schemes: BTreeMap<&'static str, Value>,
}

/// What a request can say beside its body.
#[derive(Clone, Serialize)]
pub(super) struct Parameter {
    name: &'static str,
    #[serde(rename = "in")]
    place: &'static str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
    description: &'static str,
    schema: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) example: Option<String>,
}

/// What an operation asks for: a key, with no further rights.
#[derive(Serialize)]
pub(super) struct Scheme {
    key: [&'static str; 0],
}

impl Scheme {
    pub(super) const KEY: Self = Self { key: [] };
}

impl Components {
    /// What operations of a listener may have referred to.
    pub(super) fn of(written: &mut Written, listener: &str) -> Self {
        let mut schemas = written.schemas();
        schemas.extend([
            ("MessageAnswer".to_owned(), failed("message")),
            ("ErrorAnswer".to_owned(), failed("error")),
        ]);
        if listener == "score" {
            schemas.extend(oip::schema::components());
            schemas.extend(rows::schema::components());
        }
        let scheme = json!({ "type": "http", "scheme": "bearer", "description": "A key of the service, primary, secondary or a caller's own." });
        Self {
            schemas,
            responses: std::mem::take(&mut written.responses),
            parameters: parameters(),
            headers: headers::all(),
            schemes: written.keyed.then_some(("key", scheme)).into_iter().collect(),
        }
    }

    /// Leaves out what nothing refers to: neither these paths, nor what single models have at theirs.
    pub(super) fn keep_used(&mut self, paths: &BTreeMap<String, Methods>) {
        let mut used = Used::default();
        paths.values().flat_map(Methods::values).for_each(|operation| used.look(operation));
        // Of rows only single models refer to the parts, where calls with instances are taken.
        if used.has("schemas", "InstancesRequest") {
            rows::schema::components().keys().for_each(|name| used.look(&oip::schema::reference(name)));
        }
        // What is used may use more itself.
        let mut known = 0;
        while used.names.len() > known {
            known = used.names.len();
            let used_now = used.clone();
            self.schemas
                .iter()
                .filter(|(name, _)| used_now.has("schemas", name))
                .for_each(|(_, one)| used.look(one));
            self.responses
                .iter()
                .filter(|(name, _)| used_now.has("responses", name))
                .for_each(|(_, one)| used.look(one));
        }
        self.schemas.retain(|name, _| used.has("schemas", name));
        self.responses.retain(|name, _| used.has("responses", name));
        self.parameters.retain(|name, _| used.has("parameters", name));
        self.headers.retain(|name, _| used.has("headers", name));
    }
}

/// What is referred to.
#[derive(Clone, Default)]
struct Used {
    names: BTreeSet<String>,
}

impl Used {
    fn has(&self, section: &str, name: &str) -> bool {
        self.names.contains(&format!("#/components/{section}/{name}"))
    }

    fn look(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.look(item)),
            Value::Object(members) => {
                if let Some(Value::String(reference)) = members.get("$ref") {
                    self.names.insert(reference.clone());
                }
                members.values().for_each(|member| self.look(member));
            }
            _ => {}
        }
    }
}

/// The body of an answer that is none.
fn failed(member: &str) -> Value {
    json!({
        "type": "object",
        "required": [member],
        "properties": { member: { "type": "string", "description": "What went wrong, for people." } },
    })
}

fn parameters() -> BTreeMap<&'static str, Parameter> {
    let path = |name, description| {
        let schema = json!({ "type": "string" });
        Parameter { name, place: "path", required: true, description, schema, example: None }
    };
    let header = |name, description, schema| Parameter {
        name,
        place: "header",
        required: false,
        description,
        schema,
        example: None,
    };
    let id = || json!({ "type": "string", "maxLength": MAX_ID_CHARS });
    BTreeMap::from([
        ("model", path("model", "The model's name.")),
        ("version", path("version", "A version of it, by its own name or by what it is called.")),
        ("label", path("label", "What versions are called.")),
        ("region", path("region", "What the region is called.")),
        ("deletion", path("deletion", "The id that a deletion was answered with.")),
        (
            "RequestId",
            header(
                "X-Request-Id",
                "Identifies the request; comes back, and is made where it is not there.",
                id(),
            ),
        ),
        (
            "MsRequestId",
            header(
                "x-ms-request-id",
                "The same by its older name; comes back, or what else identifies the request.",
                id(),
            ),
        ),
        (
            "MsClientRequestId",
            header("x-ms-client-request-id", "The client's own name for it; comes back.", id()),
        ),
        ("TraceId", header("TraceId", "Comes back as it is.", json!({ "type": "string" }))),
        (
            "LastEvent",
            header(
                "Last-Event-ID",
                "Of a reader of events that comes back: the last one that it knows, in place of `after`.",
                json!({ "type": "integer", "minimum": 0 }),
            ),
        ),
        (
            "Deadline",
            header(
                "X-Request-Deadline-Ms",
                "Milliseconds after which the answer has lost its worth.",
                json!({ "type": "integer", "minimum": 0 }),
            ),
        ),
        (
            "Priority",
            header("X-Request-Priority", "How urgent it is.", json!({ "enum": ["high", "normal", "low"] })),
        ),
        (
            "LoadFormat",
            header(
                "endpoint-load-metrics-format",
                "Asks for the replica's load (ORCA) in the answer, in this form.",
                json!({ "type": "string" }),
            ),
        ),
        (
            "Timing",
            header(
                "outrigger-timing",
                "With any value: asks for how the time of the request was spent (server-timing).",
                json!({ "type": "string" }),
            ),
        ),
        (
            "JsonLength",
            header(
                "Inference-Header-Content-Length",
                "How many bytes of the body are JSON, where others follow.",
                json!({ "type": "integer", "minimum": 0 }),
            ),
        ),
        (
            "CacheControl",
            header(
                "Cache-Control",
                "Of a model whose answers are kept: `no-cache` has it run and its answer kept, `no-store` has it run alone.",
                json!({ "type": "string" }),
            ),
        ),
        (
            "Encoding",
            header(
                "Content-Encoding",
                "How the body is compressed.",
                json!({ "enum": ["identity", "gzip", "deflate"] }),
            ),
        ),
    ])
}
