//! What fuzz targets have in common: choices made of their input, calls of models, memory that is counted, and files that are none on any disk.

pub mod archives;
pub mod calls;
pub mod configuration;
pub mod file;
pub mod input;
#[expect(unsafe_code, reason = "stands between the targets and the system's allocator")]
pub mod memory;

pub use file::File;
pub use input::Input;
