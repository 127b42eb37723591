//! Ensembles: models that are made of others, by a `graph.toml` that says which tensors go where. Callers see one as a model.
//!
//! ```text
//! graph.toml → read, order (what can be said of it alone) → choice (versions) → types, extents (what fits) → wired → gather (leases) → picks → run, course
//! ```

mod choice;
mod course;
mod directory;
mod ensemble;
mod extents;
mod fit;
mod groups;
mod order;
mod picks;
mod read;
mod run;
mod sample;
mod serve;
mod types;
mod wired;

#[cfg(test)]
mod tests;

pub(super) use choice::Unfit;
pub(super) use directory::Directory;
pub use ensemble::EnsembleNode;
pub(super) use ensemble::{Ensemble, Gathered, Placing};
pub(super) use read::{Graph, read};
pub(super) use run::Counters as GraphCounters;
pub(super) use sample::GraphInstance;
pub(super) use serve::GraphCall;
pub(super) use wired::Leaf;

/// The name of a graph in an ensemble's directory.
pub(super) const GRAPH: &str = "graph.toml";
/// What an ensemble's platform is called, in the Open Inference Protocol's words.
pub(super) const PLATFORM: &str = "ensemble";
/// The largest graph, in bytes.
const MAX_BYTES: u64 = 256 * 1024;
/// The most nodes of a graph, and with that the longest way through it.
const MAX_NODES: usize = 64;
/// The most inputs, outputs, and inputs of nodes.
const MAX_TENSORS: usize = 1024;
/// The most runs of models that a call of an ensemble makes, those of ensembles in it counted in.
const MAX_ALL_NODES: usize = 256;
/// How deep ensembles may be in each other.
const MAX_NESTED: usize = 8;
