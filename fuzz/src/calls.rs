//! What the targets of calls have in common: a model that the input chooses, what a call of it may ask for, and what it is answered with.

use outrigger_backend::ModelInfo;
use outrigger_protocol::call::{Form, InferCall, InferReply, Limits, Wanted};

use crate::{Input, memory};

/// Much less than by default, so that limits are met with.
pub const LIMITS: Limits =
    Limits { elements: 512, tensor_bytes: TENSOR_BYTES, rank: 4, depth: 8, id_bytes: 32 };
const TENSOR_BYTES: usize = 4096;

/// A model that gives what it takes: the first of these, as many as the input says.
pub fn model(input: &mut Input<'_>, names: &[&str]) -> ModelInfo {
    let count = 1 + input.below(names.len() as u8);
    model_of(input, &names[..count])
}

/// The same with all of them.
pub fn model_of(input: &mut Input<'_>, names: &[&str]) -> ModelInfo {
    let tensors: Vec<_> = names.iter().map(|name| input.tensor(name)).collect();
    ModelInfo { inputs: tensors.clone(), outputs: tensors }
}

/// Reads a request of so many bytes. Buffers are aligned; what is quoted or unescaped is there a few times.
///
/// # Panics
/// If it takes more memory than that.
pub fn read<T>(bytes: usize, read: impl FnOnce() -> T) -> T {
    memory::within(TENSOR_BYTES + 64 * 1024 + 16 * bytes, read)
}

/// All outputs of a model, in one form.
pub fn outputs(model: &ModelInfo, form: &Form) -> Vec<Wanted> {
    (0..model.outputs.len()).map(|index| Wanted { index, form: form.clone() }).collect()
}

/// What a call is answered with: what it came with.
pub fn reply<'a>(model: &'a ModelInfo, call: &'a InferCall, outputs: &'a [Wanted]) -> InferReply<'a> {
    InferReply {
        model_name: "m",
        model_version: Some("1"),
        id: call.id.as_deref(),
        model,
        outputs,
        tensors: &call.inputs,
    }
}
