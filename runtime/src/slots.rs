//! Slots and the queue in front of them: a fair, bounded semaphore whose waiters can leave at any time.
//!
//! A call that finds a free slot takes it at once, with no timer and no allocation. Otherwise it waits in order, up to the
//! queue's limits. A caller that goes away while waiting leaves the queue by dropping its future.
//!
//! Lanes may let calls come *ahead* ([`Slots::set_ahead`]): so many are handed to them before a slot is free, so that they find the next
//! one at hand. They count as queued until a lane begins with them. Calls come ahead only while they are fast: behind a slow one, a
//! call that has left the queue could wait for longer than the queue's limit.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outrigger_auth::Permit;
use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::sync::oneshot;

use crate::busy::{Busy, Outcome, Ticket};

/// Calls are fast when this many in a row...
const CALM_CALLS: u32 = 32;
/// ...took at most this long each.
const CALM_TIME: Duration = Duration::from_millis(1);

/// The slots of a replica.
pub struct Slots {
    busy: Arc<Busy>,
    queue_items: usize,
    queue_wait: Duration,
    state: Mutex<State>,
}

struct State {
    /// Slots.
    count: usize,
    /// Calls that were let through and have not ended.
    taken: usize,
    /// Calls that may come ahead when calls are fast.
    ahead: usize,
    /// Fast calls in a row.
    calm: u32,
    /// Set at the end: nobody is let through any more.
    closed: bool,
    waiting: VecDeque<Waiter>,
    /// Since when those are here that were let through and have not begun, oldest first.
    through: VecDeque<Instant>,
}

struct Waiter {
    admission: Admission,
    since: Instant,
    place: oneshot::Sender<()>,
}

/// Whether a call may be let through before its slot is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It executes as soon as it is let through.
    Now,
    /// It goes to a lane that begins with it in its turn.
    Ahead,
}

/// The right to execute one call, from [`Slot::begin`] on; the slot is free again when it is dropped.
pub struct Slot {
    slots: Arc<Slots>,
    ticket: Option<Ticket>,
    begun: Option<Instant>,
    /// The caller's place, which is taken for as long as the slot.
    permit: Option<Permit>,
}

impl Slots {
    /// Makes `count` slots with a queue of `items` calls that wait at most `wait`.
    pub fn new(busy: Arc<Busy>, count: usize, items: usize, wait: Duration) -> Arc<Self> {
        let state = Mutex::new(State {
            count,
            taken: 0,
            ahead: 0,
            calm: 0,
            closed: false,
            waiting: VecDeque::new(),
            through: VecDeque::new(),
        });
        Arc::new(Self { busy, queue_items: items, queue_wait: wait, state })
    }

    /// Waits for a slot.
    ///
    /// # Errors
    /// `draining`, or `overloaded` when the queue is full or the wait was too long; both say when to try again.
    pub async fn admit(self: &Arc<Self>, admission: Admission) -> Result<Slot, CallError> {
        if self.busy.is_draining() {
            self.busy.refuse();
            return Err(draining());
        }
        let Some(ticket) = self.busy.arrive(self.queue_items) else {
            return Err(self.overloaded("all slots are taken and the queue is full"));
        };
        let since = Instant::now();
        let waiting = {
            let mut state = self.lock();
            if state.closed {
                ticket.finish(Outcome::Refused);
                return Err(draining());
            }
            if state.waiting.is_empty() && state.taken < self.limit(&state, admission) {
                state.taken += 1;
                state.through.push_back(since);
                None
            } else {
                let (place, turn) = oneshot::channel();
                state.waiting.push_back(Waiter { admission, since, place });
                // Those before may have gone away meanwhile; the signal bounds only those who are still there.
                if state.waiting.len() > self.queue_items + state.count + 16 {
                    state.waiting.retain(|waiter| !waiter.place.is_closed());
                }
                self.fill(&mut state);
                Some(turn)
            }
        };
        if let Some(turn) = waiting {
            let mut turn = Turn { slots: self, turn };
            match tokio::time::timeout(self.queue_wait, &mut turn.turn).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    ticket.finish(Outcome::Refused);
                    return Err(draining());
                }
                // It may have come in the last moment.
                Err(_) if turn.turn.try_recv().is_ok() => {}
                Err(_) => {
                    ticket.finish(Outcome::Refused);
                    return Err(self.overloaded("no slot became free in time"));
                }
            }
        }
        Ok(Slot { slots: Arc::clone(self), ticket: Some(ticket), begun: None, permit: None })
    }

    /// Makes it `count` slots, once it is known how many lanes there are.
    pub fn set_count(&self, count: usize) {
        self.busy.set_slots(count);
        let mut state = self.lock();
        state.count = count;
        self.fill(&mut state);
    }

    /// Lets up to `ahead` calls through beyond the slots while calls are fast.
    pub fn set_ahead(&self, ahead: usize) {
        let mut state = self.lock();
        state.ahead = ahead;
        self.fill(&mut state);
    }

    /// Refuses all who wait and all who come.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.waiting.clear();
        self.note_oldest(&state);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while the lock is held; a poisoned lock would still hold a state that is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, begun: Option<Instant>) {
        let mut state = self.lock();
        match begun {
            None => self.begun(&mut state),
            Some(begun) if begun.elapsed() <= CALM_TIME => state.calm = state.calm.saturating_add(1),
            Some(_) => state.calm = 0,
        }
        state.taken = state.taken.saturating_sub(1);
        self.fill(&mut state);
    }

    fn limit(&self, state: &State, admission: Admission) -> usize {
        match admission {
            Admission::Ahead if state.calm >= CALM_CALLS => state.count + state.ahead,
            Admission::Now | Admission::Ahead => state.count,
        }
    }

    /// Lets through those who have waited longest and still wait, strictly in order.
    fn fill(&self, state: &mut State) {
        while let Some(waiter) = state.waiting.front() {
            if !waiter.place.is_closed() && state.taken >= self.limit(state, waiter.admission) {
                break;
            }
            let Some(waiter) = state.waiting.pop_front() else { break };
            if waiter.place.send(()).is_ok() {
                state.taken += 1;
                state.through.push_back(waiter.since);
            }
        }
        self.note_oldest(state);
    }

    /// One that was let through has begun, or will never begin. Lanes begin in order, so it is the first.
    fn begun(&self, state: &mut State) {
        state.through.pop_front();
        self.note_oldest(state);
    }

    fn note_oldest(&self, state: &State) {
        let waiting = || state.waiting.front().map(|waiter| waiter.since);
        self.busy.set_oldest(state.through.front().copied().or_else(waiting));
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
            self.slots.release(None);
        } else {
            // Whoever waits behind may be of a kind that can go on.
            self.slots.fill(&mut self.slots.lock());
        }
    }
}

impl Slot {
    /// Keeps the caller's place taken for as long as the slot is.
    pub fn keep(&mut self, permit: Option<Permit>) {
        self.permit = permit;
    }

    /// The call leaves the queue: from now on it is being executed.
    pub fn begin(&mut self) {
        if self.begun.is_none() {
            self.begun = Some(Instant::now());
            self.slots.begun(&mut self.slots.lock());
            if let Some(ticket) = &mut self.ticket {
                ticket.start();
            }
        }
    }

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
        self.slots.release(self.begun);
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
        let mut first = slots.admit(Admission::Ahead).await.unwrap();
        first.begin();
        let mut order = tokio::task::JoinSet::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        for number in 0..3 {
            let (slots, seen) = (Arc::clone(&slots), Arc::clone(&seen));
            order.spawn(async move {
                let slot = slots.admit(Admission::Ahead).await.unwrap();
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
        let mut held = slots.admit(Admission::Ahead).await.unwrap();
        held.begin();
        let waiter = tokio::spawn({
            let slots = Arc::clone(&slots);
            async move { slots.admit(Admission::Ahead).await.err() }
        });
        tokio::task::yield_now().await;
        let refused = slots.admit(Admission::Ahead).await.err().unwrap();
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
        let held = slots.admit(Admission::Ahead).await.unwrap();
        for _ in 0..3 {
            let waiter = tokio::spawn({
                let slots = Arc::clone(&slots);
                async move { slots.admit(Admission::Ahead).await.map(|_| ()) }
            });
            tokio::task::yield_now().await;
            waiter.abort();
            assert!(waiter.await.unwrap_err().is_cancelled());
        }
        // One more that is dropped after its slot was handed to it, before it ran again.
        let mut future = Box::pin(slots.admit(Admission::Ahead));
        assert!(poll_once(&mut future).await.is_none());
        held.finish(Outcome::Answered);
        drop(future);
        assert_eq!((busy.snapshot().queued, busy.snapshot().cancelled), (0, 4));
        assert!(slots.admit(Admission::Ahead).await.is_ok(), "the slot is free again");
    }

    async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }

    #[tokio::test(start_paused = true)]
    async fn fast_calls_come_ahead_and_count_as_queued_until_they_begin() {
        let (busy, slots) = slots(1, 10);
        slots.set_ahead(1);
        let mut first = slots.admit(Admission::Ahead).await.unwrap();
        first.begin();
        let mut second = Box::pin(slots.admit(Admission::Ahead));
        assert!(poll_once(&mut second).await.is_none(), "nobody knows yet whether calls are fast");
        drop(second);
        drop(first);
        for _ in 0..CALM_CALLS {
            let mut fast = slots.admit(Admission::Ahead).await.unwrap();
            fast.begin();
            fast.finish(Outcome::Answered);
        }
        let mut first = slots.admit(Admission::Ahead).await.unwrap();
        first.begin();
        let mut second = slots.admit(Admission::Ahead).await.unwrap();
        assert_eq!((busy.snapshot().executing, busy.snapshot().queued), (1, 1));
        let mut now = Box::pin(slots.admit(Admission::Now));
        assert!(poll_once(&mut now).await.is_none(), "this kind waits for a slot");
        first.finish(Outcome::Answered);
        second.begin();
        assert_eq!((busy.snapshot().executing, busy.snapshot().queued), (1, 1));
        second.finish(Outcome::Answered);
        assert!(poll_once(&mut now).await.is_some());
    }

    #[tokio::test]
    async fn closing_tells_all_who_wait() {
        let (_, slots) = slots(1, 10);
        let _held = slots.admit(Admission::Now).await.unwrap();
        let mut waiting = Box::pin(slots.admit(Admission::Now));
        assert!(poll_once(&mut waiting).await.is_none());
        slots.close();
        assert_eq!(waiting.await.err().unwrap().code, ErrorCode::Draining);
        assert_eq!(slots.admit(Admission::Now).await.err().unwrap().code, ErrorCode::Draining);
    }

    #[tokio::test]
    async fn callers_that_come_and_go_leave_nothing_behind() {
        let (_, slots) = slots(1, 10);
        let _held = slots.admit(Admission::Now).await.unwrap();
        let mut head = Box::pin(slots.admit(Admission::Now));
        assert!(poll_once(&mut head).await.is_none());
        for _ in 0..10_000 {
            let mut gone = Box::pin(slots.admit(Admission::Now));
            assert!(poll_once(&mut gone).await.is_none());
        }
        assert!(slots.lock().waiting.len() <= 10 + 1 + 16 + 1);
    }

    #[tokio::test]
    async fn draining_refuses() {
        let (busy, slots) = slots(1, 1);
        busy.set_draining();
        assert_eq!(slots.admit(Admission::Ahead).await.err().unwrap().code, ErrorCode::Draining);
    }
}
