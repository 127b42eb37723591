//! Answers: results, errors, metadata.

use bytes::Bytes;
use http::Response;
use http::header::CONTENT_TYPE;
use outrigger_backend::{DataType, ModelInfo, Tensor, TensorInfo};
use serde::Serialize;
use serde_json::json;

use crate::error::{CallError, ErrorCode};
use crate::headers::{APPLICATION_JSON, error_response, single_member, write_string};

/// A result and what it is the result of.
#[derive(Clone, Copy, Debug)]
pub struct InferReply<'a> {
    /// The model's name.
    pub model_name: &'a str,
    /// The model's version, where it has one.
    pub model_version: Option<&'a str>,
    /// [`InferCall::id`](super::InferCall::id).
    pub id: Option<&'a str>,
    /// The model.
    pub model: &'a ModelInfo,
    /// [`InferCall::outputs`](super::InferCall::outputs).
    pub outputs: &'a [usize],
    /// One tensor for each of `outputs`.
    pub tensors: &'a [Tensor],
}

/// Writes the body of an answer with a result. Data is flat, and floating-point numbers have as few digits as
/// bring the same number back.
///
/// # Errors
/// [`ErrorCode::ResultNotFinite`] if a value is NaN or infinite, [`ErrorCode::UnsupportedDatatype`] if a type
/// is not carried as JSON, [`ErrorCode::Internal`] if tensors and outputs do not match.
pub fn encode_infer(reply: &InferReply<'_>) -> Result<Bytes, CallError> {
    if reply.outputs.len() != reply.tensors.len() {
        return Err(CallError::new(ErrorCode::Internal, "the model gave another number of outputs"));
    }
    let data: usize = reply.tensors.iter().map(text_size).sum();
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
    for (position, (&index, tensor)) in reply.outputs.iter().zip(reply.tensors).enumerate() {
        let Some(info) = reply.model.outputs.get(index) else {
            return Err(CallError::new(ErrorCode::Internal, "the model has no such output"));
        };
        if position > 0 {
            body.push(b',');
        }
        write_tensor(&mut body, &info.name, tensor)?;
    }
    body.extend_from_slice(b"]}");
    Ok(Bytes::from(body))
}

/// The answer with a result.
pub fn encode_ok(body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    response.headers_mut().reserve(6);
    response.headers_mut().insert(CONTENT_TYPE, APPLICATION_JSON);
    response
}

/// The answer for a failed call: `{"error": "..."}` and the headers that every contract has.
pub fn encode_error(error: &CallError) -> Response<Bytes> {
    error_response(error, single_member("error", &error.message))
}

/// Appends `{"name": .., "shape": .., "datatype": .., "data": [..]}`.
pub(super) fn write_tensor(body: &mut Vec<u8>, name: &str, tensor: &Tensor) -> Result<(), CallError> {
    body.extend_from_slice(b"{\"name\":");
    write_string(body, name);
    body.extend_from_slice(b",\"datatype\":\"");
    body.extend_from_slice(tensor.data_type().name().as_bytes());
    body.extend_from_slice(b"\",\"shape\":[");
    write_list(body, tensor.shape().extents().iter());
    body.extend_from_slice(b"],\"data\":[");
    write_data(body, name, tensor)?;
    body.extend_from_slice(b"]}");
    Ok(())
}

fn write_data(body: &mut Vec<u8>, name: &str, tensor: &Tensor) -> Result<(), CallError> {
    let not_finite = || {
        let text = format!("output `{name}` holds NaN or an infinity, which JSON cannot say");
        CallError::new(ErrorCode::ResultNotFinite, text)
    };
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
        DataType::Fp32 => {
            if !values(tensor, f32::from_ne_bytes).all(f32::is_finite) {
                return Err(not_finite());
            }
            write_list(body, values(tensor, f32::from_ne_bytes));
        }
        DataType::Fp64 => {
            if !values(tensor, f64::from_ne_bytes).all(f64::is_finite) {
                return Err(not_finite());
            }
            write_list(body, values(tensor, f64::from_ne_bytes));
        }
        other => {
            let text = format!("output `{name}` has datatype {other}, which is not carried as JSON yet");
            return Err(CallError::new(ErrorCode::UnsupportedDatatype, text));
        }
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
        DataType::Fp32 | DataType::Uint64 | DataType::Int64 => 12,
        _ => 20,
    };
    tensor.shape().elements().saturating_mul(each)
}

#[derive(Serialize)]
struct TensorMetadata<'a> {
    name: &'a str,
    datatype: DataType,
    shape: &'a [i64],
}

#[derive(Serialize)]
struct ModelMetadata<'a> {
    name: &'a str,
    versions: &'a [&'a str],
    platform: &'a str,
    inputs: Vec<TensorMetadata<'a>>,
    outputs: Vec<TensorMetadata<'a>>,
}

/// The body of `GET /v2/models/{name}`. `platform` is such as `onnx_onnxruntime`; a free extent is −1.
pub fn model_metadata(name: &str, versions: &[&str], platform: &str, model: &ModelInfo) -> Bytes {
    let metadata = ModelMetadata {
        name,
        versions,
        platform,
        inputs: model.inputs.iter().map(tensor_metadata).collect(),
        outputs: model.outputs.iter().map(tensor_metadata).collect(),
    };
    // Text and numbers have a JSON form: this does not fail.
    Bytes::from(serde_json::to_vec(&metadata).unwrap_or_default())
}

fn tensor_metadata(info: &TensorInfo) -> TensorMetadata<'_> {
    TensorMetadata { name: &info.name, datatype: info.data_type, shape: &info.shape }
}

/// The body of `GET /v2`.
pub fn server_metadata() -> Bytes {
    let version = env!("CARGO_PKG_VERSION");
    Bytes::from(json!({ "name": "outrigger", "version": version, "extensions": [] }).to_string())
}

/// The body of `GET /v2/health/live`.
pub fn server_live(live: bool) -> Bytes {
    Bytes::from_static(if live { br#"{"live":true}"# } else { br#"{"live":false}"# })
}

/// The body of `GET /v2/health/ready`.
pub fn server_ready(ready: bool) -> Bytes {
    Bytes::from_static(if ready { br#"{"ready":true}"# } else { br#"{"ready":false}"# })
}

/// The body of `GET /v2/models/{name}/ready`.
pub fn model_ready(name: &str, ready: bool) -> Bytes {
    Bytes::from(json!({ "name": name, "ready": ready }).to_string())
}
