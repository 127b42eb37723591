//! All files of a version of a model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use futures_util::stream::{self, TryStreamExt as _};

use super::watch::Again;
use super::{FetchError, Fetcher, Watch};
use crate::archive::ArchiveKind;
use crate::cache::{Member, UnpackError};
use crate::digest::Digest;
use crate::location::Location;
use crate::manifest::{Manifest, ManifestFile};
use crate::path::FilePath;

/// How often an archive is fetched that made way, in a cache that others use, before it could be unpacked.
const ARCHIVE_ATTEMPTS: usize = 3;
/// Files at once for each request at once: while some of them wait for the disk, others come.
const FILES_PER_CONNECTION: usize = 2;

/// The files that a model consists of once archives are unpacked, all of them in the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileSet {
    files: Vec<Member>,
}

impl FileSet {
    /// In the order of their paths.
    ///
    /// # Errors
    /// If two would lie in one place.
    pub fn new(mut files: Vec<Member>) -> Result<Self, FetchError> {
        files.sort_by(|left, right| left.path.cmp(&right.path));
        let paths: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
        let twice =
            files.windows(2).find(|pair| pair[0].path == pair[1].path).map(|pair| pair[0].path.as_str());
        let folder = files.iter().flat_map(|file| file.path.folders()).find(|folder| paths.contains(folder));
        match twice.or(folder) {
            Some(path) => Err(FetchError::Clash { path: path.to_owned() }),
            None => Ok(Self { files }),
        }
    }

    /// In the order of their paths.
    pub fn files(&self) -> &[Member] {
        &self.files
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.size))
    }
}

impl Fetcher {
    /// Has all files of a version in the cache: [`Fetcher::models`] of one.
    ///
    /// # Errors
    /// As there.
    pub async fn model(
        &self,
        from: &Location,
        manifest: &Manifest,
        watch: &dyn Watch,
    ) -> Result<FileSet, FetchError> {
        let mut sets = self.models(&[(from.clone(), manifest.clone())], watch).await?;
        Ok(sets.pop().unwrap_or_default())
    }

    /// Has all files of some versions in the cache, for all of which room is made before anything comes. Each is given with the folder that its
    /// manifest is in. Archives that are to be unpacked are, and are not fetched where what was in them is still here.
    ///
    /// # Errors
    /// Says why the first that fails cannot be had. What has come stays for the next attempt.
    pub async fn models(
        &self,
        models: &[(Location, Manifest)],
        watch: &dyn Watch,
    ) -> Result<Vec<FileSet>, FetchError> {
        let mut sets = vec![Vec::new(); models.len()];
        // Equal files are fetched once. By their numbers: of references it could not be told that all this may move between threads.
        let mut wanted: BTreeMap<Digest, Vec<(usize, usize)>> = BTreeMap::new();
        let file = |(model, file): (usize, usize)| &models[model].1.files()[file];
        let stays = Stays::default();
        for (model, (from, manifest)) in models.iter().enumerate() {
            for (number, file) in manifest.files().iter().enumerate() {
                match self.unpacked(file).await? {
                    Some(members) => {
                        watch.begun(file, file.size);
                        watch.ended(file);
                        stays.add(&members);
                        sets[model].extend(placed(file, members)?);
                    }
                    None => {
                        stays.want(from, file)?;
                        wanted.entry(file.sha256).or_default().push((model, number));
                    }
                }
            }
        }
        self.make_room(&stays).await?;
        let stays = &stays;
        let fetched: Result<Vec<_>, _> = stream::iter(wanted.into_values().map(Ok::<_, FetchError>))
            .map_ok(|equal| async move {
                let (model, first) = (equal[0].0, file(equal[0]));
                self.file(&models[model].0.file(&first.path), first, watch).await?;
                for equal in &equal[1..] {
                    watch.begun(file(*equal), file(*equal).size);
                    watch.ended(file(*equal));
                }
                let mut members = Vec::new();
                for equal in equal {
                    let from = &models[equal.0].0;
                    members.push((equal.0, self.opened(from, file(equal), stays, watch).await?));
                }
                Ok(members)
            })
            .try_buffer_unordered(self.options().connections.saturating_mul(FILES_PER_CONNECTION))
            .try_collect()
            .await;
        // What has come has, also where something else has not.
        self.cache().sync_behind();
        for (model, members) in fetched?.into_iter().flatten() {
            sets[model].extend(members);
        }
        sets.into_iter().map(FileSet::new).collect()
    }

    /// What is in an archive, if that is known and here.
    async fn unpacked(&self, file: &ManifestFile) -> Result<Option<Vec<Member>>, FetchError> {
        let digest = file.sha256;
        if file.unpack { self.blocking(move |cache| cache.unpacked(&digest)).await } else { Ok(None) }
    }

    /// Has what is missing fit into the cache.
    async fn make_room(&self, stays: &Stays) -> Result<(), FetchError> {
        let files = stays.files();
        let room = self.blocking(move |cache| cache.make_room_for(&files)).await?;
        if room.files > 0 {
            tracing::info!(files = room.files, bytes = room.bytes, "files in the cache made way");
        }
        Ok(())
    }

    /// What a file of a manifest comes to: itself, or what is in it.
    async fn opened(
        &self,
        from: &Location,
        file: &ManifestFile,
        stays: &Stays,
        watch: &dyn Watch,
    ) -> Result<Vec<Member>, FetchError> {
        let ManifestFile { path, size, sha256, unpack } = file.clone();
        let Some(kind) = ArchiveKind::of(path.as_str()).filter(|_| unpack) else {
            return Ok(vec![Member { path, size, sha256 }]);
        };
        let at = from.file(&path);
        for attempt in 1..=ARCHIVE_ATTEMPTS {
            // An equal one may have been unpacked just now.
            if let Some(members) = self.unpacked(file).await? {
                return placed(file, members);
            }
            let (limits, files) = (self.options().archives, stays.files());
            // How it ends is no failure of the cache's; that it is gone is none at all.
            let unpacked = self
                .blocking(move |cache| Ok::<_, std::io::Error>(cache.unpack(&sha256, kind, &limits, &files)));
            match unpacked.await? {
                Ok(members) => {
                    stays.add(&members);
                    return placed(file, members);
                }
                Err(UnpackError::Archive(source)) => {
                    return Err(FetchError::Archive { at: at.to_string(), source });
                }
                Err(UnpackError::Room(error)) => return Err(error.into()),
                Err(UnpackError::Gone) if attempt < ARCHIVE_ATTEMPTS => {
                    self.file(&at, file, &Again(watch)).await?;
                }
                Err(UnpackError::Gone) => {}
            }
        }
        Err(FetchError::Evicted { at: at.to_string() })
    }
}

/// What must not make way while a fetch is under way: all that it is to have in the end.
#[derive(Default)]
struct Stays(Mutex<BTreeMap<Digest, u64>>);

impl Stays {
    fn want(&self, from: &Location, file: &ManifestFile) -> Result<(), FetchError> {
        let ManifestFile { path, size, sha256, .. } = file;
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match files.insert(*sha256, *size) {
            Some(other) if other != *size => {
                let at = from.file(path).to_string();
                Err(FetchError::Sizes { at, sha256: *sha256, size: *size, other })
            }
            _ => Ok(()),
        }
    }

    fn add(&self, members: &[Member]) {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.extend(members.iter().map(|member| (member.sha256, member.size)));
    }

    fn files(&self) -> BTreeMap<Digest, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Members of an archive by where they lie in the model: where the archive would.
fn placed(archive: &ManifestFile, members: Vec<Member>) -> Result<Vec<Member>, FetchError> {
    let folder = archive.path.folders().last();
    let place = |member: Member| {
        let path =
            folder.map_or_else(|| member.path.to_string(), |folder| format!("{folder}/{}", member.path));
        // Longer than paths may be, if anything.
        let path = FilePath::new(path.clone()).map_err(|_| FetchError::Clash { path })?;
        Ok(Member { path, ..member })
    };
    members.into_iter().map(place).collect()
}
