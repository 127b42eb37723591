//! KEDA's external scaler.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use futures_util::{Stream, stream};
use outrigger_protocol::keda::{self, GetMetricsRequest, IsActiveResponse, ScaledObjectRef, Trigger};
use outrigger_protocol::operation::Operation;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::openapi::paths;
use super::routes::Routes;
use super::{rpc, watch};
use crate::busy::{Place, Watch};
use crate::replica::Replica;

/// The service.
pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .at(keda::IS_ACTIVE, Operation::Observe, post(is_active), paths::grpc)
        .at(keda::STREAM_IS_ACTIVE, Operation::Observe, post(stream_is_active), paths::grpc)
        .at(keda::GET_METRIC_SPEC, Operation::Observe, post(get_metric_spec), paths::grpc)
        .at(keda::GET_METRICS, Operation::Observe, post(get_metrics), paths::grpc)
}

async fn is_active(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    rpc::unary(replica, request, |replica, asked: ScaledObjectRef| {
        let result = trigger(&asked.scaler_metadata)?.is_active(&replica.busy.snapshot());
        Ok(IsActiveResponse { result })
    })
    .await
}

async fn get_metric_spec(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    rpc::unary(replica, request, |replica, asked: ScaledObjectRef| {
        Ok(trigger(&asked.scaler_metadata)?.spec(&replica.busy.snapshot()))
    })
    .await
}

async fn get_metrics(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    rpc::unary(replica, request, |replica, asked: GetMetricsRequest| {
        if asked.metric_name != keda::METRIC {
            return Err(Status::not_found(format!("the only metric is `{}`", keda::METRIC)));
        }
        Ok(keda::metrics(&replica.busy.snapshot()))
    })
    .await
}

async fn stream_is_active(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    rpc::streaming(replica, request, |replica, asked: ScaledObjectRef, place| {
        Ok(changes(trigger(&asked.scaler_metadata)?, place, replica.observe_ends()))
    })
    .await
}

/// Whether there is anything to do, at once and whenever that changes.
fn changes(
    trigger: Trigger,
    place: Place,
    ends: CancellationToken,
) -> impl Stream<Item = Result<IsActiveResponse, Status>> + Send {
    // Becoming inactive is no change of the signal's; it is seen when that comes again.
    let watch = Watch::new(place, watch::KEEP_ALIVE.min(trigger.active_for));
    stream::unfold((watch, ends, None), move |(mut watch, ends, told)| async move {
        loop {
            let seen = tokio::select! {
                seen = watch.next() => seen,
                () = ends.cancelled() => return None,
            };
            let result = trigger.is_active(&seen);
            if told != Some(result) {
                return Some((Ok(IsActiveResponse { result }), (watch, ends, Some(result))));
            }
        }
    })
}

fn trigger(metadata: &HashMap<String, String>) -> Result<Trigger, Status> {
    Trigger::read(metadata).map_err(|error| Status::invalid_argument(error.to_string()))
}
