//! Complete files that may not be on the disk yet.
//!
//! While the machine runs, whoever reads a file gets what was written to it, wherever the kernel has it. So a file is of use as soon as it is complete, and
//! nobody who waits for it waits for the disk: [`Cache::sync_behind`] does. Only a machine that stops loses what was not written out. Therefore such a file
//! lies in a folder that is named as the kernel names this boot: after another boot nobody takes it for complete. When it is wanted again it is
//! held against its digest ([`Cache::adopt`]). What is known to be on the disk has its place in `blobs`.
//!
//! Where the kernel does not say which boot this is, each file is on the disk before it has its name.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;

use super::partial::is_still;
use super::{Cache, copy_hashed, remove_ours};
use crate::digest::Digest;

/// Its folder in a cache, in which there is one for each boot.
pub(super) const FOLDER: &str = "unsynced";
/// Where the kernel says which boot this is.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Where such files lie.
#[derive(Debug)]
pub(super) struct Unsynced {
    /// Those of this boot.
    folder: Option<PathBuf>,
    /// Those of others that there were.
    earlier: Vec<PathBuf>,
    /// Had by whoever writes them out.
    syncing: Mutex<()>,
    /// There are some that nobody has begun to write out.
    wanted: AtomicBool,
    /// A thread is about to.
    coming: AtomicBool,
}

impl Unsynced {
    /// Looks which boots there were, and has a folder for this one.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        Self::of(root, boot().as_deref())
    }

    fn of(root: &Path, boot: Option<&str>) -> io::Result<Self> {
        let root = root.join(FOLDER);
        fs::create_dir_all(&root)?;
        let folder = boot.map(|boot| root.join(boot));
        let mut earlier = Vec::new();
        for entry in fs::read_dir(&root)? {
            let path = entry?.path();
            let is_folder = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
            // One that is empty goes.
            if is_folder && folder.as_ref() != Some(&path) && fs::remove_dir(&path).is_err() {
                earlier.push(path);
            }
        }
        folder.as_ref().map_or(Ok(()), fs::create_dir_all)?;
        Ok(Self {
            folder,
            earlier,
            syncing: Mutex::default(),
            wanted: AtomicBool::new(false),
            coming: AtomicBool::new(false),
        })
    }

    /// All folders.
    pub(super) fn folders(&self) -> impl Iterator<Item = &Path> {
        self.earlier.iter().chain(&self.folder).map(PathBuf::as_path)
    }

    /// Where a file of this boot lies, if it is there.
    pub(super) fn at(&self, digest: &Digest) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(digest.to_string()))
    }
}

/// Which boot this is. What is no such name, and could be a path, is none.
fn boot() -> Option<String> {
    let said = fs::read_to_string(BOOT).ok()?;
    let is_name =
        |boot: &str| boot.len() == 36 && boot.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    Some(said.trim().to_owned()).filter(|boot| is_name(boot))
}

impl Cache {
    /// Gives a file its name that has been held against its digest. What has the name and is not that file no longer does.
    pub(super) fn name(&self, file: &File, path: &Path, digest: &Digest) -> io::Result<()> {
        let unsynced = &self.inner.unsynced;
        let Some(target) = unsynced.at(digest) else {
            file.sync_all()?;
            return rename_into(path, &self.blob(digest));
        };
        // It would be found first.
        remove_ours(&self.blob(digest))?;
        rename_into(path, &target)?;
        unsynced.wanted.store(true, Ordering::Release);
        Ok(())
    }

    /// Has all complete files on the disk, and says how many were not known to be. What is not ours to rename is passed over.
    ///
    /// # Errors
    /// Those of the file system, the first of them; the other files are on the disk all the same. A file that the disk did not take is gone.
    pub fn sync(&self) -> io::Result<usize> {
        let unsynced = &self.inner.unsynced;
        let Some(folder) = &unsynced.folder else { return Ok(0) };
        let _alone = unsynced.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        // What is complete from here on may not be seen below.
        unsynced.coming.store(false, Ordering::Release);
        unsynced.wanted.store(false, Ordering::Release);
        let (mut synced, mut failed) = (0, Ok(()));
        let entries = match fs::read_dir(folder) {
            // Somebody has removed all of it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            let Some(digest) = digest_of(&path) else { continue };
            match self.sync_one(&path, &digest) {
                Ok(done) => synced += usize::from(done),
                Err(error) => failed = failed.and(Err(error)),
            }
        }
        failed.map(|()| synced)
    }

    fn sync_one(&self, path: &Path, digest: &Digest) -> io::Result<bool> {
        use io::ErrorKind::{NotFound, PermissionDenied, QuotaExceeded, StorageFull};
        let file = match open(path) {
            // It has made way, or another process was faster.
            Err(error) if error.kind() == NotFound => return Ok(false),
            opened => opened?,
        };
        if let Err(error) = file.sync_all() {
            // What is read of it next may be anything.
            let lost = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
                || matches!(error.kind(), StorageFull | QuotaExceeded);
            if lost {
                remove_ours(path)?;
            }
            return Err(error);
        }
        if !is_still(&file, path)? {
            return Ok(false);
        }
        match rename_into(path, &self.blob(digest)) {
            Err(error) if matches!(error.kind(), NotFound | PermissionDenied) => Ok(false),
            renamed => renamed.map(|()| true),
        }
    }

    /// Has files that were completed since then get to the disk on a thread that nobody waits for, not even the end of the process.
    pub fn sync_behind(&self) {
        let unsynced = &self.inner.unsynced;
        if !unsynced.wanted.load(Ordering::Acquire) || unsynced.coming.swap(true, Ordering::AcqRel) {
            return;
        }
        let cache = self.clone();
        let sync = move || match cache.sync() {
            Ok(files) => tracing::debug!(files, "files of the cache are on the disk"),
            Err(error) => {
                tracing::warn!(%error, cache = %cache.root().display(), "not all files of the cache could be written to the disk; what is lost is fetched again");
            }
        };
        if std::thread::Builder::new().name("cache-sync".into()).spawn(sync).is_err() {
            unsynced.coming.store(false, Ordering::Release);
        }
    }

    /// Goes on with a file that was complete when the machine stopped, before it was known to be on the disk: whether it is there.
    ///
    /// # Errors
    /// Those of the file system. One that cannot be read, or is not what its name says, goes.
    pub(super) fn adopt(&self, digest: &Digest, size: u64) -> io::Result<bool> {
        for folder in &self.inner.unsynced.earlier {
            let path = folder.join(digest.to_string());
            let Ok(file) = open(&path) else { continue };
            // Synced all the same: the folder may be shared with a machine that is still at it.
            if is(&file, digest, size) && file.sync_all().is_ok() {
                match rename_into(&path, &self.blob(digest)) {
                    // It has just made way.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    renamed => return renamed.map(|()| true),
                }
            }
            remove_ours(&path)?;
        }
        Ok(false)
    }
}

/// Whether a file is what it should be.
fn is(mut file: &File, digest: &Digest, size: u64) -> bool {
    let whole = file.metadata().is_ok_and(|found| found.is_file() && found.len() == size);
    whole && copy_hashed(&mut file, &mut io::sink(), size).is_ok_and(|(found, _)| found == *digest)
}

/// No links are followed, and nothing is waited for.
fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Renames into a folder that may not be there yet.
fn rename_into(path: &Path, target: &Path) -> io::Result<()> {
    match fs::rename(path, target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        renamed => return renamed,
    }
    match target.parent().map(fs::create_dir) {
        Some(Err(error)) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::rename(path, target)
}

/// Which file it is by its name.
fn digest_of(path: &Path) -> Option<Digest> {
    path.file_name()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use super::super::{Begun, Inner, Placed};
    use super::*;

    /// A cache in a folder, as after a boot of that name.
    fn booted(root: &Path, boot: Option<&str>) -> Cache {
        let mut cache = Cache::open(root, None).expect("a cache");
        let (root, unsynced) = (root.to_owned(), Unsynced::of(root, boot).expect("folders"));
        cache.inner = Arc::new(Inner { root, limit: None, kept: Mutex::default(), unsynced });
        cache
    }

    fn take(cache: &Cache, bytes: &[u8]) -> Digest {
        cache.take_in(&mut &*bytes, u64::MAX).expect("it is taken").0
    }

    fn boots(cache: &Cache) -> Vec<String> {
        let entries = fs::read_dir(cache.root().join(FOLDER)).expect("a folder");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        names.into_iter().map(|name| name.into_string().expect("ours")).collect()
    }

    #[test]
    fn the_kernel_says_which_boot_this_is() {
        let boot = boot().expect("Linux does");
        assert_eq!(Some(boot), super::boot(), "it stays");
    }

    #[test]
    fn a_file_is_of_use_before_it_is_on_the_disk_and_after() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = booted(folder.path(), Some("this"));
        let digest = take(&cache, b"weights");
        let check = |at: &Path| {
            assert_eq!(cache.path(&digest).expect("there"), at);
            assert!(cache.has(&digest, 7).expect("the cache") && !cache.has(&digest, 8).expect("the cache"));
            assert_eq!(io::read_to_string(cache.read(&digest).expect("there")).expect("read"), "weights");
            assert_eq!(cache.verify(&digest).expect("read"), Some(true));
            assert_eq!(cache.place(&digest, &folder.path().join("tree")).expect("placed"), Placed::Linked);
            let usage = cache.usage().expect("usage");
            assert_eq!((usage.files, usage.bytes, usage.linked), (1, 7, 7));
        };
        check(&folder.path().join("unsynced/this").join(digest.to_string()));
        assert_eq!(cache.sync().expect("synced"), 1);
        check(&cache.blob(&digest));
        assert_eq!(cache.sync().expect("synced"), 0);
    }

    #[test]
    fn what_was_not_known_to_be_on_the_disk_when_the_machine_stopped_is_held_against_its_digest() {
        let folder = tempfile::tempdir().expect("a folder");
        let before = booted(folder.path(), Some("before"));
        let synced = take(&before, b"synced");
        before.sync().expect("synced");
        let [whole, torn, short, unread] =
            [b"whole", b"torn!", b"short", b"unrd!"].map(|bytes| take(&before, bytes));
        let tear = |digest: &Digest, bytes: &[u8]| {
            let path = before.path(digest).expect("there");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("ours");
            fs::write(path, bytes).expect("ours");
        };
        tear(&torn, &[0; 5]);
        tear(&short, b"");
        let after = booted(folder.path(), Some("after"));
        assert!(after.has(&synced, 6).expect("the cache"), "what is on the disk is taken for complete");
        for digest in [&whole, &torn, &short] {
            assert!(!after.has(digest, 5).expect("the cache"));
            after.read(digest).expect_err("it is not known to be complete");
        }
        assert!(matches!(after.begin(&whole, 5, 4).expect("begun"), Begun::Here));
        assert_eq!(after.path(&whole).expect("there"), after.blob(&whole));
        for digest in [&torn, &short] {
            let Begun::Ours(partial) = after.begin(digest, 5, 4).expect("begun") else {
                panic!("it is torn")
            };
            assert_eq!(partial.done(), [false; 2]);
        }
        assert_eq!(fs::read_dir(folder.path().join("unsynced/before")).expect("a folder").count(), 1);
        // What nobody asks for counts, and makes way.
        assert_eq!(after.usage().expect("usage").files, 3);
        let room = after.make_room_within(0, 0).expect("room");
        assert_eq!(room.left.files, 0);
        assert!(!folder.path().join("unsynced/before").join(unread.to_string()).exists());
        assert_eq!(boots(&after), ["after", "before"]);
        assert_eq!(boots(&booted(folder.path(), Some("after"))), ["after"], "an empty folder goes");
    }

    #[test]
    fn members_of_an_archive_outlive_a_stop_as_well() {
        let folder = tempfile::tempdir().expect("a folder");
        let before = booted(folder.path(), Some("before"));
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        tar.append_data(&mut header, "a.bin", &b"one"[..]).expect("added");
        let archive = take(&before, &tar.into_inner().expect("an archive"));
        let (kind, limits) = (crate::archive::ArchiveKind::of("a.tar").expect("one"), Default::default());
        let members = before.unpack(&archive, kind, &limits, &Default::default()).expect("unpacked");
        let after = booted(folder.path(), Some("after"));
        assert_eq!(after.unpacked(&archive).expect("the cache"), Some(members));
    }

    #[test]
    fn where_the_kernel_does_not_say_which_boot_it_is_a_file_is_on_the_disk_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = booted(folder.path(), None);
        let digest = take(&cache, b"weights");
        assert_eq!(cache.path(&digest).expect("there"), cache.blob(&digest));
        assert_eq!(cache.sync().expect("nothing to do"), 0);
        assert!(boots(&cache).is_empty());
    }

    #[test]
    fn nobody_misses_a_file_that_gets_to_where_it_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = booted(folder.path(), Some("this"));
        for round in 0..50_u8 {
            let digest = take(&cache, &[round; 100]);
            let moved = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !moved.load(Ordering::Relaxed) {
                        assert!(cache.has(&digest, 100).expect("the cache"));
                        assert_eq!(cache.usage().expect("usage").files, usize::from(round) + 1);
                    }
                });
                // As another process would.
                let other = booted(folder.path(), Some("this"));
                scope.spawn(move || other.sync().expect("synced"));
                cache.sync().expect("synced");
                moved.store(true, Ordering::Relaxed);
            });
        }
    }

    #[test]
    fn files_get_to_the_disk_with_nobody_waiting() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = booted(folder.path(), Some("this"));
        cache.sync_behind();
        for bytes in [b"one", b"two"] {
            let digest = take(&cache, bytes);
            cache.sync_behind();
            while !cache.blob(&digest).exists() {
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn what_is_none_of_ours_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = booted(folder.path(), Some("this"));
        let at = folder.path().join("unsynced/this");
        fs::write(at.join("README"), b"stray").expect("a file");
        let (link, target) = (at.join(Digest::of(b"x").to_string()), folder.path().join("elsewhere"));
        fs::write(&target, b"x").expect("a file");
        std::os::unix::fs::symlink(&target, &link).expect("a link");
        cache.sync().expect_err("a link is not followed");
        assert_eq!(
            (at.join("README").exists(), fs::read(&link).expect("still a link")),
            (true, b"x".to_vec())
        );
        assert!(!cache.has(&Digest::of(b"x"), 1).expect("the cache"));
    }
}
