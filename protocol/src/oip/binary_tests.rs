//! Tensors as bytes, in shared memory and as strings; parameters.

use std::time::Duration;

use bytes::Bytes;
use outrigger_backend::{Buffer, DataType, ModelInfo, Shape, Tensor, TensorInfo};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::call::*;
use crate::error::{CallError, ErrorCode};
use crate::priority::Priority;
use crate::urgency::Urgency;

fn info(name: &str, data_type: DataType, shape: &[i64]) -> TensorInfo {
    TensorInfo { name: name.into(), data_type, shape: shape.to_vec(), symbols: vec![] }
}

/// The inputs `a` and `b` and the outputs `y` and `z`, all of this type and of any length.
fn model(data_type: DataType) -> ModelInfo {
    let any = |name| info(name, data_type, &[-1]);
    ModelInfo { inputs: vec![any("a"), any("b")], outputs: vec![any("y"), any("z")] }
}

fn parse(json: &Value, behind: &[u8], model: &ModelInfo) -> Result<InferCall, CallError> {
    let json = json.to_string();
    let body = Bytes::from([json.as_bytes(), behind].concat());
    let request = Request { body: &body, json_length: Some(json.len()) };
    parse_infer(request, model, &Limits::default(), &Memory)
}

/// One region, `r`, whose bytes count from 0.
struct Memory;

impl Regions for Memory {
    fn read(&self, slice: &Slice) -> Result<Buffer, CallError> {
        if slice.region != "r" {
            return Err(no_region(&slice.region));
        }
        let mut buffer = Buffer::zeroed(slice.bytes as usize).unwrap();
        buffer.iter_mut().zip(slice.offset..).for_each(|(byte, at)| *byte = at as u8);
        Ok(buffer)
    }
}

fn binary(name: &str, datatype: &str, extent: usize, size: usize) -> Value {
    json!({"name": name, "datatype": datatype, "shape": [extent], "parameters": {"binary_data_size": size}})
}

#[test]
fn bytes_behind_the_json_are_taken_in_the_order_of_the_inputs_and_shared() {
    let model = model(DataType::Uint16);
    let a = binary("a", "UINT16", 2, 4);
    let b = binary("b", "UINT16", 1, 2);
    for (inputs, first) in [(json!([a, b]), [1u8, 2, 3, 4]), (json!([b, a]), [3, 4, 5, 6])] {
        let call = parse(&json!({"inputs": inputs}), &[1, 2, 3, 4, 5, 6], &model).unwrap();
        assert_eq!(call.inputs[0].data()[..], first);
    }
    // One as bytes, one as text, one empty.
    let text = json!({"name": "b", "datatype": "UINT16", "shape": [1], "data": [9]});
    let call = parse(&json!({"inputs": [text, a]}), &[1, 2, 3, 4], &model).unwrap();
    assert_eq!((&call.inputs[0].data()[..], &call.inputs[1].data()[..]), (&[1, 2, 3, 4][..], &[9, 0][..]));
    let empty = binary("b", "UINT16", 0, 0);
    assert!(
        parse(&json!({"inputs": [a, empty]}), &[1, 2, 3, 4], &model).unwrap().inputs[1].data().is_empty()
    );

    let json = json!({"inputs": [a, b]}).to_string();
    let body = Bytes::from([json.as_bytes(), &[0; 6]].concat());
    let request = Request { body: &body, json_length: Some(json.len()) };
    let call = parse_infer(request, &model, &Limits::default(), &NoRegions).unwrap();
    assert_eq!(call.inputs[0].data().as_ptr(), body[json.len()..].as_ptr(), "it is not copied");
}

#[test]
fn bytes_that_do_not_fit_are_refused() {
    let model = model(DataType::Uint16);
    let (a, b) = (binary("a", "UINT16", 2, 4), binary("b", "UINT16", 1, 2));
    let refused = |inputs: Value, behind: &[u8], expected: &str| {
        let error = parse(&json!({"inputs": inputs}), behind, &model).unwrap_err();
        assert!(error.message.contains(expected), "{error}");
        assert!([ErrorCode::InvalidTensor, ErrorCode::BadRequest].contains(&error.code));
    };
    refused(json!([a, b]), &[0; 5], "input `b`: its `binary_data_size` is 2, and 1 bytes are left");
    refused(json!([a, b]), &[0; 7], "1 bytes behind the JSON are of no input");
    refused(
        json!([binary("a", "UINT16", 2, 3), b]),
        &[0; 5],
        "its data has 3 bytes, shape [2] of UINT16 takes 4",
    );
    refused(json!([binary("a", "UINT16", 2, usize::MAX), b]), &[0; 5], "are left behind");
    let mut twofold = a.clone();
    twofold["data"] = json!([1, 2]);
    refused(json!([twofold, b]), &[0; 6], "more than one of `data`");
    let mut negative = a.clone();
    negative["parameters"]["binary_data_size"] = json!(-1);
    refused(json!([negative, b]), &[0; 6], "out of the range");
    let request = Request { body: &Bytes::from_static(b"{}"), json_length: Some(3) };
    let error = parse_infer(request, &model, &Limits::default(), &NoRegions).unwrap_err();
    assert!(error.message.contains("says 3 bytes, the body has 2"), "{error}");

    let booleans = super::binary_tests::model(DataType::Bool);
    let two = json!({"inputs": [binary("a", "BOOL", 2, 2), binary("b", "BOOL", 1, 1)]});
    assert!(parse(&two, &[0, 1, 1], &booleans).is_ok());
    assert!(parse(&two, &[0, 2, 1], &booleans).unwrap_err().message.contains("neither 0 nor 1"));
}

#[test]
fn what_all_tensors_take_is_limited() {
    let model = model(DataType::Uint8);
    let limits = Limits { tensor_bytes: 5, ..Limits::default() };
    let ask = |a: Value, b: Value, behind: usize| {
        let json = json!({"inputs": [a, b]}).to_string();
        let body = Bytes::from([json.as_bytes(), &vec![0; behind]].concat());
        let request = Request { body: &body, json_length: Some(json.len()) };
        parse_infer(request, &model, &limits, &Memory).map(|_| ()).map_err(|error| error.message)
    };
    let shared = |name: &str, extent: u64| {
        let parameters = json!({"shared_memory_region": "r", "shared_memory_byte_size": extent});
        json!({"name": name, "datatype": "UINT8", "shape": [extent], "parameters": parameters})
    };
    let text = json!({"name": "a", "datatype": "UINT8", "shape": [3], "data": [1, 2, 3]});
    assert_eq!(ask(text.clone(), binary("b", "UINT8", 2, 2), 2), Ok(()));
    for over in [ask(text.clone(), binary("b", "UINT8", 3, 3), 3), ask(text.clone(), shared("b", 3), 0)] {
        assert!(over.unwrap_err().contains("more than 5 bytes of tensors"));
    }
    assert!(ask(text, shared("b", u64::MAX >> 1), 0).is_err());
    let strings = |b: &str| json!({"name": "b", "datatype": "BYTES", "shape": [1], "data": [b]});
    let model = ModelInfo { inputs: vec![info("b", DataType::Bytes, &[-1])], outputs: vec![] };
    for (string, fits) in [("x", true), ("xy", false)] {
        let body = Bytes::from(json!({"inputs": [strings(string)]}).to_string());
        assert_eq!(parse_infer(Request::json(&body), &model, &limits, &NoRegions).is_ok(), fits);
    }
}

#[test]
fn inputs_lie_in_shared_memory() {
    let model = model(DataType::Uint8);
    let ask = |parameters: Value| {
        let a = json!({"name": "a", "datatype": "UINT8", "shape": [3], "parameters": parameters});
        let b = json!({"name": "b", "datatype": "UINT8", "shape": [1], "data": [1]});
        parse(&json!({"inputs": [a, b]}), &[], &model)
    };
    let all = json!({"shared_memory_region": "r", "shared_memory_offset": 5, "shared_memory_byte_size": 3});
    assert_eq!(ask(all).unwrap().inputs[0].data()[..], [5, 6, 7]);
    for (parameters, expected) in [
        (json!({"shared_memory_region": "q", "shared_memory_byte_size": 3}), "no region of shared memory"),
        (json!({"shared_memory_region": "r"}), "without `shared_memory_byte_size`"),
        (json!({"shared_memory_byte_size": 3}), "without `shared_memory_region`"),
        (json!({"shared_memory_region": "r", "shared_memory_byte_size": 2}), "has 2 bytes"),
        (
            json!({"shared_memory_region": "r", "shared_memory_byte_size": 3, "binary_data_size": 3}),
            "more than one",
        ),
    ] {
        let error = ask(parameters).unwrap_err();
        assert!(error.message.contains(expected), "{error}");
    }
}

#[test]
fn strings_are_read_and_written() {
    let model = model(DataType::Bytes);
    let texts = |data: Value, shape: Value| {
        let a = json!({"name": "a", "datatype": "BYTES", "shape": shape, "data": data});
        let mut both = model.clone();
        both.inputs.truncate(1);
        both.inputs[0].shape = vec![-1; shape.as_array().unwrap().len()];
        let body = Bytes::from(json!({"inputs": [a]}).to_string());
        parse_infer(Request::json(&body), &both, &Limits::default(), &NoRegions)
    };
    let call = texts(json!(["", "é\n", "x"]), json!([3])).unwrap();
    let strings: Vec<_> = call.inputs[0].iter_strings().map(<[u8]>::to_vec).collect();
    assert_eq!(strings, [b"".to_vec(), "é\n".into(), b"x".to_vec()]);
    assert_eq!(texts(json!([["a", "b"], ["c", "d"]]), json!([2, 2])).unwrap().inputs[0].data().len(), 20);
    assert!(texts(json!([]), json!([0])).unwrap().inputs[0].data().is_empty());
    for (data, shape, expected) in [
        (json!(["a"]), json!([2]), "fewer"),
        (json!(["a", "b", "c"]), json!([2]), "more"),
        (json!([1, 2]), json!([2]), "expected a string"),
        (json!([null, "a"]), json!([2]), "null"),
    ] {
        let error = texts(data, shape).unwrap_err();
        assert!(error.code == ErrorCode::InvalidTensor && error.message.contains(expected), "{error}");
    }
    // As bytes each follows its length.
    let behind =
        [&1u32.to_le_bytes()[..], b"x", &0u32.to_le_bytes(), &2u32.to_le_bytes(), b"\xff\0"].concat();
    let inputs = json!([binary("a", "BYTES", 2, 9), binary("b", "BYTES", 1, 6)]);
    let call = parse(&json!({"inputs": inputs}), &behind, &model).unwrap();
    assert_eq!(call.inputs[1].iter_strings().next().unwrap(), b"\xff\0");
    let inputs = json!([binary("a", "BYTES", 1, 9), binary("b", "BYTES", 1, 6)]);
    assert_eq!(
        parse(&json!({"inputs": inputs}), &behind, &model).unwrap_err().code,
        ErrorCode::InvalidTensor
    );
}

#[test]
fn parameters_say_form_and_urgency() {
    let model = model(DataType::Uint8);
    let ask = |parameters: Value, outputs: Value| {
        let inputs = json!([binary("a", "UINT8", 0, 0), binary("b", "UINT8", 0, 0)]);
        parse(&json!({"inputs": inputs, "parameters": parameters, "outputs": outputs}), &[], &model)
    };
    let forms = |call: InferCall| -> Vec<_> { call.outputs.into_iter().map(|wanted| wanted.form).collect() };
    assert_eq!(forms(ask(json!({}), json!([])).unwrap()), [Form::Values, Form::Values]);
    assert_eq!(forms(ask(json!({"binary_data_output": true}), json!([])).unwrap()), [Form::Raw, Form::Raw]);
    let outputs = json!([{"name": "z", "parameters": {"binary_data": false}}, {"name": "y"}]);
    assert_eq!(forms(ask(json!({"binary_data_output": true}), outputs).unwrap()), [Form::Values, Form::Raw]);
    let shared =
        json!({"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 1});
    let slice = Slice { region: "r".into(), offset: 1, bytes: 8 };
    let outputs = json!([{"name": "z", "parameters": shared}]);
    assert_eq!(forms(ask(json!({}), outputs).unwrap()), [Form::Shared(slice)]);

    let urgency = |parameters: Value| ask(parameters, json!([])).unwrap().urgency;
    assert_eq!(urgency(json!({"timeout": 0, "priority": 0, "sequence_id": 7})), Urgency::default());
    let said = urgency(json!({"timeout": 1500, "priority": 1}));
    assert_eq!(said.deadline, Some(Duration::from_micros(1500)));
    assert_eq!(said.priority, Some(Priority::High));
    assert_eq!(urgency(json!({"timeout": u64::MAX})).deadline, Some(Urgency::LONGEST));
    for (value, expected) in [
        (json!(2), Priority::Normal),
        (json!(3), Priority::Low),
        (json!(u64::MAX), Priority::Low),
        (json!("low"), Priority::Low),
    ] {
        assert_eq!(urgency(json!({"priority": value})).priority, Some(expected));
    }
    for parameters in [
        json!({"timeout": "1"}),
        json!({"timeout": -1}),
        json!({"priority": "urgent"}),
        json!({"binary_data_output": 1}),
    ] {
        assert_eq!(ask(parameters, json!([])).unwrap_err().code, ErrorCode::BadRequest);
    }
    let classes = json!([{"name": "z", "parameters": {"classification": 3}}]);
    assert!(ask(json!({}), classes).unwrap_err().message.contains("classification"));
    assert!(ask(json!({}), json!([{"name": "z", "parameters": {"classification": 0}}])).is_ok());
}

#[test]
fn outputs_are_sent_as_they_are_asked_for_and_not_copied() {
    let model = model(DataType::Fp32);
    let tensor = |value: f32| {
        let data = Bytes::from(value.to_ne_bytes().to_vec());
        Tensor::new(DataType::Fp32, Shape::new([1]).unwrap(), data).unwrap()
    };
    // What JSON cannot say can be sent.
    let tensors = [tensor(f32::NAN), tensor(2.5)];
    let slice = Slice { region: "r".into(), offset: 9, bytes: 100 };
    let reply = |outputs: &[Wanted]| {
        let (model_version, id) = (None, None);
        let reply =
            InferReply { model_name: "m", model_version, id, model: &model, outputs, tensors: &tensors };
        encode_infer(&reply).unwrap()
    };
    let raw = |index| Wanted { index, form: Form::Raw };
    let body = reply(&[raw(0), Wanted { index: 1, form: Form::Values }]);
    assert_eq!(body.json_length, Some(body.pieces[0].len()));
    assert_eq!(body.pieces[1].as_ptr(), tensors[0].data().as_ptr());
    assert_eq!(
        serde_json::from_slice::<Value>(&body.pieces[0]).unwrap(),
        json!({"model_name": "m", "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
            {"name": "z", "datatype": "FP32", "shape": [1], "data": [2.5]},
        ]})
    );
    let body = reply(&[Wanted { index: 1, form: Form::Shared(slice) }, raw(0)]);
    assert_eq!(body.pieces.len(), 2);
    let said: Value = serde_json::from_slice(&body.pieces[0]).unwrap();
    let place = json!({"shared_memory_region": "r", "shared_memory_offset": 9, "shared_memory_byte_size": 4});
    assert_eq!(said["outputs"][0]["parameters"], place);
    let response = encode_ok(body.json_length);
    let length: usize =
        response.headers()["inference-header-content-length"].to_str().unwrap().parse().unwrap();
    assert_eq!(length, body.pieces[0].len());
    assert_eq!(response.headers()["content-type"], "application/octet-stream");
    assert_eq!(encode_ok(None).headers()["content-type"], "application/json");
}

proptest! {
    #[test]
    fn no_sizes_and_no_bytes_make_it_panic(
        sizes in prop::collection::vec(any::<Option<u32>>(), 2),
        extents in prop::collection::vec(0u64..9, 2),
        behind in prop::collection::vec(any::<u8>(), 0..40),
        json_length in prop::option::of(0usize..400),
    ) {
        for data_type in DataType::ALL {
            let input = |index: usize| {
                let name = ["a", "b"][index];
                let parameters = match sizes[index] {
                    Some(size) => json!({"binary_data_size": size % 40}),
                    None => json!({}),
                };
                json!({"name": name, "datatype": data_type.name(), "shape": [extents[index]], "parameters": parameters})
            };
            let json = json!({"inputs": [input(0), input(1)]}).to_string();
            let body = Bytes::from([json.as_bytes(), &behind].concat());
            let request = Request { body: &body, json_length: json_length.or(Some(json.len())) };
            if let Ok(call) = parse_infer(request, &model(data_type), &Limits::default(), &NoRegions) {
                prop_assert_eq!(call.inputs.len(), 2);
            }
        }
    }
}
