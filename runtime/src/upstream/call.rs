//! A call of an upstream, from its slot to the end of its answer.

use std::future::{self, poll_fn};
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, response};
use http_body::Body as _;
use hyper::body::Incoming;
use outrigger_protocol::aml;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::headers::REQUEST_DEADLINE_MS;
use tokio::time::Instant;

use super::link::{Link, LinkError};
use super::pieces::Pieces;
use super::probe::unreachable;
use super::pulse::Working;
use super::sent::{Sent, Turn};
use super::{Upstream, headers, unavailable};
use crate::busy::Outcome;
use crate::scheduler::{Slot, draining, expired};
use crate::scripts::{Bell, Producer, StreamError, flow};
use crate::telemetry;

/// What an upstream is called with.
pub(crate) struct UpstreamCall {
    /// How it is asked.
    pub(crate) method: Method,
    /// Where, and with which query.
    pub(crate) target: PathAndQuery,
    /// Its headers, as [`headers::for_the_upstream`] makes them.
    pub(crate) headers: HeaderMap,
    /// Its body.
    pub(crate) body: Sent,
}

/// An answer that has begun.
enum Begun {
    /// It is here as a whole.
    Whole(Response<Bytes>, Link),
    /// It comes.
    Comes(response::Parts, Coming),
}

/// An answer that comes.
struct Coming {
    link: Link,
    body: Incoming,
    /// How the caller's own body fares meanwhile.
    turn: Arc<Turn>,
    working: Working,
}

/// Why the rest of an answer does not go to its client.
enum Stop {
    /// The client has gone.
    Left,
    /// The client takes nothing.
    Stalled,
    /// The client's time is over.
    Expired,
    /// The client is at fault.
    Fault(CallError),
    /// The upstream broke off.
    Lost(String),
}

impl Upstream {
    /// Passes a call on. The slot is taken until the upstream's answer is complete, or it has been told that nobody waits for it: its connection
    /// is closed.
    ///
    /// # Errors
    /// `upstream_unavailable`, `upstream_lost`, `upstream_failed`, `scoring_timeout`, `deadline_exceeded`, `draining`; and what the caller's body is
    /// refused for while it is passed on.
    pub(crate) async fn call(
        self: &Arc<Self>,
        call: UpstreamCall,
        mut slot: Slot,
    ) -> Result<Response<Body>, CallError> {
        slot.begin();
        let deadline = slot.deadline();
        let begun = tokio::select! {
            biased;
            () = self.broken_off.cancelled() => Err(draining()),
            () = over(deadline) => Err(expired()),
            begun = self.exchange(call, deadline) => begun,
        };
        telemetry::with(|passage| passage.end(None));
        match begun {
            Ok(Begun::Whole(answer, link)) => {
                self.pool.put(link).await;
                slot.finish(Outcome::Answered);
                Ok(answer.map(|bytes| Body::from(self.busy.hold(bytes))))
            }
            Ok(Begun::Comes(head, coming)) => {
                let bell = Arc::new(Bell::default());
                let window = self.config.window as u64;
                let (producer, stream) = flow(window, Arc::clone(&bell), Arc::clone(&self.busy));
                let flow = Flow { producer, bell };
                self.tasks.spawn(Arc::clone(self).pass_on(coming, slot, flow));
                Ok(Response::from_parts(head, Body::new(stream)))
            }
            Err(error) => {
                self.metrics.failed(error.code);
                slot.finish(Outcome::Failed);
                Err(error)
            }
        }
    }

    async fn exchange(&self, call: UpstreamCall, deadline: Option<Instant>) -> Result<Begun, CallError> {
        let working = self.pulse.work();
        let (answer, link, turn) = self.head(call, deadline).await?;
        self.pulse.beat();
        let (mut head, body) = answer.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(failed("the upstream changes the protocol, which it was not asked for".into()));
        }
        if headers::size(&head.headers) > self.header {
            let text = format!(
                "the headers of the upstream's answer are larger than limits.header, {} bytes",
                self.header
            );
            return Err(failed(text));
        }
        headers::strip(&mut head.headers);
        // It is our answer that it becomes: one of an old version would have no way of saying that it breaks off.
        head.version = Version::HTTP_11;
        self.metrics.answered(head.status);
        let length = body.size_hint().exact();
        let mut coming = Coming { link, body, turn, working };
        match length {
            Some(length) if length <= self.config.window as u64 => {
                let whole = self.whole(&mut coming).await?;
                Ok(Begun::Whole(Response::from_parts(head, whole), coming.link))
            }
            _ => Ok(Begun::Comes(head, coming)),
        }
    }

    /// Sends a request and waits for the head of its answer.
    async fn head(
        &self,
        call: UpstreamCall,
        deadline: Option<Instant>,
    ) -> Result<(Response<Incoming>, Link, Arc<Turn>), CallError> {
        let mut request = call.request();
        let mut kept = self.pool.take().await;
        loop {
            let was_kept = kept.is_some();
            let mut link = match kept {
                Some(link) => link,
                None => self.connect().await?,
            };
            if let Some(deadline) = deadline {
                let left = deadline.saturating_duration_since(Instant::now()).as_millis();
                let left = HeaderValue::from(u64::try_from(left).unwrap_or(u64::MAX));
                request.headers_mut().insert(REQUEST_DEADLINE_MS, left);
            }
            let turn = request.body_mut().begin();
            let asked = tokio::select! {
                biased;
                asked = link.ask(request) => asked,
                () = turn.is_too_long(self.config.timeout) => return Err(aml::scoring_timeout(self.config.timeout)),
            };
            match asked {
                Ok(answer) => return Ok((answer, link, turn)),
                // It was closed while nobody had it. Nothing of the request has gone out.
                Err(LinkError::NotSent(unsent)) if was_kept => {
                    request = *unsent;
                    kept = self.pool.take().await;
                }
                Err(LinkError::NotSent(_)) => {
                    return Err(lost("the upstream closed the connection before it had the request"));
                }
                Err(LinkError::Broken(error)) => return Err(self.broken(&error, &turn)),
            }
        }
    }

    async fn connect(&self) -> Result<Link, CallError> {
        let (address, limit) = (&self.config.address, self.config.connect_timeout);
        let count = Some(self.metrics.connections.clone());
        let link = Link::connect(address, limit, self.config.window, count).await;
        link.iter().for_each(|_| self.metrics.connects.inc());
        link.map_err(|error| {
            unavailable(format!("the upstream cannot be reached: {}", unreachable(address, &error)))
        })
    }

    /// What it means that no answer came.
    fn broken(&self, error: &hyper::Error, turn: &Turn) -> CallError {
        if let Some(fault) = turn.fault() {
            return fault.clone();
        }
        let upstream = &self.config.address;
        if error.is_parse_too_large() {
            let text = "the head of the upstream's answer is larger than can be taken (limits.header, upstream.window)";
            return failed(text.into());
        }
        if error.is_parse() {
            tracing::warn!(%upstream, %error, "the upstream does not speak HTTP");
            return failed("what the upstream answers is not HTTP".into());
        }
        tracing::warn!(%upstream, %error, "the upstream broke off a call");
        lost("the upstream closed the connection before it answered")
    }

    /// Reads a short answer to its end.
    async fn whole(&self, Coming { link, body, turn, .. }: &mut Coming) -> Result<Bytes, CallError> {
        let mut whole = Pieces::default();
        loop {
            let Ok(frame) = tokio::time::timeout(self.config.gap_timeout, link.frame(body)).await else {
                return Err(lost("the upstream's answer stopped in the middle (upstream.gap_timeout)"));
            };
            match frame {
                None => return Ok(whole.joined()),
                Some(Ok(frame)) => {
                    // Trailers are not passed on.
                    if let Ok(data) = frame.into_data() {
                        whole.add(data);
                    }
                }
                Some(Err(error)) => {
                    if let Some(fault) = turn.fault() {
                        return Err(fault.clone());
                    }
                    let upstream = &self.config.address;
                    tracing::warn!(%upstream, %error, "the upstream broke off its answer");
                    return Err(lost("the upstream broke off in the middle of its answer"));
                }
            }
        }
    }

    /// Passes an answer on as it comes. The slot is free before the client can know the end.
    async fn pass_on(self: Arc<Self>, mut coming: Coming, slot: Slot, flow: Flow) {
        let passed = tokio::select! {
            biased;
            () = self.broken_off.cancelled() => Err(ending()),
            () = over(slot.deadline()) => Err(Stop::Expired),
            passed = self.pieces(&mut coming, &flow) => passed,
        };
        let Coming { link, body, working, .. } = coming;
        drop((body, working));
        let last = match passed {
            Ok(last) => {
                self.pool.put(link).await;
                slot.finish(Outcome::Answered);
                last
            }
            Err(stop) => {
                // The upstream is told first.
                drop(link);
                let (outcome, end) = self.stopped(stop);
                slot.finish(outcome);
                flow.producer.end(Err(end));
                return;
            }
        };
        let passed = tokio::select! {
            biased;
            () = self.broken_off.cancelled() => Err(ending()),
            passed = self.piece(last, true, &flow) => passed,
        };
        flow.producer.end(passed.map_err(|stop| match stop {
            Stop::Stalled => StreamError::Stalled,
            _ => StreamError::Lost,
        }));
    }

    /// What becomes of a call whose answer is not passed on to its end.
    fn stopped(&self, stop: Stop) -> (Outcome, StreamError) {
        let upstream = &self.config.address;
        match stop {
            Stop::Left => (Outcome::Cancelled, StreamError::Lost),
            Stop::Stalled => {
                tracing::debug!(%upstream, "a client does not take its answer");
                (Outcome::Failed, StreamError::Stalled)
            }
            Stop::Expired => {
                self.metrics.failed(ErrorCode::DeadlineExceeded);
                (Outcome::Failed, StreamError::Lost)
            }
            Stop::Fault(fault) => {
                tracing::debug!(%upstream, %fault, "a client's body ends its call");
                self.metrics.failed(fault.code);
                (Outcome::Failed, StreamError::Lost)
            }
            Stop::Lost(reason) => {
                tracing::warn!(%upstream, reason, "the upstream's answer is broken off");
                self.metrics.failed(ErrorCode::UpstreamLost);
                (Outcome::Failed, StreamError::Lost)
            }
        }
    }

    /// Passes on what comes, but for a piece that is known to be the last: nothing more is wanted of the upstream then.
    async fn pieces(&self, Coming { link, body, turn, .. }: &mut Coming, flow: &Flow) -> Result<Bytes, Stop> {
        let gap = self.config.gap_timeout;
        loop {
            let frame = tokio::select! {
                biased;
                () = flow.left() => return Err(Stop::Left),
                frame = tokio::time::timeout(gap, link.frame(body)) => frame,
            };
            let Ok(frame) = frame else {
                return Err(Stop::Lost(format!("nothing came for {gap:?} (upstream.gap_timeout)")));
            };
            let frame = match frame {
                None => return Ok(Bytes::new()),
                Some(Err(error)) => {
                    return Err(match turn.fault() {
                        Some(fault) => Stop::Fault(fault.clone()),
                        None => Stop::Lost(error.to_string()),
                    });
                }
                Some(Ok(frame)) => frame,
            };
            self.pulse.beat();
            // Trailers are not passed on.
            let Ok(data) = frame.into_data() else { continue };
            if body.is_end_stream() {
                return Ok(data);
            }
            self.piece(data, false, flow).await?;
        }
    }

    /// Passes a piece on, as there is room for it.
    async fn piece(&self, mut data: Bytes, is_last: bool, flow: &Flow) -> Result<(), Stop> {
        while !data.is_empty() {
            let passed = tokio::time::timeout(self.config.stall_timeout, flow.pass(&mut data, is_last));
            passed.await.map_err(|_| Stop::Stalled)??;
        }
        Ok(())
    }
}

impl UpstreamCall {
    fn request(self) -> Request<Sent> {
        let mut request = Request::new(self.body);
        *request.uri_mut() = self.target.into();
        *request.headers_mut() = self.headers;
        // A body of GET's, and that there is none of POST's, is known only where it is said.
        match request.body().size_hint().exact() {
            None => {
                request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            Some(0) if [Method::POST, Method::PUT, Method::PATCH].contains(&self.method) => {
                request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
            Some(_) => {}
        }
        *request.method_mut() = self.method;
        request
    }
}

/// The way of an answer to its client.
struct Flow {
    producer: Producer,
    /// Rung when the client takes something, or leaves.
    bell: Arc<Bell>,
}

impl Flow {
    async fn rung(&self) {
        poll_fn(|context| self.bell.poll_rung(context)).await;
    }

    /// Comes back once the client has left.
    async fn left(&self) {
        while !self.producer.is_left() {
            self.rung().await;
        }
    }

    /// Waits until there is room, and passes on as much of `data` as there is.
    async fn pass(&self, data: &mut Bytes, is_last: bool) -> Result<(), Stop> {
        loop {
            if self.producer.is_left() {
                return Err(Stop::Left);
            }
            if self.producer.pass(data, is_last) {
                return Ok(());
            }
            self.rung().await;
        }
    }
}

/// Comes back once the time of a call is over.
async fn over(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => future::pending().await,
    }
}

fn ending() -> Stop {
    Stop::Lost("the replica is ending".into())
}

fn lost(text: &'static str) -> CallError {
    CallError::new(ErrorCode::UpstreamLost, text)
}

fn failed(text: String) -> CallError {
    CallError::new(ErrorCode::UpstreamFailed, text)
}
