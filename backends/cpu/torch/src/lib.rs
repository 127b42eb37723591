//! TorchScript models on the CPU, as a plug-in library that needs no libtorch to be opened: it finds that, and then opens what is linked with it.
//!
//! Its settings and what its models are like: `outrigger-torch`. Beside those it has `libtorch`, the folder in which libtorch is. Without it the
//! folder `libtorch` beside this library is taken, which may be a link, or else the package `torch` of the `python3` on the search path.

use std::path::PathBuf;
use std::sync::Arc;

use outrigger_backend::{Backend, BackendError};

outrigger_backend::export!(open);

/// Opens the backend.
///
/// # Errors
/// [`BackendError::Unavailable`] for a setting that is not known or has no valid value. Without libtorch it opens all the same, with no
/// devices and the reason.
pub fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
    outrigger_torch::plugin::open("cpu_torch", own_file().as_deref(), settings)
}

/// The file that this code is in.
#[expect(unsafe_code, reason = "asks the system's loader")]
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
