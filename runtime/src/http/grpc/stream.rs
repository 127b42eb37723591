//! `ModelStreamInfer`: requests of one stream are worked on together, up to a limit, and answered in their order. One that fails says so
//! in its answer, and the stream goes on.
//!
//! Of a request beyond the limit no more is read than that it has begun. The caller's rate and place are asked for before a message is read:
//! one that is refused is gone past, and takes no memory.
//!
//! Calls, which read their messages, and the waiting for the next one are tasks of their own, which end with the stream: what they hold (a slot,
//! memory, a caller's place) is not held for as long as the client likes to take nothing of what it is answered.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use futures_util::stream::{FuturesOrdered, StreamExt, unfold};
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use outrigger_auth::{Credentials, Grant, OfModel, PeerCertificate, Refusal};
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::grpc::{self, Prefix};
use outrigger_protocol::oip::grpc::{id, in_stream, stream_error, target};
use outrigger_protocol::operation::Operation;
use outrigger_protocol::urgency::Urgency;
use tokio::sync::oneshot;
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::super::infer::held;
use super::super::openapi::paths;
use super::super::reply::certificate_of;
use super::super::routes::Routes;
use super::super::wish::Wish;
use super::infer::run;
use super::{Messages, answer, framed};
use crate::replica::Replica;
use crate::scheduler;
use crate::telemetry::{self, Passage};

/// Where streams are asked for.
const PATH: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// Whether a request is a stream of calls, and no call itself.
pub(in crate::http) fn is_stream(path: &str) -> bool {
    path == PATH
}

pub(super) fn routes(routes: Routes) -> Routes {
    routes.at(PATH, Operation::Infer, any(infer), paths::grpc)
}

async fn infer(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::Infer, request, async |gate, parts, body| {
        // Each request in it asks for itself.
        gate.check(&parts.headers)?;
        Wish::of(&parts.headers)?;
        let ends = grpc::timeout(&parts.headers)?.map(|timeout| Instant::now() + timeout);
        let messages = Messages::new(&replica, &parts.headers, body, replica.config.limits.body);
        let certificate = certificate_of(&parts.extensions);
        let calls = Calls::new(Arc::clone(&replica), (parts.headers, certificate), messages, ends);
        let frames = unfold(calls, async |mut calls| Some((calls.next().await?, calls)));
        Ok(grpc::encode_ok().map(|()| Body::new(StreamBody::new(frames.map(Ok::<_, Infallible>)))))
    })
    .await
}

/// That a request has begun; nothing once there are no more.
type Begun = Result<Option<(Messages, Prefix)>, CallError>;
type Reading = AbortOnDropHandle<Begun>;

/// An answer, and the caller's place, which is taken until it is sent.
struct Answered {
    pieces: Vec<Bytes>,
    grant: Option<Grant>,
}

/// The calls of a stream.
struct Calls {
    replica: Arc<Replica>,
    /// What says who calls: the headers, and the certificate of the connection.
    headers: Arc<HeaderMap>,
    certificate: Option<Arc<PeerCertificate>>,
    /// When the caller stops waiting for all of it.
    ends: Option<Instant>,
    /// The next request; nothing once there are no more.
    reading: Option<Reading>,
    running: FuturesOrdered<AbortOnDropHandle<Result<Answered, CallError>>>,
    /// Pieces of the answer that is being sent.
    pieces: VecDeque<Bytes>,
    /// For whom it is.
    grant: Option<Grant>,
    /// How the stream ends.
    end: Option<Result<(), CallError>>,
    stop: CancellationToken,
    /// The stream itself, which is a request.
    passage: Option<Arc<Passage>>,
}

impl Calls {
    fn new(
        replica: Arc<Replica>,
        (headers, certificate): (HeaderMap, Option<Arc<PeerCertificate>>),
        messages: Messages,
        ends: Option<Instant>,
    ) -> Self {
        Self {
            stop: replica.calls_end(),
            replica,
            headers: Arc::new(headers),
            certificate,
            ends,
            reading: Some(reading(async { Some(messages) })),
            running: FuturesOrdered::new(),
            pieces: VecDeque::new(),
            grant: None,
            end: Some(Ok(())),
            passage: telemetry::with(Arc::clone),
        }
    }

    /// The next frame of the answer.
    async fn next(&mut self) -> Option<Frame<Bytes>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Some(Frame::data(piece));
            }
            self.grant = None;
            if self.reading.is_none() && self.running.is_empty() {
                let trailers = |end: Result<(), CallError>| match end {
                    Ok(()) => grpc::ok_trailers(),
                    Err(error) => grpc::error_trailers(&error),
                };
                return self.end.take().map(trailers).map(Frame::trailers);
            }
            let room = self.running.len() < self.replica.config.score.contracts.stream_calls;
            tokio::select! {
                Some(answered) = self.running.next(), if !self.running.is_empty() => self.send(answered),
                read = next(&mut self.reading), if room && self.reading.is_some() => self.take(read),
                () = self.stop.cancelled(), if self.reading.is_some() => self.stop_reading(scheduler::draining()),
            }
        }
    }

    fn send(&mut self, answered: Result<Result<Answered, CallError>, JoinError>) {
        match answered.unwrap_or_else(|_| Err(broken())) {
            Ok(Answered { pieces, grant }) => {
                self.pieces.extend(pieces);
                self.grant = grant;
            }
            Err(error) => self.stop_reading(error),
        }
    }

    fn stop_reading(&mut self, error: CallError) {
        self.reading = None;
        self.end = Some(Err(error));
    }

    fn take(&mut self, begun: Result<Begun, JoinError>) {
        self.reading = None;
        match begun {
            Ok(Ok(Some((messages, prefix)))) => {
                let (sender, back) = oneshot::channel();
                let call = telemetry::within_part(self.passage.as_ref(), self.call(messages, prefix, sender));
                self.running.push_back(AbortOnDropHandle::new(tokio::spawn(call)));
                self.reading = Some(reading(async { back.await.ok() }));
            }
            Ok(Ok(None)) => {}
            // What is no message has no answer of its own, and nothing after it can be read.
            Ok(Err(error)) => self.stop_reading(error),
            Err(_) => self.stop_reading(broken()),
        }
    }

    /// Reads a request that has begun, hands `messages` back, and works on it; an error is one of the stream's, and nothing is handed back.
    fn call(
        &self,
        mut messages: Messages,
        prefix: Prefix,
        back: oneshot::Sender<Messages>,
    ) -> impl Future<Output = Result<Answered, CallError>> + use<> {
        let (replica, headers, ends) = (Arc::clone(&self.replica), Arc::clone(&self.headers), self.ends);
        let (stop, certificate) = (self.stop.clone(), self.certificate.clone());
        async move {
            let credentials = Credentials { headers: &headers, certificate: certificate.as_deref() };
            // Which model is meant stands in the message; `run` asks about that.
            let grant = replica.ask(credentials, Operation::Infer, OfModel::AskedLater);
            if let Some(error) = grant.as_ref().err().copied().and_then(Refusal::unknown) {
                // The key held when the stream began.
                replica.refuses(error, Operation::Infer);
            }
            let read = async {
                match &grant {
                    Ok(_) => messages.rest(prefix).await,
                    Err(_) => messages.skip(prefix).await,
                }
            };
            let message = tokio::select! {
                message = read => message?,
                () = stop.cancelled() => return Err(scheduler::draining()),
            };
            // Where nobody takes it the stream has ended.
            let _ = back.send(messages);
            let answered = async {
                let (grant, target) = (grant?, target(&message)?);
                let mut wish = Wish::of(&headers)?;
                let deadline = ends.map(|ends| ends.saturating_duration_since(Instant::now()));
                wish.add(Urgency { deadline, priority: None });
                let (pieces, _) = run(&replica, &grant, wish, &message, target).await?;
                Ok::<_, CallError>((in_stream(pieces), Some(grant)))
            };
            let answered = answered.await;
            is_answered(answered.as_ref().err().map(|error| error.code));
            let (pieces, grant) = answered.unwrap_or_else(|error| {
                // One that is too long is what may be wrong.
                let id = Some(id(&message)).filter(|id| id.len() <= replica.tensor_limits.id_bytes);
                (stream_error(&error, id.unwrap_or_default()), None)
            });
            // Counted from here on, also while others are sent before it.
            Ok(Answered { pieces: framed(held(&replica, pieces))?, grant })
        }
    }
}

/// The call that is being worked on has its answer, which is sent in its turn.
fn is_answered(code: Option<ErrorCode>) {
    telemetry::with(|passage| {
        let (status, length, at) = (StatusCode::OK, None, std::time::Instant::now());
        passage.is_answered(telemetry::Answered { status, code, length, at });
    });
}

fn broken() -> CallError {
    CallError::new(ErrorCode::Internal, "a call of the stream ended by a mistake of the server's")
}

/// Waits for the next request, once the messages are there to be read; that they are not coming is told by the call that has them.
fn reading(messages: impl Future<Output = Option<Messages>> + Send + 'static) -> Reading {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let Some(mut messages) = messages.await else { return Ok(None) };
        let begun = messages.begun().await?;
        Ok(begun.map(|prefix| (messages, prefix)))
    }))
}

/// Waits for what is being read, if anything is.
async fn next(reading: &mut Option<Reading>) -> Result<Begun, JoinError> {
    match reading {
        Some(reading) => reading.await,
        None => std::future::pending().await,
    }
}
