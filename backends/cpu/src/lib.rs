//! The CPU backend: ONNX models through ONNX Runtime, as a plug-in library.
//!
//! Settings: `onnxruntime`, the path of ONNX Runtime's library (without it, the one that the system's loader finds); and
//! `intra_threads`, how many threads share one run (0 or absent: as many as there are cores). Telemetry is always off.
//! Without the library the backend opens all the same, with no devices and the reason.
//!
//! ONNX Runtime has one environment in a process, with one pool of threads for all models; so the first open that finds
//! the library decides both settings, and later ones join it.

mod device;
mod error;
mod instance;
mod memory;
mod model;
#[expect(unsafe_code, reason = "calls ONNX Runtime")]
mod raw;
mod runtime;
mod settings;

use std::sync::Arc;

use outrigger_backend::{Backend, BackendError};

use device::Cpu;
use settings::Settings;

outrigger_backend::export!(open);

/// Opens the backend.
///
/// # Errors
/// [`BackendError::Unavailable`] for a setting that is not known or has no valid value.
pub fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
    let settings = Settings::read(settings)
        .map_err(|error| BackendError::Unavailable { backend: "cpu".into(), reason: error.to_string() })?;
    Ok(Arc::new(Cpu::new(runtime::start(&settings))))
}
