//! A description, but for what depends on who asks: the models, which not everybody may know of.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_protocol::operation::Operation;
use serde_json::json;

use super::components::{self, Components};
use super::place::{Facts, Lane, Place, mostly_needs_key};
use super::tags::Tag;
use super::written::{Methods, Written};
use crate::config::{Config, Contract, PathPattern};
use crate::http::routes::{Described, Route};
use crate::replica::Serving;

/// A description, but for what depends on who asks.
pub(super) struct Document {
    pub(super) title: String,
    pub(super) version: String,
    pub(super) summary: &'static str,
    pub(super) description: String,
    pub(super) tags: BTreeSet<Tag>,
    /// Whether an operation needs a key of which nothing else is said.
    pub(super) keyed: bool,
    pub(super) paths: BTreeMap<String, Methods>,
    pub(super) components: Components,
}

/// What is behind `/score`.
pub(super) fn lane(config: &Config, serving: &Serving) -> Lane {
    let Some(scripts) = &serving.scripts else {
        return if config.upstream.is_some() { Lane::Upstream } else { Lane::Nothing };
    };
    // A script that cannot be said in this version takes and gives something all the same.
    let [input, output] = serving.schemas.newest().cloned().unwrap_or([json!(true), json!(true)]);
    Lane::Script { methods: scripts.ready().methods.clone(), input, output }
}

impl Document {
    /// Describes what is served at these routes, which are all of one listener.
    pub(super) fn of(config: &Config, listed: &[Described], lane: Lane) -> Self {
        let listener = listed.first().map_or("score", |described| described.route.listener);
        let keyed = mostly_needs_key(config, listener);
        let facts = Facts { config, lane, meant: None };
        let mut written = Written::new();
        for shown in shown(config, listed) {
            shown.describe(&facts, &mut written);
        }
        if listener == "score" {
            passed_on(&facts, &mut written);
        }
        let mut components = Components::of(&mut written, listener);
        components.keep_used(&written.paths);
        Self {
            title: config.service.name.clone(),
            version: config.service.version.clone(),
            summary: components::summary(listener),
            description: components::description(listener, keyed, &written, config),
            tags: written.tags,
            keyed,
            paths: written.paths,
            components,
        }
    }
}

/// A route, and a path at which it is shown.
pub(super) struct Shown<'a> {
    described: &'a Described,
    path: &'a str,
    /// The same, where the operator has chosen it.
    chosen: Option<&'a str>,
}

impl Shown<'_> {
    pub(super) fn route(&self) -> Route {
        self.described.route
    }

    pub(super) fn describe(&self, facts: &Facts<'_>, written: &mut Written) {
        let Self { described: Described { route, describe }, path, chosen } = self;
        describe(&mut Place { facts, route: *route, path, one: *chosen, written });
    }
}

/// Where routes of a listener are shown: at their own paths, as far as these are no upstream's, and Vertex AI's where they are configured to be, too,
/// which go before others.
pub(super) fn shown<'a>(config: &'a Config, listed: &'a [Described]) -> Vec<Shown<'a>> {
    let listener = listed.first().map_or("score", |described| described.route.listener);
    let vertex = &config.score.contracts.vertex;
    let configured = [(&vertex.health_route, "/vertex/health"), (&vertex.predict_route, "/vertex/predict")];
    let mut configured: Vec<_> = configured
        .into_iter()
        .filter_map(|(path, inner)| Some((path.as_deref()?, inner)))
        .filter(|_| listener == "score")
        .collect();
    configured.dedup_by_key(|(path, _)| *path);
    let is_own = |described: &&Described| {
        let path = described.route.path;
        !is_upstreams(config, listener, path) && !configured.iter().any(|(chosen, _)| *chosen == path)
    };
    let own = listed.iter().filter(is_own).map(|described| Shown {
        described,
        path: described.route.path,
        chosen: None,
    });
    let chosen = configured.iter().filter_map(|(path, inner)| {
        let of_vertex = |route: &Route| route.path == *inner && route.contract == Some(Contract::Vertex);
        let described = listed.iter().find(|described| of_vertex(&described.route))?;
        Some(Shown { described, path, chosen: path.strip_prefix('/').filter(|_| path != inner) })
    });
    own.chain(chosen).collect()
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
