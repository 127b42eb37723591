//! The Open Inference Protocol's REST routes, for models without a script.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use http::Method;
use http::request::Parts;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::oip::{self, InferReply};
use outrigger_protocol::operation::Operation;
use outrigger_protocol::{aml, headers};

use super::body;
use super::reply::{self, Answer, Contract, method_not_allowed, plain};
use crate::replica::Replica;

/// Models have one version each here, and this is its name.
const VERSION: &str = "1";

/// The routes.
pub(super) fn routes() -> Router<Arc<Replica>> {
    Router::new()
        .route("/v2", any(server))
        .route("/v2/health/live", any(live))
        .route("/v2/health/ready", any(ready))
        .route("/v2/models/{model}", any(metadata))
        .route("/v2/models/{model}/ready", any(model_ready))
        .route("/v2/models/{model}/infer", any(infer))
        .route("/v2/models/{model}/versions/{version}", any(metadata))
        .route("/v2/models/{model}/versions/{version}/ready", any(model_ready))
        .route("/v2/models/{model}/versions/{version}/infer", any(infer))
}

/// As [`reply::answer`], for a route that takes one method.
async fn answer(
    replica: &Replica,
    operation: Operation,
    request: Request,
    method: Method,
    then: impl AsyncFnOnce(Parts, Body) -> Answer,
) -> Response {
    reply::answer(replica, Contract::Oip, operation, request, async |_, parts, body| {
        let allowed = parts.method == method || (method == Method::GET && parts.method == Method::HEAD);
        if !allowed {
            return Err(method_not_allowed(aml::METHOD_NOT_ALLOWED_FOR_URL));
        }
        then(parts, body).await
    })
    .await
}

/// Work on this many bytes of JSON or tensors takes about a millisecond.
const MUCH: usize = 256 * 1024;

/// Does work on `bytes` bytes; where they are many, so that other requests on this thread go on meanwhile.
fn apart<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let threads =
        tokio::runtime::Handle::current().runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread;
    if bytes > MUCH && threads { tokio::task::block_in_place(work) } else { work() }
}

/// The model's name from the URL. It is looked up and never becomes a path.
fn model_name(path: Result<Path<Vec<String>>, PathRejection>) -> Result<String, CallError> {
    let not_found = |text: &'static str| CallError::new(ErrorCode::ModelNotFound, text);
    let Ok(Path(parts)) = path else { return Err(not_found("the model's name is not UTF-8")) };
    let mut parts = parts.into_iter();
    let name = parts.next().unwrap_or_default();
    match parts.next() {
        Some(version) if version != VERSION => Err(not_found("this version of the model is not served here")),
        _ => Ok(name),
    }
}

async fn server(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::ServerMetadata, request, Method::GET, async |parts, _| {
        replica.authorize(&parts.headers, Operation::ServerMetadata, None)?;
        Ok(oip::encode_ok(oip::server_metadata()))
    })
    .await
}

async fn live(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::Health, request, Method::GET, async |_, _| {
        Ok(oip::encode_ok(oip::server_live(true)))
    })
    .await
}

async fn ready(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::Health, request, Method::GET, async |_, _| {
        Ok(with_status(oip::server_ready(replica.is_ready()), replica.is_ready()))
    })
    .await
}

/// The protocol's body; where it says no, with the headers of an error.
fn with_status(json: Bytes, ready: bool) -> http::Response<Bytes> {
    let mut response = plain("application/json", json);
    if !ready {
        let error = oip::encode_error(&CallError::new(ErrorCode::NotReady, "not ready"));
        *response.status_mut() = error.status();
        for name in [headers::CODE, headers::RETRYABLE] {
            if let Some(value) = error.headers().get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
    }
    response
}

async fn metadata(
    State(replica): State<Arc<Replica>>,
    path: Result<Path<Vec<String>>, PathRejection>,
    request: Request,
) -> Response {
    answer(&replica, Operation::ModelMetadata, request, Method::GET, async |parts, _| {
        let name = model_name(path)?;
        replica.authorize(&parts.headers, Operation::ModelMetadata, Some(&name))?;
        let serving = replica.serving()?;
        let model = serving.models.get(&name)?;
        Ok(oip::encode_ok(oip::model_metadata(&model.name, &[VERSION], &model.platform, &model.info)))
    })
    .await
}

async fn model_ready(
    State(replica): State<Arc<Replica>>,
    path: Result<Path<Vec<String>>, PathRejection>,
    request: Request,
) -> Response {
    answer(&replica, Operation::ModelMetadata, request, Method::GET, async |parts, _| {
        let name = model_name(path)?;
        replica.authorize(&parts.headers, Operation::ModelMetadata, Some(&name))?;
        let serving = replica.serving()?;
        let model = serving.models.get(&name)?;
        Ok(with_status(oip::model_ready(&model.name, replica.is_ready()), replica.is_ready()))
    })
    .await
}

async fn infer(
    State(replica): State<Arc<Replica>>,
    path: Result<Path<Vec<String>>, PathRejection>,
    request: Request,
) -> Response {
    answer(&replica, Operation::Infer, request, Method::POST, async |parts, body| {
        let name = model_name(path)?;
        replica.authorize(&parts.headers, Operation::Infer, Some(&name))?;
        let serving = replica.serving()?;
        let model = serving.models.get(&name)?;
        let (body, _reserved) = body::read(body, &replica.config.limits, &replica.busy).await?;
        let call = apart(body.len(), || oip::parse_infer(&body, &model.info, &replica.tensor_limits))?;
        drop(body);
        let slot = replica.slots.admit(serving.infer_kind()).await?;
        let tensors = serving.models.infer(model, call.inputs, call.outputs.clone(), Some(slot)).await?;
        let reply = InferReply {
            model_name: &model.name,
            model_version: Some(VERSION),
            id: call.id.as_deref(),
            model: &model.info,
            outputs: &call.outputs,
            tensors: &tensors,
        };
        let bytes = reply.tensors.iter().map(|tensor| tensor.data().len()).sum();
        Ok(oip::encode_ok(apart(bytes, || oip::encode_infer(&reply))?))
    })
    .await
}
