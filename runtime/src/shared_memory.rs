//! Shared memory of callers on the same machine: files in one directory, registered under names, which are each caller's
//! own. The files are not: whoever may use shared memory can register each of them.
//!
//! They are read and written by system calls, not mapped: whoever made such a file may cut it short at any time, and to touch what is
//! not there any more would end the process. That is one copy of a tensor, within the machine's memory.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_auth::CallerId;
use outrigger_backend::Buffer;
use outrigger_protocol::call::{Regions, Slice, no_region};
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::oip::messages::RegionStatus;
use rustix::fs::{Mode, OFlags};

use crate::apart::apart;

/// Longest name of a region, and of a file, bytes.
const MAX_NAME: usize = 255;

/// A region that is registered.
struct Region {
    file: File,
    key: String,
    offset: u64,
    bytes: u64,
}

/// All that are.
pub(crate) struct SharedMemory {
    directory: Option<PathBuf>,
    /// How many there may be.
    most: usize,
    regions: Mutex<HashMap<(CallerId, String), Arc<Region>>>,
}

fn bad(text: String) -> CallError {
    CallError::new(ErrorCode::BadRequest, text)
}

impl SharedMemory {
    /// That of files in `directory`; none where there is no directory.
    pub(crate) fn new(directory: Option<PathBuf>, most: usize) -> Self {
        Self { directory, most, regions: Mutex::default() }
    }

    /// Whether callers may register any.
    pub(crate) fn is_on(&self) -> bool {
        self.directory.is_some()
    }

    /// That of one caller.
    pub(crate) fn of(&self, caller: CallerId) -> CallerMemory<'_> {
        CallerMemory { all: self, caller }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(CallerId, String), Arc<Region>>> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory.
    ///
    /// # Errors
    /// `not_found` where there is none.
    fn directory(&self) -> Result<&Path, CallError> {
        let off = "shared memory is not offered here: score.shared_memory names no directory";
        self.directory.as_deref().ok_or_else(|| CallError::new(ErrorCode::NotFound, off))
    }
}

/// The regions of one caller.
pub(crate) struct CallerMemory<'a> {
    all: &'a SharedMemory,
    caller: CallerId,
}

impl CallerMemory<'_> {
    fn key(&self, name: &str) -> (CallerId, String) {
        (self.caller, name.to_owned())
    }

    /// Makes part of a file known under a name.
    ///
    /// # Errors
    /// `bad_request` for a name or file that cannot be, `conflict` for a name that is taken, `overloaded` when there are too many,
    /// `not_found` where shared memory is not offered.
    pub(crate) fn register(&self, name: &str, key: &str, offset: u64, bytes: u64) -> Result<(), CallError> {
        let directory = self.all.directory()?;
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(bad(format!("the name of a region has 1 to {MAX_NAME} bytes")));
        }
        let file = open(directory, key)?;
        let region = Region { file, key: key.to_owned(), offset, bytes };
        region.holds(0, bytes)?;
        let mut regions = self.all.lock();
        if regions.contains_key(&self.key(name)) {
            let text = format!("a region is registered as `{}` already", shown(name));
            return Err(CallError::new(ErrorCode::Conflict, text));
        }
        if regions.len() >= self.all.most {
            let text = format!("{} regions are registered, score.shared_memory_regions", self.all.most);
            return Err(CallError::new(ErrorCode::Overloaded, text));
        }
        regions.insert(self.key(name), Arc::new(region));
        Ok(())
    }

    /// Forgets a region, or all of the caller's. One that is not there is forgotten already.
    ///
    /// # Errors
    /// `not_found` where shared memory is not offered.
    pub(crate) fn unregister(&self, name: Option<&str>) -> Result<(), CallError> {
        self.all.directory()?;
        match name {
            Some(name) => drop(self.all.lock().remove(&self.key(name))),
            None => self.all.lock().retain(|(caller, _), _| *caller != self.caller),
        }
        Ok(())
    }

    /// The caller's regions, by name; one of them, if it is named.
    ///
    /// # Errors
    /// `bad_request` if there is none of that name, `not_found` where shared memory is not offered.
    pub(crate) fn status(&self, name: Option<&str>) -> Result<Vec<RegionStatus>, CallError> {
        self.all.directory()?;
        if let Some(name) = name {
            return Ok(vec![status(name, &*self.region(name)?)]);
        }
        let regions = self.all.lock();
        let own = regions.iter().filter(|((caller, _), _)| *caller == self.caller);
        let mut all: Vec<_> = own.map(|((_, name), region)| status(name, region)).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    fn region(&self, name: &str) -> Result<Arc<Region>, CallError> {
        if name.len() > MAX_NAME {
            return Err(no_region(name));
        }
        self.all.lock().get(&self.key(name)).cloned().ok_or_else(|| no_region(name))
    }

    /// Whether there is such a part of a region, before anything is done for it.
    ///
    /// # Errors
    /// `bad_request` if not.
    pub(crate) fn check(&self, slice: &Slice) -> Result<(), CallError> {
        self.region(&slice.region)?.holds(slice.offset, slice.bytes).map(drop)
    }

    /// Writes an output to where the call wants it.
    ///
    /// # Errors
    /// `bad_request` if there is no such region, or less room than the output takes.
    pub(crate) fn write(&self, output: &str, slice: &Slice, data: &[u8]) -> Result<(), CallError> {
        let region = self.region(&slice.region)?;
        let length = data.len() as u64;
        if length > slice.bytes {
            let (room, output) = (slice.bytes, shown(output));
            let text = format!("output `{output}` has {length} bytes, its shared_memory_byte_size is {room}");
            return Err(CallError::new(ErrorCode::InvalidTensor, text));
        }
        let at = region.holds(slice.offset, slice.bytes)?;
        apart(data.len(), || region.file.write_all_at(data, at))
            .map_err(|error| unusable(&slice.region, &error))
    }
}

impl Regions for CallerMemory<'_> {
    fn read(&self, slice: &Slice) -> Result<Buffer, CallError> {
        let region = self.region(&slice.region)?;
        let at = region.holds(slice.offset, slice.bytes)?;
        let length = usize::try_from(slice.bytes).unwrap_or(usize::MAX);
        let mut buffer = Buffer::zeroed(length).map_err(|_| {
            let text = format!("no memory is free for what is in region `{}`", shown(&slice.region));
            CallError::new(ErrorCode::Overloaded, text)
        })?;
        apart(length, || region.file.read_exact_at(&mut buffer, at))
            .map_err(|error| unusable(&slice.region, &error))?;
        Ok(buffer)
    }
}

impl Region {
    /// Where a part begins in the file, if the region, and the file as it is now, hold it.
    fn holds(&self, offset: u64, bytes: u64) -> Result<u64, CallError> {
        let end = offset.checked_add(bytes).filter(|end| *end <= self.bytes);
        let at = self.offset.checked_add(offset);
        let length = self.file.metadata().map_or(0, |metadata| metadata.len());
        match (at, end.and_then(|end| self.offset.checked_add(end))) {
            (Some(at), Some(end)) if end <= length => Ok(at),
            _ => {
                let (all, from) = (self.bytes, self.offset);
                Err(bad(format!(
                    "{bytes} bytes from {offset} are not all in the region, which has {all} from {from} of a file that may be shorter"
                )))
            }
        }
    }
}

/// Opens a file of the directory: a plain one, not through a link, and not by a path.
fn open(directory: &Path, key: &str) -> Result<File, CallError> {
    let name = key.strip_prefix('/').unwrap_or(key);
    let plain = !name.is_empty() && name.len() <= MAX_NAME && !name.contains(['/', '\0']);
    if !plain || [".", ".."].contains(&name) {
        return Err(bad("the key of a region is a file's name, with at most one `/` before it".into()));
    }
    let missing = || bad(format!("the shared memory `{}` cannot be opened", shown(key)));
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let path = directory.join(OsStr::new(name));
    let file = File::from(rustix::fs::open(&path, flags, Mode::empty()).map_err(|_| missing())?);
    if file.metadata().is_ok_and(|metadata| metadata.is_file()) { Ok(file) } else { Err(missing()) }
}

fn status(name: &str, region: &Region) -> RegionStatus {
    RegionStatus {
        name: name.to_owned(),
        key: region.key.clone(),
        offset: region.offset,
        byte_size: region.bytes,
    }
}

fn unusable(name: &str, error: &std::io::Error) -> CallError {
    bad(format!("the region `{}` cannot be used: {}", shown(name), error.kind()))
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: CallerId = CallerId::PRIMARY;
    const OTHER: CallerId = CallerId::SECONDARY;

    fn slice(region: &str, offset: u64, bytes: u64) -> Slice {
        Slice { region: region.into(), offset, bytes }
    }

    fn with_file(length: usize) -> (tempfile::TempDir, SharedMemory) {
        let directory = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..length).map(|index| index as u8).collect();
        std::fs::write(directory.path().join("shm"), bytes).unwrap();
        let memory = SharedMemory::new(Some(directory.path().into()), 2);
        (directory, memory)
    }

    fn code<T>(result: Result<T, CallError>) -> ErrorCode {
        result.err().unwrap().code
    }

    #[test]
    fn what_is_registered_is_read_and_written() {
        let (directory, memory) = with_file(100);
        let own = memory.of(ONE);
        own.register("in", "/shm", 10, 50).unwrap();
        assert_eq!(&own.read(&slice("in", 2, 3)).unwrap()[..], [12, 13, 14]);
        assert!(own.read(&slice("in", 50, 0)).unwrap().is_empty());
        own.write("y", &slice("in", 48, 2), &[1, 2]).unwrap();
        let bytes = std::fs::read(directory.path().join("shm")).unwrap();
        assert_eq!((bytes.len(), &bytes[57..61]), (100, &[57, 1, 2, 60][..]));
        let status = own.status(None).unwrap();
        assert_eq!(
            (status.len(), &*status[0].key, status[0].offset, status[0].byte_size),
            (1, "/shm", 10, 50)
        );
        own.unregister(Some("in")).unwrap();
        assert_eq!(code(own.read(&slice("in", 0, 1))), ErrorCode::BadRequest);
    }

    #[test]
    fn nothing_beyond_a_region_is_touched_also_when_its_file_is_cut_short() {
        let (directory, memory) = with_file(100);
        let own = memory.of(ONE);
        for (offset, bytes) in [(0, 101), (100, 1), (u64::MAX, 1), (1, u64::MAX)] {
            assert_eq!(code(own.register("r", "shm", offset, bytes)), ErrorCode::BadRequest);
        }
        own.register("r", "shm", 0, 60).unwrap();
        for (offset, bytes) in [(60, 1), (0, 61), (u64::MAX, 2)] {
            assert_eq!(code(own.read(&slice("r", offset, bytes))), ErrorCode::BadRequest);
            assert_eq!(code(own.write("y", &slice("r", offset, bytes), &[1])), ErrorCode::BadRequest);
        }
        assert_eq!(code(own.write("y", &slice("r", 0, 1), &[1, 2])), ErrorCode::InvalidTensor);
        let file = File::options().write(true).open(directory.path().join("shm")).unwrap();
        file.set_len(20).unwrap();
        assert_eq!(code(own.read(&slice("r", 0, 60))), ErrorCode::BadRequest);
        assert_eq!(code(own.write("y", &slice("r", 19, 2), &[1, 2])), ErrorCode::BadRequest);
        assert_eq!(file.metadata().unwrap().len(), 20);
    }

    #[test]
    fn names_stay_in_the_directory() {
        let (directory, memory) = with_file(8);
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(outside.path(), [0; 8]).unwrap();
        std::os::unix::fs::symlink(outside.path(), directory.path().join("link")).unwrap();
        std::fs::create_dir(directory.path().join("folder")).unwrap();
        let absolute = outside.path().to_str().unwrap();
        for key in
            ["", "/", ".", "..", "../x", "//shm", "folder/x", "a\0b", "link", "folder", "nothing", absolute]
        {
            assert_eq!(code(memory.of(ONE).register("r", key, 0, 1)), ErrorCode::BadRequest, "{key}");
        }
    }

    #[test]
    fn regions_are_their_callers_and_not_many() {
        let (_directory, memory) = with_file(8);
        memory.of(ONE).register("r", "shm", 0, 8).unwrap();
        assert_eq!(code(memory.of(OTHER).read(&slice("r", 0, 1))), ErrorCode::BadRequest);
        memory.of(OTHER).unregister(None).unwrap();
        assert!(memory.of(OTHER).status(None).unwrap().is_empty());
        assert_eq!(code(memory.of(ONE).register("r", "shm", 0, 8)), ErrorCode::Conflict);
        memory.of(OTHER).register("r", "shm", 0, 8).unwrap();
        assert_eq!(code(memory.of(ONE).register("s", "shm", 0, 8)), ErrorCode::Overloaded);
        assert_eq!(memory.of(ONE).status(Some("r")).unwrap().len(), 1);
        assert_eq!(code(SharedMemory::new(None, 9).of(ONE).register("r", "shm", 0, 8)), ErrorCode::NotFound);
    }
}
