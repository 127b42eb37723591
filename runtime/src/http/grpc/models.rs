//! What is asked of server and models beside running them.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use outrigger_protocol::oip::messages::*;
use outrigger_protocol::operation::Operation;

use super::super::model;
use super::super::openapi::paths;
use super::super::routes::Routes;
use super::{Asked, said, unary};
use crate::replica::Replica;

/// Adds a method: its name, what is asked of the policy, and a function from who asks what to an answer.
macro_rules! methods {
    ($routes:expr; $($name:literal, $operation:ident, $take:ty => $then:expr;)*) => {
        $routes$(.at(
            concat!("/inference.GRPCInferenceService/", $name),
            Operation::$operation,
            any(async |State(replica): State<Arc<Replica>>, request: Request| -> Response {
                unary(&replica, Operation::$operation, request, async |asked: Asked<'_, $take>| {
                    let then: fn(&Replica, Asked<'_, $take>) -> _ = $then;
                    then(&replica, asked)
                })
                .await
            }),
            paths::grpc,
        ))*
    };
}

pub(super) fn routes(routes: Routes) -> Routes {
    let routes = methods! { routes;
        "ServerLive", Health, ServerLiveRequest => |_, _| Ok(ServerLiveResponse { live: true });
        "ServerReady", Health, ServerReadyRequest => |replica, _| {
            Ok(ServerReadyResponse { ready: replica.is_ready() })
        };
        "ServerMetadata", ServerMetadata, ServerMetadataRequest => |replica, _| {
            Ok(server_metadata(replica.shared_memory.is_on()))
        };
        "ModelReady", ModelMetadata, ModelReadyRequest => |replica, asked| {
            let ModelReadyRequest { name, version } = &asked.message;
            let ready = model::is_ready(replica, &asked.grant, name, said(version))?;
            Ok(ModelReadyResponse { ready })
        };
        "ModelStatistics", ModelMetadata, ModelStatisticsRequest => |replica, asked| {
            let ModelStatisticsRequest { name, version } = &asked.message;
            model::statistics(replica, &asked.grant, said(name), said(version))
        };
        "RepositoryIndex", ModelMetadata, RepositoryIndexRequest => |replica, asked| {
            let models = model::index(replica, &asked.grant, asked.message.ready)?;
            Ok(RepositoryIndexResponse { models })
        };
    };
    routes
        .at(
            "/inference.GRPCInferenceService/ModelMetadata",
            Operation::ModelMetadata,
            any(metadata),
            paths::grpc,
        )
        .at("/inference.GRPCInferenceService/ModelConfig", Operation::ModelMetadata, any(config), paths::grpc)
        .at(
            "/inference.GRPCInferenceService/RepositoryModelLoad",
            Operation::ModelControl,
            any(load),
            paths::grpc,
        )
        .at(
            "/inference.GRPCInferenceService/RepositoryModelUnload",
            Operation::ModelControl,
            any(unload),
            paths::grpc,
        )
}

async fn metadata(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    unary(&replica, Operation::ModelMetadata, request, async |asked: Asked<'_, ModelMetadataRequest>| {
        let Asked { gate, headers, grant, message: ModelMetadataRequest { name, version } } = asked;
        let described = model::describe(&replica, gate, &grant, headers, &name, said(&version)).await?;
        let versions: Vec<_> = described.versions.iter().map(String::as_str).collect();
        Ok(model_metadata(&name, &versions, &described.platform, &described.info))
    })
    .await
}

async fn config(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    unary(&replica, Operation::ModelMetadata, request, async |asked: Asked<'_, ModelConfigRequest>| {
        let Asked { gate, headers, grant, message: ModelConfigRequest { name, version } } = asked;
        let described = model::describe(&replica, gate, &grant, headers, &name, said(&version)).await?;
        Ok(ModelConfigResponse { config: Some(model_config(&name, &described.platform, &described.info)) })
    })
    .await
}

async fn load(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    let operation = Operation::ModelControl;
    unary(&replica, operation, request, async |asked: Asked<'_, RepositoryModelLoadRequest>| {
        let Asked { headers, grant, message, .. } = asked;
        let parameter = message.parameters.keys().next().map(String::as_str);
        model::load(&replica, &grant, headers, &message.model_name, parameter).await?;
        Ok(RepositoryModelLoadResponse {})
    })
    .await
}

async fn unload(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    let operation = Operation::ModelControl;
    unary(&replica, operation, request, async |asked: Asked<'_, RepositoryModelUnloadRequest>| {
        model::unload(&replica, &asked.grant, &asked.message.model_name).await?;
        Ok(RepositoryModelUnloadResponse {})
    })
    .await
}
