//! Folders whose files are loaded and so must be nobody else's.

use std::fs;
use std::io;
use std::path::Path;

/// Makes a folder that is this user's alone (mode 0700), or tells whether the one that is there is. The folder that it lies in must be there.
///
/// A link is none, whatever it leads to: others may have put it there.
///
/// # Errors
/// If the folder can neither be made nor looked at.
#[cfg(unix)]
pub fn private_folder(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = fs::symlink_metadata(path)?;
    Ok(metadata.is_dir()
        && metadata.mode() & 0o077 == 0
        && metadata.uid() == rustix::process::geteuid().as_raw())
}

/// Makes a folder. Whose it is is not looked at on this operating system.
///
/// # Errors
/// If it can not be made.
#[cfg(not(unix))]
pub fn private_folder(path: &Path) -> io::Result<bool> {
    fs::create_dir_all(path)?;
    Ok(true)
}
