//! How many lines of one kind there may be in a second, so that a flood of failures does not fill a disk. A kind is a place in the code.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;

/// The time for which lines are counted.
const SECOND: Duration = Duration::from_secs(1);

/// Lines of each kind in this second.
pub(super) struct Rate {
    most: usize,
    kinds: Mutex<HashMap<Identifier, Count>>,
}

struct Count {
    since: Instant,
    lines: usize,
    left_out: u64,
}

impl Rate {
    /// At most so many; 0 for any number.
    pub(super) fn new(most: usize) -> Self {
        Self { most, kinds: Mutex::default() }
    }

    /// Whether there may be one more, and how many have been left out before it.
    pub(super) fn admit(&self, kind: Identifier, now: Instant) -> Option<u64> {
        if self.most == 0 {
            return Some(0);
        }
        // There are as many as places in the code.
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let count = kinds.entry(kind).or_insert(Count { since: now, lines: 0, left_out: 0 });
        if now.saturating_duration_since(count.since) >= SECOND {
            (count.since, count.lines) = (now, 0);
        }
        if count.lines >= self.most {
            count.left_out += 1;
            return None;
        }
        count.lines += 1;
        Some(std::mem::take(&mut count.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_too_often_is_counted_and_told() {
        use tracing::Callsite as _;
        let one = tracing::callsite! { name: "one", kind: tracing::metadata::Kind::EVENT, fields: };
        let other = tracing::callsite! { name: "other", kind: tracing::metadata::Kind::EVENT, fields: };
        let (one, other) = (one.metadata().callsite(), other.metadata().callsite());
        let (rate, now) = (Rate::new(2), Instant::now());
        let lines: Vec<_> = (0..5).map(|_| rate.admit(one.clone(), now)).collect();
        assert_eq!(lines, [Some(0), Some(0), None, None, None]);
        assert_eq!(rate.admit(other, now), Some(0), "each kind has its own");
        let later = now + SECOND;
        assert_eq!(rate.admit(one.clone(), later), Some(3));
        assert_eq!(rate.admit(one.clone(), later), Some(0));
        assert_eq!(Rate::new(0).admit(one, now), Some(0));
    }
}
