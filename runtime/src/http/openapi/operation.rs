//! One operation of a description, as it is put together where its route is described.

use std::borrow::Cow;

use outrigger_protocol::error::ErrorCode;
use outrigger_protocol::operation::Operation as Asked;
use serde_json::{Value, json};

use super::tags::Tag;

/// A body: of which media type, by which schema, and such as.
pub(super) struct Content {
    pub(super) media: &'static str,
    pub(super) schema: Value,
    pub(super) example: Option<Value>,
}

impl Content {
    /// Such as this.
    pub(super) fn such_as(self, example: Value) -> Self {
        Self { example: Some(example), ..self }
    }
}

/// JSON.
pub(super) fn json_of(schema: Value) -> Content {
    Content { media: "application/json", schema, example: None }
}

/// Text.
pub(super) fn text(media: &'static str) -> Content {
    Content { media, schema: json!({ "type": "string" }), example: None }
}

/// Bytes; the media type says all that a schema could.
pub(super) fn bytes(media: &'static str) -> Content {
    Content { media, schema: json!(true), example: None }
}

/// An answer that is no error, or one whose body is not that of errors.
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) text: &'static str,
    pub(super) contents: Vec<Content>,
    /// Those of the components, by name.
    pub(super) headers: Vec<&'static str>,
}

/// What one method of a path does.
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) tag: Tag,
    pub(super) summary: &'static str,
    pub(super) text: Cow<'static, str>,
    /// Those of the components, by name, or written out.
    pub(super) parameters: Vec<Value>,
    pub(super) body: Vec<Content>,
    /// Whether there has to be one.
    pub(super) body_needed: bool,
    pub(super) answers: Vec<Answered>,
    pub(super) errors: Vec<ErrorCode>,
    /// What is asked of the policy, where that is not what its route asks.
    pub(super) asks: Option<Asked>,
    /// Who else may answer, with whatever status and body.
    pub(super) others: Option<&'static str>,
}

pub(super) fn get(tag: Tag, summary: &'static str) -> Operation {
    Operation::new("get", tag, summary)
}

pub(super) fn post(tag: Tag, summary: &'static str) -> Operation {
    Operation::new("post", tag, summary)
}

impl Operation {
    pub(super) fn new(method: &'static str, tag: Tag, summary: &'static str) -> Self {
        Self {
            method,
            tag,
            summary,
            text: Cow::Borrowed(""),
            parameters: Vec::new(),
            body: Vec::new(),
            body_needed: true,
            answers: Vec::new(),
            errors: Vec::new(),
            asks: None,
            others: None,
        }
    }

    /// What the summary leaves open.
    pub(super) fn text(self, text: impl Into<Cow<'static, str>>) -> Self {
        Self { text: text.into(), ..self }
    }

    /// Parameters that stand in the components.
    pub(super) fn takes(mut self, names: &[&str]) -> Self {
        let reference = |name: &&str| json!({ "$ref": format!("#/components/parameters/{name}") });
        self.parameters.extend(names.iter().map(reference));
        self
    }

    /// A parameter of the query.
    pub(super) fn query(mut self, name: &str, text: &str, schema: Value) -> Self {
        self.parameters.push(json!({ "name": name, "in": "query", "description": text, "schema": schema }));
        self
    }

    /// The forms that the body can have.
    pub(super) fn body(self, contents: impl IntoIterator<Item = Content>) -> Self {
        Self { body: contents.into_iter().collect(), ..self }
    }

    /// A body that may be left out.
    pub(super) fn optional_body(self, content: Content) -> Self {
        Self { body: vec![content], body_needed: false, ..self }
    }

    /// The good answer.
    pub(super) fn ok(self, text: &'static str, contents: impl IntoIterator<Item = Content>) -> Self {
        self.answer(200, text, contents)
    }

    /// Another answer with a body of its own.
    pub(super) fn answer(
        mut self,
        status: u16,
        text: &'static str,
        contents: impl IntoIterator<Item = Content>,
    ) -> Self {
        let contents = contents.into_iter().collect();
        self.answers.push(Answered { status, text, contents, headers: Vec::new() });
        self
    }

    /// What its good answers say in headers.
    pub(super) fn headers(mut self, names: &[&'static str]) -> Self {
        for answer in self.answers.iter_mut().filter(|answer| answer.status < 300) {
            answer.headers.extend_from_slice(names);
        }
        self
    }

    /// What is asked of the policy, where that is not what its route asks.
    pub(super) fn asks(self, asked: Asked) -> Self {
        Self { asks: Some(asked), ..self }
    }

    /// Who else may answer, with whatever status and body.
    pub(super) fn others(self, text: &'static str) -> Self {
        Self { others: Some(text), ..self }
    }

    /// What can go wrong.
    pub(super) fn errors(mut self, codes: &[ErrorCode]) -> Self {
        self.errors.extend_from_slice(codes);
        self
    }
}
