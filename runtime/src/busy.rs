//! The busy signal: one small struct of atomics per replica, updated where a call is admitted, started and finished.
//! Everything that shows it (JSON, events, Prometheus, ORCA, Knative, KEDA) is an encoding of [`Busy::snapshot`].

mod watch;
mod window;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use outrigger_protocol::busy::BusySnapshot;
use portable_atomic::AtomicU128;

use watch::Bell;
pub use watch::{Place, Reason, Watch};
use window::Windows;
pub(crate) use window::keep as keep_windows;

/// The most calls that the word can count, executing and queued each; the configuration's limits stay below.
pub(crate) const MAX_CALLS: usize = u16::MAX as usize;

/// How busy a replica is.
pub struct Busy {
    started: Instant,
    epoch: u64,
    slots: AtomicUsize,
    /// Executing, queued, and both integrals in one word, so that a reader never sees half of a change and the integrals
    /// are exact. See [`Word`].
    word: AtomicU128,
    /// Wakes who watches.
    bell: Bell,
    /// The integrals as they were last read, in microseconds: the whole of which the word holds the low bits.
    busy_read: AtomicU64,
    calls_read: AtomicU64,
    windows: Windows,
    /// Readers that stay connected.
    watchers: AtomicUsize,
    health_watchers: AtomicUsize,
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
    /// Whether every model has a device that can be used.
    devices_able: AtomicBool,
    /// Bytes of request bodies that are in the house.
    bytes: AtomicU64,
    /// Bytes of answers that clients have not taken.
    unsent: AtomicU64,
    /// When the call that has waited longest came, in microseconds since the start, plus 1; 0 if none waits.
    oldest: AtomicU64,
}

/// The word taken apart. Times are microseconds since the start of the replica.
///
/// An integral over the clock is kept as the sum of the times at which something ended less those at which it began, so that its
/// value at a time is that sum plus, for what still lasts, the time. The sums have 48 bits, and so has their value; whole
/// ones come from [`whole`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Word {
    executing: u16,
    queued: u16,
    /// Ends less starts of the periods in which there was a call.
    busy: u64,
    /// Ends less arrivals of calls.
    calls: u64,
}

const BITS_48: u64 = (1 << 48) - 1;

impl Word {
    fn unpack(word: u128) -> Self {
        Self {
            executing: word as u16,
            queued: (word >> 16) as u16,
            busy: (word >> 32) as u64 & BITS_48,
            calls: (word >> 80) as u64 & BITS_48,
        }
    }

    fn pack(self) -> u128 {
        u128::from(self.executing)
            | u128::from(self.queued) << 16
            | u128::from(self.busy & BITS_48) << 32
            | u128::from(self.calls & BITS_48) << 80
    }

    fn is_busy(self) -> bool {
        self.executing > 0 || self.queued > 0
    }

    fn here(self) -> u64 {
        u64::from(self.executing) + u64::from(self.queued)
    }

    /// Keeps the integrals when it has changed from `before`, at `now`.
    fn integrate(&mut self, before: Self, now: u64) {
        match (before.is_busy(), self.is_busy()) {
            (false, true) => self.busy = self.busy.wrapping_sub(now),
            (true, false) => self.busy = self.busy.wrapping_add(now),
            _ => {}
        }
        let more = self.here().wrapping_sub(before.here());
        self.calls = self.calls.wrapping_sub(more.wrapping_mul(now));
    }

    /// Low bits of the time with at least one call, until `now`.
    fn busy_micros(self, now: u64) -> u64 {
        if self.is_busy() { self.busy.wrapping_add(now) } else { self.busy }
    }

    /// Low bits of the number of calls integrated until `now`.
    fn call_micros(self, now: u64) -> u64 {
        self.calls.wrapping_add(self.here().wrapping_mul(now))
    }
}

/// An integral whose low 48 bits are `low`, from what it was when it was last `read`. It never goes back: a reader whose clock is a
/// moment behind a writer's would see that. Reads are never half of 2⁴⁸ call-microseconds apart: the windows read four times a second.
fn whole(read: &AtomicU64, low: u64) -> u64 {
    let before = read.load(Ordering::Relaxed);
    let ahead = low.wrapping_sub(before) & BITS_48;
    if ahead > BITS_48 / 2 {
        return before;
    }
    read.fetch_max(before + ahead, Ordering::Relaxed).max(before + ahead)
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
            bell: Bell::default(),
            busy_read: AtomicU64::new(0),
            calls_read: AtomicU64::new(0),
            windows: Windows::default(),
            watchers: AtomicUsize::new(0),
            health_watchers: AtomicUsize::new(0),
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
            devices_able: AtomicBool::new(true),
            bytes: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
            oldest: AtomicU64::new(0),
        })
    }

    /// Says how many slots there are, at most as many as the word can count.
    pub(crate) fn set_slots(&self, slots: usize) {
        self.slots.store(slots.min(MAX_CALLS), Ordering::Relaxed);
        self.bell.ring();
    }

    fn micros(&self) -> u64 {
        self.micros_at(Instant::now())
    }

    fn micros_at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_micros()).unwrap_or(u64::MAX)
    }

    /// Readers that stay connected.
    pub fn watchers(&self) -> usize {
        self.watchers.load(Ordering::Relaxed)
    }

    /// Changes the counts at a time; keeps the integrals with them. `change` returns `None` to leave all as it is.
    fn change(&self, now: u64, change: impl Fn(&mut Word) -> Option<()>) -> bool {
        let mut old = self.word.load(Ordering::Acquire);
        loop {
            let before = Word::unpack(old);
            let mut after = before;
            if change(&mut after).is_none() {
                return false;
            }
            after.integrate(before, now);
            // In one order with the bell: whoever arms it sees this change, or is woken by it.
            match self.word.compare_exchange_weak(old, after.pack(), Ordering::SeqCst, Ordering::Acquire) {
                Ok(_) => {
                    self.bell.changed(before.is_busy() != after.is_busy());
                    return true;
                }
                Err(current) => old = current,
            }
        }
    }

    /// Counts a call in: into the queue. `None` is a refusal, counted as such: there are more than can be counted.
    pub fn arrive(self: &Arc<Self>) -> Option<Ticket> {
        self.arrive_at(Instant::now())
    }

    /// The same for who has looked at the clock just now: it costs more than the rest.
    pub(crate) fn arrive_at(self: &Arc<Self>, now: Instant) -> Option<Ticket> {
        self.arrived.fetch_add(1, Ordering::Relaxed);
        let counted = self.change(self.micros_at(now), |word| {
            word.queued = word.queued.checked_add(1)?;
            Some(())
        });
        if !counted {
            self.refused.fetch_add(1, Ordering::Relaxed);
            self.bell.ring();
            return None;
        }
        Some(Ticket { busy: Arc::clone(self), started: None, outcome: Outcome::Cancelled })
    }

    /// Counts a call that was refused before it came to the queue: draining, no memory for its body.
    pub fn refuse(&self) {
        self.arrived.fetch_add(1, Ordering::Relaxed);
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.bell.ring();
    }

    /// The same of one that may be counted already.
    pub(crate) fn refuse_call(&self, counted: Option<Ticket>) {
        match counted {
            Some(counted) => counted.finish(Outcome::Refused),
            None => self.refuse(),
        }
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
        self.bell.ring();
        Loading(Arc::clone(self))
    }

    /// Says whether calls can be taken.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
        self.bell.ring();
    }

    /// From now on the replica only finishes what it has.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
        self.bell.ring();
    }

    /// Whether [`Busy::set_draining`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Says whether there is a lane that can work.
    pub fn set_able(&self, able: bool) {
        self.able.store(able, Ordering::Release);
        self.bell.ring();
    }

    /// Whether there is a lane that can work.
    pub fn is_able(&self) -> bool {
        self.able.load(Ordering::Acquire)
    }

    /// Says whether every model has a device that can be used.
    pub fn set_devices_able(&self, able: bool) {
        if self.devices_able.swap(able, Ordering::AcqRel) != able {
            self.bell.ring();
        }
    }

    /// Whether every model has a device that can be used.
    pub fn are_devices_able(&self) -> bool {
        self.devices_able.load(Ordering::Acquire)
    }

    /// Ready, able, and not draining.
    pub fn is_ready_but_for_devices(&self) -> bool {
        self.ready.load(Ordering::Acquire) && self.is_able() && !self.is_draining()
    }

    /// Ready, able, with devices, and not draining.
    pub fn is_ready(&self) -> bool {
        self.is_ready_but_for_devices() && self.are_devices_able()
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
        let word = Word::unpack(self.word.load(Ordering::SeqCst));
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
            busy_seconds: whole(&self.busy_read, word.busy_micros(now)) as f64 / 1e6,
            call_seconds: whole(&self.calls_read, word.call_micros(now)) as f64 / 1e6,
            idle_seconds: if word.is_busy() { 0.0 } else { self.windows.idle_micros(now) as f64 / 1e6 },
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
            second: self.windows.second(),
            recent: self.windows.recent(),
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
            // As many calls are here as before, so the integrals need no time.
            self.busy.change(0, |word| {
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
        let now = Instant::now();
        let micros = self.busy.micros_at(now);
        if let Some(started) = self.started {
            let nanos = now.saturating_duration_since(started).as_nanos();
            let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
            self.busy.service_nanos.fetch_add(nanos, Ordering::Relaxed);
            self.busy.served.fetch_add(1, Ordering::Relaxed);
            self.busy.change(micros, |word| {
                word.executing = word.executing.checked_sub(1)?;
                Some(())
            });
        } else {
            self.busy.change(micros, |word| {
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
        self.0.bell.ring();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_word_keeps_every_field(executing: u16, queued: u16, busy in 0u64..1 << 48, calls in 0u64..1 << 48) {
            let word = Word { executing, queued, busy, calls };
            prop_assert_eq!(Word::unpack(word.pack()), word);
        }

        /// Against the sums written out, over changes at growing times, with the low bits running over on the way.
        #[test]
        fn the_integrals_are_those_of_the_counts(steps in proptest::collection::vec((0u16..4, 0u16..4, 0u64..1 << 45), 1..40)) {
            let (busy_read, calls_read) = (AtomicU64::new(0), AtomicU64::new(0));
            let (mut word, mut now, mut busy, mut calls) = (Word::default(), 0, 0, 0);
            for (executing, queued, lasts) in steps {
                let mut after = Word { executing, queued, ..word };
                after.integrate(word, now);
                word = Word::unpack(after.pack());
                now += lasts / 6;
                busy += if word.is_busy() { lasts / 6 } else { 0 };
                calls += word.here() * (lasts / 6);
                prop_assert_eq!(whole(&busy_read, word.busy_micros(now)), busy);
                prop_assert_eq!(whole(&calls_read, word.call_micros(now)), calls);
            }
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
    fn an_integral_never_goes_back() {
        let read = AtomicU64::new(0);
        assert_eq!(whole(&read, 0u64.wrapping_sub(3)), 0, "a clock that is a moment behind");
        assert_eq!(whole(&read, 10), 10);
        assert_eq!(whole(&read, 9), 10);
        assert_eq!(whole(&read, 11), 11);
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
        let calls = seen.call_seconds - before.call_seconds;
        assert!(
            calls >= integral - 1e-5 && calls <= 5.0 * span + 1e-3,
            "one to five calls: {calls} in {span}"
        );
        let later = busy.snapshot();
        let integrals = (later.busy_seconds, later.call_seconds);
        assert_eq!(integrals, (seen.busy_seconds, seen.call_seconds), "idle time is not counted");
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
