//! Connections on which nobody asks for anything: which they are, so that they do not keep others out for ever.
//!
//! A request counts from its head until its answer has gone to the client's socket. A request and its end each are a *turn*; a connection is
//! idle that has no request and has had no turn for the limit. Time is counted in parts of the limit, as in [`super::stall`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::stall::{PARTS, Watch, parts};

/// The requests of a connection.
#[derive(Default)]
pub(super) struct Requests {
    open: AtomicUsize,
    turns: AtomicUsize,
}

/// One of them. It is over once this is dropped.
pub(super) struct Open(Arc<Requests>);

impl Requests {
    pub(super) fn begin(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.turns.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(self))
    }

    /// How often one has begun or ended.
    pub(super) fn turns(&self) -> usize {
        self.turns.load(Ordering::Relaxed)
    }

    pub(super) fn are_open(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    /// Comes back once there has been none for the limit, and nothing of an answer either.
    pub(super) async fn idle(&self, answers: &Watch, limit: Duration) {
        let mut parts = parts(limit);
        let mut quiet_since = None;
        let mut still = 0;
        while still < PARTS {
            parts.tick().await;
            let is_quiet = !self.are_open() && answers.all_are_taken();
            let turns = is_quiet.then(|| self.turns());
            still = if is_quiet && turns == quiet_since { still + 1 } else { 0 };
            quiet_since = turns;
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.turns.fetch_add(1, Ordering::Relaxed);
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http_body_util::BodyExt;
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(4);

    fn connection() -> (Arc<Requests>, Arc<Watch>) {
        (Arc::default(), Watch::new(LIMIT))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_requests_is_found_after_the_limit() {
        let (requests, answers) = connection();
        let begun = Instant::now();
        requests.idle(&answers, LIMIT).await;
        assert!((LIMIT..=LIMIT * 5 / 4).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn each_request_begins_it_anew_however_short_it_was() {
        let (requests, answers) = connection();
        let idle = requests.idle(&answers, LIMIT);
        tokio::pin!(idle);
        for tenths in [39, 1, 35, 38] {
            assert!(timeout(Duration::from_millis(tenths * 100), &mut idle).await.is_err());
            drop(requests.begin());
        }
        let last = Instant::now();
        idle.await;
        assert!((LIMIT..=LIMIT * 5 / 4).contains(&last.elapsed()), "{:?}", last.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_and_what_is_not_taken_yet_is_no_idleness() {
        let (requests, answers) = connection();
        let open = requests.begin();
        let hour = Duration::from_secs(3600);
        assert!(timeout(hour, requests.idle(&answers, LIMIT)).await.is_err(), "it is being answered");
        let mut body = answers.body(Body::from("x"), open, None);
        let piece = body.frame().await;
        drop(body);
        assert!(timeout(hour, requests.idle(&answers, LIMIT)).await.is_err(), "it is in a buffer");
        drop(piece);
        let taken = Instant::now();
        requests.idle(&answers, LIMIT).await;
        assert!(taken.elapsed() <= LIMIT * 5 / 4);
        sleep(LIMIT).await;
        assert!(!requests.are_open());
    }
}
