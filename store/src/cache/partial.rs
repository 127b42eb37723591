//! Files of which not all has come yet. What came before a process ended is not fetched again by the next.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, OFlags, flock};

use super::{Cache, PIECE, ROUNDS, always_removed, remove};
use crate::digest::{Digest, Hasher};

/// What a map begins with, which lies behind the bytes of its file: a name, and how large file and pieces are. One byte for each piece follows.
const MAP_HEAD: usize = 24;
const MAP_NAME: &[u8; 8] = b"ORMAP 1\n";
/// Most pieces of a file: larger files come in larger pieces.
const MAX_PIECES: u64 = 1 << 20;
/// What a map begins at a multiple of: it shares no page with what it tells of.
const MAP_AT: u64 = 4 << 10;
/// Largest file that a file system can have with its map, bytes.
const MAX_SIZE: u64 = i64::MAX as u64 - 2 * MAX_PIECES;

/// What there is of a file that is wanted.
#[derive(Debug)]
pub enum Begun {
    /// All of it.
    Here,
    /// Nothing, or a part; it is the caller's to complete.
    Ours(Partial),
    /// Somebody else is at it, or was: what another user has begun and we may not open is not ours to go on with.
    Taken,
}

/// A file that is on its way. While this is held nobody else writes it; letting go of it keeps what has come.
#[derive(Debug)]
pub struct Partial {
    cache: Cache,
    digest: Digest,
    size: u64,
    piece: u64,
    path: PathBuf,
    file: Arc<File>,
    /// Where in it the map lies, if there is more than one piece.
    map: Option<u64>,
    done: Vec<bool>,
}

impl Cache {
    /// Begins with a file that is to come in pieces of so many bytes, or goes on with it. Does not wait for others who are at it.
    ///
    /// # Errors
    /// Those of the file system; `FileTooLarge` for sizes that no file can have.
    pub fn begin(&self, digest: &Digest, size: u64, piece: u64) -> io::Result<Begun> {
        if size > MAX_SIZE {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("no file can have {size} bytes"),
            ));
        }
        let path = self.data(digest);
        for _ in 0..ROUNDS {
            if self.has(digest, size)? {
                return Ok(Begun::Here);
            }
            let file = match open(&path) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_others(&path)? => {
                    return Ok(Begun::Taken);
                }
                opened => opened?,
            };
            if !try_lock(&file)? {
                return Ok(Begun::Taken);
            }
            // Between opening and locking, whoever had it may have given it its name, or removed it: then the lock is on a file that is none of ours.
            if !is_still(&file, &path)? {
                continue;
            }
            // It may also have got its name before it was opened, and what was opened then is new.
            if self.has(digest, size)? || self.adopt(digest, size)? {
                remove(&path)?;
                return Ok(Begun::Here);
            }
            return Partial::of(self.clone(), *digest, size, piece, path, file).map(Begun::Ours);
        }
        Err(always_removed())
    }

    /// Where a file lies of which not all has come.
    pub(super) fn data(&self, digest: &Digest) -> PathBuf {
        self.inner.root.join("partial").join(format!("{digest}.data"))
    }
}

impl Partial {
    fn of(
        cache: Cache,
        digest: Digest,
        size: u64,
        piece: u64,
        path: PathBuf,
        file: File,
    ) -> io::Result<Self> {
        let piece = piece.max(size.div_ceil(MAX_PIECES)).max(1);
        let count = usize::try_from(size.div_ceil(piece)).map_err(io::Error::other)?;
        let (file, done) = (Arc::new(file), vec![false; count]);
        let mut partial = Self { cache, digest, size, piece, path, file, map: None, done };
        if count > 1 {
            partial.open_map()?;
        }
        Ok(partial)
    }

    /// Reads which pieces are here. A map of other sizes, or of something else, counts for nothing, and so does what there is of a file that has none.
    fn open_map(&mut self) -> io::Result<()> {
        let map = self.size.next_multiple_of(MAP_AT);
        let mut head = [0; MAP_HEAD];
        head[..8].copy_from_slice(MAP_NAME);
        head[8..16].copy_from_slice(&self.size.to_le_bytes());
        head[16..].copy_from_slice(&self.piece.to_le_bytes());
        let mut found = vec![0; MAP_HEAD + self.done.len()];
        let end = map + found.len() as u64;
        if self.file.metadata()?.len() == end
            && self.file.read_exact_at(&mut found, map).is_ok()
            && found[..MAP_HEAD] == head
        {
            self.done = found[MAP_HEAD..].iter().map(|byte| *byte == 1).collect();
        } else {
            self.file.set_len(0)?;
            self.file.write_all_at(&head, map)?;
            self.file.set_len(end)?;
        }
        self.map = Some(map);
        Ok(())
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many pieces there are.
    pub fn pieces(&self) -> usize {
        self.done.len()
    }

    /// Where a piece begins, and where it ends.
    pub fn range(&self, piece: usize) -> std::ops::Range<u64> {
        let start = piece as u64 * self.piece;
        start..start.saturating_add(self.piece).min(self.size)
    }

    /// Which pieces have come already.
    pub fn done(&self) -> &[bool] {
        &self.done
    }

    /// For writing pieces from several threads.
    pub fn writer(&self) -> Writer {
        Writer { file: Arc::clone(&self.file), map: self.map, size: self.size }
    }

    /// Forgets all that has come: it is not what it should be.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn restart(&mut self) -> io::Result<()> {
        self.done.fill(false);
        if let Some(map) = self.map {
            self.file.write_all_at(&vec![0; self.done.len()], map + MAP_HEAD as u64)?;
        }
        Ok(())
    }

    /// Gives the file its place among those that are complete, after its bytes have been found to be those of its digest ([`Writer::hash`]).
    ///
    /// # Errors
    /// Those of the file system.
    pub fn complete(self) -> io::Result<()> {
        // A map goes; of one piece, or of none, nobody has said how large it is, and what was there before may have been larger. A process that ends
        // just after this leaves a file that comes anew.
        if self.file.metadata()?.len() != self.size {
            self.file.set_len(self.size)?;
        }
        self.cache.admit(&self.file, &self.path, &self.digest)
    }
}

/// Writes pieces of a file that is on its way.
#[derive(Debug)]
pub struct Writer {
    file: Arc<File>,
    map: Option<u64>,
    size: u64,
}

impl Writer {
    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes bytes where they belong.
    ///
    /// # Errors
    /// Those of the file system; and none are written beyond the end.
    pub fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if at.saturating_add(bytes.len() as u64) > self.size {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "more bytes than the file has"));
        }
        self.file.write_all_at(bytes, at)
    }

    /// Notes that all of a piece has been written. Where the machine, and not only the process, stops before both are on the disk, the digest tells.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn mark(&self, piece: usize) -> io::Result<()> {
        self.map.map_or(Ok(()), |map| self.file.write_all_at(&[1], map + (MAP_HEAD + piece) as u64))
    }

    /// Gives what is written in a range to a hasher.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn hash(&self, range: std::ops::Range<u64>, hasher: &mut Hasher) -> io::Result<()> {
        let mut bytes = vec![0; PIECE.min(usize::try_from(range.end - range.start).unwrap_or(PIECE))];
        let mut at = range.start;
        while at < range.end {
            let length = usize::try_from(range.end - at).map_or(bytes.len(), |left| left.min(bytes.len()));
            self.file.read_exact_at(&mut bytes[..length], at)?;
            hasher.update(&bytes[..length]);
            at += length as u64;
        }
        Ok(())
    }
}

/// A file for reading and writing that only its owner may open, made if it is not there.
fn open(path: &Path) -> io::Result<File> {
    open_with(OpenOptions::new().create(true).mode(0o600), path)
}

/// The same, only if it is there.
pub(super) fn open_existing(path: &Path) -> io::Result<File> {
    open_with(&mut OpenOptions::new(), path)
}

/// No links are followed. One that is ours and that we may not write was about to get its name as its process ended: it is made writable again.
fn open_with(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let options =
        options.read(true).write(true).truncate(false).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_others(path)? => {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            options.open(path)
        }
        opened => opened,
    }
}

/// Whether there is something that is not a file of ours.
fn is_others(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(!found.is_file() || found.uid() != rustix::process::geteuid().as_raw()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Locks a file unless somebody else has; says whether it is.
pub(super) fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A new file.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Whether a path still leads to a file.
pub(super) fn is_still(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: &[u8] = b"0123456789";

    fn ours(begun: Begun) -> Partial {
        match begun {
            Begun::Ours(partial) => partial,
            other => panic!("{other:?}"),
        }
    }

    fn write(partial: &Partial, piece: usize) {
        let range = partial.range(piece);
        let writer = partial.writer();
        writer.write(range.start, &BYTES[range.start as usize..range.end as usize]).expect("written");
        writer.mark(piece).expect("marked");
    }

    fn hashed(partial: &Partial) -> Digest {
        let mut hasher = Hasher::default();
        partial.writer().hash(0..partial.size(), &mut hasher).expect("read");
        hasher.finish()
    }

    #[test]
    fn what_has_come_is_there_for_the_next() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path(), None).expect("a cache");
        let digest = Digest::of(BYTES);
        let begin = |piece| cache.begin(&digest, 10, piece).expect("begun");
        let partial = ours(begin(4));
        assert_eq!((partial.pieces(), partial.range(2)), (3, 8..10));
        write(&partial, 1);
        assert!(matches!(begin(4), Begun::Taken), "one at a time");
        drop(partial);
        let partial = ours(begin(4));
        assert_eq!(partial.done(), [false, true, false]);
        drop(partial);
        let mut partial = ours(begin(5));
        assert_eq!(partial.done(), [false, false], "pieces of another size");
        write(&partial, 0);
        partial.restart().expect("restarted");
        drop(partial);
        let partial = ours(begin(5));
        assert_eq!(partial.done(), [false, false]);
        (0..2).for_each(|piece| write(&partial, piece));
        assert_eq!(hashed(&partial), digest);
        partial.complete().expect("complete");
        assert!(matches!(begin(4), Begun::Here));
        assert_eq!(fs::read_dir(cache.root().join("partial")).expect("a folder").count(), 0);
    }

    #[test]
    fn a_file_of_one_piece_or_none_has_no_map() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path(), None).expect("a cache");
        for (bytes, pieces) in [(BYTES, 1), (b"".as_slice(), 0)] {
            let digest = Digest::of(bytes);
            let partial = ours(cache.begin(&digest, bytes.len() as u64, 100).expect("begun"));
            assert_eq!(partial.pieces(), pieces);
            (0..pieces).for_each(|piece| write(&partial, piece));
            assert_eq!(hashed(&partial), digest);
            let error = partial.writer().write(8, BYTES).expect_err("beyond the end");
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
            partial.complete().expect("complete");
            assert!(cache.has(&digest, bytes.len() as u64).expect("the cache"));
        }
    }

    #[test]
    fn who_ends_just_before_the_name_is_given_leaves_a_file_to_go_on_with() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path(), None).expect("a cache");
        let digest = Digest::of(BYTES);
        let partial = ours(cache.begin(&digest, 10, 4).expect("begun"));
        (0..3).for_each(|piece| write(&partial, piece));
        partial.file.set_permissions(fs::Permissions::from_mode(0o444)).expect("ours");
        drop(partial);
        let partial = ours(cache.begin(&digest, 10, 4).expect("begun"));
        assert_eq!(partial.done(), [true; 3]);
        partial.complete().expect("complete");
        assert!(cache.has(&digest, 10).expect("the cache"));
    }

    #[test]
    fn links_are_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path().join("cache"), None).expect("a cache");
        let (digest, victim) = (Digest::of(BYTES), folder.path().join("victim"));
        fs::write(&victim, b"precious").expect("a file");
        std::os::unix::fs::symlink(&victim, cache.data(&digest)).expect("a link");
        cache.begin(&digest, 10, 4).expect_err("a link");
        assert_eq!(fs::read(&victim).expect("there"), b"precious");
    }

    #[test]
    fn sizes_that_no_file_has_are_refused_and_large_ones_take_little() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path(), None).expect("a cache");
        let digest = Digest::of(BYTES);
        for size in [u64::MAX, MAX_SIZE + 1] {
            let error = cache.begin(&digest, size, 1).expect_err("too large");
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        }
        assert_eq!(fs::read_dir(folder.path().join("partial")).expect("a folder").count(), 0);
        let partial = ours(cache.begin(&digest, 1 << 32, 1).expect("begun"));
        assert_eq!((partial.pieces() as u64, partial.range(0)), (MAX_PIECES, 0..4096));
    }

    #[test]
    fn a_map_that_is_none_counts_for_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path(), None).expect("a cache");
        let digest = Digest::of(BYTES);
        for map in [&b""[..], &[1; 26], &[1; 27], &[0; 1000]] {
            let data = [vec![0; MAP_AT as usize].as_slice(), map].concat();
            fs::write(cache.data(&digest), data).expect("a file");
            let partial = ours(cache.begin(&digest, 10, 4).expect("begun"));
            assert_eq!(partial.done(), [false; 3]);
            drop(partial);
        }
    }
}
