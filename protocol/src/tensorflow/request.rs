//! `PredictRequest`, from its bytes straight to tensors.

use std::ops::Range;

use bytes::Bytes;
use outrigger_backend::{DataType, MAX_RANK, ModelInfo};
use smallvec::SmallVec;

use super::data_type_of;
use crate::call::fit::{invalid, short};
use crate::call::inputs::Inputs;
use crate::call::{Form, InferCall, Limits, Wanted, find_output, to_shape, too_many_dimensions};
use crate::error::{CallError, ErrorCode};
use crate::urgency::Urgency;
use crate::wire::values::{Kind, Values};
use crate::wire::{Fields, Value, text};

/// Which model a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Its name; empty if it is not said.
    pub model: &'a str,
    /// Its version, by number or by what it is called.
    pub version: Option<String>,
}

/// Looks which model a message is for.
///
/// # Errors
/// [`ErrorCode::BadRequest`] if it is no message.
pub fn target(message: &[u8]) -> Result<Target<'_>, CallError> {
    let mut target = Target { model: "", version: None };
    let mut fields = Fields::of(message);
    while let Some((number, value)) = fields.next()? {
        if number != 1 {
            continue;
        }
        let mut spec = Fields::within(message, value.bytes()?);
        while let Some((number, value)) = spec.next()? {
            match number {
                1 => target.model = text(message, value.bytes()?)?,
                2 => target.version = Some(number_in(message, value.bytes()?)?.to_string()),
                4 => target.version = Some(text(message, value.bytes()?)?.to_owned()),
                _ => {}
            }
        }
    }
    Ok(target)
}

/// The number in an `Int64Value`.
fn number_in(message: &[u8], range: Range<usize>) -> Result<i64, CallError> {
    let mut number = 0;
    let mut fields = Fields::within(message, range);
    while let Some(field) = fields.next()? {
        if let (1, Value::Varint(value)) = field {
            number = value as i64;
        }
    }
    Ok(number)
}

/// Reads a request to `model`.
///
/// # Errors
/// [`ErrorCode::BadRequest`] if it is no message of the protocol's, [`ErrorCode::InvalidTensor`] for what is wrong with a tensor,
/// [`ErrorCode::Overloaded`] if its memory cannot be had.
pub fn parse_request(message: &Bytes, model: &ModelInfo, limits: &Limits) -> Result<InferCall, CallError> {
    let mut inputs = Inputs::new(model, limits);
    let mut outputs: SmallVec<[usize; 8]> = SmallVec::new();
    let mut fields = Fields::of(message);
    while let Some((number, value)) = fields.next()? {
        match number {
            2 => input(message, value.bytes()?, limits, &mut inputs)?,
            3 => {
                let name = text(message, value.bytes()?)?;
                outputs.push(find_output(model, name, outputs.iter().copied())?);
            }
            _ => {}
        }
    }
    let outputs = match outputs.as_slice() {
        [] => Wanted::all(model.outputs.len(), &Form::Raw),
        asked => asked.iter().map(|index| Wanted { index: *index, form: Form::Raw }).collect(),
    };
    Ok(InferCall { id: None, inputs: inputs.complete()?, outputs, urgency: Urgency::default() })
}

/// One entry of `inputs`.
fn input(
    message: &Bytes,
    range: Range<usize>,
    limits: &Limits,
    inputs: &mut Inputs<'_>,
) -> Result<(), CallError> {
    let (mut name, mut tensor) = ("", None);
    let mut fields = Fields::within(message, range);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => name = text(message, value.bytes()?)?,
            2 => tensor = Some(value.bytes()?),
            _ => {}
        }
    }
    let Some(range) = tensor else {
        return Err(invalid(name, "it has no tensor"));
    };
    let (mut data_type, mut extents, mut content) = (0, Vec::new(), None);
    let mut fields = Fields::within(message, range.clone());
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Varint(number)) => data_type = number,
            (2, value) => shape(message, value.bytes()?, limits, &mut extents)?,
            (4, value) => content = Some(value.bytes()?).filter(|range| !range.is_empty()),
            _ => {}
        }
    }
    let Some(data_type) = data_type_of(data_type) else {
        let text = format!("input `{}` has the dtype {data_type}, which no model here takes", short(name));
        return Err(CallError::new(ErrorCode::UnsupportedDatatype, text));
    };
    let place = inputs.place(name, Some(data_type.name()), Some(to_shape(extents)?))?;
    let (field, kind) = field_of(data_type);
    match content {
        // Strings are never there.
        Some(range) if kind != Kind::Strings => inputs.put_raw(place, message.slice(range)),
        _ if place.shape.elements() == 0 => inputs.put_raw(place, Bytes::new()),
        _ => Values { message, range, field, kind, skip: |number| number <= 4 }.read(inputs, place),
    }
}

/// Reads a `TensorShapeProto`.
fn shape(
    message: &[u8],
    range: Range<usize>,
    limits: &Limits,
    extents: &mut Vec<i64>,
) -> Result<(), CallError> {
    let most = limits.rank.min(MAX_RANK);
    let mut fields = Fields::within(message, range);
    while let Some((number, value)) = fields.next()? {
        if number != 2 {
            continue;
        }
        if extents.len() == most {
            return Err(too_many_dimensions(most));
        }
        extents.push(number_in(message, value.bytes()?)?);
    }
    Ok(())
}

/// The field of `TensorProto` that holds the values of a type.
fn field_of(data_type: DataType) -> (u64, Kind) {
    match data_type {
        DataType::Fp32 => (5, Kind::Fixed32),
        DataType::Fp64 => (6, Kind::Fixed64),
        DataType::Bytes => (8, Kind::Strings),
        DataType::Int64 => (10, Kind::Varint),
        DataType::Bool => (11, Kind::Varint),
        DataType::Fp16 | DataType::Bf16 => (13, Kind::Bits16),
        DataType::Uint32 => (16, Kind::Varint),
        DataType::Uint64 => (17, Kind::Varint),
        _ => (7, Kind::Varint),
    }
}
