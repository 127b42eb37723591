//! What is to be gone: by its correlation id, or by its age.
//!
//! A record that is in the log is written over with zeros where it lies, and its object is written to blob once more without it. What is in blob already is read, and
//! written without the records that go. Both can be done again, as often as wanted, until it is said that it is done.

mod age;
mod blob;
mod log;
mod without;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;

use crate::upload::Source;

/// How often it looks whether objects have been written again.
const LOOK: Duration = Duration::from_millis(20);
/// Characters of a UUID.
pub(crate) const UUID: usize = 36;
/// Objects that are named of those that could not be read.
const NAMED: usize = 8;

/// What a deletion has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Records that are gone, from logs and from blob. One that was in both may be counted twice.
    pub records: u64,
    /// Objects that were written again, by this.
    pub objects: u64,
}

impl std::ops::AddAssign for Deleted {
    fn add_assign(&mut self, other: Self) {
        self.records += other.records;
        self.objects += other.objects;
    }
}

/// Why something may not be gone. Whatever was done stays done, and it can be tried again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EraseError {
    /// The log cannot be read, or written over.
    #[error("the log of `{collection}` on disk: {source}")]
    Log {
        /// Of which collection.
        collection: String,
        /// Why.
        source: io::Error,
    },
    /// Blob storage does not answer, or not as it should.
    #[error("`{object}` in blob storage: {source}")]
    Blob {
        /// Which object, or folder.
        object: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Objects in blob storage could not be read, so that what is to be gone may be in them.
    #[error("{}", unread(.objects, .more))]
    Unread {
        /// Of which collection.
        collection: String,
        /// Which, and why each could not be.
        objects: Vec<(String, String)>,
        /// How many others.
        more: usize,
    },
    /// Objects that have records in the log were not written again in time.
    #[error("objects of `{collection}` were not written to blob storage again within {time:?}")]
    Slow {
        /// Of which collection.
        collection: String,
        /// How long was waited.
        time: Duration,
    },
    /// Collection has ended.
    #[error("collection has ended")]
    Ended,
}

fn unread(objects: &[(String, String)], more: &usize) -> String {
    let named: Vec<_> = objects.iter().map(|(object, why)| format!("`{object}`: {why}")).collect();
    let more = if *more > 0 { format!("; and {more} others") } else { String::new() };
    format!(
        "objects in blob storage cannot be read, and may have what is to be deleted: {}{more}",
        named.join("; ")
    )
}

/// Whether a record is meant: its correlation id is the one, or, as the v1 SDK makes it, that and a UUID, or what redaction leaves of a UUID.
pub(crate) fn is_meant(found: &[u8], wanted: &[u8]) -> bool {
    match found.strip_prefix(wanted) {
        Some([]) => true,
        Some([b'-', rest @ ..]) => str::from_utf8(rest).is_ok_and(is_suffix),
        _ => false,
    }
}

fn is_suffix(text: &str) -> bool {
    let is_hash = |hash: &str| hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_uuid(text) || text == "***" || text.strip_prefix("hash:").is_some_and(is_hash)
}

/// A UUID in its usual form.
pub(crate) fn is_uuid(text: &str) -> bool {
    text.len() == UUID && text.parse::<uuid::Uuid>().is_ok()
}

/// Keeps a collection from being written to blob, for as long as it is there.
pub(crate) struct Held {
    source: Arc<Source>,
    /// One at a time: what two erase at once would be counted twice.
    _turn: OwnedSemaphorePermit,
}

impl Held {
    /// Waits until nothing is being written, nor erased by others, for so long at most.
    pub(crate) async fn of(source: &Arc<Source>, longest: Duration) -> Option<Self> {
        let until = Instant::now() + longest;
        let turn = Arc::clone(&source.erasing).acquire_owned();
        let turn = tokio::time::timeout(longest, turn).await.ok()?.ok()?;
        source.table.lock().held += 1;
        let held = Self { source: Arc::clone(source), _turn: turn };
        loop {
            {
                let table = source.table.lock();
                let busy = table.objects.values().any(|object| object.busy);
                if !busy && !table.doubts.values().any(|doubt| doubt.busy) {
                    return Some(held);
                }
            }
            if Instant::now() >= until {
                return None;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = self.source.table.lock();
        table.held = table.held.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_correlation_id_is_meant_whole_or_before_a_uuid() {
        let uuid = "6f1c2a9e-3c1f-4a9e-9a55-0f4b1d2c3e4f";
        assert!(is_meant(b"ann", b"ann") && is_meant(format!("ann-{uuid}").as_bytes(), b"ann"));
        for other in ["anna", "ann-", "ann-1", "an", "", &format!("ann{uuid}"), &format!("bob-ann-{uuid}")] {
            assert!(!is_meant(other.as_bytes(), b"ann"), "{other}");
        }
    }
}
