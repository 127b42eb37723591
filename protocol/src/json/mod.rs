//! JSON that is read where it lies: numbers and strings go straight into the memory that a model reads.

pub(crate) mod data;
pub(crate) mod number;
pub(crate) mod scan;
