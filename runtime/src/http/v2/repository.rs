//! Which models there are, and loading and unloading them.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use http::Method;
use outrigger_auth::OfModel;
use outrigger_protocol::operation::Operation;
use serde::Deserialize;

use super::super::model;
use super::super::openapi::paths;
use super::super::reply::plain;
use super::super::routes::Routes;
use super::{NamePath, answer, asked, json, of_model};
use crate::replica::Replica;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .at("/v2/repository/index", Operation::ModelMetadata, any(index), paths::index)
        .at("/v2/repository/models/{model}/load", Operation::ModelControl, any(load), paths::load)
        .at("/v2/repository/models/{model}/unload", Operation::ModelControl, any(unload), paths::unload)
}

/// What an index is asked for by.
#[derive(Default, Deserialize, schemars::JsonSchema)]
pub(in crate::http) struct IndexWanted {
    #[serde(default)]
    ready: bool,
}

async fn index(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::ModelMetadata, request, Method::POST, async |gate, parts, body| {
        let grant = gate.ask(&parts.headers, OfModel::AskedLater)?;
        let IndexWanted { ready } = asked(&replica, body).await?;
        json(&model::index(&replica, &grant, ready)?)
    })
    .await
}

/// What a load or an unload is asked for with.
#[derive(Default, Deserialize, schemars::JsonSchema)]
pub(in crate::http) struct Control {
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    parameters: BTreeMap<String, serde::de::IgnoredAny>,
}

async fn load(State(replica): State<Arc<Replica>>, path: NamePath, request: Request) -> Response {
    of_model(
        &replica,
        Operation::ModelControl,
        path,
        request,
        Method::POST,
        async |_, grant, path, parts, body| {
            let control: Control = asked(&replica, body).await?;
            let parameter = control.parameters.keys().next().map(String::as_str);
            model::load(&replica, &grant, &parts.headers, &path.name, parameter).await?;
            Ok(plain("application/json", ""))
        },
    )
    .await
}

async fn unload(State(replica): State<Arc<Replica>>, path: NamePath, request: Request) -> Response {
    of_model(
        &replica,
        Operation::ModelControl,
        path,
        request,
        Method::POST,
        async |_, grant, path, _, body| {
            let _: Control = asked(&replica, body).await?;
            model::unload(&replica, &grant, &path.name).await?;
            Ok(plain("application/json", ""))
        },
    )
    .await
}
