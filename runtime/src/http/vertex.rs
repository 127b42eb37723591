//! Vertex AI's two routes, which are wherever `AIP_HEALTH_ROUTE` and `AIP_PREDICT_ROUTE` say.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use http::request::Parts;
use http::{Method, Uri, header};
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::operation::Operation;
use outrigger_protocol::{aml, rows, vertex};
use tower::ServiceExt;

use super::infer::Asked;
use super::openapi::paths;
use super::pieces::Pieces;
use super::reply::{Answer, Gate, answer, method_not_allowed, plain};
use super::routes::Routes;
use super::wish::Wish;
use super::{model, score, tensors};
use crate::apart::apart;
use crate::config::{Contract, VertexConfig};
use crate::replica::Replica;

/// Where they are for the router.
const HEALTH: &str = "/vertex/health";
const PREDICT: &str = "/vertex/predict";

/// The routes.
pub(super) fn routes(routes: Routes) -> Routes {
    let routes = routes.of(Contract::Vertex).at(HEALTH, Operation::Health, any(health), paths::vertex_health);
    routes.at(PREDICT, Operation::Score, any(predict), paths::vertex_predict)
}

/// Puts in front of a router what has its routes found at the paths that are configured. These go before others that are there.
pub(super) fn at_configured_paths(router: Router, config: &VertexConfig) -> Router {
    if config.health_route.is_none() && config.predict_route.is_none() {
        return router;
    }
    let config = config.clone();
    Router::new().fallback(async move |mut request: Request| {
        let path = request.uri().path();
        let inner = [(&config.health_route, HEALTH), (&config.predict_route, PREDICT)]
            .into_iter()
            .find(|(route, _)| route.as_deref() == Some(path));
        if let Some((_, inner)) = inner {
            *request.uri_mut() = Uri::from_static(inner);
        }
        router.oneshot(request).await
    })
}

fn wrong_method() -> CallError {
    method_not_allowed(aml::METHOD_NOT_ALLOWED_FOR_URL)
}

async fn health(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Contract::Vertex, Operation::Health, request, async |_, _, parts, _| {
        match parts.method {
            Method::GET | Method::HEAD if replica.is_ready() => Ok(plain("application/json", "{}")),
            Method::GET | Method::HEAD => {
                let reason = replica.not_ready_because().unwrap_or_default();
                Err(CallError::new(ErrorCode::NotReady, reason))
            }
            _ => Err(wrong_method()),
        }
    })
    .await
}

/// A call of the script, or of the server behind, where there is one; else of a model.
async fn predict(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Contract::Vertex, Operation::Score, request, async |gate, ids, parts, body| {
        if parts.method != Method::POST {
            return Err(wrong_method());
        }
        if replica.has_lane() {
            let response = score::answer_score(&replica, gate, ids, parts, body).await?;
            return as_predictions(&replica, response).await;
        }
        gate.check_for(Operation::Infer, &parts.headers)?;
        let name = model::name_or_default(&replica, None)?;
        call(&replica, gate, &name, parts, body).await
    })
    .await
}

/// A script's result where it belongs. What is no JSON, or a stream, or has another status than 200, is the script's own affair.
async fn as_predictions(replica: &Replica, response: Response) -> Answer {
    let json = response.headers().get(header::CONTENT_TYPE).is_some_and(|value| value == "application/json");
    let length = http_body::Body::size_hint(response.body()).exact();
    if !json || !response.status().is_success() || length.is_none() {
        return Ok(response);
    }
    let (mut head, body) = response.into_parts();
    let whole = axum::body::to_bytes(body, replica.config.limits.answer).await;
    let broken = |_| CallError::new(ErrorCode::Internal, "the answer broke off");
    let whole: Bytes = whole.map_err(broken)?;
    head.headers.remove(header::CONTENT_LENGTH);
    Ok(Response::from_parts(head, Pieces::body(vertex::predictions(whole), None)))
}

async fn call(replica: &Replica, gate: &Gate<'_>, name: &str, parts: Parts, body: Body) -> Answer {
    let grant = gate.ask_for(Operation::Infer, &parts.headers, Some(name))?;
    let (serving, model) = model::find(replica, &grant, name, None)?;
    let wish = Wish::of(&parts.headers)?;
    let body = tensors::read(replica, &parts.headers, body, None).await?;
    let size = body.len();
    let asked = Asked { replica, grant: &grant, serving, model, which: None, wish, size };
    let limits = &replica.tensor_limits;
    let inferred = asked.run(|info, _| apart(size, || rows::parse_instances(&body, info, limits))).await?;
    let notes = inferred.notes();
    let predictions = inferred.write(rows::encode_predictions)?;
    let mut response = plain("application/json", replica.busy.hold(predictions));
    notes.put(response.headers_mut());
    Ok(response)
}
