//! A description, but for the models, which not everybody may know of.

use outrigger_protocol::operation::Operation;
use outrigger_protocol::{oip, rows};
use serde_json::{Map, Value, json};

use super::components;
use super::place::{Facts, Lane, Place, mostly_needs_key};
use super::tags::Tag;
use super::written::Written;
use crate::config::{Config, Contract, PathPattern};
use crate::http::routes::{Described, Route};
use crate::replica::Serving;

/// What is behind `/score`.
pub(super) fn lane(config: &Config, serving: &Serving) -> Lane {
    let Some(scripts) = &serving.scripts else {
        return if config.upstream.is_some() { Lane::Upstream } else { Lane::Nothing };
    };
    // A script that cannot be said in this version takes and gives something all the same.
    let [input, output] = serving.schemas.newest().cloned().unwrap_or([json!(true), json!(true)]);
    Lane::Script { methods: scripts.ready().methods.clone(), input, output }
}

/// Describes what is served at these routes, which are all of one listener.
pub(super) fn fixed(config: &Config, listed: &[Described], lane: Lane) -> Value {
    let listener = listed.first().map_or("score", |described| described.route.listener);
    let keyed = mostly_needs_key(config, listener);
    let facts = Facts { config, lane };
    let mut written = Written::new();
    for Described { route, describe } in listed {
        if !is_upstreams(config, listener, route.path) {
            describe(&mut Place {
                facts: &facts,
                route: *route,
                path: route.path,
                one: None,
                written: &mut written,
            });
        }
    }
    if listener == "score" {
        passed_on(&facts, &mut written);
        at_configured_paths(&facts, listed, &mut written);
    }
    let tags: Vec<Tag> = written.tags.iter().copied().collect();
    let mut document = json!({
        "openapi": "3.1.1",
        "info": {
            "title": config.service.name,
            "version": config.service.version,
            "summary": components::summary(listener),
            "description": components::description(listener, keyed, &written, config),
        },
        "servers": [{ "url": ".", "description": "where this description is" }],
        "tags": Tag::described(&tags),
        "components": components::components(&mut written, listener),
        "paths": Value::Object(std::mem::take(&mut written.paths)),
    });
    if let Some(members) = document.as_object_mut().filter(|_| keyed) {
        members.insert("security".into(), json!([{ "key": [] }]));
    }
    // What models have in common is used once they are added.
    let models = kept_for_models(&document);
    drop_unused(&mut document, &models);
    document
}

/// Whether a path goes to the server behind, whatever route there is.
pub(super) fn is_upstreams(config: &Config, listener: &str, path: &str) -> bool {
    let mut patterns = config.upstream.iter().flat_map(|upstream| &upstream.paths);
    listener == "score"
        && path != "/score"
        && patterns.any(|pattern: &PathPattern| !pattern.is_all() && pattern.means(path))
}

/// The single paths that go to the server behind; what is below others it describes itself.
fn passed_on(facts: &Facts<'_>, written: &mut Written) {
    let (operation, contract) = (Operation::Score, Some(Contract::Aml));
    // No route has this path; it is what the operations are named by.
    let route = Route { listener: "score", path: "/upstream", operation, contract };
    for pattern in facts.config.upstream.iter().flat_map(|upstream| &upstream.paths) {
        if let PathPattern::Exactly(path) = pattern
            && path != "/score"
        {
            let one = path.strip_prefix('/');
            super::paths::passed_on(&mut Place { facts, route, path, one, written });
        }
    }
}

/// Vertex AI's routes where they are configured to be, which go before others.
fn at_configured_paths(facts: &Facts<'_>, listed: &[Described], written: &mut Written) {
    let vertex = &facts.config.score.contracts.vertex;
    for (path, inner) in
        [(&vertex.health_route, "/vertex/health"), (&vertex.predict_route, "/vertex/predict")]
    {
        let Some(path) = path else { continue };
        written.paths.remove(path.as_str());
        let route = listed.iter().find(|described| described.route.path == inner);
        if let Some(Described { route, describe }) =
            route.filter(|described| described.route.contract == Some(Contract::Vertex))
        {
            let one = path.strip_prefix('/').filter(|_| path != inner);
            describe(&mut Place { facts, route: *route, path, one, written });
        }
    }
}

/// Leaves out what nothing refers to, neither here nor in `beside`.
fn drop_unused(document: &mut Value, beside: &Value) {
    loop {
        let mut used = std::collections::BTreeSet::new();
        references(document, &mut used);
        references(beside, &mut used);
        let mut dropped = false;
        let sections = document.get_mut("components").and_then(Value::as_object_mut);
        for (section, members) in sections.into_iter().flatten() {
            let kept = |name: &str| {
                section == "securitySchemes" || used.contains(&format!("#/components/{section}/{name}"))
            };
            if let Some(members) = members.as_object_mut() {
                let before = members.len();
                members.retain(|name, _| kept(name));
                dropped |= members.len() < before;
            }
        }
        if !dropped {
            return;
        }
    }
}

/// Schemas of rows, which only single models refer to, where calls with instances are taken.
fn kept_for_models(document: &Value) -> Value {
    let mut used = std::collections::BTreeSet::new();
    references(document, &mut used);
    match used.contains("#/components/schemas/InstancesRequest") {
        true => rows::schema::components().keys().map(|name| oip::schema::reference(name)).collect(),
        false => Value::Null,
    }
}

fn references(value: &Value, found: &mut std::collections::BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Object(members) => {
            if let Some(Value::String(reference)) = members.get("$ref") {
                found.insert(reference.clone());
            }
            members.values().for_each(|member| references(member, found));
        }
        _ => {}
    }
}

/// The members of an object, there or not.
pub(super) fn members<'a>(document: &'a mut Value, pointer: &str) -> Option<&'a mut Map<String, Value>> {
    document.pointer_mut(pointer)?.as_object_mut()
}
