//! The Open Inference Protocol's REST routes, for models without a script.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use http::Method;
use http::request::Parts;
use outrigger_auth::Grant;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::oip::{self, InferReply};
use outrigger_protocol::operation::Operation;
use outrigger_protocol::{aml, headers};

use super::body;
use super::reply::{self, Answer, Contract, Gate, method_not_allowed, plain};
use super::routes::Routes;
use super::wish::Wish;
use crate::models::{NamedModel, ServedModel};
use crate::replica::{Replica, Serving};
use crate::scheduler;

/// The routes.
pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .at("/v2", Operation::ServerMetadata, any(server))
        .at("/v2/health/live", Operation::Health, any(live))
        .at("/v2/health/ready", Operation::Health, any(ready))
        .at("/v2/models/{model}", Operation::ModelMetadata, any(metadata))
        .at("/v2/models/{model}/ready", Operation::ModelMetadata, any(model_ready))
        .at("/v2/models/{model}/infer", Operation::Infer, any(infer))
        .at("/v2/models/{model}/versions/{version}", Operation::ModelMetadata, any(metadata))
        .at("/v2/models/{model}/versions/{version}/ready", Operation::ModelMetadata, any(model_ready))
        .at("/v2/models/{model}/versions/{version}/infer", Operation::Infer, any(infer))
}

/// As [`reply::answer`], for a route that takes one method.
async fn answer(
    replica: &Replica,
    operation: Operation,
    request: Request,
    method: Method,
    then: impl AsyncFnOnce(&Gate<'_>, Parts, Body) -> Answer,
) -> Response {
    reply::answer(replica, Contract::Oip, operation, request, async |gate, _, parts, body| {
        let allowed = parts.method == method || (method == Method::GET && parts.method == Method::HEAD);
        if !allowed {
            return Err(method_not_allowed(aml::METHOD_NOT_ALLOWED_FOR_URL));
        }
        then(gate, parts, body).await
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

/// `/v2/models/{model}` and, where the URL has it, `versions/{version}`.
type ModelPath = Result<Path<Vec<String>>, PathRejection>;

/// What a URL names.
struct Named<'a> {
    serving: &'a Serving,
    model: &'a Arc<NamedModel>,
    /// The version, by its own name or by what it is called; nothing if the URL does not say.
    which: Option<String>,
}

/// The model that a URL names, once the caller may know of it. The name is looked up and never becomes a path.
fn find<'a>(
    replica: &'a Replica,
    path: ModelPath,
    parts: &Parts,
    gate: &Gate<'_>,
) -> Result<(Grant, Named<'a>, Arc<ServedModel>), CallError> {
    let path = path.map_or_else(|_| Vec::new(), |Path(path)| path);
    let name = path.first().map(String::as_str);
    let grant = gate.ask(&parts.headers, name)?;
    let not_found = |text: &'static str| CallError::new(ErrorCode::ModelNotFound, text);
    let name = name.ok_or_else(|| not_found("the model's name is not UTF-8"))?;
    let serving = replica.serving(&grant)?;
    let model = serving.model(&grant, name)?;
    let which = path.into_iter().nth(1);
    let version = model.version(which.as_deref())?;
    Ok((grant, Named { serving, model, which }, version))
}

async fn server(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::ServerMetadata, request, Method::GET, async |gate, parts, _| {
        gate.ask(&parts.headers, None)?;
        Ok(ok(oip::server_metadata()))
    })
    .await
}

async fn live(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::Health, request, Method::GET, async |_, _, _| Ok(ok(oip::server_live(true))))
        .await
}

async fn ready(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::Health, request, Method::GET, async |_, _, _| {
        Ok(with_status(oip::server_ready(replica.is_ready()), replica.is_ready()))
    })
    .await
}

/// The protocol's body; where it says no, with the headers of an error.
fn ok(json: Bytes) -> Response {
    oip::encode_ok(json).map(Body::from)
}

fn with_status(json: Bytes, ready: bool) -> Response {
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

async fn metadata(State(replica): State<Arc<Replica>>, path: ModelPath, request: Request) -> Response {
    answer(&replica, Operation::ModelMetadata, request, Method::GET, async |gate, parts, _| {
        let (_, named, served) = find(&replica, path, &parts, gate)?;
        // Of a version that is named, what it is; else which there are, and what calls get.
        let all = named.model.versions();
        let version: Vec<&str> = match &named.which {
            Some(_) => vec![&served.version],
            None => all.iter().map(|version| version.version.as_str()).collect(),
        };
        if let Some((platform, info)) = served.known() {
            return Ok(ok(oip::model_metadata(&served.name, &version, platform, info)));
        }
        // What it takes and gives is not known before it has been loaded once. That is as much work as a call, so only who may call has it.
        let _call = gate.ask_for(Operation::Infer, &parts.headers, Some(&served.name))?;
        let patience = Wish::of(&parts.headers)?.patience(replica.config.queue.wait);
        let models = &named.serving.models;
        let model = models.lease_version(named.model, named.which.as_deref(), patience.into_std()).await?;
        let own = [model.version.as_str()];
        let version = if named.which.is_some() { &own[..] } else { &version[..] };
        Ok(ok(oip::model_metadata(&model.name, version, &model.platform, &model.info)))
    })
    .await
}

async fn model_ready(State(replica): State<Arc<Replica>>, path: ModelPath, request: Request) -> Response {
    answer(&replica, Operation::ModelMetadata, request, Method::GET, async |gate, parts, _| {
        let (_, named, model) = find(&replica, path, &parts, gate)?;
        let ready = replica.is_ready_for(named.serving, &model);
        Ok(with_status(oip::model_ready(&model.name, ready), ready))
    })
    .await
}

async fn infer(State(replica): State<Arc<Replica>>, path: ModelPath, request: Request) -> Response {
    answer(&replica, Operation::Infer, request, Method::POST, async |gate, parts, body| {
        let (grant, Named { serving, model: named, which }, _) = find(&replica, path, &parts, gate)?;
        let wish = Wish::of(&parts.headers)?;
        let (body, _reserved) = body::read(body, &replica.config.limits, &replica.busy).await?;
        // From here on it does not make way for others; who sends slowly does not keep it.
        let patience = wish.patience(replica.config.queue.wait).into_std();
        let (model, counted) = replica.lease(serving, named, which.as_deref(), patience).await?;
        let size = body.len();
        let parse = |info: &_| apart(size, || oip::parse_infer(&body, info, &replica.tensor_limits));
        let call = parse(&model.info).inspect_err(|_| {
            // A version may have other inputs than the one before it, of which callers do not know.
            if named.was_taken(|info| parse(info).is_ok()) {
                model.begin().ended(false);
            }
        })?;
        drop(body);
        let terms = wish.terms(&grant, named.kind, size, serving.infer_admission());
        let slot = replica.admit(&grant, terms, counted).await?;
        let deadline = slot.deadline();
        let until = deadline.map(tokio::time::Instant::into_std);
        let (picked, begun) = (model.pick(), model.begin());
        let device = picked.header();
        let run = serving.models.infer(picked, call.inputs, call.outputs.clone(), Some(slot), until);
        let result = match deadline {
            None => run.await,
            // A run that has not begun is not begun any more; one that has is cancelled, as far as its backend can.
            Some(deadline) => {
                tokio::time::timeout_at(deadline, run).await.unwrap_or_else(|_| Err(scheduler::expired()))
            }
        };
        let tensors = match result {
            Ok(tensors) => tensors,
            Err(error) => {
                begun.ended_as(&error);
                return Err(error.on(device));
            }
        };
        let bytes = tensors.iter().map(|tensor| tensor.data().len()).sum();
        let _unsent = replica.busy.unsent_guard(bytes);
        let reply = InferReply {
            model_name: &model.name,
            model_version: Some(&model.version),
            id: call.id.as_deref(),
            model: &model.info,
            outputs: &call.outputs,
            tensors: &tensors,
        };
        let encoded = apart(bytes, || oip::encode_infer(&reply));
        begun.ended(encoded.is_ok());
        let encoded = encoded.map_err(|error| error.on(device.clone()))?;
        let mut response = ok(replica.busy.hold(encoded));
        if let Some(device) = device {
            response.headers_mut().insert(headers::DEVICE, device);
        }
        Ok(response)
    })
    .await
}
