//! Reads what a backend and its models say of themselves, copying it out of the library's memory.

use crate::abi::{Description, Device, Signature, TensorType, Text, kind};
use crate::{BackendInfo, DeviceInfo, DeviceKind, MAX_RANK, ModelInfo, TensorInfo};

/// More than any backend or model has; a larger number is a broken description, not a reason to read on.
const MOST_ITEMS: usize = 65_536;
/// Likewise for the bytes of a text.
const MOST_TEXT: usize = 1 << 20;

/// What is wrong with a description.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("its description is null")]
    Null,
    #[error("`{0}` has {1} items and no address, or too many")]
    List(&'static str, usize),
    #[error("`{0}` is no UTF-8 text")]
    Text(&'static str),
    #[error("device `{0}` is of kind {1}, which is not known")]
    Kind(String, u32),
    #[error("`{0}` has an element type that is not known")]
    Type(String),
    #[error("`{0}` has rank {1}, over the limit of {MAX_RANK}")]
    Rank(String, u32),
    #[error("`{0}` has the extent {1}")]
    Extent(String, i64),
}

/// # Safety
/// `description` is null or valid by the table's contract.
pub(super) unsafe fn backend(description: *const Description) -> Result<BackendInfo, Fault> {
    // SAFETY: promised by the caller, here and for all that the description points to.
    unsafe {
        let description = checked(description)?;
        let formats = list("formats", description.formats, description.format_count)?;
        let devices = list("devices", description.devices, description.device_count)?;
        let reason = text("reason", description.reason)?;
        Ok(BackendInfo {
            name: text("name", description.name)?,
            version: text("version", description.version)?,
            formats: formats.iter().map(|format| text("formats", *format)).collect::<Result<_, _>>()?,
            devices: devices.iter().map(|one| device(one)).collect::<Result<_, _>>()?,
            reason: (!reason.is_empty()).then_some(reason),
        })
    }
}

/// # Safety
/// As [`backend`].
unsafe fn device(device: &Device) -> Result<DeviceInfo, Fault> {
    // SAFETY: promised by the caller.
    let name = unsafe { text("device name", device.name) }?;
    let kind = match device.kind {
        kind::CPU => DeviceKind::Cpu,
        kind::CUDA => DeviceKind::Cuda,
        kind::GPU => DeviceKind::Gpu,
        kind::FPGA => DeviceKind::Fpga,
        other => return Err(Fault::Kind(name, other)),
    };
    Ok(DeviceInfo {
        name,
        kind,
        memory_total: device.memory_total,
        lanes: device.lanes,
        resident: device.resident != 0,
    })
}

/// # Safety
/// `signature` is null or valid by the table's contract.
pub(crate) unsafe fn model(signature: *const Signature) -> Result<ModelInfo, Fault> {
    // SAFETY: promised by the caller, here and for all that the signature points to.
    unsafe {
        let signature = checked(signature)?;
        let inputs = list("inputs", signature.inputs, signature.input_count)?;
        let outputs = list("outputs", signature.outputs, signature.output_count)?;
        Ok(ModelInfo {
            inputs: inputs.iter().map(|one| tensor(one)).collect::<Result<_, _>>()?,
            outputs: outputs.iter().map(|one| tensor(one)).collect::<Result<_, _>>()?,
        })
    }
}

/// # Safety
/// As [`model`].
unsafe fn tensor(tensor: &TensorType) -> Result<TensorInfo, Fault> {
    // SAFETY: promised by the caller.
    let name = unsafe { text("tensor name", tensor.name) }?;
    let Some(data_type) = tensor.data_type.data_type() else { return Err(Fault::Type(name)) };
    let rank = tensor.rank as usize;
    if rank > MAX_RANK {
        return Err(Fault::Rank(name, tensor.rank));
    }
    // SAFETY: promised by the caller.
    let shape = unsafe { list("shape", tensor.shape, rank) }?.to_vec();
    if let Some(extent) = shape.iter().find(|extent| **extent < -1) {
        return Err(Fault::Extent(name, *extent));
    }
    let symbols = if tensor.symbols.is_null() {
        vec![String::new(); rank]
    } else {
        // SAFETY: promised by the caller.
        let symbols = unsafe { list("symbols", tensor.symbols, rank) }?;
        // SAFETY: as above.
        symbols.iter().map(|symbol| unsafe { text("symbol", *symbol) }).collect::<Result<_, _>>()?
    };
    Ok(TensorInfo { name, data_type, shape, symbols })
}

/// # Safety
/// `value` is null or valid.
unsafe fn checked<'a, T>(value: *const T) -> Result<&'a T, Fault> {
    if !value.is_aligned() {
        return Err(Fault::Null);
    }
    // SAFETY: promised by the caller.
    unsafe { value.as_ref() }.ok_or(Fault::Null)
}

/// # Safety
/// `data` is null or has `count` values.
unsafe fn list<'a, T>(what: &'static str, data: *const T, count: usize) -> Result<&'a [T], Fault> {
    if count == 0 {
        return Ok(&[]);
    }
    if data.is_null() || !data.is_aligned() || count > MOST_ITEMS {
        return Err(Fault::List(what, count));
    }
    // SAFETY: neither null nor misaligned; promised by the caller.
    Ok(unsafe { std::slice::from_raw_parts(data, count) })
}

/// # Safety
/// `text` is valid.
unsafe fn text(what: &'static str, text: Text) -> Result<String, Fault> {
    if text.len == 0 {
        return Ok(String::new());
    }
    if text.data.is_null() || text.len > MOST_TEXT {
        return Err(Fault::List(what, text.len));
    }
    // SAFETY: not null; promised by the caller.
    let bytes = unsafe { std::slice::from_raw_parts(text.data, text.len) };
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Fault::Text(what))
}
