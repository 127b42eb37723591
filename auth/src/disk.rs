//! Files that only their owner may read: how they are read, replaced and locked.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::{KeyError, Secret};

/// How long somebody else may be at a file before that is an error.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked again meanwhile.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Permissions of everybody's to read and to write.
const OTHERS: u32 = 0o006;
/// Those of a group.
const GROUP: u32 = 0o060;

/// Where files are, which says who everybody is that a file may be open to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Surroundings {
    /// A machine, on which there may be others.
    #[default]
    Machine,
    /// A container, in which there is nobody else, and secrets are mounted open to everybody unless somebody has thought of it.
    Container,
}

/// Whether the file at a path is open to others than its owner and its group, which is so with these permissions; nothing where it is not, or
/// cannot be asked.
pub fn open_to_others(path: &Path) -> Option<u32> {
    let mode = fs::metadata(path).ok().filter(fs::Metadata::is_file)?.permissions().mode() & 0o777;
    (mode & OTHERS != 0).then_some(mode)
}

/// What tells whether a file is the one that was read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    place: (u64, u64),
    size: u64,
    /// Changed with every write, and with permissions, too.
    times: [(i64, i64); 2],
}

impl FileStamp {
    /// That of the file at a path; nothing where there is none, or it cannot be asked.
    pub fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            place: (found.dev(), found.ino()),
            size: found.size(),
            times: [(found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())],
        })
    }
}

/// A file that nobody but its owner, and a group that has been given it, may read or write.
#[derive(Clone, Debug)]
pub struct PrivateFile {
    path: PathBuf,
}

impl PrivateFile {
    /// That at this path, which need not be there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Reads it, at most so many bytes; `None` if there is none.
    ///
    /// # Errors
    /// [`KeyError`] if it is open to others, larger, or cannot be read.
    pub fn read(&self, most: u64) -> Result<Option<Secret>, KeyError> {
        read(&self.path, most, Surroundings::Machine)
    }

    /// Writes it whole, in place of what there is.
    ///
    /// # Errors
    /// [`KeyError`] if it cannot be written.
    pub fn write(&self, text: &str) -> Result<(), KeyError> {
        replace(&self.path, text)
    }
}

/// Reads a file of at most so many bytes; `None` if there is none.
pub(crate) fn read(path: &Path, most: u64, surroundings: Surroundings) -> Result<Option<Secret>, KeyError> {
    let read_error = |source| KeyError::Read { path: path.into(), source };
    // A pipe would keep whoever opens it until somebody writes.
    let file = match OpenOptions::new().read(true).custom_flags(flags(OFlags::NONBLOCK)).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read_error(error)),
    };
    // Asked of the open file, so that it is the one that is read.
    let metadata = file.metadata().map_err(read_error)?;
    if !metadata.is_file() {
        return Err(KeyError::NotAFile { path: path.into() });
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & OTHERS != 0 && surroundings == Surroundings::Machine {
        return Err(KeyError::OpenToOthers { path: path.into(), mode });
    }
    let mut text = String::new();
    file.take(most + 1).read_to_string(&mut text).map_err(read_error)?;
    let text = Secret::new(text);
    if text.expose().len() as u64 > most {
        return Err(KeyError::TooLarge { path: path.into() });
    }
    Ok(Some(text))
}

/// Writes the file, readable by its owner only, unless somebody else was first: then `false`, and their file stands.
///
/// The file appears under its name all at once, so that nobody ever reads half of it.
pub(crate) fn create(path: &Path, text: &str) -> Result<bool, KeyError> {
    let folder = made_folder(path)?;
    let temporary = written(path, folder, text)?;
    // A link, unlike a rename, never replaces a file that is there.
    match fs::hard_link(&temporary.0, path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(write_error(path)(error)),
    }
    synced(path, folder)?;
    Ok(true)
}

/// The same in place of a file that may be there. Its owner stays who it was, so that an administrator takes no file from a service.
pub(crate) fn replace(path: &Path, text: &str) -> Result<(), KeyError> {
    // A link to the file stays one.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let folder = made_folder(&target)?;
    let temporary = written(&target, folder, text)?;
    fs::rename(&temporary.0, &target).map_err(write_error(path))?;
    synced(path, folder)
}

/// Removes the file; nothing where there is none. Where a link leads to it, both go: what is in the file is what is to be gone.
pub(crate) fn remove(path: &Path) -> Result<(), KeyError> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    for path in [target.as_path(), path] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(write_error(path)(error)),
            _ => synced(path, folder_of(path))?,
        }
    }
    Ok(())
}

/// That nobody else changes a file; free again when it is dropped, or its process has ended.
pub(crate) struct Lock(#[expect(dead_code, reason = "held for its lock")] File);

/// Locks what is beside a file under its name and `.lock`, which stays there: the file itself is another one after each change.
pub(crate) fn lock(path: &Path) -> Result<Lock, KeyError> {
    let folder = made_folder(path)?;
    let beside = beside(path, "lock");
    // Whoever may write in the folder may have put a link there, or somebody else's file: no link is followed, and only what is made here is given away.
    let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside) {
        Ok(file) => {
            keep_owner(&file, folder);
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let own = flags(OFlags::NOFOLLOW | OFlags::NONBLOCK);
            OpenOptions::new().write(true).custom_flags(own).open(&beside)
        }
        Err(error) => Err(error),
    };
    let file = file.map_err(write_error(&beside))?;
    if !file.metadata().map_err(write_error(&beside))?.is_file() {
        return Err(KeyError::NotAFile { path: beside });
    }
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock(file)),
            Err(TryLockError::Error(error)) => return Err(write_error(&beside)(error)),
            Err(TryLockError::WouldBlock) if Instant::now() >= until => {
                return Err(KeyError::Locked { path: beside });
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
        }
    }
}

fn flags(flags: OFlags) -> i32 {
    i32::try_from(flags.bits()).unwrap_or_default()
}

/// `keys.toml` and `used` make `keys.toml.used`.
pub(crate) fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(what);
    name.into()
}

fn write_error(path: &Path) -> impl Fn(io::Error) -> KeyError {
    move |source| KeyError::Write { path: path.into(), source }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn made_folder(path: &Path) -> Result<&Path, KeyError> {
    let folder = folder_of(path);
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(write_error(path))?;
    Ok(folder)
}

/// A file beside the one that is meant, with all of the text, on the disk.
fn written(path: &Path, folder: &Path, text: &str) -> Result<Temporary, KeyError> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().ok_or_else(|| KeyError::NotAFile { path: path.into() })?);
    name.push(format!(".{:016x}", getrandom::u64().map_err(KeyError::Random)?));
    let temporary = Temporary(folder.join(name));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary.0)
        .map_err(write_error(path))?;
    match fs::metadata(path) {
        Ok(before) => give_as(&file, &before).map_err(write_error(path))?,
        Err(_) => keep_owner(&file, folder),
    }
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(write_error(path))?;
    Ok(temporary)
}

/// Gives a file to whom another one belongs.
fn give(file: &File, like: &fs::Metadata) -> io::Result<()> {
    let now = file.metadata()?;
    if (now.uid(), now.gid()) == (like.uid(), like.gid()) {
        return Ok(());
    }
    match fchown(file, Some(like.uid()), Some(like.gid())) {
        // Another group alone keeps nobody from a file that no group may read.
        Err(_) if now.uid() == like.uid() && like.mode() & GROUP == 0 => Ok(()),
        done => done,
    }
}

/// The same of a file in whose place it comes: whoever has that by its group has this one.
fn give_as(file: &File, before: &fs::Metadata) -> io::Result<()> {
    give(file, before)?;
    match before.mode() & GROUP {
        0 => Ok(()),
        group => file.set_permissions(fs::Permissions::from_mode(0o600 | group)),
    }
}

/// Gives a new file to whom its folder belongs, where that may be done: an administrator's command makes it for the service.
fn keep_owner(file: &File, folder: &Path) {
    if let Ok(folder) = fs::metadata(folder) {
        let _ = give(file, &folder);
    }
}

/// A name must outlive a power failure, as the keys may have been handed out by then.
fn synced(path: &Path, folder: &Path) -> Result<(), KeyError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(write_error(path))
}

/// A file that is removed in the end, however it ends.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is gone already if creating it failed, or it has its name.
        let _ = fs::remove_file(&self.0);
    }
}
