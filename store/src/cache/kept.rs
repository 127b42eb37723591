//! Small objects of a storage, kept as they were read, so that they need not be asked for again while a listing shows that they are the same.
//!
//! ```text
//! manifests/ab12…         a line with a SHA-256, then the object
//! ```
//!
//! A name is the SHA-256 of all that says which object it is, and in which state ([`crate::registry::Tags`]): another state has another name, and nobody's
//! text is a path. The line is that of the name and the object: what is torn, altered, or called as another is, is not there. So a file is written without
//! waiting for the disk. What is here counts for no more than what comes over the network: whoever reads it holds it against the same rules.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::SystemTime;

use rustix::fs::OFlags;

use super::{Cache, READ_ONLY, remove, remove_ours, touch};
use crate::digest::Digest;

/// Its folder in a cache.
pub(super) const FOLDER: &str = "manifests";
/// Most objects that are kept...
const MAX_FILES: usize = 10_000;
/// ...and most bytes of all of them...
const MAX_BYTES: u64 = 64 << 20;
/// ...which is at most this part of what the cache may hold: they come beside that.
const PART_OF_LIMIT: u64 = 64;
/// Largest object that is kept, bytes. A manifest of thousands of files is asked for; there are not many.
const MAX_OBJECT: u64 = 1 << 20;
/// The line before an object: 64 digits and its end.
const HEAD: usize = 65;
/// What a file takes of a disk at least, and what it is a multiple of, bytes.
const BLOCK: u64 = 4 << 10;

/// How much there is, or may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    files: usize,
    bytes: u64,
}

impl Kept {
    /// How much there may be beside a cache that may hold so many bytes.
    fn within(limit: Option<u64>) -> Self {
        let bytes = limit.map_or(MAX_BYTES, |limit| (limit / PART_OF_LIMIT).min(MAX_BYTES));
        Self { files: MAX_FILES, bytes }
    }

    /// What is aimed at once there is too much to take so many bytes more: a little less than there may be, or the next would be too much again.
    fn with_room_for(self, bytes: u64) -> Self {
        let share = |of: u64| of - of / 4;
        Self {
            files: (self.files - self.files / 4).saturating_sub(1),
            bytes: share(self.bytes).min(self.bytes.saturating_sub(bytes)),
        }
    }

    fn and(self, bytes: u64) -> Self {
        Self { files: self.files.saturating_add(1), bytes: self.bytes.saturating_add(bytes) }
    }

    fn fits(self, most: Self) -> bool {
        self.files <= most.files && self.bytes <= most.bytes
    }
}

impl Cache {
    /// An object that was kept under a name, if it is there and is what it was. It counts as used now.
    pub(crate) fn kept(&self, name: &Digest, size: u64) -> Option<Vec<u8>> {
        let path = self.kept_at(name);
        if size > MAX_OBJECT {
            return None;
        }
        let object = read(&path, name, size).ok().flatten()?;
        touch(&path);
        Some(object)
    }

    /// Whether there is something under a name that is as large as that object; what it is is seen when it is read.
    pub(crate) fn keeps(&self, name: &Digest, size: u64) -> bool {
        let found = fs::symlink_metadata(self.kept_at(name));
        found.is_ok_and(|found| found.is_file() && found.len() == size.saturating_add(HEAD as u64))
    }

    /// Keeps an object under a name, and has those make way, if need be, that were not used for longest. What is too large is not kept; says whether it is.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn keep(&self, name: &Digest, object: &[u8]) -> io::Result<bool> {
        if object.len() as u64 > MAX_OBJECT || !self.admits_kept(on_disk((HEAD + object.len()) as u64))? {
            return Ok(false);
        }
        let (mut file, path) = self.unfinished()?;
        let written = file
            .write_all(line(name, object).as_bytes())
            .and_then(|()| file.write_all(object))
            .and_then(|()| file.set_permissions(Permissions::from_mode(READ_ONLY)))
            .and_then(|()| fs::rename(&path, self.kept_at(name)));
        if written.is_err() {
            remove(&path)?;
        }
        written.map(|()| true)
    }

    /// Has those make way that were not used for longest, until there are no more than may be beside a cache that may hold so many bytes.
    pub(super) fn trim_kept(&self, limit: Option<u64>) -> io::Result<()> {
        let mut known = self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(self.trim(Kept::within(limit))?);
        Ok(())
    }

    /// Whether there is room for a file that takes so many bytes, or has been made. What others keep meanwhile is seen when room is made next.
    fn admits_kept(&self, bytes: u64) -> io::Result<bool> {
        let most = Kept::within(self.limit());
        if bytes > most.bytes {
            return Ok(false);
        }
        let mut known = self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = match *known {
            Some(kept) => kept,
            None => self.trim(most)?,
        };
        if !kept.and(bytes).fits(most) {
            kept = self.trim(most.with_room_for(bytes))?;
        }
        *known = Some(kept.and(bytes));
        Ok(true)
    }

    /// Removes what was not used for longest until the rest fits, and says how much that is.
    fn trim(&self, most: Kept) -> io::Result<Kept> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root().join(FOLDER))? {
            let entry = entry?;
            let ours = entry.file_name().to_str().is_some_and(|name| name.parse::<Digest>().is_ok());
            // Whoever else is at work here may just have removed it.
            let Some(meta) = entry.metadata().ok().filter(|meta| ours && meta.is_file()) else { continue };
            found.push((
                meta.accessed().unwrap_or(SystemTime::UNIX_EPOCH),
                on_disk(meta.len()),
                entry.path(),
            ));
        }
        found.sort_by_key(|(used, ..)| *used);
        let bytes = found.iter().fold(0_u64, |sum, (_, bytes, _)| sum.saturating_add(*bytes));
        let mut kept = Kept { files: found.len(), bytes };
        for (_, bytes, path) in found {
            if kept.fits(most) {
                break;
            }
            if remove_ours(&path)? {
                kept = Kept { files: kept.files.saturating_sub(1), bytes: kept.bytes.saturating_sub(bytes) };
            }
        }
        Ok(kept)
    }

    fn kept_at(&self, name: &Digest) -> PathBuf {
        self.root().join(FOLDER).join(name.to_string())
    }
}

/// What a file of so many bytes takes of a disk.
fn on_disk(bytes: u64) -> u64 {
    bytes.max(1).checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX)
}

/// What stands before an object.
fn line(name: &Digest, object: &[u8]) -> String {
    format!("{}\n", Digest::of_all([name.to_string().as_bytes(), object]))
}

/// The object in a file. Others may have put there what they like: no link is followed, nothing is waited for, and no more is read than there should be.
fn read(path: &std::path::Path, name: &Digest, size: u64) -> io::Result<Option<Vec<u8>>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let (found, length) = (file.metadata()?, size.saturating_add(HEAD as u64));
    if !found.is_file() || found.len() != length {
        return Ok(None);
    }
    Ok(object(file, length)?.filter(|(said, object)| *said == line(name, object)).map(|(_, object)| object))
}

/// The line and the object.
fn object(file: File, length: u64) -> io::Result<Option<(String, Vec<u8>)>> {
    let mut line = Vec::with_capacity(usize::try_from(length).map_err(io::Error::other)?);
    file.take(length).read_to_end(&mut line)?;
    if line.len() as u64 != length || line.len() < HEAD {
        return Ok(None);
    }
    let object = line.split_off(HEAD);
    Ok(String::from_utf8(line).ok().map(|line| (line, object)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn cache(limit: Option<u64>) -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path().join("cache"), limit).expect("a cache");
        (folder, cache)
    }

    fn name(number: u64) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    fn count(cache: &Cache) -> usize {
        fs::read_dir(cache.root().join(FOLDER)).expect("a folder").count()
    }

    #[test]
    fn what_is_kept_is_there_for_whoever_opens_the_cache() {
        let (_folder, cache) = cache(None);
        for object in [b"manifest".as_slice(), b"", &[7; MAX_OBJECT as usize]] {
            let size = object.len() as u64;
            assert_eq!(cache.kept(&name(size), size), None);
            cache.keep(&name(size), object).expect("kept");
            cache.keep(&name(size), object).expect("kept again");
            let other = Cache::open(cache.root(), None).expect("a cache");
            assert_eq!(other.kept(&name(size), size).as_deref(), Some(object));
            assert_eq!(other.kept(&name(size), size + 1), None, "another size");
        }
        cache.keep(&name(1), &[7; MAX_OBJECT as usize + 1]).expect("passed over");
        assert_eq!(cache.kept(&name(1), MAX_OBJECT + 1), None, "too large");
        assert_eq!(fs::read_dir(cache.root().join("partial")).expect("a folder").count(), 0);
    }

    #[test]
    fn what_is_not_what_was_kept_is_not_there() {
        let (folder, cache) = cache(None);
        cache.keep(&name(1), b"manifest").expect("kept");
        let path = cache.kept_at(&name(1));
        let whole = fs::read(&path).expect("there");
        let check = |bytes: &[u8]| {
            fs::remove_file(&path).expect("ours");
            fs::write(&path, bytes).expect("a file");
            cache.kept(&name(1), 8)
        };
        assert_eq!(check(&whole).as_deref(), Some(b"manifest".as_slice()));
        for end in 0..whole.len() {
            assert_eq!(check(&whole[..end]), None, "cut at {end}");
        }
        for at in 0..whole.len() {
            let mut altered = whole.clone();
            altered[at] ^= 1;
            assert_eq!(check(&altered), None, "altered at {at}");
        }
        assert_eq!(check(&vec![0; whole.len()]), None, "as a disk may leave it that lost its power");
        assert_eq!(check(&[whole.as_slice(), b"."].concat()), None, "longer");
        assert_eq!(check(&[0xff; 73]), None, "no text");
        // That of another by its name, a folder, a pipe that nobody writes to, and a link to what would do.
        check(&whole);
        fs::rename(&path, cache.kept_at(&name(2))).expect("ours");
        assert_eq!(cache.kept(&name(2), 8), None);
        fs::create_dir(&path).expect("a folder");
        assert_eq!(cache.kept(&name(1), 8), None);
        fs::remove_dir(&path).expect("ours");
        let pipe = rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        );
        pipe.expect("a pipe");
        assert_eq!(cache.kept(&name(1), 8), None);
        fs::remove_file(&path).expect("ours");
        fs::write(folder.path().join("elsewhere"), &whole).expect("a file");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &path).expect("a link");
        assert_eq!(cache.kept(&name(1), 8), None);
        cache.keep(&name(1), b"manifest").expect("in its place");
        assert_eq!(cache.kept(&name(1), 8).as_deref(), Some(b"manifest".as_slice()));
        assert_eq!(fs::read(folder.path().join("elsewhere")).expect("there"), whole);
    }

    #[test]
    fn those_that_were_not_used_for_longest_make_way() {
        // Room for eight files of a block.
        let (_folder, cache) = cache(Some(8 * BLOCK * PART_OF_LIMIT));
        let age = |number: u64, seconds| {
            let used = SystemTime::now() - Duration::from_secs(seconds);
            let file = File::open(cache.kept_at(&name(number))).expect("there");
            file.set_times(fs::FileTimes::new().set_accessed(used)).expect("ours");
        };
        for number in 0..8 {
            cache.keep(&name(number), &[7; 100]).expect("kept");
            age(number, 1000 - number);
        }
        fs::write(cache.root().join(FOLDER).join("README"), [0; 100_000]).expect("a stray");
        assert!(cache.kept(&name(0), 100).is_some(), "used now");
        cache.keep(&name(8), &[7; 100]).expect("kept");
        let there =
            |cache: &Cache| (0..9).filter(|number| cache.kept(&name(*number), 100).is_some()).collect();
        let kept: Vec<u64> = there(&cache);
        assert_eq!(kept, [0, 3, 4, 5, 6, 7, 8], "a quarter has made way");
        // A cache of another size, and one that is to hold nothing.
        let smaller = Cache::open(cache.root(), Some(2 * BLOCK * PART_OF_LIMIT)).expect("a cache");
        smaller.keep(&name(9), &[7; 100]).expect("kept");
        assert!(count(&cache) <= 3, "two and the stray");
        assert!(smaller.kept(&name(9), 100).is_some());
        smaller.keep(&name(10), &vec![7; 2 * BLOCK as usize]).expect("too large for it");
        assert_eq!(smaller.kept(&name(10), 2 * BLOCK), None);
        cache.make_room_within(0, 0).expect("room");
        assert_eq!(count(&cache), 1, "the stray");
    }

    #[test]
    fn there_are_never_more_than_may_be() {
        let most = Kept::within(None);
        assert_eq!((most.files, most.bytes), (10_000, 64 << 20));
        for bytes in [BLOCK, MAX_OBJECT, MAX_BYTES] {
            let aim = most.with_room_for(bytes);
            assert!(aim.and(bytes).fits(most) && aim.files < 7_500 && aim.bytes <= 48 << 20, "{aim:?}");
        }
        let none = Kept::within(Some(PART_OF_LIMIT - 1));
        assert!(!Kept { files: 0, bytes: 0 }.and(BLOCK).fits(none));
        assert_eq!(
            (on_disk(0), on_disk(1), on_disk(BLOCK), on_disk(u64::MAX)),
            (BLOCK, BLOCK, BLOCK, u64::MAX)
        );
    }

    #[test]
    fn many_at_once_neither_tear_nor_lose_one() {
        let (_folder, cache) = cache(None);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                // As processes of their own would: nothing is shared but the folder.
                let own = Cache::open(cache.root(), None).expect("a cache");
                scope.spawn(move || {
                    for number in 0..50 {
                        let object = vec![number as u8; 100];
                        let found = own.kept(&name(number), 100);
                        assert!(found.is_none_or(|found| found == object));
                        own.keep(&name(number), &object).expect("kept");
                        assert_eq!(own.kept(&name(number), 100), Some(object));
                    }
                });
            }
        });
        assert_eq!(count(&cache), 50);
    }
}
