//! Finds and opens the backend's library, and the library that it drives.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_backend::{Backend, BackendError, Device, host};

use crate::config::BackendsConfig;

/// Why there is no backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// The library was not found.
    #[error("backend library {name} was not found; looked in {}; set backends.path", list(.tried))]
    Missing {
        /// The file's name.
        name: String,
        /// Directories.
        tried: Vec<PathBuf>,
    },
    /// The library does not open.
    #[error("backend library {path} cannot be used")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: BackendError,
    },
    /// The backend has no device.
    #[error("backend `{name}` has no device: {reason}")]
    NoDevice {
        /// The backend.
        name: String,
        /// What it says.
        reason: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Opens the CPU backend.
pub(super) fn open_cpu(config: &BackendsConfig) -> Result<Arc<dyn Backend>, PluginError> {
    let name = format!("{}outrigger_cpu{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let path = find(&name, config.path.as_deref())?;
    let library = config.onnxruntime.clone().or_else(|| onnxruntime_of(&config.python));
    let mut settings = vec![("intra_threads".to_owned(), config.intra_threads.to_string())];
    if let Some(library) = library {
        settings.push(("onnxruntime".to_owned(), library.to_string_lossy().into_owned()));
    }
    host::load(&path, &settings).map_err(|source| PluginError::Open { path, source })
}

/// Opens a backend's first device.
pub(super) fn first_device(backend: &dyn Backend) -> Result<Arc<dyn Device>, PluginError> {
    let info = backend.info();
    let none = |reason: String| PluginError::NoDevice { name: info.name.clone(), reason };
    if info.devices.is_empty() {
        let reason = info.reason.clone().unwrap_or_else(|| "it does not say why".into());
        return Err(none(format!(
            "{reason}; set backends.onnxruntime, or install the Python package onnxruntime where script.python finds it"
        )));
    }
    backend.open(0).map_err(|error| none(error.to_string()))
}

fn find(name: &str, configured: Option<&Path>) -> Result<PathBuf, PluginError> {
    let mut tried = Vec::new();
    if let Some(path) = configured {
        tried.push(path.to_owned());
    } else if let Ok(executable) = std::env::current_exe() {
        // Beside the executable in a build folder (tests run one folder below it), or in PREFIX/lib beside PREFIX/bin.
        let directories = executable.ancestors().skip(1);
        tried.extend(directories.clone().take(2).map(Path::to_owned));
        tried.extend(directories.skip(1).take(1).map(|prefix| prefix.join("lib/outrigger")));
    }
    let found = tried.iter().map(|directory| directory.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| PluginError::Missing { name: name.to_owned(), tried })
}

/// The library inside the Python package `onnxruntime`, as the interpreter sees it; it is found, not imported.
fn onnxruntime_of(python: &str) -> Option<PathBuf> {
    let script = "import importlib.util as u; s = u.find_spec('onnxruntime'); print(s.submodule_search_locations[0] if s else '')";
    let output = std::process::Command::new(python)
        .args(["-P", "-c", script])
        .env_remove("OUTRIGGER_AUTH_PRIMARY_KEY")
        .env_remove("OUTRIGGER_AUTH_SECONDARY_KEY")
        .stdin(std::process::Stdio::null())
        .output()
        .ok()?;
    let package = String::from_utf8(output.stdout).ok()?;
    let package = Some(package.trim()).filter(|package| !package.is_empty())?;
    let mut libraries: Vec<PathBuf> = std::fs::read_dir(Path::new(package).join("capi"))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("libonnxruntime.so")
                || (name.starts_with("libonnxruntime.") && name.ends_with(".dylib"))
        })
        .collect();
    libraries.sort();
    libraries.pop()
}
