//! How much the cache holds, and who makes way.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};

use super::partial::{is_still, open_existing, try_lock};
use super::{Cache, Found, inode, remove_ours};
use crate::digest::Digest;

/// What the cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Complete files, bytes...
    pub bytes: u64,
    /// ...and how many.
    pub files: usize,
    /// Those of them that replicas have links to: they stay.
    pub linked: u64,
    /// What has come of files that are not complete, bytes.
    pub partial: u64,
}

/// What was done to make room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Files that made way...
    pub files: usize,
    /// ...and their bytes.
    pub bytes: u64,
    /// What is held now.
    pub left: Usage,
}

/// Why there is no room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RoomError {
    /// Too much of what is there is in use.
    #[error(
        "the cache `{}` cannot take {wanted} bytes more: {linked} of the {limit} that it may hold are in use, by trees of replicas and pulled folders that link to its files, or by what is being fetched; remove folders that are no longer needed, or raise store.cache_size",
        root.display()
    )]
    Full {
        /// Which.
        root: PathBuf,
        /// Bytes that were asked for.
        wanted: u64,
        /// Bytes that must stay.
        linked: u64,
        /// Its limit, bytes.
        limit: u64,
    },
    /// Those of the file system.
    #[error("the cache `{}`: {source}", root.display())]
    Io {
        /// Which.
        root: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What room is made for.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// Bytes that come beside those of `files`.
    pub(super) bytes: u64,
    /// Bytes that are on their way and have no name yet.
    pub(super) unnamed: u64,
    /// Files that are wanted, by the sizes that they are to have: what is here of them stays, and the rest comes.
    pub(super) files: BTreeMap<Digest, u64>,
}

/// What could make way.
struct Candidate {
    path: PathBuf,
    size: u64,
    used: SystemTime,
}

impl Cache {
    /// Has so many bytes more fit below the limit: leftovers that nobody is at go first, then complete files that nobody has links to, those first that
    /// were not used for longest. Without a limit nothing is done. Others may take the room meanwhile: the limit is held to within what all of them
    /// fetch at the time.
    ///
    /// # Errors
    /// [`RoomError::Full`] if that is not enough; then nothing has made way.
    pub fn make_room(&self, wanted: u64) -> Result<Room, RoomError> {
        self.room_for(&Wanted { bytes: wanted, ..Wanted::default() })
    }

    /// Has certain files fit, by their sizes: what is here of them, whole or in part, stays, and room is made for what is missing.
    ///
    /// # Errors
    /// As there.
    pub fn make_room_for(&self, files: &BTreeMap<Digest, u64>) -> Result<Room, RoomError> {
        self.room_for(&Wanted { files: files.clone(), ..Wanted::default() })
    }

    /// The same, with another limit than the cache's own, to which manifests that are kept beside its files are brought down as well.
    ///
    /// # Errors
    /// As there.
    pub fn make_room_within(&self, wanted: u64, limit: u64) -> Result<Room, RoomError> {
        let room = self.room_within(&Wanted { bytes: wanted, ..Wanted::default() }, limit)?;
        let io = |source| RoomError::Io { root: self.root().to_owned(), source };
        self.trim_kept(Some(limit)).map_err(io)?;
        Ok(room)
    }

    pub(super) fn room_for(&self, wanted: &Wanted) -> Result<Room, RoomError> {
        self.limit().map_or(Ok(Room::default()), |limit| self.room_within(wanted, limit))
    }

    fn room_within(&self, wanted: &Wanted, limit: u64) -> Result<Room, RoomError> {
        let io = |source| RoomError::Io { root: self.root().to_owned(), source };
        let _lock = self.lock().map_err(io)?;
        let found = self.found().map_err(io)?;
        let mut left = self.usage_of(&found).map_err(io)?;
        let (unlinked, missing) = self.standing(wanted, &found).map_err(io)?;
        let linked = left.linked.saturating_add(unlinked);
        if missing > limit.saturating_sub(linked) {
            return Err(RoomError::Full { root: self.root().to_owned(), wanted: missing, linked, limit });
        }
        let fits = |left: &Usage| left.bytes.saturating_add(left.partial).saturating_add(missing) <= limit;
        let mut room = Room::default();
        let stays = |path: &Path| digest_of(path).is_some_and(|digest| wanted.files.contains_key(&digest));
        if !fits(&left) {
            for leftover in self.leftovers().map_err(io)?.into_iter().filter(|found| !stays(&found.path)) {
                if fits(&left) {
                    break;
                }
                if let Some(size) = self.remove_leftover(&leftover).map_err(io)? {
                    left.partial = left.partial.saturating_sub(size);
                    room.files += 1;
                    room.bytes += size;
                }
            }
        }
        if !fits(&left) {
            let stays = |found: &Found| wanted.files.contains_key(&found.blob.digest);
            for unused in unused(found).into_iter().filter(|found| !stays(found)) {
                if fits(&left) {
                    break;
                }
                if self.remove_unused(&unused).map_err(io)? {
                    left.bytes = left.bytes.saturating_sub(unused.blob.size);
                    left.files = left.files.saturating_sub(1);
                    room.files += 1;
                    room.bytes += unused.blob.size;
                }
            }
            self.forget_records().map_err(io)?;
        }
        Ok(Room { left, ..room })
    }

    /// What has come of a file that is not complete, by the space that it takes, bytes.
    fn on_disk(&self, digest: &Digest) -> io::Result<u64> {
        match fs::symlink_metadata(self.data(digest)) {
            Ok(found) => Ok(held(&found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Bytes that nobody has links to and that stay all the same, for they are wanted; and those that have to come still.
    fn standing(&self, wanted: &Wanted, found: &[Found]) -> io::Result<(u64, u64)> {
        let here: BTreeMap<_, _> =
            found.iter().map(|found| ((found.blob.digest, found.blob.size), found)).collect();
        let (mut stays, mut missing) = (wanted.unnamed, wanted.bytes);
        for (digest, size) in &wanted.files {
            let (unlinked, comes) = match here.get(&(*digest, *size)) {
                Some(found) => (if found.blob.links > 0 { 0 } else { *size }, 0),
                None => {
                    let came = self.on_disk(digest)?.min(*size);
                    (came, size - came)
                }
            };
            stays = stays.saturating_add(unlinked);
            missing = missing.saturating_add(comes);
        }
        Ok((stays, missing))
    }

    /// Removes what processes that are no more were about to write and nobody can go on with. Files of which a part has come are kept.
    pub(super) fn sweep(&self) -> io::Result<()> {
        for leftover in self.leftovers()? {
            if leftover.path.extension().is_some_and(|extension| extension == "new") {
                self.remove_leftover(&leftover)?;
            }
        }
        Ok(())
    }

    /// What is held.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn usage(&self) -> io::Result<Usage> {
        self.usage_of(&self.found()?)
    }

    fn usage_of(&self, found: &[Found]) -> io::Result<Usage> {
        let mut usage = Usage::default();
        for Found { blob, .. } in found {
            usage.files += 1;
            usage.bytes = usage.bytes.saturating_add(blob.size);
            usage.linked = usage.linked.saturating_add(if blob.links > 0 { blob.size } else { 0 });
        }
        usage.partial = self.leftovers()?.iter().fold(0, |sum, leftover| sum.saturating_add(leftover.size));
        Ok(usage)
    }

    /// One at a time makes room.
    fn lock(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let path = self.root().join("lock");
        let lock = match options.open(&path) {
            // Another user's, which may be locked all the same.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => File::open(&path)?,
            opened => opened?,
        };
        flock(&lock, FlockOperation::LockExclusive)?;
        Ok(lock)
    }

    /// Files that are not complete, by the space that they take, those first that were not written to for longest. Somebody may be at them.
    fn leftovers(&self) -> io::Result<Vec<Candidate>> {
        let mut leftovers = Vec::new();
        for entry in fs::read_dir(self.root().join("partial"))? {
            let entry = entry?;
            // Whoever else is at work here may just have removed it; and what is no file is none of ours.
            let Some(found) = entry.metadata().ok().filter(fs::Metadata::is_file) else { continue };
            let used = found.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            leftovers.push(Candidate { path: entry.path(), size: held(&found), used });
        }
        leftovers.sort_by_key(|candidate| candidate.used);
        Ok(leftovers)
    }

    /// Removes a complete file, if it is ours to remove; says whether it is gone. It may have got to where it stays.
    fn remove_unused(&self, unused: &Found) -> io::Result<bool> {
        let mut gone = true;
        for path in unused.paths.iter().chain([&self.blob(&unused.blob.digest)]) {
            if fs::symlink_metadata(path).is_ok_and(|found| inode(&found) == unused.inode) {
                gone &= remove_ours(path)?;
            }
        }
        Ok(gone)
    }

    /// Removes a leftover unless somebody is at it, or it is another user's, and says how much space that frees, bytes.
    fn remove_leftover(&self, leftover: &Candidate) -> io::Result<Option<u64>> {
        let path = &leftover.path;
        let file = match open_existing(path) {
            Ok(file) => file,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if !try_lock(&file)? || !is_still(&file, path)? {
            return Ok(None);
        }
        let size = held(&file.metadata()?);
        Ok(remove_ours(path)?.then_some(size))
    }
}

/// Complete files without links, those first that were not used for longest.
fn unused(found: Vec<Found>) -> Vec<Found> {
    let mut unused: Vec<_> = found.into_iter().filter(|found| found.blob.links == 0).collect();
    unused.sort_by_key(|found| found.blob.used);
    unused
}

/// The space that a file takes, bytes: of one that comes in pieces, those that have not come are holes.
fn held(found: &fs::Metadata) -> u64 {
    found.blocks().saturating_mul(512)
}

/// Which file it is that has, or is to have, this name.
fn digest_of(path: &Path) -> Option<Digest> {
    path.file_stem()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Begun, Partial, touch};
    use super::*;

    fn take(cache: &Cache, bytes: &[u8], age: u64) -> Digest {
        let digest = cache.take_in(&mut &*bytes, u64::MAX).expect("it is taken").0;
        let file = cache.read(&digest).expect("it is there");
        let used = SystemTime::now() - Duration::from_secs(age);
        file.set_times(fs::FileTimes::new().set_accessed(used)).expect("ours");
        digest
    }

    fn is_there(cache: &Cache, digest: &Digest) -> bool {
        cache.path(digest).is_ok()
    }

    #[test]
    fn who_was_not_used_for_longest_makes_way_unless_somebody_has_a_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path().join("cache"), Some(100)).expect("a cache");
        let linked = take(&cache, &[1; 40], 500);
        let old = take(&cache, &[2; 20], 400);
        let touched = take(&cache, &[3; 20], 300);
        let young = take(&cache, &[4; 20], 200);
        cache.place(&linked, &folder.path().join("tree")).expect("placed");
        touch(&cache.path(&touched).expect("it is there"));
        assert_eq!(cache.make_room(0).expect("room").files, 0);
        let room = cache.make_room(10).expect("room");
        assert_eq!((room.files, room.bytes, room.left.bytes, room.left.linked), (1, 20, 80, 40));
        assert!(!is_there(&cache, &old) && is_there(&cache, &touched));
        cache.make_room(30).expect("room");
        assert!(!is_there(&cache, &young) && is_there(&cache, &touched));
        let error = cache.make_room(61).expect_err("no room");
        assert!(error.to_string().contains("cannot take 61 bytes more: 40 of the 100"), "{error}");
        assert!(is_there(&cache, &touched), "nothing makes way in vain");
        fs::remove_file(folder.path().join("tree")).expect("ours");
        cache.make_room(100).expect("room");
        assert_eq!(cache.usage().expect("usage"), Usage::default());
    }

    fn begin(cache: &Cache, bytes: &[u8]) -> Partial {
        match cache.begin(&Digest::of(bytes), bytes.len() as u64, 100_000).expect("begun") {
            Begun::Ours(partial) => partial,
            other => panic!("{other:?}"),
        }
    }

    fn names(cache: &Cache) -> Vec<String> {
        let entries = fs::read_dir(cache.root().join("partial")).expect("a folder");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        names.into_iter().map(|name| name.into_string().expect("ours")).collect()
    }

    #[test]
    fn what_is_wanted_and_here_does_not_make_way_for_the_rest() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path().join("cache"), Some(100)).expect("a cache");
        let wanted = take(&cache, &[1; 60], 500);
        let other = take(&cache, &[2; 30], 100);
        let rest = |size| BTreeMap::from([(wanted, 60), (Digest::of(b"rest"), size)]);
        let room = cache.make_room_for(&rest(40)).expect("room");
        assert_eq!((room.files, room.bytes), (1, 30));
        assert!(is_there(&cache, &wanted) && !is_there(&cache, &other));
        let error = cache.make_room_for(&rest(41)).expect_err("no room").to_string();
        assert!(error.contains("cannot take 41 bytes more: 60 of the 100"), "{error}");
        // Linked, it counts once.
        cache.place(&wanted, &folder.path().join("tree")).expect("placed");
        cache.make_room_for(&rest(40)).expect("room");
        let error = cache.make_room_for(&rest(41)).expect_err("no room").to_string();
        assert!(error.contains("60 of the 100"), "{error}");
        let error = cache.make_room_for(&rest(u64::MAX)).expect_err("no room").to_string();
        assert!(error.contains("cannot take 18446744073709551615 bytes more"), "{error}");
    }

    #[test]
    fn a_file_that_is_gone_on_with_stays_and_counts_for_what_is_missing() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path().join("cache"), Some(1_000_000)).expect("a cache");
        let (bytes, other) = (vec![1; 800_000], vec![2; 300_000]);
        let partial = begin(&cache, &bytes);
        let writer = partial.writer();
        (0..6).for_each(|piece| writer.write(piece * 100_000, &bytes[..100_000]).expect("written"));
        drop((partial, writer));
        let older = take(&cache, &other, 500);
        let wanted = BTreeMap::from([(Digest::of(&bytes), 800_000)]);
        // 600 000 have come and 200 000 are missing; what is beside them goes.
        let room = cache.make_room_for(&wanted).expect("room");
        assert_eq!(room.files, 1);
        assert!(!is_there(&cache, &older));
        assert_eq!(names(&cache).len(), 1);
        let more = BTreeMap::from([(Digest::of(&bytes), 800_000), (Digest::of(&other), 300_000)]);
        let error = cache.make_room_for(&more).expect_err("no room").to_string();
        assert!(error.contains(" of the 1000000 that it may hold are in use"), "{error}");
        assert_eq!(names(&cache).len(), 1, "nothing makes way in vain");
    }

    #[test]
    fn leftovers_go_first_unless_somebody_is_at_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path(), Some(1 << 20)).expect("a cache");
        let begin = |byte| match cache.begin(&Digest::of(&[byte]), 400_000, 100_000).expect("begun") {
            Begun::Ours(partial) => partial,
            other => panic!("{other:?}"),
        };
        let (held, left) = (begin(1), begin(2));
        for partial in [&held, &left] {
            let writer = partial.writer();
            (0..4).for_each(|piece| writer.write(piece * 100_000, &[7; 100_000]).expect("written"));
        }
        drop(left);
        let kept = take(&cache, &[3; 20], 500);
        assert!(cache.make_room(500_000).expect("room").files >= 1);
        let names = fs::read_dir(folder.path().join("partial")).expect("a folder");
        let names: Vec<_> = names.map(|entry| entry.expect("an entry").file_name().into_string()).collect();
        let held_name = Digest::of(&[1]).to_string();
        assert!(
            names.len() == 1 && names.iter().flatten().all(|name| name.starts_with(&held_name)),
            "{names:?}"
        );
        assert!(is_there(&cache, &kept));
        held.complete().expect("it is still ours");
    }
}
