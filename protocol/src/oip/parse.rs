//! A request for inference, from its body.

use std::borrow::Cow;

use outrigger_backend::{Buffer, MAX_RANK, ModelInfo, Shape, Tensor, TensorInfo};

use super::data;
use super::fit::{self, find, invalid, short};
use super::scan::{Fault, Scanner};
use crate::error::{CallError, ErrorCode};

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
    /// Whether FP16 and BF16 may come as numbers, which they may not in the protocol; each becomes the nearest that there is.
    pub halves: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            elements: 64 << 20,
            tensor_bytes: 256 << 20,
            rank: MAX_RANK,
            depth: 32,
            id_bytes: 256,
            halves: false,
        }
    }
}

/// A call for inference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InferCall {
    /// The client's name for the call; echoed.
    pub id: Option<String>,
    /// One for each of [`ModelInfo::inputs`], in their order, with their datatypes and fitting shapes.
    pub inputs: Vec<Tensor>,
    /// Which of [`ModelInfo::outputs`] to answer with, in the order asked for; all, if the client named none.
    pub outputs: Vec<usize>,
}

/// Reads the body of a request to `model`.
///
/// Members that the protocol does not have, and `parameters`, are checked to be JSON and skipped.
///
/// # Errors
/// [`ErrorCode::MalformedJson`] if the body is no JSON, [`ErrorCode::BadRequest`] if its members are not the
/// protocol's, [`ErrorCode::UnsupportedDatatype`] and [`ErrorCode::InvalidTensor`] for what is wrong with a
/// tensor, [`ErrorCode::Overloaded`] if its memory cannot be had.
pub fn parse_infer(body: &[u8], model: &ModelInfo, limits: &Limits) -> Result<InferCall, CallError> {
    let text = std::str::from_utf8(body).map_err(|error| {
        CallError::new(ErrorCode::MalformedJson, format!("malformed JSON: the body is not UTF-8: {error}"))
    })?;
    let parser = Parser {
        // A depth that a thread's stack surely holds, whatever the configuration says.
        scanner: Scanner::new(text, limits.depth.min(256)),
        model,
        limits,
        tensors: vec![None; model.inputs.len()],
        bytes_left: limits.tensor_bytes,
    };
    parser.body()
}

struct Parser<'a> {
    scanner: Scanner<'a>,
    model: &'a ModelInfo,
    limits: &'a Limits,
    /// The inputs that have come, in the model's order.
    tensors: Vec<Option<Tensor>>,
    /// What is left of [`Limits::tensor_bytes`].
    bytes_left: usize,
}

/// The members of one input, as far as they have come.
#[derive(Default)]
struct Draft<'a> {
    name: Option<Cow<'a, str>>,
    datatype: Option<Cow<'a, str>>,
    shape: Option<Shape>,
    /// Where `data` begins.
    data: Option<usize>,
    /// Whether `data` has been read already, into the parser's `tensors`.
    done: bool,
}

impl<'a> Parser<'a> {
    fn body(mut self) -> Result<InferCall, CallError> {
        let (mut id, mut outputs, mut inputs) = (None, None, false);
        let mut parameters = false;
        self.scanner.open_object().map_err(|fault| self.bad(fault, "the body"))?;
        let mut first = true;
        while let Some(member) = self.scanner.member(first).map_err(|fault| self.bad(fault, "the body"))? {
            first = false;
            match &*member {
                "id" => {
                    once(id.is_none(), "id")?;
                    id = Some(self.id()?);
                }
                "inputs" => {
                    once(!inputs, "inputs")?;
                    inputs = true;
                    self.inputs()?;
                }
                "outputs" => {
                    once(outputs.is_none(), "outputs")?;
                    outputs = Some(self.outputs()?);
                }
                "parameters" => {
                    once(!parameters, "parameters")?;
                    parameters = true;
                    self.parameters()?;
                }
                _ => self.skip(1)?,
            }
        }
        if self.scanner.peek().is_some() {
            return Err(self.bad(Fault::Trailing, "the body"));
        }
        if !inputs {
            return Err(CallError::new(ErrorCode::BadRequest, "the body has no `inputs`"));
        }
        let outputs = match outputs {
            Some(outputs) if !outputs.is_empty() => outputs,
            _ => (0..self.model.outputs.len()).collect(),
        };
        Ok(InferCall { id, inputs: self.complete()?, outputs })
    }

    fn id(&mut self) -> Result<String, CallError> {
        let id = self.scanner.string().map_err(|fault| self.bad(fault, "`id`"))?;
        if id.len() > self.limits.id_bytes {
            let text = format!("`id` has {} bytes, the limit is {}", id.len(), self.limits.id_bytes);
            return Err(CallError::new(ErrorCode::BadRequest, text));
        }
        Ok(id.into_owned())
    }

    fn parameters(&mut self) -> Result<(), CallError> {
        if self.scanner.peek() != Some(b'{') {
            let fault = self.scanner.wrong_kind("an object");
            return Err(self.bad(fault, "`parameters`"));
        }
        self.skip(1)
    }

    fn skip(&mut self, depth: usize) -> Result<(), CallError> {
        self.scanner.skip_value(depth).map_err(|fault| self.bad(fault, "the body"))
    }

    /// Reads the names of `outputs` and finds them in the model.
    fn outputs(&mut self) -> Result<Vec<usize>, CallError> {
        let mut wanted = Vec::new();
        self.scanner.open_array().map_err(|fault| self.bad(fault, "`outputs`"))?;
        while self.scanner.item(wanted.is_empty()).map_err(|fault| self.bad(fault, "`outputs`"))? {
            let mut name = None;
            self.scanner.open_object().map_err(|fault| self.bad(fault, "an output"))?;
            let mut first = true;
            while let Some(member) =
                self.scanner.member(first).map_err(|fault| self.bad(fault, "an output"))?
            {
                first = false;
                match &*member {
                    "name" => {
                        once(name.is_none(), "name")?;
                        name = Some(self.scanner.string().map_err(|fault| self.bad(fault, "`name`"))?);
                    }
                    "parameters" => self.parameters()?,
                    _ => self.skip(3)?,
                }
            }
            let Some(name) = name else {
                return Err(CallError::new(ErrorCode::BadRequest, "an output has no `name`"));
            };
            let index = find(&self.model.outputs, &name, "output")?;
            if wanted.contains(&index) {
                let text = format!("output `{}` is asked for twice", short(&name));
                return Err(CallError::new(ErrorCode::InvalidTensor, text));
            }
            wanted.push(index);
        }
        Ok(wanted)
    }

    fn inputs(&mut self) -> Result<(), CallError> {
        self.scanner.open_array().map_err(|fault| self.bad(fault, "`inputs`"))?;
        let mut first = true;
        while self.scanner.item(first).map_err(|fault| self.bad(fault, "`inputs`"))? {
            first = false;
            self.input()?;
        }
        Ok(())
    }

    fn input(&mut self) -> Result<(), CallError> {
        let mut draft = Draft::default();
        self.scanner.open_object().map_err(|fault| self.bad(fault, "an input"))?;
        let mut first = true;
        while let Some(member) = self.scanner.member(first).map_err(|fault| self.bad(fault, "an input"))? {
            first = false;
            match &*member {
                "name" => {
                    once(draft.name.is_none(), "name")?;
                    draft.name = Some(self.scanner.string().map_err(|fault| self.bad(fault, "`name`"))?);
                }
                "datatype" => {
                    once(draft.datatype.is_none(), "datatype")?;
                    let datatype = self.scanner.string().map_err(|fault| self.bad(fault, "`datatype`"))?;
                    draft.datatype = Some(datatype);
                }
                "shape" => {
                    once(draft.shape.is_none(), "shape")?;
                    draft.shape = Some(self.shape()?);
                }
                "data" => {
                    once(draft.data.is_none(), "data")?;
                    draft.data = Some(self.scanner.position());
                    if draft.name.is_some() && draft.datatype.is_some() && draft.shape.is_some() {
                        self.tensor(&mut draft)?;
                    } else {
                        // The data came before what says how to read it: come back later.
                        self.skip(0)?;
                    }
                }
                "parameters" => self.parameters()?,
                _ => self.skip(3)?,
            }
        }
        if draft.done {
            return Ok(());
        }
        let end = self.scanner.position();
        if let Some(data) = draft.data {
            self.scanner.seek(data);
        }
        self.tensor(&mut draft)?;
        self.scanner.seek(end);
        Ok(())
    }

    fn shape(&mut self) -> Result<Shape, CallError> {
        let max_rank = self.limits.rank.min(MAX_RANK);
        let mut extents = Vec::with_capacity(4);
        self.scanner.open_array().map_err(|fault| self.bad(fault, "`shape`"))?;
        while self.scanner.item(extents.is_empty()).map_err(|fault| self.bad(fault, "`shape`"))? {
            if extents.len() == max_rank {
                let text = format!("a shape has more than {max_rank} dimensions, the limit");
                return Err(CallError::new(ErrorCode::InvalidTensor, text));
            }
            let extent = self.scanner.number().and_then(|number| number.integer(0, i64::MAX as u64));
            extents.push(extent.map_err(|fault| self.bad(fault, "`shape`"))? as i64);
        }
        Shape::new(extents).map_err(|error| {
            CallError::new(ErrorCode::InvalidTensor, format!("a shape cannot be had: {error}"))
        })
    }

    /// Checks an input against model and limits, then reads its data, which the scanner stands before.
    fn tensor(&mut self, draft: &mut Draft<'_>) -> Result<(), CallError> {
        let Some(name) = draft.name.as_deref() else {
            return Err(CallError::new(ErrorCode::BadRequest, "an input has no `name`"));
        };
        let index = find(&self.model.inputs, name, "input")?;
        let (Some(info), Some(place)) = (self.model.inputs.get(index), self.tensors.get(index)) else {
            return Err(CallError::new(ErrorCode::Internal, "an input of the model is missing"));
        };
        if place.is_some() {
            return Err(invalid(name, "it is given twice"));
        }
        fit::check_datatype(name, draft.datatype.as_deref(), info, self.limits.halves)?;
        let Some(shape) = draft.shape.take() else {
            return Err(CallError::new(
                ErrorCode::BadRequest,
                format!("input `{}` has no `shape`", short(name)),
            ));
        };
        fit::check_shape(name, &shape, info, self.model, &self.tensors)?;
        if draft.data.is_none() {
            let text = format!("input `{}` has no `data`; binary tensors are not carried", short(name));
            return Err(CallError::new(ErrorCode::BadRequest, text));
        }
        let bytes = self.reserve(name, &shape, info)?;
        let mut buffer = Buffer::zeroed(bytes).map_err(|_| {
            CallError::new(ErrorCode::Overloaded, format!("no memory is free for input `{}`", short(name)))
        })?;
        data::fill(&mut self.scanner, info.data_type, shape.extents(), &mut buffer)
            .map_err(|fault| self.bad_data(fault, name, &shape))?;
        let tensor = Tensor::new(info.data_type, shape, buffer.freeze())
            .map_err(|error| CallError::new(ErrorCode::Internal, error.to_string()))?;
        if let Some(place) = self.tensors.get_mut(index) {
            *place = Some(tensor);
        }
        draft.done = true;
        Ok(())
    }

    /// Holds the size of a tensor against the limits and against what is left of the body; returns its bytes.
    fn reserve(&mut self, name: &str, shape: &Shape, info: &TensorInfo) -> Result<usize, CallError> {
        let elements = shape.elements();
        if elements > self.limits.elements {
            let limit = self.limits.elements;
            return Err(invalid(name, format!("it has {elements} elements, the limit is {limit}")));
        }
        // Each value takes a character at least, and a comma or bracket after it.
        if elements > self.scanner.remaining() / 2 {
            return Err(self.bad_data(self.scanner.clone().why_short(), name, shape));
        }
        let bytes = shape.bytes(info.data_type).map_err(|error| invalid(name, error.to_string()))?;
        match self.bytes_left.checked_sub(bytes) {
            Some(left) => {
                self.bytes_left = left;
                Ok(bytes)
            }
            None => {
                let limit = self.limits.tensor_bytes;
                Err(invalid(
                    name,
                    format!("with it the call has more than {limit} bytes of tensors, the limit"),
                ))
            }
        }
    }

    /// All inputs, or which of them is missing.
    fn complete(self) -> Result<Vec<Tensor>, CallError> {
        let missing = || {
            let absent = self.model.inputs.iter().zip(&self.tensors).find(|(_, tensor)| tensor.is_none());
            invalid(absent.map_or("", |(info, _)| &info.name), "it is missing")
        };
        if self.tensors.iter().any(Option::is_none) {
            return Err(missing());
        }
        Ok(self.tensors.into_iter().flatten().collect())
    }

    /// A fault outside tensor data.
    #[cold]
    fn bad(&self, fault: Fault, place: &str) -> CallError {
        let at = self.scanner.position();
        if fault.is_syntax() {
            return CallError::new(ErrorCode::MalformedJson, format!("malformed JSON at byte {at}: {fault}"));
        }
        CallError::new(ErrorCode::BadRequest, format!("{place} is wrong at byte {at}: {fault}"))
    }

    /// A fault in the data of input `name`.
    #[cold]
    fn bad_data(&self, fault: Fault, name: &str, shape: &Shape) -> CallError {
        if fault.is_syntax() {
            return self.bad(fault, "`data`");
        }
        let (at, elements) = (self.scanner.position(), shape.elements());
        invalid(name, format!("{fault}, at byte {at} (shape {shape} has {elements} elements)"))
    }
}

fn once(first: bool, member: &str) -> Result<(), CallError> {
    if first {
        return Ok(());
    }
    Err(CallError::new(ErrorCode::BadRequest, format!("`{member}` is given twice")))
}
