//! The Open Inference Protocol, version 2, over REST with JSON tensors.
//!
//! [`parse_infer`] reads numbers straight from the body into the memory that the model reads: there is no
//! tree of values in between, and nothing is allocated before the shape has been held against the model and
//! the [`Limits`]. [`encode_infer`] is the way back.
//!
//! Source: the protocol's `v2/models/{name}/infer`, <https://github.com/kserve/open-inference-protocol>.
//! Binary tensors and the types FP16, BF16 and BYTES are not carried; [`Limits::halves`] carries FP16 and BF16 as numbers, for what
//! is no call.

mod data;
mod encode;
mod fit;
mod number;
mod parse;
mod scan;
#[cfg(test)]
mod tests;

pub use encode::{
    InferReply, encode_error, encode_infer, encode_ok, model_metadata, model_ready, server_live,
    server_metadata, server_ready,
};
pub use parse::{InferCall, Limits, parse_infer};
