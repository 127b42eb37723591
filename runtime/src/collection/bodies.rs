//! The bodies of a call that is tapped: they pass on what comes, and have what is kept of it told.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use outrigger_collect::Offered;

use super::held::Passed;
use super::tap::{End, Ended, Half, Passing, kept};
use crate::observed::Observer;

/// Who keeps what passes of a request's body.
pub(super) struct Asked(pub(super) Arc<Passing>);

impl Observer for Asked {
    fn passes(&mut self, piece: &Bytes) {
        self.0.push(&self.0.request, piece);
    }

    fn ends(&mut self, is_whole: bool) {
        if is_whole {
            self.0.request.with(Passed::end);
        }
    }
}

impl Passing {
    /// Takes a further piece of one of the two.
    fn push(&self, half: &Half, piece: &Bytes) {
        half.with(|passed| passed.push(piece, self.held()));
    }
}

/// An answer's body.
pub(super) struct Answered {
    body: Body,
    /// Until it has ended.
    end: Option<End>,
    /// Until what is collected of it is kept.
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// What goes out then.
    last: Option<Frame<Bytes>>,
}

impl Answered {
    pub(super) fn new(body: Body, end: End) -> Self {
        Self { body, end: Some(end), waiting: None, last: None }
    }

    /// Offers what there is, and begins to wait for it where anybody is to.
    fn ends(&mut self) {
        let Some(end) = self.end.take() else { return };
        let offered = end.offer(Ended::Whole);
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
            if let (Some(end), Some(Ok(frame))) = (&this.end, &frame)
                && let Some(piece) = frame.data_ref()
            {
                end.passing().push(&end.passing().response, piece);
            }
            match frame {
                Some(Ok(frame)) if http_body::Body::is_end_stream(&this.body) => {
                    this.last = Some(frame);
                    this.ends();
                }
                Some(Ok(frame)) => return Poll::Ready(Some(Ok(frame))),
                // It has not been answered.
                Some(Err(error)) => {
                    drop(this.end.take().map(|end| end.offer(Ended::Broken)));
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
        let Some(last) = self.last.as_ref().and_then(Frame::data_ref) else { return self.body.size_hint() };
        // It is the last one.
        SizeHint::with_exact(last.len() as u64)
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        // The client has gone before it had all of it.
        if let Some(end) = self.end.take() {
            drop(end.offer(Ended::Left));
        }
    }
}
