//! The busy signal: one small struct of atomics per replica, updated where a call is admitted, started and finished.
//! Everything that shows it (JSON, Prometheus) is an encoding of [`Busy::snapshot`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use outrigger_protocol::busy::BusySnapshot;
use portable_atomic::AtomicU128;

/// The most calls that the word can count, executing and queued each; the configuration's limits stay below.
pub(crate) const MAX_CALLS: usize = u16::MAX as usize;

/// How busy a replica is.
pub struct Busy {
    started: Instant,
    epoch: u64,
    slots: AtomicUsize,
    /// Executing, queued, busy time and the start of the present busy period in one word, so that a reader never sees half
    /// of a change and the integral is exact. See [`Word`].
    word: AtomicU128,
    arrived: AtomicU64,
    refused: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    expired: AtomicU64,
    service_nanos: AtomicU64,
    served: AtomicU64,
    loading: AtomicU64,
    draining: AtomicBool,
    ready: AtomicBool,
    able: AtomicBool,
    /// Bytes of request bodies that are in the house.
    bytes: AtomicU64,
    /// Bytes of answers that clients have not taken.
    unsent: AtomicU64,
    /// When the call that has waited longest came, in microseconds since the start, plus 1; 0 if none waits.
    oldest: AtomicU64,
}

/// The word taken apart. Times are microseconds since the start of the replica; 48 bits of them last 8.9 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Word {
    executing: u16,
    queued: u16,
    /// Busy time of all periods that have ended.
    busy_before: u64,
    /// Start of the present busy period; of no meaning when idle.
    busy_since: u64,
}

const BITS_48: u128 = (1 << 48) - 1;

impl Word {
    fn unpack(word: u128) -> Self {
        Self {
            executing: word as u16,
            queued: (word >> 16) as u16,
            busy_before: ((word >> 32) & BITS_48) as u64,
            busy_since: ((word >> 80) & BITS_48) as u64,
        }
    }

    fn pack(self) -> u128 {
        u128::from(self.executing)
            | u128::from(self.queued) << 16
            | (u128::from(self.busy_before) & BITS_48) << 32
            | (u128::from(self.busy_since) & BITS_48) << 80
    }

    fn is_busy(self) -> bool {
        self.executing > 0 || self.queued > 0
    }

    fn busy_micros(self, now: u64) -> u64 {
        let present = if self.is_busy() { now.saturating_sub(self.busy_since) } else { 0 };
        self.busy_before + present
    }
}

impl Busy {
    /// Makes the signal of a replica with `slots` slots.
    pub fn new(slots: usize) -> Arc<Self> {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Arc::new(Self {
            started: Instant::now(),
            // Differs from start to start, so that a reader of counters knows that they began anew.
            epoch: since_1970.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(0)),
            slots: AtomicUsize::new(slots),
            word: AtomicU128::new(0),
            arrived: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            service_nanos: AtomicU64::new(0),
            served: AtomicU64::new(0),
            loading: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            able: AtomicBool::new(true),
            bytes: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
            oldest: AtomicU64::new(0),
        })
    }

    /// Says how many slots there are, at most as many as the word can count.
    pub(crate) fn set_slots(&self, slots: usize) {
        self.slots.store(slots.min(MAX_CALLS), Ordering::Relaxed);
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Changes the counts; keeps the busy time with them. `change` returns `None` to leave all as it is.
    fn change(&self, change: impl Fn(&mut Word) -> Option<()>) -> bool {
        let mut old = self.word.load(Ordering::Acquire);
        loop {
            let before = Word::unpack(old);
            let mut after = before;
            if change(&mut after).is_none() {
                return false;
            }
            // The clock is read only when busy and idle change over.
            match (before.is_busy(), after.is_busy()) {
                (false, true) => after.busy_since = self.micros(),
                (true, false) => after.busy_before = before.busy_micros(self.micros()),
                _ => {}
            }
            match self.word.compare_exchange_weak(old, after.pack(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(current) => old = current,
            }
        }
    }

    /// Counts a call in: into the queue. `None` is a refusal, counted as such: there are more than can be counted.
    pub fn arrive(self: &Arc<Self>) -> Option<Ticket> {
        self.arrived.fetch_add(1, Ordering::Relaxed);
        let counted = self.change(|word| {
            word.queued = word.queued.checked_add(1)?;
            Some(())
        });
        if !counted {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Ticket { busy: Arc::clone(self), started: None, outcome: Outcome::Cancelled })
    }

    /// Counts a call that was refused before it came to the queue: draining, no memory for its body.
    pub fn refuse(&self) {
        self.arrived.fetch_add(1, Ordering::Relaxed);
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes since when the call waits that has waited longest.
    pub(crate) fn set_oldest(&self, since: Option<Instant>) {
        let micros = since.map(|since| since.saturating_duration_since(self.started).as_micros());
        let word = micros.map_or(0, |micros| u64::try_from(micros).unwrap_or(u64::MAX - 1) + 1);
        self.oldest.store(word, Ordering::Relaxed);
    }

    /// Reserves memory for a body; `None` where more than `limit` bytes would be in the house.
    pub fn reserve(self: &Arc<Self>, bytes: usize, limit: usize) -> Option<Reserved> {
        let mut reserved = Reserved { busy: Arc::clone(self), bytes: 0 };
        reserved.grow_to(bytes, limit).then_some(reserved)
    }

    /// Counts `bytes` of an answer that is being made, for as long as the guard lives.
    pub fn unsent_guard(self: &Arc<Self>, bytes: usize) -> Unsent {
        self.unsent.fetch_add(bytes as u64, Ordering::Relaxed);
        Unsent { busy: Arc::clone(self), bytes: bytes as u64 }
    }

    /// Counts the bytes of an answer for as long as any of them is there: in the house, that is until the kernel has all of it.
    pub fn hold(self: &Arc<Self>, answer: Bytes) -> Bytes {
        if answer.is_empty() {
            return answer;
        }
        Bytes::from_owner(Held { _unsent: self.unsent_guard(answer.len()), answer })
    }

    /// Bytes of answers that clients have not taken.
    pub fn unsent(&self) -> u64 {
        self.unsent.load(Ordering::Relaxed)
    }

    /// Bytes of request bodies that are in the house.
    pub fn bodies(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts a model or worker that is being loaded, for as long as the guard lives.
    pub fn loading(self: &Arc<Self>) -> Loading {
        self.loading.fetch_add(1, Ordering::Relaxed);
        Loading(Arc::clone(self))
    }

    /// Says whether calls can be taken.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// From now on the replica only finishes what it has.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether [`Busy::set_draining`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Says whether there is a lane that can work.
    pub fn set_able(&self, able: bool) {
        self.able.store(able, Ordering::Release);
    }

    /// Whether there is a lane that can work.
    pub fn is_able(&self) -> bool {
        self.able.load(Ordering::Acquire)
    }

    /// Ready, able, and not draining.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && self.is_able() && !self.is_draining()
    }

    /// Mean service time of all calls so far; `None` before the first.
    pub fn mean_service_time(&self) -> Option<Duration> {
        let nanos = self.service_nanos.load(Ordering::Relaxed);
        nanos.checked_div(self.served.load(Ordering::Relaxed)).map(Duration::from_nanos)
    }

    /// All of it at one moment.
    pub fn snapshot(&self) -> BusySnapshot {
        // The clock first: a call that ends in between must not count for longer than it will have lasted.
        let now = self.micros();
        let word = Word::unpack(self.word.load(Ordering::Acquire));
        let slots = u32::try_from(self.slots.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        let (answered, failed) = (self.answered.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed));
        BusySnapshot {
            epoch: self.epoch,
            uptime_seconds: now as f64 / 1e6,
            slots,
            executing: u32::from(word.executing),
            queued: u32::from(word.queued),
            oldest_wait_seconds: match self.oldest.load(Ordering::Relaxed) {
                0 => None,
                since => Some(now.saturating_sub(since - 1) as f64 / 1e6),
            },
            busy: word.is_busy(),
            utilisation: f64::from(word.executing) / f64::from(slots.max(1)),
            busy_seconds: word.busy_micros(now) as f64 / 1e6,
            arrived: self.arrived.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            answered,
            failed,
            cancelled: self.cancelled.load(Ordering::Relaxed),
            expired: self.expired.load(Ordering::Relaxed),
            service_seconds_sum: self.service_nanos.load(Ordering::Relaxed) as f64 / 1e9,
            service_count: self.served.load(Ordering::Relaxed),
            loading: self.loading.load(Ordering::Relaxed) > 0,
            draining: self.is_draining(),
            ready: self.is_ready(),
        }
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has its answer.
    Answered,
    /// It failed: the script raised, the worker was lost, the time was over.
    Failed,
    /// It was refused after waiting.
    Refused,
    /// Nobody waits for it any more.
    Cancelled,
    /// Its deadline was over before it was executed.
    Expired,
}

/// A call that is counted: in the queue until [`Ticket::start`], in a slot until dropped.
pub struct Ticket {
    busy: Arc<Busy>,
    started: Option<Instant>,
    outcome: Outcome,
}

impl Ticket {
    /// The call leaves the queue and takes a slot.
    pub fn start(&mut self) {
        if self.started.is_none() {
            self.started = Some(Instant::now());
            self.busy.change(|word| {
                word.queued = word.queued.checked_sub(1)?;
                word.executing += 1;
                Some(())
            });
        }
    }

    /// The call ends.
    pub fn finish(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let counter = match self.outcome {
            Outcome::Answered => &self.busy.answered,
            Outcome::Failed => &self.busy.failed,
            Outcome::Refused => &self.busy.refused,
            Outcome::Cancelled => &self.busy.cancelled,
            Outcome::Expired => &self.busy.expired,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(started) = self.started {
            let nanos = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.busy.service_nanos.fetch_add(nanos, Ordering::Relaxed);
            self.busy.served.fetch_add(1, Ordering::Relaxed);
            self.busy.change(|word| {
                word.executing = word.executing.checked_sub(1)?;
                Some(())
            });
        } else {
            self.busy.change(|word| {
                word.queued = word.queued.checked_sub(1)?;
                Some(())
            });
        }
    }
}

/// Memory of a body, given back when dropped.
pub struct Reserved {
    busy: Arc<Busy>,
    bytes: u64,
}

impl Reserved {
    /// Makes it at least `bytes`; `false` where more than `limit` bytes would be in the house.
    pub fn grow_to(&mut self, bytes: usize, limit: usize) -> bool {
        let more = (bytes as u64).saturating_sub(self.bytes);
        let grown = self.busy.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(more).filter(|total| *total <= limit as u64)
        });
        if grown.is_ok() {
            self.bytes += more;
        }
        grown.is_ok()
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.busy.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes of an answer that are counted, until dropped.
pub struct Unsent {
    busy: Arc<Busy>,
    bytes: u64,
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.busy.unsent.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// An answer that is counted until dropped.
struct Held {
    _unsent: Unsent,
    answer: Bytes,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.answer
    }
}

/// Something that is being loaded, until dropped.
pub struct Loading(Arc<Busy>);

impl Drop for Loading {
    fn drop(&mut self) {
        self.0.loading.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_word_keeps_every_field(executing: u16, queued: u16, before in 0u64..1 << 48, since in 0u64..1 << 48) {
            let word = Word { executing, queued, busy_before: before, busy_since: since };
            prop_assert_eq!(Word::unpack(word.pack()), word);
        }
    }

    #[test]
    fn calls_are_counted_from_arrival_to_end() {
        let busy = Busy::new(1);
        assert!(!busy.snapshot().busy);
        let mut first = busy.arrive().unwrap();
        first.start();
        let second = busy.arrive().unwrap();
        busy.refuse();
        let seen = busy.snapshot();
        assert_eq!((seen.busy, seen.executing, seen.queued, seen.arrived, seen.refused), (true, 1, 1, 3, 1));
        assert_eq!(seen.utilisation, 1.0);
        first.finish(Outcome::Answered);
        drop(second);
        let seen = busy.snapshot();
        assert_eq!(
            (seen.busy, seen.executing, seen.queued, seen.answered, seen.cancelled),
            (false, 0, 0, 1, 1)
        );
    }

    #[test]
    fn the_integral_is_exact_under_many_threads() {
        let busy = Busy::new(4);
        // One call spans everything, so the replica is busy from here on whatever the others do.
        let before = busy.snapshot();
        let whole = busy.arrive().unwrap();
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut last = 0.0;
                    for _ in 0..2000 {
                        let mut ticket = busy.arrive().unwrap();
                        ticket.start();
                        let seen = busy.snapshot().busy_seconds;
                        assert!(seen >= last, "the integral never goes back");
                        last = seen;
                        ticket.finish(Outcome::Answered);
                    }
                });
            }
        });
        let span = begun.elapsed().as_secs_f64();
        drop(whole);
        let seen = busy.snapshot();
        assert_eq!((seen.executing, seen.queued, seen.answered), (0, 0, 8000));
        let integral = seen.busy_seconds - before.busy_seconds;
        assert!(integral >= span - 1e-5, "busy all along: {integral} of {span}");
        assert_eq!(busy.snapshot().busy_seconds, seen.busy_seconds, "idle time is not counted");
    }

    #[test]
    fn body_memory_is_bounded_and_comes_back() {
        let busy = Busy::new(1);
        let held = busy.reserve(80, 100).unwrap();
        assert!(busy.reserve(21, 100).is_none());
        assert!(busy.reserve(usize::MAX, 100).is_none());
        drop(held);
        assert!(busy.reserve(100, 100).is_some());
    }
}
