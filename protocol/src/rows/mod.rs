//! Instances and predictions: a model called row by row, as Vertex AI and TensorFlow Serving's REST interface have it.
//!
//! An instance is what one row of each input holds: an object of them by name, or, where the model has one input, that itself. The rows of
//! all instances are one call; a prediction has the row of each output in the same way. Strings that are no UTF-8 travel as
//! `{"b64": "..."}`.
//!
//! Source: <https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements>,
//! <https://www.tensorflow.org/tfx/serving/api_rest>.

mod parse;
pub mod schema;
#[cfg(test)]
mod tests;
mod write;

pub use parse::parse_instances;
pub use write::encode_predictions;

/// What stands for bytes that are no text.
const B64: &str = "b64";
