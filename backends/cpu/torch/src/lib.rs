//! TorchScript models on the CPU, as a plug-in library that needs no libtorch to be opened: it finds that, and then opens what is linked with it.
//!
//! Its settings and what its models are like: `outrigger-torch`. Beside those it has `libtorch`, the folder in which libtorch is. Without it the
//! folder `libtorch` beside this library is taken, which may be a link, or else the package `torch` of the `python3` on the search path.

use std::sync::Arc;

use outrigger_backend::{Backend, BackendError};
use outrigger_torch::{Kind, plugin};

outrigger_backend::export!(open);

/// Opens the backend.
///
/// # Errors
/// [`BackendError::Unavailable`] for a setting that is not known or has no valid value. Without libtorch it opens all the same, with no
/// devices and the reason.
pub fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
    plugin::open(Kind::Cpu, settings)
}
