//! What waits for the writer: bounded by records and by bytes, and nobody ever waits at it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::oneshot;

use crate::collection::Kept;
use crate::record::Record;

/// A record on its way, and who wants to know when it is in the log.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) record: Record,
    pub(crate) size: usize,
    pub(crate) ack: Option<oneshot::Sender<Kept>>,
}

/// The ring of one collection.
#[derive(Debug)]
pub(crate) struct Ring {
    sender: Sender<Queued>,
    receiver: Receiver<Queued>,
    bytes: AtomicUsize,
    max_bytes: usize,
}

impl Ring {
    pub(crate) fn new(items: usize, max_bytes: usize) -> Self {
        let (sender, receiver) = bounded(items.max(1));
        Self { sender, receiver, bytes: AtomicUsize::new(0), max_bytes }
    }

    /// Gives it back where there is no room.
    #[expect(clippy::result_large_err, reason = "it is what came in, and nothing is allocated for it")]
    pub(crate) fn push(&self, queued: Queued) -> Result<(), Queued> {
        let size = queued.size;
        let room = |bytes: usize| bytes.checked_add(size).filter(|bytes| *bytes <= self.max_bytes);
        if self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_err() {
            return Err(queued);
        }
        self.sender.try_send(queued).map_err(|error| {
            self.bytes.fetch_sub(size, Ordering::AcqRel);
            match error {
                TrySendError::Full(queued) | TrySendError::Disconnected(queued) => queued,
            }
        })
    }

    /// The oldest.
    pub(crate) fn pop(&self) -> Option<Queued> {
        let queued = self.receiver.try_recv().ok()?;
        self.bytes.fetch_sub(queued.size, Ordering::AcqRel);
        Some(queued)
    }

    pub(crate) fn items(&self) -> usize {
        self.receiver.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// Whether the writer had better not wait for more.
    pub(crate) fn is_half_full(&self) -> bool {
        let items = self.sender.capacity().is_some_and(|capacity| self.items() * 2 >= capacity);
        items || self.bytes() * 2 >= self.max_bytes
    }
}

/// The writer is at work, or looks again by itself in a moment.
const AWAKE: u8 = 0;
/// It sleeps until it is woken.
const ASLEEP: u8 = 1;
/// It lets records gather for a moment: only who waits for it wakes it.
const GATHERING: u8 = 2;

/// Wakes the writer, mostly by not doing so: a wake-up is a system call, and records come in crowds.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    state: AtomicU8,
    thread: OnceLock<Thread>,
}

impl Wake {
    /// By the writer, once.
    pub(crate) fn is_me(&self) {
        let _ = self.thread.set(std::thread::current());
    }

    /// There is something, which may wait a moment.
    pub(crate) fn something(&self) {
        self.wake_from(&[ASLEEP]);
    }

    /// There is something that somebody waits for.
    pub(crate) fn urgent(&self) {
        self.wake_from(&[ASLEEP, GATHERING]);
    }

    fn wake_from(&self, states: &[u8]) {
        // What was pushed before is seen by whoever announces its sleep after this.
        std::sync::atomic::fence(Ordering::SeqCst);
        if states.contains(&self.state.load(Ordering::SeqCst))
            && self.state.swap(AWAKE, Ordering::SeqCst) != AWAKE
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// By the writer: sleeps for so long, unless there is something already.
    pub(crate) fn sleep(&self, longest: Duration, gathering: bool, is_something: impl Fn() -> bool) {
        self.state.store(if gathering { GATHERING } else { ASLEEP }, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
        if !is_something() {
            std::thread::park_timeout(longest);
        }
        self.state.store(AWAKE, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use bytes::Bytes;

    use super::*;

    fn queued(size: usize) -> Queued {
        let record = Record::new("a", SystemTime::UNIX_EPOCH, Bytes::new());
        Queued { record, size, ack: None }
    }

    #[test]
    fn it_is_bounded_by_records_and_by_bytes() {
        let ring = Ring::new(2, 100);
        assert!(ring.push(queued(60)).is_ok());
        assert!(ring.push(queued(41)).is_err());
        assert!(ring.push(queued(40)).is_ok());
        assert_eq!((ring.items(), ring.bytes()), (2, 100));
        assert_eq!(ring.pop().map(|queued| queued.size), Some(60));
        assert!(ring.push(queued(1)).is_ok() && ring.push(queued(1)).is_err());
        assert_eq!(ring.bytes(), 41);
    }
}
