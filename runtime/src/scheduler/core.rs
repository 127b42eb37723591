//! The decisions: who is let in, who is next. No clock, no thread, no socket: times come in as arguments, since a beginning that
//! does not matter, so that all of it runs on a virtual clock.
//!
//! Order: the more urgent priority first, but one call in [`AGED_EVERY`] is of a lesser one that has waited for `ageing`; callers in
//! turns ([`super::class`]); a caller's calls by deadline. Promises ([`super::promises`]) are kept before all of that.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::Duration;

use outrigger_protocol::priority::Priority;

use super::Admission;
use super::class::{Class, Rank, Waiting};
use super::estimate::Estimates;
use super::promises::{Line, Promise, Promises};
use super::refusal::Refusal;
use super::running::Running;

/// While lesser priorities wait for longer than `ageing`, every so manieth call is theirs.
const AGED_EVERY: u32 = 4;
/// A call with a deadline is accepted only if it would be met even if this part of its wait came on top of it: 1 in so many.
const RESERVE: u32 = 3;
/// Calls are fast when this many in a row...
pub(super) const CALM_CALLS: u32 = 32;
/// ...took at most this long each.
const CALM_TIME: Duration = Duration::from_millis(1);

/// What bounds the queue.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Calls that wait.
    pub items: usize,
    /// Bytes of their bodies.
    pub bytes: usize,
    /// Longest wait.
    pub wait: Duration,
    /// Wait after which a call counts as one that lesser priorities must not keep waiting.
    pub ageing: Duration,
}

/// What the scheduler knows of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    /// Whose it is.
    pub(super) caller: u16,
    pub(super) priority: Priority,
    /// What it is for: calls of one kind take about as long.
    pub(super) kind: u16,
    pub(super) bytes: usize,
    pub(super) admission: Admission,
    /// When it must have ended.
    pub(super) deadline: Option<Duration>,
}

/// Where a call waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    priority: Priority,
    caller: u16,
    rank: Rank,
}

/// A call that was let through, until it ends.
#[derive(Debug)]
pub(super) struct Pass {
    number: u64,
    caller: u16,
    priority: Priority,
    kind: u16,
    /// What it was thought to take, nanoseconds.
    cost: u64,
    /// When it should have ended.
    end: Duration,
}

/// What becomes of a call that comes.
#[derive(Debug)]
pub(super) enum Arrival {
    Through(Pass),
    Waits(Place),
    Refused(Refusal),
}

/// What becomes of a call that waited.
#[derive(Debug)]
pub(super) enum Next<T> {
    Through(T, Pass),
    Refused(T, Refusal),
}

struct Item<T> {
    place: T,
    ask: Ask,
}

/// The queue, and what it knows of the slots.
pub(super) struct Core<T> {
    limits: Limits,
    slots: usize,
    /// Calls that may come ahead of their slots when calls are fast.
    ahead: usize,
    /// Fast calls in a row.
    calm: u32,
    classes: [Class<Item<T>>; Priority::ALL.len()],
    promises: Promises,
    running: Running,
    /// Since when those are here that were let through and have not begun, oldest first.
    through: VecDeque<Duration>,
    estimates: Estimates,
    /// Bytes of all who wait.
    bytes: usize,
    /// Number of the next call.
    number: u64,
    /// Calls that were let through past aged ones since the last of those.
    passed: u32,
    /// Those that had to make room, until they are told.
    displaced: Vec<T>,
}

impl<T> Core<T> {
    pub(super) fn new(limits: Limits, slots: usize) -> Self {
        Self {
            limits,
            slots,
            ahead: 0,
            calm: 0,
            classes: Default::default(),
            promises: Promises::default(),
            running: Running::default(),
            through: VecDeque::new(),
            estimates: Estimates::default(),
            bytes: 0,
            number: 0,
            passed: 0,
            displaced: Vec::new(),
        }
    }

    pub(super) fn set_slots(&mut self, slots: usize) {
        self.slots = slots;
    }

    pub(super) fn set_ahead(&mut self, ahead: usize) {
        self.ahead = ahead;
    }

    /// Calls that wait.
    pub(super) fn waiting(&self) -> usize {
        self.classes.iter().map(Class::len).sum()
    }

    /// Since when the one is here that has waited longest, those that were let through ahead of a slot counted in.
    pub(super) fn oldest(&self) -> Option<Duration> {
        let waiting = self.classes.iter().filter_map(Class::oldest);
        waiting.chain(self.through.front().copied()).min()
    }

    /// How long those that wait will take.
    pub(super) fn backlog(&self) -> Duration {
        let work = self.classes.iter().map(Class::work).fold(0, u64::saturating_add);
        Duration::from_nanos(work / self.slots.max(1) as u64)
    }

    /// A call comes. `item` is made only for one that waits.
    pub(super) fn arrive(&mut self, ask: &Ask, now: Duration, item: impl FnOnce() -> T) -> Arrival {
        if ask.deadline.is_some_and(|deadline| deadline <= now) {
            return Arrival::Refused(Refusal::Expired);
        }
        if self.has_room(ask.admission) && self.waiting() == 0 {
            return Arrival::Through(self.let_through(ask, now, now));
        }
        let until = now.saturating_add(self.limits.wait);
        let rank =
            Rank { until: ask.deadline.map_or(until, |deadline| deadline.min(until)), number: self.number };
        if let Err(refusal) = self.foresee(ask, rank, now) {
            return Arrival::Refused(refusal);
        }
        if let Err(refusal) = self.make_room(ask) {
            return Arrival::Refused(refusal);
        }
        self.number += 1;
        let cost = self.estimates.mean(ask.caller, ask.kind);
        if let Some(promise) = self.promise(ask) {
            self.promises.insert(rank, promise);
        }
        self.bytes += ask.bytes;
        let waiting = Waiting { item: Item { place: item(), ask: *ask }, since: now, cost };
        self.class_mut(ask.priority).insert(ask.caller, rank, waiting);
        Arrival::Waits(Place { priority: ask.priority, caller: ask.caller, rank })
    }

    /// Whoever waits and can go through now, or not any more. To be asked until there is none.
    pub(super) fn next(&mut self, now: Duration) -> Option<Next<T>> {
        let (priority, aged) = self.turn(now)?;
        let (caller, rank) = self.class_mut(priority).next()?;
        let cost = self.class(priority).get(caller, rank)?.cost;
        let (place, aged) = match self.owed(rank, cost, now) {
            Some(place) => (place, false),
            None => (Place { priority, caller, rank }, aged),
        };
        let waiting = self.class(place.priority).get(place.caller, place.rank)?;
        let ask = waiting.item.ask;
        if !self.has_room(ask.admission) {
            return None;
        }
        if let Some(deadline) = ask.deadline {
            // To execute what nobody has a use for takes the time of those that could still be met.
            let late = (now + Duration::from_nanos(waiting.cost)).saturating_sub(deadline);
            if !late.is_zero() || deadline <= now {
                let refusal = if deadline <= now { Refusal::Expired } else { Refusal::Deadline(late) };
                return self.leave(&place).map(|item| Next::Refused(item, refusal));
            }
        }
        let lesser = self.classes.iter().skip(place.priority as usize + 1).any(|class| !class.is_empty());
        self.passed = if aged || !lesser { 0 } else { self.passed.saturating_add(1) };
        self.promises.remove(place.rank);
        self.bytes = self.bytes.saturating_sub(ask.bytes);
        let taken = self.class_mut(place.priority).take(place.caller, place.rank)?;
        let pass = self.let_through(&ask, taken.since, now);
        Some(Next::Through(taken.item.place, pass))
    }

    /// Those that had to make room for calls that came.
    pub(super) fn take_displaced(&mut self) -> Vec<T> {
        std::mem::take(&mut self.displaced)
    }

    /// One that waits does so no longer; `None` if it has not been waiting.
    pub(super) fn leave(&mut self, place: &Place) -> Option<T> {
        let waiting = self.class_mut(place.priority).remove(place.caller, place.rank)?;
        self.promises.remove(place.rank);
        self.bytes = self.bytes.saturating_sub(waiting.item.ask.bytes);
        Some(waiting.item.place)
    }

    /// All who wait, who do so no longer.
    pub(super) fn clear(&mut self) -> Vec<T> {
        let mut all = Vec::new();
        for class in &mut self.classes {
            all.extend(std::mem::take(class).into_items().map(|item| item.place));
        }
        self.promises = Promises::default();
        self.bytes = 0;
        all
    }

    /// One that was let through is being executed. Lanes begin in order, so it is the first.
    pub(super) fn begun(&mut self) {
        self.through.pop_front();
    }

    /// One that was let through has ended; `took` is how long it was executed, if it was begun.
    pub(super) fn end(&mut self, pass: &Pass, took: Option<Duration>) {
        self.running.remove(pass.end, pass.number);
        let Some(took) = took else {
            self.begun();
            return;
        };
        self.calm = if took <= CALM_TIME { self.calm.saturating_add(1) } else { 0 };
        self.estimates.note(pass.caller, pass.kind, took);
        for class in &mut self.classes {
            class.set_quantum(self.estimates.mean_of_all());
        }
        let took = i64::try_from(took.as_nanos()).unwrap_or(i64::MAX / 2);
        let thought = i64::try_from(pass.cost).unwrap_or(i64::MAX / 2);
        self.class_mut(pass.priority).correct(pass.caller, thought - took);
    }

    fn class(&self, priority: Priority) -> &Class<Item<T>> {
        &self.classes[priority as usize]
    }

    fn class_mut(&mut self, priority: Priority) -> &mut Class<Item<T>> {
        &mut self.classes[priority as usize]
    }

    fn has_room(&self, admission: Admission) -> bool {
        let ahead = match admission {
            Admission::Ahead if self.calm >= CALM_CALLS => self.ahead,
            Admission::Now | Admission::Ahead => 0,
        };
        self.running.len() < self.slots + ahead
    }

    fn let_through(&mut self, ask: &Ask, since: Duration, now: Duration) -> Pass {
        let number = self.number;
        self.number += 1;
        let cost = self.estimates.mean(ask.caller, ask.kind);
        let end = now + Duration::from_nanos(cost);
        self.running.insert(end, number);
        self.through.push_back(since);
        Pass { number, caller: ask.caller, priority: ask.priority, kind: ask.kind, cost, end }
    }

    fn promise(&self, ask: &Ask) -> Option<Promise> {
        ask.deadline.map(|_| Promise {
            priority: ask.priority,
            caller: ask.caller,
            cost: self.estimates.mean(ask.caller, ask.kind),
            likely: self.estimates.likely(ask.caller, ask.kind),
        })
    }

    fn line(&self, now: Duration) -> Line<'_> {
        Line { running: &self.running, slots: self.slots, now, first: None }
    }

    /// Refuses a call that would wait in vain.
    fn foresee(&self, ask: &Ask, rank: Rank, now: Duration) -> Result<(), Refusal> {
        let cost = self.estimates.mean(ask.caller, ask.kind);
        if cost == 0 {
            return Ok(());
        }
        let urgent = &self.classes[..ask.priority as usize];
        let mut work = urgent.iter().map(Class::work).fold(0, u64::saturating_add);
        work = work.saturating_add(self.class(ask.priority).work_before(ask.caller, rank, cost));
        let slots = self.slots.max(1);
        let start = self.running.free(0, slots, now) + Duration::from_nanos(work / slots as u64);
        if let Some(late) =
            start.checked_sub(now.saturating_add(self.limits.wait)).filter(|late| !late.is_zero())
        {
            return Err(Refusal::Wait(late));
        }
        if let (Some(deadline), Some(promise)) = (ask.deadline, self.promise(ask)) {
            // Those who come later have a part too, and calls may take longer than they did.
            let reserve = Duration::from_nanos(work / slots as u64) / RESERVE;
            let late = (start + reserve + promise.likely).saturating_sub(deadline);
            if !late.is_zero() || !self.promises.bear(rank, promise, self.line(now)) {
                return Err(Refusal::Deadline(late));
            }
        }
        Ok(())
    }

    /// Whose turn it is, and whether that is because it has waited for so long.
    fn turn(&self, now: Duration) -> Option<(Priority, bool)> {
        let there = |priority: &Priority| !self.class(*priority).is_empty();
        let first = Priority::ALL.iter().copied().find(there)?;
        if self.passed + 1 < AGED_EVERY {
            return Some((first, false));
        }
        let aged = Priority::ALL[first as usize + 1..].iter().copied().filter_map(|priority| {
            let since = self.class(priority).oldest()?;
            (now.saturating_sub(since) >= self.limits.ageing).then_some((since, priority))
        });
        Some(aged.min().map_or((first, false), |(_, priority)| (priority, true)))
    }

    /// The promise that would be broken if the call with this rank went first.
    fn owed(&self, rank: Rank, cost: u64, now: Duration) -> Option<Place> {
        let (first, promise) = self.promises.first()?;
        if first == rank {
            return None;
        }
        let of = self.promises.contains(&rank).then_some(rank);
        if self.promises.allow(of, cost, self.line(now)) {
            return None;
        }
        Some(Place { priority: promise.priority, caller: promise.caller, rank: first })
    }

    /// Makes room in a full queue: the last call of whoever has the most in it makes way for one who has fewer, and lesser priorities make
    /// way for the more urgent, down to their part.
    fn make_room(&mut self, ask: &Ask) -> Result<(), Refusal> {
        loop {
            let full = if self.waiting() >= self.limits.items {
                Refusal::Items
            } else if self.bytes.saturating_add(ask.bytes) > self.limits.bytes {
                Refusal::Bytes
            } else {
                return Ok(());
            };
            let victim = self.victim(ask).ok_or(full)?;
            let victim = self.leave(&victim);
            self.displaced.extend(victim);
        }
    }

    fn victim(&self, ask: &Ask) -> Option<Place> {
        // Of the queue, too, lesser priorities have a part that the more urgent cannot take from them.
        let part = self.limits.items / AGED_EVERY as usize;
        let own = self.class(ask.priority);
        let priority = Priority::ALL.iter().copied().rev().find(|priority| {
            let there = self.class(*priority).len();
            match priority.cmp(&ask.priority) {
                Ordering::Greater => there > part,
                Ordering::Equal => own.longest().is_some_and(|(caller, waiting)| {
                    caller != ask.caller && waiting > own.waiting(ask.caller) + 1
                }),
                Ordering::Less => own.len() < part && there > part,
            }
        })?;
        let class = self.class(priority);
        let (caller, _) = class.longest()?;
        // One that was promised goes last of all.
        let rank = class
            .last(caller, |rank| !self.promises.contains(rank))
            .or_else(|| class.last(caller, |_| true))?;
        Some(Place { priority, caller, rank })
    }
}
