//! Regions of shared memory: registering, showing and forgetting them.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use http::Method;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::operation::Operation;
use serde::Deserialize;

use super::super::openapi::paths;
use super::super::reply::plain;
use super::super::routes::Routes;
use super::{NamePath, answer, asked, json, named};
use crate::replica::Replica;

pub(super) fn routes(routes: Routes) -> Routes {
    use Operation::SharedMemory;
    routes
        .at("/v2/systemsharedmemory/status", SharedMemory, any(all_status), paths::all_regions)
        .at("/v2/systemsharedmemory/unregister", SharedMemory, any(unregister_all), paths::forget_all_regions)
        .at("/v2/systemsharedmemory/region/{region}/status", SharedMemory, any(status), paths::region)
        .at(
            "/v2/systemsharedmemory/region/{region}/register",
            SharedMemory,
            any(register),
            paths::register_region,
        )
        .at(
            "/v2/systemsharedmemory/region/{region}/unregister",
            SharedMemory,
            any(unregister),
            paths::forget_region,
        )
}

/// The name of a region, once the caller may know of any.
fn region(path: NamePath) -> Result<String, CallError> {
    let no_name = || CallError::new(ErrorCode::BadRequest, "the name of the region is not UTF-8");
    Ok(named(path).ok_or_else(no_name)?.name)
}

async fn all_status(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::SharedMemory, request, Method::GET, async |gate, parts, _| {
        let grant = gate.ask(&parts.headers, None)?;
        json(&replica.shared_memory.of(grant.caller()).status(None)?)
    })
    .await
}

async fn unregister_all(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::SharedMemory, request, Method::POST, async |gate, parts, _| {
        let grant = gate.ask(&parts.headers, None)?;
        replica.shared_memory.of(grant.caller()).unregister(None)?;
        Ok(plain("application/json", ""))
    })
    .await
}

async fn status(State(replica): State<Arc<Replica>>, path: NamePath, request: Request) -> Response {
    answer(&replica, Operation::SharedMemory, request, Method::GET, async |gate, parts, _| {
        let grant = gate.ask(&parts.headers, None)?;
        let name = region(path)?;
        json(&replica.shared_memory.of(grant.caller()).status(Some(&name))?)
    })
    .await
}

/// What is registered.
#[derive(Default, Deserialize, schemars::JsonSchema)]
pub(in crate::http) struct RegionWanted {
    key: String,
    #[serde(default)]
    offset: u64,
    byte_size: u64,
}

async fn register(State(replica): State<Arc<Replica>>, path: NamePath, request: Request) -> Response {
    answer(&replica, Operation::SharedMemory, request, Method::POST, async |gate, parts, body| {
        let grant = gate.ask(&parts.headers, None)?;
        let RegionWanted { key, offset, byte_size } = asked(&replica, body).await?;
        let name = region(path)?;
        replica.shared_memory.of(grant.caller()).register(&name, &key, offset, byte_size)?;
        Ok(plain("application/json", ""))
    })
    .await
}

async fn unregister(State(replica): State<Arc<Replica>>, path: NamePath, request: Request) -> Response {
    answer(&replica, Operation::SharedMemory, request, Method::POST, async |gate, parts, _| {
        let grant = gate.ask(&parts.headers, None)?;
        let name = region(path)?;
        replica.shared_memory.of(grant.caller()).unregister(Some(&name))?;
        Ok(plain("application/json", ""))
    })
    .await
}
