//! Requests for inference, to a model that the input chooses: what is taken is JSON, fits the model and the limits, and is the same again when it
//! is written and read.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::Input;
use outrigger_fuzz::calls::{self, LIMITS};
use outrigger_protocol::ErrorCode;
use outrigger_protocol::call::{Form, NoRegions};
use outrigger_protocol::oip::{Request, encode_infer, parse_infer};
use serde::de::IgnoredAny;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let model = calls::model(&mut input, &["a", "b\"", "c"]);
    let body = Bytes::copy_from_slice(input.rest());
    let read = || parse_infer(Request::json(&body), &model, &LIMITS, &NoRegions);
    let call = match calls::read(body.len(), read) {
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
    assert!(call.id.as_ref().is_none_or(|id| id.len() <= LIMITS.id_bytes));
    let count = model.outputs.len();
    assert!(call.outputs.iter().all(|output| output.index < count) && call.outputs.len() <= count);
    let bytes: usize = call.inputs.iter().map(|tensor| tensor.data().len()).sum();
    assert!(bytes <= LIMITS.tensor_bytes);

    let outputs = calls::outputs(&model, &Form::Values);
    let written =
        encode_infer(&calls::reply(&model, &call, &outputs)).expect("what came as JSON can be said in it");
    let written = String::from_utf8(written.pieces[0].to_vec()).expect("JSON is text");
    // Outputs are in an answer as inputs are in a request.
    let written = written.replacen("\"outputs\":", "\"inputs\":", 1);
    let written = Bytes::from(written);
    let again = parse_infer(Request::json(&written), &model, &LIMITS, &NoRegions);
    let again = again.expect("what is written can be read");
    assert_eq!((again.id, again.inputs), (call.id, call.inputs));
});
