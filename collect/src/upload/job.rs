//! One object, from the log to blob.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::ObjectStoreExt as _;
use object_store::path::Path as ObjectPath;

use super::merge::merged;
use super::{Source, UploadError, at, delete, within};
use crate::collections::Target;
use crate::counts::Reason;
use crate::gauges::Gauges;
use crate::layout::parquet;
use crate::log::frame::{Body, Head, Kind, Stored};
use crate::log::segment_path;
use crate::log::table::{Attempt, Object, Part, Position, Sent};
use crate::settings::Format;

/// How often the disk may fail before what it does not give back is given up.
const UNREADABLE: u32 = 5;
/// Largest object in blob that is read because the log may have less of it, bytes. Those that are written here are smaller.
const MAX_OBJECT: u64 = 1 << 30;

/// An object that is to be written.
pub(super) struct Job {
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
pub(super) struct Content {
    /// The whole object.
    pub(super) bytes: Vec<u8>,
    /// Where its first record begins.
    pub(super) header: usize,
    /// Where each record's lines end in it.
    pub(super) ends: Vec<usize>,
    pub(super) rows: Vec<parquet::Row>,
    pub(super) records: u64,
    /// Of these, what is in blob already.
    pub(super) sent: u64,
    pub(super) sides: Vec<(String, Position)>,
}

/// An object with what blob has of it.
pub(super) enum Whole {
    /// What the log has is all of it.
    Ours(Vec<u8>),
    /// What blob has, and what it has not.
    Joined(Vec<u8>),
    /// Blob has all of it.
    There,
    /// What blob has is none that is written here.
    Unreadable,
}

/// What became of a job.
enum Ended {
    /// So many of its records are in blob; where the two were joined, the log does not have all of these.
    There { records: u64, joined: bool },
    /// The disk has not kept what blob has: it stays as it is there.
    Kept,
}

/// What is most urgent, if anything is.
pub(super) fn next_job(source: &Arc<Source>, interval: Duration, later: Duration) -> Option<Job> {
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

impl Job {
    pub(super) async fn run(mut self, target: Target, timeout: Duration) -> bool {
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
        let mut content = self.read().await?;
        let path = at(target, &self.object.path);
        // What a disk has lost is never taken for what somebody wanted to be gone.
        let gone = content.sent < self.object.sent.records;
        let lost = gone || self.object.damaged || content.records < self.attempt.records;
        if content.records == 0 {
            if lost || !self.object.erased {
                return Ok(Ended::Kept);
            }
            delete(target, &path, timeout).await?;
            return Ok(Ended::There { records: 0, joined: false });
        }
        for (name, position) in std::mem::take(&mut content.sides) {
            let data = self.read_side(position).await?;
            let put = within(timeout, target.store.put(&at(target, &name), data.into())).await;
            if put.is_err() {
                self.source.table.lock().give_up(&name.into());
            }
            put?;
        }
        // Blob has what it had, and all that is new.
        let records = self.object.sent.records + content.records - content.sent;
        let (bytes, joined) = match self.with_what_is_there(content, lost, target, &path, timeout).await? {
            Whole::Ours(bytes) => (bytes, false),
            Whole::Joined(bytes) => (bytes, true),
            Whole::There => {
                Gauges::tell(&self.source.gauges.blob_problem, None);
                return Ok(Ended::There { records, joined: true });
            }
            Whole::Unreadable => return Ok(Ended::Kept),
        };
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
        Ok(Ended::There { records, joined })
    }

    /// The object as it is to be. Where nobody knows how much of it is in blob, and the log may have less, nothing that is there is lost.
    async fn with_what_is_there(
        &self,
        content: Content,
        lost: bool,
        target: &Target,
        path: &ObjectPath,
        timeout: Duration,
    ) -> Result<Whole, UploadError> {
        let size = content.bytes.len() as u64;
        let gone = content.sent < self.object.sent.records;
        let changed = gone || self.attempt.bytes > 0 && self.attempt.bytes != size;
        if !(self.object.recovered || changed) {
            return Ok(Whole::Ours(content.bytes));
        }
        let there = match within(timeout, target.store.head(path)).await {
            Ok(meta) => meta.size,
            Err(UploadError::Blob(object_store::Error::NotFound { .. })) => 0,
            Err(error) => return Err(error),
        };
        let is_more = there > size && !self.object.erased;
        if there == 0 || !(lost || changed || is_more) {
            return Ok(Whole::Ours(content.bytes));
        }
        if there > MAX_OBJECT {
            return Ok(Whole::Unreadable);
        }
        let bytes = within(timeout, target.store.get(path)).await?;
        let bytes = within(timeout, bytes.bytes()).await?;
        tracing::warn!(
            collection = self.source.collection.name(),
            %path,
            "the disk may have lost some of what blob storage has: the object keeps it"
        );
        let format = self.object.format;
        Ok(tokio::task::spawn_blocking(move || merged(&bytes, &content, format)).await?)
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
            let mut content = Content { bytes: header.to_vec(), header: header.len(), ..Content::default() };
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
                content.bytes = parquet::write(&content.rows)?;
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
                    Ended::There { records, .. } => records.saturating_sub(sent.records).min(doubt.records),
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
        let is_ended;
        match ended {
            Ended::There { records: found, joined } => {
                let lost = self.attempt.records.saturating_sub(found);
                object.records = object.records.saturating_sub(lost);
                object.sent = Sent { end: self.attempt.end, records: found };
                counters.persisted(found.saturating_sub(sent.records));
                counters.dropped(Reason::Damaged, lost);
                // From here on what is in the log is not what is in blob, and nothing more comes to it.
                is_ended = joined;
            }
            Ended::Kept => {
                counters.dropped(Reason::Damaged, object.records.saturating_sub(sent.records));
                object.records = sent.records;
                object.unsent_since = None;
                is_ended = true;
            }
        }
        if is_ended && !std::mem::replace(&mut object.closed, true) {
            table.ended.push(self.number);
        }
        table.remove_if_over(self.number);
    }

    fn fail(&self) {
        let mut table = self.source.table.lock();
        let attempt = table.objects.get(&self.number).and_then(|object| object.attempt);
        if attempt.is_some_and(|attempt| attempt.bytes > 0) || table.doubts.contains_key(&self.number) {
            table.give_up(&self.object.path);
        }
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
            self.ends.push(self.bytes.len());
        }
        self.records += 1;
        if position < sent.end {
            self.sent += 1;
        } else if let Some((name, _)) = stored.side {
            self.sides.push((name.to_owned(), position));
        }
    }
}
