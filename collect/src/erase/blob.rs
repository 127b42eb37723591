//! In blob storage: what is there is read, and written without the records that go.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStoreExt as _, PutMode, PutOptions, UpdateVersion};

use super::{Deleted, EraseError, LOOK, NAMED};
use crate::collections::Target;
use crate::settings::Format;
use crate::upload::{Source, UploadError, at, delete, within};

/// Largest object that is read to be written again, bytes. Those that are written here are smaller.
const MAX_OBJECT: u64 = 1 << 30;
/// How often an object is read again that somebody has written meanwhile.
const ATTEMPTS: usize = 5;
/// Objects that are looked at together.
const LISTED: usize = 1000;

/// Names of objects, so many at a time.
pub(super) type Listing = BoxStream<'static, object_store::Result<Vec<ObjectMeta>>>;

/// Why an object is not without what is to be gone.
enum Problem {
    Blob(UploadError),
    /// It has nothing that can be read.
    Unread(String),
}

impl<E: Into<UploadError>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self::Blob(error.into())
    }
}

impl Source {
    pub(super) fn blob_error(
        &self,
        object: &ObjectPath,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> EraseError {
        EraseError::Blob { object: object.to_string(), source: source.into() }
    }

    /// Waits until what was erased from the log is gone from the objects that are still in it, and until blob has said what it has of those that the disk
    /// may have lost something of.
    pub(crate) async fn rewritten(&self, longest: Duration) -> Result<(), EraseError> {
        let until = Instant::now() + longest;
        let waits = || {
            let table = self.table.lock();
            table.objects.values().any(|object| object.rewrite || object.damaged && object.is_behind())
        };
        while waits() {
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
        let (mut deleted, mut unread, mut more) = (Deleted::default(), Vec::new(), 0);
        let mut listing = self.list(target);
        while let Some(objects) = self.listed(target, &mut listing, timeout).await? {
            // What has left the log since it was listed is without them, too.
            let in_log = self.in_log(target);
            for path in objects.into_iter().map(|object| object.location) {
                if in_log.contains(&path) {
                    continue;
                }
                match self.delete_in_path(target, &path, correlation, timeout).await {
                    Ok(records) => {
                        deleted.records += records;
                        deleted.objects += u64::from(records > 0);
                    }
                    Err(Problem::Unread(why)) if unread.len() < NAMED => unread.push((path.to_string(), why)),
                    Err(Problem::Unread(_)) => more += 1,
                    Err(Problem::Blob(error)) => return Err(self.blob_error(&path, error)),
                }
            }
        }
        if unread.is_empty() {
            return Ok(deleted);
        }
        Err(EraseError::Unread { collection: self.collection.name().into(), objects: unread, more })
    }

    /// Waits until storage will not carry out any more what it was asked to write before, and had not answered, and deletes what came back by that.
    pub(crate) async fn delete_what_came_back(
        &self,
        target: &Target,
        correlation: &str,
        timeout: Duration,
    ) -> Result<Deleted, EraseError> {
        let given_up = {
            let mut table = self.table.lock();
            table.given_up.retain(|_, at| at.elapsed() < timeout);
            table.given_up.clone()
        };
        let mut deleted = Deleted::default();
        let Some(last) = given_up.values().max() else { return Ok(deleted) };
        tokio::time::sleep_until((*last + timeout).into()).await;
        for path in given_up.keys() {
            let again = {
                let mut table = self.table.lock();
                let object = table.objects.values_mut().find(|object| object.path == *path);
                // Of one that has nothing in blob nothing can come back that is not written over.
                object.map(|object| object.rewrite |= object.sent.records > 0).is_some()
            };
            let path = at(target, path);
            if again {
                continue;
            }
            match self.delete_in_path(target, &path, correlation, timeout).await {
                Ok(records) => {
                    deleted.records += records;
                    deleted.objects += u64::from(records > 0);
                }
                Err(Problem::Unread(why)) => {
                    let (collection, objects) =
                        (self.collection.name().into(), vec![(path.to_string(), why)]);
                    return Err(EraseError::Unread { collection, objects, more: 0 });
                }
                Err(Problem::Blob(error)) => return Err(self.blob_error(&path, error)),
            }
        }
        self.rewritten(timeout).await?;
        Ok(deleted)
    }

    /// All objects among which there may be this collection's.
    pub(super) fn list(&self, target: &Target) -> Listing {
        let prefix = at(target, self.layout.root());
        let listed = target.store.list(Some(&prefix)).try_chunks(LISTED);
        listed.map_err(|error| error.1).boxed()
    }

    /// The next ones.
    pub(super) async fn listed(
        &self,
        target: &Target,
        listing: &mut Listing,
        timeout: Duration,
    ) -> Result<Option<Vec<ObjectMeta>>, EraseError> {
        let next = within(timeout, listing.try_next()).await;
        next.map_err(|error| self.blob_error(&at(target, self.layout.root()), error))
    }

    /// Where the objects are that are written from the log.
    pub(super) fn in_log(&self, target: &Target) -> HashSet<ObjectPath> {
        let paths: Vec<_> =
            self.table.lock().objects.values().map(|object| Arc::clone(&object.path)).collect();
        paths.iter().map(|path| at(target, path)).collect()
    }

    /// Deletes the records that are meant in an object, which need not be there; how many.
    async fn delete_in_path(
        &self,
        target: &Target,
        path: &ObjectPath,
        correlation: &str,
        timeout: Duration,
    ) -> Result<u64, Problem> {
        let Some(format) = format_of(path) else { return Ok(0) };
        for attempt in 1.. {
            match self.delete_in_object(target, path, format, correlation, timeout).await {
                Err(Problem::Blob(UploadError::Blob(object_store::Error::NotFound { .. }))) => break,
                Err(Problem::Blob(UploadError::Blob(object_store::Error::Precondition { .. })))
                    if attempt < ATTEMPTS => {}
                done => return done,
            }
        }
        Ok(0)
    }

    async fn delete_in_object(
        &self,
        target: &Target,
        path: &ObjectPath,
        format: Format,
        correlation: &str,
        timeout: Duration,
    ) -> Result<u64, Problem> {
        let got = within(timeout, target.store.get(path)).await?;
        if got.meta.size > MAX_OBJECT {
            return Err(Problem::Unread(format!(
                "it has {} bytes, {MAX_OBJECT} are the most",
                got.meta.size
            )));
        }
        let version = UpdateVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
        let bytes = within(timeout, got.bytes()).await?;
        let (layout, wanted) = (Arc::clone(&self.layout), correlation.to_owned());
        let read = move || layout.without(format, bytes, wanted.as_bytes());
        let read = tokio::task::spawn_blocking(read).await?;
        let Some(left) = read.map_err(Problem::Unread)? else { return Ok(0) };
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
}

/// How an object is written, by its name: a collection may have had another format before.
fn format_of(path: &ObjectPath) -> Option<Format> {
    let (_, extension) = path.as_ref().rsplit_once('.')?;
    [Format::Events, Format::Csv, Format::Parquet].into_iter().find(|format| format.extension() == extension)
}
