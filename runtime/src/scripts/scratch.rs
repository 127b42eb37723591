//! The directory for temporary files of a replica's workers: of this replica's alone, and removed at its end, or by the next replica
//! that starts if this one was killed.
//!
//! Who has such a directory holds a lock on it, which the system lets go when the process is gone, however that happened. Workers do not
//! inherit the descriptor. So a directory that can be locked has nobody.

use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

/// What their names begin with; 16 hexadecimal digits follow.
const PREFIX: &str = "outrigger-workers-";
/// How often another name is tried: somebody may take a new directory for one that was left, before it is locked.
const TRIES: usize = 8;

/// A directory that goes when this is dropped.
pub(super) struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

impl Scratch {
    /// Makes a directory that only this user may enter.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn create(folder: &Path) -> io::Result<Self> {
        let mut random = [0; 8];
        let mut last = io::ErrorKind::AlreadyExists.into();
        for _ in 0..TRIES {
            getrandom::fill(&mut random).map_err(io::Error::other)?;
            let path = folder.join(format!("{PREFIX}{:016x}", u64::from_le_bytes(random)));
            std::fs::DirBuilder::new().mode(0o700).create(&path)?;
            match lock(&path) {
                Ok(lock) => return Ok(Self { path, _lock: lock }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Removes the directories of this user's replicas that are no more; which they were.
pub(super) fn remove_stale(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_name));
    let stale = ours.map(|entry| entry.path()).filter(|path| {
        // Held until the directory is gone, so that only one replica removes it.
        let Ok(lock) = lock(path) else { return false };
        let removed = std::fs::remove_dir_all(path).is_ok();
        drop(lock);
        removed
    });
    stale.collect()
}

fn is_name(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// Locks a directory of this user's that nobody has locked and that is still there.
fn lock(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(open(path, flags, Mode::empty())?);
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    let (opened, named) = (file.metadata()?, std::fs::symlink_metadata(path)?);
    let same = (opened.dev(), opened.ino()) == (named.dev(), named.ino());
    if !same || opened.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_has_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let held = Scratch::create(folder.path()).unwrap();
        let stale = at("outrigger-workers-0123456789abcdef");
        std::fs::create_dir_all(stale.join("below")).unwrap();
        std::fs::write(stale.join("below/file"), "x").unwrap();
        for name in [
            "outrigger-workers-",
            "outrigger-workers-0123456789abcdeg",
            "outrigger-workers-0123456789abcdef0",
        ] {
            std::fs::create_dir(at(name)).unwrap();
        }
        let elsewhere = at("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        std::fs::write(elsewhere.join("kept"), "x").unwrap();
        let link = at("outrigger-workers-00000000000000aa");
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        std::fs::write(at("outrigger-workers-00000000000000bb"), "a file").unwrap();

        assert_eq!(remove_stale(folder.path()), std::slice::from_ref(&stale));
        assert!(
            !stale.exists() && held.path().exists() && elsewhere.join("kept").exists() && link.is_symlink()
        );
        assert!(remove_stale(folder.path()).is_empty());
        let path = held.path().to_owned();
        drop(held);
        assert!(!path.exists());
    }

    #[test]
    fn it_is_for_this_user_alone() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(folder.path()).unwrap();
        assert_eq!(std::fs::metadata(scratch.path()).unwrap().mode() & 0o777, 0o700);
    }
}
