//! What a listener serves, described in OpenAPI 3.1 at `/openapi.json`, and as a page at `/docs`.
//!
//! Each route comes with the function that describes it ([`Routes::at`](super::routes::Routes::at)), so that none is without; what is switched off is not
//! described. Bodies that are types are described by these ([`schemars`]); the others, which are read and written without one, beside what
//! reads and writes them ([`outrigger_protocol::oip::schema`]). What does not depend on who asks is made once; the models that a caller may
//! know of are added for each, as many at a time as [`openapi.models`](crate::config::key::OPENAPI_MODELS) and
//! [`openapi.bytes`](crate::config::key::OPENAPI_BYTES) say.

mod answers;
mod bodies;
mod components;
mod document;
mod errors;
mod gzip;
mod headers;
mod ids;
mod models;
mod operation;
mod page;
pub(super) mod paths;
mod place;
mod shown;
mod tags;
mod written;

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{any, get};
use bytes::Bytes;
use flate2::Compression;
use http::{HeaderMap, HeaderValue, Method, header};
use outrigger_auth::{Grant, OfModel};
use outrigger_protocol::aml;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::operation::Operation;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::models::refused;
use super::reply::{answer, method_not_allowed};
use super::routes::{Described, Routes};
use crate::apart::apart;
use crate::config::Contract;
use crate::replica::Replica;

use document::Document;
use shown::Added;

pub(super) use place::Describe;

/// Where the description is.
pub(super) const DOCUMENT: &str = "/openapi.json";
/// Where the page is.
const PAGE: &str = "/docs";

/// What has been described already, of each listener.
pub(crate) struct Descriptions {
    score: Description,
    observe: Description,
    admin: Description,
}

impl Descriptions {
    /// None yet; at most so many of a listener are put together at once.
    pub(crate) fn new(at_once: usize) -> Self {
        let none = || Description::new(at_once);
        Self { score: none(), observe: none(), admin: none() }
    }
}

/// That of a listener. Each has its own bound: for some of them nobody needs a key.
struct Description {
    document: OnceLock<Document>,
    /// How many more may be put together now.
    free: Semaphore,
}

impl Description {
    fn new(at_once: usize) -> Self {
        Self { document: OnceLock::new(), free: Semaphore::new(at_once) }
    }

    /// Leave to put one together, for as long as it is kept.
    ///
    /// # Errors
    /// `overloaded`.
    fn begin(&self) -> Result<SemaphorePermit<'_>, CallError> {
        self.free.try_acquire().map_err(|_| {
            let text = "as many descriptions as may be at once are being put together (openapi.at_once)";
            CallError::new(ErrorCode::Overloaded, text).with_retry_after(Duration::from_secs(1))
        })
    }
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
        replica.may_answer()?;
        if parts.method == Method::HEAD {
            // No model is loaded for it.
            asked.model.iter().try_for_each(|name| serving.models.get(name).map(drop))?;
            return Ok(head(&parts.headers));
        }
        let found = models::find(&replica, gate, &grant, &parts.headers, &asked).await?;
        let description = &replica.descriptions.score;
        let _leave = description.begin()?;
        // It is some milliseconds of work, however short the request.
        Ok(apart(usize::MAX, || {
            let document = description.document.get_or_init(|| {
                Document::of(&replica.config, &listed, document::lane(&replica.config, serving))
            });
            sent(&replica, &parts.headers, document.with(&found.added(&listed)))
        }))
    })
    .await
}

async fn of_observe(
    State(replica): State<Arc<Replica>>,
    listed: Listed,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let description = &replica.descriptions.observe;
    beside_sent(&replica, description, &method, &headers, || {
        let document = || Document::of(&replica.config, &listed, place::Lane::Nothing);
        Ok(description.document.get_or_init(document).with(&Added::default()))
    })
}

async fn of_admin(
    State(replica): State<Arc<Replica>>,
    listed: Listed,
    grant: Extension<Arc<Grant>>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let description = &replica.descriptions.admin;
    beside_sent(&replica, description, &method, &headers, || {
        let added = match models::example(&replica, &grant) {
            // It says what there is all the same.
            Err(CallError { code: ErrorCode::NotReady, .. }) => Added::default(),
            added => added?,
        };
        let document = || Document::of(&replica.config, &listed, place::Lane::Nothing);
        Ok(description.document.get_or_init(document).with(&added))
    })
}

/// The answer of another listener, where there is memory for it.
fn beside_sent(
    replica: &Replica,
    description: &Description,
    method: &Method,
    request: &HeaderMap,
    made: impl FnOnce() -> Result<String, CallError>,
) -> Response {
    let answer = || {
        replica.may_answer()?;
        if *method == Method::HEAD {
            return Ok(head(request));
        }
        let _leave = description.begin()?;
        apart(usize::MAX, || Ok(sent(replica, request, made()?)))
    };
    answer().unwrap_or_else(|error| refused(&error))
}

/// A description, which counts as unsent until the client has it.
fn sent(replica: &Replica, request: &HeaderMap, json: String) -> Response {
    let compressed = gzip::takes_gzip(request).then(|| gzip::gzip(json.as_bytes(), Compression::fast()).ok());
    let compressed = compressed.flatten();
    let coding = compressed.as_ref().map(|_| "gzip");
    let body = compressed.unwrap_or_else(|| json.into());
    headed(Body::from(replica.busy.hold(body)), coding)
}

/// What is asked for without the description is not worth putting one together: how long it would be is not said.
fn head(request: &HeaderMap) -> Response {
    let coding = gzip::takes_gzip(request).then_some("gzip");
    headed(Body::from_stream(futures_util::stream::empty::<Result<Bytes, Infallible>>()), coding)
}

/// A description differs by who asks, so nobody between keeps it.
fn headed(body: Body, coding: Option<&'static str>) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    if let Some(coding) = coding {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_put_together_at_once_than_may_be() {
        let description = Description::new(2);
        let (one, _other) = (description.begin().unwrap(), description.begin().unwrap());
        let refused = description.begin().unwrap_err();
        assert_eq!(
            (refused.code, refused.retry_after),
            (ErrorCode::Overloaded, Some(Duration::from_secs(1)))
        );
        drop(one);
        assert!(description.begin().is_ok());
    }
}
