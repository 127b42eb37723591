//! What the worker does for a call while the script runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::channel::Channel;
use super::frame::{Kind, Outcome, ReplyHead};
use super::pool::Lease;
use crate::{Caller, Cancelled, Gone, Head, Level};

/// A call that is under way.
pub(super) struct CallContext<'a> {
    channel: &'a Channel,
    id: u64,
    begun: Instant,
    streaming: AtomicBool,
}

impl<'a> CallContext<'a> {
    pub(super) fn new(channel: &'a Channel, id: u64) -> Self {
        Self { channel, id, begun: Instant::now(), streaming: AtomicBool::new(false) }
    }

    /// Whether a streamed answer has begun, which wants an END.
    pub(super) fn streaming(&self) -> bool {
        self.streaming.load(Ordering::Relaxed)
    }
}

impl Caller for CallContext<'_> {
    type Buffer = Memory;

    fn cancelled(&self) -> Cancelled {
        self.channel.cancelled()
    }

    fn log(&self, level: Level, line: &str) {
        self.channel.log(self.id, level, line);
    }

    fn allocate(&self, len: usize) -> Option<Memory> {
        self.channel.allocate(len)
    }

    fn begin(&self, head: Head) -> Result<(), Gone> {
        if self.channel.cancelled() != Cancelled::No {
            return Err(Gone);
        }
        let fixed = ReplyHead::new(Outcome::Streamed, head.status, head.block.len(), self.begun.elapsed());
        self.channel.send(Kind::Reply, self.id, &[&fixed.encode(), &head.block]).map_err(|_| Gone)?;
        self.streaming.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn write(&self, piece: &[u8]) -> Result<(), Gone> {
        self.channel.chunk(self.id, piece)
    }
}

/// Memory for an answer.
#[derive(Debug)]
pub(super) enum Memory {
    Region(Lease),
    Heap(Vec<u8>),
}

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Region(lease) => lease.bytes(),
            Self::Heap(bytes) => bytes,
        }
    }
}

impl AsMut<[u8]> for Memory {
    fn as_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Region(lease) => lease.bytes_mut(),
            Self::Heap(bytes) => bytes,
        }
    }
}
