//! The file that keys are kept in.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::Secret;
use crate::key::check_key;
use crate::source::{KeyError, Which};

/// No file of keys is longer, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// What the file holds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyFile {
    pub(crate) primary: Secret,
    pub(crate) secondary: Option<Secret>,
}

/// Reads the file; `None` if there is none.
pub(crate) fn read(path: &Path) -> Result<Option<KeyFile>, KeyError> {
    let read_error = |source| KeyError::Read { path: path.into(), source };
    let file = match File::open(path) {
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
    if mode & 0o077 != 0 {
        return Err(KeyError::OpenToOthers { path: path.into(), mode });
    }
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(read_error)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(KeyError::TooLarge { path: path.into() });
    }
    let keys = parse(path, &text);
    drop(Secret::new(text));
    keys.map(Some)
}

pub(crate) fn parse(path: &Path, text: &str) -> Result<KeyFile, KeyError> {
    let keys: KeyFile = toml::from_str(text).map_err(|error| {
        // What the parser says may quote the file and with it a key, so the line number is all that is passed
        // on.
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or_default();
        KeyError::Form { path: path.into(), line: before.matches('\n').count() + 1 }
    })?;
    for (which, key) in [(Which::Primary, Some(&keys.primary)), (Which::Secondary, keys.secondary.as_ref())] {
        if let Some(Err(fault)) = key.map(check_key) {
            return Err(KeyError::InFile { path: path.into(), which, fault });
        }
    }
    Ok(keys)
}

/// Writes the file, readable by its owner only, unless somebody else was first: then `false`, and their file
/// stands.
///
/// The file appears under its name all at once, so that nobody ever reads half of it.
pub(crate) fn create(path: &Path, primary: &Secret, secondary: &Secret) -> Result<bool, KeyError> {
    let write_error = |source| KeyError::Write { path: path.into(), source };
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(write_error)?;

    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().ok_or_else(|| KeyError::NotAFile { path: path.into() })?);
    name.push(format!(".{:016x}", getrandom::u64().map_err(KeyError::Random)?));
    let temporary = Temporary(folder.join(name));

    let text = Secret::new(format!(
        "# The keys of this service; each of the two opens it. Nobody but its user may read this file (mode 0600).\n\
         primary = \"{}\"\nsecondary = \"{}\"\n",
        primary.expose(),
        secondary.expose()
    ));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary.0)
        .map_err(write_error)?;
    file.write_all(text.expose().as_bytes()).and_then(|()| file.sync_all()).map_err(write_error)?;

    // A link, unlike a rename, never replaces a file that is there.
    match fs::hard_link(&temporary.0, path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(write_error(error)),
    }
    // The name must outlive a power failure, as the keys may have been handed out by then.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(write_error)?;
    Ok(true)
}

/// A file that is removed in the end, however it ends.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is gone already if creating it failed.
        let _ = fs::remove_file(&self.0);
    }
}
