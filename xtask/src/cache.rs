//! The folder for what is large and the same in every checkout: `$XDG_CACHE_HOME/outrigger`, or `~/.cache/outrigger`.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::say;

/// The folder, ours alone for one purpose while this lives.
pub(crate) struct Cache {
    pub(crate) folder: PathBuf,
    _lock: File,
}

impl Cache {
    /// Opens it for a purpose: others may use it for theirs meanwhile.
    pub(crate) fn open(purpose: &str) -> Result<Self> {
        let folder = folder()?;
        fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
        // Another checkout may be at it: both write to the same places.
        let lock =
            File::create(folder.join(format!("{purpose}.lock"))).context("could not make the lock file")?;
        if lock.try_lock().is_err() {
            say::line("waiting for another `cargo xtask`, which is at it");
            lock.lock().context("could not take the lock")?;
        }
        Ok(Self { folder, _lock: lock })
    }
}

/// Where it is. Source: the XDG Base Directory Specification, which has it ignore paths that are relative.
pub(crate) fn folder() -> Result<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
    Ok(base.context("neither XDG_CACHE_HOME nor HOME is set")?.join("outrigger"))
}
