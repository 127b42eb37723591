//! Bodies of requests that do not end before their sender has said so.
//!
//! A stream of HTTP/2 that its sender cancels without giving a fault (`RST_STREAM` with `NO_ERROR`) is shown to us as one that has come to its
//! end: what has come of it would be taken for all of it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http::Version;
use http_body::{Frame, SizeHint};

/// The sender has cancelled it.
#[derive(Debug, thiserror::Error)]
#[error("the body was cancelled before it was complete")]
struct Cancelled;

/// `body`, which fails where it ends early. `version` is what it comes by.
pub(super) fn entire(body: Body, version: Version) -> Body {
    // In HTTP/1.1 it ends with its connection, which is a fault there already.
    if version != Version::HTTP_2 || http_body::Body::is_end_stream(&body) {
        return body;
    }
    Body::new(Entire(body))
}

struct Entire(Body);

impl http_body::Body for Entire {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(context));
        // Of a stream that has ended in order all is read by now, its trailers too.
        if frame.is_none() && !self.0.is_end_stream() {
            return Poll::Ready(Some(Err(axum::Error::new(Cancelled))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
