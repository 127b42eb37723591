//! `ModelInfer`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use http::HeaderMap;
use outrigger_auth::{Grant, OfModel};
use outrigger_protocol::error::CallError;
use outrigger_protocol::grpc;
use outrigger_protocol::oip::grpc::{Pieces as Reply, Target, encode_reply, is_raw, parse_request, target};
use outrigger_protocol::operation::Operation;
use outrigger_protocol::urgency::Urgency;

use super::super::given::Notes;
use super::super::infer::{Asked, held};
use super::super::model;
use super::super::openapi::paths;
use super::super::pieces::Pieces;
use super::super::reply::Answer;
use super::super::routes::Routes;
use super::super::wish::Wish;
use super::{Messages, answer, framed, said};
use crate::apart::apart;
use crate::replica::Replica;

pub(super) fn routes(routes: Routes) -> Routes {
    routes.at("/inference.GRPCInferenceService/ModelInfer", Operation::Infer, any(infer), paths::grpc)
}

async fn infer(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::Infer, request, async |gate, parts, body| {
        // The caller's place and turn are taken before the message is read that says which model is meant; `run` asks about that.
        let grant = gate.ask(&parts.headers, OfModel::AskedLater)?;
        let wish = wish(&parts.headers)?;
        let most = replica.config.limits.body;
        let message = Messages::new(&replica, &parts.headers, body, most).only().await?;
        let target = target(&message)?;
        let (reply, notes) = run(&replica, &grant, wish, &message, target).await?;
        answered(&replica, reply, notes)
    })
    .await
}

/// The answer with a result.
pub(super) fn answered(replica: &Replica, reply: Reply, notes: Notes) -> Answer {
    let body = Pieces::body(framed(held(replica, reply))?, Some(grpc::ok_trailers()));
    let mut response = grpc::encode_ok().map(|()| body);
    notes.put(response.headers_mut());
    Ok(response)
}

/// What the headers of a request say of when its answer is wanted.
pub(super) fn wish(headers: &HeaderMap) -> Result<Wish, CallError> {
    let mut wish = Wish::of(headers)?;
    wish.add(Urgency { deadline: grpc::timeout(headers)?, priority: None });
    Ok(wish)
}

/// Runs what a message asks for.
pub(super) async fn run(
    replica: &Replica,
    grant: &Grant,
    wish: Wish,
    message: &Bytes,
    target: Target<'_>,
) -> Result<(Reply, Notes), CallError> {
    let which = said(target.version);
    let (serving, model) = model::find(replica, grant, target.model, which)?;
    let asked = Asked { replica, grant, serving, model, which, wish, size: message.len() };
    let work = if is_raw(message) { 0 } else { message.len() };
    let limits = &replica.tensor_limits;
    let inferred =
        asked.run(|info, regions| apart(work, || parse_request(message, info, limits, regions))).await?;
    let notes = inferred.notes();
    Ok((inferred.write(encode_reply)?, notes))
}
