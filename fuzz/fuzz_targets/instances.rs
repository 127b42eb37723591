//! Calls row by row: what is taken is JSON, fits the model and the limits, and predictions of it are the same instances again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::Input;
use outrigger_fuzz::calls::{self, LIMITS};
use outrigger_protocol::call::{Form, Limits};
use outrigger_protocol::rows::{encode_predictions, parse_instances};
use outrigger_protocol::{sagemaker, vertex};
use serde::de::IgnoredAny;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let model = calls::model(&mut input, &["a", "b"]);
    let body = input.rest();
    let _ = sagemaker::has_instances(body);
    let _ = vertex::predictions(bytes::Bytes::copy_from_slice(body));
    let Ok(call) = calls::read(body.len(), || parse_instances(body, &model, &LIMITS)) else { return };
    serde_json::from_slice::<IgnoredAny>(body).expect("what is taken is JSON");
    model.check_inputs(&call.inputs).expect("it fits the model");
    let outputs = calls::outputs(&model, &Form::Values);
    let written = encode_predictions(&calls::reply(&model, &call, &outputs))
        .expect("what came as JSON can be said in it");
    let written = String::from_utf8(written.to_vec()).expect("JSON is text");
    let written = written.replacen("\"predictions\":", "\"instances\":", 1);
    let wide = Limits { depth: 256, ..LIMITS };
    let again = parse_instances(written.as_bytes(), &model, &wide).expect("what is written can be read");
    assert_eq!(again.inputs, call.inputs);
});
