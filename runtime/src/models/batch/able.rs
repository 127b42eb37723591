//! Whether a model can run several calls at once, as far as its inputs and outputs tell.

use outrigger_backend::{ModelInfo, TensorInfo};

/// Why a model cannot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotBatchable {
    /// Nothing tells the number of rows.
    #[error("it has no input")]
    NoInput,
    /// The first dimension cannot grow.
    #[error("the first dimension of {kind} `{name}`, whose shape is {shape:?}, is not free")]
    Fixed {
        /// `input` or `output`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Its shape, −1 where free.
        shape: Vec<i64>,
    },
    /// Two tensors may have different numbers of rows: then nobody knows whose a row is.
    #[error("the first dimension is `{one}` in input `{first}` and `{other}` in {kind} `{second}`")]
    Symbols {
        /// An input.
        first: String,
        /// What its first dimension is called.
        one: String,
        /// `input` or `output`.
        kind: &'static str,
        /// Another tensor.
        second: String,
        /// What its first dimension is called.
        other: String,
    },
    /// A step mixes rows.
    #[error(
        "step {number} of `[[{side}]]` (`{step}`) does not take each row, which the first dimension counts, for itself"
    )]
    Step {
        /// `before` or `after`.
        side: &'static str,
        /// Counted from 1.
        number: usize,
        /// Its name.
        step: &'static str,
    },
    /// The number of rows changes the shape of a row.
    #[error("{kind} `{name}` has `{symbol}`, the number of rows, as a further dimension")]
    Mixed {
        /// `input` or `output`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The dimension.
        symbol: String,
    },
}

/// Checks that every first dimension is free and nothing else depends on it.
pub(super) fn check(info: &ModelInfo) -> Result<(), NotBatchable> {
    let Some(first) = info.inputs.first() else { return Err(NotBatchable::NoInput) };
    let all = info
        .inputs
        .iter()
        .map(|info| ("input", info))
        .chain(info.outputs.iter().map(|info| ("output", info)));
    let symbol = |info: &TensorInfo| info.symbols.first().cloned().unwrap_or_default();
    let rows = symbol(first);
    for (kind, info) in all {
        let name = || info.name.clone();
        if info.shape.first().is_none_or(|extent| *extent >= 0) {
            return Err(NotBatchable::Fixed { kind, name: name(), shape: info.shape.clone() });
        }
        let own = symbol(info);
        if own != rows && !own.is_empty() && !rows.is_empty() && shared(&own, &rows) {
            let (first, second) = (first.name.clone(), name());
            return Err(NotBatchable::Symbols { first, one: rows, kind, second, other: own });
        }
        let mixed = |further: &String| !further.is_empty() && (*further == rows || *further == own);
        if let Some(symbol) = info.symbols.iter().skip(1).find(|further| mixed(further)) {
            return Err(NotBatchable::Mixed { kind, name: name(), symbol: symbol.clone() });
        }
    }
    Ok(())
}

/// Whether two names were given by people: some exporters give every free dimension a name of its own (`unk__7`).
fn shared(one: &str, other: &str) -> bool {
    let made_up = |name: &str| name.starts_with("unk__") || name.contains("_dim_");
    !made_up(one) && !made_up(other)
}

/// The free extents of a call's inputs behind the first ones.
pub(super) fn extents(info: &ModelInfo, inputs: &[outrigger_backend::Tensor]) -> Vec<i64> {
    let mut extents = Vec::new();
    for (info, input) in info.inputs.iter().zip(inputs) {
        let both = info.shape.iter().zip(input.shape().extents()).skip(1);
        extents.extend(both.filter(|(declared, _)| **declared < 0).map(|(_, extent)| *extent));
    }
    extents
}

#[cfg(test)]
mod tests {
    use outrigger_backend::DataType;

    use super::*;

    #[test]
    fn models_that_cannot_batch_say_why() {
        let check = |inputs: &[&[(i64, &str)]], outputs: &[&[(i64, &str)]], expected: Option<&str>| {
            let named = |prefix: &str, all: &[&[(i64, &str)]]| {
                all.iter()
                    .enumerate()
                    .map(|(at, one)| TensorInfo::new(format!("{prefix}{at}"), DataType::Fp32, one))
                    .collect()
            };
            let info = ModelInfo { inputs: named("x", inputs), outputs: named("y", outputs) };
            let said = super::check(&info).err().map(|error| error.to_string());
            assert_eq!(said.as_deref(), expected);
        };
        let rows = &[(-1, "batch"), (64, "")][..];
        check(&[rows], &[rows], None);
        check(&[rows, &[(-1, "batch"), (-1, "length")]], &[&[(-1, "batch")], &[(-1, ""), (3, "")]], None);
        check(&[&[(-1, "unk__1")], &[(-1, "unk__2")]], &[&[(-1, "unk__3")]], None);
        check(&[], &[rows], Some("it has no input"));
        let fixed = "the first dimension of input `x0`, whose shape is [64], is not free";
        check(&[&[(64, "")]], &[rows], Some(fixed));
        check(&[rows], &[&[]], Some("the first dimension of output `y0`, whose shape is [], is not free"));
        let other = "the first dimension is `batch` in input `x0` and `n` in input `x1`";
        check(&[rows, &[(-1, "n")]], &[rows], Some(other));
        let counted = "the first dimension is `batch` in input `x0` and `num_dets` in output `y0`";
        check(&[rows], &[&[(-1, "num_dets"), (7, "")]], Some(counted));
        let square = "output `y0` has `batch`, the number of rows, as a further dimension";
        check(&[rows], &[&[(-1, "batch"), (-1, "batch")]], Some(square));
        let square = "input `x0` has `n`, the number of rows, as a further dimension";
        check(&[&[(-1, "n"), (-1, "n")]], &[rows], Some(square));
    }
}
