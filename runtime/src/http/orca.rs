//! ORCA: the load in a header of an answer, and `StreamCoreMetrics` for those who do not want to wait for answers.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::routing::post;
use futures_util::{Stream, stream};
use http::Method;
use http::request::Parts;
use outrigger_protocol::error::ErrorCode;
use outrigger_protocol::operation::Operation;
use outrigger_protocol::orca::{self, Format, LoadReport, LoadReportRequest};
use tokio::time::MissedTickBehavior;
use tonic::Status;

use super::openapi::paths;
use super::routes::Routes;
use super::rpc;
use crate::busy::Place;
use crate::config::LoadMetrics;
use crate::replica::Replica;

/// In which form the answer to a request tells the load.
pub(super) fn wanted(replica: &Replica, operation: Operation, parts: &Parts) -> Option<Format> {
    // A preflight is answered without a key.
    let calls = operation.work() && parts.method != Method::OPTIONS;
    let asked = || parts.headers.get(orca::FORMAT).and_then(Format::from_header);
    match replica.config.score.load_metrics {
        _ if !calls => None,
        LoadMetrics::Off => None,
        LoadMetrics::Asked => asked(),
        LoadMetrics::Always(format) => asked().or(Some(format)),
    }
}

/// Whether an answer may tell: results do, and failures of the server's, to which nobody comes without a key.
pub(super) fn may_tell(code: Option<ErrorCode>) -> bool {
    code.is_none_or(|code| code.status().is_server_error())
}

/// The service.
pub(super) fn routes(routes: Routes) -> Routes {
    routes.at(orca::STREAM_CORE_METRICS, Operation::Observe, post(stream_core_metrics), paths::grpc)
}

async fn stream_core_metrics(
    State(replica): State<Arc<Replica>>,
    request: Request,
) -> axum::response::Response {
    rpc::streaming(replica, request, |replica, asked: LoadReportRequest, place| {
        Ok(reports(replica, asked, place))
    })
    .await
}

/// A report at once, and one after each interval. Who is slow gets fewer.
fn reports(
    replica: &Replica,
    asked: LoadReportRequest,
    place: Place,
) -> impl Stream<Item = Result<LoadReport, Status>> + Send + use<> {
    let mut ticks = tokio::time::interval(asked.interval(replica.config.observe.report_interval));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    stream::unfold((place, ticks, replica.observe_ends()), async |(place, mut ticks, ends)| {
        tokio::select! {
            _ = ticks.tick() => Some((Ok(orca::report(&place.snapshot())), (place, ticks, ends))),
            () = ends.cancelled() => None,
        }
    })
}
