//! What is passed on to an upstream: `/score`, and the paths that the configuration names (`upstream.paths`).
//!
//! These paths are no routes of the replica's. They are looked at before its routes are, so that what the operator names goes where it is said to go,
//! but for `/*`, which means whatever is no route; and each of them asks for `score` before anything else, so that none goes round the policy.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::ACCESS_CONTROL_REQUEST_METHOD;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use outrigger_auth::Grant;
use outrigger_protocol::aml;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::ids::RequestIds;
use outrigger_protocol::operation::Operation;

use super::begun::{self, Gathered};
use super::reply::{Answer, answer, method_not_allowed};
use super::wish::Wish;
use crate::config::{Contract, PathPattern};
use crate::models;
use crate::replica::Replica;
use crate::scheduler::Admission;
use crate::telemetry;
use crate::upstream::headers::{self, Told};
use crate::upstream::{ComingLimits, Sent, Upstream, UpstreamCall};

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    /// Whether it speaks TLS.
    pub(super) is_encrypted: bool,
}

/// Where scoring is asked for, which has a path of its own in the upstream.
const SCORE: &str = "/score";

/// Takes what is to be passed on in place of the routes, and leaves the rest to them.
pub(super) async fn passed(State(replica): State<Arc<Replica>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if path == SCORE || !is_named(&replica, path, |pattern| !pattern.is_all()) {
        return next.run(request).await;
    }
    forward(&replica, request).await
}

/// Whether a path that is no route is passed on.
pub(super) fn takes(replica: &Replica, path: &str) -> bool {
    is_named(replica, path, PathPattern::is_all)
}

fn is_named(replica: &Replica, path: &str, which: impl Fn(&PathPattern) -> bool) -> bool {
    let mut patterns = replica.config.upstream.iter().flat_map(|upstream| &upstream.paths);
    patterns.any(|pattern| which(pattern) && pattern.means(path))
}

/// Passes a request on as it is.
pub(super) async fn forward(replica: &Replica, request: Request) -> Response {
    answer(replica, Contract::Aml, Operation::Score, request, async |gate, ids, parts, body| {
        if matches!(parts.method, Method::CONNECT | Method::TRACE) {
            return Err(method_not_allowed(aml::METHOD_NOT_ALLOWED_FOR_URL));
        }
        if is_preflight(replica, &parts) {
            return Ok(preflight());
        }
        let grant = gate.ask(&parts.headers, None)?;
        let Some(upstream) = &replica.serving(&grant)?.upstream else {
            return Err(aml::not_found());
        };
        let target = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        pass_on(replica, upstream, &grant, ids, target, parts, body).await
    })
    .await
}

/// A browser's question, which carries no credentials, is answered without, where there are origins that may call.
fn is_preflight(replica: &Replica, parts: &Parts) -> bool {
    parts.method == Method::OPTIONS
        && parts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
        && !replica.config.score.cors_origins.is_empty()
}

/// What it is allowed is said by whoever answers.
fn preflight() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// What `/score` is for the upstream, with the query that it came with.
pub(super) fn scoring_target(upstream: &Upstream, query: Option<&str>) -> Result<PathAndQuery, CallError> {
    let path = &upstream.config().score_path;
    let Some(query) = query else { return Ok(path.clone()) };
    let target = format!("{}?{query}", path.path());
    target.parse().map_err(|_| CallError::new(ErrorCode::BadRequest, "the query cannot be passed on"))
}

/// Passes a call on that its caller may make.
pub(super) async fn pass_on(
    replica: &Replica,
    upstream: &Arc<Upstream>,
    grant: &Grant,
    ids: &RequestIds,
    target: PathAndQuery,
    mut parts: Parts,
    body: Body,
) -> Answer {
    if headers::asks_for_an_upgrade(&parts.headers) {
        let text = "another protocol is asked for (upgrade), such as WebSocket: that is not passed on";
        return Err(CallError::new(ErrorCode::BadRequest, text));
    }
    let wish = Wish::of(&parts.headers)?;
    upstream.check()?;
    let config = upstream.config();
    let limits = &replica.config.limits;
    let Gathered { first, rest, memory, left } =
        begun::read(body, limits, &replica.busy, config.stream_threshold).await?;
    let terms = wish.terms(grant, models::SCRIPT, first.length(), Admission::Now);
    let slot = replica.admit(grant, terms, None).await?;
    let peer = parts.extensions.get::<Peer>().copied();
    let told = Told {
        host: upstream.host(),
        ids,
        caller: grant.name(),
        peer: peer.map(|peer| peer.address),
        is_encrypted: peer.is_some_and(|peer| peer.is_encrypted),
        trusts: config.trust_forwarded,
    };
    let mut headers = headers::for_the_upstream(&mut parts, &told);
    telemetry::carry(&mut headers);
    let body = match rest {
        None => Sent::whole(first, memory),
        Some(rest) => {
            let limits = ComingLimits {
                body: limits.body,
                body_timeout: limits.body_timeout,
                left,
                pause: config.pause_timeout,
            };
            Sent::coming(first, rest, memory, limits)
        }
    };
    upstream.call(UpstreamCall { method: parts.method, target, headers, body }, slot).await
}
