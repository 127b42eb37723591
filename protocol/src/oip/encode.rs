//! Answers: results and errors.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use outrigger_backend::{DataType, Tensor};
use serde::Serialize;
use smallvec::SmallVec;

use crate::call::{Form, InferReply};
use crate::error::{CallError, ErrorCode};
use crate::headers::{
    APPLICATION_JSON, INFERENCE_HEADER_LENGTH, error_response, single_member, write_string,
};
use crate::json::number::{brain_to_single, half_to_single};

/// The body of an answer with a result: JSON, and behind it the outputs that were asked for as bytes, by reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InferBody {
    /// The pieces, in their order; the first is the JSON.
    pub pieces: SmallVec<[Bytes; 4]>,
    /// The length of the JSON, where anything follows it.
    pub json_length: Option<usize>,
}

/// Writes the body of an answer with a result. Data is flat, and floating-point numbers have as few digits as
/// bring the same number back.
///
/// # Errors
/// [`ErrorCode::ResultNotFinite`] if a value that is sent as JSON is NaN or infinite, [`ErrorCode::UnsupportedDatatype`] if it is a
/// string that is no UTF-8, [`ErrorCode::Internal`] if tensors and outputs do not match.
pub fn encode_infer(reply: &InferReply<'_>) -> Result<InferBody, CallError> {
    let results = reply.results()?;
    let values = reply.outputs.iter().zip(reply.tensors).filter(|(wanted, _)| wanted.form == Form::Values);
    let data: usize = values.map(|(_, tensor)| text_size(tensor)).sum();
    let mut body = Vec::with_capacity(data + 128 + 128 * reply.tensors.len());
    body.extend_from_slice(b"{\"model_name\":");
    write_string(&mut body, reply.model_name);
    if let Some(version) = reply.model_version {
        body.extend_from_slice(b",\"model_version\":");
        write_string(&mut body, version);
    }
    if let Some(id) = reply.id {
        body.extend_from_slice(b",\"id\":");
        write_string(&mut body, id);
    }
    body.extend_from_slice(b",\"outputs\":[");
    let mut pieces = SmallVec::from_elem(Bytes::new(), 1);
    for (position, (wanted, (info, tensor))) in reply.outputs.iter().zip(results).enumerate() {
        if position > 0 {
            body.push(b',');
        }
        write_tensor(&mut body, &info.name, tensor, &wanted.form)?;
        if wanted.form == Form::Raw {
            pieces.push(tensor.data().clone());
        }
    }
    body.extend_from_slice(b"]}");
    let json_length = (pieces.len() > 1).then_some(body.len());
    if let Some(first) = pieces.first_mut() {
        *first = Bytes::from(body);
    }
    Ok(InferBody { pieces, json_length })
}

/// The head of an answer with a result: [`InferBody::json_length`] where there is one. The body is empty; the pieces are put there.
pub fn encode_ok(json_length: Option<usize>) -> Response<()> {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.reserve(8);
    match json_length {
        None => headers.insert(CONTENT_TYPE, APPLICATION_JSON),
        Some(length) => {
            headers.insert(INFERENCE_HEADER_LENGTH, HeaderValue::from(length));
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
        }
    };
    response
}

/// The answer for a failed call: `{"error": "..."}` and the headers that every contract has.
pub fn encode_error(error: &CallError) -> Response<Bytes> {
    error_response(error, single_member("error", &error.message))
}

/// Appends `{"name": .., "datatype": .., "shape": ..}` with the data, or with where it is.
pub(super) fn write_tensor(
    body: &mut Vec<u8>,
    name: &str,
    tensor: &Tensor,
    form: &Form,
) -> Result<(), CallError> {
    body.extend_from_slice(b"{\"name\":");
    write_string(body, name);
    body.extend_from_slice(b",\"datatype\":\"");
    body.extend_from_slice(tensor.data_type().name().as_bytes());
    body.extend_from_slice(b"\",\"shape\":[");
    write_list(body, tensor.shape().extents().iter());
    let length = tensor.data().len();
    match form {
        Form::Values => {
            body.extend_from_slice(b"],\"data\":[");
            write_data(body, name, tensor)?;
            body.extend_from_slice(b"]}");
        }
        Form::Raw => {
            body.extend_from_slice(b"],\"parameters\":{\"binary_data_size\":");
            write_list(body, std::iter::once(length));
            body.extend_from_slice(b"}}");
        }
        Form::Shared(slice) => {
            body.extend_from_slice(b"],\"parameters\":{\"shared_memory_region\":");
            write_string(body, &slice.region);
            body.extend_from_slice(b",\"shared_memory_offset\":");
            write_list(body, std::iter::once(slice.offset));
            body.extend_from_slice(b",\"shared_memory_byte_size\":");
            write_list(body, std::iter::once(length));
            body.extend_from_slice(b"}}");
        }
    }
    Ok(())
}

fn write_data(body: &mut Vec<u8>, name: &str, tensor: &Tensor) -> Result<(), CallError> {
    match tensor.data_type() {
        DataType::Bool => write_list(body, tensor.data().iter().map(|byte| *byte != 0)),
        DataType::Uint8 => write_list(body, tensor.data().iter()),
        DataType::Int8 => write_list(body, values(tensor, i8::from_ne_bytes)),
        DataType::Uint16 => write_list(body, values(tensor, u16::from_ne_bytes)),
        DataType::Int16 => write_list(body, values(tensor, i16::from_ne_bytes)),
        DataType::Uint32 => write_list(body, values(tensor, u32::from_ne_bytes)),
        DataType::Int32 => write_list(body, values(tensor, i32::from_ne_bytes)),
        DataType::Uint64 => write_list(body, values(tensor, u64::from_ne_bytes)),
        DataType::Int64 => write_list(body, values(tensor, i64::from_ne_bytes)),
        DataType::Fp32 => write_floats(body, name, || values(tensor, f32::from_ne_bytes))?,
        DataType::Fp16 => write_floats(body, name, || values(tensor, half_to_single))?,
        DataType::Bf16 => write_floats(body, name, || values(tensor, brain_to_single))?,
        DataType::Fp64 => {
            if !values(tensor, f64::from_ne_bytes).all(f64::is_finite) {
                return Err(not_finite(name));
            }
            write_list(body, values(tensor, f64::from_ne_bytes));
        }
        DataType::Bytes => write_strings(body, name, tensor)?,
        other => {
            let text = format!("output `{name}` has datatype {other}, which JSON cannot say");
            return Err(CallError::new(ErrorCode::UnsupportedDatatype, text));
        }
    }
    Ok(())
}

fn not_finite(name: &str) -> CallError {
    let text = format!(
        "output `{name}` holds NaN or an infinity, which JSON cannot say; asked for as binary data it can be sent"
    );
    CallError::new(ErrorCode::ResultNotFinite, text)
}

/// Appends numbers whose nearest single they are.
fn write_floats<I: Iterator<Item = f32>>(
    body: &mut Vec<u8>,
    name: &str,
    values: impl Fn() -> I,
) -> Result<(), CallError> {
    if !values().all(f32::is_finite) {
        return Err(not_finite(name));
    }
    write_list(body, values());
    Ok(())
}

fn write_strings(body: &mut Vec<u8>, name: &str, tensor: &Tensor) -> Result<(), CallError> {
    for (index, string) in tensor.iter_strings().enumerate() {
        let Ok(text) = std::str::from_utf8(string) else {
            let text = format!(
                "output `{name}` holds a string that is no UTF-8, which JSON cannot say; asked for as binary data it can be sent"
            );
            return Err(CallError::new(ErrorCode::UnsupportedDatatype, text));
        };
        if index > 0 {
            body.push(b',');
        }
        write_string(body, text);
    }
    Ok(())
}

/// The elements of `tensor`, whose type has `N` bytes.
fn values<const N: usize, T>(tensor: &Tensor, read: fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    tensor.data().as_chunks::<N>().0.iter().map(move |bytes| read(*bytes))
}

/// Appends values with commas between them.
fn write_list<T: Serialize>(body: &mut Vec<u8>, values: impl Iterator<Item = T>) {
    for (index, value) in values.enumerate() {
        if index > 0 {
            body.push(b',');
        }
        // Numbers and booleans have a JSON form and memory takes any write: this does not fail.
        let _ = serde_json::to_writer(&mut *body, &value);
    }
}

/// About how many characters the data takes; a guess that mostly spares growing.
fn text_size(tensor: &Tensor) -> usize {
    let each: usize = match tensor.data_type() {
        DataType::Bool => 6,
        DataType::Uint8 | DataType::Int8 => 4,
        DataType::Uint16 | DataType::Int16 => 6,
        DataType::Uint32 | DataType::Int32 => 9,
        DataType::Fp32 | DataType::Fp16 | DataType::Bf16 | DataType::Uint64 | DataType::Int64 => 12,
        DataType::Bytes => return tensor.data().len().saturating_add(8),
        _ => 20,
    };
    tensor.shape().elements().saturating_mul(each)
}
