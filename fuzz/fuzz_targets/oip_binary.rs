//! Requests with bytes of tensors behind their JSON: what is taken fits the model and the limits, and is part of the body.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use outrigger_backend::ModelInfo;
use outrigger_fuzz::{Input, memory};
use outrigger_protocol::call::{Limits, NoRegions};
use outrigger_protocol::oip::{Request, parse_infer};

const TENSOR_BYTES: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let names = ["a", "b"];
    let tensors: Vec<_> = names.iter().map(|name| input.tensor(name)).collect();
    let model = ModelInfo { inputs: tensors.clone(), outputs: tensors };
    let limits = Limits { elements: 512, tensor_bytes: TENSOR_BYTES, rank: 4, depth: 8, id_bytes: 32 };
    let json_length = Some(usize::from(input.byte()) * 4 + usize::from(input.byte() & 3));
    let body = Bytes::copy_from_slice(input.rest());
    let most = TENSOR_BYTES + 64 * 1024 + 16 * body.len();
    let read = memory::within(most, || {
        parse_infer(Request { body: &body, json_length }, &model, &limits, &NoRegions)
    });
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
