//! `PredictRequest`: what is taken fits the model and the limits, and can be answered with.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::Input;
use outrigger_fuzz::calls::{self, LIMITS};
use outrigger_protocol::call::Form;
use outrigger_protocol::tensorflow::{encode_reply, parse_request, target};

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let model = calls::model(&mut input, &["a", "b"]);
    let message = Bytes::copy_from_slice(input.rest());
    let _ = target(&message);
    let Ok(call) = calls::read(message.len(), || parse_request(&message, &model, &LIMITS)) else { return };
    model.check_inputs(&call.inputs).expect("it fits the model");
    let outputs = calls::outputs(&model, &Form::Raw);
    encode_reply(&calls::reply(&model, &call, &outputs)).expect("there is a tensor for each output");
});
