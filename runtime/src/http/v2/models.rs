//! What models take and give, whether they are ready, and how their calls went.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use http::Method;
use outrigger_auth::OfModel;
use outrigger_protocol::oip::{self, messages};
use outrigger_protocol::operation::Operation;

use super::super::model;
use super::super::openapi::paths;
use super::super::routes::Routes;
use super::{NamePath, answer, json, of_model, with_status};
use crate::replica::Replica;

pub(super) fn routes(routes: Routes) -> Routes {
    use Operation::ModelMetadata;
    routes
        .at("/v2/models/{model}", ModelMetadata, any(metadata), paths::metadata)
        .at("/v2/models/{model}/ready", ModelMetadata, any(ready), paths::model_ready)
        .at("/v2/models/{model}/config", ModelMetadata, any(config), paths::config)
        .at("/v2/models/{model}/stats", ModelMetadata, any(statistics), paths::statistics)
        .at("/v2/models/{model}/versions/{version}", ModelMetadata, any(metadata), paths::metadata)
        .at("/v2/models/{model}/versions/{version}/ready", ModelMetadata, any(ready), paths::model_ready)
        .at("/v2/models/{model}/versions/{version}/config", ModelMetadata, any(config), paths::config)
        .at("/v2/models/{model}/versions/{version}/stats", ModelMetadata, any(statistics), paths::statistics)
        .at("/v2/models/stats", ModelMetadata, any(all_statistics), paths::all_statistics)
}

async fn metadata(State(replica): State<Arc<Replica>>, path: NamePath, request: Request) -> Response {
    of_model(
        &replica,
        Operation::ModelMetadata,
        path,
        request,
        Method::GET,
        async |gate, grant, path, parts, _| {
            let which = path.which.as_deref();
            let described =
                model::describe(&replica, gate, &grant, &parts.headers, &path.name, which).await?;
            let versions: Vec<_> = described.versions.iter().map(String::as_str).collect();
            json(&messages::model_metadata(&path.name, &versions, &described.platform, &described.info))
        },
    )
    .await
}

async fn config(State(replica): State<Arc<Replica>>, path: NamePath, request: Request) -> Response {
    of_model(
        &replica,
        Operation::ModelMetadata,
        path,
        request,
        Method::GET,
        async |gate, grant, path, parts, _| {
            let which = path.which.as_deref();
            let described =
                model::describe(&replica, gate, &grant, &parts.headers, &path.name, which).await?;
            json(&messages::model_config(&path.name, &described.platform, &described.info))
        },
    )
    .await
}

async fn ready(State(replica): State<Arc<Replica>>, path: NamePath, request: Request) -> Response {
    of_model(&replica, Operation::ModelMetadata, path, request, Method::GET, async |_, grant, path, _, _| {
        let ready = model::is_ready(&replica, &grant, &path.name, path.which.as_deref())?;
        Ok(with_status(oip::model_ready(&path.name, ready), ready))
    })
    .await
}

async fn statistics(State(replica): State<Arc<Replica>>, path: NamePath, request: Request) -> Response {
    of_model(&replica, Operation::ModelMetadata, path, request, Method::GET, async |_, grant, path, _, _| {
        json(&model::statistics(&replica, &grant, Some(&path.name), path.which.as_deref())?)
    })
    .await
}

async fn all_statistics(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::ModelMetadata, request, Method::GET, async |gate, parts, _| {
        let grant = gate.ask(&parts.headers, OfModel::AskedLater)?;
        json(&model::statistics(&replica, &grant, None, None)?)
    })
    .await
}
