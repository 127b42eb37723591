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
    /// What its caller was charged for it, nanoseconds: nothing, if it found a free slot.
    charged: u64,
    /// When it came.
    since: Duration,
    /// When it should have ended.
    end: Duration,
}

/// How a call that was let through has ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ended {
    /// Nothing was executed.
    NotBegun,
    /// It was executed for so long, to its end.
    Whole(Duration),
    /// The same, and cut short.
    Cut(Duration),
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
    /// It is to show how long its caller's calls take, whatever is thought of that.
    probe: bool,
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
        waiting.chain(self.through.iter().copied()).min()
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
        let cost = self.estimates.mean(ask.caller, ask.kind);
        self.class_mut(ask.priority).demands(ask.caller, cost, now);
        if self.has_room(ask.admission) && self.waiting() == 0 {
            return Arrival::Through(self.let_through(ask, now, now));
        }
        let until = now.saturating_add(self.limits.wait);
        let rank =
            Rank { until: ask.deadline.map_or(until, |deadline| deadline.min(until)), number: self.number };
        let mut probe = false;
        if let Err(refusal) = self.foresee(ask, rank, now) {
            // What is known of its calls may be out of date, and nothing of it is executed that could tell.
            probe = matches!(refusal, Refusal::Deadline(_))
                && self.class_mut(ask.priority).turned_away(ask.caller);
            if !probe {
                return Arrival::Refused(refusal);
            }
        }
        if let Err(refusal) = self.make_room(ask) {
            return Arrival::Refused(refusal);
        }
        self.number += 1;
        if let Some(promise) = self.promise(ask).filter(|_| !probe) {
            self.promises.insert(rank, promise);
        }
        self.bytes += ask.bytes;
        let waiting =
            Waiting { item: Item { place: item(), ask: *ask, probe }, since: now, cost, bytes: ask.bytes };
        self.class_mut(ask.priority).insert(ask.caller, rank, waiting);
        Arrival::Waits(Place { priority: ask.priority, caller: ask.caller, rank })
    }

    /// Whoever waits and can go through now, or not any more. To be asked until there is none.
    pub(super) fn next(&mut self, now: Duration) -> Option<Next<T>> {
        if !self.has_room(Admission::Ahead) {
            return None;
        }
        let (priority, aged) = self.turn(now)?;
        let (caller, rank) = self.class_mut(priority).next()?;
        let cost = self.class(priority).get(caller, rank)?.cost;
        let owed = self.owed(rank, cost, now);
        let place = owed.unwrap_or(Place { priority, caller, rank });
        let waiting = self.class(place.priority).get(place.caller, place.rank)?;
        let ask = waiting.item.ask;
        if !self.has_room(ask.admission) {
            return None;
        }
        if let Some(deadline) = ask.deadline {
            // To execute what nobody has a use for takes the time of those that could still be met.
            let late = (now + Duration::from_nanos(waiting.cost)).saturating_sub(deadline);
            if (!late.is_zero() && !waiting.item.probe) || deadline <= now {
                let refusal = if deadline <= now { Refusal::Expired } else { Refusal::Deadline(late) };
                return self.leave(&place).map(|item| Next::Refused(item, refusal));
            }
        }
        let lesser = self.classes.iter().skip(place.priority as usize + 1).any(|class| !class.is_empty());
        if owed.is_none() {
            self.passed = if aged || !lesser { 0 } else { self.passed.saturating_add(1) };
        }
        self.promises.remove(place.rank);
        self.bytes = self.bytes.saturating_sub(ask.bytes);
        let taken = self.class_mut(place.priority).take(place.caller, place.rank)?;
        let mut pass = self.let_through(&ask, taken.since, now);
        pass.charged = taken.cost;
        Some(Next::Through(taken.item.place, pass))
    }

    /// Whether a waiting call's deadline was promised.
    #[cfg(test)]
    pub(super) fn is_promised(&self, place: &Place) -> bool {
        self.promises.contains(&place.rank)
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

    /// One that was let through is being executed.
    pub(super) fn begun(&mut self, pass: &Pass) {
        if let Some(at) = self.through.iter().position(|since| *since == pass.since) {
            self.through.remove(at);
        }
    }

    /// One that was let through has ended.
    pub(super) fn end(&mut self, pass: &Pass, how: Ended) {
        self.running.remove(pass.end, pass.number);
        let charged = i64::try_from(pass.charged).unwrap_or(i64::MAX / 2);
        let took = match how {
            Ended::NotBegun => {
                self.begun(pass);
                return self.class_mut(pass.priority).correct(pass.caller, charged);
            }
            Ended::Whole(took) | Ended::Cut(took) => took,
        };
        let nanos = i64::try_from(took.as_nanos()).unwrap_or(i64::MAX / 2);
        // What was cut short says only that it would have taken longer.
        let cut = matches!(how, Ended::Cut(_));
        self.calm = if took > CALM_TIME { 0 } else { self.calm.saturating_add(u32::from(!cut)) };
        if !cut || u64::try_from(nanos).is_ok_and(|nanos| nanos > self.estimates.mean(pass.caller, pass.kind))
        {
            self.estimates.note(pass.caller, pass.kind, took);
        }
        for class in &mut self.classes {
            class.set_quantum(self.estimates.mean_of_all());
        }
        self.class_mut(pass.priority).correct(pass.caller, charged - nanos);
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
        let (caller, priority, kind) = (ask.caller, ask.priority, ask.kind);
        Pass { number, caller, priority, kind, charged: 0, since, end }
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
        let slots = self.slots.max(1) as u64;
        let class = self.class(ask.priority);
        let before = class.work_before(ask.caller, rank, cost);
        // Of the more urgent, what goes before it until it has aged, and then three of four.
        let urgent = &self.classes[..ask.priority as usize];
        let urgent = urgent.iter().map(Class::work).fold(0, u64::saturating_add);
        let ageing = u64::try_from(self.limits.ageing.as_nanos()).unwrap_or(u64::MAX).saturating_mul(slots);
        let most =
            before.saturating_add(cost).saturating_mul(u64::from(AGED_EVERY) - 1).saturating_add(ageing);
        let work = before.saturating_add(urgent.min(most));
        let free = self.running.free(0, self.slots.max(1), now);
        let start = free + Duration::from_nanos(work / slots);
        if let Some(late) =
            start.checked_sub(now.saturating_add(self.limits.wait)).filter(|late| !late.is_zero())
        {
            return Err(Refusal::Wait(late));
        }
        if let (Some(deadline), Some(promise)) = (ask.deadline, self.promise(ask)) {
            // Those who come later have a part too, as large as what they have asked for lately; and calls may take longer than they did.
            let part = self.part(ask, now);
            let work = work.max((class.own_work_before(ask.caller, rank) as f64 / part) as u64);
            let wait = Duration::from_nanos(work / slots);
            let late = (free + wait + wait / RESERVE + promise.likely).saturating_sub(deadline);
            if !late.is_zero() {
                return Err(Refusal::Deadline(late));
            }
            if !self.promises.bear(rank, promise, self.line(now)) {
                return Err(Refusal::Promised);
            }
        }
        Ok(())
    }

    /// The part of the slots' time that a caller can count on: what the others and the more urgent have not asked for lately, and at least
    /// the part that is its own.
    fn part(&self, ask: &Ask, now: Duration) -> f64 {
        let slots = self.slots.max(1) as f64;
        let (others, count) = self.class(ask.priority).demand_of_others(ask.caller, now);
        let urgent: f64 = self.classes[..ask.priority as usize].iter().map(|class| class.demand(now)).sum();
        let least = if urgent > 0.0 { 1.0 / f64::from(AGED_EVERY) } else { 1.0 } / (count as f64 + 1.0);
        (1.0 - (others + urgent) / slots).clamp(least.min(1.0), 1.0)
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

    /// Makes room in a full queue: the last calls of whoever has the most in it make way for one who has less, and lesser priorities make
    /// way for the more urgent, down to their part. Nobody makes way in vain.
    fn make_room(&mut self, ask: &Ask) -> Result<(), Refusal> {
        if self.waiting() >= self.limits.items {
            let victim = self.victim(ask).ok_or(Refusal::Items)?;
            self.displace(&victim);
        }
        let over = self.bytes.saturating_add(ask.bytes).saturating_sub(self.limits.bytes);
        if over > 0 {
            let (priority, caller) = self.heaviest(ask, over).ok_or(Refusal::Bytes)?;
            while self.bytes.saturating_add(ask.bytes) > self.limits.bytes {
                let rank = self.last(priority, caller).ok_or(Refusal::Bytes)?;
                self.displace(&Place { priority, caller, rank });
            }
        }
        Ok(())
    }

    fn displace(&mut self, place: &Place) {
        let displaced = self.leave(place);
        self.displaced.extend(displaced);
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
        let (caller, _) = self.class(priority).longest()?;
        Some(Place { priority, caller, rank: self.last(priority, caller)? })
    }

    /// Whose calls hold so much that they can give up `over` bytes: in a lesser priority, or more than the one who asks would hold.
    fn heaviest(&self, ask: &Ask, over: usize) -> Option<(Priority, u16)> {
        let own = self.class(ask.priority).bytes_of(ask.caller).saturating_add(ask.bytes);
        Priority::ALL[ask.priority as usize..].iter().copied().rev().find_map(|priority| {
            let (caller, bytes) = self.class(priority).heaviest()?;
            let left = bytes.checked_sub(over)?;
            let fair = priority > ask.priority || (caller != ask.caller && left >= own);
            fair.then_some((priority, caller))
        })
    }

    /// The last of a caller's calls; of those that were promised only if there are no others.
    fn last(&self, priority: Priority, caller: u16) -> Option<Rank> {
        let class = self.class(priority);
        class.last(caller, |rank| !self.promises.contains(rank)).or_else(|| class.last(caller, |_| true))
    }
}
