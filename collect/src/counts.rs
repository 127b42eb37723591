//! What became of records: offered = sampled out + dropped + persisted + pending, in every snapshot.
//!
//! There is no counter of what is pending that could go wrong by itself. A record that is not sampled out is counted as taken before anybody else can see it, and
//! as dropped or persisted once, when that is certain. A snapshot reads the ends before the beginnings, so each end that it has has its beginning in it, and what
//! is between them is pending.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a record was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There was no room for it, in memory, or on disk for so long that there was none in memory.
    Full,
    /// It had waited longest when there was no room for another: [`crate::Full::DropOldest`].
    Oldest,
    /// It found no room as long as its caller waited: [`crate::Full::Block`].
    Timeout,
    /// It is larger than `record_bytes`.
    Large,
    /// It could not be looked at as the rules need it.
    Redaction,
    /// It is no table, where there are tables, or not what it says it is.
    Invalid,
    /// The disk did not give back what was written to it.
    Damaged,
    /// Somebody asked for its deletion before it was in blob.
    Deleted,
    /// Collection was ending.
    Stopped,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Full,
        Self::Oldest,
        Self::Timeout,
        Self::Large,
        Self::Redaction,
        Self::Invalid,
        Self::Damaged,
        Self::Deleted,
        Self::Stopped,
    ];

    /// One word, for labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Oldest => "oldest",
            Self::Timeout => "timeout",
            Self::Large => "large",
            Self::Redaction => "redaction",
            Self::Invalid => "invalid",
            Self::Damaged => "damaged",
            Self::Deleted => "deleted",
            Self::Stopped => "stopped",
        }
    }
}

/// What became of the records of a collection since the process began. Records that an earlier process had left in the log are offered, and pending, at the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All that were offered, with `recovered`.
    pub offered: u64,
    /// Of these, what an earlier process had left in the log.
    pub recovered: u64,
    /// Left out by the share.
    pub sampled_out: u64,
    /// In blob.
    pub persisted: u64,
    /// In memory or in the log, and not known to be in blob.
    pub pending: u64,
    dropped: [u64; Reason::ALL.len()],
}

impl Counts {
    /// Dropped, for one reason.
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.dropped.get(reason as usize).copied().unwrap_or_default()
    }

    /// Dropped, for whatever reason.
    pub fn dropped_in_all(&self) -> u64 {
        self.dropped.iter().sum()
    }
}

/// The counters themselves.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    taken: AtomicU64,
    recovered: AtomicU64,
    sampled_out: AtomicU64,
    persisted: AtomicU64,
    dropped: [AtomicU64; Reason::ALL.len()],
}

impl Counters {
    pub(crate) fn sampled_out(&self) {
        self.sampled_out.fetch_add(1, Ordering::AcqRel);
    }

    /// Before anybody else can see the record.
    pub(crate) fn taken(&self) {
        self.taken.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn recovered(&self, records: u64) {
        self.taken.fetch_add(records, Ordering::AcqRel);
        self.recovered.fetch_add(records, Ordering::AcqRel);
    }

    pub(crate) fn dropped(&self, reason: Reason, records: u64) {
        if let Some(counter) = self.dropped.get(reason as usize) {
            counter.fetch_add(records, Ordering::AcqRel);
        }
    }

    pub(crate) fn persisted(&self, records: u64) {
        self.persisted.fetch_add(records, Ordering::AcqRel);
    }

    pub(crate) fn snapshot(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        let persisted = read(&self.persisted);
        let dropped = array::from_fn(|reason| self.dropped.get(reason).map_or(0, read));
        let ended = persisted + dropped.iter().sum::<u64>();
        let recovered = read(&self.recovered);
        let taken = read(&self.taken);
        let sampled_out = read(&self.sampled_out);
        let pending = taken.saturating_sub(ended);
        Counts { offered: taken + sampled_out, recovered, sampled_out, persisted, pending, dropped }
    }
}
