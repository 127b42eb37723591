//! Requests with bytes of tensors behind their JSON: what is taken fits the model and the limits, and is part of the body.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::Input;
use outrigger_fuzz::calls::{self, LIMITS};
use outrigger_protocol::call::NoRegions;
use outrigger_protocol::oip::{Request, parse_infer};

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let model = calls::model_of(&mut input, &["a", "b"]);
    let json_length = Some(usize::from(input.byte()) * 4 + usize::from(input.byte() & 3));
    let body = Bytes::copy_from_slice(input.rest());
    let request = Request { body: &body, json_length };
    let read = calls::read(body.len(), || parse_infer(request, &model, &LIMITS, &NoRegions));
    let Ok(call) = read else { return };
    model.check_inputs(&call.inputs).expect("it fits the model");
    let behind = body.len() - json_length.unwrap_or_default();
    let shared: usize = call
        .inputs
        .iter()
        .filter(|tensor| body.as_ptr_range().contains(&tensor.data().as_ptr()))
        .map(|tensor| tensor.data().len())
        .sum();
    assert_eq!(shared, behind, "all bytes behind the JSON are of tensors, and none is copied");
});
