//! Opening a library and finding its functions.

use std::fmt;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library as Loaded, RTLD_LOCAL, RTLD_NOW};
use outrigger_script_abi::{AbiFunction, InitFunction, MAJOR, MINOR, RunFunction, ShutdownFunction};

use crate::LoadError;

/// A library whose functions and version are right. Nothing of it has run but its initialisers and
/// `outrigger_script_abi`. It stays loaded until the process ends: it may have started threads.
pub struct Library {
    pub(crate) path: PathBuf,
    pub(crate) init: InitFunction,
    pub(crate) run: RunFunction,
    pub(crate) shutdown: ShutdownFunction,
}

impl Library {
    /// Opens the library at `path` and checks it.
    ///
    /// # Errors
    /// [`LoadError`], but those of `init`.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        // Absolute, so that the loader opens this file and does not search for one of its name.
        let file =
            path.canonicalize().map_err(|source| LoadError::Missing { path: path.to_owned(), source })?;
        let refused = |error: libloading::Error| {
            let reason = match std::error::Error::source(&error) {
                Some(source) => source.to_string(),
                None => error.to_string(),
            };
            LoadError::Open { path: path.to_owned(), reason }
        };
        // All symbols now: one that is missing is an error here and not the end of the process later.
        // SAFETY: opening a library runs its initialisers; the operator named it in order that it be run.
        let library = unsafe { Loaded::open(Some(&file), RTLD_NOW | RTLD_LOCAL) }.map_err(refused)?;
        let library: &'static Loaded = Box::leak(Box::new(library));
        // SAFETY: the header fixes the types of these symbols.
        unsafe {
            // The version first: of another one, nothing else is known.
            let abi: AbiFunction = find(library, path, "outrigger_script_abi")?;
            // Takes nothing, and may be called at any time.
            let version = abi();
            let (major, minor) = (version >> 16, version & 0xffff);
            if major != MAJOR || minor > MINOR {
                return Err(LoadError::Version {
                    path: path.to_owned(),
                    expected: format!("{MAJOR}.{MINOR}"),
                    actual: format!("{major}.{minor}"),
                });
            }
            Ok(Self {
                path: path.to_owned(),
                init: find(library, path, "outrigger_script_init")?,
                run: find(library, path, "outrigger_script_run")?,
                shutdown: find(library, path, "outrigger_script_shutdown")?,
            })
        }
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Library").field(&self.path).finish()
    }
}

/// # Safety
/// The symbol is a function of type `F`.
unsafe fn find<F: Copy>(library: &Loaded, path: &Path, symbol: &'static str) -> Result<F, LoadError> {
    // SAFETY: the caller's promise; an `Option` because a symbol may be null.
    let found = unsafe { library.get::<Option<F>>(symbol.as_bytes()) };
    found.ok().and_then(|function| *function).ok_or(LoadError::Symbol { path: path.to_owned(), symbol })
}
