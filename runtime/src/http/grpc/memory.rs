//! Regions of shared memory: registering, showing and forgetting them.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use outrigger_protocol::oip::messages::{
    SystemSharedMemoryRegisterRequest, SystemSharedMemoryRegisterResponse, SystemSharedMemoryStatusRequest,
    SystemSharedMemoryStatusResponse, SystemSharedMemoryUnregisterRequest,
    SystemSharedMemoryUnregisterResponse,
};
use outrigger_protocol::operation::Operation::SharedMemory;

use super::super::openapi::paths;
use super::super::routes::Routes;
use super::{Asked, said, unary};
use crate::replica::Replica;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .at(
            "/inference.GRPCInferenceService/SystemSharedMemoryStatus",
            SharedMemory,
            any(status),
            paths::grpc,
        )
        .at(
            "/inference.GRPCInferenceService/SystemSharedMemoryRegister",
            SharedMemory,
            any(register),
            paths::grpc,
        )
        .at(
            "/inference.GRPCInferenceService/SystemSharedMemoryUnregister",
            SharedMemory,
            any(unregister),
            paths::grpc,
        )
}

async fn status(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    unary(&replica, SharedMemory, request, async |asked: Asked<'_, SystemSharedMemoryStatusRequest>| {
        let own = replica.shared_memory.of(asked.grant.caller());
        let regions = own.status(said(&asked.message.name))?.into_iter();
        let regions = regions.map(|region| (region.name.clone(), region)).collect();
        Ok(SystemSharedMemoryStatusResponse { regions })
    })
    .await
}

async fn register(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    unary(&replica, SharedMemory, request, async |asked: Asked<'_, SystemSharedMemoryRegisterRequest>| {
        let SystemSharedMemoryRegisterRequest { name, key, offset, byte_size } = &asked.message;
        replica.shared_memory.of(asked.grant.caller()).register(name, key, *offset, *byte_size)?;
        Ok(SystemSharedMemoryRegisterResponse {})
    })
    .await
}

async fn unregister(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    unary(&replica, SharedMemory, request, async |asked: Asked<'_, SystemSharedMemoryUnregisterRequest>| {
        replica.shared_memory.of(asked.grant.caller()).unregister(said(&asked.message.name))?;
        Ok(SystemSharedMemoryUnregisterResponse {})
    })
    .await
}
