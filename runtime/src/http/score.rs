//! The *score* listener: AzureML's contract, and the doors of the others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use axum::routing::any;
use axum::{Extension, Router};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, header};
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::grpc::is_grpc;
use outrigger_protocol::ids::RequestIds;
use outrigger_protocol::operation::Operation;
use outrigger_protocol::{aml, headers};

use super::openapi::paths;
use super::reply::{Answer, Gate, answer, method_not_allowed, plain};
use super::routes::Routes;
use super::wish::Wish;
use super::{body, grpc, openapi, passing, sagemaker, token, v2, vertex};
use crate::config::Contract;
use crate::models;
use crate::replica::Replica;
use crate::scheduler::Admission;
use crate::scripts::{self, ReplyHead, ScriptAnswer, ScriptCall};
use crate::telemetry::{self, Phase};

/// All routes of the listener.
pub(super) fn routes(replica: Option<&Replica>) -> Routes {
    let spoken = replica.map_or(&Contract::ALL[..], |replica| &replica.config.score.contracts.spoken);
    let routes = Routes::spoken("score", spoken).at("/", Operation::Health, any(root), paths::root);
    let routes = token::routes(openapi::on_score(routes, replica), replica)
        .of(Contract::Aml)
        .at("/score", Operation::Score, any(score), paths::score)
        .at("/swagger.json", Operation::Swagger, any(swagger_json), paths::swagger);
    vertex::routes(sagemaker::routes(grpc::routes(v2::routes(routes))))
}

/// The listener.
pub(crate) fn router(replica: Arc<Replica>) -> Router {
    let routes = routes(Some(&replica));
    let served = routes.served();
    let mut router = routes.router().fallback(any(nowhere)).layer(Extension(served));
    if replica.config.upstream.as_ref().is_some_and(|upstream| !upstream.paths.is_empty()) {
        router = router.layer(from_fn_with_state(Arc::clone(&replica), passing::passed));
    }
    let vertex = replica.config.score.contracts.vertex.clone();
    vertex::at_configured_paths(router.with_state(replica), &vertex)
}

/// `GET /`: `Healthy`, as the system we succeed says it.
async fn root(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Contract::Aml, Operation::Health, request, async |_, _, parts, _| match parts.method {
        Method::GET | Method::HEAD => Ok(plain("text/html; charset=utf-8", aml::HEALTHY)),
        Method::OPTIONS => Ok(options()),
        _ => Err(method_not_allowed(aml::METHOD_NOT_ALLOWED_FOR_URL)),
    })
    .await
}

async fn score(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Contract::Aml, Operation::Score, request, async |gate, ids, parts, body| {
        answer_score(&replica, gate, ids, parts, body).await
    })
    .await
}

pub(super) async fn answer_score(
    replica: &Replica,
    gate: &Gate<'_>,
    ids: &RequestIds,
    mut parts: Parts,
    body: Body,
) -> Answer {
    let method = match parts.method {
        Method::POST => scripts::Method::Post,
        Method::GET => scripts::Method::Get,
        Method::OPTIONS => scripts::Method::Options,
        Method::HEAD => scripts::Method::Head,
        _ => return Err(method_not_allowed(aml::METHOD_NOT_ALLOWED_FOR_URL)),
    };
    let taken = replica.script_takes(parts.method.as_str());
    if taken != Some(true) {
        match method {
            // A preflight carries no credentials, so it is answered without.
            scripts::Method::Options => {
                let mut response = plain("text/html; charset=utf-8", Bytes::new());
                aml::mark(response.headers_mut(), false, None);
                return Ok(response);
            }
            scripts::Method::Head => return Err(method_not_allowed(aml::METHOD_NOT_ALLOWED)),
            // A native script may take one of them alone.
            scripts::Method::Get | scripts::Method::Post if taken.is_some() => {
                return Err(method_not_allowed(aml::METHOD_NOT_ALLOWED));
            }
            scripts::Method::Get | scripts::Method::Post => {}
        }
    }
    let grant = gate.ask(&parts.headers, None)?;
    let serving = replica.serving(&grant)?;
    if let Some(upstream) = &serving.upstream {
        let target = passing::scoring_target(upstream, parts.uri.query())?;
        return passing::pass_on(replica, upstream, &grant, ids, target, parts, body).await;
    }
    let Some(scripts) = &serving.scripts else {
        let text = "this replica has no entry script; its models are at /v2/models/{name}/infer";
        return Err(CallError::new(ErrorCode::NotFound, text));
    };
    let wish = Wish::of(&parts.headers)?;
    let (body, memory) =
        body::read_for_script(body, &replica.config.limits, &replica.busy, scripts.pool()).await?;
    let terms = wish.terms(&grant, models::SCRIPT, body.len(), Admission::Ahead);
    let slot = replica.admit(&grant, terms, None).await?;
    telemetry::carry(&mut parts.headers);
    let call = ScriptCall {
        request_id: ids.request_value().clone(),
        trace: telemetry::carried_lines(),
        method,
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: forwarded(parts.headers, scripts.ready().headers),
        body,
        memory: Some(memory),
    };
    let answer = scripts.call(call, slot).await?;
    let since = Instant::now();
    let (mut response, devices) = match answer {
        ScriptAnswer::Json { text, run, devices } => {
            (aml::encode_ok(text, run).map(|text| Body::from(replica.busy.hold(text))), devices)
        }
        ScriptAnswer::Whole { head, body, run, devices } => {
            (made_by_script(head, Some(run), Body::from(replica.busy.hold(body))), devices)
        }
        ScriptAnswer::Stream { head, body, run, devices } => {
            (made_by_script(head, Some(run), Body::new(body)), devices)
        }
    };
    if let Some(devices) = devices {
        response.headers_mut().insert(headers::DEVICE, devices);
    }
    telemetry::spent(Phase::CopyOut, since);
    Ok(response)
}

/// An answer whose status and headers are the script's.
fn made_by_script(head: ReplyHead, run: Option<Duration>, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    aml::mark(response.headers_mut(), head.failed || head.status.is_server_error(), run);
    response
}

/// The headers as the script may see them: those that it asks for, without the caller's credential.
fn forwarded(mut headers: HeaderMap, wanted: scripts::Headers) -> Option<HeaderMap> {
    match wanted {
        scripts::Headers::None => None,
        scripts::Headers::Some => {
            let mut some = HeaderMap::new();
            for name in [header::CONTENT_TYPE, header::ACCEPT, header::ACCEPT_ENCODING] {
                if let Some(value) = headers.remove(&name) {
                    some.insert(name, value);
                }
            }
            Some(some)
        }
        scripts::Headers::All => {
            headers.remove(header::AUTHORIZATION);
            // Meant for a proxy on the way, if it has come this far at all.
            headers.remove(header::PROXY_AUTHORIZATION);
            Some(headers)
        }
    }
}

async fn swagger_json(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Contract::Aml, Operation::Swagger, request, async |gate, _, parts, _| {
        match parts.method {
            Method::GET | Method::HEAD => {
                let grant = gate.ask(&parts.headers, None)?;
                let version = query_value(parts.uri.query().unwrap_or_default(), "version");
                match replica.serving(&grant)?.swagger.get(version.as_deref()) {
                    Ok(json) => {
                        let mut response = plain("application/json", json);
                        aml::mark(response.headers_mut(), false, None);
                        Ok(response)
                    }
                    Err(text) => Err(CallError::new(ErrorCode::NotFound, text)),
                }
            }
            Method::OPTIONS => Ok(options()),
            _ => Err(method_not_allowed(aml::METHOD_NOT_ALLOWED_FOR_URL)),
        }
    })
    .await
}

/// Every other URL. Nobody learns here what there is, so no key is asked for, but where `/*` goes to an upstream.
async fn nowhere(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    if passing::takes(&replica, request.uri().path()) {
        return passing::forward(&replica, request).await;
    }
    let contract = match request.uri().path() {
        _ if is_grpc(request.headers()) => Contract::Grpc,
        path if path.starts_with("/v2/") => Contract::Oip,
        _ => Contract::Aml,
    };
    answer(&replica, contract, Operation::Nowhere, request, async |_, _, _, _| Err(aml::not_found())).await
}

fn options() -> Response {
    let mut response = plain("text/html; charset=utf-8", Bytes::new());
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    response
}

/// The first value of `name` in a query string, its escapes decoded.
pub(super) fn query_value(query: &str, name: &str) -> Option<String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()?;
    let spaced = value.replace('+', " ");
    Some(percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
}
