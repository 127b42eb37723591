//! Whether what a request says of a tensor fits the model.

use outrigger_backend::{ModelInfo, Shape, Tensor, TensorInfo};

use crate::error::{CallError, ErrorCode};

/// Holds a datatype against the model's.
pub(crate) fn check_datatype(name: &str, datatype: Option<&str>, info: &TensorInfo) -> Result<(), CallError> {
    let Some(datatype) = datatype else {
        let text = format!("input `{}` has no `datatype`", short(name));
        return Err(CallError::new(ErrorCode::BadRequest, text));
    };
    if datatype != info.data_type.name() {
        let text = format!("it has datatype `{}`, the model takes {}", short(datatype), info.data_type);
        return Err(invalid(name, text));
    }
    Ok(())
}

/// Holds a shape against the model's: the same rank, fixed extents equal, free ones of one name equal in one
/// call. `tensors` are the inputs that have come already.
pub(crate) fn check_shape(
    name: &str,
    shape: &Shape,
    info: &TensorInfo,
    model: &ModelInfo,
    tensors: &[Option<Tensor>],
) -> Result<(), CallError> {
    let extents = shape.extents();
    let fits = extents.len() == info.shape.len()
        && extents.iter().zip(&info.shape).all(|(extent, wanted)| *wanted < 0 || extent == wanted);
    if !fits {
        return Err(invalid(name, format!("it has shape {shape}, the model takes {:?}", info.shape)));
    }
    for (dimension, (&extent, symbol)) in extents.iter().zip(&info.symbols).enumerate() {
        if symbol.is_empty() {
            continue;
        }
        let within = extents.iter().zip(&info.symbols).take(dimension);
        let others = tensors.iter().zip(&model.inputs).flat_map(|(tensor, other)| {
            tensor.iter().flat_map(|tensor| tensor.shape().extents().iter().zip(&other.symbols))
        });
        if let Some((other, _)) = others.chain(within).find(|(other, s)| *s == symbol && **other != extent) {
            let text = format!("its `{}` is {extent}, and {other} elsewhere in the call", short(symbol));
            return Err(invalid(name, text));
        }
    }
    Ok(())
}

/// The place of `name` in the model.
pub(crate) fn find(infos: &[TensorInfo], name: &str, what: &str) -> Result<usize, CallError> {
    infos.iter().position(|info| info.name == name).ok_or_else(|| {
        let known: Vec<_> = infos.iter().take(16).map(|info| format!("`{}`", short(&info.name))).collect();
        let text = format!("the model has no {what} `{}`; it has {}", short(name), known.join(", "));
        CallError::new(ErrorCode::InvalidTensor, text)
    })
}

#[cold]
pub(crate) fn invalid(input: &str, what: impl std::fmt::Display) -> CallError {
    CallError::new(ErrorCode::InvalidTensor, format!("input `{}`: {what}", short(input)))
}

/// The first characters of a text that came from outside.
pub(crate) fn short(text: &str) -> &str {
    text.char_indices().nth(64).map_or(text, |(end, _)| text.get(..end).unwrap_or_default())
}
