//! The CPU backend: ONNX models through ONNX Runtime, as a plug-in library.
//!
//! | setting | what it says | without it |
//! |---|---|---|
//! | `onnxruntime` | the path of ONNX Runtime's library | the one that the system's loader finds |
//! | `intra_threads` | how many threads share one run | as many as `affinity` has CPUs, else as many as this process may use: its affinity mask and its control group's quota count |
//! | `affinity` | the CPUs that threads of ONNX Runtime's run on, such as `0-3,8`; the thread that calls takes part in a run and stays where it is | any |
//! | `cache` | a folder for optimised models. It pays where there is much to optimise, as in networks of convolutions, and costs a tenth where a file is all weights. Models with data in other files are not kept | none are kept |
//! | `cache_bytes` | how many bytes of them; those that were used least recently go first | 1 GiB |
//!
//! Telemetry is always off. Without the library the backend opens all the same, with no devices and the reason.
//!
//! ONNX Runtime has one environment in a process, with one pool of threads for all models; so the first open that finds
//! the library decides the first three settings, and later ones join it. A model that asks for a number of threads, or
//! has the setting `affinity`, the only one of a model, has a pool of its own.
//!
//! Memory goes back to the operating system within about a second after a model was unloaded; see `trim.rs`.

mod affinity;
mod provider;
mod settings;
mod trim;

use std::sync::Arc;

use outrigger_backend::{Backend, BackendError};

use provider::Cpu;
use settings::Settings;

outrigger_backend::export!(open);

/// Opens the backend.
///
/// # Errors
/// [`BackendError::Unavailable`] for a setting that is not known or has no valid value.
pub fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
    let settings = Settings::read(settings)
        .map_err(|error| BackendError::Unavailable { backend: "cpu".into(), reason: error.to_string() })?;
    let Settings { common, intra_threads, affinity } = settings;
    let pool = provider::pool(intra_threads.get(), affinity.as_ref());
    outrigger_onnxruntime::open(Cpu { affinity }, &common, &pool)
}
