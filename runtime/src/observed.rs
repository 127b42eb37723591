//! A body whose pieces, and whose end, somebody is told of as they pass.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};

/// Who is told. Nothing is held up or changed by that.
pub(crate) trait Observer: Unpin + Send + 'static {
    /// A piece of its data passes.
    fn passes(&mut self, _piece: &Bytes) {}

    /// Nothing more comes: all of it has passed, or it has failed.
    fn ends(&mut self, is_whole: bool);
}

/// The body.
pub(crate) struct Observed<O> {
    pub(crate) body: Body,
    pub(crate) observer: O,
}

impl<O: Observer> http_body::Body for Observed<O> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(piece) = frame.data_ref()
        {
            self.observer.passes(piece);
        }
        let has_failed = matches!(frame, Some(Err(_)));
        if has_failed || frame.is_none() || self.body.is_end_stream() {
            self.observer.ends(!has_failed);
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
