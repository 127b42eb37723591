//! `ModelInferRequest`, from its bytes straight to tensors: raw contents are shared with the message, typed ones are read into the memory
//! that the model reads.

use std::ops::Range;

use bytes::Bytes;
use outrigger_backend::{DataType, MAX_RANK, ModelInfo};
use smallvec::SmallVec;

use crate::call::fit::invalid;
use crate::call::inputs::{Inputs, Place};
use crate::call::{
    Form, InferCall, Limits, Regions, Slice, Wanted, find_output, to_shape, too_many_dimensions,
};
use crate::error::{CallError, ErrorCode};
use crate::oip::parameters::{priority, timeout};
use crate::oip::parse::{check_id, no_classification};
use crate::priority::Priority;
use crate::urgency::Urgency;
use crate::wire::values::{Kind, Values};
use crate::wire::{Fields, Value, malformed, text};

/// Which model a request is for, by name and version; the version is empty if it is not said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// The name.
    pub model: &'a str,
    /// The version.
    pub version: &'a str,
    /// The client's name for the call.
    pub id: &'a str,
}

/// Looks which model a message is for.
///
/// # Errors
/// [`ErrorCode::BadRequest`] if it is no message.
pub fn target(message: &[u8]) -> Result<Target<'_>, CallError> {
    let mut target = Target { model: "", version: "", id: "" };
    let mut fields = Fields::of(message);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => target.model = text(message, value.bytes()?)?,
            2 => target.version = text(message, value.bytes()?)?,
            3 => target.id = text(message, value.bytes()?)?,
            _ => {}
        }
    }
    Ok(target)
}

/// The client's name for the call, as far as it can be found: the message may be none, or cut short.
pub fn id(message: &[u8]) -> &str {
    let (mut found, mut fields) = ("", Fields::of(message));
    while let Ok(Some((number, value))) = fields.next() {
        if number == 3 {
            found = value.bytes().and_then(|range| text(message, range)).unwrap_or_default();
        }
    }
    found
}

/// Whether the inputs of a message are as their bytes, so that there is not much to read.
pub fn is_raw(message: &[u8]) -> bool {
    let mut fields = Fields::of(message);
    std::iter::from_fn(|| fields.next().ok().flatten()).any(|(number, _)| number == 7)
}

/// Reads a request to `model`.
///
/// # Errors
/// [`ErrorCode::BadRequest`] if it is no message of the protocol's, [`ErrorCode::InvalidTensor`] for what is wrong with a tensor,
/// [`ErrorCode::Overloaded`] if its memory cannot be had.
pub fn parse_request(
    message: &Bytes,
    model: &ModelInfo,
    limits: &Limits,
    regions: &dyn Regions,
) -> Result<InferCall, CallError> {
    let Parts { id, urgency, inputs, outputs, raw } = Parts::of(message, model)?;
    check_id(id, limits)?;
    let mut reader =
        Reader { message, inputs: Inputs::new(model, limits), limits, regions, raw: raw.into_iter() };
    let has_raw = reader.raw.len() > 0;
    for input in inputs {
        reader.input(input, has_raw)?;
    }
    if reader.raw.next().is_some() {
        return Err(malformed("there are more `raw_input_contents` than inputs"));
    }
    let outputs = wanted(message, model, outputs)?;
    let inputs = reader.inputs.complete()?;
    Ok(InferCall { id: Some(id).filter(|id| !id.is_empty()).map(str::to_owned), inputs, outputs, urgency })
}

/// Where the parts of a message are.
struct Parts<'a> {
    id: &'a str,
    urgency: Urgency,
    inputs: SmallVec<[Range<usize>; 8]>,
    outputs: SmallVec<[Range<usize>; 8]>,
    raw: SmallVec<[Range<usize>; 8]>,
}

impl<'a> Parts<'a> {
    /// Never more of them than the model has.
    fn of(message: &'a [u8], model: &ModelInfo) -> Result<Self, CallError> {
        let mut parts = Self {
            id: "",
            urgency: Urgency::default(),
            inputs: SmallVec::new(),
            outputs: SmallVec::new(),
            raw: SmallVec::new(),
        };
        let mut fields = Fields::of(message);
        while let Some((number, value)) = fields.next()? {
            let (list, most, what) = match number {
                3 => {
                    parts.id = text(message, value.bytes()?)?;
                    continue;
                }
                4 => {
                    parts.parameter(message, value.bytes()?)?;
                    continue;
                }
                5 => (&mut parts.inputs, model.inputs.len(), "inputs than the model has"),
                6 => (&mut parts.outputs, model.outputs.len(), "outputs than the model has"),
                7 => (&mut parts.raw, model.inputs.len(), "`raw_input_contents` than the model has inputs"),
                _ => continue,
            };
            if list.len() == most {
                return Err(CallError::new(
                    ErrorCode::InvalidTensor,
                    format!("there are more {what}, {most}"),
                ));
            }
            list.push(value.bytes()?);
        }
        Ok(parts)
    }

    fn parameter(&mut self, message: &[u8], range: Range<usize>) -> Result<(), CallError> {
        let (key, value) = parameter(message, range)?;
        match key {
            "timeout" => self.urgency.deadline = timeout(value.count(key)?),
            "priority" => {
                self.urgency.priority = match value {
                    Parameter::Text(name) => Some(Priority::from_name(name).ok_or_else(|| wrong(key))?),
                    number => priority(number.count(key)?),
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// A value of `parameters`.
#[derive(Clone, Copy, Debug)]
enum Parameter<'a> {
    Number(u64),
    Text(&'a str),
    Other,
}

impl<'a> Parameter<'a> {
    fn count(self, key: &str) -> Result<u64, CallError> {
        match self {
            Self::Number(number) => Ok(number),
            _ => Err(wrong(key)),
        }
    }

    fn text(self, key: &str) -> Result<&'a str, CallError> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(wrong(key)),
        }
    }
}

fn wrong(key: &str) -> CallError {
    CallError::new(
        ErrorCode::BadRequest,
        format!("the parameter `{key}` has another type or value than it takes"),
    )
}

/// One entry of a map of parameters.
fn parameter(message: &[u8], range: Range<usize>) -> Result<(&str, Parameter<'_>), CallError> {
    let (mut key, mut value) = ("", Parameter::Other);
    let mut fields = Fields::within(message, range);
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => key = text(message, field.bytes()?)?,
            2 => value = choice(message, field.bytes()?)?,
            _ => {}
        }
    }
    Ok((key, value))
}

fn choice(message: &[u8], range: Range<usize>) -> Result<Parameter<'_>, CallError> {
    let mut chosen = Parameter::Other;
    let mut fields = Fields::within(message, range);
    while let Some((number, value)) = fields.next()? {
        chosen = match (number, value) {
            // A negative number is no count.
            (2, Value::Varint(number)) if i64::try_from(number).is_ok() => Parameter::Number(number),
            (5, Value::Varint(number)) => Parameter::Number(number),
            (3, Value::Bytes(range)) => Parameter::Text(text(message, range)?),
            _ => Parameter::Other,
        };
    }
    Ok(chosen)
}

/// What the parameters of an input or an output say of shared memory.
#[derive(Default)]
struct Shared<'a> {
    region: Option<&'a str>,
    bytes: Option<u64>,
    offset: u64,
}

impl<'a> Shared<'a> {
    /// Takes a parameter, if it is one of these.
    fn take(&mut self, key: &str, value: Parameter<'a>) -> Result<(), CallError> {
        match key {
            "shared_memory_region" => self.region = Some(value.text(key)?),
            "shared_memory_byte_size" => self.bytes = Some(value.count(key)?),
            "shared_memory_offset" => self.offset = value.count(key)?,
            _ => {}
        }
        Ok(())
    }

    fn slice(&self) -> Result<Option<Slice>, CallError> {
        match (self.region, self.bytes) {
            (None, None) => Ok(None),
            (Some(region), Some(bytes)) => {
                Ok(Some(Slice { region: region.to_owned(), offset: self.offset, bytes }))
            }
            _ => {
                let text = "`shared_memory_region` and `shared_memory_byte_size` belong together";
                Err(CallError::new(ErrorCode::BadRequest, text))
            }
        }
    }
}

/// The outputs that are asked for.
fn wanted(
    message: &[u8],
    model: &ModelInfo,
    asked: SmallVec<[Range<usize>; 8]>,
) -> Result<Vec<Wanted>, CallError> {
    if asked.is_empty() {
        return Ok(Wanted::all(model.outputs.len(), &Form::Raw));
    }
    let mut wanted: Vec<Wanted> = Vec::with_capacity(asked.len());
    for range in asked {
        let (mut name, mut shared, mut classes) = ("", Shared::default(), false);
        let mut fields = Fields::within(message, range);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => name = text(message, value.bytes()?)?,
                2 => {
                    let (key, value) = parameter(message, value.bytes()?)?;
                    classes |= key == "classification" && value.count(key)? > 0;
                    shared.take(key, value)?;
                }
                _ => {}
            }
        }
        if classes {
            return Err(no_classification(name));
        }
        let index = find_output(model, name, wanted.iter().map(|wanted| wanted.index))?;
        let form = shared.slice()?.map_or(Form::Raw, Form::Shared);
        wanted.push(Wanted { index, form });
    }
    Ok(wanted)
}

struct Reader<'a> {
    message: &'a Bytes,
    inputs: Inputs<'a>,
    limits: &'a Limits,
    regions: &'a dyn Regions,
    raw: smallvec::IntoIter<[Range<usize>; 8]>,
}

impl<'a> Reader<'a> {
    fn input(&mut self, range: Range<usize>, has_raw: bool) -> Result<(), CallError> {
        let message: &'a [u8] = self.message;
        let (mut name, mut datatype, mut shared) = ("", "", Shared::default());
        let (mut extents, mut contents) = (Vec::new(), None);
        let mut fields = Fields::within(message, range);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => name = text(message, value.bytes()?)?,
                2 => datatype = text(message, value.bytes()?)?,
                3 => self.extents(value, &mut extents)?,
                4 => {
                    let (key, value) = parameter(message, value.bytes()?)?;
                    shared.take(key, value)?;
                }
                5 if contents.is_some() => return Err(invalid(name, "its `contents` are there twice")),
                5 => contents = Some(value.bytes()?),
                _ => {}
            }
        }
        let place = self.inputs.place(name, Some(datatype), Some(to_shape(extents)?))?;
        if let Some(slice) = shared.slice()? {
            if contents.is_some() {
                return Err(invalid(name, "it has both `contents` and `shared_memory_region`"));
            }
            self.inputs.check_length(&place, slice.bytes)?;
            let data = self.regions.read(&slice)?.freeze();
            return self.inputs.put_raw(place, data);
        }
        match contents {
            Some(_) if has_raw => {
                Err(invalid(name, "it has `contents`, and the request has `raw_input_contents`"))
            }
            Some(contents) => self.contents(place, contents),
            None if has_raw => match self.raw.next() {
                Some(range) => self.inputs.put_raw(place, self.message.slice(range)),
                None => Err(invalid(name, "it has no `raw_input_contents`")),
            },
            // An input without elements may have contents that are empty, and so are not there.
            None if place.shape.elements() == 0 => self.inputs.put_raw(place, Bytes::new()),
            None => Err(invalid(name, "it has neither `contents` nor `raw_input_contents`")),
        }
    }

    /// Extents, one or many.
    fn extents(&self, value: Value, extents: &mut Vec<i64>) -> Result<(), CallError> {
        let most = self.limits.rank.min(MAX_RANK);
        let mut push = |extent: u64| {
            if extents.len() == most {
                return Err(too_many_dimensions(most));
            }
            extents.push(extent as i64);
            Ok(())
        };
        match value {
            Value::Varint(extent) => push(extent),
            value => {
                let mut packed = Fields::within(self.message, value.bytes()?);
                while !packed.is_empty() {
                    push(packed.varint()?)?;
                }
                Ok(())
            }
        }
    }

    /// Reads the one field of typed contents that the datatype has.
    fn contents(&mut self, place: Place<'_>, range: Range<usize>) -> Result<(), CallError> {
        let data_type = place.info.data_type;
        let Some((field, kind)) = field_of(data_type) else {
            let text = format!("{data_type} has no field in `contents`: send it as `raw_input_contents`");
            return Err(invalid(&place.info.name, text));
        };
        Values { message: self.message, range, field, kind, skip: |_| false }.read(&mut self.inputs, place)
    }
}

/// The field of `InferTensorContents` that holds a datatype.
fn field_of(data_type: DataType) -> Option<(u64, Kind)> {
    Some(match data_type {
        DataType::Bool => (1, Kind::Varint),
        DataType::Int8 | DataType::Int16 | DataType::Int32 => (2, Kind::Varint),
        DataType::Int64 => (3, Kind::Varint),
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 => (4, Kind::Varint),
        DataType::Uint64 => (5, Kind::Varint),
        DataType::Fp32 => (6, Kind::Fixed32),
        DataType::Fp64 => (7, Kind::Fixed64),
        DataType::Bytes => (8, Kind::Strings),
        _ => return None,
    })
}
