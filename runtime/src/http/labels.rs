//! What versions of models are called, on the *admin* listener: to call one so is to have it fetched, loaded and tried, and then have calls
//! get it.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::put;
use http::{HeaderMap, StatusCode};
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::operation::Operation;
use outrigger_store::Label;
use serde::Deserialize;

use super::body::read_small;
use super::models::{Granted, find, refused, shown};
use super::openapi::paths;
use super::routes::Routes;
use super::wish::Wish;
use crate::models::Rolled;
use crate::replica::Replica;

/// Longest text that names a version, bytes.
const MAX_VERSION: usize = 255;

/// The routes.
pub(super) fn routes(routes: Routes) -> Routes {
    routes.at(
        "/models/{model}/labels/{label}",
        Operation::ModelControl,
        put(label).delete(unlabel),
        paths::label,
    )
}

/// Which version is to be called so.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Labelled {
    /// Its number, `latest`, or what it is called, here or in the registry.
    version: String,
}

fn bad(text: String) -> CallError {
    CallError::new(ErrorCode::BadRequest, text)
}

fn parsed(label: &str) -> Result<Label, CallError> {
    label.parse::<Label>().map_err(|error| bad(error.to_string()))
}

/// Answers once the version is called so; who is not that patient hears that it is on its way.
async fn label(
    State(replica): State<Arc<Replica>>,
    Extension(grant): Granted,
    Path((name, label)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let labelled = async {
        // Whoever may not know of the model learns nothing else either.
        let (models, model) = find(&replica, &grant, &name)?;
        let label = parsed(&label)?;
        let body = read_small(body, &replica.config.limits).await?;
        let Labelled { version } = serde_json::from_slice(&body)
            .map_err(|error| bad(format!("the body is JSON such as {{\"version\": \"3\"}}: {error}")))?;
        if version.len() > MAX_VERSION {
            return Err(bad(format!("`version` is longer than {MAX_VERSION} bytes")));
        }
        let patience = Wish::of(&headers)?.patience(replica.config.queue.wait);
        let rollouts = &replica.serving(&grant)?.rollouts;
        let rolled = rollouts.label(model, label, &version, patience.into_std()).await?;
        let mut response = shown(models, model);
        if rolled == Rolled::UnderWay {
            *response.status_mut() = StatusCode::ACCEPTED;
        }
        Ok::<_, CallError>(response)
    };
    labelled.await.unwrap_or_else(|error| refused(&error))
}

/// Answers once no version is called so; one that is called nothing then leaves.
async fn unlabel(
    State(replica): State<Arc<Replica>>,
    Extension(grant): Granted,
    Path((name, label)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let unlabelled = async {
        let (models, model) = find(&replica, &grant, &name)?;
        let label = parsed(&label)?;
        let patience = Wish::of(&headers)?.patience(replica.config.queue.wait);
        replica.serving(&grant)?.rollouts.unlabel(model, &label, patience.into_std()).await?;
        Ok::<_, CallError>(shown(models, model))
    };
    unlabelled.await.unwrap_or_else(|error| refused(&error))
}
