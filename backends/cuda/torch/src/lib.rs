//! TorchScript models on NVIDIA's GPUs, as a plug-in library that needs neither a driver nor libtorch to be opened: it looks for both, and then
//! opens what is linked with libtorch.
//!
//! Its settings and what its models are like: `outrigger-torch`. libtorch has to be one with CUDA, as the Python package `torch` is: the setting
//! `libtorch` names its folder, or else that package of the `python3` on the search path is taken. The one beside this library, which is for the
//! processor, will not do.
//!
//! Inputs are copied to the GPU and results back, each run in a stream of its thread's; nothing stays on the GPU between runs. Pinned memory is
//! the driver's. An error of CUDA's that stays leaves the device lost; an assertion on the device, as an index that is out of range raises, is one.
//! A stateful model has one stream of its own. One that calls `fork` does not load, for its tasks would be in other streams than the run's.
//!
//! A process can have one libtorch: `cpu_torch` with another one must not be opened in the same, as it is not by default, when each has its own. Nor
//! may it with the same one before this: libtorch looks for its part for CUDA only once. Then there are no devices.

use std::path::Path;
use std::sync::Arc;

use outrigger_backend::{Backend, BackendError, chain};
use outrigger_cuda_driver::{Driver, LIBRARY, usable};
use outrigger_torch::{Kind, plugin};

outrigger_backend::export!(open);

/// Opens the backend.
///
/// # Errors
/// [`BackendError::Unavailable`] for a setting that is not known or has no valid value. Without a driver, a GPU or libtorch it opens all the
/// same, with no devices and the reason.
pub fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
    plugin::check(Kind::Cuda, settings)?;
    // Before libtorch, which takes half a gigabyte of memory for CUDA alone.
    match gpus(settings) {
        Ok(()) => plugin::open(Kind::Cuda, settings),
        Err(reason) => Ok(plugin::absent(Kind::Cuda, reason)),
    }
}

/// Whether there are GPUs.
fn gpus(settings: &[(String, String)]) -> Result<(), String> {
    let set = settings.iter().rfind(|(key, _)| key == "cuda_driver");
    let library = set.map_or(LIBRARY, |(_, library)| library);
    let driver = Driver::open(Path::new(library)).map_err(|error| chain(&error))?;
    usable(&driver, "PyTorch").map(|_| ())
}
