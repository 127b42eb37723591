//! The inputs of a call as they come, each held against the model and the limits before memory is taken for it.

use bytes::Bytes;
use outrigger_backend::{Buffer, DataType, ModelInfo, Shape, ShapeError, Tensor, TensorInfo};

use super::fit::{self, find, invalid, short};
use super::{Limits, too_many_dimensions};
use crate::error::{CallError, ErrorCode};

/// The inputs that have come.
pub(crate) struct Inputs<'a> {
    model: &'a ModelInfo,
    limits: &'a Limits,
    /// In the model's order.
    tensors: Vec<Option<Tensor>>,
    /// What is left of [`Limits::tensor_bytes`].
    bytes_left: usize,
}

/// An input that fits the model as far as name, datatype and shape go, and whose data is still to come.
pub(crate) struct Place<'a> {
    index: usize,
    pub(crate) info: &'a TensorInfo,
    pub(crate) shape: Shape,
}

impl<'a> Inputs<'a> {
    pub(crate) fn new(model: &'a ModelInfo, limits: &'a Limits) -> Self {
        Self { model, limits, tensors: vec![None; model.inputs.len()], bytes_left: limits.tensor_bytes }
    }

    /// Finds an input in the model, and holds against it what the request says of it.
    pub(crate) fn place(
        &self,
        name: &str,
        datatype: Option<&str>,
        shape: Option<Shape>,
    ) -> Result<Place<'a>, CallError> {
        let index = find(&self.model.inputs, name, "input")?;
        let (Some(info), Some(place)) = (self.model.inputs.get(index), self.tensors.get(index)) else {
            return Err(CallError::new(ErrorCode::Internal, "an input of the model is missing"));
        };
        if place.is_some() {
            return Err(invalid(name, "it is given twice"));
        }
        fit::check_datatype(name, datatype, info)?;
        let Some(shape) = shape else {
            let text = format!("input `{}` has no `shape`", short(name));
            return Err(CallError::new(ErrorCode::BadRequest, text));
        };
        if shape.extents().len() > self.limits.rank {
            return Err(too_many_dimensions(self.limits.rank));
        }
        fit::check_shape(name, &shape, info, self.model, &self.tensors)?;
        let elements = shape.elements();
        if elements > self.limits.elements {
            let limit = self.limits.elements;
            return Err(invalid(name, format!("it has {elements} elements, the limit is {limit}")));
        }
        Ok(Place { index, info, shape })
    }

    /// Counts so many bytes of an input against the limit.
    pub(crate) fn reserve(&mut self, place: &Place<'_>, bytes: usize) -> Result<(), CallError> {
        match self.bytes_left.checked_sub(bytes) {
            Some(left) => {
                self.bytes_left = left;
                Ok(())
            }
            None => Err(self.too_much(place.info)),
        }
    }

    /// Whether so many bytes can be an input, before they are read.
    pub(crate) fn check_length(&self, place: &Place<'_>, bytes: u64) -> Result<(), CallError> {
        let Place { info, shape, .. } = place;
        match shape.bytes(info.data_type) {
            Ok(expected) if bytes != expected as u64 => Err(wrong_length(info, shape, bytes)),
            _ if bytes > self.bytes_left as u64 => Err(self.too_much(info)),
            _ => Ok(()),
        }
    }

    fn too_much(&self, info: &TensorInfo) -> CallError {
        let limit = self.limits.tensor_bytes;
        invalid(&info.name, format!("with it the call has more than {limit} bytes of tensors, the limit"))
    }

    /// What is left for the strings of an input.
    pub(crate) fn left(&self) -> usize {
        self.bytes_left
    }

    /// Memory for the values of an input of a type with a size.
    pub(crate) fn buffer(&mut self, place: &Place<'_>) -> Result<Buffer, CallError> {
        let name = &place.info.name;
        let bytes =
            place.shape.bytes(place.info.data_type).map_err(|error| invalid(name, error.to_string()))?;
        self.reserve(place, bytes)?;
        Buffer::zeroed(bytes).map_err(|_| {
            let text = format!("no memory is free for input `{}`", short(name));
            CallError::new(ErrorCode::Overloaded, text)
        })
    }

    /// Takes data that has been read into memory of [`Inputs::buffer`], or that was counted as strings.
    pub(crate) fn put(&mut self, place: Place<'_>, data: Bytes) -> Result<(), CallError> {
        let name = &place.info.name;
        let tensor = Tensor::new(place.info.data_type, place.shape, data).map_err(|error| {
            CallError::new(ErrorCode::Internal, format!("input `{}`: {error}", short(name)))
        })?;
        self.keep(place.index, tensor);
        Ok(())
    }

    /// Takes data as it came: little-endian, in row-major order; strings each after their length.
    pub(crate) fn put_raw(&mut self, place: Place<'_>, data: Bytes) -> Result<(), CallError> {
        self.reserve(&place, data.len())?;
        let Place { index, info, shape } = place;
        let extents = shape.clone();
        let length = data.len() as u64;
        let tensor = Tensor::new(info.data_type, shape, data).map_err(|error| match error {
            ShapeError::Length { .. } => wrong_length(info, &extents, length),
            error => invalid(&info.name, error.to_string()),
        })?;
        // What reads them may rely on it.
        if info.data_type == DataType::Bool && tensor.data().iter().any(|byte| *byte > 1) {
            return Err(invalid(&info.name, "a boolean is neither 0 nor 1"));
        }
        self.keep(index, tensor);
        Ok(())
    }

    fn keep(&mut self, index: usize, tensor: Tensor) {
        if let Some(place) = self.tensors.get_mut(index) {
            *place = Some(tensor);
        }
    }

    /// All inputs, or which of them is missing.
    pub(crate) fn complete(self) -> Result<Vec<Tensor>, CallError> {
        let absent = self.model.inputs.iter().zip(&self.tensors).find(|(_, tensor)| tensor.is_none());
        match absent {
            Some((info, _)) => Err(invalid(&info.name, "it is missing")),
            None => Ok(self.tensors.into_iter().flatten().collect()),
        }
    }
}

fn wrong_length(info: &TensorInfo, shape: &Shape, bytes: u64) -> CallError {
    let expected = shape.bytes(info.data_type).unwrap_or_default();
    let data_type = info.data_type;
    invalid(&info.name, format!("its data has {bytes} bytes, shape {shape} of {data_type} takes {expected}"))
}
