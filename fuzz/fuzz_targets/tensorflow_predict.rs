//! `PredictRequest`: what is taken fits the model and the limits, and can be answered with.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use outrigger_backend::ModelInfo;
use outrigger_fuzz::{Input, memory};
use outrigger_protocol::call::{Form, InferReply, Limits, Wanted};
use outrigger_protocol::tensorflow::{encode_reply, parse_request, target};

const TENSOR_BYTES: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let names = ["a", "b"];
    let count = 1 + input.below(names.len() as u8);
    let tensors: Vec<_> = names.iter().take(count).map(|name| input.tensor(name)).collect();
    let model = ModelInfo { inputs: tensors.clone(), outputs: tensors };
    let limits = Limits { elements: 512, tensor_bytes: TENSOR_BYTES, rank: 4, depth: 8, id_bytes: 32 };
    let message = Bytes::copy_from_slice(input.rest());
    let _ = target(&message);
    let most = TENSOR_BYTES + 64 * 1024 + 16 * message.len();
    let Ok(call) = memory::within(most, || parse_request(&message, &model, &limits)) else { return };
    model.check_inputs(&call.inputs).expect("it fits the model");
    let outputs: Vec<_> = (0..count).map(|index| Wanted { index, form: Form::Raw }).collect();
    let (model_name, model_version, id) = ("m", Some("1"), None);
    let reply =
        InferReply { model_name, model_version, id, model: &model, outputs: &outputs, tensors: &call.inputs };
    encode_reply(&reply).expect("there is a tensor for each output");
});
