//! The backend for portable GPUs: whatever Vulkan reaches, whoever made it, as a plug-in library.
//!
//! | setting | what it says | without it |
//! |---|---|---|
//! | `software` | `true`: devices that calculate in software, such as Mesa's lavapipe, are used too. For tests: they are slower than the CPU backend | `false` |
//! | `onnxruntime` | the path of a library of ONNX Runtime that has WebGPU | ONNX models are refused |
//! | `leftovers` | whether operators of an ONNX model that WebGPU has not may run on the CPU: `allowed`, or `refused`, which refuses the model | `allowed` |
//! | `cache` | a folder for optimised ONNX models | none are kept |
//! | `cache_bytes` | how many bytes of them; those that were used least recently go first | 1 GiB |
//! | `idle_bytes` | how many bytes a model keeps on the device from one run to the next; those of the last run stay in any case | 256 MiB |
//! | `memory` | how many bytes models may hold on each device, runs under way counted in; what is kept between runs makes way first | the driver says |
//!
//! Without Vulkan's loader, a driver or a device the backend opens all the same, with no devices and the reason.
//!
//! # Steps
//! A [`Program`] is a chain of [`outrigger_processing`] steps as compute shaders: one submission for a run, tensors that are not needed at
//! the same time share memory, and what goes there and comes back are the chain's inputs and outputs alone; so an image goes there once, as
//! bytes. What each step gives agrees with its form on the CPU as [`outrigger_processing::Step`] states. A chain with an empty
//! tensor, and one without steps, does not go there at all.
//!
//! A tensor is at most as large as the device binds at once ([`AdapterInfo::max_binding`]) and has fewer than 2³¹ elements; a larger one is an
//! error, of [`Program::estimate`] too. So is a `top_k` that would look more than 2²⁸ times at the elements of one row, or 2³⁴ times at those of all (9 times at
//! each element, and log² `k` times at each of the `k`), and a `softmax` of rows beyond 2²⁷. No submission with rows of a `top_k` looks more often than 2²⁸ times: what takes
//! more is several of them, so that no driver takes the device for hung. All other passes look at each element once (`softmax` twice), with the whole device,
//! and are not divided; one that looks more often than that in all is a submission by itself.
//!
//! All that a run takes is counted ([`Program::held`], and what it will be [`Program::needs`]): tensors, what steps keep beside them and are told, and what comes
//! back. Where no extent is free, that is taken when the model is loaded. Several runs at once each take as much; where the setting `memory` does not leave
//! room for all of them, one waits until another is over, for up to 30 seconds.
//!
//! # ONNX models
//! Models of format `onnx` run through ONNX Runtime's WebGPU execution provider, which reaches the same driver by a way of its own (Dawn). Its
//! library is opened with the backend, whose version names it; its threads, and what it does with the device, begin with the first such model.
//!
//! - ONNX Runtime takes the device itself and does not say which. So they are refused where Vulkan has more than one, those in software counted
//!   in: hide the drivers of all others (`VK_DRIVER_FILES`, `VK_LOADER_DRIVERS_DISABLE`).
//! - Runs take turns in all of a process, and cannot be cancelled. Tensors are in the host's memory between runs. What a run takes on the device is not counted.
//! - A model that calculates with FP16 does not load where the device's shaders have none (`shader-f16`).
//! - A model of whose operators WebGPU has none does not load; what it has not of others runs on the CPU, unless `leftovers=refused`.
//!
//! Why they cannot be had, where they cannot, is what their estimate and load fail with.
//!
//! # Chains as models
//! A model of format `steps` is a chain. Without a format, what is no text is ONNX.
//!
//! ```toml
//! outputs = ["scores", "classes"]
//!
//! [[inputs]]
//! name = "logits"
//! datatype = "FP16"
//! shape = ["batch", 1000]       # a name, or -1, where an extent is free
//!
//! [[steps]]
//! step = "softmax"
//!
//! [[steps]]
//! step = "top_k"
//! k = 5
//! to = "scores"
//! indices = "classes"
//! ```
//!
//! # Measurement
//! [`measure()`] says what a device can do; `cargo run --release -p outrigger-gpu --example measure` prints it of each.

mod adapters;
mod device;
mod error;
mod format;
mod gpu;
mod measure;
#[expect(unsafe_code, reason = "asks Vulkan what wgpu does not tell")]
mod memory;
mod model;
mod onnx;
mod passes;
mod program;
mod settings;
mod shader;
mod turns;

use std::sync::Arc;

use outrigger_backend::{Backend, BackendError};

pub use adapters::{AdapterInfo, Hardware};
pub use error::GpuError;
pub use gpu::Gpu;
pub use measure::{Effort, Figure, Measurement, measure};
pub use program::Program;

use device::Gpus;
use settings::Settings;

outrigger_backend::export!(open);

/// Opens the backend.
///
/// # Errors
/// [`BackendError::Unavailable`] for a setting that is not known or has no valid value, and for a folder of optimised models that cannot be used.
pub fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
    let settings = Settings::read(settings)
        .map_err(|error| BackendError::Unavailable { backend: "gpu".into(), reason: error.to_string() })?;
    // ONNX Runtime is started later, and then it would be one model alone that hears of the folder.
    settings.onnxruntime.check("gpu")?;
    Ok(Arc::new(Gpus::new(&settings)))
}
