//! What is in archives that have been unpacked: a record by the archive's digest, so that it is done once.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::room::{RoomError, Wanted};
use super::{Cache, READ_ONLY, remove, remove_ours};
use crate::archive::{self, ArchiveError, ArchiveKind, ArchiveLimits};
use crate::digest::Digest;
use crate::path::FilePath;

/// Largest record, bytes.
const MAX_RECORD: u64 = 32 << 20;
/// For how many bytes of members room is made at once, at most.
const STEP: u64 = 16 << 20;

/// A file that was in an archive, and is in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Where in the archive it was.
    pub path: FilePath,
    /// Bytes.
    pub size: u64,
    /// Its digest.
    pub sha256: Digest,
}

impl Cache {
    /// What is in an archive that has been unpacked here, if all of it is still here. What was unpacked within other limits counts as well: it has
    /// been looked at file by file, and takes room as any other.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn unpacked(&self, archive: &Digest) -> io::Result<Option<Vec<Member>>> {
        let bytes = match fs::metadata(self.record(archive)) {
            Ok(found) if found.len() <= MAX_RECORD => match fs::read(self.record(archive)) {
                // Another user's.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
                read => read?,
            },
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // One that cannot be read is made again.
        let Ok(members) = serde_json::from_slice::<Vec<Member>>(&bytes) else { return Ok(None) };
        for member in &members {
            if !self.has(&member.sha256, member.size)? && !self.adopt(&member.sha256, member.size)? {
                return Ok(None);
            }
        }
        Ok(Some(members))
    }

    /// Unpacks an archive that is in the cache into the cache. Nothing of it has a name on disk but its digest. Room is made as members come, for nobody
    /// knows before how many bytes they are; `wanted` is what must not make way for them, beside the archive and its members.
    ///
    /// # Errors
    /// What is wrong with the archive, that there is no room, and those of the file system; nothing of the archive counts then.
    pub fn unpack(
        &self,
        archive: &Digest,
        kind: ArchiveKind,
        limits: &ArchiveLimits,
        wanted: &BTreeMap<Digest, u64>,
    ) -> Result<Vec<Member>, UnpackError> {
        let io = |source| ArchiveError::Io { source };
        let file = match self.read(archive) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(UnpackError::Gone),
            opened => opened.map_err(io)?,
        };
        let mut room = Reserve::new(self, wanted.clone());
        room.wanted.files.insert(*archive, file.metadata().map_err(io)?.len());
        let mut members = Vec::new();
        let unpacked = archive::unpack(kind, &file, limits, &mut |path, reader| {
            let (sha256, size) = self.take_in(&mut Metered { reader, room: &mut room }, u64::MAX)?;
            room.wanted.unnamed = 0;
            room.wanted.files.insert(sha256, size);
            members.push(Member { path: path.clone(), size, sha256 });
            Ok(())
        });
        match (unpacked, room.failed) {
            (Err(_), Some(failed)) => Err(UnpackError::Room(failed)),
            (Err(error), None) => Err(error.into()),
            (Ok(_), _) => {
                self.note(archive, &members).map_err(io)?;
                Ok(members)
            }
        }
    }

    /// Writes a record, all at once, not waiting for the disk: what is torn cannot be read. One that would be too large to be read is none: the archive is unpacked again.
    fn note(&self, archive: &Digest, members: &[Member]) -> io::Result<()> {
        let bytes = serde_json::to_vec(members)?;
        if bytes.len() as u64 > MAX_RECORD {
            return Ok(());
        }
        let (mut file, path) = self.unfinished()?;
        let written = file
            .write_all(&bytes)
            .and_then(|()| file.set_permissions(fs::Permissions::from_mode(READ_ONLY)))
            .and_then(|()| fs::rename(&path, self.record(archive)));
        remove(&path)?;
        written
    }

    /// Removes records of archives of which a member is no longer here: they are of no use.
    pub(super) fn forget_records(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.root().join("unpacked"))? {
            let path = entry?.path();
            let is_whole =
                |members: Vec<Member>| members.iter().all(|member| self.lies(&member.sha256).is_ok());
            let members = match fs::read(&path) {
                Ok(bytes) => serde_json::from_slice::<Vec<Member>>(&bytes),
                // Another user's, or just gone.
                Err(_) => continue,
            };
            if !members.is_ok_and(is_whole) {
                remove_ours(&path)?;
            }
        }
        Ok(())
    }

    fn record(&self, archive: &Digest) -> PathBuf {
        self.root().join("unpacked").join(format!("{archive}.json"))
    }
}

/// Why an archive is not unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// It is not in the cache, or no longer.
    #[error("the archive is no longer in the cache")]
    Gone,
    /// What is wrong with it, or with the file system.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The cache cannot hold what is in it.
    #[error(transparent)]
    Room(RoomError),
}

/// Room in a cache for bytes of which nobody knows how many come: made in steps, before they are written.
struct Reserve<'a> {
    cache: &'a Cache,
    wanted: Wanted,
    /// Bytes for which room has been made, and that have not come.
    left: u64,
    failed: Option<RoomError>,
}

impl<'a> Reserve<'a> {
    fn new(cache: &'a Cache, files: BTreeMap<Digest, u64>) -> Self {
        Self { cache, wanted: Wanted { files, ..Wanted::default() }, left: 0, failed: None }
    }

    /// Has so many bytes fit, and some more, so that not each of them needs a look at the cache.
    fn take(&mut self, bytes: u64) -> Result<(), RoomError> {
        let Some(limit) = self.cache.limit() else { return Ok(()) };
        if self.left < bytes {
            let step = bytes.max((limit / 16).min(STEP));
            self.left = match self.room(step) {
                Ok(()) => step,
                // What is left of the limit is less than a step.
                Err(_) => self.room(bytes).map(|()| bytes)?,
            };
        }
        self.left -= bytes;
        self.wanted.unnamed = self.wanted.unnamed.saturating_add(bytes);
        Ok(())
    }

    fn room(&mut self, bytes: u64) -> Result<(), RoomError> {
        self.wanted.bytes = bytes;
        self.cache.room_for(&self.wanted).map(|_| ())
    }
}

/// A reader for whose bytes there is room.
struct Metered<'a, 'b> {
    reader: &'a mut dyn io::Read,
    room: &'a mut Reserve<'b>,
}

impl io::Read for Metered<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(into)?;
        if let Err(error) = self.room.take(read as u64) {
            let shown = error.to_string();
            self.room.failed = Some(error);
            return Err(io::Error::new(io::ErrorKind::StorageFull, shown));
        }
        Ok(read)
    }
}
