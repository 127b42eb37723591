//! Models by their names: the versions that each has, what those are called, and how one takes the place of another.

mod follow;
mod named;
mod outcomes;
mod refusal;
mod rollout;
mod target;
mod verdict;
mod watch;

pub use named::{NamedModel, NamedStatus};
pub(super) use outcomes::Outcomes;
pub(crate) use rollout::{Rolled, Rollouts};
