//! The device abstraction: what a backend is, what crosses its boundary, and the C ABI both ways.
//!
//! A backend is a shared library that runs models on one kind of device. The order is backend → device → model →
//! instance, and the reverse to end. [`Backend`], [`Device`], [`Model`] and [`Instance`] are that order as traits;
//! [`abi`] is the same order as a `#[repr(C)]` table of functions; [`export`](mod@export) turns the first into the
//! second and [`host`] the second into the first, so that neither a backend's author nor the runtime sees the table.

pub mod abi;
mod backend;
mod buffer;
#[cfg(feature = "conformance")]
pub mod conformance;
#[expect(unsafe_code, reason = "reads and frees tensors that cross the C boundary")]
mod dlpack;
#[expect(unsafe_code, reason = "moves a value out of its place when that is dropped")]
mod elsewhere;
mod error;
#[expect(unsafe_code, reason = "is called through the C boundary")]
pub mod export;
#[expect(unsafe_code, reason = "opens libraries and calls through the C boundary")]
pub mod host;
#[expect(unsafe_code, reason = "views memory that the other side of the C boundary lends")]
mod lent;
mod machine;
mod memory;
mod run;
mod signature;
mod tensor;

pub use backend::{
    Backend, BackendInfo, Device, DeviceInfo, DeviceKind, DeviceStatus, Health, Instance, LoadOptions, Model,
    ModelInfo, Output, TensorInfo,
};
pub use buffer::Buffer;
pub use dlpack::DLDevice;
pub use error::{BackendError, chain};
pub use machine::MachineMemory;
pub use memory::DeviceMemory;
pub use run::{Done, Run, RunId, Submission};
pub use tensor::{DataType, MAX_RANK, STRING_PREFIX, Shape, ShapeError, Tensor};
