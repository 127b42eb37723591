//! `ModelStreamInfer`: requests of one stream are worked on together, up to a limit, and answered in their order. One that fails says so
//! in its answer, and the stream goes on.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use futures_util::stream::{FuturesOrdered, StreamExt, unfold};
use http::HeaderMap;
use http_body::Frame;
use http_body_util::StreamBody;
use outrigger_auth::Grant;
use outrigger_protocol::error::CallError;
use outrigger_protocol::grpc;
use outrigger_protocol::oip::grpc::{Pieces, in_stream, stream_error, target};
use outrigger_protocol::operation::Operation;
use tokio_util::sync::CancellationToken;

use super::super::infer::held;
use super::super::routes::Routes;
use super::infer::{run, wish};
use super::{Messages, answer, framed};
use crate::busy::Reserved;
use crate::replica::Replica;
use crate::scheduler;

pub(super) fn routes(routes: Routes) -> Routes {
    routes.at("/inference.GRPCInferenceService/ModelStreamInfer", Operation::Infer, any(infer))
}

async fn infer(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::Infer, request, async |gate, parts, body| {
        // Each request in it asks for itself.
        gate.check(&parts.headers)?;
        wish(&parts.headers)?;
        let messages = Messages::new(&replica, &parts.headers, body, replica.config.limits.body)?;
        let calls = Calls::new(Arc::clone(&replica), parts.headers, messages);
        let frames = unfold(calls, async |mut calls| Some((calls.next().await?, calls)));
        Ok(grpc::encode_ok().map(|()| Body::new(StreamBody::new(frames.map(Ok::<_, Infallible>)))))
    })
    .await
}

type Reading = Pin<Box<dyn Future<Output = (Messages, Read)> + Send>>;
type Read = Result<Option<(Bytes, Reserved)>, CallError>;
type Call = Pin<Box<dyn Future<Output = Answered> + Send>>;

/// An answer, and the caller's place, which is taken until it is sent.
struct Answered {
    pieces: Pieces,
    grant: Option<Grant>,
}

/// The calls of a stream.
struct Calls {
    replica: Arc<Replica>,
    headers: Arc<HeaderMap>,
    /// The next request; nothing once there are no more.
    reading: Option<Reading>,
    running: FuturesOrdered<Call>,
    /// Pieces of the answer that is being sent.
    pieces: VecDeque<Bytes>,
    /// For whom it is.
    grant: Option<Grant>,
    /// How the stream ends.
    end: Option<Result<(), CallError>>,
    stop: CancellationToken,
}

impl Calls {
    fn new(replica: Arc<Replica>, headers: HeaderMap, messages: Messages) -> Self {
        Self {
            stop: replica.calls_end(),
            replica,
            headers: Arc::new(headers),
            reading: Some(read(messages)),
            running: FuturesOrdered::new(),
            pieces: VecDeque::new(),
            grant: None,
            end: Some(Ok(())),
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
                (messages, read) = next(&mut self.reading), if room && self.reading.is_some() => {
                    self.take(messages, read);
                }
                () = self.stop.cancelled(), if self.reading.is_some() => self.stop_reading(scheduler::draining()),
            }
        }
    }

    fn send(&mut self, Answered { pieces, grant }: Answered) {
        match framed(held(&self.replica, pieces)) {
            Ok(pieces) => self.pieces.extend(pieces),
            Err(error) => self.stop_reading(error),
        }
        self.grant = grant;
    }

    fn stop_reading(&mut self, error: CallError) {
        self.reading = None;
        self.end = Some(Err(error));
    }

    fn take(&mut self, messages: Messages, message: Read) {
        self.reading = None;
        match message {
            Ok(Some(message)) => {
                self.running.push_back(self.call(message));
                self.reading = Some(read(messages));
            }
            Ok(None) => {}
            // What is no message has no answer of its own, and nothing after it can be read.
            Err(error) => self.stop_reading(error),
        }
    }

    fn call(&self, (message, reserved): (Bytes, Reserved)) -> Call {
        let (replica, headers) = (Arc::clone(&self.replica), Arc::clone(&self.headers));
        Box::pin(async move {
            let _reserved = reserved;
            let answered = async {
                let target = target(&message)?;
                let grant = replica.ask(&headers, Operation::Infer, Some(target.model))?;
                let (pieces, _) = run(&replica, &grant, wish(&headers)?, &message, target).await?;
                Ok::<_, CallError>(Answered { pieces: in_stream(pieces), grant: Some(grant) })
            };
            answered.await.unwrap_or_else(|error| {
                let id = target(&message).map_or("", |target| target.id);
                Answered { pieces: stream_error(&error, id), grant: None }
            })
        })
    }
}

fn read(mut messages: Messages) -> Reading {
    Box::pin(async move {
        let read = messages.next().await;
        (messages, read)
    })
}

/// Waits for what is being read, if anything is.
async fn next(reading: &mut Option<Reading>) -> (Messages, Read) {
    match reading {
        Some(reading) => reading.await,
        None => std::future::pending().await,
    }
}
