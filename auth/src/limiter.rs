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
