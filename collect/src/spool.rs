//! The folder of a replica's logs: whose it is, and which numbers its objects have.
//!
//! ```text
//! lock            held by the process that has it
//! instance.json   the name of the instance, and the first number that no object has
//! logs/NAME       the log of a collection
//! ```
//!
//! Numbers are taken in blocks, and a block is on disk before any number of it is used: whatever else is lost, no two objects have the same name.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::collections::OpenError;
use crate::settings::is_name;

/// Numbers that are taken at a time.
const BLOCK: u64 = 1024;

/// A spool that this process has.
#[derive(Debug)]
pub(crate) struct Spool {
    dir: PathBuf,
    instance: String,
    next: u64,
    /// The first number that is not ours yet.
    end: u64,
    /// Locked for as long as it is open.
    _lock: File,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Instance {
    instance: String,
    next: u64,
}

impl Spool {
    /// Opens a spool, which is made where there is none.
    ///
    /// # Errors
    /// If another process has it, or it cannot be made, read or written.
    pub(crate) fn open(dir: &Path) -> Result<Self, OpenError> {
        let error = |path: &Path| {
            let path = path.to_owned();
            |source| OpenError::Spool { path, source }
        };
        let logs = dir.join("logs");
        DirBuilder::new().recursive(true).mode(0o700).create(&logs).map_err(error(&logs))?;
        let path = dir.join("lock");
        let lock = private().create(true).truncate(false).open(&path).map_err(error(&path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::Taken(dir.to_owned())),
            Err(errno) => return Err(error(&path)(errno.into())),
        }
        let path = dir.join("instance.json");
        let known = match fs::read(&path) {
            // A file that is none of ours is no reason not to start: another instance has names of its own.
            Ok(bytes) => serde_json::from_slice::<Instance>(&bytes)
                .ok()
                .filter(|known| is_name(&known.instance, false)),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => None,
            Err(other) => return Err(error(&path)(other)),
        };
        let is_known = known.is_some();
        let fresh = || Instance { instance: uuid::Uuid::new_v4().simple().to_string(), next: 0 };
        let Instance { instance, next } = known.unwrap_or_else(fresh);
        let mut spool = Self { dir: dir.to_owned(), instance, next, end: next, _lock: lock };
        // The disk may be full, which keeps nobody from serving: numbers are made ready when one is needed, and the name with them.
        if !is_known {
            match spool.ensure(1) {
                Err(full) if may_pass(&full) => {}
                other => other.map_err(error(&path))?,
            }
        }
        Ok(spool)
    }

    /// Goes on after a number that an object of the log has: of one whose name was lost, numbers would begin anew.
    pub(crate) fn pass(&mut self, number: u64) {
        if number >= self.next {
            self.next = number.saturating_add(1);
            self.end = self.end.max(self.next);
        }
    }

    /// The name of this instance, in those of its objects.
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// The folder of a collection's log.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(name)
    }

    /// The collections of which there is a log.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub(crate) fn logs(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.dir.join("logs"))? {
            names.extend(entry?.file_name().into_string().ok().filter(|name| is_name(name, false)));
        }
        Ok(names)
    }

    /// Makes so many numbers ready.
    ///
    /// # Errors
    /// If that cannot be written down.
    pub(crate) fn ensure(&mut self, numbers: u64) -> io::Result<()> {
        if self.end - self.next >= numbers {
            return Ok(());
        }
        let end = self.next.saturating_add(numbers.max(BLOCK));
        let known = Instance { instance: self.instance.clone(), next: end };
        let (path, new) = (self.dir.join("instance.json"), self.dir.join("instance.new"));
        let mut file = private().create(true).truncate(true).open(&new)?;
        file.write_all(&serde_json::to_vec(&known)?)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(&self.dir)?.sync_all()?;
        self.end = end;
        Ok(())
    }

    /// The next number, if one is ready.
    pub(crate) fn number(&mut self) -> Option<u64> {
        let number = self.next;
        (number < self.end).then(|| {
            self.next += 1;
            number
        })
    }
}

/// Whether a disk is full, or fails, which may be over later.
pub(crate) fn may_pass(error: &io::Error) -> bool {
    use rustix::io::Errno;
    Errno::from_io_error(error).is_some_and(|errno| [Errno::NOSPC, Errno::DQUOT, Errno::IO].contains(&errno))
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_never_used_twice_and_a_spool_has_one_owner() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut spool = Spool::open(dir.path()).expect("it is free");
        let instance = spool.instance().to_owned();
        let used: Vec<_> = (0..3).filter_map(|_| spool.number()).collect();
        assert!(matches!(Spool::open(dir.path()), Err(OpenError::Taken(_))));
        drop(spool);
        let mut spool = Spool::open(dir.path()).expect("it is free");
        assert_eq!(spool.instance(), instance);
        spool.ensure(5000).expect("there is room");
        let more: Vec<_> = std::iter::from_fn(|| spool.number()).collect();
        assert!(more.len() >= 5000 && more.iter().all(|number| !used.contains(number)));
        drop(spool);
        fs::write(dir.path().join("instance.json"), "{").expect("a file");
        let mut spool = Spool::open(dir.path()).expect("it is free");
        assert_ne!(spool.instance(), instance);
        spool.pass(7000);
        assert_eq!(spool.number(), None, "it is not written down yet");
        spool.ensure(1).expect("there is room");
        assert_eq!(spool.number(), Some(7001));
    }
}
