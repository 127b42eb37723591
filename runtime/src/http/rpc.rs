//! gRPC on the observe listener: one message in, one or a stream of them out; bounded in size and in time.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use futures_util::Stream;
use prost::Message;
use tonic::server::Grpc;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::watch::NO_PLACE;
use crate::busy::Place;
use crate::replica::Replica;

/// Answers a request with one message.
pub(super) async fn unary<M, R>(
    replica: Arc<Replica>,
    request: Request,
    answer: impl Fn(&Replica, M) -> Result<R, Status>,
) -> Response
where
    M: Message + Default + 'static,
    R: Message + 'static,
{
    let service = service_fn(|asked: tonic::Request<M>| {
        std::future::ready(answer(&replica, asked.into_inner()).map(tonic::Response::new))
    });
    let mut grpc = grpc::<M, R>(&replica);
    let answered = grpc.unary(service, request);
    in_time(&replica, answered).await
}

/// Answers a request with a stream, for which there must be a place.
pub(super) async fn streaming<M, R, S>(
    replica: Arc<Replica>,
    request: Request,
    answer: impl Fn(&Replica, M, Place) -> Result<S, Status>,
) -> Response
where
    M: Message + Default + 'static,
    R: Message + 'static,
    S: Stream<Item = Result<R, Status>> + Send + 'static,
{
    let place = replica.watcher();
    streaming_at(place, replica, request, answer).await
}

/// The same with a place that is found elsewhere.
pub(super) async fn streaming_at<M, R, S>(
    place: Option<Place>,
    replica: Arc<Replica>,
    request: Request,
    answer: impl Fn(&Replica, M, Place) -> Result<S, Status>,
) -> Response
where
    M: Message + Default + 'static,
    R: Message + 'static,
    S: Stream<Item = Result<R, Status>> + Send + 'static,
{
    let mut place = place;
    let service = service_fn(|asked: tonic::Request<M>| {
        // There is one request.
        let place = place.take().ok_or_else(|| Status::new(Code::ResourceExhausted, NO_PLACE));
        let stream = place.and_then(|place| answer(&replica, asked.into_inner(), place));
        std::future::ready(stream.map(tonic::Response::new))
    });
    let mut grpc = grpc::<M, R>(&replica);
    let answered = grpc.server_streaming(service, request);
    in_time(&replica, answered).await
}

/// There is no such method: how clients learn that they can do without it.
pub(super) fn unimplemented() -> Response {
    Status::unimplemented("there is no such method here").into_http()
}

fn grpc<M, R>(replica: &Replica) -> Grpc<ProstCodec<R, M>>
where
    M: Message + Default + 'static,
    R: Message + 'static,
{
    Grpc::new(ProstCodec::default()).max_decoding_message_size(replica.config.observe.message)
}

/// The answer's head waits for nothing but the request.
async fn in_time(
    replica: &Replica,
    answered: impl Future<Output = http::Response<tonic::body::Body>>,
) -> Response {
    let limit = replica.config.limits.body_timeout;
    let answered = tokio::time::timeout(limit, answered).await;
    let late = || Status::deadline_exceeded("the request did not arrive in time").into_http();
    answered.unwrap_or_else(|_| late()).map(Body::new)
}
