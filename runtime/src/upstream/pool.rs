//! Connections to an upstream that no call has, kept for the next ones.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::link::Link;

/// What is kept: so many, and each for so long.
pub(super) struct Pool {
    /// The one that was put back last is the last, and goes first: fewer stay open than calls come at once.
    idle: Mutex<Vec<Idle>>,
    most: usize,
    longest: Duration,
}

struct Idle {
    link: Link,
    since: Instant,
}

impl Pool {
    pub(super) fn new(most: usize, longest: Duration) -> Self {
        Self { idle: Mutex::default(), most, longest }
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
        }
    }

    /// Lets go of those that have been there for too long.
    pub(super) fn sweep(&self) {
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
