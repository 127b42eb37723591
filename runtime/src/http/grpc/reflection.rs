//! What the server can do, in its own words: for tools that have no `.proto` file.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use futures_util::StreamExt;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::oip::messages::DESCRIBED;
use outrigger_protocol::operation::Operation;
use outrigger_protocol::tensorflow;
use tonic_reflection::server::Builder;
use tower::ServiceExt;

use super::super::openapi::paths;
use super::super::routes::Routes;
use super::answer;
use crate::config::Contract;
use crate::replica::Replica;

/// The routes: of the protocol's first version, and of the one before that, which tools still ask for.
pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .at(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            Operation::ServerMetadata,
            any(v1),
            paths::grpc,
        )
        .at(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            Operation::ServerMetadata,
            any(v1alpha),
            paths::grpc,
        )
}

/// Tells of the services whose contracts are spoken.
fn builder(replica: &Replica) -> Builder<'static> {
    let builder = Builder::configure().register_encoded_file_descriptor_set(DESCRIBED);
    match replica.config.score.contracts.spoken.contains(&Contract::Tensorflow) {
        true => builder.register_encoded_file_descriptor_set(tensorflow::DESCRIBED),
        false => builder,
    }
}

fn unbuilt() -> CallError {
    CallError::new(ErrorCode::Internal, "the services cannot be described")
}

async fn v1(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::ServerMetadata, request, async |gate, parts, body| {
        gate.ask(&parts.headers, None)?;
        let service = builder(&replica).build_v1().map_err(|_| unbuilt())?;
        let service = service.max_decoding_message_size(replica.config.limits.message);
        let request = Request::from_parts(parts, until_the_end(&replica, body));
        let Ok(response) = service.oneshot(request).await;
        Ok(response.map(Body::new))
    })
    .await
}

async fn v1alpha(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::ServerMetadata, request, async |gate, parts, body| {
        gate.ask(&parts.headers, None)?;
        let service = builder(&replica).build_v1alpha().map_err(|_| unbuilt())?;
        let service = service.max_decoding_message_size(replica.config.limits.message);
        let request = Request::from_parts(parts, until_the_end(&replica, body));
        let Ok(response) = service.oneshot(request).await;
        Ok(response.map(Body::new))
    })
    .await
}

/// A request that ends with the replica, if not before: who asks may keep it open, and a drain would wait.
fn until_the_end(replica: &Replica, body: Body) -> Body {
    Body::from_stream(body.into_data_stream().take_until(replica.calls_end().cancelled_owned()))
}
