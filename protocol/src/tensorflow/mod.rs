//! TensorFlow Serving's `Predict` over gRPC, which clients of accelerated models speak.
//!
//! A tensor has as many values as its shape has elements: a single one is not repeated, for that would let a few bytes ask for a lot of
//! memory.
//!
//! Source: <https://github.com/tensorflow/serving/blob/master/tensorflow_serving/apis/prediction_service.proto>.

mod reply;
mod request;
#[cfg(test)]
mod tests;

use outrigger_backend::DataType;

pub use reply::encode_reply;
pub use request::{Target, parse_request, target};

/// The descriptions of the service, as a serialised `FileDescriptorSet`: what reflection tells.
pub const DESCRIBED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/described_tensorflow.bin"));

/// The number of a type.
fn number_of(data_type: DataType) -> Option<u64> {
    Some(match data_type {
        DataType::Fp32 => 1,
        DataType::Fp64 => 2,
        DataType::Int32 => 3,
        DataType::Uint8 => 4,
        DataType::Int16 => 5,
        DataType::Int8 => 6,
        DataType::Bytes => 7,
        DataType::Int64 => 9,
        DataType::Bool => 10,
        DataType::Bf16 => 14,
        DataType::Uint16 => 17,
        DataType::Fp16 => 19,
        DataType::Uint32 => 22,
        DataType::Uint64 => 23,
        _ => return None,
    })
}

/// The type with a number.
fn data_type_of(number: u64) -> Option<DataType> {
    DataType::ALL.into_iter().find(|data_type| number_of(*data_type) == Some(number))
}
