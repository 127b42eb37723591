//! The calls that are being executed, and when their slots should be free again.

use std::time::Duration;

/// Calls in slots, by the time at which they should have ended.
#[derive(Debug, Default)]
pub(super) struct Running {
    /// Ascending; the number tells calls of one time apart.
    ends: Vec<(Duration, u64)>,
}

impl Running {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn insert(&mut self, end: Duration, number: u64) {
        let at = self.ends.partition_point(|other| *other < (end, number));
        self.ends.insert(at, (end, number));
    }

    pub(super) fn remove(&mut self, end: Duration, number: u64) {
        if let Ok(at) = self.ends.binary_search(&(end, number)) {
            self.ends.remove(at);
        }
    }

    /// When the `nth` of so many slots is free for whoever comes next, counted from 0 in the order in which they become free. A call
    /// that should have ended may end at any moment.
    pub(super) fn free(&self, nth: usize, slots: usize, now: Duration) -> Duration {
        let at = (nth + self.ends.len()).checked_sub(slots);
        at.and_then(|at| self.ends.get(at)).map_or(now, |(end, _)| *end).max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_free_in_the_order_in_which_their_calls_end() {
        let second = Duration::from_secs;
        let mut running = Running::default();
        let free = |running: &Running, nth| running.free(nth, 2, second(1));
        assert_eq!(free(&running, 1), second(1));
        running.insert(second(9), 1);
        running.insert(second(5), 2);
        assert_eq!((free(&running, 0), free(&running, 1)), (second(5), second(9)));
        // One that was let through ahead of its slot takes the one that is free first.
        running.insert(second(10), 3);
        assert_eq!((free(&running, 0), free(&running, 1)), (second(9), second(10)));
        running.remove(second(9), 1);
        running.remove(second(9), 1);
        running.remove(second(10), 3);
        assert_eq!((free(&running, 0), free(&running, 1)), (second(1), second(5)));
        running.insert(Duration::ZERO, 4);
        assert_eq!(free(&running, 0), second(1), "it is late");
    }
}
