//! Steps before and after a model as operators of its graph: what callers send goes to the device as it is, and what they get comes from there.
//!
//! [`Asked`] is what a load asks for, [`fit`](fit::fit) turns it into operators for a given model, and [`edit`](edit::edit) puts these into the graph
//! while its session is made. Inputs and outputs of the graph have names of their own, for callers may call theirs as the model calls what is inside.

mod edit;
mod fit;
mod operators;
mod symbols;

use outrigger_backend::{LoadOptions, TensorInfo};
use outrigger_processing::{Around, SETTING};

pub(crate) use edit::{edit, inspect};
pub(crate) use fit::{Device, INPUT, OUTPUT};
pub(crate) use operators::NAMES;

/// The format whose models have steps around them.
pub(crate) const FORMAT: &str = "onnx+steps";

/// Steps that a model is to be loaded with, and what callers send and want.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) around: Around,
    pub(crate) inputs: Vec<TensorInfo>,
    pub(crate) outputs: Vec<TensorInfo>,
}

impl Asked {
    /// Takes the steps out of the options of a load; nothing where there are none.
    ///
    /// # Errors
    /// What is wrong with their text.
    pub(crate) fn take(options: &mut LoadOptions) -> Result<Option<Self>, String> {
        if options.format.as_deref() != Some(FORMAT) {
            return Ok(None);
        }
        options.format = Some("onnx".into());
        let text = options.settings.extract_if(.., |(key, _)| key == SETTING).map(|(_, text)| text).next();
        let Some(text) = text else { return Ok(None) };
        let around = Around::of_text(&text).map_err(|error| format!("setting `{SETTING}`: {error}"))?;
        let signature = std::mem::take(&mut options.signature);
        Ok(Some(Self { around, inputs: signature.inputs, outputs: signature.outputs }))
    }
}
