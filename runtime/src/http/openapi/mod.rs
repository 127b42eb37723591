//! What a listener serves, described in OpenAPI 3.1 at `/openapi.json`, and as a page at `/docs`.
//!
//! Each route comes with the function that describes it ([`Routes::at`](super::routes::Routes::at)), so that none is without; what is switched off is not
//! described. Bodies that are types are described by these ([`schemars`]); the others, which are read and written without one, beside what
//! reads and writes them ([`outrigger_protocol::oip::schema`]). What does not depend on who asks is made once; the models that a caller may
//! know of are added for each, [`openapi.models`](crate::config::key::OPENAPI_MODELS) at a time.

mod components;
mod document;
mod errors;
mod models;
mod operation;
mod page;
pub(super) mod paths;
mod place;
mod tags;
mod written;

use std::sync::{Arc, OnceLock};

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{any, get};
use http::{HeaderValue, Method, header};
use outrigger_auth::{Grant, OfModel};
use outrigger_protocol::aml;
use outrigger_protocol::error::CallError;
use outrigger_protocol::operation::Operation;
use serde_json::Value;

use super::models::refused;
use super::reply::{answer, method_not_allowed, plain};
use super::routes::{Described, Routes};
use crate::apart::apart;
use crate::config::Contract;
use crate::replica::Replica;

pub(super) use place::Describe;

/// Where the description is.
pub(super) const DOCUMENT: &str = "/openapi.json";
/// Where the page is.
const PAGE: &str = "/docs";

/// What has been described already, of each listener.
#[derive(Default)]
pub(crate) struct Descriptions {
    score: OnceLock<Value>,
    observe: OnceLock<Value>,
    admin: OnceLock<Value>,
}

/// What a listener serves, for who describes it.
type Listed = Extension<Arc<[Described]>>;

/// The routes on the *score* listener.
pub(super) fn on_score(routes: Routes, replica: Option<&Replica>) -> Routes {
    let config = replica.map(|replica| &replica.config.openapi);
    routes
        .when(config.is_none_or(|config| config.enabled))
        .at(DOCUMENT, Operation::ModelMetadata, any(of_score), paths::document)
        .when(config.is_none_or(|config| config.enabled && config.page))
        .at(PAGE, Operation::Page, any(page_on_score), paths::page)
}

/// The routes on another listener, where the description asks for this operation.
pub(super) fn beside(routes: Routes, operation: Operation, replica: Option<&Replica>) -> Routes {
    let config = replica.map(|replica| &replica.config.openapi);
    let document = if operation == Operation::Observe { get(of_observe) } else { get(of_admin) };
    routes
        .when(config.is_none_or(|config| config.enabled))
        .at(DOCUMENT, operation, document, paths::document)
        .when(config.is_none_or(|config| config.enabled && config.page))
        .at(PAGE, Operation::Page, get(page_beside), paths::page)
}

async fn of_score(State(replica): State<Arc<Replica>>, listed: Listed, request: Request) -> Response {
    answer(&replica, Contract::Aml, Operation::ModelMetadata, request, async |gate, _, parts, _| {
        if !matches!(parts.method, Method::GET | Method::HEAD) {
            return Err(method_not_allowed(aml::METHOD_NOT_ALLOWED_FOR_URL));
        }
        let asked = models::Asked::of(parts.uri.query().unwrap_or_default());
        let grant =
            gate.ask(&parts.headers, asked.model.as_deref().map_or(OfModel::AskedLater, OfModel::Named))?;
        let serving = replica.serving(&grant)?;
        let described = models::described(&replica, gate, &grant, &parts.headers, &asked).await?;
        // It is some milliseconds of work, however short the request.
        Ok(apart(usize::MAX, || {
            let fixed = replica.descriptions.score.get_or_init(|| {
                document::fixed(&replica.config, &listed, document::lane(&replica.config, serving))
            });
            sent(&described.added_to(fixed.clone()))
        }))
    })
    .await
}

async fn of_observe(State(replica): State<Arc<Replica>>, listed: Listed) -> Response {
    let fixed = || document::fixed(&replica.config, &listed, place::Lane::Nothing);
    sent(replica.descriptions.observe.get_or_init(fixed))
}

async fn of_admin(
    State(replica): State<Arc<Replica>>,
    listed: Listed,
    grant: Extension<Arc<Grant>>,
) -> Response {
    let fixed = || document::fixed(&replica.config, &listed, place::Lane::Nothing);
    let mut document = replica.descriptions.admin.get_or_init(fixed).clone();
    match models::first(&replica, &grant) {
        Ok(first) => models::name_it(&mut document, first.as_deref()),
        // It says what there is all the same.
        Err(CallError { code: outrigger_protocol::error::ErrorCode::NotReady, .. }) => {}
        Err(error) => return refused(&error),
    }
    sent(&document)
}

/// A description differs by who asks, so nobody between keeps it.
fn sent(document: &Value) -> Response {
    let mut response = plain("application/json", document.to_string());
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn page_on_score(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Contract::Aml, Operation::Page, request, async |_, _, parts, _| match parts.method {
        Method::GET | Method::HEAD => Ok(page::page(&parts.headers)),
        _ => Err(method_not_allowed(aml::METHOD_NOT_ALLOWED_FOR_URL)),
    })
    .await
}

async fn page_beside(request: Request) -> Response {
    page::page(request.headers())
}
