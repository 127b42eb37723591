//! What passes of a call, taken by reference on its way, and offered to the collections `request` and `response` when its answer ends.
//!
//! A call is not held up by that, unless a collection's policy is `block`: then the end of its answer waits until both are on disk, so that an answer that
//! a client has is one that is kept.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Instant, SystemTime};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, StatusCode, header};
use http_body::{Frame, SizeHint};
use outrigger_auth::OfModel;
use outrigger_collect::{Offered, Outcome, Record};

use super::held::Passed;
use super::{Collecting, Tapped};

/// A call whose records may be kept.
pub(crate) struct Tap {
    collecting: Arc<Collecting>,
    request: Half,
    response: Half,
    about: About,
}

/// What is known of a call from its head.
struct About {
    begun: Instant,
    time: SystemTime,
    request_id: Arc<str>,
    method: Arc<str>,
    path: Arc<str>,
    content_type: Option<Arc<str>>,
    attributes: Vec<(Arc<str>, Arc<str>)>,
}

/// What becomes of a call's request, or of its answer.
enum Half {
    /// There is no such collection.
    Off,
    /// It is not of those that are kept, whatever becomes of the call.
    Skipped,
    /// It may be kept.
    Kept(Arc<Mutex<Passed>>),
}

/// A call that may be made, as its contract knows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Call {
    /// The model, where the caller has named one.
    pub(crate) model: Option<Arc<str>>,
}

impl Call {
    /// Of a model, where that is said.
    pub(crate) fn of(model: OfModel<'_>) -> Self {
        let OfModel::Named(name) = model else { return Self::default() };
        Self { model: Some(name.into()) }
    }
}

impl Tap {
    /// For a call that has begun; nothing if nothing is kept of calls.
    pub(crate) fn new(
        collecting: &Arc<Collecting>,
        parts: &Parts,
        request_id: &str,
        begun: Instant,
    ) -> Option<Self> {
        if collecting.request.is_none() && collecting.response.is_none() {
            return None;
        }
        let half = |tapped: &Option<Tapped>| match tapped {
            None => Half::Off,
            Some(tapped) if !tapped.late && !tapped.collection.decide(request_id, Outcome::default()) => {
                Half::Skipped
            }
            Some(_) => {
                Half::Kept(Arc::new(Mutex::new(Passed::new(&collecting.held, collecting.config.body))))
            }
        };
        let (request, response) = (half(&collecting.request), half(&collecting.response));
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let kept = matches!(request, Half::Kept(_));
        let wanted = collecting.config.headers.iter().chain(ENCODING).filter(|_| kept);
        let about = About {
            begun,
            time: SystemTime::now(),
            request_id: request_id.into(),
            method: parts.method.as_str().into(),
            path: path.into(),
            content_type: content_type(&parts.headers),
            attributes: wanted.filter_map(|name| attribute(name, &parts.headers)).collect(),
        };
        Some(Self { collecting: Arc::clone(collecting), request, response, about })
    }

    /// The request's body, which is tapped.
    pub(crate) fn request(&self, body: Body) -> Body {
        match &self.request {
            Half::Kept(passed) if !http_body::Body::is_end_stream(&body) => {
                Body::new(Asked { body, passed: Arc::clone(passed) })
            }
            _ => body,
        }
    }

    /// The answer to a call that was allowed, which is tapped; both are offered when it ends.
    pub(crate) async fn response(self, response: Response, call: Call) -> Response {
        let (parts, body) = response.into_parts();
        let answer = Answer {
            status: parts.status,
            content_type: content_type(&parts.headers),
            attributes: ENCODING.iter().filter_map(|name| attribute(name, &parts.headers)).collect(),
        };
        let mut end = Some(End { tap: self, call, answer });
        let body = if http_body::Body::is_end_stream(&body) {
            if let Some(end) = end.take() {
                kept(end.offer(true)).await;
            }
            body
        } else {
            Body::new(Answered { body, end, waiting: None, last: None })
        };
        Response::from_parts(parts, body)
    }
}

/// How a body is compressed.
const ENCODING: &[HeaderName] = &[header::CONTENT_ENCODING];

fn content_type(headers: &HeaderMap) -> Option<Arc<str>> {
    headers.get(header::CONTENT_TYPE)?.to_str().ok().map(Arc::from)
}

/// A header, under a name as events have them: of lower-case letters and digits.
fn attribute(name: &HeaderName, headers: &HeaderMap) -> Option<(Arc<str>, Arc<str>)> {
    let value = headers.get(name)?.to_str().ok()?;
    let bare: String = name.as_str().chars().filter(char::is_ascii_alphanumeric).collect();
    Some((bare.into(), value.into()))
}

/// Waits for those that are to be waited for.
async fn kept(offered: [Option<Offered>; 2]) {
    // The second has been offered as well by now, so that one wait is as long as both.
    for offered in offered.into_iter().flatten() {
        offered.kept().await;
    }
}

/// What is known of an answer from its head.
struct Answer {
    status: StatusCode,
    content_type: Option<Arc<str>>,
    attributes: Vec<(Arc<str>, Arc<str>)>,
}

/// Everything that is offered when an answer ends.
struct End {
    tap: Tap,
    call: Call,
    answer: Answer,
}

impl End {
    /// Offers request and answer; `whole` unless the client has gone before it had all of it.
    fn offer(self, whole: bool) -> [Option<Offered>; 2] {
        let Self { tap: Tap { collecting, request, response, about }, call, answer } = self;
        let latency = about.begun.elapsed();
        let outcome = Outcome { status: Some(answer.status.as_u16()), latency: Some(latency) };
        let base = |passed: &mut Passed, time, broken: bool| {
            let mut record = Record::new(Arc::clone(&about.request_id), time, passed.data());
            record.outcome = outcome;
            record.model = call.model.clone();
            if !passed.is_whole() {
                record.attributes.push(("truncatedfrom".into(), passed.length().to_string().into()));
            }
            if broken {
                record.attributes.push(("incomplete".into(), "true".into()));
            }
            record
        };
        let asked = offered(&collecting.request, &request, &about.request_id, outcome, |passed| {
            let mut record = base(passed, about.time, false);
            record.method = Some(Arc::clone(&about.method));
            record.path = Some(Arc::clone(&about.path));
            record.content_type = about.content_type.clone();
            record.attributes.extend(about.attributes.iter().cloned());
            record
        });
        let answered = offered(&collecting.response, &response, &about.request_id, outcome, |passed| {
            let mut record = base(passed, about.time + latency, !whole);
            record.content_type = answer.content_type.clone();
            record.attributes.push(("statuscode".into(), answer.status.as_str().into()));
            record.attributes.extend(answer.attributes.iter().cloned());
            record
        });
        [asked, answered]
    }
}

fn offered(
    tapped: &Option<Tapped>,
    half: &Half,
    request_id: &str,
    outcome: Outcome,
    record: impl FnOnce(&mut Passed) -> Record,
) -> Option<Offered> {
    let Tapped { collection, .. } = tapped.as_ref()?;
    match half {
        Half::Off => None,
        Half::Kept(passed) if collection.decide(request_id, outcome) => {
            // What a thread that panicked has pushed is there.
            let mut passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
            Some(collection.offer_decided(record(&mut passed)))
        }
        Half::Skipped | Half::Kept(_) => Some(collection.skip()),
    }
}

fn push(passed: &Mutex<Passed>, frame: Option<&Result<Frame<Bytes>, axum::Error>>) {
    if let Some(Ok(frame)) = frame
        && let Some(data) = frame.data_ref()
    {
        passed.lock().unwrap_or_else(PoisonError::into_inner).push(data);
    }
}

/// A request's body.
struct Asked {
    body: Body,
    passed: Arc<Mutex<Passed>>,
}

impl http_body::Body for Asked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        push(&self.passed, frame.as_ref());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body.
struct Answered {
    body: Body,
    /// Until it has ended.
    end: Option<End>,
    /// Until what is collected of it is kept.
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// What goes out then.
    last: Option<Frame<Bytes>>,
}

impl Answered {
    /// Offers what there is, and begins to wait for it where anybody is to.
    fn ends(&mut self) {
        let Some(end) = self.end.take() else { return };
        let offered = end.offer(true);
        if offered.iter().flatten().any(|offered| matches!(offered, Offered::Waiting(_))) {
            self.waiting = Some(Box::pin(kept(offered)));
        }
    }
}

impl http_body::Body for Answered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if this.waiting.is_none() && this.last.is_none() {
            if this.end.is_none() && http_body::Body::is_end_stream(&this.body) {
                return Poll::Ready(None);
            }
            let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
            if let Some(End { tap: Tap { response: Half::Kept(passed), .. }, .. }) = &this.end {
                push(passed, frame.as_ref());
            }
            match frame {
                Some(Ok(frame)) if http_body::Body::is_end_stream(&this.body) => {
                    this.last = Some(frame);
                    this.ends();
                }
                Some(Ok(frame)) => return Poll::Ready(Some(Ok(frame))),
                // It has not been answered.
                Some(Err(error)) => {
                    drop(this.end.take().map(|end| end.offer(false)));
                    return Poll::Ready(Some(Err(error)));
                }
                None => this.ends(),
            }
        }
        if let Some(waiting) = &mut this.waiting {
            ready!(waiting.as_mut().poll(context));
            this.waiting = None;
        }
        Poll::Ready(this.last.take().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.end.is_none() && self.waiting.is_none() && self.last.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let last = self.last.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len) as u64;
        let mut hint = self.body.size_hint();
        match hint.exact() {
            Some(exact) => hint.set_exact(exact + last),
            None => hint.set_lower(hint.lower() + last),
        }
        hint
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        // The client has gone before it had all of it.
        if let Some(end) = self.end.take() {
            drop(end.offer(false));
        }
    }
}
