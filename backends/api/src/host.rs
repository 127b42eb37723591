//! Opens a backend's library and makes the table of [`crate::abi`] a [`Backend`] again.
//!
//! Whatever comes back over the table is checked as far as it can be: a library that breaks the contract is
//! [`BackendError::Internal`], or at worst a wrong number, wherever its pointers are at least readable.

pub(crate) mod describe;
mod handles;
mod library;
mod runs;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::abi::{self, Message, Setting, Text, code};
use crate::{Backend, BackendError};

/// Opens the library at `path` and its backend with `settings`, key and value. The library stays loaded until the process
/// ends, for threads and thread-local data of its own may outlive every handle.
///
/// # Errors
/// [`BackendError::Unavailable`] if there is no library at `path`, it cannot be opened or its settings are refused,
/// [`BackendError::Version`] if it speaks another version, [`BackendError::Internal`] if its table is broken.
pub fn load(path: &Path, settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
    let name = path.display().to_string();
    let table = library::open(path)?;
    // SAFETY: a library that exports the symbol promises the contract of its table, and is never unloaded.
    unsafe { attach(table, &name, settings) }
}

/// Where the library of backend `name` is: the first of `directories` that has `liboutrigger_<name>.so` (or what the
/// operating system calls it).
///
/// # Errors
/// [`BackendError::Unavailable`], listing the paths tried.
pub fn find(name: &str, directories: &[PathBuf]) -> Result<PathBuf, BackendError> {
    let file = libloading::library_filename(format!("outrigger_{name}"));
    let tried: Vec<PathBuf> = directories.iter().map(|directory| directory.join(&file)).collect();
    if let Some(found) = tried.iter().find(|path| path.is_file()) {
        return Ok(found.clone());
    }
    let list: Vec<String> = tried.iter().map(|path| format!("`{}`", path.display())).collect();
    let reason = if list.is_empty() {
        "no folder to look in".into()
    } else {
        format!("no such file, tried {}", list.join(", "))
    };
    Err(BackendError::Unavailable { backend: name.into(), reason })
}

/// Opens the backend behind a table, which is copied. `name` is for messages.
///
/// # Errors
/// As [`load`].
///
/// # Safety
/// `table` is null or points to a table, of the size that it says, whose functions keep the contract of [`crate::abi`] and
/// stay callable until the process ends.
pub unsafe fn attach(
    table: *const abi::Table,
    name: &str,
    settings: &[(String, String)],
) -> Result<Arc<dyn Backend>, BackendError> {
    // SAFETY: promised by the caller.
    let entries = unsafe { library::entries(table, name) }?;
    Ok(Arc::new(handles::HostBackend::open(entries, name, &self::settings(settings))?))
}

/// The form in which settings cross the table; as valid as they are.
fn settings(settings: &[(String, String)]) -> Vec<Setting> {
    settings.iter().map(|(key, value)| Setting { key: Text::of(key), value: Text::of(value) }).collect()
}

/// Room for the reason of a failure; longer ones are cut.
const MESSAGE_BYTES: usize = 2048;

/// Calls an entry and reads what it returns. `name` is the backend's.
fn call(name: &str, entry: impl FnOnce(*mut Message) -> i32) -> Result<(), BackendError> {
    thread_local! {
        /// The room of the last call on this thread: clearing it anew is for each run what several allocations take.
        static ROOM: Cell<Option<Box<[u8; MESSAGE_BYTES]>>> = const { Cell::new(None) };
    }
    // A call within a call, and one while the thread ends, find none.
    let room = ROOM.try_with(Cell::take).ok().flatten();
    let mut room = room.unwrap_or_else(|| Box::new([0; MESSAGE_BYTES]));
    let mut message = Message { data: room.as_mut_ptr(), capacity: room.len(), len: 0 };
    let code = entry(&mut message);
    let len = message.len.min(room.len());
    let result = if code == code::OK { Ok(()) } else { Err(error(name, code, &room[..len])) };
    let _ = ROOM.try_with(|kept| kept.set(Some(room)));
    result
}

/// What a code other than [`code::OK`] says.
fn error(name: &str, code: i32, text: &[u8]) -> BackendError {
    let text = String::from_utf8_lossy(text).into_owned();
    match code {
        code::UNAVAILABLE => BackendError::Unavailable { backend: name.into(), reason: text },
        code::LOAD => BackendError::Load(text),
        code::INPUT => BackendError::Input(text),
        code::OUT_OF_MEMORY => BackendError::OutOfMemory(text),
        code::RUN => BackendError::Run(text),
        code::INTERNAL => BackendError::Internal(text),
        code::CANCELLED => BackendError::Cancelled,
        code::LOST => BackendError::Lost(text),
        code::UNSUPPORTED => BackendError::Unsupported(text),
        other => BackendError::Internal(format!("code {other}: {text}")),
    }
}

/// A broken contract.
fn broken(name: &str, what: impl std::fmt::Display) -> BackendError {
    BackendError::Internal(format!("backend `{name}` broke the contract of the table: {what}"))
}
