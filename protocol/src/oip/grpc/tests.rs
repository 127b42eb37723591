//! The hand-written forms against the generated ones.

use bytes::Bytes;
use outrigger_backend::{DataType, ModelInfo, Shape, Tensor, TensorInfo};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::call::{Form, InferCall, InferReply, Limits, NoRegions, Slice, Wanted};
use crate::error::{CallError, ErrorCode};
use crate::oip::messages::inference::infer_parameter::ParameterChoice;
use crate::oip::messages::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use crate::oip::messages::inference::{InferParameter, InferTensorContents};
use crate::oip::messages::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};
use crate::priority::Priority;

fn info(name: &str, data_type: DataType) -> TensorInfo {
    TensorInfo { name: name.into(), data_type, shape: vec![-1], symbols: vec![] }
}

/// The inputs `a` and `b` and the outputs `y` and `z`, all of this type and of any length.
fn model(data_type: DataType) -> ModelInfo {
    let any = |name| info(name, data_type);
    ModelInfo { inputs: vec![any("a"), any("b")], outputs: vec![any("y"), any("z")] }
}

fn parse(request: &ModelInferRequest, model: &ModelInfo) -> Result<InferCall, CallError> {
    parse_request(&Bytes::from(request.encode_to_vec()), model, &Limits::default(), &NoRegions)
}

fn input(name: &str, data_type: DataType, extent: i64) -> InferInputTensor {
    InferInputTensor {
        name: name.into(),
        datatype: data_type.name().into(),
        shape: vec![extent],
        ..InferInputTensor::default()
    }
}

fn raw(data_type: DataType, a: &[u8], b: &[u8]) -> ModelInferRequest {
    let size = data_type.size().unwrap_or(1);
    ModelInferRequest {
        model_name: "m".into(),
        model_version: "2".into(),
        id: "Nr. 7".into(),
        inputs: vec![
            input("a", data_type, (a.len() / size) as i64),
            input("b", data_type, (b.len() / size) as i64),
        ],
        raw_input_contents: vec![a.to_vec(), b.to_vec()],
        ..ModelInferRequest::default()
    }
}

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

#[test]
fn raw_contents_are_shared_with_the_message() {
    let mut request = raw(DataType::Uint16, &[1, 2, 3, 4], &[5, 6]);
    let message = Bytes::from(request.encode_to_vec());
    let named = target(&message).unwrap();
    assert_eq!((named.model, named.version, named.id), ("m", "2", "Nr. 7"));
    let call = parse_request(&message, &model(DataType::Uint16), &Limits::default(), &NoRegions).unwrap();
    assert_eq!(call.id.as_deref(), Some("Nr. 7"));
    assert_eq!((&call.inputs[0].data()[..], &call.inputs[1].data()[..]), (&[1, 2, 3, 4][..], &[5, 6][..]));
    assert!(message.as_ptr_range().contains(&call.inputs[0].data().as_ptr()));
    assert!(call.outputs.iter().all(|wanted| wanted.form == Form::Raw));
    // In the order of the request's inputs, not of the model's.
    request.inputs.reverse();
    request.raw_input_contents.reverse();
    assert_eq!(parse(&request, &model(DataType::Uint16)).unwrap().inputs, call.inputs);
}

#[test]
fn contents_are_those_of_the_type() {
    let contents = |data_type: DataType, contents: InferTensorContents, count: i64| {
        let a = InferInputTensor { contents: Some(contents), ..input("a", data_type, count) };
        let request =
            ModelInferRequest { inputs: vec![a, input("b", data_type, 0)], ..ModelInferRequest::default() };
        parse(&request, &model(data_type)).map(|call| call.inputs[0].data().to_vec())
    };
    let ints = |values: &[i32]| InferTensorContents { int_contents: values.into(), ..Default::default() };
    let uints = |values: &[u32]| InferTensorContents { uint_contents: values.into(), ..Default::default() };
    let table = [
        (
            DataType::Bool,
            InferTensorContents { bool_contents: vec![true, false], ..Default::default() },
            vec![1, 0],
        ),
        (DataType::Int8, ints(&[-128, 127]), vec![0x80, 0x7f]),
        (DataType::Int16, ints(&[-2, 5]), vec![0xfe, 0xff, 5, 0]),
        (DataType::Int32, ints(&[-1, 1]), vec![0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]),
        (DataType::Uint8, uints(&[255, 0]), vec![255, 0]),
        (DataType::Uint16, uints(&[65535, 1]), vec![255, 255, 1, 0]),
        (
            DataType::Fp32,
            InferTensorContents { fp32_contents: vec![1.5, f32::NAN], ..Default::default() },
            [1.5f32.to_le_bytes(), f32::NAN.to_le_bytes()].concat(),
        ),
        (
            DataType::Int64,
            InferTensorContents { int64_contents: vec![i64::MIN, 1], ..Default::default() },
            [i64::MIN.to_le_bytes(), 1i64.to_le_bytes()].concat(),
        ),
        (
            DataType::Bytes,
            InferTensorContents { bytes_contents: vec![vec![0xff], vec![]], ..Default::default() },
            vec![1, 0, 0, 0, 0xff, 0, 0, 0, 0],
        ),
    ];
    for (data_type, said, expected) in table {
        assert_eq!(contents(data_type, said.clone(), 2).unwrap(), expected, "{data_type}");
        for count in [1, 3] {
            assert_eq!(contents(data_type, said.clone(), count).unwrap_err().code, ErrorCode::InvalidTensor);
        }
    }
    for (data_type, said, expected) in [
        (DataType::Int8, ints(&[128]), "out of the range of INT8"),
        (DataType::Int16, ints(&[-32769]), "out of the range of INT16"),
        (DataType::Uint8, uints(&[256]), "out of the range of UINT8"),
        (DataType::Uint8, ints(&[1]), "not those of UINT8"),
        (
            DataType::Fp16,
            InferTensorContents { fp32_contents: vec![1.0], ..Default::default() },
            "raw_input_contents",
        ),
    ] {
        let error = contents(data_type, said, 1).unwrap_err();
        assert!(error.message.contains(expected), "{error}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = model(DataType::Uint8);
    let whole = raw(DataType::Uint8, &[1, 2], &[3]);
    assert!(parse(&whole, &model).is_ok());
    let refused = |change: &dyn Fn(&mut ModelInferRequest), expected: &str| {
        let mut request = whole.clone();
        change(&mut request);
        let error = parse(&request, &model).unwrap_err();
        assert!(error.message.contains(expected), "{error}");
        assert!([ErrorCode::InvalidTensor, ErrorCode::BadRequest].contains(&error.code), "{error}");
    };
    refused(&|request| drop(request.raw_input_contents.pop()), "no `raw_input_contents`");
    refused(&|request| request.raw_input_contents.clear(), "neither `contents` nor `raw_input_contents`");
    refused(&|request| request.raw_input_contents.push(vec![]), "there are more `raw_input_contents`");
    refused(&|request| drop(request.inputs.pop()), "there are more `raw_input_contents` than inputs");
    refused(&|request| request.inputs[0].name = "b".into(), "input `b`");
    refused(&|request| request.inputs[0].name = "q".into(), "no input `q`");
    refused(&|request| request.inputs[0].datatype = "UINT16".into(), "datatype `UINT16`");
    refused(&|request| request.inputs[0].shape = vec![3], "has 2 bytes, shape [3]");
    refused(&|request| request.inputs[0].shape = vec![1, 2], "has shape [1, 2]");
    refused(&|request| request.inputs[0].shape = vec![1; 33], "more than 32 dimensions");
    refused(&|request| request.inputs[0].shape = vec![-1], "extent -1 is negative");
    refused(&|request| request.inputs[0].shape = vec![i64::MAX; 3], "overflows");
    refused(
        &|request| request.inputs[0].contents = Some(InferTensorContents::default()),
        "`raw_input_contents`",
    );
    refused(
        &|request| request.inputs.push(input("a", DataType::Uint8, 0)),
        "more inputs than the model has, 2",
    );
    refused(&|request| request.id = "i".repeat(257), "`id` has 257 bytes");
    let output = |name: &str| InferRequestedOutputTensor { name: name.into(), ..Default::default() };
    refused(&|request| request.outputs = vec![output("q")], "no output `q`");
    refused(&|request| request.outputs = vec![output("y"), output("y")], "asked for twice");
    refused(&|request| request.outputs = vec![output("y"); 3], "more outputs than the model has");
    let region = parameter(ParameterChoice::StringParam("r".into()));
    refused(
        &|request| drop(request.inputs[0].parameters.insert("shared_memory_region".into(), region.clone())),
        "belong together",
    );
    refused(
        &|request| {
            drop(request.parameters.insert("timeout".into(), parameter(ParameterChoice::BoolParam(true))))
        },
        "`timeout`",
    );
}

#[test]
fn parameters_mean_the_same_as_in_json() {
    let mut request = raw(DataType::Uint8, &[], &[]);
    request.parameters.insert("timeout".into(), parameter(ParameterChoice::Int64Param(1500)));
    request.parameters.insert("priority".into(), parameter(ParameterChoice::Uint64Param(3)));
    request.parameters.insert("more".into(), parameter(ParameterChoice::DoubleParam(0.5)));
    let size = parameter(ParameterChoice::Int64Param(8));
    let region = parameter(ParameterChoice::StringParam("r".into()));
    let parameters =
        [("shared_memory_region".to_owned(), region), ("shared_memory_byte_size".to_owned(), size)].into();
    request.outputs = vec![InferRequestedOutputTensor { name: "z".into(), parameters }];
    let call = parse(&request, &model(DataType::Uint8)).unwrap();
    assert_eq!(call.urgency.deadline, Some(std::time::Duration::from_micros(1500)));
    assert_eq!(call.urgency.priority, Some(Priority::Low));
    let slice = Slice { region: "r".into(), offset: 0, bytes: 8 };
    assert_eq!(call.outputs, [Wanted { index: 1, form: Form::Shared(slice) }]);
}

#[test]
fn results_are_read_by_others() {
    let model = model(DataType::Uint8);
    let tensor = |data: &'static [u8]| {
        let shape = Shape::new([data.len() as i64]).unwrap();
        Tensor::new(DataType::Uint8, shape, Bytes::from_static(data)).unwrap()
    };
    let tensors = [tensor(&[1, 2, 3]), tensor(&[])];
    let slice = Slice { region: "r".into(), offset: 300, bytes: 8 };
    for form in [Form::Raw, Form::Shared(slice)] {
        let outputs = [Wanted { index: 0, form: Form::Raw }, Wanted { index: 1, form: form.clone() }];
        let (model_version, id) = (Some("2"), Some("i"));
        let reply = InferReply {
            model_name: "m",
            model_version,
            id,
            model: &model,
            outputs: &outputs,
            tensors: &tensors,
        };
        let pieces = encode_reply(&reply).unwrap();
        assert!(pieces.iter().any(|piece| piece.as_ptr() == tensors[0].data().as_ptr()), "it is not copied");
        let read = ModelInferResponse::decode(&*pieces.concat()).unwrap();
        assert_eq!((&*read.model_name, &*read.model_version, &*read.id), ("m", "2", "i"));
        assert_eq!((read.outputs[0].name.as_str(), read.outputs[0].shape.as_slice()), ("y", &[3][..]));
        assert_eq!(read.outputs[1].datatype, "UINT8");
        if form == Form::Raw {
            assert_eq!(read.raw_output_contents, [vec![1, 2, 3], vec![]]);
        } else {
            assert_eq!(read.raw_output_contents, [vec![1, 2, 3], vec![]]);
            let offset = &read.outputs[1].parameters["shared_memory_offset"];
            assert_eq!(offset.parameter_choice, Some(ParameterChoice::Int64Param(300)));
        }
        let streamed = ModelStreamInferResponse::decode(&*in_stream(pieces).concat()).unwrap();
        assert_eq!((streamed.infer_response, streamed.error_message), (Some(read), String::new()));
    }
    let error = CallError::new(ErrorCode::ModelNotFound, "no model `m`");
    let failed = ModelStreamInferResponse::decode(&*stream_error(&error, "i").concat()).unwrap();
    assert_eq!((&*failed.error_message, &*failed.infer_response.unwrap().id), ("no model `m`", "i"));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let message = Bytes::from(bytes);
        let _ = target(&message);
        let _ = parse_request(&message, &model(DataType::Int16), &Limits::default(), &NoRegions);
    }

    #[test]
    fn what_is_taken_others_read_alike(
        at in 0usize..90,
        remove in 0usize..4,
        insert in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let mut bytes = raw(DataType::Uint16, &[1, 2, 3, 4], &[5, 6]).encode_to_vec();
        let end = (at + remove).min(bytes.len());
        bytes.splice(at.min(end)..end, insert);
        let message = Bytes::from(bytes);
        let call = parse_request(&message, &model(DataType::Uint16), &Limits::default(), &NoRegions);
        // What is of no use here is not looked at as closely.
        if let (Ok(call), Ok(read)) = (call, ModelInferRequest::decode(&*message)) {
            prop_assert_eq!(call.id.unwrap_or_default(), read.id);
            let raw: usize = read.raw_input_contents.iter().map(Vec::len).sum();
            let typed = read.inputs.iter().filter_map(|input| input.contents.as_ref());
            let typed: usize = typed.map(|contents| 2 * contents.uint_contents.len()).sum();
            let taken: usize = call.inputs.iter().map(|tensor| tensor.data().len()).sum();
            prop_assert_eq!(taken, raw + typed);
        }
    }
}
