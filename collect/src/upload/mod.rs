//! From the logs to blob storage.
//!
//! An object is read from the log and written whole, under a name of its own, each time that it has more. So whatever is tried twice leaves what is tried once. After
//! an attempt of which nobody knows whether it has come through, just the same is tried again: what is in blob is always what is known to be there, or what was
//! tried last.

mod job;
mod merge;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use backon::BackoffBuilder as _;
use object_store::ObjectStoreExt as _;
use object_store::path::Path as ObjectPath;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use self::job::next_job;
use crate::collection::Collection;
use crate::collections::Target;
use crate::counts::Reason;
use crate::gauges::Gauges;
use crate::layout::Layout;
use crate::log::table::Shared;
use crate::ring::Wake;
use crate::settings::Settings;

/// Longest time between attempts while somebody waits.
const IMPATIENT: Duration = Duration::from_secs(1);
/// How often it looks whether an interval is over.
const LOOK: Duration = Duration::from_millis(250);

/// One collection, as this side sees it.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) collection: Arc<Collection>,
    pub(crate) layout: Arc<Layout>,
    pub(crate) gauges: Arc<Gauges>,
    pub(crate) table: Shared,
    pub(crate) dir: PathBuf,
    pub(crate) retention_days: Option<u32>,
    /// The name of this instance.
    pub(crate) instance: Arc<str>,
    /// One erases at a time.
    pub(crate) erasing: Arc<Semaphore>,
}

/// What the task has.
pub(crate) struct Uploader {
    pub(crate) sources: Vec<Arc<Source>>,
    pub(crate) target: Target,
    pub(crate) bounds: Bounds,
    pub(crate) wake: Arc<Wake>,
    pub(crate) asked: Arc<Asked>,
    pub(crate) turn: AtomicUsize,
}

/// What it is kept to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    flush_interval: Duration,
    uploads: usize,
    timeout: Duration,
    retry_min: Duration,
    retry_max: Duration,
}

impl From<&Settings> for Bounds {
    fn from(settings: &Settings) -> Self {
        Self {
            flush_interval: settings.flush_interval,
            uploads: settings.uploads,
            timeout: settings.upload_timeout,
            retry_min: settings.retry_min,
            retry_max: settings.retry_max.max(settings.retry_min),
        }
    }
}

/// What others ask of it.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// Somebody waits: no interval is kept to.
    pub(crate) now: AtomicUsize,
    /// Look again.
    pub(crate) again: Notify,
}

/// Why an object is not in blob.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("blob storage: {0}")]
    Blob(#[from] object_store::Error),
    #[error("no answer of blob storage within {0:?}")]
    Slow(Duration),
    #[error("reading what is to be written: {0}")]
    Disk(#[from] io::Error),
    #[error("the reader ended: {0}")]
    Reader(#[from] tokio::task::JoinError),
    #[error("columns: {0}")]
    Columns(#[from] ::parquet::errors::ParquetError),
}

impl Uploader {
    /// Runs until it is aborted.
    pub(crate) async fn run(self) {
        let mut jobs = JoinSet::new();
        let mut delays = self.delays();
        let mut failed: Option<(Instant, Duration)> = None;
        loop {
            let longest = if self.is_awaited() { IMPATIENT } else { Duration::MAX };
            let is_waiting = failed.is_some_and(|(at, delay)| at.elapsed() < delay.min(longest));
            // While it does not work, one at a time says whether it does again.
            let most = if failed.is_some() { 1 } else { self.bounds.uploads };
            while !is_waiting && jobs.len() < most {
                let Some(task) = self.next() else { break };
                jobs.spawn(task);
            }
            tokio::select! {
                Some(ended) = jobs.join_next(), if !jobs.is_empty() => match ended {
                    Ok(true) => {
                        failed = None;
                        delays = self.delays();
                        self.wake.something();
                    }
                    Ok(false) | Err(_) => {
                        let delay = delays.next().unwrap_or(self.bounds.retry_max);
                        failed = Some((Instant::now(), delay));
                    }
                },
                () = self.asked.again.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn is_awaited(&self) -> bool {
        self.asked.now.load(Ordering::Acquire) > 0
    }

    fn delays(&self) -> impl Iterator<Item = Duration> + use<> {
        backon::ExponentialBuilder::default()
            .with_min_delay(self.bounds.retry_min)
            .with_max_delay(self.bounds.retry_max)
            .with_jitter()
            .without_max_times()
            .build()
    }

    /// Something that is to be done, which says whether blob storage did it.
    fn next(&self) -> Option<futures_util::future::BoxFuture<'static, bool>> {
        let (timeout, target) = (self.bounds.timeout, self.target.clone());
        let interval = if self.is_awaited() { Duration::ZERO } else { self.bounds.flush_interval };
        // Each time another one is the first, so that none waits for another that never ends.
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % self.sources.len().max(1);
        let (before, after) = self.sources.split_at_checked(first)?;
        for source in after.iter().chain(before) {
            if let Some(job) = next_job(source, interval, self.bounds.retry_max) {
                return Some(Box::pin(job.run(target, timeout)));
            }
            if let Some((number, path, bytes)) = next_doubt(source) {
                let source = Arc::clone(source);
                return Some(Box::pin(resolve(source, number, path, bytes, target, timeout)));
            }
        }
        None
    }
}

fn next_doubt(source: &Source) -> Option<(u64, Arc<str>, u64)> {
    let mut table = source.table.lock();
    let (number, doubt) = table.doubts.iter_mut().find(|(_, doubt)| !doubt.busy)?;
    doubt.busy = true;
    Some((*number, Arc::clone(&doubt.path), doubt.bytes))
}

/// Where an object is.
pub(crate) fn at(target: &Target, path: &str) -> ObjectPath {
    let path = if target.at.as_ref().is_empty() { path.to_owned() } else { format!("{}/{path}", target.at) };
    ObjectPath::parse(&path).unwrap_or_else(|_| ObjectPath::from(path))
}

/// Does something with blob storage, for so long at most.
pub(crate) async fn within<T>(
    timeout: Duration,
    what: impl Future<Output = object_store::Result<T>>,
) -> Result<T, UploadError> {
    let done = tokio::time::timeout(timeout, what).await.map_err(|_| UploadError::Slow(timeout))?;
    Ok(done?)
}

/// Deletes an object, which need not be there.
pub(crate) async fn delete(target: &Target, path: &ObjectPath, timeout: Duration) -> Result<(), UploadError> {
    match within(timeout, target.store.delete(path)).await {
        Ok(()) | Err(UploadError::Blob(object_store::Error::NotFound { .. })) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Looks whether the last records of an object that is not in the log any more came to blob: it is as long as it would be then.
async fn resolve(
    source: Arc<Source>,
    number: u64,
    path: Arc<str>,
    bytes: u64,
    target: Target,
    timeout: Duration,
) -> bool {
    let found = match within(timeout, target.store.head(&at(&target, &path))).await {
        Ok(meta) => Ok(meta.size == bytes),
        Err(UploadError::Blob(object_store::Error::NotFound { .. })) => Ok(false),
        Err(error) => Err(error),
    };
    let mut table = source.table.lock();
    match found {
        Ok(is_there) => {
            if let Some(doubt) = table.doubts.remove(&number) {
                match is_there {
                    true => source.collection.counters.persisted(doubt.records),
                    false => source.collection.counters.dropped(Reason::Oldest, doubt.records),
                }
            }
            true
        }
        Err(error) => {
            if let Some(doubt) = table.doubts.get_mut(&number) {
                doubt.busy = false;
            }
            drop(table);
            source.failed(&error);
            false
        }
    }
}

impl Source {
    fn failed(&self, error: &UploadError) {
        let before = self.gauges.upload_failures.fetch_add(1, Ordering::AcqRel);
        let known = self.gauges.blob_problem.lock().is_ok_and(|problem| problem.is_some());
        if before == 0 || !known {
            tracing::warn!(collection = self.collection.name(), %error, "collected data does not get to blob storage: it stays on disk, and is tried again");
        }
        Gauges::tell(&self.gauges.blob_problem, Some(error.to_string()));
    }
}
