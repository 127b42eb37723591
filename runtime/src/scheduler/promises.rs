//! Calls with a deadline of their own. Such a call is accepted only if it and all others that were accepted can still be begun in
//! time, and from then on it is: whoever would be served first by turns or priority is put behind when it comes to that.
//!
//! The test is that of earliest deadline first, on the slots as they should become free.

use std::collections::BTreeMap;
use std::time::Duration;

use outrigger_protocol::priority::Priority;

use super::class::Rank;
use super::running::Running;

/// A call that was accepted with a deadline.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promise {
    pub(super) priority: Priority,
    pub(super) caller: u16,
    /// What it takes on average, nanoseconds.
    pub(super) cost: u64,
    /// What it takes at most, likely.
    pub(super) likely: Duration,
}

/// All that wait, by deadline.
#[derive(Debug, Default)]
pub(super) struct Promises {
    waiting: BTreeMap<Rank, Promise>,
}

impl Promises {
    pub(super) fn insert(&mut self, rank: Rank, promise: Promise) {
        self.waiting.insert(rank, promise);
    }

    pub(super) fn remove(&mut self, rank: Rank) {
        self.waiting.remove(&rank);
    }

    pub(super) fn contains(&self, rank: &Rank) -> bool {
        self.waiting.contains_key(rank)
    }

    /// The one whose deadline is first.
    pub(super) fn first(&self) -> Option<(Rank, Promise)> {
        self.waiting.first_key_value().map(|(rank, promise)| (*rank, *promise))
    }

    /// Whether all are kept if `new` is accepted. Those that come before it are not its fault.
    pub(super) fn bear(&self, rank: Rank, new: Promise, line: Line<'_>) -> bool {
        let before = self.waiting.range(..rank);
        let after = self.waiting.range(rank..);
        let own = std::iter::once((&rank, &new));
        line.serves(
            before
                .map(|(rank, promise)| (rank, promise, false))
                .chain(own.chain(after).map(|(rank, promise)| (rank, promise, true))),
        )
    }

    /// Whether all are kept if another call is executed now, which takes so much; `of` is its rank, if it is one of these.
    pub(super) fn allow(&self, of: Option<Rank>, cost: u64, line: Line<'_>) -> bool {
        let line = Line { first: Some(cost), ..line };
        line.serves(
            self.waiting
                .iter()
                .filter(|(rank, _)| Some(**rank) != of)
                .map(|(rank, promise)| (rank, promise, true)),
        )
    }
}

/// The slots that a line of calls is served by.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) running: &'a Running,
    pub(super) slots: usize,
    pub(super) now: Duration,
    /// What takes the first slot before all others, nanoseconds.
    pub(super) first: Option<u64>,
}

impl Line<'_> {
    /// Whether the calls, in their order, are begun in time; those that are only to be counted have `false`.
    fn serves<'p>(&self, calls: impl Iterator<Item = (&'p Rank, &'p Promise, bool)>) -> bool {
        let slots = self.slots.max(1);
        let mut line: Vec<u64> = Vec::with_capacity(slots.min(64));
        let mut work = 0u64;
        let first = self.first.map(|cost| self.now + Duration::from_nanos(cost));
        for (at, (rank, promise, matters)) in calls.enumerate() {
            let turn = at % slots;
            if at < slots {
                line.push(work);
            }
            // The slot that is free for the one at this turn, and then the work in between, spread over all slots.
            let free = match first {
                None => self.running.free(turn, slots, self.now),
                Some(end) => self.free_after(end, turn, slots),
            };
            let between = work.saturating_sub(line.get(turn).copied().unwrap_or(0)) / slots as u64;
            let start = free + Duration::from_nanos(between);
            // One that is lost already is nobody's fault.
            let hopeless = self.now + promise.likely > rank.until;
            if matters && !hopeless && start + promise.likely > rank.until {
                return false;
            }
            work = work.saturating_add(promise.cost);
        }
        true
    }

    /// When the `nth` slot is free once a call that ends at `end` has taken the first.
    fn free_after(&self, end: Duration, nth: usize, slots: usize) -> Duration {
        // The others move up by one, and that slot comes in where it belongs.
        let next = |nth: usize| {
            if nth < slots { self.running.free(nth, slots, self.now) } else { Duration::MAX }
        };
        let later = next(nth + 1);
        if end >= later { later } else { end.max(if nth == 0 { Duration::ZERO } else { next(nth) }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn promise(takes: u64) -> Promise {
        Promise { priority: Priority::Normal, caller: 0, cost: takes * 1_000_000, likely: ms(takes) }
    }

    fn rank(until: u64, number: u64) -> Rank {
        Rank { until: ms(until), number }
    }

    fn busy(ends: &[u64]) -> Running {
        let mut running = Running::default();
        for (number, end) in (0..).zip(ends) {
            running.insert(ms(*end), number);
        }
        running
    }

    #[test]
    fn what_fits_is_taken_and_what_does_not_is_not() {
        let running = busy(&[10, 20]);
        let line = Line { running: &running, slots: 2, now: ms(0), first: None };
        let mut promises = Promises::default();
        // Two slots, free at 10 and 20, 20 each: ends at 30, 40, 50, 60.
        for (number, until) in (0..).zip([30, 40, 50, 60]) {
            assert!(!promises.bear(rank(until - 1, number), promise(20), line), "{until}");
            assert!(promises.bear(rank(until, number), promise(20), line), "{until}");
            promises.insert(rank(until, number), promise(20));
        }
        assert!(!promises.bear(rank(35, 9), promise(20), line), "it would break those after it");
        assert!(promises.bear(rank(70, 9), promise(20), line));
    }

    #[test]
    fn others_are_let_by_only_while_there_is_time() {
        let running = busy(&[20]);
        let mut promises = Promises::default();
        promises.insert(rank(60, 0), promise(20));
        let at = |now| Line { running: &running, slots: 2, now: ms(now), first: None };
        // The other slot is free at 20.
        assert!(promises.allow(None, 500_000_000, at(0)));
        promises.insert(rank(61, 1), promise(20));
        assert!(
            !promises.allow(None, 500_000_000, at(0)),
            "the second would be begun at 40 and end at 60, if the first slot came"
        );
        assert!(promises.allow(None, 20_000_000, at(0)));
        assert!(promises.allow(Some(rank(60, 0)), 20_000_000, at(0)));
        assert!(promises.allow(None, 1, at(50)), "they are lost anyway");
    }

    #[test]
    fn slots_are_in_order_after_one_was_taken() {
        let running = busy(&[20]);
        let line = Line { running: &running, slots: 2, now: ms(0), first: None };
        let after = |end| [0, 1].map(|nth| line.free_after(ms(end), nth, 2));
        assert_eq!(after(5), [ms(5), ms(20)]);
        assert_eq!(after(20), [ms(20), ms(20)]);
        assert_eq!(after(30), [ms(20), ms(30)]);
    }
}
