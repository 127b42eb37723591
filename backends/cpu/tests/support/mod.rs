//! Models whose numbers are known, and models that cannot be served.

use outrigger_backend::DataType;
use outrigger_testkit::onnx::{Dim, Graph};

/// Fully connected layers with ReLU between them, with fixed weights and biases of either sign.
pub(crate) struct Mlp {
    layers: Vec<Layer>,
}

struct Layer {
    width_in: usize,
    width_out: usize,
    /// Row-major `[width_in, width_out]`.
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Mlp {
    /// Layers between `widths`: 64, 128, 10 are two.
    pub(crate) fn new(widths: &[usize]) -> Self {
        let layer = |pair: &[usize]| {
            let (width_in, width_out) = (pair[0], pair[1]);
            // Any fixed numbers do; these are spread over [-0.5, 0.5], scaled so that sums stay near 1.
            let spread = |number: usize| ((number * 7919 + 13) % 1000) as f32 / 999. - 0.5;
            let scale = 2. / (width_in as f32).sqrt();
            let weights = (0..width_in * width_out).map(|number| spread(number) * scale).collect();
            let bias = (0..width_out).map(|number| spread(number * 31) * 0.1).collect();
            Layer { width_in, width_out, weights, bias }
        };
        Self { layers: widths.windows(2).map(layer).collect() }
    }

    /// The model's file: `x`, FP32 `[batch, first]`, to `y`, FP32 `[batch, last]`.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (first, last) = (&self.layers[0], &self.layers[self.layers.len() - 1]);
        let row = |width: usize| [Dim::Named("batch"), Dim::Fixed(width as i64)];
        let mut graph = Graph::default();
        graph.input("x", DataType::Fp32, &row(first.width_in));
        graph.output("y", DataType::Fp32, &row(last.width_out));
        let mut from = "x".to_owned();
        for (number, layer) in self.layers.iter().enumerate() {
            let [weights, bias, sum, relu] = ["w", "b", "s", "r"].map(|letter| format!("{letter}{number}"));
            let extents = [layer.width_in as i64, layer.width_out as i64];
            graph.initializer(&weights, &extents, &layer.weights);
            graph.initializer(&bias, &extents[1..], &layer.bias);
            if number + 1 == self.layers.len() {
                graph.node("Gemm", &[&from, &weights, &bias], &["y"]);
            } else {
                graph.node("Gemm", &[&from, &weights, &bias], &[&sum]);
                graph.node("Relu", &[&sum], &[&relu]);
            }
            from = relu;
        }
        graph.model()
    }

    /// What the model gives for one row, computed here in double precision.
    pub(crate) fn run(&self, x: &[f32]) -> Vec<f32> {
        let mut row: Vec<f64> = x.iter().copied().map(f64::from).collect();
        for (number, layer) in self.layers.iter().enumerate() {
            let columns = layer.bias.iter().enumerate().map(|(column, bias)| {
                let weights = layer.weights.iter().skip(column).step_by(layer.width_out);
                let sum =
                    row.iter().zip(weights).map(|(value, weight)| value * f64::from(*weight)).sum::<f64>();
                let sum = sum + f64::from(*bias);
                if number + 1 == self.layers.len() { sum } else { sum.max(0.) }
            });
            row = columns.collect();
        }
        row.into_iter().map(|value| value as f32).collect()
    }
}

/// `x`, FP32 `[2]`, to `y`, a sequence of tensors; scikit-learn's classifiers have such outputs.
#[allow(dead_code, reason = "not every test has models that cannot be served")]
pub(crate) fn sequence() -> Vec<u8> {
    // Fields of `onnx.proto`: value_info is name 1, type 2; a type is tensor 1 or sequence 4, which has an element 1;
    // a tensor type is element type 1 (1 is FP32), shape 2; a shape has dimensions 1, each with a value 1.
    let shape = message(1, &[0x08, 2]);
    let tensor = message(1, &[[0x08, 1].to_vec(), message(2, &shape)].concat());
    let input = [message(1, b"x"), message(2, &tensor)].concat();
    let element = message(1, &message(1, &[0x08, 1]));
    let output = [message(1, b"y"), message(2, &message(4, &element))].concat();
    let node = [message(1, b"x"), message(2, b"y"), message(4, b"SequenceConstruct")].concat();
    // A graph is node 1, name 2, input 11, output 12; a model is the format's version 1 (8), graph 7, opset 8 (17).
    let graph = [message(1, &node), message(2, b"graph"), message(11, &input), message(12, &output)].concat();
    [[0x08, 8].to_vec(), message(7, &graph), message(8, &[0x10, 17])].concat()
}

/// A field of bytes, of fewer than 128 here.
#[allow(dead_code, reason = "as above")]
fn message(field: u8, bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() < 128);
    [&[field << 3 | 2, bytes.len() as u8], bytes].concat()
}
