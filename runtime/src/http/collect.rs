//! Where scripts hand over what they collect: events of `azureml-ai-monitoring`, and rows of our `azureml.monitoring`.
//!
//! It listens on the loopback interface alone and asks for no key, as the package has none to send. What can be reached here is a bounded queue and nothing
//! else: nothing can be read, and nothing of the service is shown.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{Method, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use outrigger_collect::{Collection, Designation, Kept, Record, Table};
use outrigger_protocol::aml;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::modeldata::{EVENTS, Event, ROWS, Rows};
use tokio::sync::Semaphore;

use super::reply::{method_not_allowed, plain};
use crate::collection::Collecting;
use crate::config::LimitsConfig;

/// What the listener needs.
struct Taking {
    collecting: Arc<Collecting>,
    limits: LimitsConfig,
    /// Bodies that may be read at once.
    free: Semaphore,
}

/// The listener.
pub(crate) fn router(collecting: Arc<Collecting>, limits: LimitsConfig) -> Router {
    let free = Semaphore::new(collecting.config.calls);
    Router::new().fallback(taken).with_state(Arc::new(Taking { collecting, limits, free }))
}

async fn taken(State(taking): State<Arc<Taking>>, request: Request) -> Response {
    match taking.take(request).await {
        Ok(()) => plain("text/plain", "taken\n"),
        Err(error) => aml::encode_error(&error).map(Body::from),
    }
}

impl Taking {
    async fn take(&self, request: Request) -> Result<(), CallError> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        if ![EVENTS, ROWS].contains(&path) {
            let text = format!("collected data is posted to {EVENTS} or {ROWS}");
            return Err(CallError::new(ErrorCode::NotFound, text));
        }
        if parts.method != Method::POST {
            return Err(method_not_allowed(aml::METHOD_NOT_ALLOWED_FOR_URL));
        }
        // A page that somebody looks at on this machine is no script. What it can send unasked has an origin, and is not JSON.
        if parts.headers.contains_key(header::ORIGIN) {
            return Err(CallError::new(ErrorCode::Forbidden, "collected data is not taken from web pages"));
        }
        if path == ROWS && !is_json(&parts) {
            let text = format!("what is posted to {ROWS} has the content type application/json");
            return Err(CallError::new(ErrorCode::UnsupportedMediaType, text));
        }
        let Ok(_place) = self.free.try_acquire() else {
            let text = "as many bodies are being handed over as collect.calls allows";
            return Err(CallError::new(ErrorCode::Overloaded, text));
        };
        let (collection, record) = match path == EVENTS {
            true => self.event(&parts, body).await?,
            false => self.rows(body).await?,
        };
        said(collection.offer(record).kept().await)
    }

    async fn event(&self, parts: &Parts, body: Body) -> Result<(&Arc<Collection>, Record), CallError> {
        let event = Event::read(&parts.headers)?;
        let Some(collection) = self.collecting.events(&event.collection) else {
            let text = format!(
                "`{}` is not collected: there is no [collections.NAME] of that name",
                event.collection
            );
            return Err(CallError::new(ErrorCode::NotFound, text));
        };
        let data = self.read(body).await?;
        let request = event.correlation_id.as_deref().or(event.id.as_deref()).unwrap_or_default();
        let mut record = Record::new(request, event.time.unwrap_or_else(SystemTime::now), data);
        record.id = event.id.map(Arc::from);
        record.correlation_id = event.correlation_id.map(Arc::from);
        record.version = event.version.map(Arc::from);
        record.content_type = event.content_type.map(Into::into);
        record.attributes =
            event.attributes.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Ok((collection, record))
    }

    async fn rows(&self, body: Body) -> Result<(&Arc<Collection>, Record), CallError> {
        let Some(collection) = self.collecting.rows() else {
            let text = "rows are not collected: there is no collection `modeldata`";
            return Err(CallError::new(ErrorCode::NotFound, text));
        };
        let rows = Rows::read(&self.read(body).await?)?;
        let Some(designation) = Designation::named(&rows.designation) else {
            let text = format!("`{}` is no designation", rows.designation);
            return Err(CallError::new(ErrorCode::BadRequest, text));
        };
        let mut record = Record::new(rows.request_id, rows.time.unwrap_or_else(SystemTime::now), rows.rows);
        record.correlation_id = rows.correlation_id.map(Arc::from);
        record.model = Some(rows.model.into());
        record.version = Some(rows.version.into());
        record.table = Some(Table {
            designation,
            columns: rows.columns.into_iter().map(Arc::from).collect(),
            correlated: rows.correlated,
            workspace: rows.workspace.map(Arc::from),
            service: rows.service.map(Arc::from),
            name: rows.file.map(Arc::from),
        });
        Ok((collection, record))
    }

    async fn read(&self, body: Body) -> Result<Bytes, CallError> {
        let most = self.collecting.config.rows;
        let read = Limited::new(body, most).collect();
        match tokio::time::timeout(self.limits.body_timeout, read).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let text = format!("the body is larger than {most} bytes, collect.rows");
                Err(CallError::new(ErrorCode::BodyTooLarge, text))
            }
            Ok(Err(_)) => Err(CallError::new(ErrorCode::BadRequest, "the body broke off")),
            Err(_) => Err(CallError::new(ErrorCode::BodyTimeout, "the body did not arrive in time")),
        }
    }
}

fn is_json(parts: &Parts) -> bool {
    let kind =
        parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

/// What is said to who has handed something over.
fn said(kept: Kept) -> Result<(), CallError> {
    match kept {
        // What is late is still on its way.
        Kept::Logged | Kept::Queued | Kept::Late | Kept::SampledOut => Ok(()),
        Kept::Dropped(reason) => {
            let text = format!("it was dropped: {}", reason.name());
            Err(CallError::new(ErrorCode::Overloaded, text))
        }
    }
}
