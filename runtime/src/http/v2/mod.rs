//! The Open Inference Protocol's REST routes. What they do is in [`model`](super::model) and [`infer`](super::infer), which gRPC has too.

mod infer;
mod memory;
mod models;
mod repository;

pub(super) use memory::RegionWanted;
pub(super) use repository::{Control, IndexWanted};

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
use outrigger_protocol::oip::{self, messages};
use outrigger_protocol::operation::Operation;
use outrigger_protocol::{aml, headers};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::body;
use super::openapi::paths;
use super::reply::{self, Answer, Gate, method_not_allowed, plain};
use super::routes::Routes;
use crate::config::Contract;
use crate::replica::Replica;

/// The routes.
pub(super) fn routes(routes: Routes) -> Routes {
    let routes = routes
        .of(Contract::Oip)
        .at("/v2", Operation::ServerMetadata, any(server), paths::server)
        .at("/v2/health/live", Operation::Health, any(live), paths::server_live)
        .at("/v2/health/ready", Operation::Health, any(ready), paths::server_ready);
    memory::routes(repository::routes(infer::routes(models::routes(routes))))
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

/// The same for a route of one model, once the caller may do that with it: with the caller's grant, and what the URL names.
async fn of_model(
    replica: &Replica,
    operation: Operation,
    path: NamePath,
    request: Request,
    method: Method,
    then: impl AsyncFnOnce(&Gate<'_>, Grant, Named, Parts, Body) -> Answer,
) -> Response {
    answer(replica, operation, request, method, async |gate, parts, body| {
        let named = named(path);
        let grant = gate.ask(&parts.headers, named.as_ref().map(|named| &*named.name))?;
        let no_name = || CallError::new(ErrorCode::ModelNotFound, "the name is not UTF-8");
        then(gate, grant, named.ok_or_else(no_name)?, parts, body).await
    })
    .await
}

/// The parts of a URL that vary: a name, and what may come after it.
struct Named {
    name: String,
    /// A version, by its own name or by what it is called; nothing if the URL does not say.
    which: Option<String>,
}

/// What varies in a URL, escapes decoded.
type NamePath = Result<Path<Vec<String>>, PathRejection>;

fn named(path: NamePath) -> Option<Named> {
    let mut parts = path.ok()?.0.into_iter();
    Some(Named { name: parts.next()?, which: parts.next() })
}

async fn server(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::ServerMetadata, request, Method::GET, async |gate, parts, _| {
        gate.ask(&parts.headers, None)?;
        json(&messages::server_metadata(replica.shared_memory.is_on()))
    })
    .await
}

async fn live(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::Health, request, Method::GET, async |_, _, _| {
        Ok(plain("application/json", oip::server_live(true)))
    })
    .await
}

async fn ready(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::Health, request, Method::GET, async |_, _, _| {
        Ok(with_status(oip::server_ready(replica.is_ready()), replica.is_ready()))
    })
    .await
}

/// A message as JSON.
fn json(message: &impl Serialize) -> Answer {
    let unwritable = |_| CallError::new(ErrorCode::Internal, "the answer has no JSON form");
    Ok(plain("application/json", serde_json::to_vec(message).map_err(unwritable)?))
}

/// The body of a request for anything but inference, which may be empty.
async fn asked<T: DeserializeOwned + Default>(replica: &Replica, body: Body) -> Result<T, CallError> {
    let body = body::read_small(body, &replica.config.limits).await?;
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&body).map_err(|error| {
        let code = if error.is_data() { ErrorCode::BadRequest } else { ErrorCode::MalformedJson };
        CallError::new(code, format!("the body is not what is expected: {error}"))
    })
}

/// The protocol's body; where it says no, with the headers of an error.
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
