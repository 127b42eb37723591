//! The CUDA driver, opened at run time: which GPUs there are, their contexts and memory, and what errors say of them. What backends on
//! NVIDIA's GPUs have in common, whoever runs their models.
//!
//! Three floors: [`Functions`], the driver's table; [`Driver`] and [`Context`], which check what it says; [`Card`], [`DeviceBlock`] and
//! [`HostBlock`], which are a GPU and its memory. Nothing of it is linked: without a driver there is an error that says so.

mod card;
#[expect(unsafe_code, reason = "calls the CUDA driver")]
mod driver;
#[cfg(any(test, feature = "fake"))]
#[allow(unsafe_code, reason = "is the CUDA driver")]
pub mod fake;
pub mod faults;
#[expect(unsafe_code, reason = "is memory that the CUDA driver gave")]
mod memory;
#[cfg(test)]
mod tests;

pub use card::{Card, usable};
pub use driver::{
    Address, Context, CudaError, Driver, DriverError, Functions, Gpu, Handle, Memory, Number, Status,
};
pub use faults::Fault;
pub use memory::{DeviceBlock, HostBlock, copy_on_device, copy_to_device, copy_to_host};

/// The name under which the driver's library is looked for.
pub const LIBRARY: &str = "libcuda.so.1";
