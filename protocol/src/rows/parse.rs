//! `{"instances": [...]}`, straight into the memory that a model reads.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use outrigger_backend::{Buffer, DataType, MAX_RANK, ModelInfo, STRING_PREFIX, TensorInfo};

use super::B64;
use crate::call::fit::{find, invalid, short};
use crate::call::inputs::{Inputs, Place};
use crate::call::{Form, InferCall, Limits, Wanted, to_shape};
use crate::error::{CallError, ErrorCode};
use crate::json::data::{self, Scalar};
use crate::json::scan::{Fault, Scanner};
use crate::urgency::Urgency;

/// Reads the body of a request to `model`. Other members than `instances` are checked to be JSON and skipped.
///
/// # Errors
/// [`ErrorCode::MalformedJson`] if the body is no JSON, [`ErrorCode::BadRequest`] if it has no `instances`, or the model's inputs have no
/// rows, [`ErrorCode::InvalidTensor`] for what is wrong with an instance, [`ErrorCode::Overloaded`] if no memory can be had.
pub fn parse_instances(body: &[u8], model: &ModelInfo, limits: &Limits) -> Result<InferCall, CallError> {
    let text = std::str::from_utf8(body).map_err(|error| {
        let text = format!("malformed JSON: the body is not UTF-8: {error}");
        CallError::new(ErrorCode::MalformedJson, text)
    })?;
    if let Some(info) = model.inputs.iter().find(|info| info.shape.is_empty()) {
        let text = format!(
            "input `{}` of the model has no rows: it cannot be called by instances",
            short(&info.name)
        );
        return Err(CallError::new(ErrorCode::BadRequest, text));
    }
    let mut parser = Parser { scanner: Scanner::new(text, limits.depth.min(256)), model, limits };
    let (start, count) = parser.find_instances()?;
    parser.scanner.seek(start);
    let inputs = parser.inputs(count)?;
    let outputs = Wanted::all(model.outputs.len(), &Form::Values);
    Ok(InferCall { id: None, inputs, outputs, urgency: Urgency::default() })
}

struct Parser<'a> {
    scanner: Scanner<'a>,
    model: &'a ModelInfo,
    limits: &'a Limits,
}

/// The rows of an input.
enum Rows {
    Fixed { buffer: Buffer, row: usize },
    Strings(Vec<u8>),
}

/// An input while its rows come.
struct Column<'a> {
    place: Place<'a>,
    /// Those of one row.
    extents: Vec<i64>,
    rows: Rows,
    /// The number of the instance that it has been given in last.
    seen: Option<usize>,
}

impl<'a> Parser<'a> {
    /// Goes through the whole body: where the instances begin, and how many there are.
    fn find_instances(&mut self) -> Result<(usize, usize), CallError> {
        let mut found = None;
        self.scanner.open_object().map_err(|fault| self.bad(fault))?;
        let mut first = true;
        while let Some(member) = self.scanner.member(first).map_err(|fault| self.bad(fault))? {
            first = false;
            if member != "instances" {
                self.scanner.skip_value(1).map_err(|fault| self.bad(fault))?;
                continue;
            }
            if found.is_some() {
                return Err(CallError::new(ErrorCode::BadRequest, "`instances` is given twice"));
            }
            self.scanner.open_array().map_err(|fault| self.bad(fault))?;
            let start = self.scanner.position();
            found = Some((start, self.count().map_err(|fault| self.bad(fault))?));
        }
        if self.scanner.peek().is_some() {
            return Err(self.bad(Fault::Trailing));
        }
        found.ok_or_else(|| CallError::new(ErrorCode::BadRequest, "the body has no `instances`"))
    }

    /// Items of an array whose opening bracket is taken; its end is taken, too.
    fn count(&mut self) -> Result<usize, Fault> {
        let mut count = 0;
        while self.scanner.item(count == 0)? {
            // Data is as deep as the model's rank says, at most.
            self.scanner.skip_data()?;
            count += 1;
        }
        Ok(count)
    }

    /// Reads so many instances, whose array's opening bracket is taken.
    fn inputs(&mut self, count: usize) -> Result<Vec<outrigger_backend::Tensor>, CallError> {
        let mut inputs = Inputs::new(self.model, self.limits);
        let mut columns: Vec<Option<Column<'a>>> = Vec::new();
        columns.resize_with(self.model.inputs.len(), || None);
        if count == 0 {
            for (info, column) in self.model.inputs.iter().zip(&mut columns) {
                let extents = info.shape.iter().skip(1).map(|extent| (*extent).max(0)).collect();
                *column = Some(self.column(info, extents, 0, &mut inputs)?);
            }
        }
        for index in 0..count {
            self.scanner.item(index == 0).map_err(|fault| self.bad(fault))?;
            if self.is_named()? {
                self.named(index, count, &mut columns, &mut inputs)?;
            } else if let [info] = self.model.inputs.as_slice() {
                self.value(info, 0, index, count, &mut columns, &mut inputs)?;
            } else {
                let fault = self.scanner.wrong_kind("an object with the model's inputs by name");
                return Err(self.bad(fault));
            }
            let missing = self.model.inputs.iter().zip(&columns).find(|(_, column)| {
                column.as_ref().is_none_or(|column| column.seen != Some(index) && count > 0)
            });
            if let Some((info, _)) = missing {
                return Err(invalid(&info.name, format!("instance {index} does not have it")));
            }
        }
        for column in columns.into_iter().flatten() {
            match column.rows {
                Rows::Fixed { buffer, .. } => inputs.put(column.place, buffer.freeze())?,
                Rows::Strings(strings) => inputs.put_raw(column.place, Bytes::from(strings))?,
            }
        }
        inputs.complete()
    }

    /// Whether the instance here is an object of inputs by name.
    fn is_named(&mut self) -> Result<bool, CallError> {
        if self.scanner.peek() != Some(b'{') {
            return Ok(false);
        }
        let [TensorInfo { data_type: DataType::Bytes, name, .. }] = self.model.inputs.as_slice() else {
            return Ok(true);
        };
        // It may also be the bytes of the one input.
        let mut ahead = self.scanner.clone();
        ahead.open_object().map_err(|fault| self.bad(fault))?;
        let first = ahead.member(true).map_err(|fault| self.bad(fault))?;
        Ok(first.is_none_or(|member| member != B64 || name == B64))
    }

    fn named(
        &mut self,
        index: usize,
        count: usize,
        columns: &mut [Option<Column<'a>>],
        inputs: &mut Inputs<'a>,
    ) -> Result<(), CallError> {
        self.scanner.open_object().map_err(|fault| self.bad(fault))?;
        let mut first = true;
        while let Some(member) = self.scanner.member(first).map_err(|fault| self.bad(fault))? {
            first = false;
            let at = find(&self.model.inputs, &member, "input")?;
            if let Some(info) = self.model.inputs.get(at) {
                self.value(info, at, index, count, columns, inputs)?;
            }
        }
        Ok(())
    }

    /// Reads the row of an input that comes here.
    fn value(
        &mut self,
        info: &'a TensorInfo,
        at: usize,
        index: usize,
        count: usize,
        columns: &mut [Option<Column<'a>>],
        inputs: &mut Inputs<'a>,
    ) -> Result<(), CallError> {
        let Some(place) = columns.get_mut(at) else {
            return Err(CallError::new(ErrorCode::Internal, "an input of the model is missing"));
        };
        if place.is_none() {
            let extents = self.extents(info)?;
            *place = Some(self.column(info, extents, count, inputs)?);
        }
        let Some(column) = place else { return Ok(()) };
        if column.seen == Some(index) {
            return Err(invalid(&info.name, format!("instance {index} has it twice")));
        }
        column.seen = Some(index);
        let read = match &mut column.rows {
            Rows::Fixed { buffer, row } => {
                let from = index.saturating_mul(*row);
                let cells = buffer.get_mut(from..from.saturating_add(*row)).unwrap_or_default();
                data::fill(&mut self.scanner, info.data_type, &column.extents, cells, Scalar::Bare)
            }
            Rows::Strings(strings) => {
                let left = inputs.left();
                data::each(&mut self.scanner, &column.extents, Scalar::Bare, &mut |scanner| {
                    take_string(scanner, strings, left)
                })
            }
        };
        read.map_err(|fault| self.bad_row(fault, info, index, &column.extents))
    }

    /// An input whose rows are to come, held against model and limits.
    fn column(
        &self,
        info: &'a TensorInfo,
        extents: Vec<i64>,
        count: usize,
        inputs: &mut Inputs<'a>,
    ) -> Result<Column<'a>, CallError> {
        let mut shape = Vec::with_capacity(extents.len() + 1);
        shape.push(i64::try_from(count).unwrap_or(i64::MAX));
        shape.extend_from_slice(&extents);
        let place = inputs.place(&info.name, Some(info.data_type.name()), Some(to_shape(shape)?))?;
        let rows = match info.data_type.size() {
            None => Rows::Strings(Vec::new()),
            Some(size) => {
                let elements = to_shape(extents.clone())?.elements();
                // Each value takes a character at least, and one beside it.
                if place.shape.elements() > self.scanner.length() / 2 {
                    return Err(invalid(&info.name, "fewer values than its rows ask for"));
                }
                Rows::Fixed { buffer: inputs.buffer(&place)?, row: elements.saturating_mul(size) }
            }
        };
        Ok(Column { place, extents, rows, seen: None })
    }

    /// The extents of the row that comes here: the model's, and as long as it is where these are free.
    fn extents(&mut self, info: &TensorInfo) -> Result<Vec<i64>, CallError> {
        let known: Vec<i64> = info.shape.iter().skip(1).copied().take(MAX_RANK).collect();
        if known.iter().all(|extent| *extent >= 0) {
            return Ok(known);
        }
        let mut ahead = self.scanner.clone();
        let mut extents = Vec::with_capacity(known.len());
        for _ in 0..known.len() {
            if ahead.peek() != Some(b'[') {
                break;
            }
            ahead.advance();
            let inner = ahead.clone();
            let mut level = Self { scanner: ahead, model: self.model, limits: self.limits };
            let count = level.count().map_err(|fault| self.bad(fault))?;
            extents.push(i64::try_from(count).unwrap_or(i64::MAX));
            ahead = inner;
        }
        if extents.len() == known.len() {
            return Ok(extents);
        }
        let text = format!("its rows have {} dimensions, the model's have {}", extents.len(), known.len());
        Err(invalid(&info.name, text))
    }

    #[cold]
    fn bad(&self, fault: Fault) -> CallError {
        let at = self.scanner.position();
        if fault.is_syntax() {
            return CallError::new(ErrorCode::MalformedJson, format!("malformed JSON at byte {at}: {fault}"));
        }
        CallError::new(ErrorCode::BadRequest, format!("`instances` is wrong at byte {at}: {fault}"))
    }

    #[cold]
    fn bad_row(&self, fault: Fault, info: &TensorInfo, index: usize, extents: &[i64]) -> CallError {
        if fault.is_syntax() {
            return self.bad(fault);
        }
        let at = self.scanner.position();
        invalid(
            &info.name,
            format!("{fault}, in instance {index}, at byte {at} (a row has shape {extents:?})"),
        )
    }
}

/// Takes a string, or an object that stands for bytes, and puts it behind its length.
fn take_string(scanner: &mut Scanner<'_>, strings: &mut Vec<u8>, limit: usize) -> Result<(), Fault> {
    if scanner.peek() != Some(b'{') {
        let string = scanner.string()?;
        return put(strings, string.as_bytes(), limit);
    }
    scanner.open_object()?;
    let Some(member) = scanner.member(true)? else { return Err(Fault::Kind(EXPECTED)) };
    if member != B64 {
        return Err(Fault::Kind(EXPECTED));
    }
    let string = scanner.string()?;
    // What it becomes is shorter.
    let decoded = BASE64_STANDARD.decode(&*string).map_err(|_| Fault::Kind("base64"))?;
    if scanner.member(false)?.is_some() {
        return Err(Fault::Kind(EXPECTED));
    }
    put(strings, &decoded, limit)
}

const EXPECTED: &str = "a string, or an object with `b64` alone";

fn put(strings: &mut Vec<u8>, string: &[u8], limit: usize) -> Result<(), Fault> {
    let length = u32::try_from(string.len()).map_err(|_| Fault::Memory)?;
    let more = STRING_PREFIX + string.len();
    if more > limit.saturating_sub(strings.len()) || strings.try_reserve(more).is_err() {
        return Err(Fault::Memory);
    }
    strings.extend_from_slice(&length.to_le_bytes());
    strings.extend_from_slice(string);
    Ok(())
}
