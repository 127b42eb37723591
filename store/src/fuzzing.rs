//! What `fuzz/` sees of this crate's own parts.

pub use crate::location::fuzzing::{connection_string, profile, scrubbed};
pub use crate::registry::fuzzing::{index, object};
