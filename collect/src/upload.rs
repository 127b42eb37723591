//! From the logs to blob storage.
//!
//! An object is read from the log and written whole, under a name of its own, each time that it has more. So whatever is tried twice leaves what is tried once. After
//! an attempt of which nobody knows whether it has come through, just the same is tried again: what is in blob is always what is known to be there, or what was
//! tried last.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use backon::BackoffBuilder as _;
use bytes::Bytes;
use object_store::ObjectStoreExt as _;
use object_store::path::Path as ObjectPath;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::collection::Collection;
use crate::collections::Target;
use crate::counts::Reason;
use crate::lane::Gauges;
use crate::layout::{Layout, parquet};
use crate::log::frame::{Body, Head, Kind, Stored};
use crate::log::segment_path;
use crate::log::table::{Attempt, Object, Part, Position, Sent, Shared};
use crate::ring::Wake;
use crate::settings::{Format, Settings};

/// How often the disk may fail before what it does not give back is given up.
const UNREADABLE: u32 = 5;
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

/// An object that is to be written.
struct Job {
    source: Arc<Source>,
    number: u64,
    object: Object,
    attempt: Attempt,
    parts: Vec<Part>,
    /// How long others go first if it fails.
    later: Duration,
    ended: bool,
}

/// Whoever gives a job up, as a stop does, leaves its object to others.
impl Drop for Job {
    fn drop(&mut self) {
        if !self.ended {
            self.fail();
        }
    }
}

/// What was read.
#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
    rows: Vec<parquet::Row>,
    records: u64,
    /// Of these, what is in blob already.
    sent: u64,
    sides: Vec<(String, Position)>,
}

/// What became of a job.
enum Ended {
    /// All that was found is in blob.
    There(u64),
    /// The disk has not kept what blob has: it stays as it is there.
    Kept,
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

fn next_job(source: &Arc<Source>, interval: Duration, later: Duration) -> Option<Job> {
    let mut table = source.table.lock();
    if table.held > 0 {
        return None;
    }
    let is_due = |object: &Object| {
        let due = object.closed
            || object.attempt.is_some()
            || object.rewrite
            || object.flushed.elapsed() >= interval;
        // Whoever waits for all of them waits for those as well that have failed.
        let later = object.later.is_some_and(|later| !interval.is_zero() && Instant::now() < later);
        !object.busy && object.is_behind() && due && !later
    };
    let due = table.objects.iter().filter(|(_, object)| is_due(object));
    let number = due.min_by_key(|(number, object)| (object.later, **number)).map(|(number, _)| *number)?;
    let object = table.objects.get_mut(&number)?;
    let (end, records) = (object.end, object.records);
    let attempt = match object.attempt {
        Some(attempt) => attempt,
        None => Attempt { end, records, bytes: 0, since: object.unsent_since.take() },
    };
    object.attempt = Some(attempt);
    object.busy = true;
    let (start, object) = (object.start, object.clone());
    let parts = table.parts(start, attempt.end);
    Some(Job { source: Arc::clone(source), number, object, attempt, parts, later, ended: false })
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

impl Job {
    async fn run(mut self, target: Target, timeout: Duration) -> bool {
        match self.write(&target, timeout).await {
            Ok(ended) => {
                self.succeed(ended);
                self.ended = true;
                true
            }
            Err(error) => {
                self.fail();
                self.ended = true;
                self.source.failed(&error);
                // A disk that fails says nothing of blob storage, but is not asked all the time either.
                false
            }
        }
    }

    async fn write(&self, target: &Target, timeout: Duration) -> Result<Ended, UploadError> {
        let content = self.read().await?;
        if content.sent < self.object.sent.records {
            return Ok(Ended::Kept);
        }
        for (name, position) in &content.sides {
            let data = self.read_side(*position).await?;
            within(timeout, target.store.put(&at(target, name), data.into())).await?;
        }
        let path = at(target, &self.object.path);
        if content.records == 0 {
            delete(target, &path, timeout).await?;
            return Ok(Ended::There(0));
        }
        let (records, bytes) = (content.records, content.bytes);
        let size = bytes.len() as u64;
        self.begin(size);
        within(timeout, target.store.put(&path, bytes.into())).await?;
        if self.attempt.bytes > 0 && within(timeout, target.store.head(&path)).await?.size != size {
            // An attempt that was given up has come through after this one. So it is made once more.
            return Err(io::Error::other("an earlier attempt came later").into());
        }
        self.source.gauges.uploads.fetch_add(1, Ordering::AcqRel);
        self.source.gauges.uploaded_bytes.fetch_add(size, Ordering::AcqRel);
        Gauges::tell(&self.source.gauges.blob_problem, None);
        Ok(Ended::There(records))
    }

    /// From here on nobody knows what is in blob until it is known again.
    fn begin(&self, size: u64) {
        let mut table = self.source.table.lock();
        if let Some(attempt) = table.objects.get_mut(&self.number).and_then(|object| object.attempt.as_mut())
        {
            attempt.bytes = size;
        } else if let Some(doubt) = table.doubts.get_mut(&self.number) {
            doubt.bytes = size;
        }
    }

    /// Everything but what is an object of its own.
    async fn read(&self) -> Result<Content, UploadError> {
        let (dir, parts, number) = (self.source.dir.clone(), self.parts.clone(), self.number);
        let (header, sent, format) = (Arc::clone(&self.object.header), self.object.sent, self.object.format);
        let tolerant = self.object.failures >= UNREADABLE;
        let read = move || {
            let mut content = Content { bytes: header.to_vec(), ..Content::default() };
            let wants = |head: &Head| head.kind == Kind::Record && head.object == number;
            for part in &parts {
                // What blob has is on the disk, too: a start after the machine has stopped would else write less over more.
                let synced =
                    std::fs::File::open(segment_path(&dir, part.segment)).and_then(|file| file.sync_data());
                let read = synced.and_then(|()| {
                    crate::log::read(&dir, part, wants, |(position, head, body)| {
                        if let Body::Whole(body) = body
                            && wants(&head)
                            && let Some(stored) = Stored::read(body)
                        {
                            content.add(&stored, position, sent, format);
                        }
                    })
                });
                match read {
                    // What cannot be read after all this never will be.
                    Err(_) if tolerant => {}
                    other => other?,
                }
            }
            if format == Format::Parquet && content.records > 0 {
                content.bytes = parquet::write(&std::mem::take(&mut content.rows))?;
            }
            Ok::<_, UploadError>(content)
        };
        tokio::task::spawn_blocking(read).await?
    }

    /// The data of a record that is an object of its own.
    async fn read_side(&self, position: Position) -> Result<Bytes, UploadError> {
        let within = self.parts.iter().find(|part| part.segment == position.segment).copied();
        let part = within.map(|part| Part { from: position.offset, ..part });
        let (dir, number) = (self.source.dir.clone(), self.number);
        let read = move || {
            let mut data = None;
            let is_it = |head: &Head| head.object == number && head.kind == Kind::Record;
            crate::log::read_one(&dir, part, is_it, |body| {
                data = Stored::read(body)
                    .and_then(|stored| stored.side)
                    .map(|(_, data)| Bytes::copy_from_slice(data));
            })?;
            data.ok_or_else(|| io::Error::other("a record is not what it was a moment ago"))
        };
        Ok(tokio::task::spawn_blocking(read).await??)
    }

    fn succeed(&self, ended: Ended) {
        let counters = &self.source.collection.counters;
        let sent = self.object.sent;
        let mut table = self.source.table.lock();
        let Some(object) = table.objects.get_mut(&self.number) else {
            if let Some(doubt) = table.doubts.remove(&self.number) {
                let there = match ended {
                    Ended::There(found) => found.saturating_sub(sent.records).min(doubt.records),
                    Ended::Kept => 0,
                };
                counters.persisted(there);
                counters.dropped(Reason::Damaged, doubt.records - there);
            }
            return;
        };
        object.busy = false;
        object.failures = 0;
        object.later = None;
        object.attempt = None;
        object.rewrite = false;
        object.flushed = Instant::now();
        match ended {
            Ended::There(found) => {
                let lost = self.attempt.records.saturating_sub(found);
                object.records = object.records.saturating_sub(lost);
                object.sent = Sent { end: self.attempt.end, records: found };
                counters.persisted(found.saturating_sub(sent.records));
                counters.dropped(Reason::Damaged, lost);
            }
            Ended::Kept => {
                counters.dropped(Reason::Damaged, object.records.saturating_sub(sent.records));
                object.records = sent.records;
                object.unsent_since = None;
                object.closed = true;
            }
        }
        table.remove_if_over(self.number);
    }

    fn fail(&self) {
        let mut table = self.source.table.lock();
        if let Some(object) = table.objects.get_mut(&self.number) {
            object.busy = false;
            object.failures = object.failures.saturating_add(1);
            // Whatever is wrong with it, others are not kept waiting by it.
            object.later = Some(Instant::now() + self.later);
            if let Some(attempt) = object.attempt.filter(|attempt| attempt.bytes == 0) {
                // It did not come so far that anything could be in blob.
                object.attempt = None;
                object.unsent_since = [attempt.since, object.unsent_since].into_iter().flatten().min();
            }
        } else if let Some(doubt) = table.doubts.get_mut(&self.number) {
            doubt.busy = false;
            if doubt.bytes == 0 {
                self.source.collection.counters.dropped(Reason::Oldest, doubt.records);
                table.doubts.remove(&self.number);
            }
        }
    }
}

impl Content {
    fn add(&mut self, stored: &Stored<'_>, position: Position, sent: Sent, format: Format) {
        if format == Format::Parquet {
            let Some(row) = parquet::Row::of_line(stored.line, stored.time) else { return };
            self.rows.push(row);
        } else {
            self.bytes.extend_from_slice(stored.line);
        }
        self.records += 1;
        if position < sent.end {
            self.sent += 1;
        } else if let Some((name, _)) = stored.side {
            self.sides.push((name.to_owned(), position));
        }
    }
}
