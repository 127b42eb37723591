//! The scheduler: one for each service, between the contracts and the lanes, knowing neither.
//!
//! A call that finds a free slot takes it at once, with no timer and no allocation. Otherwise it waits, bounded in items, bytes and time,
//! or is refused at once where waiting would be in vain. Who is next is decided in [`core`], which has no clock of its own. A caller
//! that goes away while waiting leaves the queue by dropping its future.
//!
//! Lanes may let calls come *ahead* ([`Scheduler::set_ahead`]): so many are handed to them before a slot is free, so that they find the
//! next one at hand. They count as queued until a lane begins with them. Calls come ahead only while they are fast: behind a slow one, a
//! call that has left the queue could wait for longer than the queue's limit.

mod class;
mod core;
mod estimate;
mod promises;
mod refusal;
mod running;
#[cfg(test)]
mod simulation;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger_auth::Permit;
use outrigger_protocol::error::CallError;
use outrigger_protocol::priority::Priority;
use prometheus::Histogram;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::core::{Arrival, Ask, Core, Ended, Next, Pass, Place};
use crate::busy::{Busy, MAX_CALLS, Outcome, Ticket};
use crate::telemetry::{self, Passage, Phase};

pub use self::core::Limits;
use refusal::Refusal;
pub(crate) use refusal::{draining, expired};

/// Whether a call may be let through before its slot is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It executes as soon as it is let through.
    Now,
    /// It goes to a lane that begins with it in its turn.
    Ahead,
}

/// What a call comes with.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Whose it is, as a small number; callers share the slots.
    pub caller: u16,
    /// How urgent it is.
    pub priority: Priority,
    /// What it is for, as a small number: calls of one kind take about as long.
    pub kind: u16,
    /// Bytes of its body.
    pub bytes: usize,
    /// Whether it may come ahead.
    pub admission: Admission,
    /// When it must have ended.
    pub deadline: Option<Instant>,
}

/// The queue in front of a service's slots.
pub struct Scheduler {
    busy: Arc<Busy>,
    /// The beginning of [`core`]'s time.
    start: Instant,
    wait: Duration,
    /// Told how long each call has waited when a lane begins with it.
    waits: Option<Histogram>,
    state: Mutex<State>,
}

struct State {
    core: Core<oneshot::Sender<Result<Pass, Refusal>>>,
    /// Set at the end: nobody is let through any more.
    closed: bool,
}

/// The right to execute one call, from [`Slot::begin`] on; the slot is free again when it is dropped.
pub struct Slot {
    scheduler: Arc<Scheduler>,
    ticket: Option<Ticket>,
    pass: Pass,
    came: Instant,
    /// When it was let through.
    through: Instant,
    begun: Option<Instant>,
    deadline: Option<Instant>,
    /// Whether it came to its own end.
    whole: bool,
    /// The caller's place, which is taken for as long as the slot is.
    permit: Option<Permit>,
    /// The request that it is for.
    passage: Option<Arc<Passage>>,
}

impl Scheduler {
    /// Makes `slots` slots and a queue; `waits` is told how long calls wait.
    pub fn new(busy: Arc<Busy>, slots: usize, limits: Limits, waits: Option<Histogram>) -> Arc<Self> {
        let slots = slots.min(MAX_CALLS);
        let state = Mutex::new(State { core: Core::new(limits, slots), closed: false });
        Arc::new(Self { busy, start: Instant::now(), wait: limits.wait, waits, state })
    }

    /// Waits for a slot.
    ///
    /// # Errors
    /// `draining`; `overloaded`, when the queue is full, the wait was too long, or would be, or the deadline cannot be met, each with
    /// when to try again; `deadline_exceeded` when the deadline is over.
    pub async fn admit(self: &Arc<Self>, terms: Terms) -> Result<Slot, CallError> {
        self.admit_counted(terms, None).await
    }

    /// The same for a call that may have been counted before, while it waited for something else.
    ///
    /// # Errors
    /// As [`Scheduler::admit`].
    pub(crate) async fn admit_counted(
        self: &Arc<Self>,
        terms: Terms,
        counted: Option<Ticket>,
    ) -> Result<Slot, CallError> {
        // One that is counted came before, and has waited for something else since.
        if counted.is_none() && self.busy.is_draining() {
            self.busy.refuse();
            return Err(draining());
        }
        let since = Instant::now();
        let ticket = counted.or_else(|| self.busy.arrive_at(since.into_std()));
        let Some(ticket) = ticket else {
            return Err(Refusal::Items.error(self.lock().core.backlog()));
        };
        let pass = match self.arrive(&terms, since) {
            Ok(Met::Through(pass)) => Ok(pass),
            Ok(Met::Waits(turn)) => turn.wait(since, &terms).await,
            Err(refusal) => Err(refusal),
        };
        let (scheduler, deadline) = (Arc::clone(self), terms.deadline);
        let through = Instant::now();
        let passage = telemetry::with(|passage| {
            passage.add(Phase::Queue, through - since);
            Arc::clone(passage)
        });
        match pass {
            Ok(pass) => Ok(Slot {
                scheduler,
                ticket: Some(ticket),
                pass,
                came: since,
                through,
                begun: None,
                deadline,
                whole: false,
                permit: None,
                passage,
            }),
            Err(refusal) => {
                ticket.finish(if refusal == Refusal::Expired { Outcome::Expired } else { Outcome::Refused });
                Err(refusal.error(self.lock().core.backlog()))
            }
        }
    }

    fn arrive(self: &Arc<Self>, terms: &Terms, now: Instant) -> Result<Met, Refusal> {
        let ask = Ask {
            caller: terms.caller,
            priority: terms.priority,
            kind: terms.kind,
            bytes: terms.bytes,
            admission: terms.admission,
            deadline: terms.deadline.map(|deadline| deadline.saturating_duration_since(self.start)),
        };
        let mut state = self.lock();
        if state.closed {
            return Err(Refusal::Draining);
        }
        let mut turn = None;
        let arrival = state.core.arrive(&ask, now - self.start, || {
            let (sender, receiver) = oneshot::channel();
            turn = Some(receiver);
            sender
        });
        for displaced in state.core.take_displaced() {
            let _ = displaced.send(Err(Refusal::Displaced));
        }
        match (arrival, turn) {
            (Arrival::Through(pass), _) => {
                self.note_oldest(&state);
                Ok(Met::Through(pass))
            }
            (Arrival::Refused(refusal), _) => Err(refusal),
            (Arrival::Waits(place), Some(turn)) => {
                self.fill(&mut state);
                Ok(Met::Waits(Turn { scheduler: Arc::clone(self), turn, place, heard: false }))
            }
            // It makes one for each that waits.
            (Arrival::Waits(_), None) => Err(Refusal::Draining),
        }
    }

    /// Makes it `slots` slots, once it is known how many lanes there are.
    pub fn set_slots(&self, slots: usize) {
        // As many as can be counted.
        let slots = slots.min(MAX_CALLS);
        self.busy.set_slots(slots);
        let mut state = self.lock();
        state.core.set_slots(slots);
        self.fill(&mut state);
    }

    /// Lets up to `ahead` calls through beyond the slots while calls are fast.
    pub fn set_ahead(&self, ahead: usize) {
        let mut state = self.lock();
        state.core.set_ahead(ahead);
        self.fill(&mut state);
    }

    /// Refuses all who wait and all who come.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for waiting in state.core.clear() {
            let _ = waiting.send(Err(Refusal::Draining));
        }
        self.note_oldest(&state);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while the lock is held; a poisoned lock would still hold a state that is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets through whoever can go.
    fn fill(&self, state: &mut State) {
        if state.core.waiting() > 0 {
            let now = self.start.elapsed();
            while let Some(next) = state.core.next(now) {
                match next {
                    Next::Through(waiter, pass) => {
                        // One that has just gone away gives its pass back.
                        if let Err(Ok(pass)) = waiter.send(Ok(pass)) {
                            state.core.end(&pass, Ended::NotBegun);
                        }
                    }
                    Next::Refused(waiter, refusal) => {
                        let _ = waiter.send(Err(refusal));
                    }
                }
            }
        }
        self.note_oldest(state);
    }

    fn note_oldest(&self, state: &State) {
        let oldest = state.core.oldest().map(|since| (self.start + since).into_std());
        self.busy.set_oldest(oldest);
    }
}

/// How a call is met.
enum Met {
    Through(Pass),
    Waits(Turn),
}

/// A place in the queue. If it is dropped after its turn came but before anybody saw that, the turn is the next one's.
struct Turn {
    scheduler: Arc<Scheduler>,
    turn: oneshot::Receiver<Result<Pass, Refusal>>,
    place: Place,
    /// Nothing is left to be given back.
    heard: bool,
}

impl Turn {
    async fn wait(mut self, since: Instant, terms: &Terms) -> Result<Pass, Refusal> {
        let end = since.checked_add(self.scheduler.wait);
        let until = end.into_iter().chain(terms.deadline).min();
        let heard = match until {
            Some(until) => tokio::time::timeout_at(until, &mut self.turn).await.ok(),
            None => Some((&mut self.turn).await),
        };
        if let Some(heard) = heard {
            self.heard = true;
            return heard.unwrap_or(Err(Refusal::Draining));
        }
        let left = self.scheduler.lock().core.leave(&self.place).is_some();
        match self.turn.try_recv() {
            // It came in the last moment.
            Ok(heard) if !left => heard,
            _ if terms.deadline.is_some() && terms.deadline == until => Err(Refusal::Expired),
            _ => Err(Refusal::Waited),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.heard {
            return;
        }
        let mut state = self.scheduler.lock();
        state.core.leave(&self.place);
        self.turn.close();
        if let Ok(Ok(pass)) = self.turn.try_recv() {
            state.core.end(&pass, Ended::NotBegun);
        }
        // Whoever waits behind may be of a kind that can go on.
        self.scheduler.fill(&mut state);
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
            let now = Instant::now();
            self.begun = Some(now);
            if let Some(waits) = &self.scheduler.waits {
                waits.observe((now - self.came).as_secs_f64());
            }
            if let Some(passage) = &self.passage {
                passage.begin(self.through.into_std(), now.into_std());
            }
            let mut state = self.scheduler.lock();
            state.core.begun(&self.pass);
            self.scheduler.note_oldest(&state);
            drop(state);
            if let Some(ticket) = &mut self.ticket {
                ticket.start();
            }
        }
    }

    /// The request that it is for.
    pub(crate) fn passage(&self) -> Option<&Arc<Passage>> {
        self.passage.as_ref()
    }

    /// When the call must have ended.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Leaves the slot, which was not used, to others: the call waits again.
    pub fn give_back(mut self) -> Option<Ticket> {
        self.ticket.take()
    }

    /// The call ends so.
    pub fn finish(mut self, outcome: Outcome) {
        self.whole = matches!(outcome, Outcome::Answered | Outcome::Failed);
        if let Some(ticket) = self.ticket.take() {
            ticket.finish(outcome);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Count first, then hand on, so that there are never more executing than slots.
        drop(self.ticket.take());
        let how = match self.begun {
            None => Ended::NotBegun,
            Some(begun) => {
                let now = Instant::now();
                let whole = self.whole && self.deadline.is_none_or(|deadline| now < deadline);
                if whole { Ended::Whole(now - begun) } else { Ended::Cut(now - begun) }
            }
        };
        let mut state = self.scheduler.lock();
        state.core.end(&self.pass, how);
        self.scheduler.fill(&mut state);
    }
}

#[cfg(test)]
mod tests;
