//! The replica: models, scripts, slots, HTTP fronts, the busy signal, and draining.
//!
//! [`Replica::listen`] makes one from a [`config::Config`], [`Replica::load`] brings it up, [`Replica::stop`] ends it in order. Two replicas fit in one process:
//! nothing here is global.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "the data path never panics")]

mod apart;
pub mod busy;
mod cache;
mod causes;
mod collection;
mod concerns;
pub mod config;
mod families;
pub mod fetching;
#[cfg(fuzzing)]
pub mod fuzzing;
mod http;
mod keys;
mod methods;
mod metrics;
mod models;
mod observed;
pub mod placement;
mod replica;
mod scheduler;
pub mod scripts;
mod shared_memory;
pub mod swagger;
pub mod telemetry;
pub mod tls;
mod tokens;
mod upstream;

pub use causes::with_causes;
pub use collection::CollectError;
pub use http::{BindError, Bound, Route, routes};
pub use metrics::Metrics;
pub use models::report;
pub use models::{
    EnsembleNode, Happening, Lease, LoadedModel, ModelEvent, ModelState, ModelStatus, Models, ModelsError,
    NamedModel, NamedStatus, NotBatchable, Picked, PluginError, ServedModel, Timeline,
};
pub use replica::{Addresses, Replica, ReplicaError};
pub use scheduler::{Admission, Limits, Scheduler, Slot, Terms};
pub use tokens::TokensError;
