//! What is to be gone: by its correlation id, or by its age.
//!
//! A record that is in the log is written over with zeros where it lies, and its object is written to blob once more without it. What is in blob already is read, and
//! written without the records that go. Both can be done again, as often as wanted, until it is said that it is done.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStoreExt as _, PutMode, PutOptions, UpdateVersion};

use crate::collections::Target;
use crate::counts::Reason;
use crate::lane::Lane;
use crate::layout::date::{days, micros};
use crate::layout::{Layout, csv, parquet};
use crate::log::frame::{Body, FRAME_HEAD, Kind, Reader, Stored};
use crate::log::segment_path;
use crate::log::table::Position;
use crate::settings::Format;
use crate::upload::{Source, UploadError, at, delete, within};

/// Zeros that are written at a time.
const ZEROS: [u8; 16 << 10] = [0; 16 << 10];
/// Largest object that is read to be written again, bytes. Those that are written here are smaller.
const MAX_OBJECT: u64 = 1 << 30;
/// How often it looks whether objects have been written again.
const LOOK: Duration = Duration::from_millis(20);
/// How often an object is read again that somebody has written meanwhile.
const ATTEMPTS: usize = 5;

/// What was erased from a log.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) records: u64,
    /// Objects of records' own data.
    pub(crate) sides: Vec<String>,
}

/// What a deletion has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Records that are gone, from logs and from blob. One that was in both may be counted twice.
    pub records: u64,
    /// Objects that were written again, by this.
    pub objects: u64,
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

/// Whether a record is meant: its correlation id is the one, or, as the v1 SDK makes it, that and a UUID.
fn is_meant(found: &[u8], wanted: &[u8]) -> bool {
    const UUID: usize = 36;
    match found.strip_prefix(wanted) {
        Some([]) => true,
        Some([b'-', uuid @ ..]) => {
            uuid.len() == UUID && str::from_utf8(uuid).is_ok_and(|uuid| uuid.parse::<uuid::Uuid>().is_ok())
        }
        _ => false,
    }
}

impl Lane {
    /// Writes over what the log has of a correlation id. Nothing of this collection is written to blob meanwhile.
    pub(crate) fn erase(&mut self, correlation: &str) -> io::Result<Found> {
        if !self.is_settled() {
            return Err(io::Error::other(
                "it takes nothing now, and what waits for it may be what is to be deleted",
            ));
        }
        let mut found = Found::default();
        let segments: Vec<_> =
            self.log.shared().lock().segments.iter().map(|(number, segment)| (*number, *segment)).collect();
        for (number, segment) in segments {
            let path = segment_path(self.log.dir(), number);
            let reader = BufReader::new(File::open(&path)?);
            let Some(mut reader) = Reader::of_segment(reader, number, segment.bytes)? else { continue };
            let mut meant = Vec::new();
            while let Some((offset, head, body)) = reader.next(|head| head.kind == Kind::Record)? {
                let Body::Whole(body) = body else { continue };
                let Some(stored) = Stored::read(body).filter(|_| head.kind == Kind::Record) else { continue };
                if is_meant(stored.correlation, correlation.as_bytes()) {
                    meant.push((offset, head.length, head.object));
                    found.sides.extend(stored.side.map(|(name, _)| name.to_owned()));
                }
            }
            if meant.is_empty() {
                continue;
            }
            let file = OpenOptions::new().write(true).open(&path)?;
            for (offset, length, _) in &meant {
                write_zeros(&file, offset + FRAME_HEAD as u64, u64::from(*length))?;
            }
            file.sync_all()?;
            for (offset, _, object) in meant {
                self.forget(object, Position { segment: number, offset });
                found.records += 1;
            }
        }
        Ok(found)
    }

    /// Takes a record out of what is known of its object.
    fn forget(&self, number: u64, position: Position) {
        let mut table = self.log.shared().lock();
        let Some(object) = table.objects.get_mut(&number) else { return };
        if position >= object.end {
            return;
        }
        object.records = object.records.saturating_sub(1);
        if position < object.sent.end {
            object.sent.records = object.sent.records.saturating_sub(1);
        } else {
            self.collection.counters.dropped(Reason::Deleted, 1);
        }
        // What was tried and may be in blob goes, too.
        object.rewrite |= position < object.sent.end;
        if let Some(attempt) = object.attempt.take_if(|attempt| position < attempt.end) {
            object.rewrite = true;
            object.unsent_since = [attempt.since, object.unsent_since].into_iter().flatten().min();
        }
        if object.records == object.sent.records {
            object.unsent_since = None;
        }
        table.remove_if_over(number);
    }
}

fn write_zeros(file: &File, mut at: u64, mut length: u64) -> io::Result<()> {
    while length > 0 {
        let part = length.min(ZEROS.len() as u64);
        file.write_all_at(ZEROS.get(..part as usize).unwrap_or(&ZEROS), at)?;
        at += part;
        length -= part;
    }
    Ok(())
}

/// Keeps a collection from being written to blob, for as long as it is there.
pub(crate) struct Held(Arc<Source>);

impl Held {
    /// Waits until nothing is being written, for so long at most.
    pub(crate) async fn of(source: &Arc<Source>, longest: Duration) -> Option<Self> {
        source.table.lock().held += 1;
        let held = Self(Arc::clone(source));
        let until = Instant::now() + longest;
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
        let mut table = self.0.table.lock();
        table.held = table.held.saturating_sub(1);
    }
}

impl Source {
    fn blob_error(
        &self,
        object: &ObjectPath,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> EraseError {
        EraseError::Blob { object: object.to_string(), source: source.into() }
    }

    /// Waits until what was erased from the log is gone from the objects that are still in it.
    pub(crate) async fn rewritten(&self, longest: Duration) -> Result<(), EraseError> {
        let until = Instant::now() + longest;
        while self.table.lock().objects.values().any(|object| object.rewrite) {
            if Instant::now() >= until {
                return Err(EraseError::Slow { collection: self.collection.name().into(), time: longest });
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Deletes the objects of records' own data.
    pub(crate) async fn delete_sides(
        &self,
        target: &Target,
        sides: &[String],
        timeout: Duration,
    ) -> Result<(), EraseError> {
        for side in sides {
            let path = at(target, side);
            delete(target, &path, timeout).await.map_err(|error| self.blob_error(&path, error))?;
        }
        Ok(())
    }

    /// Writes the objects in blob without the records that are meant, those apart that are in the log: these are written from there.
    pub(crate) async fn delete_in_blob(
        &self,
        target: &Target,
        correlation: &str,
        timeout: Duration,
    ) -> Result<Deleted, EraseError> {
        let mut deleted = Deleted::default();
        for object in self.objects(target).await? {
            let Some(format) = format_of(&object.location) else { continue };
            for attempt in 1.. {
                if self.is_in_log(target, &object.location) {
                    break;
                }
                match self.delete_in_object(target, &object.location, format, correlation, timeout).await {
                    Ok(records) => {
                        deleted.records += records;
                        deleted.objects += u64::from(records > 0);
                        break;
                    }
                    Err(UploadError::Blob(object_store::Error::NotFound { .. })) => break,
                    Err(UploadError::Blob(object_store::Error::Precondition { .. }))
                        if attempt < ATTEMPTS => {}
                    Err(error) => return Err(self.blob_error(&object.location, error)),
                }
            }
        }
        Ok(deleted)
    }

    async fn objects(&self, target: &Target) -> Result<Vec<ObjectMeta>, EraseError> {
        let prefix = at(target, self.layout.prefix().trim_end_matches('/'));
        let listed = target.store.list(Some(&prefix)).try_collect().await;
        listed.map_err(|error| self.blob_error(&prefix, error))
    }

    fn is_in_log(&self, target: &Target, path: &ObjectPath) -> bool {
        let table = self.table.lock();
        table.objects.values().any(|object| at(target, &object.path) == *path)
    }

    async fn delete_in_object(
        &self,
        target: &Target,
        path: &ObjectPath,
        format: Format,
        correlation: &str,
        timeout: Duration,
    ) -> Result<u64, UploadError> {
        let got = within(timeout, target.store.get(path)).await?;
        if got.meta.size > MAX_OBJECT {
            return Ok(0);
        }
        let version = UpdateVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
        let bytes = within(timeout, got.bytes()).await?;
        let (layout, wanted) = (Arc::clone(&self.layout), correlation.to_owned());
        let read = move || layout.without(format, bytes, wanted.as_bytes());
        let Some(left) = tokio::task::spawn_blocking(read).await? else { return Ok(0) };
        for side in left.sides {
            delete(target, &at(target, &side), timeout).await?;
        }
        let Some(bytes) = left.bytes else {
            delete(target, path, timeout).await?;
            return Ok(left.records);
        };
        let options = |mode| PutOptions { mode, ..PutOptions::default() };
        let payload = Bytes::from(bytes);
        let put = target.store.put_opts(path, payload.clone().into(), options(PutMode::Update(version)));
        match within(timeout, put).await {
            // Folders, and some servers, cannot tell whether it is still the same.
            Err(UploadError::Blob(
                object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. },
            )) => {
                within(timeout, target.store.put(path, payload.into())).await?;
            }
            other => {
                other?;
            }
        }
        Ok(left.records)
    }

    /// Deletes what is of days that are too long ago; how many objects.
    pub(crate) async fn expire(&self, target: &Target, timeout: Duration) -> Result<u64, EraseError> {
        let Some(keep) = self.retention_days else { return Ok(0) };
        let today = micros(SystemTime::now()) / 86_400_000_000;
        let mut count = 0;
        for object in self.objects(target).await? {
            let below =
                object.location.as_ref().strip_prefix(target.at.as_ref()).unwrap_or(object.location.as_ref());
            let old =
                last_day(below.trim_start_matches('/')).is_some_and(|day| day + u64::from(keep) < today);
            if old && !self.is_in_log(target, &object.location) {
                delete(target, &object.location, timeout)
                    .await
                    .map_err(|error| self.blob_error(&object.location, error))?;
                count += 1;
            }
        }
        Ok(count)
    }
}

/// How an object is written, by its name: a collection may have had another format before.
fn format_of(path: &ObjectPath) -> Option<Format> {
    let (_, extension) = path.as_ref().rsplit_once('.')?;
    [Format::Events, Format::Csv, Format::Parquet].into_iter().find(|format| format.extension() == extension)
}

/// The last day, since 1970, that the folders of a path have: `…/2026/11/30/08/…`, `…/2026/11/…`, `…/2026/…`.
///
/// Folders of dates are the last ones, so they are looked for from the end.
fn last_day(path: &str) -> Option<u64> {
    let folders: Vec<&str> = path.split('/').collect();
    let (_, folders) = folders.split_last()?;
    let number = |text: &&str, digits: usize| {
        (text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| text.parse::<u64>().ok())
            .flatten()
    };
    let first = folders.len().saturating_sub(5);
    let at = (first..folders.len()).find(|at| {
        let rest = folders.get(at + 1..).unwrap_or_default();
        folders.get(*at).is_some_and(|year| number(year, 4).is_some_and(|year| (1970..=9999).contains(&year)))
            && rest.iter().all(|part| number(part, 2).is_some())
    })?;
    let part = |nth: usize| folders.get(at + nth);
    let year = number(part(0)?, 4)?;
    let Some(month) = part(1).and_then(|month| number(month, 2)) else {
        return days(year, 12, 31);
    };
    let Some(day) = part(2).and_then(|day| number(day, 2)) else {
        return (28..=31).rev().find_map(|last| days(year, month, last));
    };
    days(year, month, day)
}

/// An object without some records.
pub(crate) struct Left {
    /// Nothing where there are no others.
    bytes: Option<Vec<u8>>,
    records: u64,
    sides: BTreeSet<String>,
}

impl Layout {
    /// What is left of an object; nothing where no record is meant, or it is none that is written here.
    pub(crate) fn without(&self, format: Format, object: Bytes, wanted: &[u8]) -> Option<Left> {
        match format {
            Format::Events => self.events_without(&object, wanted),
            Format::Csv => rows_without(&object, wanted),
            Format::Parquet => self.columns_without(object, wanted),
        }
    }

    fn events_without(&self, object: &[u8], wanted: &[u8]) -> Option<Left> {
        #[derive(serde::Deserialize)]
        struct Line<'a> {
            #[serde(borrow)]
            correlationid: std::borrow::Cow<'a, str>,
            #[serde(default)]
            datainblob: bool,
            data: &'a serde_json::value::RawValue,
        }
        let mut left = Left { bytes: None, records: 0, sides: BTreeSet::new() };
        let mut bytes = Vec::with_capacity(object.len());
        for line in object.split_inclusive(|byte| *byte == b'\n') {
            let read = serde_json::from_slice::<Line<'_>>(line).ok();
            match read.filter(|read| is_meant(read.correlationid.as_bytes(), wanted)) {
                Some(read) => {
                    left.records += 1;
                    if read.datainblob {
                        let url = serde_json::from_str::<String>(read.data.get()).ok();
                        left.sides.extend(url.and_then(|url| self.side_of(&url)));
                    }
                }
                None => bytes.extend_from_slice(line),
            }
        }
        left.bytes = (!bytes.is_empty()).then_some(bytes);
        (left.records > 0).then_some(left)
    }

    fn columns_without(&self, object: Bytes, wanted: &[u8]) -> Option<Left> {
        let mut left = Left { bytes: None, records: 0, sides: BTreeSet::new() };
        let mut rows = parquet::read(object).ok()?;
        rows.retain(|row| {
            let meant = is_meant(row.correlation().as_bytes(), wanted);
            if meant {
                left.records += 1;
                left.sides.extend(row.side().and_then(|url| self.side_of(url)));
            }
            !meant
        });
        if left.records == 0 {
            return None;
        }
        if !rows.is_empty() {
            left.bytes = Some(parquet::write(&rows).ok()?);
        }
        Some(left)
    }

    /// The object of a URL that a line has, if it is one of this collection's.
    fn side_of(&self, url: &str) -> Option<String> {
        let path = url.strip_prefix(self.url())?.strip_prefix('/')?;
        path.starts_with(self.prefix()).then(|| path.to_owned())
    }
}

fn rows_without(object: &[u8], wanted: &[u8]) -> Option<Left> {
    let mut reader = ::csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(object);
    let mut rows = reader.records().map_while(Result::ok);
    let header = rows.next()?;
    let column = header.iter().position(|name| name == csv::CORRELATION)?;
    let mut left = Left { bytes: None, records: 0, sides: BTreeSet::new() };
    let cells = |row: &::csv::StringRecord| row.iter().map(str::to_owned).collect::<Vec<_>>();
    let (mut bytes, mut kept) = (Vec::with_capacity(object.len()), 0_u64);
    csv::write_row(&mut bytes, &cells(&header)).ok()?;
    for row in rows {
        if row.get(column).is_some_and(|found| is_meant(found.as_bytes(), wanted)) {
            left.records += 1;
        } else {
            csv::write_row(&mut bytes, &cells(&row)).ok()?;
            kept += 1;
        }
    }
    left.bytes = (kept > 0).then_some(bytes);
    (left.records > 0).then_some(left)
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

    #[test]
    fn the_age_of_an_object_is_that_of_its_folders() {
        let day = |path| last_day(path);
        assert_eq!(day("modelDataCollector/e/d/c/2026/11/30/08/i-1.jsonl"), days(2026, 11, 30));
        assert_eq!(day("modelDataCollector/e/d/c/2026/11/30/08/59/i-1.jsonl"), days(2026, 11, 30));
        assert_eq!(day("modelDataCollector/e/d/c/2026/11/i-1.jsonl"), days(2026, 11, 30));
        assert_eq!(day("modelDataCollector/e/d/c/2026/i-1.jsonl"), days(2026, 12, 31));
        assert_eq!(
            day("modeldata/s/g/w/service/model/1/inputs/2026/11/30/inputs-i-1.csv"),
            days(2026, 11, 30)
        );
        for none in
            ["i-1.jsonl", "a/b/c.jsonl", "2026/13/x.jsonl", "a/2026/11/30/08/59/59/i.jsonl", "2026/1/i.jsonl"]
        {
            assert_eq!(day(none), None, "{none}");
        }
    }
}
