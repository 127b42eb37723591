//! Connections to one child that are used again.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::trouble::Trouble;

/// A connection for one request.
pub(super) struct Lent<'a> {
    pool: &'a Pool,
    connection: Option<Box<Connection>>,
}

impl<'a> Lent<'a> {
    pub(super) fn new(pool: &'a Pool, connection: Box<Connection>) -> Self {
        Self { pool, connection: Some(connection) }
    }

    /// Uses it. After anything but an answer it is closed.
    pub(super) fn with<T>(
        &mut self,
        request: impl FnOnce(&mut Connection) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let connection = self.connection.as_mut().ok_or(Trouble::Gone)?;
        let answer = request(connection);
        if matches!(&answer, Err(trouble) if !matches!(trouble, Trouble::Backend(_))) {
            self.connection = None;
        }
        answer
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        match self.connection.take() {
            Some(connection) => self.pool.give_back(connection),
            None => self.pool.forget(),
        }
    }
}

/// Connections that nobody uses, the last to come back on top.
pub(super) struct Pool {
    pub(super) most: usize,
    /// What there are so many of, and its key, if it has one.
    pub(super) of: &'static str,
    state: Mutex<Idle>,
    back: Condvar,
}

#[derive(Default)]
struct Idle {
    connections: Vec<(Box<Connection>, Instant)>,
    /// Those in use too.
    made: usize,
    waiting: usize,
    /// Nobody is to use any of them again.
    closed: bool,
}

/// There are as many as there may be, and all of them are in use.
pub(super) struct Full;

impl Pool {
    pub(super) fn new(most: usize, of: &'static str) -> Self {
        Self { most, of, state: Mutex::default(), back: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, Idle> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that is idle; `None` if one may be made.
    pub(super) fn take(&self, wait: Duration) -> Result<Option<Box<Connection>>, Full> {
        let mut state = self.state();
        if state.connections.is_empty() && state.made >= self.most {
            state.waiting += 1;
            let full = |idle: &mut Idle| idle.connections.is_empty() && idle.made >= self.most;
            let waited = self.back.wait_timeout_while(state, wait, full);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
        }
        if let Some((connection, _)) = state.connections.pop() {
            return Ok(Some(connection));
        }
        if state.made >= self.most {
            return Err(Full);
        }
        state.made += 1;
        Ok(None)
    }

    fn give_back(&self, connection: Box<Connection>) {
        let mut state = self.state();
        if state.closed {
            state.made -= 1;
            return;
        }
        state.connections.push((connection, Instant::now()));
        if state.waiting > 0 {
            self.back.notify_one();
        }
    }

    /// One is gone.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        state.made = state.made.saturating_sub(1);
        if state.waiting > 0 {
            self.back.notify_one();
        }
    }

    /// Closes those that nobody uses, and each of the others when it comes back.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.made -= state.connections.len();
        state.connections.clear();
    }

    /// Closes those that were not used for as long as `idle`, but for one.
    pub(super) fn trim(&self, now: Instant, idle: Duration) {
        let mut state = self.state();
        // The oldest are at the bottom.
        let old = |(_, used): &&(Box<Connection>, Instant)| now.saturating_duration_since(*used) >= idle;
        let count = state.connections.iter().take_while(old).count();
        let count = count.min(state.made.saturating_sub(1));
        state.connections.drain(..count);
        state.made -= count;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::patience::{Limit, within};
    use crate::socket::{self, Inbox, ReceiveError};

    #[test]
    fn one_that_comes_back_after_the_end_is_closed() {
        let (ours, theirs) = socket::pair().unwrap();
        let pool = Pool::new(1, "calls");
        assert!(matches!(pool.take(Duration::ZERO), Ok(None)));
        let lent = Lent::new(&pool, Box::new(Connection::new(Arc::new(ours), Duration::ZERO)));
        pool.close();
        drop(lent);
        let limit = Limit { time: Duration::from_secs(60), key: "none" };
        let heard = Inbox::default().receive(&theirs, &within(limit));
        assert!(matches!(heard, Err(ReceiveError::Closed)), "{heard:?}");
    }
}
