//! A call of a model and its result, in whichever contract and form it came.

pub(crate) mod fit;
pub(crate) mod inputs;

use outrigger_backend::{Buffer, MAX_RANK, ModelInfo, Shape, Tensor, TensorInfo};

use crate::error::{CallError, ErrorCode};
use crate::urgency::Urgency;

/// What a request may ask of memory and time. All are checked before memory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Elements of one tensor.
    pub elements: usize,
    /// Bytes of all tensors of a call together, as they lie in memory.
    pub tensor_bytes: usize,
    /// Dimensions of one tensor; never more than [`MAX_RANK`].
    pub rank: usize,
    /// Arrays and objects inside each other, in the parts of the body that are not tensor data; never more
    /// than 256.
    pub depth: usize,
    /// Bytes of the call's `id`.
    pub id_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { elements: 64 << 20, tensor_bytes: 256 << 20, rank: MAX_RANK, depth: 32, id_bytes: 256 }
    }
}

/// A call for inference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InferCall {
    /// The client's name for the call; echoed.
    pub id: Option<String>,
    /// One for each of the model's inputs, in their order, with their datatypes and fitting shapes.
    pub inputs: Vec<Tensor>,
    /// What to answer with, in the order asked for; all outputs, if the client named none.
    pub outputs: Vec<Wanted>,
    /// What the parameters `timeout` (microseconds from the arrival) and `priority` say.
    pub urgency: Urgency,
}

impl InferCall {
    /// Which of the model's outputs are asked for, by number.
    pub fn indices(&self) -> Vec<usize> {
        self.outputs.iter().map(|wanted| wanted.index).collect()
    }
}

/// An output that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its number in the model.
    pub index: usize,
    /// In which form.
    pub form: Form,
}

impl Wanted {
    /// All of a model's outputs, in one form.
    pub(crate) fn all(outputs: usize, form: &Form) -> Vec<Self> {
        (0..outputs).map(|index| Self { index, form: form.clone() }).collect()
    }
}

/// In which form an output is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// As values in the JSON.
    Values,
    /// As its bytes, behind everything else.
    Raw,
    /// Into shared memory.
    Shared(Slice),
}

/// A result and what it is the result of.
#[derive(Clone, Copy, Debug)]
pub struct InferReply<'a> {
    /// The model's name.
    pub model_name: &'a str,
    /// The model's version, where it has one.
    pub model_version: Option<&'a str>,
    /// [`InferCall::id`].
    pub id: Option<&'a str>,
    /// The model.
    pub model: &'a ModelInfo,
    /// [`InferCall::outputs`].
    pub outputs: &'a [Wanted],
    /// One tensor for each of `outputs`.
    pub tensors: &'a [Tensor],
}

impl<'a> InferReply<'a> {
    /// Each result with what it is.
    ///
    /// # Errors
    /// [`ErrorCode::Internal`] if tensors and outputs do not match.
    pub(crate) fn results(&self) -> Result<impl Iterator<Item = (&'a TensorInfo, &'a Tensor)>, CallError> {
        let outputs = &self.model.outputs;
        let known = self.outputs.iter().all(|wanted| wanted.index < outputs.len());
        if self.outputs.len() != self.tensors.len() || !known {
            return Err(CallError::new(ErrorCode::Internal, "the model gave other outputs than it has"));
        }
        let infos = self.outputs.iter().filter_map(|wanted| outputs.get(wanted.index));
        Ok(infos.zip(self.tensors))
    }
}

/// Part of a region of shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The name under which the region was registered.
    pub region: String,
    /// Where the part begins, in bytes from the region's front.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Regions of shared memory that calls may refer to.
pub trait Regions {
    /// The bytes of a part of a region, as they are now.
    ///
    /// # Errors
    /// [`ErrorCode::BadRequest`] if there is no such region or it is too short.
    fn read(&self, slice: &Slice) -> Result<Buffer, CallError>;
}

/// No regions at all.
pub struct NoRegions;

impl Regions for NoRegions {
    fn read(&self, slice: &Slice) -> Result<Buffer, CallError> {
        Err(no_region(&slice.region))
    }
}

/// There is no region of that name.
pub fn no_region(name: &str) -> CallError {
    let text = format!("no region of shared memory is registered as `{}`", fit::short(name));
    CallError::new(ErrorCode::BadRequest, text)
}

/// The number of an output of the model that has not been asked for yet.
pub(crate) fn find_output(
    model: &ModelInfo,
    name: &str,
    mut asked: impl Iterator<Item = usize>,
) -> Result<usize, CallError> {
    let index = fit::find(&model.outputs, name, "output")?;
    if asked.any(|asked| asked == index) {
        let text = format!("output `{}` is asked for twice", fit::short(name));
        return Err(CallError::new(ErrorCode::InvalidTensor, text));
    }
    Ok(index)
}

pub(crate) fn too_many_dimensions(limit: usize) -> CallError {
    let text = format!("a shape has more than {limit} dimensions, the limit");
    CallError::new(ErrorCode::InvalidTensor, text)
}

pub(crate) fn to_shape(extents: Vec<i64>) -> Result<Shape, CallError> {
    Shape::new(extents)
        .map_err(|error| CallError::new(ErrorCode::InvalidTensor, format!("a shape cannot be had: {error}")))
}
