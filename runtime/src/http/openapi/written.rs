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
    /// The names of operations that are taken.
    ids: BTreeSet<String>,
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
            ids: BTreeSet::new(),
            answers: settings().for_serialize().into_generator(),
            requests: settings().for_deserialize().into_generator(),
        }
    }

    /// What goes on from a description: its answers are shared, and its names are taken.
    pub(super) fn continuing(document: &Value) -> Self {
        let mut written = Self::new();
        let responses = document.pointer("/components/responses").and_then(Value::as_object);
        written
            .responses
            .extend(responses.into_iter().flatten().map(|(name, response)| (name.clone(), response.clone())));
        let paths = document.get("paths").and_then(Value::as_object);
        let operations =
            paths.into_iter().flat_map(Map::values).filter_map(Value::as_object).flat_map(Map::values);
        let ids = operations.filter_map(|operation| operation.get("operationId")?.as_str());
        written.ids.extend(ids.map(str::to_owned));
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

    /// A name for an operation that no other one has.
    pub(super) fn id(&mut self, method: &str, path: &str) -> String {
        let name = id(method, path);
        let numbered = (2_usize..).map(|number| format!("{name}{number}"));
        let mut names = std::iter::once(name.clone()).chain(numbered);
        let free = names.find(|name| !self.ids.contains(name)).unwrap_or_default();
        self.ids.insert(free.clone());
        free
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

/// A name for code that is made of a description: `getV2ModelsModelReady`.
fn id(method: &str, path: &str) -> String {
    let words =
        path.split(|character: char| !character.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let mut id = method.to_owned();
    for word in words {
        let mut characters = word.chars();
        id.extend(characters.next().map(|first| first.to_ascii_uppercase()));
        id.push_str(characters.as_str());
    }
    id
}
