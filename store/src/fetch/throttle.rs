//! A cap on how many bytes come in a second, for all that is fetched together.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Bytes that may come at once after a pause, in seconds of the rate.
const BURST: f64 = 0.1;

/// A token bucket that may be overdrawn: who takes more than is there has it, and waits until it is paid for. So pieces of any size pass, and the
/// sum keeps to the rate.
#[derive(Debug)]
pub struct Throttle {
    rate: Option<f64>,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    bytes: f64,
    at: Instant,
}

impl Throttle {
    /// So many bytes in a second; `None` is as many as can be.
    pub fn new(rate: Option<u64>) -> Self {
        let rate = rate.map(|rate| rate.max(1) as f64);
        Self { rate, bucket: Mutex::new(Bucket { bytes: rate.unwrap_or(0.0) * BURST, at: Instant::now() }) }
    }

    /// Takes so many bytes, and comes back when the next may be asked for.
    pub async fn take(&self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let owed = {
            let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let earned = now.duration_since(bucket.at).as_secs_f64() * rate;
            bucket.bytes = (bucket.bytes + earned).min(rate * BURST) - bytes as f64;
            bucket.at = now;
            -bucket.bytes
        };
        if owed > 0.0 {
            tokio::time::sleep(Duration::from_secs_f64(owed / rate)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_sum_keeps_to_the_rate() {
        let throttle = Throttle::new(Some(1000));
        let start = Instant::now();
        let many = (0..10).map(|_| async {
            for _ in 0..10 {
                throttle.take(50).await;
            }
        });
        futures_util::future::join_all(many).await;
        let seconds = start.elapsed().as_secs_f64();
        assert!((4.8..=5.1).contains(&seconds), "5000 bytes at 1000 in a second: {seconds}");
        tokio::time::sleep(Duration::from_secs(100)).await;
        let start = Instant::now();
        throttle.take(1100).await;
        let seconds = start.elapsed().as_secs_f64();
        assert!((0.9..=1.1).contains(&seconds), "a pause earns a tenth of a second: {seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_cap_nobody_waits() {
        let start = Instant::now();
        Throttle::new(None).take(usize::MAX).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
