//! Steps before and after a model: [`Processed`] wraps the model that a backend has loaded, so that the rest of the replica sees what
//! callers send and get, and nothing else. Those that are in the graph of the model already are left to it.

mod describe;
mod place;
mod processed;
mod side;
mod taken;
#[cfg(test)]
mod tests;
mod watch;

pub(super) use describe::signature;
pub(super) use place::StepsPlace;
pub(super) use processed::Processed;
pub(super) use taken::StepBytes;
