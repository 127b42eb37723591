//! What was collected, on the *admin* listener: what became of it, and having it deleted.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use outrigger_collect::Reason;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::operation::Operation;
use serde::{Deserialize, Serialize};

use super::body::read_small;
use super::models::refused;
use super::openapi::paths;
use super::routes::Routes;
use crate::collection::{Collecting, Deletion};
use crate::replica::Replica;

/// Longest correlation id, bytes.
const MAX_CORRELATION: usize = 4096;

/// The routes.
pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .at("/collect", Operation::Status, get(collected), paths::collected)
        .at("/collect/deletions", Operation::CollectControl, post(delete), paths::deletions)
        .at("/collect/deletions/{deletion}", Operation::Status, get(deletion), paths::deletion)
        .at("/collect/expire", Operation::CollectControl, post(expire), paths::expire)
}

/// Whose records are to be gone.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Their correlation id; the request id where nobody has said another.
    correlation_id: String,
}

/// Everything of what is collected.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Collected {
    collections: Vec<CollectionReport>,
    /// The last ones, the newest first.
    deletions: Vec<Deletion>,
}

/// What became of the records of a collection: offered = sampled out + dropped + persisted + pending.
#[derive(Serialize, schemars::JsonSchema)]
struct CollectionReport {
    name: String,
    offered: u64,
    /// Of these, what an earlier process had left on disk.
    recovered: u64,
    sampled_out: u64,
    /// By why.
    dropped: BTreeMap<&'static str, u64>,
    persisted: u64,
    pending: u64,
    /// How long the oldest record has been waiting that is not in blob storage.
    lag_seconds: Option<f64>,
    memory_bytes: usize,
    disk_bytes: u64,
    /// Whether there is no room on disk.
    stalled: bool,
    /// What failed last, until it works again.
    problem: Option<String>,
}

impl From<outrigger_collect::Status> for CollectionReport {
    fn from(status: outrigger_collect::Status) -> Self {
        let counts = status.counts;
        let dropped = Reason::ALL.iter().map(|reason| (reason.name(), counts.dropped(*reason)));
        Self {
            name: status.name,
            offered: counts.offered,
            recovered: counts.recovered,
            sampled_out: counts.sampled_out,
            dropped: dropped.filter(|(_, count)| *count > 0).collect(),
            persisted: counts.persisted,
            pending: counts.pending,
            lag_seconds: status.lag.map(|lag| lag.as_secs_f64()),
            memory_bytes: status.ring_bytes,
            disk_bytes: status.disk_bytes,
            stalled: status.stalled,
            problem: status.problem,
        }
    }
}

fn collecting(replica: &Replica) -> Result<&Arc<Collecting>, CallError> {
    let nothing = || CallError::new(ErrorCode::NotFound, "nothing is collected (collect.to)");
    replica.collecting().ok_or_else(nothing)
}

fn answer(shown: Result<impl IntoResponse, CallError>) -> Response {
    shown.map_or_else(|error| refused(&error), IntoResponse::into_response)
}

async fn collected(State(replica): State<Arc<Replica>>) -> Response {
    answer(collecting(&replica).map(|collecting| {
        let collections = collecting.status().into_iter().map(Into::into).collect();
        Json(Collected { collections, deletions: collecting.deletions.all() })
    }))
}

async fn delete(State(replica): State<Arc<Replica>>, body: Body) -> Response {
    let begun = async {
        let body = read_small(body, &replica.config.limits).await?;
        let bad = |text: String| CallError::new(ErrorCode::BadRequest, text);
        let Wanted { correlation_id } = serde_json::from_slice(&body).map_err(|error| {
            bad(format!("the body is JSON such as {{\"correlation_id\": \"ID\"}}: {error}"))
        })?;
        if correlation_id.is_empty() || correlation_id.len() > MAX_CORRELATION {
            return Err(bad(format!("`correlation_id` has 1 to {MAX_CORRELATION} bytes")));
        }
        begun(&replica, Some(correlation_id))
    };
    answer(begun.await)
}

async fn expire(State(replica): State<Arc<Replica>>) -> Response {
    answer(begun(&replica, None))
}

fn begun(replica: &Replica, wanted: Option<String>) -> Result<(StatusCode, Json<Deletion>), CallError> {
    let deletion = collecting(replica)?.delete(wanted)?;
    Ok((StatusCode::ACCEPTED, Json(deletion)))
}

async fn deletion(State(replica): State<Arc<Replica>>, Path(id): Path<String>) -> Response {
    let unknown = || CallError::new(ErrorCode::NotFound, "there is no such deletion, or none of late");
    answer(collecting(&replica).and_then(|collecting| {
        collecting
            .deletions
            .all()
            .into_iter()
            .find(|deletion| deletion.id == id)
            .map(Json)
            .ok_or_else(unknown)
    }))
}
