//! Device hosts as they are used: real children, real libraries.

mod calls;
mod conformance;
mod deaths;
mod descriptors;
mod ends;
mod errors;
mod log;
mod pinned;
mod support;
