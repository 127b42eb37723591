//! Slots and the queue in front of them: a fair, bounded semaphore whose waiters can leave at any time.
//!
//! A call that finds a free slot takes it at once, with no timer and no allocation. Otherwise it waits in order, up to the
//! queue's limits. A caller that goes away while waiting leaves the queue by dropping its future.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::sync::oneshot;

use crate::busy::{Busy, Outcome, Ticket};

/// The slots of a replica.
pub struct Slots {
    busy: Arc<Busy>,
    queue_items: usize,
    queue_wait: Duration,
    state: Mutex<State>,
}

struct State {
    free: usize,
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    since: Instant,
    place: oneshot::Sender<()>,
}

/// The right to execute one call; the slot is free again when it is dropped.
pub struct Slot {
    slots: Arc<Slots>,
    ticket: Option<Ticket>,
}

impl Slots {
    /// Makes `count` slots with a queue of `items` calls that wait at most `wait`.
    pub fn new(busy: Arc<Busy>, count: usize, items: usize, wait: Duration) -> Arc<Self> {
        let state = Mutex::new(State { free: count, waiting: VecDeque::new() });
        Arc::new(Self { busy, queue_items: items, queue_wait: wait, state })
    }

    /// Waits for a slot.
    ///
    /// # Errors
    /// `draining`, or `overloaded` when the queue is full or the wait was too long; both say when to try again.
    pub async fn admit(self: &Arc<Self>) -> Result<Slot, CallError> {
        if self.busy.is_draining() {
            self.busy.refuse();
            return Err(draining());
        }
        let Some(mut ticket) = self.busy.arrive(self.queue_items) else {
            return Err(self.overloaded("all slots are taken and the queue is full"));
        };
        let waiting = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                None
            } else {
                let (place, turn) = oneshot::channel();
                state.waiting.push_back(Waiter { since: Instant::now(), place });
                self.note_oldest(&mut state);
                Some(turn)
            }
        };
        if let Some(turn) = waiting {
            let mut turn = Turn { slots: self, turn };
            if tokio::time::timeout(self.queue_wait, &mut turn.turn).await.is_err()
                && turn.turn.try_recv().is_err()
            {
                ticket.finish(Outcome::Refused);
                return Err(self.overloaded("no slot became free in time"));
            }
        }
        ticket.start();
        Ok(Slot { slots: Arc::clone(self), ticket: Some(ticket) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while the lock is held; a poisoned lock would still hold a state that is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a slot to the first who still waits.
    fn release(&self) {
        let mut state = self.lock();
        while let Some(waiter) = state.waiting.pop_front() {
            if waiter.place.send(()).is_ok() {
                self.note_oldest(&mut state);
                return;
            }
        }
        state.free += 1;
        self.note_oldest(&mut state);
    }

    fn note_oldest(&self, state: &mut State) {
        while state.waiting.front().is_some_and(|waiter| waiter.place.is_closed()) {
            state.waiting.pop_front();
        }
        self.busy.set_oldest(state.waiting.front().map(|waiter| waiter.since));
    }

    fn overloaded(&self, reason: &'static str) -> CallError {
        // The queue ahead, at the mean service time so far: when a new try has a chance.
        let seen = self.busy.snapshot();
        let mean = self.busy.mean_service_time().unwrap_or(Duration::from_millis(100)).as_secs_f64();
        let seconds = (f64::from(seen.queued) * mean / f64::from(seen.slots.max(1))).ceil().clamp(1.0, 60.0);
        CallError::new(ErrorCode::Overloaded, reason).with_retry_after(Duration::from_secs_f64(seconds))
    }
}

/// The refusal while the replica ends.
pub(crate) fn draining() -> CallError {
    CallError::new(ErrorCode::Draining, "the replica is shutting down")
        .with_retry_after(Duration::from_secs(1))
}

/// A place in the queue. If it is dropped after the slot came but before anybody saw that, the slot goes on.
struct Turn<'a> {
    slots: &'a Slots,
    turn: oneshot::Receiver<()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turn.close();
        if self.turn.try_recv().is_ok() {
            self.slots.release();
        }
    }
}

impl Slot {
    /// The call ends so.
    pub fn finish(mut self, outcome: Outcome) {
        if let Some(ticket) = self.ticket.take() {
            ticket.finish(outcome);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Count first, then hand on, so that there are never more executing than slots.
        drop(self.ticket.take());
        self.slots.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(count: usize, items: usize) -> (Arc<Busy>, Arc<Slots>) {
        let busy = Busy::new(count);
        (Arc::clone(&busy), Slots::new(busy, count, items, Duration::from_secs(5)))
    }

    #[tokio::test(start_paused = true)]
    async fn slots_are_handed_on_in_order() {
        let (busy, slots) = slots(1, 10);
        let first = slots.admit().await.unwrap();
        let mut order = tokio::task::JoinSet::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        for number in 0..3 {
            let (slots, seen) = (Arc::clone(&slots), Arc::clone(&seen));
            order.spawn(async move {
                let slot = slots.admit().await.unwrap();
                seen.lock().unwrap().push(number);
                slot.finish(Outcome::Answered);
            });
            tokio::task::yield_now().await;
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(busy.snapshot().queued, 3);
        assert!(busy.snapshot().oldest_wait_seconds.is_some());
        first.finish(Outcome::Answered);
        while order.join_next().await.is_some() {}
        assert_eq!(*seen.lock().unwrap(), [0, 1, 2]);
        let end = busy.snapshot();
        assert_eq!((end.executing, end.queued, end.answered), (0, 0, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_and_a_long_wait_are_refusals() {
        let (busy, slots) = slots(1, 1);
        let _held = slots.admit().await.unwrap();
        let waiter = tokio::spawn({
            let slots = Arc::clone(&slots);
            async move { slots.admit().await.err() }
        });
        tokio::task::yield_now().await;
        let refused = slots.admit().await.err().unwrap();
        assert_eq!(refused.code, ErrorCode::Overloaded);
        assert!(refused.retry_after.is_some());
        let late = waiter.await.unwrap().unwrap();
        assert_eq!(late.code, ErrorCode::Overloaded);
        assert_eq!(busy.snapshot().refused, 2);
        assert_eq!(busy.snapshot().queued, 0);
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_leaves_the_queue_and_no_slot_is_lost() {
        let (busy, slots) = slots(1, 10);
        let held = slots.admit().await.unwrap();
        for _ in 0..3 {
            let waiter = tokio::spawn({
                let slots = Arc::clone(&slots);
                async move { slots.admit().await.map(|_| ()) }
            });
            tokio::task::yield_now().await;
            waiter.abort();
            assert!(waiter.await.unwrap_err().is_cancelled());
        }
        // One more that is dropped after its slot was handed to it, before it ran again.
        let mut future = Box::pin(slots.admit());
        assert!(futures_poll_once(&mut future).await.is_none());
        held.finish(Outcome::Answered);
        drop(future);
        assert_eq!((busy.snapshot().queued, busy.snapshot().cancelled), (0, 4));
        assert!(slots.admit().await.is_ok(), "the slot is free again");
    }

    async fn futures_poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }

    #[tokio::test]
    async fn draining_refuses() {
        let (busy, slots) = slots(1, 1);
        busy.set_draining();
        assert_eq!(slots.admit().await.err().unwrap().code, ErrorCode::Draining);
    }
}
