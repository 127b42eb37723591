//! Requests that are over, on their way to one who takes their spans: whoever leaves one never waits, and a task hands them over in batches.

use std::time::Duration;

use futures_util::FutureExt as _;
use prometheus::{IntCounter, IntCounterVec};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Recorded;
use super::send::SendError;

/// Requests whose spans are handed over at once.
const BATCH: usize = 512;
/// How many of them are taken from the queue in one go.
pub(super) const SOME: usize = 32;
/// How long they wait for others.
const GATHER: Duration = Duration::from_secs(1);
/// How often it is looked whether a batch is full.
const LOOK: Duration = Duration::from_millis(20);
/// How often one who took nothing is asked again while there is nothing to hand over.
const PROBE: Duration = Duration::from_secs(30);
/// How long the end of the replica waits for what is still to be handed over.
const LAST: Duration = Duration::from_secs(2);

/// Where requests leave what their spans are made of: a place for each who takes them.
#[derive(Default)]
pub(crate) struct Spans(Vec<Place>);

struct Place {
    queue: mpsc::Sender<Recorded>,
    dropped: IntCounter,
}

/// One who takes spans.
pub(super) trait Taker {
    /// Adds one to what is sent next.
    fn add(&mut self, record: Recorded);

    /// Whether those that have been added should be sent before others are.
    fn is_full(&self) -> bool;

    /// Sends what has been added, or says why it was not taken; there is nothing added afterwards. None at all tell whether any would be taken.
    fn send(&mut self) -> impl Future<Output = Result<(), SendError>> + Send;
}

/// What was left at a place.
pub(super) struct Left {
    received: mpsc::Receiver<Recorded>,
    sent: IntCounter,
    failed: IntCounter,
}

impl Spans {
    /// Adds a place with room for so many, whose counts have this label.
    pub(super) fn place(&mut self, to: &str, room: usize, counts: &IntCounterVec) -> Left {
        let (queue, received) = mpsc::channel(room.max(1));
        let count = |outcome: &str| counts.with_label_values(&[to, outcome]);
        self.0.push(Place { queue, dropped: count("dropped") });
        Left { received, sent: count("sent"), failed: count("failed") }
    }

    /// Leaves one everywhere. Where there is no room it is dropped, and counted.
    pub(in crate::telemetry) fn leave(&self, record: impl FnOnce() -> Option<Recorded>) {
        let mut rooms = self.0.iter().filter_map(|place| {
            let room = place.queue.try_reserve();
            room.inspect_err(|_| place.dropped.inc()).ok()
        });
        // Made once, and only where there is room.
        let Some(first) = rooms.next() else { return };
        let Some(record) = record() else { return };
        rooms.for_each(|room| room.send(record.clone()));
        first.send(record);
    }
}

/// How much time there is for what is handed over.
#[derive(Clone)]
pub(super) struct Stop {
    token: CancellationToken,
}

impl Stop {
    pub(super) fn new(token: CancellationToken) -> Self {
        Self { token }
    }

    /// Whether the replica is to end.
    pub(super) fn is_near(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Comes when the replica is to end.
    pub(super) async fn comes(&self) {
        self.token.cancelled().await;
    }

    /// Hands something over, which ends soon after the replica is to end.
    pub(super) async fn bound<T>(
        &self,
        handing: impl Future<Output = Result<T, SendError>>,
    ) -> Result<T, SendError> {
        let late = async {
            self.token.cancelled().await;
            tokio::time::sleep(LAST).await;
        };
        tokio::select! {
            handed = handing => handed,
            () = late => Err(SendError::Ends),
        }
    }
}

impl Left {
    /// Hands over in batches until the replica ends, and then what is there, for as long as there is time. Whoever took nothing is asked again
    /// with nothing at all, so that it is known when it is there again.
    pub(super) async fn hand_over(self, stop: &Stop, mut to: impl Taker) {
        let Self { mut received, sent, failed } = self;
        let mut some = Vec::with_capacity(SOME);
        let mut is_away = false;
        let mut last = None;
        loop {
            let ends = tokio::select! {
                biased;
                () = stop.comes(), if last.is_none() => {
                    received.close();
                    last = Some(Instant::now() + LAST);
                    continue;
                }
                count = received.recv_many(&mut some, SOME) => count == 0,
                () = tokio::time::sleep(PROBE), if is_away && last.is_none() => {
                    is_away = to.send().await.is_err();
                    continue;
                }
            };
            if ends {
                return;
            }
            if last.is_some_and(|last| last <= Instant::now()) {
                failed.inc_by(some.drain(..).count() as u64);
                continue;
            }
            let count = gather(&mut received, &mut some, &mut to, stop).await;
            is_away = to.send().await.is_err();
            let counter = if is_away { &failed } else { &sent };
            counter.inc_by(count as u64);
        }
    }
}

/// Those go along that come meanwhile, up to a batch, and it is said how many they are. It looks from time to time, as being woken for each would
/// cost requests more than leaving it does.
async fn gather(
    received: &mut mpsc::Receiver<Recorded>,
    some: &mut Vec<Recorded>,
    to: &mut impl Taker,
    stop: &Stop,
) -> usize {
    let until = Instant::now() + GATHER;
    let mut count = 0;
    loop {
        count += some.len();
        some.drain(..).for_each(|record| to.add(record));
        let room = BATCH.saturating_sub(count).min(SOME);
        if room == 0 || to.is_full() {
            return count;
        }
        if received.recv_many(some, room).now_or_never().is_some_and(|there| there > 0) {
            continue;
        }
        if stop.is_near() || until <= Instant::now() {
            return count;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.comes() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Opts;

    use super::*;

    fn counts() -> IntCounterVec {
        IntCounterVec::new(Opts::new("requests", "r"), &["to", "outcome"]).unwrap()
    }

    /// Notes how much it is given, and takes nothing the first times.
    struct Notes {
        added: usize,
        /// With so many it is full.
        most: usize,
        seen: Vec<usize>,
        refuses: usize,
    }

    impl Notes {
        fn new(refuses: usize) -> Self {
            Self { added: 0, most: usize::MAX, seen: Vec::new(), refuses }
        }
    }

    impl Taker for &mut Notes {
        fn add(&mut self, _: Recorded) {
            self.added += 1;
        }

        fn is_full(&self) -> bool {
            self.added == self.most
        }

        async fn send(&mut self) -> Result<(), SendError> {
            self.seen.push(std::mem::take(&mut self.added));
            if self.seen.len() > self.refuses { Ok(()) } else { Err(SendError::NoClient) }
        }
    }

    /// Never answers.
    struct Hangs(Stop);

    impl Taker for Hangs {
        fn add(&mut self, _: Recorded) {}

        fn is_full(&self) -> bool {
            false
        }

        async fn send(&mut self) -> Result<(), SendError> {
            self.0.bound(std::future::pending()).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_is_away_is_no_other_s_business() {
        let (counts, mut spans) = (counts(), Spans::default());
        let (there, away) = (spans.place("there", 4, &counts), spans.place("away", 2, &counts));
        let token = CancellationToken::new();
        let mut notes = Notes::new(0);
        let (stop, hangs) = (Stop::new(token.clone()), Hangs(Stop::new(token.clone())));
        let calls = async {
            for _ in 0..10 {
                spans.leave(|| Some(Recorded::empty()));
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
            token.cancel();
        };
        tokio::join!(there.hand_over(&stop, &mut notes), away.hand_over(&stop, hangs), calls);
        let count = |to: &str, outcome: &str| counts.with_label_values(&[to, outcome]).get();
        assert_eq!(["sent", "failed", "dropped"].map(|outcome| count("there", outcome)), [10, 0, 0]);
        let [sent, failed, dropped] = ["sent", "failed", "dropped"].map(|outcome| count("away", outcome));
        assert!(sent == 0 && failed + dropped == 10 && failed >= 1, "{failed} {dropped}");
    }

    #[tokio::test(start_paused = true)]
    async fn many_are_handed_over_as_they_come() {
        let (counts, mut spans) = (counts(), Spans::default());
        let left = spans.place("it", 2048, &counts);
        let token = CancellationToken::new();
        let (stop, mut notes) = (Stop::new(token.clone()), Notes::new(0));
        let calls = async {
            // 30,000 a second.
            for _ in 0..3_000 {
                (0..30).for_each(|_| spans.leave(|| Some(Recorded::empty())));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            token.cancel();
        };
        tokio::join!(left.hand_over(&stop, &mut notes), calls);
        let count = |outcome: &str| counts.with_label_values(&["it", outcome]).get();
        assert_eq!(["sent", "failed", "dropped"].map(count), [90_000, 0, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_was_away_is_asked_again() {
        let (counts, mut spans) = (counts(), Spans::default());
        let left = spans.place("it", 4, &counts);
        let (stop, mut notes) = (Stop::new(CancellationToken::new()), Notes::new(2));
        spans.leave(|| Some(Recorded::empty()));
        let handing = left.hand_over(&stop, &mut notes);
        assert!(tokio::time::timeout(10 * PROBE, handing).await.is_err(), "it goes on");
        // Once it has answered, there is nothing more to find out.
        assert_eq!(notes.seen, [1, 0, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_has_enough_is_given_the_rest_later() {
        let (counts, mut spans) = (counts(), Spans::default());
        let left = spans.place("it", 128, &counts);
        let (stop, mut notes) = (Stop::new(CancellationToken::new()), Notes::new(0));
        notes.most = 64;
        (0..100).for_each(|_| spans.leave(|| Some(Recorded::empty())));
        assert!(tokio::time::timeout(10 * PROBE, left.hand_over(&stop, &mut notes)).await.is_err());
        assert_eq!(notes.seen, [64, 36]);
        assert_eq!(counts.with_label_values(&["it", "sent"]).get(), 100);
    }
}
