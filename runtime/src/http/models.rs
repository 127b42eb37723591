//! Models on the *admin* listener: which there are and how they are, loading and unloading them, and what happens to them as it does.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, StatusCode, Uri};
use outrigger_auth::Grant;
use outrigger_protocol::aml;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::operation::Operation;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::openapi::paths;
use super::routes::Routes;
use super::watch::{self, KEEP_ALIVE};
use super::wish::Wish;
use crate::busy::Place;
use crate::models::{ModelEvent, Models, NamedModel, NamedStatus};
use crate::replica::Replica;

/// Models on a page of which the size is not said...
const PAGE: usize = 100;
/// ...and at most.
const MAX_PAGE: usize = 1000;

/// The routes.
pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .at("/models", Operation::Status, get(list), paths::models)
        .at("/models/{model}", Operation::Status, get(one), paths::model)
        .at("/models/{model}/load", Operation::ModelControl, post(load), paths::model_control)
        .at("/models/{model}/unload", Operation::ModelControl, post(unload), paths::model_control)
        .at("/models/{model}/pin", Operation::ModelControl, post(pin), paths::model_control)
        .at("/models/{model}/unpin", Operation::ModelControl, post(unpin), paths::model_control)
        .at("/events", Operation::Status, get(events), paths::events)
}

pub(super) type Granted = Extension<Arc<Grant>>;

pub(super) fn refused(error: &CallError) -> Response {
    aml::encode_error(error).map(Body::from)
}

/// What a page is asked for by.
#[derive(Deserialize)]
struct Paging {
    /// The name after which it begins.
    #[serde(default)]
    after: String,
    limit: Option<usize>,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Page {
    models: Vec<NamedStatus>,
    /// Models in all.
    total: usize,
    /// What the next page is asked for `after`; nothing on the last one.
    next: Option<String>,
}

async fn list(
    State(replica): State<Arc<Replica>>,
    Extension(grant): Granted,
    paging: Result<Query<Paging>, QueryRejection>,
) -> Response {
    let Ok(Query(paging)) = paging else {
        let text = "the query is `after`, a model's name, and `limit`, a number";
        return refused(&CallError::new(ErrorCode::BadRequest, text));
    };
    let serving = match replica.serving(&grant) {
        Ok(serving) => serving,
        Err(error) => return refused(&error),
    };
    let limit = paging.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE);
    let models = &serving.models;
    let may = |model: &&Arc<NamedModel>| grant.allow_model(&model.name).is_ok();
    let mut after = models.after(&paging.after).filter(may);
    let page: Vec<_> = after.by_ref().take(limit).collect();
    let next = after.next().and(page.last()).map(|model| model.name.clone());
    let statuses = page.iter().filter_map(|model| models.status_of(model)).collect();
    Json(Page { models: statuses, total: models.iter().filter(may).count(), next }).into_response()
}

/// A model that the caller may ask of.
pub(super) fn find<'a>(
    replica: &'a Replica,
    grant: &Grant,
    name: &str,
) -> Result<(&'a Arc<Models>, &'a Arc<NamedModel>), CallError> {
    let serving = replica.serving(grant)?;
    Ok((&serving.models, serving.model(grant, name)?))
}

pub(super) fn shown(models: &Models, model: &NamedModel) -> Response {
    models
        .status_of(model)
        .map_or_else(|| StatusCode::NOT_FOUND.into_response(), |status| Json(status).into_response())
}

async fn one(replica: State<Arc<Replica>>, grant: Granted, Path(name): Path<String>) -> Response {
    match find(&replica, &grant, &name) {
        Ok((models, model)) => shown(models, model),
        Err(error) => refused(&error),
    }
}

/// Answers once the model is there; who is not that patient hears when it will be, and the load goes on.
async fn load(
    State(replica): State<Arc<Replica>>,
    grant: Granted,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    let loaded = async {
        let (models, model) = find(&replica, &grant, &name)?;
        let patience = Wish::of(&headers)?.patience(replica.config.queue.wait);
        models.bring_stable(model, patience.into_std()).await?;
        Ok::<_, CallError>(shown(models, model))
    };
    loaded.await.unwrap_or_else(|error| refused(&error))
}

/// Answers once the model has left; calls that have it go on to their end first.
async fn unload(replica: State<Arc<Replica>>, grant: Granted, Path(name): Path<String>) -> Response {
    match find(&replica, &grant, &name) {
        Ok((models, model)) => {
            models.unload(&model.stable()).await;
            shown(models, model)
        }
        Err(error) => refused(&error),
    }
}

async fn pin(replica: State<Arc<Replica>>, grant: Granted, Path(name): Path<String>) -> Response {
    pinned(&replica, &grant, &name, true)
}

async fn unpin(replica: State<Arc<Replica>>, grant: Granted, Path(name): Path<String>) -> Response {
    pinned(&replica, &grant, &name, false)
}

fn pinned(replica: &Replica, grant: &Grant, name: &str, pinned: bool) -> Response {
    match find(replica, grant, name) {
        Ok((models, model)) => {
            models.pin(&model.stable(), pinned);
            shown(models, model)
        }
        Err(error) => refused(&error),
    }
}

/// What events are asked for by.
#[derive(Deserialize)]
struct Since {
    /// The number of the last event that is known.
    #[serde(default)]
    after: u64,
}

/// The events that are kept, as a list; with `watch`, those to come after them too, server-sent, each with its number, by which a reader
/// that comes back says where it was.
async fn events(
    State(replica): State<Arc<Replica>>,
    Extension(grant): Granted,
    uri: Uri,
    since: Result<Query<Since>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let Ok(Query(Since { after })) = since else {
        return refused(&CallError::new(ErrorCode::BadRequest, "`after` is the number of an event"));
    };
    let models = match replica.serving(&grant) {
        Ok(serving) => Arc::clone(&serving.models),
        Err(error) => return refused(&error),
    };
    if !watch::is_asked(uri.query().unwrap_or_default()) {
        let mut events = models.events(after).map(|(kept, _)| kept).unwrap_or_default();
        events.retain(|event| grant.allow_model(&event.model).is_ok());
        return Json(Events { events }).into_response();
    }
    let Some(place) = replica.watcher() else { return refused(&watch::no_place()) };
    let known = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let reader = Reader::new(models, grant, known.unwrap_or(after), place);
    let state = (reader, replica.observe_ends());
    let events = stream::unfold(state, async |(mut reader, ends)| {
        tokio::select! {
            event = reader.next() => Some((Ok::<_, Infallible>(event?), (reader, ends))),
            () = ends.cancelled() => None,
        }
    });
    watch::stream(Body::from_stream(events))
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Events {
    events: Vec<ModelEvent>,
}

/// Somebody who reads events.
struct Reader {
    models: Arc<Models>,
    /// Of which models it may hear.
    grant: Arc<Grant>,
    kept: VecDeque<ModelEvent>,
    live: Option<Receiver<ModelEvent>>,
    last: u64,
    _place: Place,
}

impl Reader {
    fn new(models: Arc<Models>, grant: Arc<Grant>, last: u64, place: Place) -> Self {
        let mut reader = Self { models, grant, kept: VecDeque::new(), live: None, last, _place: place };
        reader.subscribe();
        reader
    }

    fn subscribe(&mut self) {
        if let Some((kept, live)) = self.models.events(self.last) {
            (self.kept, self.live) = (kept.into(), Some(live));
        }
    }

    /// The next event, or, after a while without one, a line that says that there is none.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.kept.pop_front() {
                self.last = event.number;
                if self.grant.allow_model(&event.model).is_err() {
                    continue;
                }
                return Some(encode(&event));
            }
            // Where there are no models nothing happens to them.
            let Some(live) = &mut self.live else {
                tokio::time::sleep(KEEP_ALIVE).await;
                return Some(Bytes::from_static(b":\n\n"));
            };
            match tokio::time::timeout(KEEP_ALIVE, live.recv()).await {
                Err(_) => return Some(Bytes::from_static(b":\n\n")),
                Ok(Ok(event)) => self.kept.push_back(event),
                // It was slow: what is kept begins where it was, or as early as there is anything.
                Ok(Err(RecvError::Lagged(_))) => self.subscribe(),
                Ok(Err(RecvError::Closed)) => return None,
            }
        }
    }
}

fn encode(event: &ModelEvent) -> Bytes {
    // An event is numbers and texts; nothing in it can fail to be JSON.
    let json = serde_json::to_string(event).unwrap_or_default();
    format!("id: {}\ndata: {json}\n\n", event.number).into()
}
