//! `PredictResponse`, written around the bytes of its tensors, which are not copied, but for strings.

use bytes::Bytes;
use outrigger_backend::DataType;

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
        let content = if tensor.data_type() == DataType::Bytes {
            for string in tensor.iter_strings() {
                put_head(&mut proto, 8, string.len());
                proto.extend_from_slice(string);
            }
            Bytes::new()
        } else {
            tensor.data().clone()
        };
        if !content.is_empty() {
            put_head(&mut proto, 4, content.len());
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
