//! A model's inputs and outputs: the names of inputs are in the file, their types and shapes are said beside it, and outputs are said
//! there too or found out by running the model.

use std::collections::BTreeMap;

use outrigger_backend::{DataType, ModelInfo, TensorInfo};

use crate::forward::Forward;

/// Why a model's inputs or outputs cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignatureError {
    #[error(
        "the file does not say the types and shapes of inputs: describe {} in model.toml, as `[[inputs]]`, `name = \"{first}\"`, \
         `datatype = \"FP32\"`, `shape = [\"batch\", 3]`",
        list(names)
    )]
    Undescribed { names: Vec<String>, first: String },
    #[error("model.toml describes input `{name}`, `forward` takes {}", list(names))]
    NoInput { name: String, names: Vec<String> },
    #[error("model.toml does not describe input `{0}`, which `forward` takes")]
    Missing(String),
    #[error("`{name}` is {data_type}, which a TorchScript model can neither take nor give")]
    Type { name: String, data_type: DataType },
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "none".into();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The inputs in the order of `forward`'s arguments, as they are described.
pub(crate) fn inputs(forward: &Forward, said: &ModelInfo) -> Result<Vec<TensorInfo>, SignatureError> {
    let names = &forward.inputs;
    if let (true, Some(first)) = (said.inputs.is_empty(), names.first()) {
        return Err(SignatureError::Undescribed { names: names.clone(), first: first.clone() });
    }
    if let Some(info) = said.inputs.iter().find(|info| !names.contains(&info.name)) {
        return Err(SignatureError::NoInput { name: info.name.clone(), names: names.clone() });
    }
    if let Some(info) = said.inputs.iter().chain(&said.outputs).find(|info| !carries(info.data_type)) {
        return Err(SignatureError::Type { name: info.name.clone(), data_type: info.data_type });
    }
    let find = |name: &String| {
        let info = said.inputs.iter().find(|info| info.name == *name);
        info.cloned().ok_or_else(|| SignatureError::Missing(name.clone()))
    };
    names.iter().map(find).collect()
}

/// PyTorch has hardly more than the names of the unsigned types beyond a byte, and no strings.
fn carries(data_type: DataType) -> bool {
    !matches!(data_type, DataType::Bytes | DataType::Uint16 | DataType::Uint32 | DataType::Uint64)
}

/// Shapes for a run that finds out what comes: each named extent a number of its own, all others one number. Two such runs, with `round`
/// 0 and 1, differ in every free extent.
pub(crate) fn trial(inputs: &[TensorInfo], round: i64) -> Vec<Vec<i64>> {
    let mut numbers = BTreeMap::new();
    let mut of = |symbol: &str| match symbol {
        "" => 2 + round,
        // Further apart than the rounds, so that no two extents are ever equal by chance.
        symbol => {
            let next = 4 + 2 * numbers.len() as i64;
            *numbers.entry(symbol.to_owned()).or_insert(next) + round
        }
    };
    let extents = |info: &TensorInfo| {
        info.dimensions().map(|(extent, symbol)| if extent < 0 { of(symbol) } else { extent }).collect()
    };
    inputs.iter().map(extents).collect()
}

/// What came in a run: a name if it has one, a type and a shape.
pub(crate) type Came = (Option<String>, DataType, Vec<i64>);

/// What two trials with these inputs tell of the outputs; `None` if they gave different tensors.
pub(crate) fn outputs(inputs: &[TensorInfo], first: &[Came], second: &[Came]) -> Option<Vec<TensorInfo>> {
    let symbols = [symbols(inputs, 0), symbols(inputs, 1)];
    let alike =
        |(one, other): (&Came, &Came)| one.0 == other.0 && one.1 == other.1 && one.2.len() == other.2.len();
    if first.len() != second.len() || !first.iter().zip(second).all(alike) {
        return None;
    }
    let infos = first.iter().zip(second).enumerate().map(|(number, (one, other))| {
        let dimensions = one.2.iter().zip(&other.2).map(|(one, other)| {
            if one == other {
                return (*one, String::new());
            }
            let name = symbols[0].get(one).filter(|name| symbols[1].get(other) == Some(name));
            (-1, name.cloned().unwrap_or_default())
        });
        let (shape, symbols) = dimensions.unzip();
        let name = one.0.clone().unwrap_or_else(|| format!("output_{number}"));
        TensorInfo { name, data_type: one.1, shape, symbols }
    });
    Some(infos.collect())
}

/// The name that each number stood for in a trial.
fn symbols(inputs: &[TensorInfo], round: i64) -> BTreeMap<i64, String> {
    let mut names = BTreeMap::new();
    for (info, shape) in inputs.iter().zip(trial(inputs, round)) {
        for ((extent, symbol), number) in info.dimensions().zip(shape) {
            if extent < 0 && !symbol.is_empty() {
                names.insert(number, symbol.to_owned());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, dimensions: &[(i64, &str)]) -> TensorInfo {
        TensorInfo::new(name, DataType::Fp32, dimensions)
    }

    #[test]
    fn inputs_are_those_of_forward() {
        let forward = Forward { inputs: vec!["x".into(), "y".into()], result: "Tensor".into() };
        let check = |said: &[TensorInfo], expected: Result<&[&str], &str>| {
            let said = ModelInfo { inputs: said.to_vec(), outputs: Vec::new() };
            let got = inputs(&forward, &said).map_err(|error| error.to_string());
            let got = got.map(|infos| infos.into_iter().map(|info| info.name).collect::<Vec<_>>());
            let expected = expected.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
            assert_eq!(got, expected.map_err(str::to_owned));
        };
        let (x, y) = (info("x", &[(-1, "batch")]), info("y", &[]));
        check(&[y.clone(), x.clone()], Ok(&["x", "y"]));
        check(
            &[],
            Err(
                "the file does not say the types and shapes of inputs: describe `x`, `y` in model.toml, as `[[inputs]]`, \
                 `name = \"x\"`, `datatype = \"FP32\"`, `shape = [\"batch\", 3]`",
            ),
        );
        check(std::slice::from_ref(&x), Err("model.toml does not describe input `y`, which `forward` takes"));
        check(&[x.clone(), info("z", &[])], Err("model.toml describes input `z`, `forward` takes `x`, `y`"));
        let strings = TensorInfo { data_type: DataType::Bytes, ..y };
        check(&[x, strings], Err("`y` is BYTES, which a TorchScript model can neither take nor give"));
    }

    #[test]
    fn two_runs_tell_fixed_extents_from_free_ones() {
        let inputs = [info("ids", &[(-1, "batch"), (-1, "length")]), info("scale", &[(-1, ""), (3, "")])];
        assert_eq!(trial(&inputs, 0), [vec![4, 6], vec![2, 3]]);
        assert_eq!(trial(&inputs, 1), [vec![5, 7], vec![3, 3]]);
        let came =
            |name: Option<&str>, shape: &[i64]| (name.map(str::to_owned), DataType::Fp32, shape.to_vec());
        let first = [came(None, &[4, 6, 9]), came(Some("pooled"), &[4, 12, 2])];
        let second = [came(None, &[5, 7, 9]), came(Some("pooled"), &[5, 14, 3])];
        let expected = [
            info("output_0", &[(-1, "batch"), (-1, "length"), (9, "")]),
            info("pooled", &[(-1, "batch"), (-1, ""), (-1, "")]),
        ];
        assert_eq!(outputs(&inputs, &first, &second).unwrap(), expected);
        assert_eq!(outputs(&inputs, &first, &second[..1]), None);
        assert_eq!(outputs(&inputs, &first, &[second[1].clone(), second[0].clone()]), None);
    }
}
