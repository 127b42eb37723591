//! A caller's place, taken until its answer is complete.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use outrigger_auth::Permit;

/// Keeps `permit` until the last of the answer has been handed to the connection, or the client has gone. It is given back just
/// before the end goes out, so that a client which has a whole answer finds its place free. Bytes that wait in the
/// connection are counted elsewhere (`limits.answers`).
pub(super) fn until_complete(response: Response, permit: Option<Permit>) -> Response {
    match permit {
        Some(permit) => response.map(|body| {
            let over = http_body::Body::is_end_stream(&body);
            Body::new(Permitted { body, permit: Some(permit).filter(|_| !over) })
        }),
        None => response,
    }
}

/// A body with the place of whom it is for.
struct Permitted {
    body: Body,
    permit: Option<Permit>,
}

impl http_body::Body for Permitted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.permit = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
