//! `POST /token`: a token in place of a key, and the public key by which others can verify it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use http::{HeaderValue, Method, header};
use outrigger_protocol::aml;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::operation::Operation;
use serde::Serialize;

use super::openapi::paths;
use super::reply::{Answer, Gate, answer, method_not_allowed, plain};
use super::routes::Routes;
use crate::config::Contract;
use crate::replica::Replica;

/// The routes, which are served where the replica gives tokens.
pub(super) fn routes(routes: Routes, replica: Option<&Replica>) -> Routes {
    let on = replica.is_none_or(Replica::gives_tokens);
    routes.when(on).at("/token", Operation::Token, any(token), paths::token).at(
        "/.well-known/jwks.json",
        Operation::TokenKeys,
        any(keys),
        paths::token_keys,
    )
}

/// A token, in the words of the system that we succeed.
#[derive(Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct AccessToken<'a> {
    /// What is sent after `Bearer` from now on.
    access_token: &'a str,
    /// `Bearer`.
    token_type: &'static str,
    /// When the next one is to be asked for, in seconds since 1970.
    refresh_after: u64,
    /// When this one ends, in seconds since 1970.
    expiry_on: u64,
}

async fn token(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Contract::Aml, Operation::Token, request, async |gate, _, parts, _| {
        if parts.method != Method::POST {
            return Err(method_not_allowed(aml::METHOD_NOT_ALLOWED_FOR_URL));
        }
        issue(&replica, gate, &parts.headers)
    })
    .await
}

fn issue(replica: &Replica, gate: &Gate<'_>, headers: &http::HeaderMap) -> Answer {
    let grant = gate.ask(headers, None)?;
    let issued = replica.issue_token(&grant, &gate.held(headers)?)?;
    let body = AccessToken {
        access_token: issued.token.expose(),
        token_type: "Bearer",
        refresh_after: issued.refresh_after,
        expiry_on: issued.expires,
    };
    let body = serde_json::to_vec(&body)
        .map_err(|_| CallError::new(ErrorCode::Internal, "the token has no form as JSON"))?;
    let mut response = plain("application/json", body);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn keys(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Contract::Aml, Operation::TokenKeys, request, async |_, _, parts, _| {
        match parts.method {
            Method::GET | Method::HEAD => {
                let keys = replica.token_keys().ok_or_else(aml::not_found)?;
                Ok(plain("application/json", keys))
            }
            _ => Err(method_not_allowed(aml::METHOD_NOT_ALLOWED_FOR_URL)),
        }
    })
    .await
}
