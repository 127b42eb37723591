//! Calls row by row: what is taken is JSON, fits the model and the limits, and predictions of it are the same instances again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_backend::ModelInfo;
use outrigger_fuzz::{Input, memory};
use outrigger_protocol::call::{Form, InferReply, Limits, Wanted};
use outrigger_protocol::rows::{encode_predictions, parse_instances};
use outrigger_protocol::{sagemaker, vertex};
use serde::de::IgnoredAny;

const TENSOR_BYTES: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let names = ["a", "b"];
    let count = 1 + input.below(names.len() as u8);
    let tensors: Vec<_> = names.iter().take(count).map(|name| input.tensor(name)).collect();
    let model = ModelInfo { inputs: tensors.clone(), outputs: tensors };
    let limits = Limits { elements: 512, tensor_bytes: TENSOR_BYTES, rank: 4, depth: 8, id_bytes: 32 };
    let body = input.rest();
    let _ = sagemaker::has_instances(body);
    let _ = vertex::predictions(bytes::Bytes::copy_from_slice(body));
    let most = TENSOR_BYTES + 64 * 1024 + 16 * body.len();
    let Ok(call) = memory::within(most, || parse_instances(body, &model, &limits)) else { return };
    serde_json::from_slice::<IgnoredAny>(body).expect("what is taken is JSON");
    model.check_inputs(&call.inputs).expect("it fits the model");
    let outputs: Vec<_> = (0..count).map(|index| Wanted { index, form: Form::Values }).collect();
    let (model_name, model_version, id) = ("m", None, None);
    let reply =
        InferReply { model_name, model_version, id, model: &model, outputs: &outputs, tensors: &call.inputs };
    let written = encode_predictions(&reply).expect("what came as JSON can be said in it");
    let written = String::from_utf8(written.to_vec()).expect("JSON is text");
    let written = written.replacen("\"predictions\":", "\"instances\":", 1);
    let wide = Limits { depth: 256, ..limits };
    let again = parse_instances(written.as_bytes(), &model, &wide).expect("what is written can be read");
    assert_eq!(again.inputs, call.inputs);
});
