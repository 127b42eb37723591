//! Requests for inference, to a model that the input chooses: what is taken is JSON, fits the model and the limits, and is the same again when it
//! is written and read.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use outrigger_backend::ModelInfo;
use outrigger_fuzz::{Input, memory};
use outrigger_protocol::ErrorCode;
use outrigger_protocol::call::{Form, InferReply, Limits, NoRegions, Wanted};
use outrigger_protocol::oip::{Request, encode_infer, parse_infer};
use serde::de::IgnoredAny;

const TENSOR_BYTES: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let names = ["a", "b\"", "c"];
    let count = 1 + input.below(names.len() as u8);
    let tensors: Vec<_> = names.iter().take(count).map(|name| input.tensor(name)).collect();
    let model = ModelInfo { inputs: tensors.clone(), outputs: tensors };
    let limits = Limits { elements: 512, tensor_bytes: TENSOR_BYTES, rank: 4, depth: 8, id_bytes: 32 };
    let body = Bytes::copy_from_slice(input.rest());
    // Buffers are aligned; what is quoted or unescaped is there a few times.
    let most = TENSOR_BYTES + 64 * 1024 + 16 * body.len();
    let call = match memory::within(most, || parse_infer(Request::json(&body), &model, &limits, &NoRegions)) {
        Ok(call) => call,
        Err(error) => {
            let known = [
                ErrorCode::BadRequest,
                ErrorCode::InvalidTensor,
                ErrorCode::MalformedJson,
                ErrorCode::UnsupportedDatatype,
            ];
            assert!(known.contains(&error.code), "{error:?}");
            assert!(error.message.len() < 4096, "what is said is short");
            if error.code == ErrorCode::MalformedJson && !error.message.contains("nested") {
                let read = serde_json::from_slice::<serde_json::Value>(&body);
                assert!(read.is_err(), "{} and yet it is {read:?}", error.message);
            }
            return;
        }
    };
    serde_json::from_slice::<IgnoredAny>(&body).expect("what is taken is JSON");
    model.check_inputs(&call.inputs).expect("it fits the model");
    assert!(call.id.as_ref().is_none_or(|id| id.len() <= limits.id_bytes));
    assert!(call.outputs.iter().all(|output| output.index < count) && call.outputs.len() <= count);
    let bytes: usize = call.inputs.iter().map(|tensor| tensor.data().len()).sum();
    assert!(bytes <= TENSOR_BYTES);

    let all: Vec<_> = (0..count).map(|index| Wanted { index, form: Form::Values }).collect();
    let reply = InferReply {
        model_name: "m",
        model_version: None,
        id: call.id.as_deref(),
        model: &model,
        outputs: &all,
        tensors: &call.inputs,
    };
    let written = encode_infer(&reply).expect("what came as JSON can be said in it");
    let written = String::from_utf8(written.pieces[0].to_vec()).expect("JSON is text");
    // Outputs are in an answer as inputs are in a request.
    let written = written.replacen("\"outputs\":", "\"inputs\":", 1);
    let written = Bytes::from(written);
    let again = parse_infer(Request::json(&written), &model, &limits, &NoRegions);
    let again = again.expect("what is written can be read");
    assert_eq!((again.id, again.inputs), (call.id, call.inputs));
});
