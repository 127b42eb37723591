//! A description as it is sent: what is always the same, with what is added for who asks.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::components::{Parameter, Scheme};
use super::document::Document;
use super::tags::{ShownTag, Tag};

/// What is added to a description for who asks.
#[derive(Default)]
pub(super) struct Added {
    /// What methods of paths do, written down already; it goes before what is there.
    pub(super) paths: BTreeMap<String, BTreeMap<&'static str, Box<RawValue>>>,
    /// Answers that these have in common.
    pub(super) responses: BTreeMap<String, Value>,
    /// What these are grouped by.
    pub(super) tags: BTreeSet<Tag>,
    pub(super) models: Option<Models>,
    /// A model and a version of it to show as an example wherever a path has one.
    pub(super) model: Option<String>,
    pub(super) version: Option<String>,
}

/// Which models are described.
#[derive(Serialize)]
pub(super) struct Models {
    /// How many the caller may know of.
    pub(super) total: usize,
    /// Those that have a path of their own in this description.
    pub(super) described: Vec<String>,
    /// What the next ones are asked for after.
    pub(super) next: Option<String>,
}

#[derive(Serialize)]
struct Whole<'a> {
    openapi: &'static str,
    info: Info<'a>,
    servers: [Server; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    security: Option<[Scheme; 1]>,
    tags: Vec<ShownTag>,
    paths: BTreeMap<&'a str, BTreeMap<&'a str, Operation<'a>>>,
    components: Components<'a>,
}

#[derive(Serialize)]
struct Info<'a> {
    title: &'a str,
    version: &'a str,
    summary: &'a str,
    description: &'a str,
    #[serde(rename = "x-outrigger-models", skip_serializing_if = "Option::is_none")]
    models: Option<&'a Models>,
}

#[derive(Serialize)]
struct Server {
    url: &'static str,
    description: &'static str,
}

/// What a method does.
#[derive(Serialize)]
#[serde(untagged)]
enum Operation<'a> {
    Fixed(&'a Value),
    Added(&'a RawValue),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Components<'a> {
    schemas: &'a Map<String, Value>,
    responses: BTreeMap<&'a str, &'a Value>,
    parameters: BTreeMap<&'a str, Parameter>,
    headers: &'a BTreeMap<&'static str, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    security_schemes: Option<&'a BTreeMap<&'static str, Value>>,
}

impl Document {
    /// The JSON of it, with what is added.
    pub(super) fn with(&self, added: &Added) -> String {
        let tags: Vec<_> = self.tags.union(&added.tags).copied().collect();
        let whole = Whole {
            openapi: "3.1.1",
            info: Info {
                title: &self.title,
                version: &self.version,
                summary: self.summary,
                description: &self.description,
                models: added.models.as_ref(),
            },
            servers: [Server { url: ".", description: "where this description is" }],
            security: self.keyed.then_some([Scheme::KEY]),
            tags: Tag::described(&tags),
            paths: self.paths(added),
            components: self.components(added),
        };
        // It is texts and values that are JSON; nothing in it can fail to be.
        serde_json::to_string(&whole).unwrap_or_default()
    }

    fn paths<'a>(&'a self, added: &'a Added) -> BTreeMap<&'a str, BTreeMap<&'a str, Operation<'a>>> {
        let mut paths: BTreeMap<&str, BTreeMap<&str, Operation<'_>>> = BTreeMap::new();
        for (path, methods) in &self.paths {
            let methods = methods.iter().map(|(method, operation)| (*method, Operation::Fixed(operation)));
            paths.entry(path).or_default().extend(methods);
        }
        for (path, methods) in &added.paths {
            let methods = methods.iter().map(|(method, operation)| (*method, Operation::Added(operation)));
            paths.entry(path).or_default().extend(methods);
        }
        paths
    }

    fn components<'a>(&'a self, added: &'a Added) -> Components<'a> {
        let components = &self.components;
        let responses = components.responses.iter().chain(&added.responses);
        let mut parameters: BTreeMap<&str, Parameter> =
            components.parameters.iter().map(|(name, parameter)| (*name, parameter.clone())).collect();
        for (name, example) in [("model", &added.model), ("version", &added.version)] {
            if let (Some(example), Some(parameter)) = (example, parameters.get_mut(name)) {
                parameter.example = Some(example.clone());
            }
        }
        Components {
            schemas: &components.schemas,
            responses: responses.map(|(name, response)| (name.as_str(), response)).collect(),
            parameters,
            headers: &components.headers,
            security_schemes: Some(&components.schemes).filter(|schemes| !schemes.is_empty()),
        }
    }
}
