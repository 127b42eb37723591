//! The calls of one priority that wait: callers take turns by deficit round robin (Shreedhar and Varghese, 1995), measured in service
//! time; the calls of one caller go by their deadlines.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Debts are forgotten beyond so many turns, so that one call that took very long does not shut its caller out.
const MOST_DEBT: i64 = 256;
/// The same where turns are short, nanoseconds: who has one call of seconds among many of microseconds still owes it.
const MOST_DEBT_NANOS: i64 = 5_000_000_000;
/// So many calls are refused because of their deadlines before one is let in to show how long they take.
const PROBE_AFTER: u32 = 16;
/// How long a caller's demand is looked back upon.
const WINDOW: Duration = Duration::from_secs(2);

/// Where a call stands among those of its caller: by deadline, then in the order in which they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// When it is over; for one without a deadline of its own, the end of the longest wait.
    pub(super) until: Duration,
    pub(super) number: u64,
}

/// A call that waits.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) item: T,
    /// When it came.
    pub(super) since: Duration,
    /// What it will take, nanoseconds.
    pub(super) cost: u64,
    pub(super) bytes: usize,
}

/// The calls of one caller.
#[derive(Debug)]
struct Flow<T> {
    waiting: BTreeMap<Rank, Waiting<T>>,
    /// What all that wait will take, nanoseconds.
    work: u64,
    bytes: usize,
    /// What it has asked for lately, refused calls counted in.
    demand: Demand,
    /// Calls that were refused since one was let in.
    refused: u32,
    /// Service time that it may use now; below 0, what it has used beyond its share.
    deficit: i64,
    /// Whether it has had the share of this turn.
    topped: bool,
    /// The round in which its last call left: what it owes is paid off by the rounds that go on without it.
    left: u64,
}

impl<T> Default for Flow<T> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            work: 0,
            bytes: 0,
            demand: Demand::default(),
            refused: 0,
            deficit: 0,
            topped: false,
            left: 0,
        }
    }
}

/// All who wait with one priority.
#[derive(Debug)]
pub(super) struct Class<T> {
    /// By caller.
    flows: Vec<Flow<T>>,
    /// Callers with waiting calls, in turn.
    turns: VecDeque<u16>,
    /// The order in which they came, of all.
    by_age: BTreeMap<u64, (Duration, u16)>,
    work: u64,
    /// The share of a turn, nanoseconds. The same for all in a round: who comes after a caller with long calls must not have more.
    quantum: i64,
    /// That of the next round.
    next_quantum: i64,
    /// Rounds in which each caller has had a turn.
    rounds: u64,
    /// Turns since the last of them.
    past: usize,
}

impl<T> Default for Class<T> {
    fn default() -> Self {
        Self {
            flows: Vec::new(),
            turns: VecDeque::new(),
            by_age: BTreeMap::new(),
            work: 0,
            quantum: 1,
            next_quantum: 1,
            rounds: 0,
            past: 0,
        }
    }
}

impl<T> Class<T> {
    pub(super) fn len(&self) -> usize {
        self.by_age.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_age.is_empty()
    }

    /// What all that wait will take, nanoseconds.
    pub(super) fn work(&self) -> u64 {
        self.work
    }

    /// Since when the one waits that has waited longest.
    pub(super) fn oldest(&self) -> Option<Duration> {
        self.by_age.first_key_value().map(|(_, (since, _))| *since)
    }

    /// Calls of a caller that wait.
    pub(super) fn waiting(&self, caller: u16) -> usize {
        self.flows.get(usize::from(caller)).map_or(0, |flow| flow.waiting.len())
    }

    /// Bytes of a caller's calls that wait.
    pub(super) fn bytes_of(&self, caller: u16) -> usize {
        self.flows.get(usize::from(caller)).map_or(0, |flow| flow.bytes)
    }

    /// The caller whose waiting calls hold the most bytes.
    pub(super) fn heaviest(&self) -> Option<(u16, usize)> {
        self.turns.iter().map(|caller| (*caller, self.bytes_of(*caller))).max_by_key(|(_, bytes)| *bytes)
    }

    /// A caller asks for so much, nanoseconds, whatever becomes of it.
    pub(super) fn demands(&mut self, caller: u16, cost: u64, now: Duration) {
        self.flow(caller).demand.add(cost, now);
    }

    /// What all callers have asked for lately, in slots that it would keep busy.
    pub(super) fn demand(&self, now: Duration) -> f64 {
        self.flows.iter().map(|flow| flow.demand.rate(now)).sum()
    }

    /// The same of all but one, and how many those are.
    pub(super) fn demand_of_others(&self, caller: u16, now: Duration) -> (f64, usize) {
        let others = self.flows.iter().enumerate().filter(|(at, _)| *at != usize::from(caller));
        let rates = others.map(|(_, flow)| flow.demand.rate(now)).filter(|rate| *rate > 0.0);
        rates.fold((0.0, 0), |(sum, count), rate| (sum + rate, count + 1))
    }

    /// A call of a caller's is refused because of its deadline; whether it is to be let in all the same, since so many were and none is
    /// waiting.
    pub(super) fn turned_away(&mut self, caller: u16) -> bool {
        let flow = self.flow(caller);
        flow.refused = flow.refused.saturating_add(1);
        let enough = flow.waiting.is_empty() && flow.refused > PROBE_AFTER;
        if enough {
            flow.refused = 0;
        }
        enough
    }

    fn flow(&mut self, caller: u16) -> &mut Flow<T> {
        let at = usize::from(caller);
        if self.flows.len() <= at {
            self.flows.resize_with(at + 1, Flow::default);
        }
        &mut self.flows[at]
    }

    /// The caller with the most waiting calls.
    pub(super) fn longest(&self) -> Option<(u16, usize)> {
        self.turns.iter().map(|caller| (*caller, self.waiting(*caller))).max_by_key(|(_, waiting)| *waiting)
    }

    pub(super) fn insert(&mut self, caller: u16, rank: Rank, waiting: Waiting<T>) {
        let at = usize::from(caller);
        self.flow(caller);
        let flow = &mut self.flows[at];
        if flow.waiting.is_empty() {
            flow.deficit = flow.owed(self.rounds, self.quantum);
            flow.topped = false;
            // Who has let a round go by and owes nothing is next: a caller with few calls need not wait for a turn of each of the others.
            let paused = flow.deficit == 0 && flow.left < self.rounds;
            if paused {
                self.end_turn();
                self.turns.push_front(caller);
            } else {
                self.turns.push_back(caller);
            }
        }
        let flow = &mut self.flows[at];
        flow.refused = 0;
        flow.work += waiting.cost;
        flow.bytes = flow.bytes.saturating_add(waiting.bytes);
        self.work += waiting.cost;
        self.by_age.insert(rank.number, (waiting.since, caller));
        flow.waiting.insert(rank, waiting);
    }

    /// Takes one out, wherever it stands.
    pub(super) fn remove(&mut self, caller: u16, rank: Rank) -> Option<Waiting<T>> {
        let flow = self.flows.get_mut(usize::from(caller))?;
        let waiting = flow.waiting.remove(&rank)?;
        flow.work = flow.work.saturating_sub(waiting.cost);
        flow.bytes = flow.bytes.saturating_sub(waiting.bytes);
        self.work = self.work.saturating_sub(waiting.cost);
        self.by_age.remove(&rank.number);
        if flow.waiting.is_empty() {
            // Nothing is saved up; what is owed stays while others wait.
            flow.deficit = flow.deficit.min(0);
            flow.left = self.rounds;
            self.turns.retain(|other| *other != caller);
        }
        if self.turns.is_empty() {
            // Who has taken what nobody else wanted owes nothing.
            self.flows.iter_mut().for_each(|flow| flow.deficit = 0);
        }
        Some(waiting)
    }

    pub(super) fn get(&self, caller: u16, rank: Rank) -> Option<&Waiting<T>> {
        self.flows.get(usize::from(caller))?.waiting.get(&rank)
    }

    /// All that wait.
    pub(super) fn into_items(self) -> impl Iterator<Item = T> {
        self.flows.into_iter().flat_map(|flow| flow.waiting.into_values()).map(|waiting| waiting.item)
    }

    /// Sets the share of a turn from the next round on, nanoseconds: about what a call takes.
    pub(super) fn set_quantum(&mut self, quantum: u64) {
        self.next_quantum = cost(quantum);
        if self.turns.is_empty() {
            self.quantum = self.next_quantum;
        }
    }

    /// Who is next, by turns.
    pub(super) fn next(&mut self) -> Option<(u16, Rank)> {
        let quantum = self.quantum;
        for _ in 0..self.turns.len() * 2 + 1 {
            let caller = *self.turns.front()?;
            let flow = &mut self.flows[usize::from(caller)];
            let (rank, waiting) = flow.waiting.first_key_value()?;
            if !flow.topped {
                flow.topped = true;
                flow.deficit = flow.deficit.saturating_add(quantum);
            }
            if flow.deficit >= cost(waiting.cost) {
                return Some((caller, *rank));
            }
            self.end_turn();
        }
        // Nobody can afford their call with the share of one turn: as many turns at once as the first one needs.
        let turns = self
            .turns
            .iter()
            .filter_map(|caller| self.flows[usize::from(*caller)].turns_short(quantum))
            .min()?;
        self.rounds = self.rounds.saturating_add(u64::try_from(turns).unwrap_or(0));
        for caller in &self.turns {
            let flow = &mut self.flows[usize::from(*caller)];
            flow.deficit = flow.deficit.saturating_add(turns.saturating_mul(quantum));
        }
        let able = |caller: &u16| {
            let flow = &self.flows[usize::from(*caller)];
            flow.waiting.first_key_value().is_some_and(|(_, waiting)| flow.deficit >= cost(waiting.cost))
        };
        let at = self.turns.iter().position(able)?;
        self.turns.rotate_left(at);
        let caller = *self.turns.front()?;
        let flow = &mut self.flows[usize::from(caller)];
        flow.topped = true;
        flow.waiting.first_key_value().map(|(rank, _)| (caller, *rank))
    }

    /// The turn of the caller whose it is ends, unless it can go on.
    fn end_turn(&mut self) {
        let Some(caller) = self.turns.front() else { return };
        let flow = &mut self.flows[usize::from(*caller)];
        let next = flow.waiting.first_key_value().map_or(0, |(_, waiting)| waiting.cost);
        if !flow.topped || flow.deficit >= cost(next) {
            return;
        }
        flow.topped = false;
        self.turns.rotate_left(1);
        self.past += 1;
        if self.past >= self.turns.len() {
            self.past = 0;
            self.rounds += 1;
            self.quantum = self.next_quantum;
        }
    }

    /// Takes one out to be executed: its caller is charged for it.
    pub(super) fn take(&mut self, caller: u16, rank: Rank) -> Option<Waiting<T>> {
        let charged = self.flows.get(usize::from(caller))?.waiting.get(&rank)?.cost;
        self.correct(caller, -cost(charged));
        self.remove(caller, rank)
    }

    /// A call of the caller's took so much less than was charged (or more, below 0), nanoseconds.
    pub(super) fn correct(&mut self, caller: u16, nanos: i64) {
        // Where nobody waits there is nothing to share.
        if self.turns.is_empty() {
            return;
        }
        if let Some(flow) = self.flows.get_mut(usize::from(caller)) {
            if flow.waiting.is_empty() {
                flow.deficit = flow.owed(self.rounds, self.quantum);
                flow.left = self.rounds;
            }
            let most = MOST_DEBT.saturating_mul(self.quantum).max(MOST_DEBT_NANOS);
            flow.deficit = flow.deficit.saturating_add(nanos).max(-most);
            if flow.waiting.is_empty() {
                flow.deficit = flow.deficit.min(0);
            }
        }
    }

    /// Work that will be done before a new call of this caller's with this rank, if turns go on as they do, nanoseconds.
    pub(super) fn work_before(&self, caller: u16, rank: Rank, cost_of_it: u64) -> u64 {
        let mut before = self.own_work_before(caller, rank);
        // While that and the call itself are done, the others have as much each, if they have as much.
        let share = before.saturating_add(cost_of_it);
        for other in self.turns.iter().filter(|other| **other != caller) {
            before = before.saturating_add(self.flows[usize::from(*other)].work.min(share));
        }
        before
    }

    /// The caller's own part of that, and what it owes.
    pub(super) fn own_work_before(&self, caller: u16, rank: Rank) -> u64 {
        let Some(flow) = self.flows.get(usize::from(caller)) else { return 0 };
        let owed = if flow.waiting.is_empty() { flow.owed(self.rounds, self.quantum) } else { flow.deficit };
        let debt = u64::try_from(-owed.min(0)).unwrap_or(0);
        let last = flow.waiting.last_key_value().is_none_or(|(last, _)| *last < rank);
        let ahead =
            if last { flow.work } else { flow.waiting.range(..rank).map(|(_, waiting)| waiting.cost).sum() };
        ahead.saturating_add(debt)
    }

    /// The last of a caller's calls, in its own order, that `may` be taken back.
    pub(super) fn last(&self, caller: u16, may: impl Fn(&Rank) -> bool) -> Option<Rank> {
        let flow = self.flows.get(usize::from(caller))?;
        flow.waiting.keys().rev().find(|rank| may(rank)).copied()
    }
}

/// Service time that was asked for in this window and in the one before.
#[derive(Clone, Copy, Debug, Default)]
struct Demand {
    window: u64,
    now: u64,
    before: u64,
}

impl Demand {
    fn add(&mut self, nanos: u64, now: Duration) {
        let (window, _) = Self::place(now);
        if window != self.window {
            self.before = if window == self.window + 1 { self.now } else { 0 };
            self.now = 0;
            self.window = window;
        }
        self.now = self.now.saturating_add(nanos);
    }

    /// Over the last window, in slots that it would keep busy.
    fn rate(&self, now: Duration) -> f64 {
        let (window, into) = Self::place(now);
        let (this, before) = match window - self.window.min(window) {
            0 => (self.now, self.before),
            1 => (0, self.now),
            _ => (0, 0),
        };
        (this as f64 + before as f64 * (1.0 - into)) / WINDOW.as_nanos() as f64
    }

    /// The number of a window, and how much of it is over.
    fn place(now: Duration) -> (u64, f64) {
        let nanos = now.as_nanos();
        let window = WINDOW.as_nanos();
        let number = u64::try_from(nanos / window).unwrap_or(u64::MAX);
        (number, (nanos % window) as f64 / window as f64)
    }
}

impl<T> Flow<T> {
    /// What it still owes, 0 or less, while it has no call waiting.
    fn owed(&self, rounds: u64, quantum: i64) -> i64 {
        let paid =
            i64::try_from(rounds.saturating_sub(self.left)).unwrap_or(i64::MAX).saturating_mul(quantum);
        self.deficit.saturating_add(paid).min(0)
    }

    /// Turns until it can afford its next call.
    fn turns_short(&self, quantum: i64) -> Option<i64> {
        let (_, waiting) = self.waiting.first_key_value()?;
        let short = cost(waiting.cost).saturating_sub(self.deficit).max(1);
        Some(short / quantum + i64::from(short % quantum > 0))
    }
}

/// Service time as it is reckoned with: a call is never free.
fn cost(nanos: u64) -> i64 {
    i64::try_from(nanos.max(1)).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(number: u64) -> Rank {
        Rank { until: Duration::from_secs(100 + number), number }
    }

    fn class(calls: &[(u16, u64)]) -> Class<()> {
        let mut class = Class::default();
        for (number, (caller, cost)) in (0..).zip(calls) {
            let waiting = Waiting { item: (), since: Duration::from_secs(number), cost: *cost, bytes: 1 };
            class.insert(*caller, rank(number), waiting);
        }
        class
    }

    /// Who is served, in order, each call costing what it was thought to.
    fn order(mut class: Class<()>, quantum: u64) -> Vec<u16> {
        class.quantum = cost(quantum);
        class.set_quantum(quantum);
        let mut order = Vec::new();
        while let Some((caller, rank)) = class.next() {
            class.take(caller, rank).unwrap();
            order.push(caller);
        }
        order
    }

    #[test]
    fn callers_take_turns_however_many_calls_they_bring() {
        let calls = [(0, 10), (0, 10), (0, 10), (0, 10), (1, 10), (1, 10), (2, 10)];
        assert_eq!(order(class(&calls), 10), [0, 1, 2, 0, 1, 0, 0]);
    }

    #[test]
    fn turns_are_measured_in_time() {
        let mut calls = vec![(0, 30); 10];
        calls.extend([(1, 10); 30]);
        let order = order(class(&calls), 30);
        let first = &order[..20];
        let served = |caller| first.iter().filter(|other| **other == caller).count();
        assert_eq!((served(0), served(1)), (5, 15), "{first:?}");
    }

    #[test]
    fn one_call_that_is_dearer_than_many_turns_is_served_all_the_same() {
        let calls = [(0, 1_000_000), (1, 3), (1, 3)];
        assert_eq!(order(class(&calls), 1), [1, 1, 0]);
        assert_eq!(order(class(&[(0, u64::MAX)]), 1), [0]);
        assert_eq!(order(class(&[(0, 0), (1, 0), (0, 0)]), 0), [0, 1, 0]);
    }

    #[test]
    fn who_comes_after_a_pause_is_next_once() {
        let mut class = class(&[(0, 10), (0, 10), (0, 10), (0, 10), (0, 10), (0, 10)]);
        class.quantum = 10;
        class.set_quantum(10);
        let mut order = Vec::new();
        let mut serve = |class: &mut Class<()>| {
            let (caller, rank) = class.next().unwrap();
            class.take(caller, rank);
            order.push(caller);
        };
        serve(&mut class);
        serve(&mut class);
        for number in 10..14 {
            class.insert(1, rank(number), Waiting { item: (), since: Duration::ZERO, cost: 10, bytes: 1 });
            if number == 11 {
                serve(&mut class);
            }
        }
        for _ in 0..4 {
            serve(&mut class);
        }
        assert_eq!(order, [0, 0, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn a_caller_s_own_calls_go_by_deadline() {
        let mut class = class(&[(0, 10), (0, 10)]);
        let urgent = Rank { until: Duration::from_secs(1), number: 9 };
        class.insert(0, urgent, Waiting { item: (), since: Duration::from_secs(9), cost: 10, bytes: 1 });
        assert_eq!(class.next(), Some((0, urgent)));
        assert_eq!(class.oldest(), Some(Duration::ZERO));
    }

    #[test]
    fn who_took_more_than_thought_waits_longer() {
        let mut class = class(&[(0, 10), (0, 10), (0, 10), (1, 10), (1, 10), (1, 10), (1, 10)]);
        class.quantum = 10;
        class.set_quantum(10);
        let mut order = Vec::new();
        for _ in 0..5 {
            let (caller, rank) = class.next().unwrap();
            class.take(caller, rank);
            if order.is_empty() {
                class.correct(caller, -20);
            }
            order.push(caller);
        }
        assert_eq!(order, [0, 1, 1, 1, 0]);
    }

    #[test]
    fn what_is_owed_is_paid_off_while_others_go_on() {
        let mut class = class(&[(0, 10), (1, 10), (1, 10), (1, 10), (1, 10), (1, 10), (1, 10)]);
        class.quantum = 10;
        class.set_quantum(10);
        let (caller, rank) = class.next().unwrap();
        class.take(caller, rank);
        class.correct(0, -30);
        assert_eq!(class.work_before(0, self::rank(99), 10), 30 + 40);
        for _ in 0..4 {
            let (caller, rank) = class.next().unwrap();
            assert_eq!(caller, 1);
            class.take(caller, rank);
        }
        assert_eq!(class.work_before(0, self::rank(99), 10), 10);
    }

    #[test]
    fn work_before_a_new_call_is_its_own_and_as_much_of_the_others() {
        let class = class(&[(0, 10), (0, 10), (0, 10), (0, 10), (1, 10)]);
        assert_eq!(class.work_before(0, rank(99), 10), 50);
        assert_eq!(class.work_before(1, rank(99), 10), 10 + 20);
        assert_eq!(class.work_before(2, rank(99), 10), 10 + 10);
        let first = Rank { until: Duration::ZERO, number: 99 };
        assert_eq!(class.work_before(0, first, 10), 10);
    }
}
