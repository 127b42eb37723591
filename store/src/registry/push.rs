//! A new version of a model: its files first, its manifest last.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::{
    ObjectStore as _, ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions, PutPayload,
};

use super::{LocalError, LocalFile, LocalModel, Place, Registry};
use crate::digest::{Digest, Hasher};
use crate::fetch::FetchError;
use crate::id::{MAX_VERSION, ModelId, ModelName};
use crate::location::{Location, LocationKind};
use crate::manifest::{CLAIM, MANIFEST, MAX_MANIFEST, Manifest, ManifestError, ManifestFile, SIGNATURE};
use crate::signature::SigningKey;

/// Files larger than this are sent in parts of this size, bytes. S3 takes 10,000 parts at most: see [`part_size`].
const PART: u64 = 8 << 20;
/// Most parts of a file.
const MAX_PARTS: u64 = 10_000;
/// Parts of a file that are under way at once; files are sent one after the other.
const PARTS_AT_ONCE: usize = 4;
/// Files that are sent at once, if they are small.
const FILES_AT_ONCE: usize = 8;
/// How often an object that must not be there is written, if no answer comes and it is not there.
const CREATE_ATTEMPTS: usize = 4;
/// Longest version, in digits: what a manifest may grow by once that is settled.
const MAX_DIGITS: u64 = 20;
/// How many versions are tried if others take them first.
const CLAIM_ATTEMPTS: u64 = 100;

/// What is pushed.
#[derive(Debug)]
pub struct Push {
    /// Under which name.
    pub name: ModelName,
    /// As which version.
    pub version: Version,
    /// What it is for.
    pub description: String,
    /// What else is said of it.
    pub tags: BTreeMap<String, String>,
    /// Its files.
    pub model: LocalModel,
    /// Whether archives are to be unpacked by whoever fetches it.
    pub unpack: bool,
    /// Who signs.
    pub key: Option<SigningKey>,
}

/// Which version a push makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One more than the latest.
    Next,
    /// This one, which must not be there.
    Exactly(u64),
}

/// Is told how a push goes on.
pub trait PushWatch: Send + Sync {
    /// Bytes of a file have been read for its digest.
    fn hashed(&self, _file: &LocalFile, _bytes: u64) {}
    /// The version is settled.
    fn claimed(&self, _id: &ModelId) {}
    /// Bytes of a file have been sent.
    fn sent(&self, _file: &LocalFile, _bytes: u64) {}
}

/// Nobody.
impl PushWatch for () {}

/// Why a push failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// The files.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// What the manifest would be.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The storage.
    #[error(transparent)]
    Storage(#[from] FetchError),
    /// The version is there.
    #[error("`{id}` is there already, and versions do not change")]
    Exists {
        /// Which.
        id: ModelId,
    },
    /// What had been pushed was removed as left behind, before it was complete.
    #[error("what was pushed of `{id}` was removed meanwhile, as if it had been left unfinished")]
    Removed {
        /// Which.
        id: ModelId,
    },
    /// There is no higher version.
    #[error("the versions of `{name}` are used up")]
    UsedUp {
        /// Of which model.
        name: ModelName,
    },
    /// Somebody is pushing that version, or was and gave up.
    #[error("somebody is pushing `{id}`, or has left it unfinished")]
    Claimed {
        /// Which.
        id: ModelId,
    },
}

impl Registry {
    /// Makes a new version. Until its manifest is written, which is done last, nobody sees it.
    ///
    /// # Errors
    /// Says what failed. What was written is left for [`Registry::remove_unfinished`].
    pub async fn push(&self, push: Push, watch: Arc<dyn PushWatch>) -> Result<Manifest, PushError> {
        if self.at().kind() == LocationKind::Http {
            return Err(FetchError::Web { at: self.at().to_string() }.into());
        }
        let described = described(&push, &watch).await?;
        let check = ModelId { name: push.name.clone(), version: 0 };
        // What is wrong with it is known before anything is sent.
        let draft = Manifest::new(check, push.description.clone(), push.tags.clone(), described.clone())?;
        let size = draft.to_bytes().len() as u64 + MAX_DIGITS;
        if size > MAX_MANIFEST {
            return Err(ManifestError::Large { size }.into());
        }
        let claim = claim_text()?;
        let id = self.claim(&push, &claim).await?;
        watch.claimed(&id);
        let folder = self.folder(&id);
        let manifest = Manifest::new(id, push.description, push.tags, described)?;
        let files = push.model.files.iter().zip(manifest.files());
        let (large, small): (Vec<_>, Vec<_>) = files.partition(|(local, _)| local.size > PART);
        for (local, file) in large {
            send_in_parts(&folder.file(&file.path), local, file, &watch).await?;
        }
        stream::iter(small.into_iter().map(Ok::<_, PushError>))
            .try_for_each_concurrent(FILES_AT_ONCE, |(local, file)| {
                let (folder, watch) = (&folder, &watch);
                async move { send_whole(&folder.file(&file.path), local, file, watch).await }
            })
            .await?;
        let bytes = manifest.to_bytes();
        if let Some(key) = push.key {
            write(&folder.below(SIGNATURE), key.sign(&bytes).into_bytes().into()).await?;
        }
        // Who took so long that it seemed to have given up finds that somebody has cleared up behind it.
        if content(&folder.below(CLAIM)).await?.as_deref() != Some(claim.as_bytes()) {
            return Err(PushError::Removed { id: manifest.id().clone() });
        }
        if !create(&folder.below(MANIFEST), bytes.into()).await? {
            return Err(PushError::Exists { id: manifest.id().clone() });
        }
        // The version is there, whatever becomes of this.
        if let Err(error) = folder.store().delete(folder.below(CLAIM).at()).await {
            tracing::debug!(error = %FetchError::of(folder.below(CLAIM), &error), "a claim stays");
        }
        self.add_to_index(manifest.id()).await;
        Ok(manifest)
    }

    /// Settles the version, of which nobody else can have been then: a manifest is written before the claim to its version goes.
    async fn claim(&self, push: &Push, claim: &str) -> Result<ModelId, PushError> {
        let name = &push.name;
        let first = match push.version {
            Version::Exactly(version) => version,
            Version::Next => self.latest_begun(name).await? + 1,
        };
        for version in first..first.saturating_add(CLAIM_ATTEMPTS) {
            if version > MAX_VERSION {
                return Err(PushError::UsedUp { name: name.clone() });
            }
            let id = ModelId { name: name.clone(), version };
            let folder = self.folder(&id);
            let (manifest, own) = (folder.below(MANIFEST), folder.below(CLAIM));
            let mut exists = exists(&manifest).await?;
            let mut claimed = false;
            if !exists {
                claimed = create(&own, claim.to_owned().into()).await?;
            }
            if claimed {
                exists = self::exists(&manifest).await?;
                if !exists {
                    return Ok(id);
                }
                own.store().delete(own.at()).await.map_err(|error| FetchError::of(&own, &error))?;
            }
            match push.version {
                Version::Exactly(_) if exists => return Err(PushError::Exists { id }),
                Version::Exactly(_) => return Err(PushError::Claimed { id }),
                Version::Next => {}
            }
        }
        Err(PushError::Claimed { id: ModelId { name: name.clone(), version: first } })
    }

    /// The highest version of which there is anything.
    async fn latest_begun(&self, name: &ModelName) -> Result<u64, FetchError> {
        let mut latest = 0;
        self.each(&self.at().below(name.as_str()), Some(name), |place, _| {
            if let Place::Version(id, _) = place {
                latest = latest.max(id.version);
            }
        })
        .await?;
        Ok(latest)
    }
}

/// What says that a version is ours, and nobody else's text.
fn claim_text() -> Result<String, LocalError> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce)
        .map_err(|error| LocalError::Io { path: "/dev/urandom".into(), source: io::Error::other(error) })?;
    Ok(serde_json::json!({ "push": Digest::of(&nonce) }).to_string())
}

/// What the manifest says of each file, in the files' order.
async fn described(push: &Push, watch: &Arc<dyn PushWatch>) -> Result<Vec<ManifestFile>, PushError> {
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    let files = push.model.files.iter().cloned().map(|file| {
        let watch = Arc::clone(watch);
        let unpack = push.unpack && crate::archive::ArchiveKind::of(file.path.as_str()).is_some();
        let from = file.from.clone();
        let described = move || file.described(unpack, |bytes| watch.hashed(&file, bytes));
        async move {
            let ended = |error| LocalError::Io { path: from, source: io::Error::other(error) };
            tokio::task::spawn_blocking(described).await.map_err(ended)?
        }
    });
    Ok(stream::iter(files).buffered(at_once).try_collect().await?)
}

/// A small file, by one request.
async fn send_whole(
    to: &Location,
    local: &LocalFile,
    file: &ManifestFile,
    watch: &Arc<dyn PushWatch>,
) -> Result<(), PushError> {
    let bytes = read(local, 0, file.size).await?;
    if Digest::of(&bytes) != file.sha256 {
        return Err(LocalError::Changed { path: local.from.clone() }.into());
    }
    write(to, bytes.into()).await?;
    watch.sent(local, file.size);
    Ok(())
}

/// A large file, in parts.
async fn send_in_parts(
    to: &Location,
    local: &LocalFile,
    file: &ManifestFile,
    watch: &Arc<dyn PushWatch>,
) -> Result<(), PushError> {
    let error = |error| FetchError::of(to, &error);
    let part = part_size(file.size);
    let mut upload =
        to.store().put_multipart_opts(to.at(), PutMultipartOptions::default()).await.map_err(error)?;
    let mut sending = stream::FuturesUnordered::new();
    let mut hasher = Hasher::default();
    let mut at = 0;
    let sent = async {
        while at < file.size || !sending.is_empty() {
            while at < file.size && sending.len() < PARTS_AT_ONCE {
                let length = part.min(file.size - at);
                let bytes = read(local, at, length).await?;
                hasher.update(&bytes);
                let sent = upload.put_part(bytes.into());
                sending.push(async move { sent.await.map(|()| length) });
                at += length;
            }
            if let Some(sent) = sending.next().await {
                watch.sent(local, sent.map_err(error)?);
            }
        }
        if hasher.finish() != file.sha256 {
            return Err(LocalError::Changed { path: local.from.clone() }.into());
        }
        Ok::<(), PushError>(())
    };
    let sent = sent.await;
    drop(sending);
    match sent {
        Ok(()) => upload.complete().await.map(drop).map_err(|failed| error(failed).into()),
        Err(failed) => {
            // What is left of it costs room in the storage.
            let _ = upload.abort().await;
            Err(failed)
        }
    }
}

/// How large parts are, so that there are not too many.
fn part_size(size: u64) -> u64 {
    PART.max(size.div_ceil(MAX_PARTS))
}

/// Bytes of a file.
async fn read(local: &LocalFile, at: u64, length: u64) -> Result<Bytes, PushError> {
    let from = local.from.clone();
    let read = move || {
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        File::open(&from)?.read_exact_at(&mut bytes, at)?;
        Ok(Bytes::from(bytes))
    };
    let ended = |error| io::Error::other(error);
    match tokio::task::spawn_blocking(read).await.map_err(ended).flatten() {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(LocalError::Changed { path: local.from.clone() }.into())
        }
        Err(source) => Err(LocalError::Io { path: local.from.clone(), source }.into()),
    }
}

/// Writes an object, whatever was there.
pub(super) async fn write(to: &Location, bytes: PutPayload) -> Result<(), FetchError> {
    to.store().put(to.at(), bytes).await.map(drop).map_err(|error| FetchError::of(to, &error))
}

/// Writes an object that must not be there; whether it could.
///
/// Where no answer came it may have been written all the same. So what is there is compared, and where there is nothing it is written once more.
async fn create(to: &Location, bytes: Bytes) -> Result<bool, FetchError> {
    let mut attempt = 1;
    loop {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let error = match to.store().put_opts(to.at(), bytes.clone().into(), options).await {
            Ok(_) => return Ok(true),
            Err(error) => error,
        };
        let taken = matches!(
            error,
            object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }
        );
        let error = FetchError::of(to, &error);
        if !taken && !error.may_pass() {
            return Err(error);
        }
        match content(to).await? {
            Some(found) => return Ok(found == bytes),
            None if attempt == CREATE_ATTEMPTS => return Err(error),
            None => attempt += 1,
        }
    }
}

/// What an object of ours has, if it is there.
async fn content(at: &Location) -> Result<Option<Vec<u8>>, FetchError> {
    match super::small(at, MAX_MANIFEST).await {
        Ok(found) => Ok(Some(found.bytes)),
        Err(FetchError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) async fn exists(at: &Location) -> Result<bool, FetchError> {
    match at.store().head(at.at()).await {
        Ok(_) => Ok(true),
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(FetchError::of(at, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_has_too_many_parts() {
        assert_eq!(part_size(1), PART);
        assert_eq!(part_size(PART * MAX_PARTS), PART);
        let size = 5_u64 << 40;
        assert!(size.div_ceil(part_size(size)) <= MAX_PARTS);
    }
}
