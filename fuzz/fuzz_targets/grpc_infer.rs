//! `ModelInferRequest`: what is taken fits the model and the limits, and others read the same.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use outrigger_backend::DataType;
use outrigger_fuzz::Input;
use outrigger_fuzz::calls::{self, LIMITS};
use outrigger_protocol::call::{Form, NoRegions};
use outrigger_protocol::oip::grpc::{encode_reply, id, is_raw, parse_request, target};
use outrigger_protocol::oip::messages::{ModelInferRequest, ModelInferResponse};
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let model = calls::model(&mut input, &["a", "b"]);
    let message = Bytes::copy_from_slice(input.rest());
    let named = target(&message).map(|target| (target.model.to_owned(), target.id.to_owned()));
    let _ = is_raw(&message);
    let found = id(&message).to_owned();
    let read = calls::read(message.len(), || parse_request(&message, &model, &LIMITS, &NoRegions));
    let Ok(call) = read else { return };
    model.check_inputs(&call.inputs).expect("it fits the model");
    // What is of no use here is not looked at as closely.
    let (Ok(read), Ok((name, id))) = (ModelInferRequest::decode(&*message), named) else { return };
    assert_eq!((&read.model_name, &read.id, &found), (&name, &id, &id));
    assert_eq!(call.id.clone().unwrap_or_default(), read.id);
    let mut raw = read.raw_input_contents.iter();
    for tensor in &read.inputs {
        let at = model.inputs.iter().position(|info| info.name == tensor.name).expect("it is the model's");
        let taken = &call.inputs[at];
        assert_eq!(taken.shape().extents(), tensor.shape);
        match &tensor.contents {
            None if !read.raw_input_contents.is_empty() => {
                assert_eq!(raw.next().map(Vec::as_slice), Some(&taken.data()[..]));
            }
            None => assert!(taken.data().is_empty()),
            Some(contents) if taken.data_type() == DataType::Int32 => {
                let bytes: Vec<u8> = contents.int_contents.iter().flat_map(|one| one.to_le_bytes()).collect();
                assert_eq!(bytes, taken.data()[..]);
            }
            Some(contents) if taken.data_type() == DataType::Fp32 => {
                let bytes: Vec<u8> =
                    contents.fp32_contents.iter().flat_map(|one| one.to_le_bytes()).collect();
                assert_eq!(bytes, taken.data()[..]);
            }
            Some(_) => {}
        }
    }
    let outputs = calls::outputs(&model, &Form::Raw);
    let pieces =
        encode_reply(&calls::reply(&model, &call, &outputs)).expect("there is a tensor for each output");
    let told = ModelInferResponse::decode(&*pieces.concat()).expect("others can read it");
    assert!(told.raw_output_contents.iter().zip(&call.inputs).all(|(told, sent)| told == &sent.data()[..]));
});
