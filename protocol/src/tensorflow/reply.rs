//! `PredictResponse`, written around the bytes of its tensors where these are what is sent.

use bytes::Bytes;
use outrigger_backend::{DataType, Tensor};

use super::number_of;
use crate::call::InferReply;
use crate::error::CallError;
use crate::oip::grpc::Pieces;
use crate::wire::{put_bytes, put_head, put_varint};

/// Writes a result.
///
/// # Errors
/// [`ErrorCode::Internal`](crate::ErrorCode::Internal) if tensors and outputs do not match.
pub fn encode_reply(reply: &InferReply<'_>) -> Result<Pieces, CallError> {
    let mut pieces = Pieces::new();
    let mut head = Vec::with_capacity(128);
    for (info, tensor) in reply.results()? {
        let mut proto = Vec::with_capacity(64);
        put_varint(&mut proto, 1 << 3);
        put_varint(&mut proto, number_of(tensor.data_type()).unwrap_or(0));
        put_shape(&mut proto, tensor.shape().extents());
        let (field, content) = values(tensor, &mut proto);
        if !content.is_empty() {
            put_head(&mut proto, field, content.len());
        }
        // Lengths are of what is inside, the content counted in, which follows as a piece of its own.
        let mut name = Vec::with_capacity(info.name.len() + 8);
        put_bytes(&mut name, 1, info.name.as_bytes());
        let tensor_length = proto.len() + content.len();
        let mut tensor_head = Vec::with_capacity(16);
        put_head(&mut tensor_head, 2, tensor_length);
        put_head(&mut head, 1, name.len() + tensor_head.len() + tensor_length);
        for part in [name, tensor_head, proto] {
            head.extend_from_slice(&part);
        }
        if !content.is_empty() {
            pieces.push(Bytes::from(std::mem::take(&mut head)));
            pieces.push(content);
        }
    }
    put_spec(&mut head, reply);
    pieces.push(Bytes::from(head));
    Ok(pieces)
}

/// The packed values of a tensor, and the number of their field; strings are appended at once. What is packed of numbers with a fixed length, and
/// of booleans, is what they are in memory, and is not copied. That they are not in `tensor_content` is how that server sends them, and some
/// of its clients read nothing else.
fn values(tensor: &Tensor, proto: &mut Vec<u8>) -> (u32, Bytes) {
    let data = tensor.data();
    let packed = |number: fn(&[u8]) -> u64| {
        let size = tensor.data_type().size().unwrap_or(1);
        let mut packed = Vec::with_capacity(2 * data.len());
        data.chunks_exact(size).for_each(|bytes| put_varint(&mut packed, number(bytes)));
        Bytes::from(packed)
    };
    match tensor.data_type() {
        DataType::Fp32 => (5, data.clone()),
        DataType::Fp64 => (6, data.clone()),
        DataType::Bool => (11, data.clone()),
        DataType::Bytes => {
            for string in tensor.iter_strings() {
                put_head(proto, 8, string.len());
                proto.extend_from_slice(string);
            }
            (8, Bytes::new())
        }
        DataType::Int64 => (10, packed(unsigned)),
        DataType::Fp16 | DataType::Bf16 => (13, packed(unsigned)),
        DataType::Uint32 => (16, packed(unsigned)),
        DataType::Uint64 => (17, packed(unsigned)),
        DataType::Int8 | DataType::Int16 | DataType::Int32 => (7, packed(signed)),
        _ => (7, packed(unsigned)),
    }
}

/// A number, little-endian, with zeros before it.
fn unsigned(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The same of one that may be negative.
fn signed(bytes: &[u8]) -> u64 {
    let shift = 64 - 8 * bytes.len().clamp(1, 8);
    ((unsigned(bytes) << shift) as i64 >> shift) as u64
}

fn put_shape(proto: &mut Vec<u8>, extents: &[i64]) {
    let mut shape = Vec::with_capacity(4 * extents.len());
    for extent in extents {
        let mut dim = Vec::with_capacity(12);
        put_varint(&mut dim, 1 << 3);
        put_varint(&mut dim, *extent as u64);
        put_head(&mut shape, 2, dim.len());
        shape.extend_from_slice(&dim);
    }
    put_head(proto, 2, shape.len());
    proto.extend_from_slice(&shape);
}

/// Which model it was; its version where that is a number.
fn put_spec(head: &mut Vec<u8>, reply: &InferReply<'_>) {
    let mut spec = Vec::with_capacity(64);
    put_bytes(&mut spec, 1, reply.model_name.as_bytes());
    if let Some(version) = reply.model_version.and_then(|version| version.parse::<i64>().ok()) {
        let mut number = Vec::with_capacity(12);
        put_varint(&mut number, 1 << 3);
        put_varint(&mut number, version as u64);
        put_bytes(&mut spec, 2, &number);
    }
    put_bytes(head, 2, &spec);
}
