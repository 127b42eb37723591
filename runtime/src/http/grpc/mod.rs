//! The Open Inference Protocol over gRPC, on the listener that has its REST routes, too. What it does is in [`model`](super::model) and
//! [`infer`](super::infer).

mod health;
mod infer;
mod memory;
mod messages;
mod models;
mod reflection;
mod stream;
mod tensorflow;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Version};
use outrigger_auth::{Grant, OfModel};
use outrigger_protocol::aml;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::grpc::{self, Prefix};
use outrigger_protocol::operation::Operation;
use prost::Message;

use super::pieces::Pieces;
use super::reply::{self, Answer, Gate, method_not_allowed};
use super::routes::Routes;
use crate::config::Contract;
use crate::replica::Replica;
use messages::Messages;

pub(super) use health::routes as health_routes;
pub(super) use stream::is_stream;

/// The routes.
pub(super) fn routes(routes: Routes) -> Routes {
    let routes = health::routes(routes.of(Contract::Grpc));
    tensorflow::routes(reflection::routes(memory::routes(models::routes(stream::routes(infer::routes(
        routes,
    ))))))
}

/// As [`reply::answer`], for gRPC's requests. Others are refused in words that they understand.
async fn answer(
    replica: &Replica,
    operation: Operation,
    request: Request,
    then: impl AsyncFnOnce(&Gate<'_>, Parts, Body) -> Answer,
) -> Response {
    // Without HTTP/2 there is no place for the status.
    let speaks = request.version() == Version::HTTP_2 && grpc::is_grpc(request.headers());
    let contract = if speaks { Contract::Grpc } else { Contract::Aml };
    reply::answer(replica, contract, operation, request, async |gate, _, parts, body| {
        if contract != Contract::Grpc {
            let text = "this URL takes gRPC: HTTP/2 and content-type application/grpc";
            return Err(CallError::new(ErrorCode::UnsupportedMediaType, text));
        }
        if parts.method != Method::POST {
            return Err(method_not_allowed(aml::METHOD_NOT_ALLOWED_FOR_URL));
        }
        then(gate, parts, body).await
    })
    .await
}

/// Who asks, and what.
struct Asked<'a, M> {
    gate: &'a Gate<'a>,
    headers: &'a HeaderMap,
    grant: Grant,
    message: M,
}

/// Answers a message that is no call with another one. Which model it is about is asked for by `then`.
async fn unary<M: Message + Default, R: Message>(
    replica: &Arc<Replica>,
    operation: Operation,
    request: Request,
    then: impl AsyncFnOnce(Asked<'_, M>) -> Result<R, CallError>,
) -> Response {
    answer(replica, operation, request, async |gate, parts, body| {
        let grant = gate.ask(&parts.headers, OfModel::AskedLater)?;
        let mut messages = match operation.public() {
            true => Messages::small(replica, &parts.headers, body),
            false => Messages::new(replica, &parts.headers, body, replica.config.limits.message),
        };
        let message = messages.only().await?;
        let malformed = |error| CallError::new(ErrorCode::BadRequest, format!("malformed message: {error}"));
        let message = M::decode(message).map_err(malformed)?;
        let said = then(Asked { gate, headers: &parts.headers, grant, message }).await?;
        let pieces = framed([Bytes::from(said.encode_to_vec())])?;
        Ok(grpc::encode_ok().map(|()| Pieces::body(pieces, Some(grpc::ok_trailers()))))
    })
    .await
}

/// The pieces of a message, with what stands before it.
fn framed(pieces: impl IntoIterator<Item = Bytes>) -> Result<Vec<Bytes>, CallError> {
    let mut framed = vec![Bytes::new()];
    framed.extend(pieces);
    let prefix = Prefix::encode(framed.iter().map(Bytes::len).sum())?;
    if let Some(first) = framed.first_mut() {
        *first = Bytes::copy_from_slice(&prefix);
    }
    Ok(framed)
}

/// A name that is only there if it says something.
fn said(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}
