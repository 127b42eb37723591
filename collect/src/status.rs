//! How a collection is doing, for those who ask.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::counts::Counts;
use crate::layout::date::micros;
use crate::upload::Source;

/// How a collection is doing.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Status {
    /// Its name.
    pub name: String,
    /// What became of its records.
    pub counts: Counts,
    /// Records that wait for the writer.
    pub ring_items: usize,
    /// Bytes that wait for the writer.
    pub ring_bytes: usize,
    /// Bytes of its log on disk.
    pub disk_bytes: u64,
    /// How long the oldest record has been waiting that is not in blob; nothing where all are.
    pub lag: Option<Duration>,
    /// Objects of which not everything is in blob.
    pub objects_waiting: usize,
    /// Objects that were written to blob, each time they were.
    pub uploads: u64,
    /// Bytes of these.
    pub uploaded_bytes: u64,
    /// Attempts that failed.
    pub upload_failures: u64,
    /// Attempts to write to the disk that failed.
    pub disk_failures: u64,
    /// The log takes nothing, as there is no room for it.
    pub stalled: bool,
    /// What failed last, of blob or disk, until it works again.
    pub problem: Option<String>,
}

impl Source {
    pub(crate) fn status(&self) -> Status {
        let (ring, gauges) = (&self.collection.ring, &self.gauges);
        let (oldest, disk_bytes, waiting) = {
            let table = self.table.lock();
            let behind = table.objects.values().filter(|object| object.is_behind()).count();
            (table.oldest(), table.bytes, behind + table.doubts.len())
        };
        let now = micros(SystemTime::now());
        let stalled = Some(gauges.stalled.load(Ordering::Acquire)).filter(|since| *since > 0);
        // What waits in memory is older than a moment only while the log takes nothing.
        let oldest = [oldest, stalled.filter(|_| ring.items() > 0)].into_iter().flatten().min();
        let problem =
            |place: &Mutex<Option<String>>| place.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Status {
            name: self.collection.name().to_owned(),
            counts: self.collection.counts(),
            ring_items: ring.items(),
            ring_bytes: ring.bytes(),
            disk_bytes,
            lag: oldest.map(|oldest| Duration::from_micros(now.saturating_sub(oldest))),
            objects_waiting: waiting,
            uploads: gauges.uploads.load(Ordering::Acquire),
            uploaded_bytes: gauges.uploaded_bytes.load(Ordering::Acquire),
            upload_failures: gauges.upload_failures.load(Ordering::Acquire),
            disk_failures: gauges.disk_failures.load(Ordering::Acquire),
            stalled: stalled.is_some(),
            problem: problem(&gauges.disk_problem).or_else(|| problem(&gauges.blob_problem)),
        }
    }
}
