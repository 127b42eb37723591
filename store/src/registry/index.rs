//! Manifests and signatures of a registry in one object beside the models, so that a machine that has none of them asks once, and not once for each.
//!
//! ```text
//! outrigger-index.json    {"format": 1, "objects": [{"path": "digits/3/outrigger-manifest.json", "tag": "0x8DB…", "text": "…"}, …]}
//! ```
//!
//! They are copies and count for no more than that. One is of use only for an object that a listing shows in the very state that it was copied in; then it is
//! kept in the cache, and held against the same rules as what is kept there anyway ([`Registry::manifest_of`]). What is missing, outdated or
//! torn is asked for by itself. So nobody who writes it need be careful: of two who do at once one's additions may be lost. But who may write it may say what
//! each manifest is that nobody signs, as may who can write all of them; and caches that have believed it go on to, as versions do not change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};

use super::tagged::Tag;
use super::{Place, Registry, Small, Tagged, Tags, place, push, small};
use crate::cache::Cache;
use crate::digest::Digest;
use crate::fetch::FetchError;
use crate::id::ModelId;
use crate::location::{Location, LocationKind};
use crate::manifest::{MANIFEST, SIGNATURE};
use crate::signature::TrustedKey;

/// Its name, below the registry's own place.
pub const INDEX: &str = "outrigger-index.json";
/// What this code writes, and reads.
const FORMAT: u32 = 1;
/// Largest index, bytes: several thousand manifests. Reading one may take some ten times that of memory...
const MAX_INDEX: u64 = 8 << 20;
/// ...and largest object in it.
const MAX_TEXT: usize = 64 << 10;
/// What is written around the objects, at most.
const AROUND: u64 = 64;
/// The newest versions of each model that are in it, beside those with labels.
const VERSIONS: usize = 3;
/// From how many objects on that a cache has not the index is asked for.
const WORTH: usize = 16;
/// How long a start waits for it...
const WAIT: Duration = Duration::from_secs(5);
/// ...and a push, which is done but for that.
const WAIT_TO_ADD: Duration = Duration::from_secs(30);
/// Objects that are read at once to make one.
const AT_ONCE: usize = 64;

/// What there is of an index that was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Indexed {
    /// Versions whose manifests are in it...
    pub versions: usize,
    /// ...of so many models.
    pub models: usize,
    /// Manifests and signatures that are not in it: they, or all together, are too large, may not be read, or say nothing of their state.
    pub left_out: usize,
    /// Its bytes.
    pub bytes: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Index {
    format: u32,
    pub(super) objects: Vec<Entry>,
}

/// An object, and in which state it was.
#[derive(Serialize, Deserialize)]
pub(super) struct Entry {
    /// Below the registry's own place.
    path: String,
    tag: String,
    text: String,
}

impl Entry {
    /// Nothing of what is too large, is no text, or has no state that a listing shows.
    fn new(path: String, found: Small) -> Option<Self> {
        let text = String::from_utf8(found.bytes).ok().filter(|text| text.len() <= MAX_TEXT)?;
        Some(Self { path, tag: found.tag?.text().to_owned(), text })
    }

    #[cfg(fuzzing)]
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    fn is(&self, tag: &Tag) -> bool {
        tag.is(&self.tag, self.text.len() as u64)
    }

    fn id(&self) -> Option<ModelId> {
        match place(&self.path, None)? {
            Place::Version(id, _) => Some(id),
            Place::Label(..) => None,
        }
    }
}

/// An object that a listing has shown.
struct Shown {
    path: String,
    at: Location,
    tag: Tag,
}

impl Registry {
    /// Has the cache keep, for [`Registry::manifest_of`], manifests of these versions, and their signatures where somebody is trusted, as far as a listing has
    /// shown their states and the registry's index has them. Where only few are missing in the cache, nothing is asked for. Gives how many are
    /// missing still. That they cannot be had in this way is nobody's failure.
    pub async fn keep_indexed(
        &self,
        versions: &[(ModelId, Tags)],
        trusted: &[TrustedKey],
        cache: &Cache,
    ) -> usize {
        let shown = versions.iter().flat_map(|(id, tags)| self.shown(id, tags, !trusted.is_empty()));
        let (shown, kept): (Vec<_>, _) = (shown.collect(), cache.clone());
        let missing = move || -> Vec<(Digest, Shown)> {
            let named = shown.into_iter().map(|shown| (shown.tag.name(&shown.at), shown));
            named.filter(|(name, shown)| !kept.keeps(name, shown.tag.size())).collect()
        };
        let Ok(missing) = tokio::task::spawn_blocking(missing).await else { return versions.len() };
        let count = missing.len();
        if count < WORTH {
            return count;
        }
        let index = match tokio::time::timeout(WAIT, self.read_index()).await {
            Ok(Ok(Some(index))) => index,
            Ok(Ok(None)) => return count,
            Ok(Err(error)) => {
                tracing::debug!(%error, "the index of the registry is of no use; manifests are read one by one");
                return count;
            }
            Err(_) => {
                tracing::debug!("the index of the registry does not come; manifests are read one by one");
                return count;
            }
        };
        let cache = cache.clone();
        let keep = move || {
            let entries = by_path(index.objects);
            let has = |(name, shown): &&(Digest, Shown)| {
                let entry = entries.get(&shown.path).filter(|entry| entry.is(&shown.tag));
                entry.is_some_and(|entry| cache.keep(name, entry.text.as_bytes()).unwrap_or(false))
            };
            count - missing.iter().filter(has).count()
        };
        tokio::task::spawn_blocking(keep).await.unwrap_or(count)
    }

    /// Makes the index anew: of the newest versions of each model, and those with labels. Nothing where it would be of no use: manifests of a folder are read
    /// as quickly one by one.
    ///
    /// # Errors
    /// If the registry cannot be listed, read or written.
    pub async fn index(&self) -> Result<Option<Indexed>, FetchError> {
        if self.at().kind() == LocationKind::Folder {
            return Ok(None);
        }
        let listed = newest(self.listed(self.at(), None, true).await?);
        let shown: Vec<_> =
            listed.iter().flat_map(|found| self.shown(&found.listed.id, &found.tags, true)).collect();
        let count = shown.len();
        let copies = shown.into_iter().map(|shown| async move { copy(shown.path, &shown.at).await });
        let mut copies = stream::iter(copies).buffered(AT_ONCE);
        let (mut objects, mut bytes) = (Vec::new(), AROUND);
        while let Some(entry) = copies.try_next().await? {
            let size = entry.as_ref().map_or(0, bytes_of);
            if bytes + size > MAX_INDEX {
                break;
            }
            bytes += size;
            objects.extend(entry);
        }
        drop(copies);
        let manifests = objects.iter().filter(|entry| entry.path.ends_with(MANIFEST));
        let names: Vec<_> = manifests.filter_map(|entry| Some(entry.id()?.name)).collect();
        Ok(Some(Indexed {
            versions: names.len(),
            models: names.iter().collect::<BTreeSet<_>>().len(),
            left_out: count - objects.len(),
            bytes: self.write_index(objects).await?,
        }))
    }

    /// Adds a version to the index, if there is one, in place of what is too old of that model. That it cannot be is nobody's failure.
    pub(super) async fn add_to_index(&self, id: &ModelId) {
        let said = match tokio::time::timeout(WAIT_TO_ADD, self.try_to_add(id)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the storage took longer than {} s", WAIT_TO_ADD.as_secs()),
        };
        tracing::warn!(model = %id, error = said, "it is not in the index of the registry; `outrigger models index` makes that anew");
    }

    async fn try_to_add(&self, id: &ModelId) -> Result<(), FetchError> {
        let Some(index) = self.read_index().await? else { return Ok(()) };
        let versions = self.listed(&self.at().below(id.name.as_str()), Some(&id.name), true).await?;
        let newest = newest(versions);
        let newest: BTreeSet<_> = newest.into_iter().map(|found| found.listed.id).collect();
        let stays = |of: &ModelId| of.name != id.name || (of != id && newest.contains(of));
        let mut objects: Vec<_> =
            index.objects.into_iter().filter(|entry| entry.id().is_some_and(|of| stays(&of))).collect();
        if newest.contains(id) {
            for name in [MANIFEST, SIGNATURE] {
                objects.extend(copy(self.path(id, name), &self.folder(id).below(name)).await?);
            }
        }
        self.write_index(objects).await.map(drop)
    }

    /// Nothing if there is none, or nothing of use.
    async fn read_index(&self) -> Result<Option<Index>, FetchError> {
        let at = self.at().below(INDEX);
        let found = match small(&at, MAX_INDEX).await {
            Ok(found) => found.bytes,
            Err(FetchError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let parsed = tokio::task::spawn_blocking(move || serde_json::from_slice::<Index>(&found)).await;
        match parsed {
            Ok(Ok(index)) if index.format == FORMAT => Ok(Some(index)),
            _ => {
                tracing::debug!(%at, "what is there is no index of format {FORMAT}");
                Ok(None)
            }
        }
    }

    /// Gives its size, bytes.
    async fn write_index(&self, objects: Vec<Entry>) -> Result<u64, FetchError> {
        let at = self.at().below(INDEX);
        let failed = |said| FetchError::Storage { at: at.to_string(), said };
        let index = Index { format: FORMAT, objects };
        let written = tokio::task::spawn_blocking(move || serde_json::to_vec(&index)).await;
        let bytes =
            written.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
        let size = bytes.len() as u64;
        if size > MAX_INDEX {
            return Err(failed(format!("it would have {size} bytes, and may have {MAX_INDEX}")));
        }
        push::write(&at, bytes.into()).await?;
        Ok(size)
    }

    /// The objects of a version of which a listing has shown the state.
    fn shown(&self, id: &ModelId, tags: &Tags, signed: bool) -> impl Iterator<Item = Shown> {
        let signatures = tags.signatures.clone().filter(|_| signed);
        let all = [(MANIFEST, tags.manifest.clone()), (SIGNATURE, signatures)];
        let folder = self.folder(id);
        let shown = all
            .map(|(name, tag)| Some(Shown { path: self.path(id, name), at: folder.below(name), tag: tag? }));
        shown.into_iter().flatten()
    }

    fn path(&self, id: &ModelId, name: &str) -> String {
        format!("{}/{}/{name}", id.name, id.version)
    }
}

/// An object as it is now; nothing of one that is not there, may not be read, or is not for an index.
async fn copy(path: String, at: &Location) -> Result<Option<Entry>, FetchError> {
    match small(at, MAX_TEXT as u64).await {
        Ok(found) => Ok(Entry::new(path, found)),
        Err(error) if error.may_pass() => Err(error),
        Err(_) => Ok(None),
    }
}

/// How many bytes an entry takes.
fn bytes_of(entry: &Entry) -> u64 {
    serde_json::to_vec(entry).map_or(u64::MAX >> 1, |text| text.len() as u64 + 1)
}

fn by_path(entries: Vec<Entry>) -> HashMap<String, Entry> {
    entries.into_iter().map(|entry| (entry.path.clone(), entry)).collect()
}

/// The newest versions of each model, and those with labels, of all in the order of names and versions.
fn newest(listed: Vec<Tagged>) -> Vec<Tagged> {
    let mut newer: BTreeMap<_, usize> = BTreeMap::new();
    let mut newest: Vec<_> = listed
        .into_iter()
        .rev()
        .filter(|found| {
            let newer = newer.entry(found.listed.id.name.clone()).or_default();
            *newer += 1;
            *newer <= VERSIONS || !found.listed.labels.is_empty()
        })
        .collect();
    newest.reverse();
    newest
}
