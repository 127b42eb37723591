//! A request for inference, from its body: JSON, and behind it the bytes of tensors where the client sends them so.

use std::borrow::Cow;

use bytes::Bytes;
use outrigger_backend::{DataType, MAX_RANK, ModelInfo, Shape};

use super::parameters::{self, CallParameters, TensorParameters};
use crate::call::fit::{invalid, short};
use crate::call::inputs::{Inputs, Place};
use crate::call::{Form, InferCall, Limits, Regions, Wanted, find_output, to_shape, too_many_dimensions};
use crate::error::{CallError, ErrorCode};
use crate::json::data::{self, Scalar};
use crate::json::scan::{Fault, Scanner};

/// The body of a request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// All of it.
    pub body: &'a Bytes,
    /// How much of it is JSON, from the front, as the header `Inference-Header-Content-Length` says; all, if that is not there.
    pub json_length: Option<usize>,
}

impl<'a> Request<'a> {
    /// A body that is JSON alone.
    pub fn json(body: &'a Bytes) -> Self {
        Self { body, json_length: None }
    }

    /// The JSON, and the bytes behind it.
    fn split(&self) -> Result<(&'a str, Bytes), CallError> {
        let length = self.json_length.unwrap_or(self.body.len());
        let Some(json) = self.body.get(..length) else {
            let (header, actual) = (crate::headers::INFERENCE_HEADER_LENGTH, self.body.len());
            let text = format!("the header `{header}` says {length} bytes, the body has {actual}");
            return Err(CallError::new(ErrorCode::BadRequest, text));
        };
        let text = std::str::from_utf8(json).map_err(|error| {
            let text = format!("malformed JSON: the body is not UTF-8: {error}");
            CallError::new(ErrorCode::MalformedJson, text)
        })?;
        Ok((text, self.body.slice(length..)))
    }
}

/// Reads a request to `model`. Bytes behind the JSON are shared, not copied.
///
/// Members and parameters that are not known are checked to be JSON and skipped.
///
/// # Errors
/// [`ErrorCode::MalformedJson`] if the body is no JSON, [`ErrorCode::BadRequest`] if its members are not the
/// protocol's, [`ErrorCode::InvalidTensor`] for what is wrong with a tensor, [`ErrorCode::Overloaded`] if its memory cannot be had.
pub fn parse_infer(
    request: Request<'_>,
    model: &ModelInfo,
    limits: &Limits,
    regions: &dyn Regions,
) -> Result<InferCall, CallError> {
    let (text, binary) = request.split()?;
    let parser = Parser {
        // A depth that a thread's stack surely holds, whatever the configuration says.
        scanner: Scanner::new(text, limits.depth.min(256)),
        model,
        limits,
        regions,
        inputs: Inputs::new(model, limits),
        binary,
    };
    parser.body()
}

struct Parser<'a> {
    scanner: Scanner<'a>,
    model: &'a ModelInfo,
    limits: &'a Limits,
    regions: &'a dyn Regions,
    inputs: Inputs<'a>,
    /// What is left of the bytes behind the JSON.
    binary: Bytes,
}

/// The members of one input, as far as they have come.
#[derive(Default)]
struct Draft<'a> {
    name: Option<Cow<'a, str>>,
    datatype: Option<Cow<'a, str>>,
    shape: Option<Shape>,
    /// Where `data` begins.
    data: Option<usize>,
    /// Whether `data` has been read already.
    done: bool,
    parameters: Option<TensorParameters<'a>>,
}

impl Draft<'_> {
    fn name(&self) -> Result<&str, CallError> {
        let missing = || CallError::new(ErrorCode::BadRequest, "an input has no `name`");
        self.name.as_deref().ok_or_else(missing)
    }
}

impl<'a> Parser<'a> {
    fn body(mut self) -> Result<InferCall, CallError> {
        let (mut id, mut outputs, mut inputs) = (None, None, false);
        let mut parameters: Option<CallParameters> = None;
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
                    self.each_input()?;
                }
                "outputs" => {
                    once(outputs.is_none(), "outputs")?;
                    outputs = Some(self.outputs()?);
                }
                "parameters" => {
                    once(parameters.is_none(), "parameters")?;
                    let read = parameters::of_call(&mut self.scanner);
                    parameters = Some(read.map_err(|fault| self.bad(fault, "`parameters`"))?);
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
        if !self.binary.is_empty() {
            let text = format!("{} bytes behind the JSON are of no input", self.binary.len());
            return Err(CallError::new(ErrorCode::BadRequest, text));
        }
        let CallParameters { urgency, binary_output } = parameters.unwrap_or_default();
        let form = if binary_output { Form::Raw } else { Form::Values };
        let outputs = self.wanted(outputs.unwrap_or_default(), &form);
        Ok(InferCall { id, inputs: self.inputs.complete()?, outputs, urgency })
    }

    /// The outputs that are asked for, each in the form that it is asked for in, or else in this one.
    fn wanted(&self, asked: Vec<(usize, Option<Form>)>, form: &Form) -> Vec<Wanted> {
        if asked.is_empty() {
            return Wanted::all(self.model.outputs.len(), form);
        }
        let wanted =
            |(index, own): (usize, Option<Form>)| Wanted { index, form: own.unwrap_or(form.clone()) };
        asked.into_iter().map(wanted).collect()
    }

    fn id(&mut self) -> Result<String, CallError> {
        let id = self.scanner.string().map_err(|fault| self.bad(fault, "`id`"))?;
        check_id(&id, self.limits)?;
        Ok(id.into_owned())
    }

    fn parameters(&mut self) -> Result<TensorParameters<'a>, CallError> {
        parameters::of_tensor(&mut self.scanner).map_err(|fault| self.bad(fault, "`parameters`"))
    }

    fn skip(&mut self, depth: usize) -> Result<(), CallError> {
        self.scanner.skip_value(depth).map_err(|fault| self.bad(fault, "the body"))
    }

    /// Reads `outputs` and finds them in the model.
    fn outputs(&mut self) -> Result<Vec<(usize, Option<Form>)>, CallError> {
        let mut wanted: Vec<(usize, Option<Form>)> = Vec::new();
        self.scanner.open_array().map_err(|fault| self.bad(fault, "`outputs`"))?;
        while self.scanner.item(wanted.is_empty()).map_err(|fault| self.bad(fault, "`outputs`"))? {
            let (name, parameters) = self.output()?;
            let index = find_output(self.model, &name, wanted.iter().map(|(index, _)| *index))?;
            let form = parameters.unwrap_or_default().form_of(&name)?;
            wanted.push((index, form));
        }
        Ok(wanted)
    }

    fn output(&mut self) -> Result<(Cow<'a, str>, Option<TensorParameters<'a>>), CallError> {
        let (mut name, mut parameters) = (None, None);
        self.scanner.open_object().map_err(|fault| self.bad(fault, "an output"))?;
        let mut first = true;
        while let Some(member) = self.scanner.member(first).map_err(|fault| self.bad(fault, "an output"))? {
            first = false;
            match &*member {
                "name" => {
                    once(name.is_none(), "name")?;
                    name = Some(self.scanner.string().map_err(|fault| self.bad(fault, "`name`"))?);
                }
                "parameters" => {
                    once(parameters.is_none(), "parameters")?;
                    parameters = Some(self.parameters()?);
                }
                _ => self.skip(3)?,
            }
        }
        let missing = || CallError::new(ErrorCode::BadRequest, "an output has no `name`");
        Ok((name.ok_or_else(missing)?, parameters))
    }

    fn each_input(&mut self) -> Result<(), CallError> {
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
                        self.values(&mut draft)?;
                    } else {
                        // The data came before what says how to read it: come back later.
                        self.scanner.skip_data().map_err(|fault| self.bad(fault, "the body"))?;
                    }
                }
                "parameters" => {
                    once(draft.parameters.is_none(), "parameters")?;
                    draft.parameters = Some(self.parameters()?);
                }
                _ => self.skip(3)?,
            }
        }
        self.finish(draft)
    }

    /// Brings an input to its end whose members have all come.
    fn finish(&mut self, mut draft: Draft<'a>) -> Result<(), CallError> {
        let said = draft.parameters.take().unwrap_or_default();
        let slice = said.slice().map_err(|text| invalid(draft.name.as_deref().unwrap_or_default(), text))?;
        if usize::from(draft.data.is_some())
            + usize::from(said.binary_size.is_some())
            + usize::from(slice.is_some())
            > 1
        {
            let text = "it has more than one of `data`, `binary_data_size` and `shared_memory_region`";
            return Err(invalid(draft.name()?, text));
        }
        if draft.done {
            return Ok(());
        }
        if let Some(size) = said.binary_size {
            let place = self.place(&mut draft)?;
            let data = self.take_binary(&place, size)?;
            return self.inputs.put_raw(place, data);
        }
        if let Some(slice) = slice {
            let place = self.place(&mut draft)?;
            self.inputs.check_length(&place, slice.bytes)?;
            let data = self.regions.read(&slice)?.freeze();
            return self.inputs.put_raw(place, data);
        }
        let end = self.scanner.position();
        if let Some(data) = draft.data {
            self.scanner.seek(data);
        }
        self.values(&mut draft)?;
        self.scanner.seek(end);
        Ok(())
    }

    /// The next bytes behind the JSON.
    fn take_binary(&mut self, place: &Place<'_>, size: u64) -> Result<Bytes, CallError> {
        let left = self.binary.len();
        match usize::try_from(size).ok().filter(|size| *size <= left) {
            Some(size) => Ok(self.binary.split_to(size)),
            None => {
                let text =
                    format!("its `binary_data_size` is {size}, and {left} bytes are left behind the JSON");
                Err(invalid(&place.info.name, text))
            }
        }
    }

    fn shape(&mut self) -> Result<Shape, CallError> {
        let max_rank = self.limits.rank.min(MAX_RANK);
        let mut extents = Vec::with_capacity(4);
        self.scanner.open_array().map_err(|fault| self.bad(fault, "`shape`"))?;
        while self.scanner.item(extents.is_empty()).map_err(|fault| self.bad(fault, "`shape`"))? {
            if extents.len() == max_rank {
                return Err(too_many_dimensions(max_rank));
            }
            let extent = self.scanner.number().and_then(|number| number.integer(0, i64::MAX as u64));
            extents.push(extent.map_err(|fault| self.bad(fault, "`shape`"))? as i64);
        }
        to_shape(extents)
    }

    fn place(&self, draft: &mut Draft<'_>) -> Result<Place<'a>, CallError> {
        let shape = draft.shape.take();
        self.inputs.place(draft.name()?, draft.datatype.as_deref(), shape)
    }

    /// Checks an input against model and limits, then reads its `data`, which the scanner stands before.
    fn values(&mut self, draft: &mut Draft<'_>) -> Result<(), CallError> {
        let place = self.place(draft)?;
        let name = &place.info.name;
        if draft.data.is_none() {
            let text = format!("input `{}` has no `data`", short(name));
            return Err(CallError::new(ErrorCode::BadRequest, text));
        }
        let elements = place.shape.elements();
        // Each value takes a character at least, and a comma or bracket after it.
        if elements > self.scanner.remaining() / 2 {
            return Err(self.bad_data(self.scanner.clone().why_short(), name, &place.shape));
        }
        let data = if place.info.data_type == DataType::Bytes {
            self.strings(&place)?
        } else {
            let mut buffer = self.inputs.buffer(&place)?;
            data::fill(
                &mut self.scanner,
                place.info.data_type,
                place.shape.extents(),
                &mut buffer,
                Scalar::Listed,
            )
            .map_err(|fault| self.bad_data(fault, name, &place.shape))?;
            buffer.freeze()
        };
        self.inputs.put(place, data)?;
        draft.done = true;
        Ok(())
    }

    fn strings(&mut self, place: &Place<'_>) -> Result<Bytes, CallError> {
        let (shape, left) = (&place.shape, self.inputs.left());
        let data = data::strings(&mut self.scanner, shape.extents(), shape.elements(), left)
            .map_err(|fault| self.bad_data(fault, &place.info.name, shape))?;
        self.inputs.reserve(place, data.len())?;
        Ok(Bytes::from(data))
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

impl TensorParameters<'_> {
    /// The form in which output `name` is asked for, where the request says one.
    fn form_of(&self, name: &str) -> Result<Option<Form>, CallError> {
        if self.classification > 0 {
            return Err(no_classification(name));
        }
        self.form().map_err(|text| {
            CallError::new(ErrorCode::BadRequest, format!("output `{}` has {text}", short(name)))
        })
    }
}

pub(super) fn no_classification(output: &str) -> CallError {
    let text = format!(
        "output `{}` is asked for with `classification`, which is not offered: ask for the output itself",
        short(output)
    );
    CallError::new(ErrorCode::BadRequest, text)
}

pub(super) fn check_id(id: &str, limits: &Limits) -> Result<(), CallError> {
    if id.len() <= limits.id_bytes {
        return Ok(());
    }
    let text = format!("`id` has {} bytes, the limit is {}", id.len(), limits.id_bytes);
    Err(CallError::new(ErrorCode::BadRequest, text))
}

fn once(first: bool, member: &str) -> Result<(), CallError> {
    if first {
        return Ok(());
    }
    Err(CallError::new(ErrorCode::BadRequest, format!("`{member}` is given twice")))
}
