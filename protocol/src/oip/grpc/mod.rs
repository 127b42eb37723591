//! The protocol's calls over gRPC. Requests and results are read and written by hand, so that tensors are not copied, and nothing that a
//! client says decides how much memory is taken; the other messages are [`messages`](super::messages).

mod reply;
mod request;
#[cfg(test)]
mod tests;

pub use reply::{Pieces, encode_reply, in_stream, stream_error};
pub use request::{Target, id, is_raw, parse_request, target};
