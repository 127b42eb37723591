//! The Open Inference Protocol, version 2: over REST with JSON and binary tensors, and over gRPC.
//!
//! [`parse_infer`] reads numbers straight from the body into the memory that the model reads: there is no
//! tree of values in between, and nothing is allocated before the shape has been held against the model and
//! the [`Limits`](crate::call::Limits). Bytes of tensors are shared with the body. [`encode_infer`] is the way back; [`grpc`] does the same for that.
//!
//! Source: the protocol's `v2/models/{name}/infer`, <https://github.com/kserve/open-inference-protocol>, and its extensions
//! for binary tensors, shared memory, parameters, statistics and repositories,
//! <https://github.com/triton-inference-server/server/tree/main/docs/protocol>.

#[cfg(test)]
mod binary_tests;
mod encode;
pub mod grpc;
mod health;
pub mod messages;
mod parameters;
mod parse;
pub mod schema;
#[cfg(test)]
mod tests;

pub use encode::{InferBody, encode_error, encode_infer, encode_ok};
pub use health::{model_ready, server_live, server_ready};
pub use parse::{Request, parse_infer};
