//! TorchScript models through libtorch: what the plug-ins (`backends/cpu/torch`, `backends/cuda/torch`) open once they have loaded libtorch.
//!
//! It is two things. Without its feature `libtorch` it is what plug-ins are made of ([`plugin`]): they find libtorch, load it, and open the other
//! thing, which is this crate with that feature, linked with libtorch and a library of its own. `cargo xtask torch` builds that one. It is one for
//! all kinds of devices: libtorch's part for CUDA registers itself with the rest where the plug-in has loaded it.
//!
//! | setting | what it says | without it |
//! |---|---|---|
//! | `libtorch` | the folder of libtorch, with `lib` in it; the plug-in's, which loads it | where the plug-in looks |
//! | `intra_threads` | how many threads share one run | as many as this process may use |
//! | `code_bytes` | how many bytes the compressed files of an archive, which are code, may have when they are not; as many may each list of its attributes have, and a value for each 32 of them | 64 MiB |
//! | `cuda_driver` | on NVIDIA's GPUs: the path of the driver's library | `libcuda.so.1` |
//! | `memory_bytes` | there: the most bytes of the largest GPU that PyTorch takes, weights and runs together, and of each other one the same part; 0 is no limit. A process has one | 0 |
//!
//! TorchScript is code: a model can compute what it likes, for as long and in as much memory as it likes, and a broken one can
//! crash the process. So it belongs in a device host, where the runtime puts it unless it is told otherwise.
//!
//! A file names `forward`'s arguments but no types and shapes, so these are said beside it ([`LoadOptions::signature`]). Outputs that are
//! not described are found out by two runs on zeros. A run cannot be cancelled.
//!
//! [`LoadOptions::signature`]: outrigger_backend::LoadOptions::signature

#[cfg(any(feature = "libtorch", fuzzing, test))]
mod archive;
#[cfg(test)]
#[expect(unsafe_code, reason = "stands between the tests and the system's allocator")]
mod counting;
#[cfg(feature = "libtorch")]
mod device;
#[cfg(any(feature = "libtorch", test))]
mod error;
#[cfg(any(feature = "libtorch", fuzzing, test))]
mod file;
mod find;
#[cfg(any(feature = "libtorch", fuzzing, test))]
mod forward;
#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(any(feature = "libtorch", fuzzing, test))]
mod habits;
#[cfg(feature = "libtorch")]
mod instance;
mod kind;
#[cfg(any(feature = "libtorch", fuzzing, test))]
mod limits;
#[cfg(feature = "libtorch")]
mod model;
#[cfg(any(feature = "libtorch", fuzzing, test))]
mod nesting;
#[cfg(any(feature = "libtorch", fuzzing, test))]
mod pickle;
#[cfg(feature = "libtorch")]
mod place;
#[expect(unsafe_code, reason = "loads libraries")]
pub mod plugin;
#[cfg(test)]
mod random;
#[cfg(feature = "libtorch")]
#[expect(unsafe_code, reason = "lends inputs to libtorch")]
mod run;
mod settings;
#[cfg(any(feature = "libtorch", test))]
mod signature;
#[cfg(feature = "libtorch")]
#[expect(unsafe_code, reason = "calls libtorch")]
mod streams;
#[cfg(feature = "libtorch")]
#[expect(unsafe_code, reason = "calls libtorch")]
mod sys;
#[cfg(any(feature = "libtorch", fuzzing, test))]
mod zip;

/// The version of libtorch that is needed, this one exactly.
pub const LIBTORCH: &str = "2.11.0";

/// The one format.
pub const FORMAT: &str = "torchscript";

pub use kind::Kind;

#[cfg(feature = "libtorch")]
mod open {
    use std::sync::{Arc, Once};

    use outrigger_backend::{Backend, BackendError};

    use crate::device::Torch;
    use crate::kind::Kind;
    use crate::settings::Settings;
    use crate::sys;

    outrigger_backend::export!(open);

    /// Opens the backend for a kind of device, which the plug-in has put among the settings.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] for a setting that is not known or has no valid value, and where the devices cannot be had.
    pub fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
        let (kind, settings) = Kind::of(settings);
        let unavailable = |reason| BackendError::Unavailable { backend: kind.backend().into(), reason };
        let settings = Settings::read(kind, &settings).map_err(|error| unavailable(error.to_string()))?;
        static START: Once = Once::new();
        START.call_once(|| {
            // Calls run beside each other already. It can be said once, before the first run; later it stays as it is.
            let _ = sys::set_interop_threads(1);
        });
        Ok(Arc::new(Torch::new(kind, settings).map_err(unavailable)?))
    }
}
#[cfg(feature = "libtorch")]
pub use open::open;
