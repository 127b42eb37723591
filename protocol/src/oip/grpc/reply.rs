//! `ModelInferResponse`, written around the bytes of its tensors, which are not copied.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::call::{Form, InferReply, Slice};
use crate::error::CallError;
use crate::headers;
use crate::wire::{put_bytes, put_head, put_varint};

/// A message in pieces, in their order.
pub type Pieces = SmallVec<[Bytes; 4]>;

/// Writes a result.
///
/// # Errors
/// [`ErrorCode::Internal`](crate::ErrorCode::Internal) if tensors and outputs do not match.
pub fn encode_reply(reply: &InferReply<'_>) -> Result<Pieces, CallError> {
    let results = reply.results()?;
    let mut head = Vec::with_capacity(128 + 64 * reply.tensors.len());
    put_bytes(&mut head, 1, reply.model_name.as_bytes());
    put_bytes(&mut head, 2, reply.model_version.unwrap_or_default().as_bytes());
    put_bytes(&mut head, 3, reply.id.unwrap_or_default().as_bytes());
    for (wanted, (info, tensor)) in reply.outputs.iter().zip(results) {
        let mut output = Vec::with_capacity(64);
        put_bytes(&mut output, 1, info.name.as_bytes());
        put_bytes(&mut output, 2, tensor.data_type().name().as_bytes());
        let mut extents = Vec::with_capacity(16);
        tensor.shape().extents().iter().for_each(|extent| put_varint(&mut extents, *extent as u64));
        put_bytes(&mut output, 3, &extents);
        if let Form::Shared(slice) = &wanted.form {
            put_slice(&mut output, slice, tensor.data().len());
        }
        put_head(&mut head, 5, output.len());
        head.extend_from_slice(&output);
    }
    let mut pieces = Pieces::new();
    for (wanted, tensor) in reply.outputs.iter().zip(reply.tensors) {
        if matches!(wanted.form, Form::Shared(_)) {
            // Clients count on an entry for each output.
            put_head(&mut head, 6, 0);
            continue;
        }
        put_head(&mut head, 6, tensor.data().len());
        pieces.push(Bytes::from(std::mem::take(&mut head)));
        pieces.push(tensor.data().clone());
    }
    if !head.is_empty() {
        pieces.push(Bytes::from(head));
    }
    Ok(pieces)
}

/// Puts a result into an answer of a stream.
pub fn in_stream(pieces: Pieces) -> Pieces {
    let length: usize = pieces.iter().map(Bytes::len).sum();
    let mut head = Vec::with_capacity(16);
    put_head(&mut head, 2, length);
    let mut all = Pieces::new();
    all.push(Bytes::from(head));
    all.extend(pieces);
    all
}

/// An answer of a stream that says why there is no result, and to which request; the code is a parameter of it.
pub fn stream_error(error: &CallError, id: &str) -> Pieces {
    let mut named = Vec::new();
    put_bytes(&mut named, 3, id.as_bytes());
    put_parameter(&mut named, headers::CODE.as_str(), |value| {
        put_bytes(value, 3, error.code.as_str().as_bytes());
    });
    let mut message = Vec::with_capacity(error.message.len() + named.len() + 16);
    put_bytes(&mut message, 1, error.message.as_bytes());
    put_bytes(&mut message, 2, &named);
    let mut pieces = Pieces::new();
    pieces.push(Bytes::from(message));
    pieces
}

/// Says where an output of `length` bytes has been put.
fn put_slice(output: &mut Vec<u8>, slice: &Slice, length: usize) {
    put_parameter(output, "shared_memory_region", |value| put_bytes(value, 3, slice.region.as_bytes()));
    put_parameter(output, "shared_memory_offset", |value| put_number(value, slice.offset));
    put_parameter(output, "shared_memory_byte_size", |value| put_number(value, length as u64));
}

/// The field `int64_param`.
fn put_number(value: &mut Vec<u8>, number: u64) {
    put_varint(value, 2 << 3);
    put_varint(value, number);
}

/// An entry of a map of parameters.
fn put_parameter(output: &mut Vec<u8>, key: &str, write: impl FnOnce(&mut Vec<u8>)) {
    let mut value = Vec::with_capacity(32);
    write(&mut value);
    let mut entry = Vec::with_capacity(64);
    put_bytes(&mut entry, 1, key.as_bytes());
    put_bytes(&mut entry, 2, &value);
    put_bytes(output, 4, &entry);
}
