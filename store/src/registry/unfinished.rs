//! Versions that somebody began to push and did not finish.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::ObjectStore as _;
use object_store::path::Path as ObjectPath;

use super::{Place, Registry};
use crate::fetch::FetchError;
use crate::id::ModelId;
use crate::location::Location;
use crate::manifest::{CLAIM, MANIFEST};

/// The claim of who clears up.
const REMOVING: &[u8] = b"{\"removing\": true}";

/// A version without a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Which.
    pub id: ModelId,
    /// What there is of it.
    pub objects: Vec<ObjectPath>,
    /// Bytes.
    pub size: u64,
    /// When something was last written, in seconds since 1970.
    pub written: i64,
}

impl Registry {
    /// Versions without a manifest to which nothing was written for so long. What is younger may be somebody's who is at it: a file is seen here only when
    /// all of it has been sent, so it should be longer than the largest takes.
    ///
    /// # Errors
    /// If the location cannot be listed.
    pub async fn unfinished(&self, age: Duration) -> Result<Vec<Unfinished>, FetchError> {
        let mut versions: BTreeMap<ModelId, (bool, Unfinished)> = BTreeMap::new();
        self.each(self.at(), None, |place, object| {
            let Place::Version(id, path) = place else { return };
            let empty = || Unfinished { id: id.clone(), objects: Vec::new(), size: 0, written: i64::MIN };
            let (complete, version) = versions.entry(id.clone()).or_insert_with(|| (false, empty()));
            *complete |= path == MANIFEST;
            version.objects.push(object.location.clone());
            version.size += object.size;
            version.written = version.written.max(object.last_modified.timestamp());
        })
        .await?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let before = i64::try_from(now.saturating_sub(age).as_secs()).unwrap_or(i64::MAX);
        let old = versions.into_values().filter(|(complete, version)| !complete && version.written <= before);
        Ok(old.map(|(_, version)| version).collect())
    }

    /// Removes what there is of a version that has no manifest. Whoever is at it all the same finds its claim gone, and fails.
    ///
    /// # Errors
    /// If something cannot be removed. What has a manifest by now is left alone.
    pub async fn remove_unfinished(&self, version: &Unfinished) -> Result<(), FetchError> {
        let at = self.folder(&version.id);
        let (manifest, claim) = (at.below(MANIFEST), at.below(CLAIM));
        if super::push::exists(&manifest).await? {
            return Ok(());
        }
        // As long as this is there nobody begins with the version, and who has begun does not finish.
        super::push::write(&claim, Bytes::from_static(REMOVING).into()).await?;
        if !super::push::exists(&manifest).await? {
            let files = version.objects.iter().filter(|object| *object != claim.at()).cloned();
            self.remove(files.collect(), &at).await?;
        }
        self.remove(vec![claim.at().clone()], &at).await
    }

    async fn remove(&self, objects: Vec<ObjectPath>, of: &Location) -> Result<(), FetchError> {
        let objects = stream::iter(objects).map(Ok).boxed();
        let removed = self.at().store().delete_stream(objects).try_for_each(|_| async { Ok(()) });
        removed.await.map_err(|error| FetchError::of(of, &error))
    }
}
