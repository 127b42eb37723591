//! The models in a description: each with its own inputs and outputs, as far as the caller may know of it.

use std::sync::Arc;

use http::HeaderMap;
use outrigger_auth::Grant;
use outrigger_backend::ModelInfo;
use outrigger_protocol::error::CallError;
use outrigger_protocol::operation::Operation;
use outrigger_protocol::{oip, rows};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::document::{is_upstreams, members};
use super::operation::{Content, json_of, post};
use super::paths;
use super::place::{Facts, Lane, Place};
use super::tags::Tag;
use super::written::Written;
use crate::config::Contract;
use crate::http::model;
use crate::http::reply::Gate;
use crate::http::routes::Route;
use crate::http::score::query_value;
use crate::replica::Replica;

/// What a segment of a URL has as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

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

/// A model that is described.
struct One {
    name: String,
    versions: Vec<String>,
    /// Nothing as long as it has not been loaded.
    info: Option<Arc<ModelInfo>>,
}

/// Those that are.
pub(super) struct DescribedModels<'a> {
    replica: &'a Replica,
    models: Vec<One>,
    total: usize,
    /// What the next ones are asked for after.
    next: Option<String>,
    /// What a call gets that names none.
    default: Option<One>,
}

/// Finds what is asked for. One that is asked for by its name is loaded, where that has never happened.
///
/// # Errors
/// As [`model::describe`].
pub(super) async fn described<'a>(
    replica: &'a Replica,
    gate: &Gate<'_>,
    grant: &Grant,
    headers: &HeaderMap,
    asked: &Asked,
) -> Result<DescribedModels<'a>, CallError> {
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
        return Ok(DescribedModels { replica, models, total, next: None, default });
    }
    let mut after = models.after(&asked.after).filter(|model| may(&model.name));
    let page: Vec<_> =
        after.by_ref().take(replica.config.openapi.models).filter_map(|model| one(&model.name)).collect();
    let next = after.next().and(page.last()).map(|last| last.name.clone());
    Ok(DescribedModels { replica, models: page, total, next, default })
}

/// The first model that the caller may know of.
///
/// # Errors
/// `not_ready`.
pub(super) fn first(replica: &Replica, grant: &Grant) -> Result<Option<String>, CallError> {
    let mut models = replica.serving(grant)?.models.iter();
    Ok(models.find(|model| grant.allow_model(&model.name).is_ok()).map(|model| model.name.clone()))
}

/// Has a description name a model where a path has one, so that what it shows can be asked for.
pub(super) fn name_it(document: &mut Value, name: Option<&str>) {
    if let (Some(name), Some(parameter)) = (name, members(document, "/components/parameters/model")) {
        parameter.insert("example".into(), json!(name));
    }
}

impl DescribedModels<'_> {
    /// The description with them.
    pub(super) fn added_to(self, mut document: Value) -> Value {
        name_it(&mut document, self.models.first().map(|one| one.name.as_str()));
        let version = self.models.first().and_then(|one| one.versions.first());
        if let (Some(version), Some(parameter)) =
            (version, members(&mut document, "/components/parameters/version"))
        {
            parameter.insert("example".into(), json!(version));
        }
        let shown: Vec<_> = self.models.iter().map(|one| one.name.as_str()).collect();
        let told = json!({ "total": self.total, "described": shown, "next": self.next });
        if let Some(info) = members(&mut document, "/info") {
            info.insert("x-outrigger-models".into(), told);
        }
        self.by_default(&mut document);
        let facts = Facts { config: &self.replica.config, lane: Lane::Nothing };
        let mut written = Written::continuing(&document);
        for one in &self.models {
            one.describe(&facts, &mut written);
        }
        let added = !written.paths.is_empty();
        if let Some(paths) = members(&mut document, "/paths") {
            paths.extend(std::mem::take(&mut written.paths));
        }
        if let Some(responses) = members(&mut document, "/components/responses") {
            responses.extend(written.responses());
        }
        if let Some(tags) = document.get_mut("tags").and_then(Value::as_array_mut).filter(|_| added) {
            let described = Tag::described(&[Tag::Models]);
            let rest = std::mem::take(tags);
            tags.extend(described.as_array().into_iter().flatten().cloned().chain(rest));
        }
        document
    }

    /// Says what a call takes that names no model.
    fn by_default(&self, document: &mut Value) {
        let Some(One { name, info: Some(info), .. }) = &self.default else { return };
        if self.replica.has_lane() {
            return;
        }
        let configured = self.replica.config.score.contracts.vertex.predict_route.as_deref();
        let instances = rows::schema::example(info);
        let vertex = [Some("/vertex/predict"), configured]
            .into_iter()
            .flatten()
            .map(|path| (path, rows::schema::request(info), rows::schema::answer(info), instances.clone()));
        let either = |one: Value, other: Value| json!({ "anyOf": [one, other] });
        let request = either(oip::schema::request(info), rows::schema::request(info));
        let answer = either(oip::schema::answer(name, info), rows::schema::answer(info));
        let sagemaker = std::iter::once(("/invocations", request, answer, oip::schema::example(info)));
        for (path, request, answer, example) in vertex.chain(sagemaker) {
            let Some(operation) =
                document.get_mut("paths").and_then(|paths| paths.get_mut(path)?.get_mut("post"))
            else {
                continue;
            };
            if let Some(media) = members(operation, "/requestBody/content/application~1json") {
                media.insert("schema".into(), request);
                media.extend(example.map(|example| ("example".to_owned(), example)));
            }
            if let Some(media) = members(operation, "/responses/200/content/application~1json") {
                media.insert("schema".into(), answer);
            }
        }
    }
}

impl One {
    /// Adds what this model can be asked at its own paths.
    fn describe(&self, facts: &Facts<'_>, written: &mut Written) {
        let spoken = &facts.config.score.contracts.spoken;
        let segment = utf8_percent_encode(&self.name, SEGMENT);
        let (contract, path) = if spoken.contains(&Contract::Oip) {
            (Contract::Oip, "/v2/models/{model}/infer")
        } else if spoken.contains(&Contract::Sagemaker) {
            (Contract::Sagemaker, "/models/{model}/invoke")
        } else {
            return;
        };
        let route = Route { listener: "score", path, operation: Operation::Infer, contract: Some(contract) };
        let path = path.replace("{model}", &segment.to_string());
        if is_upstreams(facts.config, "score", &path) {
            return;
        }
        let text = match &self.info {
            None => "It has not been loaded yet; what it takes is known once it has been, which asking for its description by name does too.".to_owned(),
            Some(info) => {
                let tensors = |infos: &[outrigger_backend::TensorInfo]| {
                    let one = |info: &outrigger_backend::TensorInfo| format!("`{}` {} {:?}", info.name, info.data_type, info.shape);
                    infos.iter().map(one).collect::<Vec<_>>().join(", ")
                };
                format!("Takes {}; gives {}. A free extent is −1.", tensors(&info.inputs), tensors(&info.outputs))
            }
        };
        let either = |one: Value, other: Value| json!({ "anyOf": [one, other] });
        let [request, answer, by_rows, predictions] = match &self.info {
            None => ["InferRequest", "InferAnswer", "InstancesRequest", "PredictionsAnswer"]
                .map(oip::schema::reference),
            Some(info) => [
                oip::schema::request(info),
                oip::schema::answer(&self.name, info),
                rows::schema::request(info),
                rows::schema::answer(info),
            ],
        };
        let example = self.info.as_deref().and_then(oip::schema::example);
        let such_as = |schema: Value| Content { example, ..json_of(schema) };
        let operation = post(Tag::Models, "Runs the model").text(text);
        let operation = match contract {
            Contract::Sagemaker => {
                let request = such_as(either(request, by_rows));
                paths::instances_call(operation, request, json_of(either(answer, predictions)))
            }
            _ => paths::call(operation, such_as(request), json_of(answer)),
        };
        let mut place = Place { facts, route, path: &path, one: Some(&self.name), written };
        place.add(operation);
    }
}
