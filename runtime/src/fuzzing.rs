//! What `fuzz/` sees of this crate's own parts.

pub use crate::models::fuzzing::manifest;
