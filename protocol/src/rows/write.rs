//! `{"predictions": [...]}`.

use std::io::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use outrigger_backend::{DataType, Tensor, TensorInfo};

use super::B64;
use crate::call::InferReply;
use crate::error::{CallError, ErrorCode};
use crate::headers::write_string;
use crate::json::number;

/// Writes a result row by row.
///
/// # Errors
/// [`ErrorCode::ResultNotFinite`] if a value is NaN or infinite, [`ErrorCode::ModelFailed`] if the outputs have not the same number of rows,
/// [`ErrorCode::Internal`] if tensors and outputs do not match.
pub fn encode_predictions(reply: &InferReply<'_>) -> Result<Bytes, CallError> {
    let mut columns: Vec<Column<'_>> = Vec::with_capacity(reply.tensors.len());
    for (info, tensor) in reply.results()? {
        columns.push(Column::new(info, tensor)?);
    }
    let rows = columns.first().map_or(0, |column| column.rows);
    if columns.iter().any(|column| column.rows != rows) {
        let text =
            "the outputs of the model have not the same number of rows: it cannot be called by instances";
        return Err(CallError::new(ErrorCode::ModelFailed, text));
    }
    let size: usize = reply.tensors.iter().map(|tensor| tensor.data().len()).sum();
    let mut body = Vec::with_capacity(size.saturating_mul(4).saturating_add(64));
    body.extend_from_slice(b"{\"predictions\":[");
    for row in 0..rows {
        if row > 0 {
            body.push(b',');
        }
        match columns.as_mut_slice() {
            [only] => only.write(&mut body)?,
            several => {
                for (index, column) in several.iter_mut().enumerate() {
                    body.push(if index == 0 { b'{' } else { b',' });
                    write_string(&mut body, &column.info.name);
                    body.push(b':');
                    column.write(&mut body)?;
                }
                body.push(b'}');
            }
        }
    }
    body.extend_from_slice(b"]}");
    Ok(Bytes::from(body))
}

/// An output, row by row.
struct Column<'a> {
    info: &'a TensorInfo,
    data_type: DataType,
    rows: usize,
    /// Those of one row.
    extents: &'a [i64],
    /// The bytes of what comes next.
    rest: &'a [u8],
    strings: Box<dyn Iterator<Item = &'a [u8]> + 'a>,
}

impl<'a> Column<'a> {
    fn new(info: &'a TensorInfo, tensor: &'a Tensor) -> Result<Self, CallError> {
        let Some((rows, extents)) = tensor.shape().extents().split_first() else {
            let text =
                format!("output `{}` of the model has no rows: it cannot be called by instances", info.name);
            return Err(CallError::new(ErrorCode::ModelFailed, text));
        };
        Ok(Self {
            info,
            data_type: tensor.data_type(),
            rows: usize::try_from(*rows).unwrap_or(0),
            extents,
            rest: tensor.data(),
            strings: Box::new(tensor.iter_strings()),
        })
    }

    /// Appends the next row.
    fn write(&mut self, body: &mut Vec<u8>) -> Result<(), CallError> {
        self.level(body, self.extents)
    }

    /// It calls itself once for each further extent, and a shape has few.
    fn level(&mut self, body: &mut Vec<u8>, extents: &[i64]) -> Result<(), CallError> {
        let Some((count, inner)) = extents.split_first() else { return self.element(body) };
        body.push(b'[');
        for index in 0..*count {
            if index > 0 {
                body.push(b',');
            }
            self.level(body, inner)?;
        }
        body.push(b']');
        Ok(())
    }

    fn element(&mut self, body: &mut Vec<u8>) -> Result<(), CallError> {
        if self.data_type == DataType::Bytes {
            write_bytes(body, self.strings.next().unwrap_or_default());
            return Ok(());
        }
        let size = self.data_type.size().unwrap_or(1);
        let Some((element, rest)) = self.rest.split_at_checked(size) else {
            return Err(CallError::new(ErrorCode::Internal, "an output has fewer elements than its shape"));
        };
        self.rest = rest;
        number::write(body, self.data_type, element).map_err(|_| {
            let text = format!("output `{}` holds NaN or an infinity, which JSON cannot say", self.info.name);
            CallError::new(ErrorCode::ResultNotFinite, text)
        })
    }
}

fn write_bytes(body: &mut Vec<u8>, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => write_string(body, text),
        Err(_) => {
            // Memory takes any write: this does not fail.
            let _ = write!(body, "{{\"{B64}\":\"{}\"}}", BASE64_STANDARD.encode(bytes));
        }
    }
}
