//! The answers of an operation, while it is described: those that are good, and what can go wrong.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_protocol::error::ErrorCode;
use serde_json::{Map, Value, json};

use super::headers::headers;
use super::operation::{Answered, Operation};
use super::place::{Place, contents};
use super::tags::Tag;
use crate::config::Contract;

impl Place<'_> {
    pub(super) fn responses(&mut self, operation: &Operation) -> Value {
        let mut responses = Map::new();
        for answer in &operation.answers {
            responses.insert(answer.status.to_string(), self.good(operation, answer));
        }
        let mut by_status: BTreeMap<u16, BTreeSet<ErrorCode>> = BTreeMap::new();
        for code in self.codes(operation) {
            by_status.entry(code.status().as_u16()).or_default().insert(code);
        }
        for (status, codes) in by_status {
            let notes = self.notes(operation, status);
            let error = self.error(&codes, &notes, operation.others);
            let error = match responses.remove(&status.to_string()) {
                Some(answer) => either(answer, error),
                None => self.shared_error(status, &codes, &notes, operation.others.is_some(), error),
            };
            responses.insert(status.to_string(), error);
        }
        if let Some(text) = operation.others {
            let headers = headers(&self.always());
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

    /// What errors of a status say of the call beside what is wrong.
    fn notes(&self, operation: &Operation, status: u16) -> Vec<&'static str> {
        let mut names = Vec::new();
        let ran = status == 400 || status >= 500;
        names.extend(
            (ran && operation.answers.iter().any(|answer| answer.headers.contains(&"Device")))
                .then_some("Device"),
        );
        if status >= 500 && self.tells_load(operation) {
            names.extend(["LoadReport", "LoadReportBin"]);
        }
        names
    }

    fn good(&self, operation: &Operation, answer: &Answered) -> Value {
        let mut names = answer.headers.clone();
        if answer.status >= 400 {
            names.extend(["Code", "Retryable"]);
        }
        if self.tells_load(operation) {
            names.extend(["LoadReport", "LoadReportBin"]);
        }
        if self.tells_timing(operation) {
            names.push("ServerTiming");
        }
        names.extend(self.always());
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
        notes: &[&'static str],
        others: bool,
        response: Value,
    ) -> Value {
        let shape = if self.says_error() { "Error" } else { "Message" };
        let mut words: Vec<_> = codes.iter().map(|code| code.as_str()).collect();
        words.extend(notes);
        words.extend(others.then_some("others"));
        self.written.shared(format!("{shape}-{status}-{}", words.join(".")), response)
    }

    fn error(&self, codes: &BTreeSet<ErrorCode>, notes: &[&'static str], others: Option<&str>) -> Value {
        let words: Vec<_> = codes.iter().map(|code| format!("`{code}`: {}", code.meaning())).collect();
        let mut names = notes.to_vec();
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
        names.extend(self.always());
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

    /// Headers of whatever answer, as `reply` has them.
    fn always(&self) -> Vec<&'static str> {
        if !self.is_scoring() {
            return Vec::new();
        }
        let score = &self.facts.config.score;
        let mut names = vec!["RequestId", "MsRequestId", "MsClientRequestId", "TraceId"];
        names.extend(score.server_version.is_some().then_some("ServerVersion"));
        if !score.cors_origins.is_empty() {
            names.extend(["AllowOrigin", "Vary"]);
        }
        names
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
