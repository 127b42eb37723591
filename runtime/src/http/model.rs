//! What is asked of models beside running them, for REST and gRPC alike.

use std::borrow::Cow;
use std::sync::Arc;

use http::HeaderMap;
use outrigger_auth::Grant;
use outrigger_backend::ModelInfo;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::oip::messages::{ModelIndex, ModelStatistics, ModelStatisticsResponse};
use outrigger_protocol::operation::Operation;

use super::reply::Gate;
use super::wish::Wish;
use crate::models::{ModelState, NamedModel, ServedModel};
use crate::replica::{Replica, Serving};
use crate::telemetry;

/// A model that the caller may know of. The name is looked up and never becomes a path.
///
/// # Errors
/// `forbidden`, whether it is there or not; `model_not_found`, also of a version.
pub(super) fn find<'a>(
    replica: &'a Replica,
    grant: &Grant,
    name: &str,
    which: Option<&str>,
) -> Result<(&'a Serving, &'a Arc<NamedModel>), CallError> {
    let serving = replica.serving(grant)?;
    let model = serving.model(grant, name)?;
    model.version(which)?;
    telemetry::with(|passage| passage.is_for(model));
    Ok((serving, model))
}

/// The name that is said, or that of the model which is meant where none is: `score.model`, or the only one that there is. Whoever calls
/// has been found to be one that may call some model.
///
/// # Errors
/// `bad_request` if it is not clear which, `not_ready`.
pub(super) fn name_or_default<'a>(
    replica: &'a Replica,
    said: Option<&'a str>,
) -> Result<Cow<'a, str>, CallError> {
    let configured = replica.config.score.contracts.model.as_deref();
    if let Some(name) = said.or(configured) {
        return Ok(name.into());
    }
    replica.only_model()?.map(Cow::Owned).ok_or_else(|| {
        let text = "the request names no model, there is not exactly one here, and score.model names none";
        CallError::new(ErrorCode::BadRequest, text)
    })
}

/// What a model is.
pub(super) struct Described<'a> {
    pub(super) platform: Cow<'a, str>,
    pub(super) info: Arc<ModelInfo>,
    /// Of a version that is named, itself; else all there are.
    pub(super) versions: Vec<String>,
}

/// What a model takes and gives. It is loaded, where that has never happened.
///
/// # Errors
/// As [`find`], and why it cannot be loaded.
pub(super) async fn describe(
    replica: &Replica,
    gate: &Gate<'_>,
    grant: &Grant,
    headers: &HeaderMap,
    name: &str,
    which: Option<&str>,
) -> Result<Described<'static>, CallError> {
    let (serving, model) = find(replica, grant, name, which)?;
    let served = model.version(which)?;
    let versions = match which {
        Some(_) => vec![served.version.clone()],
        None => model.versions().iter().map(|version| version.version.clone()).collect(),
    };
    if let Some((platform, info)) = served.known() {
        return Ok(Described { platform: platform.to_owned().into(), info: Arc::clone(info), versions });
    }
    // What it takes and gives is not known before it has been loaded once. That is as much work as a call, so only who may call has it.
    let _call = gate.ask_for(Operation::Infer, headers, Some(name))?;
    let patience = Wish::of(headers)?.patience(replica.config.queue.wait);
    let lease = serving.models.lease_version(model, which, patience.into_std()).await?;
    let versions = if which.is_some() { vec![lease.version.clone()] } else { versions };
    Ok(Described { platform: lease.platform.clone().into(), info: Arc::clone(&lease.info), versions })
}

/// Whether calls of a model are answered.
///
/// # Errors
/// As [`find`].
pub(super) fn is_ready(
    replica: &Replica,
    grant: &Grant,
    name: &str,
    which: Option<&str>,
) -> Result<bool, CallError> {
    let (serving, model) = find(replica, grant, name, which)?;
    Ok(replica.is_ready_for(serving, &*model.version(which)?))
}

/// How calls went: of one model or all that the caller may know of, of one version or all.
///
/// # Errors
/// As [`find`].
pub(super) fn statistics(
    replica: &Replica,
    grant: &Grant,
    name: Option<&str>,
    which: Option<&str>,
) -> Result<ModelStatisticsResponse, CallError> {
    let versions: Vec<Arc<ServedModel>> = match name {
        Some(name) => {
            let (_, model) = find(replica, grant, name, which)?;
            match which {
                Some(_) => vec![model.version(which)?],
                None => model.versions(),
            }
        }
        None => visible(replica, grant)?.flat_map(|model| model.versions()).collect(),
    };
    let of = |version: Arc<ServedModel>| {
        let (last_inference, inference_count, execution_count) = version.statistics.counts();
        ModelStatistics {
            name: version.name.clone(),
            version: version.version.clone(),
            last_inference,
            inference_count,
            execution_count,
            inference_stats: Some(version.statistics.show()),
        }
    };
    Ok(ModelStatisticsResponse { model_stats: versions.into_iter().map(of).collect() })
}

/// All models that the caller may know of.
fn visible<'a>(
    replica: &'a Replica,
    grant: &'a Grant,
) -> Result<impl Iterator<Item = &'a Arc<NamedModel>>, CallError> {
    let models = replica.serving(grant)?.models.iter();
    Ok(models.filter(|model| grant.allow_model(&model.name).is_ok()))
}

/// Whether a model is loaded.
///
/// # Errors
/// As [`find`].
pub(super) fn is_loaded(replica: &Replica, grant: &Grant, name: &str) -> Result<bool, CallError> {
    let (serving, model) = find(replica, grant, name, None)?;
    Ok(serving.models.is_loaded(&model.stable()))
}

/// The names of those that are loaded, of all that the caller may know of, after that one.
///
/// # Errors
/// `not_ready`.
pub(super) fn loaded_after<'a>(
    replica: &'a Replica,
    grant: &'a Grant,
    after: &str,
) -> Result<impl Iterator<Item = String>, CallError> {
    let models = &replica.serving(grant)?.models;
    let loaded = models
        .after(after)
        .filter(|model| grant.allow_model(&model.name).is_ok() && models.is_loaded(&model.stable()));
    Ok(loaded.map(|model| model.name.clone()))
}

/// Those models, and how they are.
///
/// # Errors
/// `not_ready`.
pub(super) fn index(replica: &Replica, grant: &Grant, ready: bool) -> Result<Vec<ModelIndex>, CallError> {
    let models = &replica.serving(grant)?.models;
    let versions = visible(replica, grant)?.flat_map(|model| model.versions());
    let index = versions.filter_map(|version| {
        let state = models.status(&version)?.state;
        let (word, reason) = match state {
            ModelState::Ready if models.can_be_had(&version) => ("READY", ""),
            ModelState::Ready => ("UNAVAILABLE", "its device cannot be used"),
            ModelState::Draining => ("UNLOADING", ""),
            state if state.is_under_way() => ("LOADING", state.as_str()),
            ModelState::Failed => ("UNAVAILABLE", "it did not load"),
            _ => ("UNAVAILABLE", "it is loaded with the first call that needs it"),
        };
        (word == "READY" || !ready).then(|| ModelIndex {
            name: version.name.clone(),
            version: version.version.clone(),
            state: word.into(),
            reason: reason.into(),
        })
    });
    Ok(index.collect())
}

/// Has a model loaded; who is not that patient hears when it will be, and the load goes on. `parameter` is one that was sent along.
///
/// # Errors
/// As [`find`]; `not_found` where models are not managed on this listener, `bad_request` for any parameter: what a model is stands in the
/// replica's configuration.
pub(super) async fn load(
    replica: &Replica,
    grant: &Grant,
    headers: &HeaderMap,
    name: &str,
    parameter: Option<&str>,
) -> Result<(), CallError> {
    let (serving, model) = find(replica, grant, name, None)?;
    check_control(replica)?;
    if let Some(parameter) = parameter {
        let shown: String = parameter.chars().take(64).collect();
        let text =
            format!("the parameter `{shown}` is not taken: what a model is stands in the configuration");
        return Err(CallError::new(ErrorCode::BadRequest, text));
    }
    let patience = Wish::of(headers)?.patience(replica.config.queue.wait);
    serving.models.bring_stable(model, patience.into_std()).await
}

/// Has a model leave once the calls are through that have it.
///
/// # Errors
/// As [`load`].
pub(super) async fn unload(replica: &Replica, grant: &Grant, name: &str) -> Result<(), CallError> {
    let (serving, model) = find(replica, grant, name, None)?;
    check_control(replica)?;
    serving.models.unload(&model.stable()).await;
    Ok(())
}

fn check_control(replica: &Replica) -> Result<(), CallError> {
    if replica.config.score.contracts.model_control {
        return Ok(());
    }
    let text = "models are not loaded and unloaded on this listener (score.model_control), but on the admin listener";
    Err(CallError::new(ErrorCode::NotFound, text))
}
