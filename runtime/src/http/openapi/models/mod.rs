//! The models in a description: which of them it has, as far as the caller may know of them.

mod one;
mod room;
mod unnamed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::HeaderMap;
use outrigger_auth::Grant;
use outrigger_backend::ModelInfo;
use outrigger_protocol::error::CallError;
use serde_json::Value;

use super::bodies::Meant;
use super::shown::{Added, Models};
use super::tags::Tag;
use crate::http::model;
use crate::http::reply::Gate;
use crate::http::routes::Described;
use crate::http::score::query_value;
use crate::replica::Replica;

use room::Room;

/// Which models are asked for.
pub(super) struct Asked {
    /// This one alone.
    pub(super) model: Option<String>,
    /// Those after this name.
    after: String,
}

impl Asked {
    pub(super) fn of(query: &str) -> Self {
        Self { model: query_value(query, "model"), after: query_value(query, "after").unwrap_or_default() }
    }
}

/// A model that is to be described.
struct One {
    name: String,
    versions: Vec<String>,
    /// Nothing as long as it has not been loaded.
    info: Option<Arc<ModelInfo>>,
}

impl One {
    fn meant(&self) -> Option<Meant<'_>> {
        Some(Meant { name: &self.name, info: self.info.as_deref()? })
    }
}

/// Those that are.
pub(super) struct Found<'a> {
    replica: &'a Replica,
    models: Vec<One>,
    total: usize,
    /// Whether there are more behind them.
    more: bool,
    /// What a call gets that names none.
    default: Option<One>,
}

/// Finds what is asked for. One that is asked for by its name is loaded, where that has never happened.
///
/// # Errors
/// As [`model::describe`].
pub(super) async fn find<'a>(
    replica: &'a Replica,
    gate: &Gate<'_>,
    grant: &Grant,
    headers: &HeaderMap,
    asked: &Asked,
) -> Result<Found<'a>, CallError> {
    let models = &replica.serving(grant)?.models;
    let may = |name: &str| grant.allow_model(name).is_ok();
    let one = |name: &str| -> Option<One> {
        let model = models.get(name).ok()?;
        let info = model.stable().known().map(|(_, info)| Arc::clone(info));
        let versions = model.versions().iter().map(|version| version.version.clone()).collect();
        Some(One { name: name.to_owned(), versions, info })
    };
    let default = model::name_or_default(replica, None).ok();
    let default = default.filter(|name| may(name)).and_then(|name| one(&name));
    let total = models.iter().filter(|model| may(&model.name)).count();
    if let Some(name) = &asked.model {
        let described = model::describe(replica, gate, grant, headers, name, None).await?;
        let models =
            vec![One { name: name.clone(), versions: described.versions, info: Some(described.info) }];
        return Ok(Found { replica, models, total, more: false, default });
    }
    let mut after = models.after(&asked.after).filter(|model| may(&model.name));
    let page = after.by_ref().take(replica.config.openapi.models);
    let page: Vec<_> = page.filter_map(|model| one(&model.name)).collect();
    Ok(Found { replica, models: page, total, more: after.next().is_some(), default })
}

/// The first model that the caller may know of, as an example.
///
/// # Errors
/// `not_ready`.
pub(super) fn example(replica: &Replica, grant: &Grant) -> Result<Added, CallError> {
    let mut models = replica.serving(grant)?.models.iter();
    let first = models.find(|model| grant.allow_model(&model.name).is_ok());
    Ok(Added { model: first.map(|model| model.name.clone()), ..Added::default() })
}

impl Found<'_> {
    /// What they add to the description of these routes.
    pub(super) fn added(self, listed: &[Described]) -> Added {
        let config = &self.replica.config;
        let mut room = Room::of(config.openapi.bytes);
        let mut added = Added {
            model: self.models.first().map(|one| one.name.clone()),
            version: self.models.first().and_then(|one| one.versions.first().cloned()),
            ..Added::default()
        };
        if let Some(meant) = self.default.as_ref().and_then(One::meant).filter(|_| !self.replica.has_lane()) {
            unnamed::describe(config, listed, meant, &mut room, &mut added);
        }
        let mut described = Vec::new();
        let (mut last, mut more) = (None, self.more);
        for one in &self.models {
            match one.describe(config, &mut room, described.is_empty()) {
                one::Outcome::Described(fitting) => {
                    described.push(one.name.clone());
                    add(&mut added, fitting);
                }
                one::Outcome::NotHere => {}
                // Before any other has taken room there will not be more for it on a page to come.
                one::Outcome::NoRoom if described.is_empty() => {}
                one::Outcome::NoRoom => {
                    more = true;
                    break;
                }
            }
            last = Some(one.name.clone());
        }
        let next = last.filter(|_| more && one::is_spoken(config));
        added.models = Some(Models { total: self.total, described, next });
        added
    }
}

/// What has been described, and fits.
struct Fitting {
    paths: room::Paths,
    responses: BTreeMap<String, Value>,
    tags: BTreeSet<Tag>,
}

fn add(added: &mut Added, Fitting { paths, responses, tags }: Fitting) {
    added.paths.extend(paths);
    added.responses.extend(responses);
    added.tags.extend(tags);
}
