//! The *admin* listener: a Unix socket that only this user reaches, or loopback with a key.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use outrigger_auth::{Credentials, Grant};
use outrigger_protocol::aml;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::operation::Operation;
use serde::Serialize;

use super::openapi::paths;
use super::reply::certificate_of;
use super::routes::{Described, Routes};
use super::{collected, labels, logs, models, openapi};
use crate::keys::KeyReport;
use crate::models::NamedStatus;
use crate::replica::Replica;
use crate::scripts::WorkerStatus;
use crate::upstream::UpstreamStatus;

/// All routes of the listener.
pub(super) fn routes(replica: Option<&Replica>) -> Routes {
    let routes = Routes::new("admin").at("/status", Operation::Status, get(status), paths::status).at(
        "/keys",
        Operation::Status,
        get(keys),
        paths::keys,
    );
    let routes = collected::routes(logs::routes(labels::routes(models::routes(routes))));
    openapi::beside(routes, Operation::Status, replica)
}

/// The listener.
pub(crate) fn router(replica: Arc<Replica>) -> Router {
    let routes = routes(Some(&replica));
    let served = routes.served();
    routes
        .router()
        .fallback(nowhere)
        .method_not_allowed_fallback(super::observe::wrong_method)
        .layer(from_fn_with_state((Arc::clone(&replica), Arc::clone(&served)), authenticated))
        .layer(Extension(served))
        .with_state(replica)
}

/// Asks for every URL what its route says, so that no route can forget it; the routes get the grant.
async fn authenticated(
    State((replica, routes)): State<(Arc<Replica>, Arc<[Described]>)>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let route =
        path.and_then(|path| routes.iter().map(|described| described.route).find(|route| route.path == path));
    // Where there is nothing, the operation that tells most says so.
    let operation = route.map_or(Operation::Status, |route| route.operation);
    let certificate = certificate_of(request.extensions());
    let credentials = Credentials { headers: request.headers(), certificate: certificate.as_deref() };
    match replica.ask_admin(credentials, operation) {
        Ok(grant) => {
            request.extensions_mut().insert(Arc::new(grant));
            next.run(request).await
        }
        Err(error) => aml::encode_error(&error).map(axum::body::Body::from),
    }
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Status<'a> {
    service: &'a str,
    version: &'static str,
    pid: u32,
    ready: bool,
    not_ready_because: Option<std::borrow::Cow<'static, str>>,
    degraded: Vec<crate::concerns::Concern>,
    busy: outrigger_protocol::busy::BusySnapshot,
    workers: Vec<WorkerStatus>,
    worker_restarts: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<UpstreamStatus>,
    models: Vec<NamedStatus>,
    backends: &'a [outrigger_backend::BackendInfo],
    configuration: &'a str,
}

async fn status(State(replica): State<Arc<Replica>>, Extension(grant): Extension<Arc<Grant>>) -> Response {
    let serving = replica.serving(&grant).ok();
    let scripts = serving.and_then(|serving| serving.scripts.as_ref());
    let status = Status {
        service: &replica.config.service.name,
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        ready: replica.is_ready(),
        not_ready_because: replica.not_ready_because(),
        degraded: replica.degraded(),
        busy: replica.busy.snapshot(),
        workers: scripts.map(crate::scripts::Scripts::status).unwrap_or_default(),
        worker_restarts: scripts.map_or(0, crate::scripts::Scripts::restarts),
        upstream: replica.upstream_status(),
        models: serving
            .map(|serving| {
                serving.models.iter().filter_map(|model| serving.models.status_of(model)).collect()
            })
            .unwrap_or_default(),
        backends: serving.map(|serving| serving.models.backends()).unwrap_or_default(),
        configuration: &replica.effective,
    };
    axum::Json(status).into_response()
}

/// Which keys there are, and when each was last used.
async fn keys(State(replica): State<Arc<Replica>>) -> Response {
    // What has been written down earlier is on the disk.
    let report = tokio::task::spawn_blocking(move || replica.key_report());
    match report.await {
        Ok(Some(report)) => axum::Json(report).into_response(),
        Ok(None) => axum::Json(KeyReport::default()).into_response(),
        Err(_) => {
            let error = CallError::new(ErrorCode::Internal, "the keys could not be listed");
            aml::encode_error(&error).map(axum::body::Body::from)
        }
    }
}

async fn nowhere() -> Response {
    aml::encode_error(&aml::not_found()).map(axum::body::Body::from)
}
