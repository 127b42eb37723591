//! Requests that are over, on their way to one who takes their spans: whoever leaves one never waits, and a task hands them over in batches.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Recorded;
use super::send::SendError;

/// Requests whose spans are handed over at once.
const BATCH: usize = 512;
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
    queue: mpsc::Sender<Arc<Recorded>>,
    dropped: IntCounter,
}

/// One who takes spans.
pub(super) trait Taker {
    /// Takes them, or says why not. None at all tell whether they would be taken.
    fn take(&self, batch: Vec<Arc<Recorded>>) -> impl Future<Output = Result<(), SendError>> + Send;
}

/// What was left at a place.
pub(super) struct Left {
    received: mpsc::Receiver<Arc<Recorded>>,
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
        let mut record = Some(record);
        let mut made = None;
        for place in &self.0 {
            let Ok(room) = place.queue.try_reserve() else {
                place.dropped.inc();
                continue;
            };
            // Made once, and only where there is room.
            if let Some(record) = record.take() {
                made = record().map(Arc::new);
            }
            if let Some(record) = &made {
                room.send(Arc::clone(record));
            }
        }
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
    pub(super) async fn hand_over(self, stop: &Stop, to: &impl Taker) {
        let Self { mut received, sent, failed } = self;
        let mut batch = Vec::new();
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
                count = received.recv_many(&mut batch, BATCH) => count == 0,
                () = tokio::time::sleep(PROBE), if is_away && last.is_none() => {
                    is_away = to.take(Vec::new()).await.is_err();
                    continue;
                }
            };
            if ends {
                return;
            }
            gather(&mut received, &mut batch, stop).await;
            let count = batch.len() as u64;
            let in_time = last.is_none_or(|last| Instant::now() < last);
            let batch = std::mem::take(&mut batch);
            is_away = !in_time || to.take(batch).await.is_err();
            let counter = if is_away { &failed } else { &sent };
            counter.inc_by(count);
        }
    }
}

/// Those that come meanwhile go along, up to a batch. It looks from time to time, as being woken for each would cost requests more than leaving it does.
async fn gather(received: &mut mpsc::Receiver<Arc<Recorded>>, batch: &mut Vec<Arc<Recorded>>, stop: &Stop) {
    let until = Instant::now() + GATHER;
    while batch.len() < BATCH && !stop.is_near() && Instant::now() < until {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.comes() => {}
        }
        while batch.len() < BATCH
            && let Ok(record) = received.try_recv()
        {
            batch.push(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use prometheus::Opts;

    use super::*;

    fn counts() -> IntCounterVec {
        IntCounterVec::new(Opts::new("requests", "r"), &["to", "outcome"]).unwrap()
    }

    /// Notes how much it is given, and takes nothing the first times.
    #[derive(Default)]
    struct Notes {
        seen: Mutex<Vec<usize>>,
        refuses: usize,
    }

    impl Taker for Notes {
        async fn take(&self, batch: Vec<Arc<Recorded>>) -> Result<(), SendError> {
            let mut seen = self.seen.lock().unwrap();
            seen.push(batch.len());
            if seen.len() > self.refuses { Ok(()) } else { Err(SendError::NoClient) }
        }
    }

    /// Never answers.
    struct Hangs(Stop);

    impl Taker for Hangs {
        async fn take(&self, _: Vec<Arc<Recorded>>) -> Result<(), SendError> {
            self.0.bound(std::future::pending()).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_is_away_is_no_other_s_business() {
        let (counts, mut spans) = (counts(), Spans::default());
        let (there, away) = (spans.place("there", 4, &counts), spans.place("away", 2, &counts));
        let token = CancellationToken::new();
        let notes = Notes::default();
        let (stop, hangs) = (Stop::new(token.clone()), Hangs(Stop::new(token.clone())));
        let calls = async {
            for _ in 0..10 {
                spans.leave(|| Some(Recorded::empty()));
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
            token.cancel();
        };
        tokio::join!(there.hand_over(&stop, &notes), away.hand_over(&stop, &hangs), calls);
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
        let (stop, notes) = (Stop::new(token.clone()), Notes::default());
        let calls = async {
            // 30,000 a second.
            for _ in 0..3_000 {
                (0..30).for_each(|_| spans.leave(|| Some(Recorded::empty())));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            token.cancel();
        };
        tokio::join!(left.hand_over(&stop, &notes), calls);
        let count = |outcome: &str| counts.with_label_values(&["it", outcome]).get();
        assert_eq!(["sent", "failed", "dropped"].map(count), [90_000, 0, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_was_away_is_asked_again() {
        let (counts, mut spans) = (counts(), Spans::default());
        let left = spans.place("it", 4, &counts);
        let (stop, notes) = (Stop::new(CancellationToken::new()), Notes { refuses: 2, ..Notes::default() });
        spans.leave(|| Some(Recorded::empty()));
        let handing = left.hand_over(&stop, &notes);
        assert!(tokio::time::timeout(10 * PROBE, handing).await.is_err(), "it goes on");
        // Once it has answered, there is nothing more to find out.
        assert_eq!(*notes.seen.lock().unwrap(), [1, 0, 0]);
    }
}
