//! The operators of a graph, as they are made out of steps.

use outrigger_backend::DataType;

/// Begins all names of steps in a graph.
pub(crate) const NAMES: &str = "outrigger:";

/// An operator with one result.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Operator {
    pub(super) kind: &'static str,
    /// Names; empty where one is left out.
    pub(super) inputs: Vec<String>,
    pub(super) output: String,
    pub(super) attributes: Vec<(&'static str, Attribute)>,
}

/// An attribute of an operator.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Attribute {
    Integer(i64),
    Integers(Vec<i64>),
    Text(&'static str),
}

/// A constant.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Constant {
    pub(super) name: String,
    pub(super) shape: Vec<i64>,
    pub(super) data: Data,
}

/// The elements of a constant.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Data {
    Fp32(Vec<f32>),
    Int64(Vec<i64>),
}

/// The number that ONNX has for a type, as an attribute. Source: `TensorProto.DataType` of `onnx.proto3`.
pub(super) fn number(data_type: DataType) -> Attribute {
    Attribute::Integer(match data_type {
        DataType::Fp32 => 1,
        DataType::Uint8 => 2,
        DataType::Int8 => 3,
        DataType::Int32 => 6,
        DataType::Int64 => 7,
        DataType::Fp16 => 10,
        DataType::Bf16 => 16,
        // No step makes another.
        _ => 0,
    })
}

/// Operators and constants under names that nobody else has.
pub(super) struct Graph {
    /// Begins all names.
    prefix: &'static str,
    pub(super) operators: Vec<Operator>,
    pub(super) constants: Vec<Constant>,
}

impl Graph {
    pub(super) fn new(prefix: &'static str) -> Self {
        Self { prefix, operators: Vec::new(), constants: Vec::new() }
    }

    fn name(&self) -> String {
        format!("{NAMES}{}:{}", self.prefix, self.operators.len() + self.constants.len())
    }

    /// Adds an operator; the name of its result.
    pub(super) fn add<'a>(
        &mut self,
        kind: &'static str,
        inputs: impl IntoIterator<Item = &'a String>,
        attributes: Vec<(&'static str, Attribute)>,
    ) -> String {
        let output = self.name();
        let inputs = inputs.into_iter().cloned().collect();
        self.operators.push(Operator { kind, inputs, output: output.clone(), attributes });
        output
    }

    pub(super) fn constant(&mut self, shape: &[i64], data: Data) -> String {
        let name = self.name();
        self.constants.push(Constant { name: name.clone(), shape: shape.to_vec(), data });
        name
    }

    /// Gives the result `from` of an operator another name, which is not taken.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        for operator in &mut self.operators {
            let names = operator.inputs.iter_mut().chain([&mut operator.output]);
            names.filter(|name| *name == from).for_each(|name| to.clone_into(name));
        }
    }

    /// Whether a name was given here, and to nothing else since.
    pub(super) fn is_own(&self, name: &str) -> bool {
        name.strip_prefix(NAMES)
            .and_then(|name| name.strip_prefix(self.prefix))
            .is_some_and(|rest| rest.starts_with(':'))
    }
}
