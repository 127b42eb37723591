//! `GET /busy?watch`: the busy signal as server-sent events, each with all of it as JSON.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::unfold;
use http::{HeaderValue, header};
use outrigger_protocol::aml;
use outrigger_protocol::busy::BusySnapshot;
use outrigger_protocol::error::{CallError, ErrorCode};

use crate::busy::Watch;
use crate::replica::Replica;

/// How long there is no event at most: a reader that hears nothing for longer has lost its replica.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Why a reader is refused that would stay.
pub(super) const NO_PLACE: &str = "as many readers as observe.watchers are connected";

/// Whether a query asks for it: `watch`, with any value.
pub(super) fn is_asked(query: &str) -> bool {
    query.split('&').any(|pair| pair.split('=').next() == Some("watch"))
}

/// Events until the reader leaves or the replica ends.
pub(super) fn answer(replica: &Replica) -> Response {
    let Some(place) = replica.watcher() else {
        return aml::encode_error(&no_place()).map(Body::from);
    };
    let state = (Watch::new(place, KEEP_ALIVE), replica.observe_ends());
    let events = unfold(state, async |(mut watch, ends)| {
        tokio::select! {
            seen = watch.next() => Some((Ok::<_, Infallible>(event(&seen)), (watch, ends))),
            () = ends.cancelled() => None,
        }
    });
    stream(Body::from_stream(events))
}

/// Refuses a reader that would stay.
pub(super) fn no_place() -> CallError {
    CallError::new(ErrorCode::Overloaded, NO_PLACE).with_retry_after(Duration::from_secs(1))
}

/// An answer of server-sent events.
pub(super) fn stream(events: Body) -> Response {
    let mut response = Response::new(events);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn event(seen: &BusySnapshot) -> Bytes {
    let mut text = Vec::with_capacity(1024);
    text.extend_from_slice(b"data: ");
    // A snapshot is numbers and flags; nothing in it can fail to be JSON.
    let _ = serde_json::to_writer(&mut text, seen);
    text.extend_from_slice(b"\n\n");
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_to_watch() {
        for (query, expected) in
            [("", false), ("watch", true), ("a=b&watch=1", true), ("watcher", false), ("a=watch", false)]
        {
            assert_eq!(is_asked(query), expected, "{query}");
        }
    }
}
