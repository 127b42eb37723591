//! What has been described so far: paths, and what they share.

use std::collections::{BTreeMap, BTreeSet};

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::tags::Tag;

/// What the methods of a path do, by method.
pub(super) type Methods = BTreeMap<&'static str, Value>;

/// What has been described.
pub(super) struct Written {
    pub(super) paths: BTreeMap<String, Methods>,
    /// Answers that several operations have.
    pub(super) responses: BTreeMap<String, Value>,
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
            paths: BTreeMap::new(),
            responses: BTreeMap::new(),
            tags: BTreeSet::new(),
            keyed: false,
            answers: settings().for_serialize().into_generator(),
            requests: settings().for_deserialize().into_generator(),
        }
    }

    /// Schemas of types, by name.
    pub(super) fn schemas(&mut self) -> Map<String, Value> {
        let mut schemas = self.requests.take_definitions(true);
        schemas.extend(self.answers.take_definitions(true));
        schemas
    }

    /// A reference to an answer of this name, which says all that is in it; itself, should another one have it.
    pub(super) fn shared(&mut self, name: String, response: Value) -> Value {
        let reference = json!({ "$ref": format!("#/components/responses/{name}") });
        let there = self.responses.entry(name).or_insert_with(|| response.clone());
        if *there == response { reference } else { response }
    }
}
