//! The cache on disk: files by their digests, shared by all models and by all replicas on the host.
//!
//! ```text
//! blobs/sha256/ab/ab12…   complete files, held against their digests, read-only; hard links to them are what models are made of
//! unsynced/BOOT/ab12…     the same, before they are known to be on the disk
//! partial/ab12….data      what has come of a file, and behind that which pieces have; whoever fetches it holds a lock on it
//! unpacked/ab12….json     what is in an archive, by its digest: paths and the digests of the files
//! manifests/ab12…         manifests and signatures as they were read, by the digest of where and in which state; beside the limit, by limits of their own
//! lock                    held while room is made
//! ```
//!
//! A process, or the machine, may end at any moment, and others may be at work in the same folder, other users too where they may. A complete file has its
//! name by a rename or a link after all else is done; locks are the kernel's and end with their process. What is none of ours in a folder is passed over.

mod kept;
mod partial;
mod room;
mod unpacked;
mod unsynced;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

pub use partial::{Begun, Partial, Writer};
pub use room::{Room, RoomError, Usage};
pub use unpacked::{Member, UnpackError};

use crate::digest::{Digest, Hasher};

/// Who may do what with complete files.
const READ_ONLY: u32 = 0o444;
/// What is read at a time where a file is looked at.
const PIECE: usize = 1 << 20;
/// How often a file is opened anew that others remove between its opening and its locking.
const ROUNDS: usize = 100;

/// The cache. What it does with files blocks: async code calls it on threads that may.
#[derive(Clone, Debug)]
pub struct Cache {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    limit: Option<u64>,
    /// What is kept of manifests, once that has been looked at.
    kept: Mutex<Option<kept::Kept>>,
    unsynced: unsynced::Unsynced,
}

/// How a file of the cache came to lie elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// As another name of the same bytes.
    Linked,
    /// As a copy: on another file system, or where links are not permitted.
    Copied,
}

impl Cache {
    /// The cache in a folder, which is made if it is not there. Beyond `limit` bytes, what is not in use and has not been for longest makes way.
    ///
    /// # Errors
    /// If it cannot be made, or nothing can be written there.
    pub fn open(root: impl Into<PathBuf>, limit: Option<u64>) -> io::Result<Self> {
        let root = root.into();
        for folder in ["blobs/sha256", "partial", "unpacked", kept::FOLDER] {
            fs::create_dir_all(root.join(folder))?;
        }
        let root = root.canonicalize()?;
        // Where it cannot be made, files are on the disk first.
        let _ = unsynced::make_parent(&root.join(unsynced::FOLDER).join("boot"));
        let unsynced = unsynced::Unsynced::open(&root)?;
        let cache = Self { inner: Arc::new(Inner { root, limit, kept: Mutex::default(), unsynced }) };
        cache.sweep()?;
        Ok(cache)
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Most bytes that it is to hold.
    pub fn limit(&self) -> Option<u64> {
        self.inner.limit
    }

    /// Where a complete file lies once it is known to be on the disk.
    fn blob(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.inner.root.join("blobs/sha256").join(&name[..2]).join(name)
    }

    /// Does something with a complete file where it lies. It may get to its other place meanwhile, once: whoever looks there in between finds it.
    fn with<T>(&self, digest: &Digest, mut act: impl FnMut(&Path) -> io::Result<T>) -> io::Result<T> {
        let blob = self.blob(digest);
        let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match act(&blob) {
            Err(error) if missing(&error) => {}
            done => return done,
        }
        let there = match self.inner.unsynced.at(digest).map(|unsynced| act(&unsynced)) {
            Some(Ok(done)) => return Ok(done),
            Some(Err(error)) => error,
            None => io::ErrorKind::NotFound.into(),
        };
        match act(&blob) {
            Err(error) if missing(&error) => Err(there),
            done => done,
        }
    }

    /// Where a complete file lies now; it may make way, or get to another place, at any time.
    ///
    /// # Errors
    /// `NotFound` if it is not here.
    pub fn path(&self, digest: &Digest) -> io::Result<PathBuf> {
        self.with(digest, |path| fs::symlink_metadata(path).map(|_| path.to_owned()))
    }

    /// Whether a file is here; if so, it counts as used now. One of another size is not what is wanted. It stays: who states another size may be wrong.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn has(&self, digest: &Digest, size: u64) -> io::Result<bool> {
        let found = self.with(digest, |path| {
            let found = fs::symlink_metadata(path)?;
            if !found.is_file() || found.len() != size {
                return Err(io::ErrorKind::NotFound.into());
            }
            touch(path);
            Ok(())
        });
        match found {
            Err(error) if is_not_ours(&error) => Ok(false),
            found => found.map(|()| true),
        }
    }

    /// Opens a complete file, to be read.
    ///
    /// # Errors
    /// `NotFound` if it is not here; it may have made way at any time.
    pub fn read(&self, digest: &Digest) -> io::Result<File> {
        self.with(digest, |path| File::open(path))
    }

    /// Puts a complete file elsewhere, too: read-only, by a hard link where that can be. What is there already is replaced.
    ///
    /// # Errors
    /// `NotFound` if it is not here, or the folder is not there.
    pub fn place(&self, digest: &Digest, target: &Path) -> io::Result<Placed> {
        remove(target)?;
        self.with(digest, |blob| place(blob, target))
    }

    /// Takes a file in that is read from somewhere on this machine, and gives its digest and size. `at_most` bytes are read.
    ///
    /// # Errors
    /// Those of the file system, of the reader, and if there is more than that.
    pub fn take_in(&self, from: &mut dyn io::Read, at_most: u64) -> io::Result<(Digest, u64)> {
        let (mut file, path) = self.unfinished()?;
        let taken = copy_hashed(from, &mut file, at_most).and_then(|(digest, size)| {
            if !self.has(&digest, size)? {
                self.admit(&file, &path, &digest)?;
            }
            Ok((digest, size))
        });
        remove(&path)?;
        taken
    }

    /// A new file without a name that counts, locked, so that nobody takes it for a leftover while it is held.
    fn unfinished(&self) -> io::Result<(File, PathBuf)> {
        for _ in 0..ROUNDS {
            let path = self.inner.root.join("partial").join(format!("{}.new", unique()?));
            let file = partial::create(&path)?;
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
            // Whoever makes room may have been faster.
            if partial::is_still(&file, &path)? {
                return Ok((file, path));
            }
            remove(&path)?;
        }
        Err(always_removed())
    }

    /// Gives a file that has been held against its digest its name. That it is read-only comes last before: whoever goes on with it after this process
    /// has ended has to open it.
    fn admit(&self, file: &File, path: &Path, digest: &Digest) -> io::Result<()> {
        file.set_permissions(fs::Permissions::from_mode(READ_ONLY))?;
        self.name(file, path, digest)
    }

    /// Reads a complete file, and removes it if its bytes are not those of its name. `None` if it is not here.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn verify(&self, digest: &Digest) -> io::Result<Option<bool>> {
        let mut file = match self.read(digest) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(self.adopt_any(digest)),
            Err(error) => return Err(error),
        };
        let (found, _) = copy_hashed(&mut file, &mut io::sink(), u64::MAX)?;
        if found != *digest {
            self.remove(digest)?;
        }
        Ok(Some(found == *digest))
    }

    /// What is there of a file, believed to be complete or not, beside what is on its way.
    fn lies(&self, digest: &Digest) -> io::Result<fs::Metadata> {
        self.with(digest, |path| fs::symlink_metadata(path)).or_else(|error| {
            let earlier =
                self.inner.unsynced.earlier(digest).find_map(|path| fs::symlink_metadata(path).ok());
            earlier.ok_or(error)
        })
    }

    /// Has a complete file be here no longer.
    fn remove(&self, digest: &Digest) -> io::Result<()> {
        // In the order in which it may get from one place to the other.
        self.inner.unsynced.at(digest).map_or(Ok(()), |path| remove(&path))?;
        remove(&self.blob(digest))
    }

    /// Every complete file, in no order, with its size and how often it is linked beside its own name.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn blobs(&self) -> io::Result<Vec<Blob>> {
        Ok(self.found()?.into_iter().map(|found| found.blob).collect())
    }

    /// The same, with where they lie.
    fn found(&self) -> io::Result<Vec<Found>> {
        let mut found = BTreeMap::new();
        // First whence files get to where they stay. Whatever does so meanwhile is seen twice, and counts once.
        self.inner.unsynced.folders().try_for_each(|folder| find(folder, &mut found))?;
        for folder in fs::read_dir(self.inner.root.join("blobs/sha256"))? {
            find(&folder?.path(), &mut found)?;
        }
        Ok(found.into_values().collect())
    }
}

/// Which file of the machine's it is, whatever its names.
type Inode = (u64, u64);

fn inode(meta: &fs::Metadata) -> Inode {
    (meta.dev(), meta.ino())
}

/// A complete file, and its names here when it was looked at.
struct Found {
    paths: Vec<PathBuf>,
    inode: Inode,
    blob: Blob,
}

/// The complete files in a folder.
fn find(folder: &Path, found: &mut BTreeMap<Inode, Found>) -> io::Result<()> {
    // What somebody has put there that is no folder, or that we may not look into.
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let digest = entry.file_name().to_str().and_then(|name| name.parse().ok());
        // Whoever else is at work here may just have removed it.
        let (Some(digest), Ok(meta)) = (digest, entry.metadata()) else { continue };
        if !meta.is_file() {
            continue;
        }
        let used = meta.accessed().unwrap_or(SystemTime::UNIX_EPOCH);
        let blob = Blob { digest, size: meta.len(), links: 0, used };
        let inode = inode(&meta);
        let seen = found.entry(inode).or_insert_with(|| Found { paths: Vec::new(), inode, blob });
        seen.paths.push(entry.path());
        // On its way from one place to the other, or left there, it has two names that are ours.
        seen.blob.links = meta.nlink().saturating_sub(seen.paths.len() as u64);
    }
    Ok(())
}

/// Puts a file elsewhere, too, where nothing is.
fn place(blob: &Path, target: &Path) -> io::Result<Placed> {
    match fs::hard_link(blob, target) {
        Ok(()) => return Ok(Placed::Linked),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
        // Another file system; a file of somebody else's, which the kernel may not let be linked; as many links as can be.
        Err(_) => {}
    }
    let folder = target.parent().unwrap_or(Path::new("."));
    let unfinished = folder.join(format!(".{}.part", unique()?));
    let copied = fs::copy(blob, &unfinished)
        .and_then(|_| fs::set_permissions(&unfinished, fs::Permissions::from_mode(READ_ONLY)))
        .and_then(|()| fs::rename(&unfinished, target));
    if copied.is_err() {
        remove(&unfinished)?;
    }
    copied.map(|()| Placed::Copied)
}

/// A complete file.
#[derive(Clone, Copy, Debug)]
pub struct Blob {
    /// Its digest, and name.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Names that it has elsewhere: in trees of replicas.
    pub links: u64,
    /// When it was used last.
    pub used: SystemTime,
}

/// Copies what is read, which is `at_most` so many bytes, and gives its digest and size.
fn copy_hashed(from: &mut dyn io::Read, to: &mut dyn io::Write, at_most: u64) -> io::Result<(Digest, u64)> {
    let mut hasher = Hasher::default();
    let mut size = 0_u64;
    let mut piece = vec![0; PIECE];
    loop {
        let read = match from.read(&mut piece) {
            Ok(0) => return Ok((hasher.finish(), size)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        size += read as u64;
        if size > at_most {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {at_most} bytes")));
        }
        hasher.update(&piece[..read]);
        to.write_all(&piece[..read])?;
    }
}

/// Notes that a file is used now, by the time of its last access, which is ours to set where it is our file. What it cannot be set for makes way sooner.
fn touch(path: &Path) {
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let kept = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let times = rustix::fs::Timestamps { last_access: now, last_modification: kept };
    let _ = rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
}

/// Whether something is not there, or another user's, who does not let us look.
fn is_not_ours(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a file, if it is there and ours to remove; says whether it is gone.
fn remove_ours(path: &Path) -> io::Result<bool> {
    match remove(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        removed => removed.map(|()| true),
    }
}

/// Somebody removes what is made here as soon as it is made.
fn always_removed() -> io::Error {
    io::Error::other(format!("a file in `partial` was removed {ROUNDS} times before it could be locked"))
}

/// A name that nobody else has.
fn unique() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes something else into a complete file, as a disk may.
#[cfg(test)]
fn damage(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("ours");
    fs::write(path, bytes).expect("ours");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path().join("cache"), None).expect("a cache");
        (folder, cache)
    }

    fn take(cache: &Cache, bytes: &[u8]) -> Digest {
        cache.take_in(&mut &*bytes, u64::MAX).expect("it is taken").0
    }

    #[test]
    fn equal_files_are_stored_once_and_read_only() {
        let (folder, cache) = cache();
        let digest = take(&cache, b"weights");
        assert_eq!(take(&cache, b"weights"), digest);
        assert!(cache.has(&digest, 7).expect("the cache"));
        let [blob] = cache.blobs().expect("blobs")[..] else { panic!("not one") };
        assert_eq!((blob.digest, blob.size, blob.links), (digest, 7, 0));
        let target = folder.path().join("model.bin");
        assert_eq!(cache.place(&digest, &target).expect("placed"), Placed::Linked);
        let placed = fs::metadata(&target).expect("it is there");
        assert_eq!((placed.mode() & 0o777, placed.nlink()), (0o444, 2));
        assert_eq!(cache.blobs().expect("blobs")[0].links, 1);
        assert_eq!(cache.place(&digest, &target).expect("again"), Placed::Linked);
        assert_eq!(fs::read_dir(cache.root().join("partial")).expect("a folder").count(), 0);
    }

    #[test]
    fn another_file_system_gets_a_copy() {
        let elsewhere = tempfile::tempdir_in("/dev/shm").expect("memory is a file system of its own");
        let (_folder, cache) = cache();
        let digest = take(&cache, b"weights");
        let target = elsewhere.path().join("model.bin");
        fs::write(&target, b"what was there").expect("a file");
        assert_eq!(cache.place(&digest, &target).expect("placed"), Placed::Copied);
        assert_eq!(fs::read(&target).expect("it is there"), b"weights");
        assert_eq!(fs::metadata(&target).expect("it is there").mode() & 0o777, 0o444);
        assert_eq!(fs::read_dir(elsewhere.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn what_is_not_what_its_name_says_is_found_and_goes() {
        let (folder, cache) = cache();
        let digest = take(&cache, b"weights");
        assert_eq!(cache.verify(&digest).expect("verified"), Some(true));
        let blob = cache.path(&digest).expect("it is there");
        damage(&blob, b"Weights");
        assert_eq!(cache.verify(&digest).expect("verified"), Some(false));
        assert_eq!(cache.verify(&digest).expect("verified"), None);
        assert!(!cache.has(&digest, 7).expect("the cache"), "it is gone");
        let error = cache.place(&digest, &folder.path().join("x")).expect_err("gone");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn whoever_states_another_size_takes_nothing_from_others() {
        let (_folder, cache) = cache();
        let digest = take(&cache, b"weights");
        assert!(!cache.has(&digest, 8).expect("the cache"), "another size");
        assert!(cache.has(&digest, 7).expect("the cache"), "it is still there");
        // One that was cut short, by whatever, is replaced.
        let blob = cache.path(&digest).expect("it is there");
        damage(&blob, b"weig");
        assert_eq!(take(&cache, b"weights"), digest);
        assert!(cache.has(&digest, 7).expect("the cache"));
    }

    #[test]
    fn what_is_none_of_ours_is_passed_over() {
        let (_folder, cache) = cache();
        take(&cache, b"weights");
        fs::write(cache.root().join("blobs/sha256/README"), b"stray").expect("a file");
        fs::create_dir(cache.root().join("blobs/sha256/ab")).expect("a folder");
        fs::create_dir(cache.root().join("blobs/sha256/ab").join(Digest::of(b"x").to_string()))
            .expect("a folder");
        fs::create_dir(cache.root().join("partial/stray.new")).expect("a folder");
        std::os::unix::fs::symlink("/dev/null", cache.root().join("partial/link.new")).expect("a link");
        let cache = Cache::open(cache.root(), Some(10)).expect("a cache");
        assert_eq!(cache.usage().expect("usage").files, 1);
        assert_eq!(cache.make_room(10).expect("room").files, 1);
    }

    #[test]
    fn what_is_larger_than_it_may_be_is_not_taken() {
        let (_folder, cache) = cache();
        let error = cache.take_in(&mut &b"weights"[..], 6).expect_err("too large");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(cache.blobs().expect("blobs").is_empty());
        assert_eq!(fs::read_dir(cache.root().join("partial")).expect("a folder").count(), 0);
    }
}
