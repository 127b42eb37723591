//! Finds and opens the libraries of backends, and ONNX Runtime's for those of ours that are on it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_backend::{Backend, BackendError, host};

use super::health::Watch;
use crate::config::{BackendsConfig, ProcessKind};

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
    /// The library that is named is not there.
    #[error("backend library {path} is not there; `backends.{name}.library` names it")]
    Gone {
        /// The backend.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// The library does not open.
    #[error("backend library {path} cannot be used")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: BackendError,
    },
    /// Its process does not take as many calls as there are threads.
    #[error(
        "`backends.{name}.max_calls` is {calls}, and {device} has {threads} threads; raise it, or set backends.{name}.threads"
    )]
    Calls {
        /// The backend.
        name: String,
        /// What is allowed.
        calls: usize,
        /// A device of it.
        device: String,
        /// The threads that the device is said to want.
        threads: usize,
    },
    /// It is to run in a process of its own, which is this program again.
    #[error(
        "the program for the process of backend `{name}` is not known; set backends.{name}.process = \"in\""
    )]
    Executable {
        /// The backend.
        name: String,
        /// Why.
        source: std::io::Error,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Opens a backend, in the replica's process or in one of its own. Whatever becomes of that is heard by `watch` at once.
///
/// # Errors
/// [`PluginError`], naming what was looked for.
pub(crate) fn open(
    config: &BackendsConfig,
    name: &str,
    watch: &Arc<Watch>,
) -> Result<Arc<dyn Backend>, PluginError> {
    let table = config.of(name);
    let path = match table.library {
        Some(path) if path.is_file() => path,
        Some(path) => return Err(PluginError::Gone { name: name.into(), path }),
        None => find(&file_name(name), config.path.as_deref())?,
    };
    let mut settings = settings_of_ours(config, name, &path);
    settings.retain(|(key, _)| table.settings.iter().all(|(own, _)| own != key));
    settings.extend(table.settings);
    let opened = match config.process(name) {
        ProcessKind::In => host::load(&path, &settings),
        ProcessKind::Out => {
            let executable = std::env::current_exe()
                .map_err(|source| PluginError::Executable { name: name.into(), source })?;
            let mut options = outrigger_device_host::Options::new(executable, &path, name, &settings);
            (options.limits, options.timing) = (table.host.limits, table.host.timing);
            options.follows_lanes = table.host.max_calls.is_none();
            if options.follows_lanes {
                // Each thread has a call under way; of more lanes than that the device host knows itself.
                let threads = table.threads.unwrap_or(config.cpu_threads);
                options.limits.connections = options.limits.connections.max(threads);
            }
            let watch = Arc::clone(watch);
            options.on_change = Some(Arc::new(move |_| watch.nudge()));
            outrigger_device_host::open(options)
        }
    };
    opened.map_err(|source| PluginError::Open { path, source })
}

fn file_name(backend: &str) -> String {
    format!("{}outrigger_{backend}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX)
}

/// What our own backends are told: others by their names may know none of it.
fn settings_of_ours(config: &BackendsConfig, name: &str, path: &Path) -> Vec<(String, String)> {
    let is_ours = path.file_name().is_some_and(|file| *file == *file_name(name));
    let intra_threads = ("intra_threads".to_owned(), config.intra_threads.to_string());
    let mut settings = match name {
        "cpu" => vec![intra_threads],
        "cpu_torch" if is_ours => return vec![intra_threads],
        "cuda_torch" if is_ours => {
            // PyTorch takes what it likes of a GPU's memory unless it is told.
            let most = config.memory_of(name).map(|bytes| ("memory_bytes".to_owned(), bytes.to_string()));
            return std::iter::once(intra_threads).chain(most).collect();
        }
        "cuda" if is_ours => Vec::new(),
        // What its runs take beside what models hold is for it to see to.
        "gpu" if is_ours => {
            let memory = config.of(name).memory.map(|bytes| ("memory".to_owned(), bytes.to_string()));
            return memory.into_iter().collect();
        }
        _ => return Vec::new(),
    };
    let library = config.onnxruntime.clone().or_else(|| onnxruntime_of(&config.python));
    settings
        .extend(library.map(|library| ("onnxruntime".to_owned(), library.to_string_lossy().into_owned())));
    settings
}

/// The names of the backends whose libraries lie on the search path.
pub(super) fn found(config: &BackendsConfig) -> BTreeSet<String> {
    let (prefix, suffix) = (file_name(""), std::env::consts::DLL_SUFFIX);
    let prefix = prefix.trim_end_matches(suffix);
    let files =
        search_path(config.path.as_deref()).into_iter().filter_map(|path| std::fs::read_dir(path).ok());
    let names = files.flatten().flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let name = name.strip_prefix(prefix)?.strip_suffix(suffix)?.to_owned();
        crate::config::is_backend_name(&name).then_some(name)
    });
    names.collect()
}

fn search_path(configured: Option<&Path>) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    if let Some(path) = configured {
        paths.push(path.to_owned());
    } else if let Ok(executable) = std::env::current_exe() {
        // Beside the executable in a build folder (tests run one folder below it), or in PREFIX/lib beside PREFIX/bin.
        let directories = executable.ancestors().skip(1);
        paths.extend(directories.clone().take(2).map(Path::to_owned));
        paths.extend(directories.skip(1).take(1).map(|prefix| prefix.join("lib/outrigger")));
    }
    paths
}

fn find(name: &str, configured: Option<&Path>) -> Result<PathBuf, PluginError> {
    let tried = search_path(configured);
    let found = tried.iter().map(|directory| directory.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| PluginError::Missing { name: name.to_owned(), tried })
}

/// The library inside the Python package `onnxruntime`, as the interpreter sees it; it is found, not imported.
fn onnxruntime_of(python: &str) -> Option<PathBuf> {
    let script = "import importlib.util as u; s = u.find_spec('onnxruntime'); print(s.submodule_search_locations[0] if s else '')";
    let output = std::process::Command::new(python)
        .args(["-P", "-c", script])
        .env_clear()
        .envs(outrigger_sandbox::scrub(std::env::vars_os(), outrigger_sandbox::Rules::default()).kept)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BackendConfig;

    #[test]
    fn pytorch_is_told_what_it_may_take_of_a_gpu() {
        let told = |name: &str, file: String, memory| {
            let table = BackendConfig { memory, ..BackendConfig::default() };
            let config = BackendsConfig {
                path: None,
                onnxruntime: None,
                python: "python3".into(),
                cpu_threads: 2,
                intra_threads: 3,
                tables: [(name.to_owned(), table)].into(),
            };
            let settings = settings_of_ours(&config, name, Path::new(&file));
            settings.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            told("cuda_torch", file_name("cuda_torch"), Some(4096)),
            "intra_threads=3 memory_bytes=4096"
        );
        assert_eq!(told("cuda_torch", file_name("cuda_torch"), None), "intra_threads=3");
        assert_eq!(told("cpu_torch", file_name("cpu_torch"), Some(4096)), "intra_threads=3");
        // Where its own table does not say, that of the backend whose devices these are does, as it does of the budget.
        let memory = |bytes| BackendConfig { memory: bytes, ..BackendConfig::default() };
        let config = |own| BackendsConfig {
            path: None,
            onnxruntime: None,
            python: "python3".into(),
            cpu_threads: 2,
            intra_threads: 3,
            tables: [("cuda".to_owned(), memory(Some(7))), ("cuda_torch".to_owned(), memory(own))].into(),
        };
        for (own, expected) in [(None, "7"), (Some(5), "5")] {
            let settings = settings_of_ours(&config(own), "cuda_torch", Path::new(&file_name("cuda_torch")));
            assert_eq!(settings.last(), Some(&("memory_bytes".to_owned(), expected.to_owned())));
        }
        assert_eq!(told("cuda_torch", file_name("theirs"), Some(4096)), "", "others by that name");
    }
}
