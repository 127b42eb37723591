//! A path while its operations are described.

use outrigger_protocol::operation::Operation as Asked;
use schemars::JsonSchema;
use serde_json::{Value, json};

use super::bodies::Meant;
use super::ids;
use super::operation::{Content, Operation};
use super::tags::Tag;
use super::written::Written;
use crate::config::{Config, Endpoint, LoadMetrics, Timing};
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
        let names = ["model", "version", "label", "region", "deletion"];
        let varies = names.into_iter().filter(|name| self.path.contains(&format!("{{{name}}}")));
        let mut parameters: Vec<_> = varies.map(reference).collect();
        parameters.extend(operation.parameters.iter().cloned());
        if self.route.operation.work() && operation.tag != Tag::Grpc {
            parameters.extend(["Deadline", "Priority"].map(reference));
        }
        if self.tells_load(operation) {
            parameters.push(reference("LoadFormat"));
        }
        if self.tells_timing(operation) {
            parameters.push(reference("Timing"));
        }
        if self.is_scoring() {
            parameters.extend(["RequestId", "MsRequestId", "MsClientRequestId", "TraceId"].map(reference));
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

    pub(super) fn needs_key(&self, operation: &Operation) -> bool {
        needs_key(self.facts.config, self.route.listener, operation.asks.unwrap_or(self.route.operation))
    }

    /// Whether answers say how busy the replica is, as `orca` has it.
    pub(super) fn tells_load(&self, operation: &Operation) -> bool {
        self.route.operation.work()
            && operation.tag != Tag::Grpc
            && operation.method != "options"
            && self.facts.config.score.load_metrics != LoadMetrics::Off
    }

    /// Whether answers may say how their time was spent.
    pub(super) fn tells_timing(&self, operation: &Operation) -> bool {
        self.route.operation.work()
            && operation.tag != Tag::Grpc
            && operation.method != "options"
            && self.facts.config.telemetry.timing != Timing::Off
    }

    pub(super) fn is_scoring(&self) -> bool {
        self.route.listener == "score"
    }
}

/// Bodies by media type.
pub(super) fn contents(contents: &[Content]) -> Value {
    let one = |content: &Content| {
        let mut media = json!({ "schema": content.schema });
        if let (Some(example), Some(members)) = (&content.example, media.as_object_mut()) {
            members.insert("example".into(), example.clone());
        }
        (content.media.to_owned(), media)
    };
    Value::Object(contents.iter().map(one).collect())
}
