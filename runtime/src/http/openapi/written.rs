//! What has been described so far: paths, and what they share.

use std::collections::{BTreeMap, BTreeSet};

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::tags::Tag;

/// What has been described.
pub(super) struct Written {
    pub(super) paths: Map<String, Value>,
    responses: BTreeMap<String, Value>,
    pub(super) tags: BTreeSet<Tag>,
    /// Whether any operation needs a key.
    pub(super) keyed: bool,
    /// Of what is sent.
    pub(super) answers: SchemaGenerator,
    /// Of what is read.
    pub(super) requests: SchemaGenerator,
}

impl Written {
    pub(super) fn new() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = "/components/schemas".into();
                settings.meta_schema = None;
            })
        };
        Self {
            paths: Map::new(),
            responses: BTreeMap::new(),
            tags: BTreeSet::new(),
            keyed: false,
            answers: settings().for_serialize().into_generator(),
            requests: settings().for_deserialize().into_generator(),
        }
    }

    /// What goes on from a description: its answers are shared.
    pub(super) fn continuing(document: &Value) -> Self {
        let mut written = Self::new();
        let responses = document.pointer("/components/responses").and_then(Value::as_object);
        written
            .responses
            .extend(responses.into_iter().flatten().map(|(name, response)| (name.clone(), response.clone())));
        written
    }

    /// Schemas of types, by name.
    pub(super) fn schemas(&mut self) -> Map<String, Value> {
        let mut schemas = self.requests.take_definitions(true);
        schemas.extend(self.answers.take_definitions(true));
        schemas
    }

    /// Answers that several operations have.
    pub(super) fn responses(&mut self) -> Map<String, Value> {
        std::mem::take(&mut self.responses).into_iter().collect()
    }

    /// A reference to such an answer.
    pub(super) fn shared(&mut self, name: &str, response: Value) -> Value {
        let mut number = 1_usize;
        loop {
            let name = if number == 1 { name.to_owned() } else { format!("{name}-{number}") };
            let there = self.responses.entry(name.clone()).or_insert_with(|| response.clone());
            if *there == response {
                return json!({ "$ref": format!("#/components/responses/{name}") });
            }
            number += 1;
        }
    }
}
