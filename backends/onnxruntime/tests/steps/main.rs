//! Steps in a model's graph against their form on the CPU, which defines them.

mod agreement;
mod bench;
mod models;
mod refusals;
#[path = "../support/mod.rs"]
mod support;
