//! The *observe* listener: probes, the busy signal and metrics. Read-only, without a key, and apart from scoring, so that
//! a busy replica still answers.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::operation::Operation;
use outrigger_protocol::{aml, knative};
use serde::Serialize;

use super::openapi::paths;
use super::routes::Routes;
use super::{grpc, keda, openapi, orca, rpc, watch};
use crate::concerns::Concern;
use crate::replica::Replica;

/// All routes of the listener.
pub(super) fn routes(replica: Option<&Replica>) -> Routes {
    let routes = Routes::new("observe")
        .at("/", Operation::Health, get(async || aml::HEALTHY), paths::healthy)
        .at("/live", Operation::Health, get(async || "live\n"), paths::live)
        .at("/started", Operation::Health, get(started), paths::started)
        .at("/ready", Operation::Health, get(ready), paths::ready)
        .at("/health", Operation::Health, get(health), paths::health)
        .at("/v2/health/live", Operation::Health, get(async || "live\n"), paths::live)
        .at("/v2/health/ready", Operation::Health, get(ready), paths::ready)
        .at("/busy", Operation::Observe, get(busy), paths::busy)
        .at("/metrics", Operation::Observe, get(metrics), paths::metrics);
    openapi::beside(grpc::health_routes(keda::routes(orca::routes(routes))), Operation::Observe, replica)
}

/// The listener.
pub(crate) fn router(replica: Arc<Replica>) -> Router {
    let routes = routes(Some(&replica));
    let served = routes.served();
    let router = routes.router().fallback(nowhere).method_not_allowed_fallback(wrong_method);
    router.layer(Extension(served)).with_state(replica)
}

async fn ready(State(replica): State<Arc<Replica>>) -> Response {
    match replica.not_ready_because() {
        None => "ready\n".into_response(),
        Some(reason) => {
            aml::encode_error(&CallError::new(ErrorCode::NotReady, reason)).map(axum::body::Body::from)
        }
    }
}

/// Whether it has come up, whatever has become of it since.
async fn started(State(replica): State<Arc<Replica>>) -> Response {
    if replica.is_started() {
        return "started\n".into_response();
    }
    let reason = replica.not_ready_because().unwrap_or("it is being loaded".into());
    aml::encode_error(&CallError::new(ErrorCode::NotReady, reason)).map(axum::body::Body::from)
}

/// How a replica is.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Health {
    /// That it answers.
    live: bool,
    /// Whether everything has been loaded once.
    started: bool,
    /// Whether calls are taken.
    ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_ready_because: Option<std::borrow::Cow<'static, str>>,
    /// What is not as it should be, also where calls are taken all the same.
    degraded: Vec<Concern>,
}

/// A report, and no probe: it is there whatever it says.
async fn health(State(replica): State<Arc<Replica>>) -> Response {
    let not_ready_because = replica.not_ready_because();
    let (started, ready) = (replica.is_started(), not_ready_because.is_none());
    let degraded = replica.degraded();
    axum::Json(Health { live: true, started, ready, not_ready_because, degraded }).into_response()
}

async fn busy(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    if watch::is_asked(request.uri().query().unwrap_or_default()) {
        return watch::answer(&replica);
    }
    // A snapshot is numbers and flags; nothing in it can fail to be JSON.
    let json = serde_json::to_vec(&replica.busy.snapshot()).unwrap_or_default();
    typed("application/json", json.into())
}

/// Prometheus's text, or what Knative's autoscaler asks for at the same place.
async fn metrics(State(replica): State<Arc<Replica>>, headers: HeaderMap) -> Response {
    if knative::is_asked(&headers) {
        let stat = knative::encode(&replica.config.service.pod, &replica.busy.snapshot());
        return typed(knative::MEDIA_TYPE, stat.into());
    }
    // It takes a while where there are many models.
    let encoded = tokio::task::spawn_blocking(move || replica.metrics.encode()).await;
    match encoded.map_err(|error| error.to_string()).and_then(|text| text.map_err(|error| error.to_string()))
    {
        Ok(text) => typed("text/plain; version=0.0.4; charset=utf-8", text.into()),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn nowhere(headers: HeaderMap) -> Response {
    if outrigger_protocol::grpc::is_grpc(&headers) {
        return rpc::unimplemented();
    }
    aml::encode_error(&aml::not_found()).map(axum::body::Body::from)
}

pub(super) async fn wrong_method() -> Response {
    aml::encode_error(&super::reply::method_not_allowed(aml::METHOD_NOT_ALLOWED_FOR_URL))
        .map(axum::body::Body::from)
}

fn typed(content_type: &'static str, body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))], body).into_response()
}
