//! A bell: whoever rings it wakes the one task that listens, once for any number of rings.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;

/// One task listens, anybody rings. Cheaper than `tokio::sync::Notify`, which keeps a list of waiters under a lock.
#[derive(Default)]
pub(crate) struct Bell {
    rung: AtomicBool,
    waker: AtomicWaker,
}

impl Bell {
    /// Wakes the listener, now or when it listens next.
    pub(crate) fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Ready if somebody has rung since the last time that it was.
    pub(crate) fn poll_rung(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.rung.swap(false, Ordering::AcqRel) {
            return Poll::Ready(());
        }
        self.waker.register(context.waker());
        // It may have been rung before there was a waker to call.
        if self.rung.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn rings_are_heard_before_and_after_listening() {
        let bell = Arc::new(Bell::default());
        bell.ring();
        bell.ring();
        std::future::poll_fn(|context| bell.poll_rung(context)).await;
        let ringer = Arc::clone(&bell);
        let listening = tokio::spawn(async move {
            std::future::poll_fn(|context| bell.poll_rung(context)).await;
        });
        tokio::task::yield_now().await;
        ringer.ring();
        listening.await.unwrap();
    }
}
