//! gRPC's own health check, for its clients, proxies and Kubernetes' probes.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use futures_util::{Stream, stream};
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::grpc::health::{HealthCheckRequest, HealthCheckResponse, ServingStatus};
use outrigger_protocol::operation::Operation;
use tonic::Status;

use super::super::openapi::paths;
use super::super::routes::Routes;
use super::super::rpc;
use super::super::watch::KEEP_ALIVE;
use super::{Asked, answer, unary};
use crate::busy::{Place, Watch};
use crate::replica::Replica;

/// The services of which it can be asked; nothing stands for all of them.
const SERVICES: [&str; 2] = ["", "inference.GRPCInferenceService"];

/// The routes, of whichever listener.
pub(in super::super) fn routes(routes: Routes) -> Routes {
    routes.at("/grpc.health.v1.Health/Check", Operation::Health, any(check), paths::grpc).at(
        "/grpc.health.v1.Health/Watch",
        Operation::Health,
        any(watch),
        paths::grpc,
    )
}

async fn check(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    unary(&replica, Operation::Health, request, async |asked: Asked<'_, HealthCheckRequest>| {
        if !SERVICES.contains(&&*asked.message.service) {
            // The status that this protocol has for it is that of a model which is not there.
            return Err(CallError::new(ErrorCode::ModelNotFound, "no such service"));
        }
        Ok(HealthCheckResponse { status: status(&replica).into() })
    })
    .await
}

fn status(replica: &Replica) -> ServingStatus {
    if replica.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing }
}

async fn watch(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::Health, request, async |_, parts, body| {
        let request = Request::from_parts(parts, body);
        let replica = Arc::clone(&replica);
        let watched = Arc::clone(&replica);
        let response = rpc::streaming_at(
            replica.health_watcher(),
            replica,
            request,
            move |_, asked: HealthCheckRequest, place| {
                let known = SERVICES.contains(&&*asked.service);
                Ok(changes(Arc::clone(&watched), known, place))
            },
        );
        Ok(response.await)
    })
    .await
}

/// What the status is, and again whenever it changes.
fn changes(
    replica: Arc<Replica>,
    known: bool,
    place: Place,
) -> impl Stream<Item = Result<HealthCheckResponse, Status>> + Send {
    let watch: Watch = Watch::new(place, KEEP_ALIVE);
    stream::unfold(
        (replica, watch, None),
        move |(replica, mut watch, mut told): (Arc<Replica>, _, _)| async move {
            let (calls, observe) = (replica.calls_end(), replica.observe_ends());
            loop {
                let now = if known { status(&replica) } else { ServingStatus::ServiceUnknown };
                // That the replica ends is the last that is told.
                if told != Some(now) {
                    told = Some(now);
                    let response = HealthCheckResponse { status: now.into() };
                    return Some((Ok(response), (replica, watch, told)));
                }
                tokio::select! {
                    _ = watch.next() => {}
                    () = calls.cancelled() => return None,
                    () = observe.cancelled() => return None,
                }
            }
        },
    )
}
