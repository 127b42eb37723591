//! What passes of a call, taken by reference on its way, and offered to the collections `request` and `response` when its answer ends.
//!
//! A call is not held up by that, unless a collection's policy is `block`: then the end of its answer waits until both are on disk, so that an answer that
//! a client has is one that is kept.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use axum::body::Body;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use outrigger_auth::OfModel;
use outrigger_collect::{Offered, Outcome, Record};
use outrigger_protocol::ErrorCode;

use super::bodies::{Answered, Asked};
use super::held::{Held, Passed};
use super::{Collecting, Tapped, secrets};
use crate::methods;
use crate::observed::Observed;

/// What a call is recorded as whose client has gone: nobody has seen a status.
const CLIENT_LEFT: u16 = 499;

/// A call whose records may be kept. One that was allowed and comes to no answer, as its client has gone, is offered when this is dropped.
pub(crate) struct Tap(Option<Tapping>);

struct Tapping {
    passing: Arc<Passing>,
    about: About,
    /// Set once the call has been allowed, with the model where the caller has named one by then.
    allowed: OnceLock<Option<Arc<str>>>,
}

/// What has passed of a call's request and its answer.
pub(super) struct Passing {
    collecting: Arc<Collecting>,
    pub(super) request: Half,
    pub(super) response: Half,
}

/// What is known of a call from its head. Nothing of it is copied before the call is offered.
struct About {
    begun: Instant,
    request_id: HeaderValue,
    method: Method,
    uri: Uri,
    content_type: Option<HeaderValue>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// What becomes of a call's request, or of its answer.
pub(super) enum Half {
    /// There is no such collection.
    Off,
    /// It is not of those that are kept, whatever becomes of the call.
    Skipped,
    /// It may be kept.
    Kept(Mutex<Passed>),
}

impl Half {
    fn new(tapped: Option<&Tapped>, request_id: &str) -> Self {
        match tapped {
            None => Self::Off,
            Some(tapped) if !tapped.late && !tapped.collection.decide(request_id, Outcome::default()) => {
                Self::Skipped
            }
            Some(_) => Self::Kept(Mutex::default()),
        }
    }

    fn is_kept(&self) -> bool {
        matches!(self, Self::Kept(_))
    }

    /// Of one that may be kept.
    pub(super) fn with<T>(&self, then: impl FnOnce(&mut Passed) -> T) -> Option<T> {
        let Self::Kept(passed) = self else { return None };
        // What a thread that panicked has pushed is there.
        Some(then(&mut passed.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Passing {
    pub(super) fn held(&self) -> &Held {
        &self.collecting.held
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        let kept = [&self.request, &self.response].map(|half| half.with(|passed| passed.kept()));
        self.held().release(kept.into_iter().flatten().sum());
    }
}

impl Tap {
    /// For a call that has begun; nothing if nothing is kept of calls.
    pub(crate) fn new(
        collecting: &Arc<Collecting>,
        parts: &Parts,
        request_id: &HeaderValue,
        begun: Instant,
    ) -> Option<Self> {
        if collecting.request.is_none() && collecting.response.is_none() {
            return None;
        }
        let id = request_id.to_str().unwrap_or_default();
        let request = Half::new(collecting.request.as_ref(), id);
        let response = Half::new(collecting.response.as_ref(), id);
        let wanted = collecting.config.headers.iter().chain(ENCODING).filter(|_| request.is_kept());
        let about = About {
            begun,
            request_id: request_id.clone(),
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            content_type: parts.headers.get(header::CONTENT_TYPE).cloned(),
            headers: wanted.filter_map(|name| pair(name, &parts.headers)).collect(),
        };
        let passing = Arc::new(Passing { collecting: Arc::clone(collecting), request, response });
        Some(Self(Some(Tapping { passing, about, allowed: OnceLock::new() })))
    }

    /// The request's body, which is tapped.
    pub(crate) fn request(&self, body: Body) -> Body {
        let Some(Tapping { passing, .. }) =
            self.0.as_ref().filter(|tapping| tapping.passing.request.is_kept())
        else {
            return body;
        };
        if http_body::Body::is_end_stream(&body) {
            passing.request.with(Passed::end);
            return body;
        }
        Body::new(Observed { body, observer: Asked(Arc::clone(passing)) })
    }

    /// The call may be made. Of several models it is of the first.
    pub(crate) fn allow(&self, model: OfModel<'_>) {
        if let Some(tapping) = &self.0 {
            let name = || if let OfModel::Named(name) = model { Some(name.into()) } else { None };
            tapping.allowed.get_or_init(name);
        }
    }

    /// The answer, which is tapped if the call was allowed; both are offered when it ends. `model` is the one that was found, and `code` what the call failed with.
    pub(crate) async fn response(
        mut self,
        response: Response,
        model: Option<Arc<str>>,
        code: Option<ErrorCode>,
    ) -> Response {
        let Some(tapping) = self.0.take() else { return response };
        // What is not allowed is not collected, or anybody could fill the disk. Of a model that is named late that is found out late.
        let refused = matches!(code, Some(ErrorCode::Unauthenticated | ErrorCode::Forbidden));
        if tapping.allowed.get().is_none() || refused {
            return response;
        }
        let (parts, body) = response.into_parts();
        let answer = Answer {
            // In gRPC all are 200 on the outside.
            status: code.map_or(parts.status, ErrorCode::status).as_u16(),
            content_type: parts.headers.get(header::CONTENT_TYPE).cloned(),
            headers: ENCODING.iter().filter_map(|name| pair(name, &parts.headers)).collect(),
        };
        let end = End { tapping, model, answer };
        let body = if http_body::Body::is_end_stream(&body) {
            kept(end.offer(Ended::Whole)).await;
            body
        } else if end.passing().request.is_kept() || end.passing().response.is_kept() {
            Body::new(Answered::new(body, end))
        } else {
            drop(end.offer(Ended::Whole));
            body
        };
        Response::from_parts(parts, body)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Some(tapping) = self.0.take().filter(|tapping| tapping.allowed.get().is_some()) {
            let answer = Answer { status: CLIENT_LEFT, content_type: None, headers: Vec::new() };
            drop(End { tapping, model: None, answer }.offer(Ended::Left));
        }
    }
}

/// What nearly everything is.
const JSON: &str = "application/json";
/// How a body is compressed.
const ENCODING: &[HeaderName] = &[header::CONTENT_ENCODING];

fn pair(name: &HeaderName, headers: &HeaderMap) -> Option<(HeaderName, HeaderValue)> {
    Some((name.clone(), headers.get(name)?.clone()))
}

/// Headers under names as events have them: of lower-case letters and digits.
fn attributes(headers: &[(HeaderName, HeaderValue)]) -> impl Iterator<Item = (Arc<str>, Arc<str>)> {
    headers.iter().filter_map(|(name, value)| {
        let bare: String = name.as_str().chars().filter(char::is_ascii_alphanumeric).collect();
        Some((bare.into(), text(value)?))
    })
}

fn text(value: &HeaderValue) -> Option<Arc<str>> {
    value.to_str().ok().map(Arc::from)
}

/// A content type; that which most have is not copied.
fn content_type(value: &HeaderValue) -> Option<Cow<'static, str>> {
    let text = value.to_str().ok()?;
    Some(if text == JSON { JSON.into() } else { text.to_owned().into() })
}

/// A method; one that HTTP knows is not copied.
fn method(method: &Method) -> Cow<'static, str> {
    methods::known(method).map_or_else(|| method.as_str().to_owned().into(), Cow::Borrowed)
}

/// Waits for those that are to be waited for.
pub(super) async fn kept(offered: [Option<Offered>; 2]) {
    // The second has been offered as well by now, so that one wait is as long as both.
    for offered in offered.into_iter().flatten() {
        offered.kept().await;
    }
}

/// What is known of an answer from its head.
struct Answer {
    status: u16,
    content_type: Option<HeaderValue>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// How an answer has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The client has all of it.
    Whole,
    /// The client has gone before.
    Left,
    /// Whoever made it did not come to its end.
    Broken,
}

/// Everything that is offered when an answer ends.
pub(super) struct End {
    tapping: Tapping,
    model: Option<Arc<str>>,
    answer: Answer,
}

impl End {
    pub(super) fn passing(&self) -> &Passing {
        &self.tapping.passing
    }

    /// Offers request and answer.
    pub(super) fn offer(self, ended: Ended) -> [Option<Offered>; 2] {
        let Self { tapping: Tapping { passing, about, allowed }, model, answer } = self;
        let Passing { collecting, request, response } = &*passing;
        let (latency, now) = (about.begun.elapsed(), SystemTime::now());
        let status = match ended {
            Ended::Whole => answer.status,
            Ended::Left => CLIENT_LEFT,
            Ended::Broken => answer.status.max(StatusCode::INTERNAL_SERVER_ERROR.as_u16()),
        };
        let outcome = Outcome { status: Some(status), latency: Some(latency) };
        let request_id = text(&about.request_id).unwrap_or_default();
        let model = model.or_else(|| allowed.into_inner().flatten());
        let base = |passed: &mut Passed, time| {
            let mut record = Record::new(Arc::clone(&request_id), time, passed.data());
            record.outcome = outcome;
            record.model = model.clone();
            if !passed.is_whole() {
                record.cut = true;
                record.attributes.push(("truncatedfrom".into(), passed.length().to_string().into()));
            }
            if !passed.has_ended() {
                record.attributes.push(("incomplete".into(), "true".into()));
            }
            record
        };
        let asked = offered(collecting.request.as_ref(), request, &request_id, outcome, |passed| {
            let mut record = base(passed, now.checked_sub(latency).unwrap_or(SystemTime::UNIX_EPOCH));
            record.method = Some(method(&about.method));
            let path = about.uri.path_and_query().map_or("/", |path| path.as_str());
            record.path = Some(secrets::without(path).into_owned().into());
            record.content_type = about.content_type.as_ref().and_then(content_type);
            record.attributes.extend(attributes(&about.headers));
            record
        });
        let answered = offered(collecting.response.as_ref(), response, &request_id, outcome, |passed| {
            if ended == Ended::Whole {
                passed.end();
            }
            let mut record = base(passed, now);
            record.content_type = answer.content_type.as_ref().and_then(content_type);
            record.attributes.extend(attributes(&answer.headers));
            record
        });
        [asked, answered]
    }
}

fn offered(
    tapped: Option<&Tapped>,
    half: &Half,
    request_id: &str,
    outcome: Outcome,
    record: impl FnOnce(&mut Passed) -> Record,
) -> Option<Offered> {
    let Tapped { collection, late } = tapped?;
    match half {
        Half::Off => None,
        // What only its end says has not been decided yet.
        Half::Kept(_) if !late || collection.decide(request_id, outcome) => {
            half.with(record).map(|record| collection.offer_decided(record))
        }
        Half::Skipped | Half::Kept(_) => Some(collection.skip()),
    }
}
