//! Small ONNX models, made in memory: no binary file is kept for tests.
//!
//! Source of the field numbers: `onnx.proto3` of ONNX 1.16; the wire format is Protocol Buffers'.

use std::path::{Path, PathBuf};

use outrigger_backend::DataType;
use outrigger_backend::conformance::Fixtures;

/// The opset of the models.
const OPSET: u64 = 17;
/// The version of the file format, understood by every ONNX Runtime since 1.10.
const IR_VERSION: u64 = 8;

/// Types of elements that ONNX Runtime has on the CPU.
pub const TYPES: [DataType; 13] = [
    DataType::Bool,
    DataType::Uint8,
    DataType::Uint16,
    DataType::Uint32,
    DataType::Uint64,
    DataType::Int8,
    DataType::Int16,
    DataType::Int32,
    DataType::Int64,
    DataType::Fp16,
    DataType::Bf16,
    DataType::Fp32,
    DataType::Fp64,
];

/// Writes what the conformance suite runs into `folder`, with an identity for each of `types`. All that a backend can have is there, but for a
/// model that cannot be cancelled.
///
/// # Panics
/// If a file cannot be written.
pub fn fixtures(folder: &Path, types: &[DataType]) -> Fixtures {
    let write = |name: &str, bytes: &[u8]| write(folder, name, bytes);
    let row = [Dim::Named("batch"), Dim::Fixed(2)];
    let identity = |data_type: &DataType| (*data_type, write(data_type.name(), &identity(*data_type, &row)));
    let scratch = folder.join("scratch");
    std::fs::create_dir_all(&scratch).expect("a folder to write in");
    Fixtures {
        add: write("add", &add(3)),
        identity: types.iter().map(identity).collect(),
        nonzero: write("nonzero", &non_zero()),
        strings: Some(write("strings", &self::identity(DataType::Bytes, &row))),
        outer: Some(write("outer", &outer_sum())),
        slow: Some(write("slow", &slow())),
        stubborn: None,
        weights: Some((write("weights", &mlp(&[1024, 1024, 1024])), 8 << 20)),
        scratch,
    }
}

/// Writes a model into a folder, and gives its path.
///
/// # Panics
/// If it cannot be written.
pub fn write(folder: &Path, name: &str, model: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, model).expect("a folder to write in");
    path
}

/// `z = x + y`, all `FP32` of shape `[batch, width]`.
pub fn add(width: i64) -> Vec<u8> {
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &[Dim::Named("batch"), Dim::Fixed(width)]);
    graph.input("y", DataType::Fp32, &[Dim::Named("batch"), Dim::Fixed(width)]);
    graph.output("z", DataType::Fp32, &[Dim::Named("batch"), Dim::Fixed(width)]);
    graph.node("Add", &["x", "y"], &["z"]);
    graph.model()
}

/// `z = x + x`, all `FP16` of shape `[batch, 2]`.
pub fn twice_in_halves() -> Vec<u8> {
    let mut graph = Graph::default();
    let shape = [Dim::Named("batch"), Dim::Fixed(2)];
    graph.input("x", DataType::Fp16, &shape);
    graph.output("z", DataType::Fp16, &shape);
    graph.node("Add", &["x", "x"], &["z"]);
    graph.model()
}

/// `y = x`, of any type and shape.
pub fn identity(data_type: DataType, shape: &[Dim<'_>]) -> Vec<u8> {
    let mut graph = Graph::default();
    graph.input("x", data_type, shape);
    graph.output("y", data_type, shape);
    graph.node("Identity", &["x"], &["y"]);
    graph.model()
}

/// The mean of each channel: `x` of `[1, 3, 224, 224]` to `y` of `[1, 3, 1, 1]`, `FP32`. Its input has 602,112 bytes.
pub fn channel_means() -> Vec<u8> {
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &[1, 3, 224, 224].map(Dim::Fixed));
    graph.output("y", DataType::Fp32, &[1, 3, 1, 1].map(Dim::Fixed));
    graph.node("GlobalAveragePool", &["x"], &["y"]);
    graph.model()
}

/// A perceptron with rectifiers between its layers: `x` of `[batch, widths[0]]` to `y` of `[batch, widths[last]]`, `FP32`. Its
/// weights are small and the same in every run; biases are zero.
pub fn mlp(widths: &[i64]) -> Vec<u8> {
    let mut graph = Graph::default();
    let (first, last) = (widths[0], widths[widths.len() - 1]);
    graph.input("x", DataType::Fp32, &[Dim::Named("batch"), Dim::Fixed(first)]);
    graph.output("y", DataType::Fp32, &[Dim::Named("batch"), Dim::Fixed(last)]);
    let layers = widths.len() - 1;
    let mut before = "x".to_owned();
    for (number, pair) in widths.windows(2).enumerate() {
        let weights: Vec<f32> = (0..pair[0] * pair[1])
            .map(|at| ((at * 7919 % 1013) as f32 / 1013.0 - 0.5) / pair[0] as f32)
            .collect();
        let (weight, bias) = (format!("w{number}"), format!("b{number}"));
        graph.initializer(&weight, &[pair[0], pair[1]], &weights);
        graph.initializer(&bias, &[pair[1]], &vec![0.0; pair[1] as usize]);
        let is_last = number + 1 == layers;
        let after = if is_last { "y".to_owned() } else { format!("h{number}") };
        graph.node("Gemm", &[&before, &weight, &bias], &[&after]);
        before = after;
        if !is_last {
            let rectified = format!("r{number}");
            graph.node("Relu", &[&before], &[&rectified]);
            before = rectified;
        }
    }
    graph.model()
}

/// Width of the rows of [`sized`].
pub const SIZED_WIDTH: usize = 16;

/// A model of about `size` bytes, at least 3 KB, that runs in microseconds whatever its size: `y = x · w + number + table[argmax x]`, `x` and `y` of `FP32`
/// `[batch, 16]`. Nearly all of it is the table, of which a row is looked up by what comes in, so that nothing of it can be folded away.
///
/// Weights and table are different for each `number`, and so small that `y` rounds to it where `x` is a unit vector and `number` is below 2^20.
pub fn sized(size: u64, number: u64) -> Vec<u8> {
    /// Names, shapes and operators.
    const AROUND: u64 = 400;
    let width = SIZED_WIDTH as u64;
    let row = 4 * width;
    let rows = (size.saturating_sub(AROUND + row * (width + 1)) / row).max(width);
    let word = |at: u64| (at ^ number << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    // From -1/8 to 1/8, by 24 bits.
    let weights = |from: u64, count: u64| -> Vec<f32> {
        (from..from + count).map(|at| (word(at) as f32 / (1 << 24) as f32 - 0.5) / 4.0).collect()
    };
    let mut graph = Graph::default();
    let shape = [Dim::Named("batch"), Dim::Fixed(width as i64)];
    graph.input("x", DataType::Fp32, &shape);
    graph.output("y", DataType::Fp32, &shape);
    graph.initializer("w", &[width as i64; 2], &weights(0, width * width));
    graph.initializer("b", &[width as i64], &[number as f32; SIZED_WIDTH]);
    graph.initializer("table", &[rows as i64, width as i64], &weights(width * width, rows * width));
    graph.node("Gemm", &["x", "w", "b"], &["product"]);
    graph.node_with("ArgMax", &["x"], &["largest"], &[("axis", 1), ("keepdims", 0)]);
    graph.node("Gather", &["table", "largest"], &["found"]);
    graph.node("Add", &["product", "found"], &["y"]);
    graph.model()
}

/// The indices of the values of `x` (`FP32`, `[n]`) that are not zero: `y`, `INT64`, `[1, found]`. The shape of the output is known
/// only after the run.
pub fn non_zero() -> Vec<u8> {
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &[Dim::Named("n")]);
    graph.output("y", DataType::Int64, &[Dim::Fixed(1), Dim::Named("found")]);
    graph.node("NonZero", &["x"], &["y"]);
    graph.model()
}

/// The same by two operators, of which WebGPU has the first.
pub fn non_zero_of_abs() -> Vec<u8> {
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &[Dim::Named("n")]);
    graph.node("Abs", &["x"], &["a"]);
    graph.node("NonZero", &["a"], &["y"]);
    graph.output("y", DataType::Int64, &[Dim::Fixed(1), Dim::Named("found")]);
    graph.model()
}

/// `y = x · z` for `x` of `[n, m]` and `z` of `[m, n]`, `FP32`: the output can be far larger than the inputs.
pub fn outer() -> Vec<u8> {
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &[Dim::Named("n"), Dim::Named("m")]);
    graph.input("z", DataType::Fp32, &[Dim::Named("m"), Dim::Named("n")]);
    graph.output("y", DataType::Fp32, &[Dim::Named("n"), Dim::Named("n")]);
    graph.node("MatMul", &["x", "z"], &["y"]);
    graph.model()
}

/// `y`, `FP32` `[1, 3, 2, 2]`: `x` of `[1, 2, 4, 4]` folded with ones, three times. Each is the sum of 18.
pub fn convolution() -> Vec<u8> {
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &[1, 2, 4, 4].map(Dim::Fixed));
    graph.initializer("w", &[3, 2, 3, 3], &[1.; 54]);
    graph.node("Conv", &["x", "w"], &["y"]);
    graph.output("y", DataType::Fp32, &[1, 3, 2, 2].map(Dim::Fixed));
    graph.model()
}

/// `z = x + y` for `x` of `[n, 1]` and `y` of `[1, m]`, `FP32`: the output can be larger than memory.
pub fn outer_sum() -> Vec<u8> {
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &[Dim::Named("n"), Dim::Fixed(1)]);
    graph.input("y", DataType::Fp32, &[Dim::Fixed(1), Dim::Named("m")]);
    graph.output("z", DataType::Fp32, &[Dim::Named("n"), Dim::Named("m")]);
    graph.node("Add", &["x", "y"], &["z"]);
    graph.model()
}

/// `s`, the sum of all of [`outer_sum`]'s `z`, which is in between: `[1, 1]`.
pub fn sum_of_outer_sum() -> Vec<u8> {
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &[Dim::Named("n"), Dim::Fixed(1)]);
    graph.input("y", DataType::Fp32, &[Dim::Fixed(1), Dim::Named("m")]);
    graph.node("Add", &["x", "y"], &["z"]);
    graph.node("ReduceSum", &["z"], &["s"]);
    graph.output("s", DataType::Fp32, &[Dim::Fixed(1), Dim::Fixed(1)]);
    graph.model()
}

/// The 401st power of `x`, `FP32`, `[1024, 1024]`: takes many seconds on a few threads, in steps between which it can be cancelled.
pub fn slow() -> Vec<u8> {
    let shape = [Dim::Fixed(1024), Dim::Fixed(1024)];
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &shape);
    graph.output("p400", DataType::Fp32, &shape);
    graph.node("MatMul", &["x", "x"], &["p1"]);
    for power in 2..=400 {
        graph.node("MatMul", &[&format!("p{}", power - 1), "x"], &[&format!("p{power}")]);
    }
    graph.model()
}

/// Takes what [`add`] takes, and gives `z = (x + y) / 0`.
pub fn never_finite(width: i64) -> Vec<u8> {
    let mut graph = Graph::default();
    let shape = [Dim::Named("batch"), Dim::Fixed(width)];
    graph.input("x", DataType::Fp32, &shape);
    graph.input("y", DataType::Fp32, &shape);
    graph.output("z", DataType::Fp32, &shape);
    graph.initializer("nothing", &[1], &[0.0]);
    graph.node("Add", &["x", "y"], &["sum"]);
    graph.node("Div", &["sum", "nothing"], &["z"]);
    graph.model()
}

/// `root = √x` for `x`: `FP32` `[batch, width]`, which is NaN below zero, and `picked = (0, 1, .., 9)[index]` for `index`: `INT64`
/// `[batch]`: an index outside makes the run fail, and with it that of all rows of a batch.
pub fn picky(width: i64) -> Vec<u8> {
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &[Dim::Named("batch"), Dim::Fixed(width)]);
    graph.input("index", DataType::Int64, &[Dim::Named("batch")]);
    graph.output("root", DataType::Fp32, &[Dim::Named("batch"), Dim::Fixed(width)]);
    graph.output("picked", DataType::Fp32, &[Dim::Named("batch")]);
    graph.initializer("table", &[10], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    graph.node("Sqrt", &["x"], &["root"]);
    graph.node("Gather", &["table", "index"], &["picked"]);
    graph.model()
}

/// An extent of an input or output.
#[derive(Clone, Copy, Debug)]
pub enum Dim<'a> {
    /// This many.
    Fixed(i64),
    /// Any number; equal wherever the name is.
    Named(&'a str),
}

/// A graph that is being put together.
#[derive(Default)]
pub struct Graph {
    /// The opset of the model, 17 if nothing is said.
    pub opset: Option<u64>,
    nodes: Vec<Vec<u8>>,
    initializers: Vec<Vec<u8>>,
    inputs: Vec<Vec<u8>>,
    outputs: Vec<Vec<u8>>,
}

impl Graph {
    /// Adds an input.
    pub fn input(&mut self, name: &str, data_type: DataType, shape: &[Dim<'_>]) {
        self.inputs.push(value_info(name, data_type, shape));
    }

    /// Adds an output.
    pub fn output(&mut self, name: &str, data_type: DataType, shape: &[Dim<'_>]) {
        self.outputs.push(value_info(name, data_type, shape));
    }

    /// Adds an operator.
    pub fn node(&mut self, operator: &str, inputs: &[&str], outputs: &[&str]) {
        self.named_node("", operator, inputs, outputs);
    }

    /// Adds an operator that has a name.
    pub fn named_node(&mut self, name: &str, operator: &str, inputs: &[&str], outputs: &[&str]) {
        self.nodes.push(node(name, operator, inputs, outputs));
    }

    /// Adds an operator with attributes that are whole numbers.
    pub fn node_with(
        &mut self,
        operator: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[(&str, i64)],
    ) {
        /// `AttributeProto.AttributeType`'s `INT`.
        const INT: u64 = 2;
        let mut node = node("", operator, inputs, outputs);
        for (name, value) in attributes {
            let mut attribute = Vec::new();
            bytes(&mut attribute, 1, name.as_bytes());
            number(&mut attribute, 3, *value as u64);
            number(&mut attribute, 20, INT);
            bytes(&mut node, 5, &attribute);
        }
        self.nodes.push(node);
    }

    /// Adds a constant.
    pub fn initializer(&mut self, name: &str, shape: &[i64], values: &[f32]) {
        let mut tensor = Vec::new();
        shape.iter().for_each(|extent| number(&mut tensor, 1, *extent as u64));
        number(&mut tensor, 2, element_type(DataType::Fp32));
        bytes(&mut tensor, 8, name.as_bytes());
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        bytes(&mut tensor, 9, &raw);
        self.initializers.push(tensor);
    }

    /// Adds a constant whose data is in another file, `FP32`; the entries are those of `TensorProto.external_data`.
    pub fn external(&mut self, name: &str, shape: &[i64], entries: &[(&str, &str)]) {
        let mut tensor = Vec::new();
        shape.iter().for_each(|extent| number(&mut tensor, 1, *extent as u64));
        number(&mut tensor, 2, element_type(DataType::Fp32));
        bytes(&mut tensor, 8, name.as_bytes());
        for (key, value) in entries {
            let mut entry = Vec::new();
            bytes(&mut entry, 1, key.as_bytes());
            bytes(&mut entry, 2, value.as_bytes());
            bytes(&mut tensor, 13, &entry);
        }
        number(&mut tensor, 14, 1);
        self.initializers.push(tensor);
    }

    /// The finished file.
    pub fn model(&self) -> Vec<u8> {
        let mut graph = Vec::new();
        self.nodes.iter().for_each(|node| bytes(&mut graph, 1, node));
        bytes(&mut graph, 2, b"graph");
        self.initializers.iter().for_each(|tensor| bytes(&mut graph, 5, tensor));
        self.inputs.iter().for_each(|input| bytes(&mut graph, 11, input));
        self.outputs.iter().for_each(|output| bytes(&mut graph, 12, output));
        let mut opset = Vec::new();
        number(&mut opset, 2, self.opset.unwrap_or(OPSET));
        let mut model = Vec::new();
        number(&mut model, 1, IR_VERSION);
        bytes(&mut model, 7, &graph);
        bytes(&mut model, 8, &opset);
        model
    }
}

fn node(name: &str, operator: &str, inputs: &[&str], outputs: &[&str]) -> Vec<u8> {
    let mut node = Vec::new();
    inputs.iter().for_each(|input| bytes(&mut node, 1, input.as_bytes()));
    outputs.iter().for_each(|output| bytes(&mut node, 2, output.as_bytes()));
    bytes(&mut node, 3, name.as_bytes());
    bytes(&mut node, 4, operator.as_bytes());
    node
}

fn value_info(name: &str, data_type: DataType, shape: &[Dim<'_>]) -> Vec<u8> {
    let mut dimensions = Vec::new();
    for dim in shape {
        let mut dimension = Vec::new();
        match dim {
            Dim::Fixed(extent) => number(&mut dimension, 1, *extent as u64),
            Dim::Named(symbol) => bytes(&mut dimension, 2, symbol.as_bytes()),
        }
        bytes(&mut dimensions, 1, &dimension);
    }
    let mut tensor_type = Vec::new();
    number(&mut tensor_type, 1, element_type(data_type));
    bytes(&mut tensor_type, 2, &dimensions);
    let mut type_proto = Vec::new();
    bytes(&mut type_proto, 1, &tensor_type);
    let mut info = Vec::new();
    bytes(&mut info, 1, name.as_bytes());
    bytes(&mut info, 2, &type_proto);
    info
}

/// `TensorProto.DataType`.
fn element_type(data_type: DataType) -> u64 {
    match data_type {
        DataType::Fp32 => 1,
        DataType::Uint8 => 2,
        DataType::Int8 => 3,
        DataType::Uint16 => 4,
        DataType::Int16 => 5,
        DataType::Int32 => 6,
        DataType::Int64 => 7,
        DataType::Bytes => 8,
        DataType::Bool => 9,
        DataType::Fp16 => 10,
        DataType::Fp64 => 11,
        DataType::Uint32 => 12,
        DataType::Uint64 => 13,
        DataType::Bf16 => 16,
        other => panic!("{other} has no ONNX type"),
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3);
    varint(out, value);
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_written_as_protocol_buffers_are() {
        let mut out = Vec::new();
        number(&mut out, 1, 300);
        bytes(&mut out, 2, b"ab");
        assert_eq!(out, [0x08, 0xac, 0x02, 0x12, 2, b'a', b'b']);
    }

    #[test]
    fn models_have_about_the_size_that_is_wanted() {
        for size in [5_000, 123_456, 20_000_000] {
            let model = sized(size, 7);
            let difference = model.len().abs_diff(size as usize);
            assert!(difference < 200, "{size}: {}", model.len());
            assert_ne!(model, sized(size, 8));
        }
    }
}
