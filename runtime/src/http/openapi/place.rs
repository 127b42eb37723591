//! A path while its operations are described.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_protocol::error::ErrorCode;
use outrigger_protocol::operation::Operation as Asked;
use schemars::JsonSchema;
use serde_json::{Map, Value, json};

use super::bodies::Meant;
use super::ids;
use super::operation::{Answered, Content, Operation};
use super::tags::Tag;
use super::written::Written;
use crate::config::{Config, Contract, Endpoint};
use crate::http::routes::Route;

/// What the operations of a path are written down by.
pub(in crate::http) type Describe = fn(&mut Place<'_>);

/// What is behind `/score`.
pub(super) enum Lane {
    /// A script, with the methods that it takes and the schemas of what it takes and gives.
    Script { methods: Vec<String>, input: Value, output: Value },
    /// A server.
    Upstream,
    /// Neither.
    Nothing,
}

/// What a description depends on.
pub(super) struct Facts<'a> {
    pub(super) config: &'a Config,
    pub(super) lane: Lane,
    /// What is called by who names no model, where that is described.
    pub(super) meant: Option<Meant<'a>>,
}

/// Whether an operation needs a key. What manages the replica does so also where scoring is open; on a Unix socket the system has said who is
/// there.
pub(super) fn needs_key(config: &Config, listener: &str, asked: Asked) -> bool {
    !asked.public()
        && match listener {
            "score" => asked.administrative() || config.auth.enabled,
            "admin" => matches!(config.listen.admin, Endpoint::Tcp(_)),
            _ => false,
        }
}

/// The same of what most operations of a listener are.
pub(super) fn mostly_needs_key(config: &Config, listener: &str) -> bool {
    needs_key(config, listener, if listener == "admin" { Asked::Status } else { Asked::Score })
}

/// A path while its operations are described.
pub(in crate::http) struct Place<'a> {
    pub(super) facts: &'a Facts<'a>,
    pub(super) route: Route,
    /// The path under which it is shown.
    pub(super) path: &'a str,
    /// The model that it is for, or the configured path that it is at, where it is no route by itself.
    pub(super) one: Option<&'a str>,
    pub(super) written: &'a mut Written,
}

impl Place<'_> {
    /// The schema of a type that is sent.
    pub(super) fn answer<T: JsonSchema>(&mut self) -> Value {
        self.written.answers.subschema_for::<T>().to_value()
    }

    /// The schema of a type that is read.
    pub(super) fn request<T: JsonSchema>(&mut self) -> Value {
        self.written.requests.subschema_for::<T>().to_value()
    }

    /// Adds an operation, unless nobody may ask for it.
    pub(super) fn add(&mut self, operation: Operation) {
        if self.is_nobodys(&operation) {
            return;
        }
        self.written.tags.insert(operation.tag);
        let described = self.described(&operation);
        let methods = self.written.paths.entry(self.path.to_owned()).or_default();
        methods.insert(operation.method, described);
    }

    fn described(&mut self, operation: &Operation) -> Value {
        let mut described = json!({
            "operationId": ids::of(operation.method, self.route.path, self.one),
            "tags": [operation.tag.name()],
            "summary": operation.summary,
            "responses": self.responses(operation),
        });
        let mut set = |name: &str, value: Value| {
            if let Some(members) = described.as_object_mut() {
                members.insert(name.to_owned(), value);
            }
        };
        if !operation.text.is_empty() {
            set("description", json!(operation.text));
        }
        let parameters = self.parameters(operation);
        if !parameters.is_empty() {
            set("parameters", Value::Array(parameters));
        }
        if !operation.body.is_empty() {
            let content = contents(&operation.body);
            set("requestBody", json!({ "required": operation.body_needed, "content": content }));
        }
        let keyed = self.needs_key(operation);
        if keyed != mostly_needs_key(self.facts.config, self.route.listener) {
            set("security", if keyed { json!([{ "key": [] }]) } else { json!([]) });
        }
        self.written.keyed |= keyed;
        described
    }

    fn parameters(&self, operation: &Operation) -> Vec<Value> {
        let reference = |name: &str| json!({ "$ref": format!("#/components/parameters/{name}") });
        let names = ["model", "version", "label", "region"];
        let varies = names.into_iter().filter(|name| self.path.contains(&format!("{{{name}}}")));
        let mut parameters: Vec<_> = varies.map(reference).collect();
        parameters.extend(operation.parameters.iter().cloned());
        if self.route.operation.work() && operation.tag != Tag::Grpc {
            parameters.extend(["Deadline", "Priority", "LoadFormat"].map(reference));
        }
        if self.is_scoring() {
            parameters.push(reference("RequestId"));
        }
        parameters
    }

    /// What manages models needs a key, which nobody has where neither scoring nor management over TCP asks for one.
    fn is_nobodys(&self, operation: &Operation) -> bool {
        let config = self.facts.config;
        let has_keys = config.auth.enabled || matches!(config.listen.admin, Endpoint::Tcp(_));
        let asked = operation.asks.unwrap_or(self.route.operation);
        self.is_scoring() && asked.administrative() && !has_keys
    }

    fn needs_key(&self, operation: &Operation) -> bool {
        needs_key(self.facts.config, self.route.listener, operation.asks.unwrap_or(self.route.operation))
    }

    fn is_scoring(&self) -> bool {
        self.route.listener == "score"
    }

    fn responses(&mut self, operation: &Operation) -> Value {
        let mut responses = Map::new();
        for answer in &operation.answers {
            responses.insert(answer.status.to_string(), self.good(answer));
        }
        let mut by_status: BTreeMap<u16, BTreeSet<ErrorCode>> = BTreeMap::new();
        for code in self.codes(operation) {
            by_status.entry(code.status().as_u16()).or_default().insert(code);
        }
        for (status, codes) in by_status {
            let error = self.error(&codes, operation.others);
            let error = match responses.remove(&status.to_string()) {
                Some(answer) => either(answer, error),
                None => self.shared_error(status, &codes, operation.others.is_some(), error),
            };
            responses.insert(status.to_string(), error);
        }
        if let Some(text) = operation.others {
            let headers = headers(if self.is_scoring() { &["RequestId"] } else { &[] });
            let anything = json!({ "description": text, "headers": headers, "content": { "*/*": {} } });
            responses.insert("default".into(), anything);
        }
        Value::Object(responses)
    }

    /// What can go wrong with the operation, and with any like it.
    fn codes(&self, operation: &Operation) -> Vec<ErrorCode> {
        let mut codes = operation.errors.clone();
        if operation.tag == Tag::Grpc {
            // gRPC says in its trailers what is wrong.
            return codes;
        }
        if !self.route.operation.public() {
            codes.extend(self.needs_key(operation).then_some(ErrorCode::Unauthenticated));
            codes.push(ErrorCode::Forbidden);
        }
        if self.is_scoring() {
            codes.extend([ErrorCode::HeaderTooLarge, ErrorCode::RequestIdTooLong]);
        }
        codes
    }

    fn good(&self, answer: &Answered) -> Value {
        let mut names = answer.headers.clone();
        if answer.status >= 400 {
            names.extend(["Code", "Retryable"]);
        }
        if self.is_scoring() {
            names.push("RequestId");
        }
        let mut response = json!({ "description": answer.text });
        if let Some(members) = response.as_object_mut() {
            if !names.is_empty() {
                members.insert("headers".into(), headers(&names));
            }
            if !answer.contents.is_empty() {
                members.insert("content".into(), contents(&answer.contents));
            }
        }
        response
    }

    /// Whether errors have the member `error`, and not `message`.
    fn says_error(&self) -> bool {
        matches!(self.route.contract, Some(Contract::Oip | Contract::Vertex))
    }

    /// Written down once for all operations that have it, by a name that comes from what is in it: no other answer changes that.
    fn shared_error(
        &mut self,
        status: u16,
        codes: &BTreeSet<ErrorCode>,
        others: bool,
        response: Value,
    ) -> Value {
        let shape = if self.says_error() { "Error" } else { "Message" };
        let mut words: Vec<_> = codes.iter().map(|code| code.as_str()).collect();
        words.extend(others.then_some("others"));
        self.written.shared(format!("{shape}-{status}-{}", words.join(".")), response)
    }

    fn error(&self, codes: &BTreeSet<ErrorCode>, others: Option<&str>) -> Value {
        let words: Vec<_> = codes.iter().map(|code| format!("`{code}`: {}", code.meaning())).collect();
        let mut names = Vec::new();
        if codes.iter().any(|code| code.retryable()) {
            names.push("RetryAfter");
        }
        if codes.contains(&ErrorCode::Unauthenticated) {
            names.push("Authenticate");
        }
        let schema = if self.says_error() { "ErrorAnswer" } else { "MessageAnswer" };
        if !self.says_error() {
            names.push("RunFailed");
        }
        if self.is_scoring() {
            names.push("RequestId");
        }
        let mut headers = headers(&names);
        if let Some(headers) = headers.as_object_mut() {
            let known: Vec<_> = codes.iter().map(|code| code.as_str()).collect();
            headers.insert(
                "Outrigger-Code".into(),
                json!({
                    "description": "What went wrong; stable, to match on.",
                    "required": others.is_none(),
                    "schema": { "type": "string", "enum": known },
                }),
            );
            headers.insert("Outrigger-Retryable".into(), json!({ "$ref": "#/components/headers/Retryable" }));
        }
        let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
        let content = match others {
            None => json!({ "application/json": { "schema": schema } }),
            Some(_) => json!({ "application/json": { "schema": { "anyOf": [schema, true] } }, "*/*": {} }),
        };
        let mut texts = words;
        texts.extend(others.map(str::to_owned));
        json!({ "description": texts.join("\n\n"), "headers": headers, "content": content })
    }
}

/// An answer that is one of two of the same status. A header that only one of them has may be missing.
fn either(mut answer: Value, mut error: Value) -> Value {
    let text = |of: &Value| of.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
    let description = format!("{}\n\nOr: {}", text(&answer), text(&error));
    let mut take = |name: &str| match error.get_mut(name).map(Value::take) {
        Some(Value::Object(members)) => members,
        _ => Map::new(),
    };
    let (headers, contents) = (take("headers"), take("content"));
    let Some(members) = answer.as_object_mut() else { return error };
    members.insert("description".into(), json!(description));
    if let Some(there) = members.entry("headers").or_insert_with(|| json!({})).as_object_mut() {
        for (name, mut header) in headers {
            if let Some(header) = header.as_object_mut() {
                header.remove("required");
            }
            there.entry(name).or_insert(header);
        }
    }
    if let Some(there) = members.entry("content").or_insert_with(|| json!({})).as_object_mut() {
        for (media, other) in contents {
            let schema = |of: &Value| of.get("schema").cloned().unwrap_or(json!(true));
            let both = there.get(&media).map(|one| json!({ "anyOf": [schema(one), schema(&other)] }));
            there.insert(media, both.map_or(other, |schema| json!({ "schema": schema })));
        }
    }
    answer
}

/// Headers of the components, by the names that they have on the wire.
fn headers(names: &[&str]) -> Value {
    let wire = |name: &str| match name {
        "RequestId" => "X-Request-Id",
        "Cache" => "Outrigger-Cache",
        "Device" => "Outrigger-Device",
        "RetryAfter" => "Retry-After",
        "Authenticate" => "WWW-Authenticate",
        "RunFailed" => "x-ms-run-function-failed",
        "RunTime" => "x-ms-run-fn-exec-ms",
        "JsonLength" => "Inference-Header-Content-Length",
        "LoadReport" => "endpoint-load-metrics",
        "Code" => "Outrigger-Code",
        "Retryable" => "Outrigger-Retryable",
        _ => "",
    };
    let one =
        |name: &&str| (wire(name).to_owned(), json!({ "$ref": format!("#/components/headers/{name}") }));
    Value::Object(names.iter().map(one).collect())
}

fn contents(contents: &[Content]) -> Value {
    let one = |content: &Content| {
        let mut media = json!({ "schema": content.schema });
        if let (Some(example), Some(members)) = (&content.example, media.as_object_mut()) {
            members.insert("example".into(), example.clone());
        }
        (content.media.to_owned(), media)
    };
    Value::Object(contents.iter().map(one).collect())
}
