//! How long whoever takes frames off a socket waits for them.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::socket::ReceiveError;

/// A time, and the key that says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) time: Duration,
    pub(crate) key: &'static str,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} ({})", self.time, self.key)
    }
}

/// How long to wait for a frame.
pub(crate) trait Patience {
    /// Waits until the socket can be read, or has had enough.
    fn wait(&self, socket: BorrowedFd<'_>) -> Result<(), ReceiveError>;
}

/// For as long as it takes.
pub(crate) struct Forever;

impl Patience for Forever {
    fn wait(&self, _socket: BorrowedFd<'_>) -> Result<(), ReceiveError> {
        Ok(())
    }
}

/// Up to a time, or until somebody says stop.
pub(crate) struct Until<'a> {
    limit: Limit,
    deadline: Instant,
    stop: &'a dyn Fn() -> bool,
}

impl<'a> Until<'a> {
    /// For so long from now on, or until somebody says stop.
    pub(crate) fn new(limit: Limit, stop: &'a dyn Fn() -> bool) -> Self {
        Self { limit, deadline: Instant::now() + limit.time, stop }
    }
}

/// For so long.
pub(crate) fn within(limit: Limit) -> Until<'static> {
    Until::new(limit, &|| false)
}

/// How often whoever waits looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);

impl Patience for Until<'_> {
    fn wait(&self, socket: BorrowedFd<'_>) -> Result<(), ReceiveError> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if (self.stop)() {
                return Err(ReceiveError::Late(self.limit));
            }
            // Also where time is up: this process may have stood still, too.
            if readable(socket, left.min(LOOK))? {
                return Ok(());
            }
            if left.is_zero() {
                return Err(ReceiveError::Late(self.limit));
            }
        }
    }
}

/// Waits until a socket can be read, at most so long.
pub(crate) fn readable(socket: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let began = Instant::now();
    loop {
        let timeout = Timespec::try_from(limit.saturating_sub(began.elapsed())).ok();
        match poll(&mut [PollFd::from_borrowed_fd(socket, PollFlags::IN)], timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
