//! What others see of how a collection is doing, beside its counts.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

/// What others see of a lane.
#[derive(Debug)]
pub(crate) struct Gauges {
    pub(crate) uploads: AtomicU64,
    pub(crate) uploaded_bytes: AtomicU64,
    pub(crate) upload_failures: AtomicU64,
    pub(crate) disk_failures: AtomicU64,
    /// Since when the log takes nothing, microseconds since 1970; 0 while it does.
    pub(crate) stalled: AtomicU64,
    pub(crate) disk_problem: Mutex<Option<String>>,
    pub(crate) blob_problem: Mutex<Option<String>>,
}

impl Gauges {
    pub(crate) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            uploads: zero(),
            uploaded_bytes: zero(),
            upload_failures: zero(),
            disk_failures: zero(),
            stalled: zero(),
            disk_problem: Mutex::new(None),
            blob_problem: Mutex::new(None),
        }
    }

    pub(crate) fn tell(place: &Mutex<Option<String>>, problem: Option<String>) {
        *place.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}
