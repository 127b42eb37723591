//! Complete files that may not be on the disk yet.
//!
//! While the machine runs, and its disk does not fail, whoever reads a file gets what was written to it, wherever the kernel has it. So a file is of use as soon
//! as it is complete, and nobody who waits for it waits for the disk: [`Cache::sync_behind`] does. A machine that stops loses what was not written out.
//! Therefore such a file lies in a folder that is named as the kernel names this boot: after another boot nobody takes it for complete. When it is wanted
//! again it is held against its digest ([`Cache::adopt`]). What is known to be on the disk has its place in `blobs`.
//!
//! Where the kernel does not say which boot this is, or the cache lies where other machines may see it, each file is on the disk before it has its name.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, OFlags, fchown, linkat};
use rustix::io::Errno;
use rustix::process::Gid;

use super::{Cache, copy_hashed, is_not_ours, remove, remove_ours};
use crate::digest::Digest;

/// Its folder in a cache, in which there is one for each boot.
pub(super) const FOLDER: &str = "unsynced";
/// Where the kernel says which boot this is.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// When files are synced after they were complete: until then the kernel has mostly written them out by itself, and whatever they were fetched for has the disk for
/// itself. A process that ends meanwhile is not held up by it; the next one does it.
const LATER: Duration = Duration::from_secs(60);
/// File systems by the numbers of `statfs(2)` that only this machine writes to, and that take what they have taken: ext, XFS, Btrfs, F2FS, bcachefs, ZFS, tmpfs,
/// ramfs, overlayfs. On any other a file is on the disk first.
const HERE: [u32; 9] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0xf2f5_2010,
    0xca45_1a4e,
    0x2fc1_2fc1,
    0x0102_1994,
    0x8584_58f6,
    0x794c_7630,
];

/// Where such files lie.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    /// Those of this boot; it may not be there yet.
    folder: Option<PathBuf>,
    /// Those of others that there were.
    earlier: Vec<PathBuf>,
    /// Had by whoever writes them out.
    syncing: Mutex<()>,
    /// There may be some that nobody has begun to write out.
    wanted: AtomicBool,
    /// A thread is about to.
    coming: AtomicBool,
}

impl Unsynced {
    /// Looks which boots there were.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let boot = boot().filter(|_| is_here(root));
        Self::of(root, boot.as_deref())
    }

    pub(super) fn of(root: &Path, boot: Option<&str>) -> io::Result<Self> {
        let root = root.join(FOLDER);
        let mut earlier = Vec::new();
        // What may not be looked at, or is no folder, has none of ours, and takes none.
        let Ok(entries) = fs::read_dir(&root) else {
            return Ok(Self::default());
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let is_ours = name.to_str().is_some_and(|name| is_boot(name) && Some(name) != boot)
                && entry.file_type().is_ok_and(|kind| kind.is_dir());
            // One that is empty goes.
            if is_ours && fs::remove_dir(entry.path()).is_err() {
                earlier.push(entry.path());
            }
        }
        let folder = boot.map(|boot| root.join(boot));
        // There may be some of a process that ended.
        let wanted = AtomicBool::new(folder.is_some());
        Ok(Self { folder, earlier, syncing: Mutex::default(), wanted, coming: AtomicBool::new(false) })
    }

    /// All folders.
    pub(super) fn folders(&self) -> impl Iterator<Item = &Path> {
        self.earlier.iter().chain(&self.folder).map(PathBuf::as_path)
    }

    /// Where a file of this boot lies, if it is there.
    pub(super) fn at(&self, digest: &Digest) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(digest.to_string()))
    }

    /// Where it would lie that was complete when the machine stopped.
    pub(super) fn earlier(&self, digest: &Digest) -> impl Iterator<Item = PathBuf> {
        let name = digest.to_string();
        self.earlier.iter().map(move |folder| folder.join(&name))
    }
}

/// Which boot this is.
fn boot() -> Option<String> {
    let said = fs::read_to_string(BOOT).ok()?;
    Some(said.trim().to_owned()).filter(|boot| is_boot(boot))
}

/// Whether it is the name of a boot, and no path.
fn is_boot(name: &str) -> bool {
    name.len() == 36 && name.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

fn is_here(root: &Path) -> bool {
    let kind = rustix::fs::statfs(root).map(|found| found.f_type);
    // The numbers are of 32 bits, whatever the type of the field, and its sign.
    kind.is_ok_and(|kind| HERE.contains(&((kind as u64 & u64::from(u32::MAX)) as u32)))
}

impl Cache {
    /// Gives a file its name that has been held against its digest. What has the name and is not that file no longer does.
    pub(super) fn name(&self, file: &File, path: &Path, digest: &Digest) -> io::Result<()> {
        let unsynced = &self.inner.unsynced;
        // What is there would be found first, so it is replaced, by what is worth no less.
        let target = unsynced.at(digest).filter(|_| fs::symlink_metadata(self.blob(digest)).is_err());
        if target.is_some_and(|target| rename_into(path, &target).is_ok()) {
            unsynced.wanted.store(true, Ordering::Release);
        } else {
            // Also where it may not be put there: the folder may be another user's.
            file.sync_all()?;
            rename_into(path, &self.blob(digest))?;
        }
        Ok(())
    }

    /// Has all complete files of ours on the disk, and says how many were not known to be. Those of other users are theirs to see to.
    ///
    /// # Errors
    /// Those of the file system, the first of them; the other files are on the disk all the same. A file that the disk did not take is gone.
    pub fn sync(&self) -> io::Result<usize> {
        let unsynced = &self.inner.unsynced;
        let Some(folder) = &unsynced.folder else { return Ok(0) };
        let _alone = unsynced.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        unsynced.coming.store(false, Ordering::Release);
        // What is complete from here on may not be seen below.
        unsynced.wanted.store(false, Ordering::Release);
        let entries = match fs::read_dir(folder) {
            // Nothing has come yet, or somebody has removed all of it.
            Err(error) if is_not_ours(&error) => return Ok(0),
            entries => entries?,
        };
        let (mut synced, mut failed) = (0, Ok(()));
        for entry in entries {
            let done = entry.and_then(|entry| self.sync_one(&entry.path()));
            match done {
                Ok(done) => synced += usize::from(done),
                Err(error) => failed = failed.and(Err(error)),
            }
        }
        if failed.is_err() {
            unsynced.wanted.store(true, Ordering::Release);
        }
        failed.map(|()| synced)
    }

    /// Whether it is known to be on the disk only now.
    fn sync_one(&self, path: &Path) -> io::Result<bool> {
        let Some(digest) = digest_of(path) else { return Ok(false) };
        let file = match open(path) {
            // It has made way, another process was faster, it may not be read, or it is a link: then it is none of ours.
            Err(error) if is_not_ours(&error) || error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
                return Ok(false);
            }
            opened => opened?,
        };
        let found = file.metadata()?;
        if !found.is_file() || found.uid() != rustix::process::geteuid().as_raw() {
            return Ok(false);
        }
        if let Err(error) = file.sync_all() {
            // It is said once. What is read of it after that may be anything.
            tracing::error!(%error, sha256 = %digest, "the disk has not taken a file of the cache; it is fetched again when it is needed next");
            remove_ours(path)?;
            return Err(error);
        }
        // The very file that was synced gets the name, whatever is at its path by now.
        let blob = self.blob(&digest);
        let link = || linkat(CWD, fd_path(&file), CWD, &blob, AtFlags::SYMLINK_FOLLOW);
        let linked = match link() {
            Err(Errno::NOENT) => make_parent(&blob).map(|()| link())?,
            linked => linked,
        };
        match linked {
            // One that was there already is as good.
            Ok(()) | Err(Errno::EXIST) => {
                remove(path)?;
                Ok(linked.is_ok())
            }
            // The file has made way; somebody has removed all of it; or links cannot be had, or not of this.
            Err(Errno::NOENT | Errno::PERM | Errno::ACCESS | Errno::MLINK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Has complete files get to the disk, a while later, on a thread that nobody waits for.
    pub fn sync_behind(&self) {
        self.sync_after(LATER);
    }

    fn sync_after(&self, pause: Duration) {
        let unsynced = &self.inner.unsynced;
        if !unsynced.wanted.load(Ordering::Acquire) || unsynced.coming.swap(true, Ordering::AcqRel) {
            return;
        }
        let cache = self.clone();
        let sync = move || {
            std::thread::sleep(pause);
            match cache.sync() {
                Ok(files) => tracing::debug!(files, "files of the cache are on the disk"),
                Err(error) => {
                    tracing::warn!(%error, cache = %cache.root().display(), "not all files of the cache are on the disk");
                }
            }
        };
        if std::thread::Builder::new().name("cache-sync".into()).spawn(sync).is_err() {
            unsynced.coming.store(false, Ordering::Release);
        }
    }

    /// Goes on with a file that was complete when the machine stopped, before it was known to be on the disk: whether it is here.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn adopt(&self, digest: &Digest, size: u64) -> io::Result<bool> {
        if self.inner.unsynced.earlier.is_empty() {
            return Ok(false);
        }
        for path in self.inner.unsynced.earlier(digest) {
            let Ok(file) = open(&path) else { continue };
            // Who states another size may be wrong.
            if file.metadata()?.len() == size {
                self.judge(&path, &file, digest);
            }
        }
        // Somebody else may have been faster.
        self.has(digest, size)
    }

    /// The same, of whatever size: whether one that was there is what its name says. One that is not goes.
    pub(super) fn adopt_any(&self, digest: &Digest) -> Option<bool> {
        let judged = self
            .inner
            .unsynced
            .earlier(digest)
            .filter_map(|path| self.judge(&path, &open(&path).ok()?, digest));
        judged.max()
    }

    /// Holds a file against its digest: then it is on the disk and has its place, or goes. Nothing of what is none of ours.
    fn judge(&self, path: &Path, mut file: &File, digest: &Digest) -> Option<bool> {
        if !file.metadata().is_ok_and(|found| found.is_file()) {
            return None;
        }
        let is = copy_hashed(&mut file, &mut io::sink(), u64::MAX).is_ok_and(|(found, _)| found == *digest);
        // Mostly it is, having been read from there. But some containers have boots of their own, beside others that are still at it.
        let is = is && file.sync_all().is_ok();
        if !is {
            let _ = remove_ours(path);
        } else if rename_into(path, &self.blob(digest)).is_err() {
            // It may be another user's to rename.
            return self.path(digest).is_ok().then_some(true);
        }
        Some(is)
    }
}

/// No links are followed, and nothing is waited for.
fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Where the kernel shows a file that is open.
fn fd_path(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd as _;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Renames into a folder that may not be there yet.
fn rename_into(path: &Path, target: &Path) -> io::Result<()> {
    match fs::rename(path, target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        renamed => return renamed,
    }
    make_parent(target)?;
    fs::rename(path, target)
}

/// Makes the folder of a file, for those who may write to the folders of the cache, whoever makes it.
pub(super) fn make_parent(target: &Path) -> io::Result<()> {
    let Some((folder, above)) = target.parent().and_then(|folder| Some((folder, folder.parent()?))) else {
        return Ok(());
    };
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    // As far as that may be; and no links are followed, which somebody may just have put there.
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(folder);
    if let (Ok(above), Ok(folder)) = (fs::metadata(above), opened) {
        let _ = fchown(&folder, None, Some(Gid::from_raw(above.gid())));
        let _ = folder.set_permissions(fs::Permissions::from_mode(above.mode() & 0o7777));
    }
    Ok(())
}

/// Which file it is by its name.
fn digest_of(path: &Path) -> Option<Digest> {
    path.file_name()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Begun, Inner, Placed, damage};
    use super::*;

    const THIS: &str = "11111111-1111-1111-1111-111111111111";
    const BEFORE: &str = "22222222-2222-2222-2222-222222222222";
    const AFTER: &str = "33333333-3333-3333-3333-333333333333";

    /// A cache in a folder, as after a boot of that name.
    fn booted(root: &Path, boot: Option<&str>) -> Cache {
        limited(root, boot, None)
    }

    fn limited(root: &Path, boot: Option<&str>, limit: Option<u64>) -> Cache {
        let mut cache = Cache::open(root, limit).expect("a cache");
        let (root, unsynced) = (root.to_owned(), Unsynced::of(root, boot).expect("folders"));
        cache.inner = Arc::new(Inner { root, limit, kept: Mutex::default(), unsynced });
        cache
    }

    /// Gives a file both its names, as whoever stops in between leaves it.
    fn link(cache: &Cache, digest: &Digest) {
        let blob = cache.blob(digest);
        make_parent(&blob).expect("a folder");
        fs::hard_link(cache.path(digest).expect("there"), blob).expect("a link");
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
        let cache = booted(folder.path(), Some(THIS));
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
        check(&folder.path().join(FOLDER).join(THIS).join(digest.to_string()));
        assert_eq!(cache.sync().expect("synced"), 1);
        check(&cache.blob(&digest));
        assert_eq!(cache.sync().expect("synced"), 0);
    }

    #[test]
    fn what_was_not_known_to_be_on_the_disk_when_the_machine_stopped_is_held_against_its_digest() {
        let folder = tempfile::tempdir().expect("a folder");
        let before = booted(folder.path(), Some(BEFORE));
        let synced = take(&before, b"synced");
        before.sync().expect("synced");
        let [whole, torn, short, unread] =
            [b"whole", b"torn!", b"short", b"unrd!"].map(|bytes| take(&before, bytes));
        let tear = |digest, bytes: &[u8]| damage(&before.path(digest).expect("there"), bytes);
        tear(&torn, &[0; 5]);
        tear(&short, b"");
        let after = booted(folder.path(), Some(AFTER));
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
        assert_eq!(fs::read_dir(folder.path().join(FOLDER).join(BEFORE)).expect("a folder").count(), 2);
        // What nobody asks for counts, and makes way; so does what is of another size.
        assert_eq!(after.usage().expect("usage").files, 4);
        let room = after.make_room_within(0, 0).expect("room");
        assert_eq!(room.left.files, 0);
        assert!(!folder.path().join(FOLDER).join(BEFORE).join(unread.to_string()).exists());
        assert_eq!(boots(&after), [BEFORE]);
        assert_eq!(boots(&booted(folder.path(), Some(AFTER))), [""; 0], "an empty folder goes");
    }

    #[test]
    fn members_of_an_archive_outlive_a_stop_as_well() {
        let folder = tempfile::tempdir().expect("a folder");
        let before = booted(folder.path(), Some(BEFORE));
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        tar.append_data(&mut header, "a.bin", &b"one"[..]).expect("added");
        let archive = take(&before, &tar.into_inner().expect("an archive"));
        let (kind, limits) = (crate::archive::ArchiveKind::of("a.tar").expect("one"), Default::default());
        let members = before.unpack(&archive, kind, &limits, &Default::default()).expect("unpacked");
        let after = booted(folder.path(), Some(AFTER));
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
        let cache = booted(folder.path(), Some(THIS));
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
                let other = booted(folder.path(), Some(THIS));
                scope.spawn(move || other.sync().expect("synced"));
                cache.sync().expect("synced");
                moved.store(true, Ordering::Relaxed);
            });
        }
    }

    #[test]
    fn files_get_to_the_disk_with_nobody_waiting() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = booted(folder.path(), Some(THIS));
        let until = |digest: &Digest| {
            let begun = std::time::Instant::now();
            while !cache.blob(digest).exists() {
                assert!(begun.elapsed() < Duration::from_secs(60), "it stays where it was");
                std::thread::yield_now();
            }
        };
        let left = take(&booted(folder.path(), Some(THIS)), b"by a process that ended");
        cache.sync_after(Duration::ZERO);
        until(&left);
        for bytes in [b"one", b"two"] {
            let digest = take(&cache, bytes);
            cache.sync_after(Duration::ZERO);
            until(&digest);
        }
    }

    #[test]
    fn what_is_none_of_ours_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = booted(folder.path(), Some(THIS));
        let at = folder.path().join(FOLDER).join(THIS);
        fs::create_dir_all(&at).expect("a folder");
        fs::write(at.join("README"), b"stray").expect("a file");
        let (link, target) = (at.join(Digest::of(b"x").to_string()), folder.path().join("elsewhere"));
        fs::write(&target, b"x").expect("a file");
        std::os::unix::fs::symlink(&target, &link).expect("a link");
        let digest = Digest::of(b"y");
        fs::create_dir(at.join(digest.to_string())).expect("a folder");
        assert_eq!(cache.sync().expect("passed over"), 0);
        assert_eq!(take(&cache, b"y"), digest, "a folder is in the way");
        assert!(cache.has(&digest, 1).expect("the cache"));
        assert_eq!(
            (at.join("README").exists(), fs::read(&link).expect("still a link")),
            (true, b"x".to_vec())
        );
        assert!(!cache.has(&Digest::of(b"x"), 1).expect("the cache"));
    }

    #[test]
    fn where_nothing_may_be_put_a_file_is_on_the_disk_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = booted(folder.path(), Some(THIS));
        // As another user's folder would be, also for who may do everything.
        fs::remove_dir(folder.path().join(FOLDER)).expect("ours");
        fs::write(folder.path().join(FOLDER), b"").expect("a file");
        let digest = take(&cache, b"weights");
        assert_eq!(cache.path(&digest).expect("there"), cache.blob(&digest));
    }

    #[test]
    fn what_has_the_name_already_is_replaced_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = booted(folder.path(), Some(THIS));
        let digest = take(&cache, b"weights");
        cache.sync().expect("synced");
        let blob = cache.blob(&digest);
        damage(&blob, b"weig");
        take(&cache, b"weights");
        assert_eq!(fs::read(&blob).expect("there"), b"weights");
        assert_eq!(fs::read_dir(folder.path().join(FOLDER).join(THIS)).expect("a folder").count(), 0);
    }

    #[test]
    fn a_file_that_took_anothers_place_while_that_was_synced_is_not_taken_for_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = booted(folder.path(), Some(THIS));
        let digest = take(&cache, b"weights");
        let path = cache.path(&digest).expect("there");
        let first = fs::metadata(&path).expect("there").ino();
        // Two have written it at once: one is in both places by now, the other in the first.
        link(&cache, &digest);
        fs::remove_file(&path).expect("ours");
        fs::write(&path, b"weights").expect("a file");
        assert_eq!(cache.sync().expect("synced"), 0);
        assert_eq!(fs::metadata(cache.blob(&digest)).expect("there").ino(), first);
        assert!(!path.exists());
    }

    #[test]
    fn who_states_another_size_takes_nothing_from_others_after_a_boot() {
        let folder = tempfile::tempdir().expect("a folder");
        let digest = take(&booted(folder.path(), Some(BEFORE)), b"weights");
        let after = booted(folder.path(), Some(AFTER));
        assert!(matches!(after.begin(&digest, 8, 4).expect("begun"), Begun::Ours(_)));
        assert!(matches!(after.begin(&digest, 7, 4).expect("begun"), Begun::Here));
    }

    #[test]
    fn what_is_there_of_an_earlier_boot_is_not_missing() {
        let folder = tempfile::tempdir().expect("a folder");
        let before = booted(folder.path(), Some(BEFORE));
        let digest = take(&before, &[1; 60]);
        before.place(&digest, &folder.path().join("tree")).expect("placed");
        let after = booted(folder.path(), Some(AFTER));
        let wanted = std::collections::BTreeMap::from([(digest, 60), (Digest::of(b"rest"), 40)]);
        let limited = |limit| limited(folder.path(), Some(AFTER), Some(limit));
        limited(100).make_room_for(&wanted).expect("it is here");
        limited(99).make_room_for(&wanted).expect_err("no room for the rest");
        assert!(after.adopt(&digest, 60).expect("the cache"));
    }

    #[test]
    fn verifying_judges_what_is_there_of_an_earlier_boot() {
        let folder = tempfile::tempdir().expect("a folder");
        let before = booted(folder.path(), Some(BEFORE));
        let [whole, torn] = [b"whole", b"torn!"].map(|bytes| take(&before, bytes));
        let path = before.path(&torn).expect("there");
        damage(&path, &[0; 5]);
        let after = booted(folder.path(), Some(AFTER));
        assert_eq!(after.blobs().expect("blobs").len(), 2);
        assert_eq!(
            [whole, torn].map(|digest| after.verify(&digest).expect("read")),
            [Some(true), Some(false)]
        );
        assert_eq!(after.blobs().expect("blobs").len(), 1);
        assert!(after.has(&whole, 5).expect("the cache"));
    }

    #[test]
    fn who_stops_between_two_names_leaves_a_file_that_makes_way_all_the_same() {
        for boot in [THIS, AFTER] {
            let folder = tempfile::tempdir().expect("a folder");
            let before = booted(folder.path(), Some(THIS));
            let digest = take(&before, b"weights");
            link(&before, &digest);
            let cache = booted(folder.path(), Some(boot));
            let usage = cache.usage().expect("usage");
            assert_eq!((usage.files, usage.bytes, usage.linked), (1, 7, 0), "nobody uses it");
            assert_eq!(cache.make_room_within(0, 0).expect("room").files, 1);
            assert_eq!(cache.usage().expect("usage").files, 0);
            assert_eq!(fs::read_dir(folder.path().join(FOLDER).join(THIS)).expect("a folder").count(), 0);
        }
    }

    #[test]
    fn a_target_that_cannot_be_written_is_no_file_that_made_way() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = booted(folder.path(), Some(THIS));
        let digest = take(&cache, b"weights");
        fs::write(folder.path().join("file"), b"").expect("a file");
        let error = cache.place(&digest, &folder.path().join("file/below")).expect_err("no folder");
        assert_ne!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn only_where_no_other_machine_writes_is_the_disk_left_for_later() {
        assert!(is_here(tempfile::tempdir().expect("a folder").path()) && is_here(Path::new("/dev/shm")));
        assert!(!is_here(Path::new("/proc")) && !is_here(Path::new("/proc/nothing")));
    }
}
