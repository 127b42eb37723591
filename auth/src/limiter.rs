//! How often and how many at once: a token bucket and a count of calls, in one word.
//!
//! The bucket is kept as the time at which it will be full again, so nothing needs to fill it (the generic cell rate algorithm of
//! ATM networks: ITU-T I.371, annex A). Both halves change in one step, so a call that one of them refuses has taken nothing
//! from the other, not even for a moment.

use std::sync::atomic::Ordering;
use std::time::Duration;

use portable_atomic::AtomicU128;

/// The fewest calls per second that a rate may be: one in about a quarter of an hour.
pub const MIN_RATE: f64 = 0.001;
/// The most calls per second that a rate may be. Its interval is 1000 of our nanoseconds, so what rounding takes off is a
/// thousandth at most.
pub const MAX_RATE: f64 = 1e6;
/// The most calls that may come at once after a pause.
pub const MAX_BURST: u32 = 1_000_000;

/// So many calls per second, and so many at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    per_second: f64,
    burst: u32,
}

impl Rate {
    /// `per_second` calls, of which `burst` may come at once; by default what comes in a second, at least one. `None` beyond
    /// [`MIN_RATE`], [`MAX_RATE`] and [`MAX_BURST`], and for a burst of nothing.
    pub fn new(per_second: f64, burst: Option<u32>) -> Option<Self> {
        // Not a number is in no range.
        if !(MIN_RATE..=MAX_RATE).contains(&per_second) {
            return None;
        }
        // In range, so the conversion keeps the number.
        let burst = burst.unwrap_or((per_second.ceil() as u32).max(1));
        (1..=MAX_BURST).contains(&burst).then_some(Self { per_second, burst })
    }

    /// Calls per second.
    pub fn per_second(self) -> f64 {
        self.per_second
    }

    /// Calls at once after a pause.
    pub fn burst(self) -> u32 {
        self.burst
    }

    /// From one call to the next, in nanoseconds; rounded up, so that there is never one call more.
    fn interval(self) -> u64 {
        (1e9 / self.per_second).ceil() as u64
    }
}

/// Why a call may not come now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// The bucket has no token; it will have one after this time.
    Rate(Duration),
    /// As many calls are in the house as may be.
    Concurrency,
}

/// A bucket of tokens and a count of calls; either may be without a limit.
pub(crate) struct Limiter {
    /// When the bucket will be full, in nanoseconds, above; calls in the house, below.
    word: AtomicU128,
    /// Nanoseconds for a token to come; 0 for no limit.
    interval: u64,
    /// Nanoseconds for the bucket to fill, but for its last token.
    depth: u64,
    /// Calls at once.
    most: u32,
}

fn split(word: u128) -> (u64, u32) {
    ((word >> 64) as u64, word as u32)
}

fn join(full_at: u64, calls: u32) -> u128 {
    (u128::from(full_at) << 64) | u128::from(calls)
}

impl Limiter {
    pub(crate) fn new(rate: Option<Rate>, most: Option<u32>) -> Self {
        let interval = rate.map_or(0, Rate::interval);
        // At most 10^12 times 10^6, a third of what an i64 holds.
        let depth = rate.map_or(0, |rate| u64::from(rate.burst - 1).saturating_mul(interval));
        Self { word: AtomicU128::new(0), interval, depth, most: most.unwrap_or(u32::MAX) }
    }

    /// Takes a token and a place, or neither. `now` is in nanoseconds since any moment before the first call; calls may come
    /// out of order.
    pub(crate) fn take(&self, now: u64) -> Result<(), Denied> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let (full_at, calls) = split(word);
            let from = full_at.max(now);
            let early = (from - now).saturating_sub(self.depth);
            if early > 0 {
                return Err(Denied::Rate(Duration::from_nanos(early)));
            }
            if calls >= self.most {
                return Err(Denied::Concurrency);
            }
            let taken = join(from.saturating_add(self.interval), calls.saturating_add(1));
            match self.word.compare_exchange_weak(word, taken, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(seen) => word = seen,
            }
        }
    }

    /// Gives a place back.
    pub(crate) fn give_back(&self) {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let (full_at, calls) = split(word);
            let given = join(full_at, calls.saturating_sub(1));
            match self.word.compare_exchange_weak(word, given, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(seen) => word = seen,
            }
        }
    }

    /// Calls in the house.
    pub(crate) fn calls(&self) -> u32 {
        split(self.word.load(Ordering::Relaxed)).1
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, AtomicU64};

    use proptest::prelude::*;

    use super::*;

    fn limiter(per_second: f64, burst: u32, most: Option<u32>) -> Limiter {
        Limiter::new(Some(Rate::new(per_second, Some(burst)).unwrap()), most)
    }

    #[test]
    fn rates_have_bounds() {
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY, MIN_RATE / 2.0, MAX_RATE * 2.0] {
            assert_eq!(Rate::new(wrong, None), None, "{wrong}");
        }
        assert_eq!(Rate::new(1.0, Some(0)), None);
        assert_eq!(Rate::new(1.0, Some(MAX_BURST + 1)), None);
        for (per_second, burst) in [(0.001, 1), (1.0, 1), (2.5, 3), (MAX_RATE, MAX_BURST)] {
            assert_eq!(Rate::new(per_second, None).unwrap().burst(), burst);
        }
        // The slowest and deepest does not overflow, also after a long time.
        let deep = limiter(MIN_RATE, MAX_BURST, None);
        assert_eq!(deep.take(u64::MAX / 2), Ok(()));
        assert_eq!(deep.take(u64::MAX), Ok(()));
    }

    #[test]
    fn a_burst_then_one_at_a_time_and_the_wait_is_exact() {
        let limiter = limiter(2.0, 3, None);
        let start = 7_000_000_000;
        for _ in 0..3 {
            assert_eq!(limiter.take(start), Ok(()));
        }
        assert_eq!(limiter.take(start), Err(Denied::Rate(Duration::from_millis(500))));
        assert_eq!(limiter.take(start + 499_999_999), Err(Denied::Rate(Duration::from_nanos(1))));
        assert_eq!(limiter.take(start + 500_000_000), Ok(()));
        assert_eq!(limiter.take(start + 500_000_000), Err(Denied::Rate(Duration::from_millis(500))));
    }

    #[test]
    fn a_refusal_takes_nothing() {
        let limiter = limiter(1.0, 2, Some(1));
        assert_eq!(limiter.take(0), Ok(()));
        for _ in 0..100 {
            assert_eq!(limiter.take(0), Err(Denied::Concurrency));
        }
        limiter.give_back();
        assert_eq!(limiter.take(0), Ok(()), "the token is still there");
        limiter.give_back();
        for _ in 0..100 {
            assert!(matches!(limiter.take(0), Err(Denied::Rate(_))), "the rate is asked first");
        }
        assert_eq!(limiter.calls(), 0, "and the place is free");
    }

    /// The same said plainly: tokens are filled in as time passes.
    struct Bucket {
        level: u64,
        at: u64,
        calls: u32,
    }

    proptest! {
        #[test]
        fn it_is_a_bucket_of_tokens_and_no_window_holds_more(
            per_second in 0.01f64..2000.0,
            burst in 1u32..20,
            most in 1u32..6,
            steps in prop::collection::vec((0u64..3_000, any::<bool>()), 1..200),
        ) {
            let limiter = limiter(per_second, burst, Some(most));
            let interval = limiter.interval;
            let full = interval * u64::from(burst);
            let mut bucket = Bucket { level: full, at: 0, calls: 0 };
            let mut admitted = Vec::new();
            for (thousandths, give_back) in steps {
                if give_back && bucket.calls > 0 {
                    bucket.calls -= 1;
                    limiter.give_back();
                }
                let now = bucket.at + interval * thousandths / 1000;
                bucket.level = full.min(bucket.level + (now - bucket.at));
                bucket.at = now;
                let expected = if bucket.level < interval {
                    Err(Denied::Rate(Duration::from_nanos(interval - bucket.level)))
                } else if bucket.calls >= most {
                    Err(Denied::Concurrency)
                } else {
                    bucket.level -= interval;
                    bucket.calls += 1;
                    admitted.push(now);
                    Ok(())
                };
                prop_assert_eq!(limiter.take(now), expected);
                prop_assert_eq!(limiter.calls(), bucket.calls);
            }
            for (i, first) in admitted.iter().enumerate() {
                for (j, last) in admitted.iter().enumerate().skip(i) {
                    let seconds = (last - first) as f64 / 1e9;
                    let count = (j - i + 1) as f64;
                    prop_assert!(count <= f64::from(burst) + per_second * seconds + 1e-6);
                }
            }
        }
    }

    #[test]
    fn many_threads_get_exactly_what_there_is() {
        let limiter = limiter(1000.0, 50, Some(7));
        let (admitted, at_once) = (AtomicU32::new(0), AtomicU32::new(0));
        for (now, expected) in [(0, 50), (0, 0), (3_000_000, 3), (10_000_000_000, 50)] {
            admitted.store(0, Ordering::SeqCst);
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        for _ in 0..2000 {
                            // Places come back, so whoever finds none has to try again to find out about tokens.
                            match limiter.take(now) {
                                Ok(()) => {
                                    assert!(at_once.fetch_add(1, Ordering::SeqCst) < 7);
                                    admitted.fetch_add(1, Ordering::SeqCst);
                                    at_once.fetch_sub(1, Ordering::SeqCst);
                                    limiter.give_back();
                                }
                                Err(Denied::Concurrency) => std::thread::yield_now(),
                                Err(Denied::Rate(_)) => {}
                            }
                        }
                    });
                }
            });
            assert_eq!(admitted.load(Ordering::SeqCst), expected, "at {now}");
            assert_eq!(limiter.calls(), 0);
        }
    }

    #[test]
    fn threads_whose_clocks_overtake_each_other_get_no_more() {
        let limiter = limiter(100_000.0, 10, None);
        let (clock, admitted) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let now = clock.fetch_add(1000, Ordering::SeqCst);
                        if limiter.take(now).is_ok() {
                            admitted.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        // 160 ms at 100000 per second, and the burst.
        let most = clock.load(Ordering::SeqCst) / 10_000 + 10;
        let admitted = admitted.load(Ordering::SeqCst);
        assert!(admitted <= most && admitted >= most / 2, "{admitted} of {most}");
    }
}
