//! One collection, as those see it who offer records to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use crate::counts::{Counters, Counts, Reason};
use crate::record::{Outcome, Record};
use crate::ring::{Queued, Ring, Wake};
use crate::sampling::Sampling;
use crate::settings::{CollectionSettings, Full, Settings};

/// Most records that one record displaces.
const DISPLACED: usize = 64;

/// One collection. What is offered to it costs the caller a hash and a place in a ring, and never an error.
#[derive(Debug)]
pub struct Collection {
    name: Arc<str>,
    sampling: Sampling,
    full: Full,
    record_bytes: usize,
    pub(crate) counters: Counters,
    pub(crate) ring: Ring,
    /// There may be room in the ring.
    pub(crate) room: Notify,
    wake: Arc<Wake>,
    /// Nothing more is taken.
    stopping: AtomicBool,
    /// Nobody empties the ring any more.
    closed: AtomicBool,
}

/// What became of a record at once.
#[derive(Debug)]
#[must_use = "with the policy `block` a record that nobody waits for is dropped when there is no room"]
pub enum Offered {
    /// It is not of those that are kept.
    SampledOut,
    /// It waits for the writer, and its caller need not.
    Taken,
    /// [`Full::Block`]: its caller waits, by [`Offered::kept`].
    Waiting(Waiting),
    /// It is lost, and counted.
    Dropped(Reason),
}

/// What became of a record in the end, as far as its caller waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is in the log, and with [`crate::Sync::Always`] on the disk: it comes to blob even if the process is killed now.
    Logged,
    /// Its policy lets nobody wait: it is on its way.
    Queued,
    /// Its caller has waited for long enough. It is still on its way.
    Late,
    /// It is not of those that are kept.
    SampledOut,
    /// It is lost, and counted.
    Dropped(Reason),
}

impl Offered {
    /// Waits until the record is in the log, for as long as the policy says at most; for other policies than [`Full::Block`] not at all.
    pub async fn kept(self) -> Kept {
        match self {
            Self::SampledOut => Kept::SampledOut,
            Self::Taken => Kept::Queued,
            Self::Dropped(reason) => Kept::Dropped(reason),
            Self::Waiting(waiting) => waiting.kept().await,
        }
    }
}

/// A record whose caller waits for it.
#[derive(Debug)]
pub struct Waiting {
    collection: Arc<Collection>,
    until: Instant,
    /// As long as there was no room for it.
    outside: Option<Box<Queued>>,
    told: oneshot::Receiver<Kept>,
}

impl Waiting {
    async fn kept(mut self) -> Kept {
        let until = tokio::time::Instant::from_std(self.until);
        let collection = Arc::clone(&self.collection);
        while let Some(queued) = self.outside.take() {
            let mut room = std::pin::pin!(collection.room.notified());
            // Room that comes from here on is not missed.
            room.as_mut().enable();
            if collection.is_stopping() {
                return collection.drop_one(Reason::Stopped);
            }
            let Err(queued) = collection.push(*queued) else { break };
            self.outside = Some(Box::new(queued));
            if tokio::time::timeout_at(until, room).await.is_err() {
                self.outside = None;
                return collection.drop_one(Reason::Timeout);
            }
        }
        match tokio::time::timeout_at(until, &mut self.told).await {
            Ok(Ok(kept)) => kept,
            Ok(Err(_)) | Err(_) => Kept::Late,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Who waited has gone.
        if self.outside.take().is_some() {
            self.collection.counters.dropped(Reason::Timeout, 1);
        }
    }
}

impl Collection {
    pub(crate) fn new(name: &str, all: &Settings, settings: &CollectionSettings, wake: Arc<Wake>) -> Self {
        let key = all.sampling_key.as_deref();
        let sampling = Sampling::new(settings.sampling, settings.keep_errors, settings.keep_slower, key);
        Self {
            name: name.into(),
            sampling,
            full: settings.full,
            record_bytes: all.record_bytes,
            counters: Counters::default(),
            ring: Ring::new(all.ring_items, all.ring_bytes),
            room: Notify::new(),
            wake,
            stopping: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long a caller may have to wait, if its policy lets callers wait at all.
    pub fn waits(&self) -> Option<Duration> {
        match self.full {
            Full::Block(bound) => Some(bound),
            Full::DropNewest | Full::DropOldest => None,
        }
    }

    /// What became of its records: in every snapshot offered = sampled out + dropped + persisted + pending.
    pub fn counts(&self) -> Counts {
        self.counters.snapshot()
    }

    /// Whether the records of a call are kept. The same call is decided the same way each time, by each collection with the same share, on each replica. Nothing is
    /// counted.
    pub fn decide(&self, request_id: &str, outcome: Outcome) -> bool {
        self.sampling.keeps(request_id, outcome)
    }

    /// Takes a record, or does not. Never waits, and never fails the caller.
    pub fn offer(self: &Arc<Self>, record: Record) -> Offered {
        if !self.decide(&record.request_id, record.outcome) {
            return self.skip();
        }
        self.offer_decided(record)
    }

    /// Counts a record that is not made because [`Collection::decide`] said no.
    pub fn skip(&self) -> Offered {
        self.counters.sampled_out();
        Offered::SampledOut
    }

    /// Takes a record of which [`Collection::decide`] said yes.
    pub fn offer_decided(self: &Arc<Self>, record: Record) -> Offered {
        self.counters.taken();
        if self.is_stopping() {
            self.drop_one(Reason::Stopped);
            return Offered::Dropped(Reason::Stopped);
        }
        let size = record.size();
        if size > self.record_bytes {
            self.drop_one(Reason::Large);
            return Offered::Dropped(Reason::Large);
        }
        let queued = Queued { record, size, ack: None };
        match self.full {
            Full::DropNewest => match self.push(queued) {
                Ok(()) => Offered::Taken,
                Err(_) => {
                    self.drop_one(Reason::Full);
                    Offered::Dropped(Reason::Full)
                }
            },
            Full::DropOldest => self.displace(queued),
            Full::Block(bound) => {
                let (ack, told) = oneshot::channel();
                let outside = self.push(Queued { ack: Some(ack), ..queued }).err().map(Box::new);
                let until = Instant::now() + bound;
                Offered::Waiting(Waiting { collection: Arc::clone(self), until, outside, told })
            }
        }
    }

    fn displace(&self, mut queued: Queued) -> Offered {
        for _ in 0..DISPLACED {
            match self.push(queued) {
                Ok(()) => return Offered::Taken,
                Err(back) => queued = back,
            }
            if self.ring.pop().is_some() {
                self.drop_one(Reason::Oldest);
            }
        }
        self.drop_one(Reason::Full);
        Offered::Dropped(Reason::Full)
    }

    #[expect(clippy::result_large_err, reason = "it is what came in, and nothing is allocated for it")]
    fn push(&self, queued: Queued) -> Result<(), Queued> {
        let urgent = queued.ack.is_some();
        self.ring.push(queued)?;
        if urgent || self.ring.is_half_full() {
            self.wake.urgent();
        } else {
            self.wake.something();
        }
        if self.closed.load(Ordering::SeqCst) {
            self.empty();
        }
        Ok(())
    }

    pub(crate) fn drop_one(&self, reason: Reason) -> Kept {
        self.counters.dropped(reason, 1);
        Kept::Dropped(reason)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// From now on nothing is taken.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.room.notify_waiters();
    }

    /// Nobody empties the ring from now on: what is in it, and what still comes, is lost and counted.
    pub(crate) fn close(&self) {
        self.stop();
        self.closed.store(true, Ordering::SeqCst);
        self.empty();
    }

    fn empty(&self) {
        while let Some(queued) = self.ring.pop() {
            let kept = self.drop_one(Reason::Stopped);
            if let Some(ack) = queued.ack {
                let _ = ack.send(kept);
            }
        }
    }
}
