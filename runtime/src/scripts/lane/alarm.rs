//! One timer for all limits of a lane.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep};

/// A timer that is set again only when something is due earlier than it rings; an alarm that comes too early
/// is looked at and set again.
#[derive(Default)]
pub(super) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    set: Option<Instant>,
}

impl Alarm {
    /// Sees to it that it rings at `at`, or earlier.
    pub(super) fn set(&mut self, at: Instant) {
        if self.set.is_some_and(|set| set <= at) {
            return;
        }
        self.set = Some(at);
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(at),
            None => self.sleep = Some(Box::pin(tokio::time::sleep_until(at))),
        }
    }

    /// Ready once each time that it rings.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.set.is_none() {
            return Poll::Pending;
        }
        let Some(sleep) = &mut self.sleep else { return Poll::Pending };
        match sleep.as_mut().poll(context) {
            Poll::Ready(()) => {
                self.set = None;
                Poll::Ready(())
            }
            Poll::Pending => Poll::Pending,
        }
    }
}
