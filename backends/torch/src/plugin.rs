//! What a plug-in does before libtorch is there: finds it, loads its libraries and then the library that is linked with it.
//!
//! That one ([`CORE`]) is this crate with its feature `libtorch`. It needs libtorch's libraries by their names, and the system's loader does not
//! know where they are; but it takes those that the process has already. So the plug-in, which needs nothing itself, loads them by their paths
//! first. Where anything is missing it opens all the same, and says what.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use outrigger_backend::{Backend, BackendError, BackendInfo, Device, chain, host};

use crate::find::{self, Found};
use crate::kind::Kind;
use crate::settings::Settings;
use crate::{FORMAT, LIBTORCH};

/// The library that is linked with libtorch, beside the plug-in. It is not called as plug-ins are, for it is to be opened by one.
pub const CORE: &str = "outrigger_torch_core.so";

/// Opens the backend for a kind of device.
///
/// # Errors
/// As [`check`].
pub fn open(kind: Kind, settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
    check(kind, settings)?;
    let own_file = own_file();
    let beside = own_file.as_deref().and_then(Path::parent);
    let (own, mut passed): (Vec<_>, Vec<_>) =
        settings.iter().cloned().partition(|(key, _)| key == "libtorch");
    passed.push(kind.setting());
    let libtorch = own.last().map(|(_, folder)| PathBuf::from(folder));
    let ready = core(beside).and_then(|core| {
        let found = find::libtorch(kind, libtorch, beside)?;
        load(kind, &found)?;
        Ok(core)
    });
    match ready {
        Ok(core) => host::load(&core, &passed).or_else(|error| match error {
            // Of the library and not of its settings: it does not open, so it was linked with another libtorch.
            BackendError::Unavailable { backend, reason } if backend == core.display().to_string() => {
                Ok(absent(kind, format!("{CORE} does not open: {reason}")))
            }
            error => Err(error),
        }),
        Err(reason) => Ok(absent(kind, reason)),
    }
}

/// Looks at settings, which are wrong or right whatever is missing.
///
/// # Errors
/// [`BackendError::Unavailable`] for a setting that is not known or has no valid value.
pub fn check(kind: Kind, settings: &[(String, String)]) -> Result<(), BackendError> {
    let passed: Vec<_> = settings.iter().filter(|(key, _)| key != "libtorch").cloned().collect();
    let unavailable = |reason| BackendError::Unavailable { backend: kind.backend().into(), reason };
    Settings::read(kind, &passed).map(|_| ()).map_err(|error| unavailable(error.to_string()))
}

/// The backend where something is missing: no devices, and the reason.
pub fn absent(kind: Kind, reason: String) -> Arc<dyn Backend> {
    Arc::new(Absent::new(kind.backend(), reason))
}

/// The file that this code is in: the plug-in's, for what lies beside it.
fn own_file() -> Option<PathBuf> {
    use std::ffi::{CStr, OsStr};
    use std::os::unix::ffi::OsStrExt as _;

    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: any address may be asked about, and the place is one for the answer.
    let found = unsafe { libc::dladdr((own_file as *const ()).cast(), info.as_mut_ptr()) };
    if found == 0 {
        return None;
    }
    // SAFETY: filled in, for it was found.
    let name = unsafe { info.assume_init() }.dli_fname;
    // SAFETY: a C string that lives as long as the library is loaded.
    let name = unsafe { CStr::from_ptr(name) };
    PathBuf::from(OsStr::from_bytes(name.to_bytes())).canonicalize().ok()
}

fn core(beside: Option<&Path>) -> Result<PathBuf, String> {
    let folder = beside.ok_or("the plug-in does not know where it is")?;
    let core = folder.join(CORE);
    if core.is_file() {
        Ok(core)
    } else {
        Err(format!(
            "no libtorch is set up: there is no `{}`, which `cargo xtask torch` builds",
            core.display()
        ))
    }
}

/// Loads libtorch, never to unload it, each library after those that it needs. A process has one libtorch, and two would take each other's
/// functions.
fn load(kind: Kind, found: &Found) -> Result<(), String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let main = found.libraries.iter().find(|path| path.ends_with(find::MAIN));
    let main = main.and_then(|path| path.canonicalize().ok()).unwrap_or_default();
    if let Some(other) = another(&maps, &main) {
        return Err(format!(
            "this process has loaded `{}` already, and keeps it; `{}` is another one",
            other.display(),
            main.display()
        ));
    }
    if kind == Kind::Cuda && is_without(&maps, find::MAIN, find::CUDA_MAIN) {
        return Err(format!(
            "this process has loaded libtorch without its part for CUDA already, for `cpu_torch`, and libtorch asks only once for that; \
             leave the two in processes of their own, or open `{}` first",
            kind.backend()
        ));
    }
    for path in &found.libraries {
        // SAFETY: runs the library's initialisers; that it may be run is what its place says.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }
            .map_err(|error| format!("libtorch does not load: {}", chain(&error)))?;
        std::mem::forget(library);
    }
    Ok(())
}

/// Another file of this name that the process has loaded.
fn another<'a>(maps: &'a str, own: &Path) -> Option<&'a Path> {
    let mut files = maps.lines().filter_map(|line| Some(Path::new(line.get(line.find('/')?..)?)));
    files.find(|file| file.file_name() == own.file_name() && *file != own)
}

/// Whether the process has loaded a file of the one name and none of the other.
fn is_without(maps: &str, main: &str, part: &str) -> bool {
    let has = |name: &str| {
        let files = maps.lines().filter_map(|line| Some(Path::new(line.get(line.find('/')?..)?)));
        files.into_iter().any(|file| file.ends_with(name))
    };
    has(main) && !has(part)
}

/// The backend where something is missing.
struct Absent(BackendInfo);

impl Absent {
    fn new(name: &str, reason: String) -> Self {
        Self(BackendInfo {
            name: name.into(),
            version: format!("{} (for libtorch {LIBTORCH})", env!("CARGO_PKG_VERSION")),
            formats: vec![FORMAT.into()],
            devices: Vec::new(),
            reason: Some(reason),
        })
    }
}

impl Backend for Absent {
    fn info(&self) -> &BackendInfo {
        &self.0
    }

    fn open(&self, index: usize) -> Result<Arc<dyn Device>, BackendError> {
        Err(BackendError::Input(format!("there is no device number {index}, only 0")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_that_is_loaded_without_a_part_is_told() {
        let of = |names: &[&str]| {
            names.iter().map(|name| format!("7f00-7f01 r-xp 0 08:01 7   /a/lib/{name}\n")).collect::<String>()
        };
        let is_without = |names: &[&str]| is_without(&of(names), find::MAIN, find::CUDA_MAIN);
        assert!(!is_without(&[]) && !is_without(&["libtorch_cuda.so"]));
        assert!(is_without(&["libc10.so", "libtorch_cpu.so"]));
        assert!(!is_without(&["libtorch_cpu.so", "libtorch_cuda.so"]));
    }
}
