//! Connections to an upstream that no call has, kept for the next ones.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::link::Link;

/// What is kept: so many, and each for so long.
pub(super) struct Pool {
    /// The one that was put back last is the last, and goes first: fewer stay open than calls come at once.
    idle: Mutex<Vec<Idle>>,
    most: usize,
    longest: Duration,
    /// Told when there is one where there was none.
    filled: Notify,
}

struct Idle {
    link: Link,
    since: Instant,
}

impl Pool {
    pub(super) fn new(most: usize, longest: Duration) -> Self {
        Self { idle: Mutex::default(), most, longest, filled: Notify::new() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that can take a request, as far as can be seen.
    pub(super) async fn take(&self) -> Option<Link> {
        loop {
            let idle = self.lock().pop()?;
            if idle.since.elapsed() >= self.longest {
                // Those below it have been there for longer.
                self.clear();
                return None;
            }
            let mut link = idle.link;
            if link.is_free().await {
                return Some(link);
            }
        }
    }

    /// Keeps one whose answer is complete, if it can take another request and there is a place for it.
    pub(super) async fn put(&self, mut link: Link) {
        if !link.is_free().await {
            return;
        }
        let mut idle = self.lock();
        if idle.len() < self.most {
            idle.push(Idle { link, since: Instant::now() });
            if idle.len() == 1 {
                self.filled.notify_one();
            }
        }
    }

    /// Lets go of each in its time.
    pub(super) async fn keep(&self) {
        loop {
            let oldest = self.lock().first().map(|idle| idle.since);
            match oldest {
                Some(since) => tokio::time::sleep_until(since + self.longest).await,
                None => self.filled.notified().await,
            }
            self.sweep();
        }
    }

    /// Lets go of those that have been there for too long.
    fn sweep(&self) {
        let mut idle = self.lock();
        let old = idle.iter().take_while(|idle| idle.since.elapsed() >= self.longest).count();
        let old: Vec<_> = idle.drain(..old).collect();
        drop(idle);
        drop(old);
    }

    /// Lets go of all.
    pub(super) fn clear(&self) {
        let all = std::mem::take(&mut *self.lock());
        drop(all);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use prometheus::IntGauge;

    use super::*;
    use crate::config::UpstreamAddress;

    #[tokio::test]
    async fn so_many_are_kept_for_so_long_and_those_that_are_closed_are_not_given_out() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = UpstreamAddress::Tcp("127.0.0.1".into(), listener.local_addr().unwrap().port());
        let there = IntGauge::new("there", "there").unwrap();
        let connect = async || {
            let link = Link::connect(&at, Duration::from_secs(60), 8192, Some(there.clone())).await;
            (link.unwrap(), listener.accept().unwrap())
        };
        let pool = Pool::new(2, Duration::from_secs(10));
        let mut others = Vec::new();
        for _ in 0..3 {
            let (link, other) = connect().await;
            others.push(other);
            pool.put(link).await;
        }
        assert_eq!((pool.len(), there.get()), (2, 2), "the third has no place");
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(9)).await;
        pool.sweep();
        assert_eq!(pool.len(), 2);
        let link = pool.take().await.unwrap();
        pool.put(link).await;
        tokio::time::advance(Duration::from_secs(2)).await;
        // One of them has been used since.
        pool.sweep();
        assert_eq!((pool.len(), there.get()), (1, 1));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(pool.take().await.is_none() && there.get() == 0);
        tokio::time::resume();

        // By itself.
        let (link, _other) = connect().await;
        let until_none = async {
            pool.put(link).await;
            tokio::time::pause();
            while pool.len() > 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            () = pool.keep() => {}
            () = until_none => {}
        }
        assert_eq!(there.get(), 0);
        tokio::time::resume();

        let (link, other) = connect().await;
        pool.put(link).await;
        drop(other);
        // The system tells of it in its own time.
        let mut link = pool.take().await;
        while let Some(mut there) = link.take() {
            if there.is_free().await {
                tokio::task::yield_now().await;
                link = Some(there);
            }
        }
        assert_eq!(there.get(), 0);
    }
}
