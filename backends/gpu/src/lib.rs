//! The backend for portable GPUs, reached through Vulkan.

mod adapters;
mod error;
mod gpu;
#[expect(unsafe_code, reason = "asks Vulkan what wgpu does not tell")]
mod memory;
mod passes;
mod program;
mod shader;

pub use adapters::{AdapterInfo, Hardware};
pub use error::GpuError;
pub use gpu::Gpu;
pub use program::Program;
