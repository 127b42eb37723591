//! Watching the busy signal: who waits is woken by the change itself, and what changes pays next to nothing while nobody waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering, fence};
use std::time::Duration;

use outrigger_protocol::busy::BusySnapshot;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Busy;

/// Time between two events, of each of the two kinds.
const GAP: Duration = Duration::from_millis(10);

/// Somebody waits for a change of busy and idle.
const FLIP: u8 = 1;
/// Somebody waits for any change.
const ANY: u8 = 2;

/// What wakes watchers. They arm it, and then look once more before they sleep; a change looks whether it is armed only after it has
/// happened. All of that is in one order (`SeqCst`), so either the watcher sees the change or the change sees the watcher.
#[derive(Default)]
pub(super) struct Bell {
    armed: AtomicU8,
    woken: Notify,
}

impl Bell {
    /// The counts have changed, by an operation of this order.
    pub(super) fn changed(&self, flipped: bool) {
        let armed = self.armed.load(Ordering::SeqCst);
        if armed & (if flipped { FLIP | ANY } else { ANY }) != 0 {
            self.wake(flipped);
        }
    }

    /// Something else has changed.
    pub(super) fn ring(&self) {
        fence(Ordering::SeqCst);
        self.changed(false);
    }

    /// Has the next change wake who waits: any, or one of busy and idle.
    fn arm(&self, any: bool, flip: bool) {
        let wanted = if any { ANY | FLIP } else { FLIP };
        if any || flip {
            self.armed.fetch_or(wanted, Ordering::SeqCst);
            fence(Ordering::SeqCst);
        }
    }

    #[cold]
    fn wake(&self, flipped: bool) {
        // The next change pays nothing, until somebody waits again.
        self.armed.fetch_and(if flipped { 0 } else { !ANY }, Ordering::SeqCst);
        self.woken.notify_waiters();
    }
}

/// For what readers stay connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// To follow how busy the replica is.
    Signal,
    /// To follow whether it is well.
    Health,
}

/// The right to stay connected; there is a limited number for each reason.
pub struct Place(Arc<Busy>, Reason);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.readers(self.1).fetch_sub(1, Ordering::Relaxed);
    }
}

impl Place {
    /// The signal as it stands.
    pub fn snapshot(&self) -> BusySnapshot {
        self.0.snapshot()
    }
}

impl Busy {
    fn readers(&self, reason: Reason) -> &AtomicUsize {
        match reason {
            Reason::Signal => &self.watchers,
            Reason::Health => &self.health_watchers,
        }
    }

    /// A place for a reader that stays connected; `None` where `limit` have one for the same reason.
    pub fn place(self: &Arc<Self>, reason: Reason, limit: usize) -> Option<Place> {
        let taken = self.readers(reason).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |watchers| {
            (watchers < limit).then_some(watchers + 1)
        });
        taken.is_ok().then(|| Place(Arc::clone(self), reason))
    }
}

/// Follows the signal. There is no queue: who is slow sees the latest.
pub struct Watch {
    place: Place,
    /// What was given out last.
    sent: Option<BusySnapshot>,
    /// When the next may be given out whatever has changed.
    next: Instant,
    /// When the next change of busy and idle may.
    next_flip: Instant,
    /// How long nothing is given out at most.
    keep_alive: Duration,
}

impl Watch {
    /// Begins to watch.
    pub fn new(place: Place, keep_alive: Duration) -> Self {
        let now = Instant::now();
        Self { place, sent: None, next: now, next_flip: now, keep_alive }
    }

    /// The signal, once there is something to say: at first as it stands. The first change is given out at once, further ones at
    /// most every 10 ms, where a change of busy and idle does not wait for the time since a mere change of counts. When
    /// nothing changes, the signal comes again after the keep-alive.
    ///
    /// Can be dropped and called again: nothing is lost.
    pub async fn next(&mut self) -> BusySnapshot {
        let busy = Arc::clone(&self.place.0);
        loop {
            if let Some(seen) = self.take(busy.snapshot()) {
                return seen;
            }
            let woken = busy.bell.woken.notified();
            tokio::pin!(woken);
            // Before it is armed: who is woken must be found.
            woken.as_mut().enable();
            let now = Instant::now();
            let (any, flip) = (now >= self.next, now >= self.next_flip);
            busy.bell.arm(any, flip);
            // What has changed since the first look has not seen the bell.
            if let Some(seen) = self.take(busy.snapshot()) {
                return seen;
            }
            let alarm = match (any, flip) {
                (true, true) => self.next + self.keep_alive,
                (true, false) => self.next_flip,
                (false, true) => self.next,
                (false, false) => self.next.min(self.next_flip),
            };
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep_until(alarm) => {}
            }
        }
    }

    /// Gives it out, if there is something to say and it is time.
    fn take(&mut self, seen: BusySnapshot) -> Option<BusySnapshot> {
        let now = Instant::now();
        let flipped = self.sent.is_none_or(|sent| sent.busy != seen.busy);
        let changed = flipped || self.sent.is_none_or(|sent| timeless(sent) != timeless(seen));
        let silent = now >= self.next + self.keep_alive;
        let due = (flipped && now >= self.next_flip) || ((changed || silent) && now >= self.next);
        due.then(|| {
            self.next = now + GAP;
            if flipped {
                self.next_flip = now + GAP;
            }
            self.sent = Some(seen);
            seen
        })
    }
}

/// What changes by a change alone, not with the clock.
fn timeless(seen: BusySnapshot) -> BusySnapshot {
    BusySnapshot {
        uptime_seconds: 0.0,
        oldest_wait_seconds: None,
        busy_seconds: 0.0,
        call_seconds: 0.0,
        idle_seconds: 0.0,
        second: Default::default(),
        recent: Default::default(),
        ..seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::busy::Outcome;

    const KEEP_ALIVE: Duration = Duration::from_secs(5);

    fn watch(busy: &Arc<Busy>) -> Watch {
        Watch::new(busy.place(Reason::Signal, 1000).unwrap(), KEEP_ALIVE)
    }

    /// The next event, and how long it took.
    async fn next(watch: &mut Watch) -> (BusySnapshot, Duration) {
        let begun = Instant::now();
        (watch.next().await, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn changes_come_at_once_and_then_every_ten_milliseconds() {
        let busy = Busy::new(4);
        let mut watch = watch(&busy);
        assert_eq!(next(&mut watch).await.1, Duration::ZERO, "the present state");
        tokio::time::sleep(GAP).await;

        let first = busy.arrive().unwrap();
        let (seen, after) = next(&mut watch).await;
        assert_eq!((seen.busy, seen.queued, after), (true, 1, Duration::ZERO));
        let second = busy.arrive().unwrap();
        let third = busy.arrive().unwrap();
        let (seen, after) = next(&mut watch).await;
        assert_eq!((seen.queued, after), (3, GAP), "both in one event");

        // A change of busy and idle does not wait for that.
        drop((first, second, third));
        let (seen, after) = next(&mut watch).await;
        assert_eq!((seen.busy, after), (false, Duration::ZERO));
        // The next one does.
        let call = busy.arrive().unwrap();
        let (seen, after) = next(&mut watch).await;
        assert_eq!((seen.busy, after), (true, GAP));
        drop(call);
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_and_flags_are_changes_and_silence_is_broken() {
        let busy = Busy::new(1);
        let mut watch = watch(&busy);
        next(&mut watch).await;
        tokio::time::sleep(GAP).await;
        busy.set_draining();
        assert!(next(&mut watch).await.0.draining);
        busy.refuse();
        assert_eq!(next(&mut watch).await.0.refused, 1);
        assert_eq!(next(&mut watch).await.1, KEEP_ALIVE + GAP);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleeper_is_woken_by_the_change() {
        let busy = Busy::new(1);
        let mut watch = watch(&busy);
        next(&mut watch).await;
        let sleeper = tokio::spawn(async move { next(&mut watch).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        let call = busy.arrive().unwrap();
        let (seen, after) = sleeper.await.unwrap();
        assert_eq!((seen.busy, after), (true, Duration::from_secs(1)));
        assert_eq!(busy.bell.armed.load(Ordering::SeqCst), 0, "nobody waits any more");
        call.finish(Outcome::Answered);
    }

    /// A wake-up that is lost shows: the next event comes with the keep-alive then.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_change_is_missed_under_load() {
        let busy = Busy::new(2);
        let mut watchers: Vec<_> = (0..3)
            .map(|_| Watch::new(busy.place(Reason::Signal, 3).unwrap(), Duration::from_secs(3600)))
            .collect();
        for round in 1..=300u64 {
            let busy = Arc::clone(&busy);
            let calls = tokio::spawn(async move {
                // Of different lengths, so that the last change falls on every part of a watcher's round.
                for _ in 0..round % 7 {
                    busy.refuse();
                    tokio::task::yield_now().await;
                }
                drop(busy.arrive());
            });
            let cancelled = async |watch: &mut Watch| while watch.next().await.cancelled < round {};
            for watch in &mut watchers {
                let seen = tokio::time::timeout(Duration::from_secs(60), cancelled(watch)).await;
                assert!(seen.is_ok(), "the end of round {round} was not seen");
            }
            calls.await.unwrap();
        }
    }

    #[test]
    fn places_are_limited_and_come_back() {
        let busy = Busy::new(1);
        let places: Vec<_> = (0..2).map(|_| busy.place(Reason::Signal, 2).unwrap()).collect();
        assert!(busy.place(Reason::Signal, 2).is_none());
        assert_eq!(busy.watchers(), 2);
        drop(places);
        assert_eq!(busy.watchers(), 0);
        assert!(busy.place(Reason::Signal, 1).is_some());
    }
}
