//! A call for inference, in whichever of the protocol's forms it came.

use outrigger_backend::{Buffer, MAX_RANK, Tensor};

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
    pub(super) fn all(outputs: usize, form: &Form) -> Vec<Self> {
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
    let text = format!("no region of shared memory is registered as `{}`", super::fit::short(name));
    CallError::new(ErrorCode::BadRequest, text)
}
