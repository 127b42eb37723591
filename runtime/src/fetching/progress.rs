//! How far fetching has come, for the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use outrigger_store::{ManifestFile, Watch};
use tokio_util::task::AbortOnDropHandle;

/// How often it is logged.
const EVERY: Duration = Duration::from_secs(5);

/// Counts, and has them logged as long as it is there.
pub(super) struct Progress {
    counts: Arc<Counts>,
    /// Ends with this.
    log: AbortOnDropHandle<()>,
}

struct Counts {
    files: usize,
    bytes: u64,
    started: Instant,
    ended: AtomicUsize,
    /// What is here, of all files.
    here: AtomicU64,
    /// What has come from the storage.
    came: AtomicU64,
}

impl Progress {
    /// For so many files, and bytes.
    pub(super) fn start(files: usize, bytes: u64) -> Self {
        let started = Instant::now();
        let counts = Arc::new(Counts {
            files,
            bytes,
            started,
            ended: AtomicUsize::new(0),
            here: AtomicU64::new(0),
            came: AtomicU64::new(0),
        });
        let shown = Arc::clone(&counts);
        let log = tokio::spawn(async move {
            let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + EVERY, EVERY);
            loop {
                ticks.tick().await;
                shown.log();
            }
        });
        Self { counts, log: AbortOnDropHandle::new(log) }
    }

    /// Who is told.
    pub(super) fn watch(&self) -> &dyn Watch {
        self.counts.as_ref()
    }

    /// Nothing more is logged.
    pub(super) fn stop(self) {
        drop(self.log);
    }
}

impl Counts {
    fn log(&self) {
        let (ended, here) = (self.ended.load(Ordering::Relaxed), self.here.load(Ordering::Relaxed));
        let rate = self.came.load(Ordering::Relaxed) as f64 / self.started.elapsed().as_secs_f64();
        let (files, bytes) = (self.files, self.bytes);
        tracing::info!(ended, files, here, bytes, bytes_per_second = rate as u64, "fetching models");
    }
}

impl Watch for Counts {
    fn begun(&self, _: &ManifestFile, here: u64) {
        self.here.fetch_add(here, Ordering::Relaxed);
    }

    fn came(&self, _: &ManifestFile, bytes: u64) {
        self.here.fetch_add(bytes, Ordering::Relaxed);
        self.came.fetch_add(bytes, Ordering::Relaxed);
    }

    fn anew(&self, file: &ManifestFile, lost: u64, why: &str) {
        let less = |here: u64| Some(here.saturating_sub(lost));
        let _ = self.here.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        tracing::warn!(path = %file.path, why, "a file is fetched from its beginning");
    }

    fn again(&self, file: &ManifestFile, why: &str, pause: Duration) {
        tracing::warn!(path = %file.path, why, pause_seconds = pause.as_secs_f64(), "the storage is asked again");
    }

    fn waiting(&self, file: &ManifestFile) {
        tracing::info!(path = %file.path, "another process is fetching a file; waiting for it");
    }

    fn ended(&self, _: &ManifestFile) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}
