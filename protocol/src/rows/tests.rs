use bytes::Bytes;
use outrigger_backend::{DataType, ModelInfo, Shape, Tensor, TensorInfo};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::call::{Form, InferCall, InferReply, Limits, Wanted};
use crate::error::{CallError, ErrorCode};

fn info(name: &str, data_type: DataType, shape: &[i64]) -> TensorInfo {
    TensorInfo { name: name.into(), data_type, shape: shape.to_vec(), symbols: vec![] }
}

fn model(inputs: &[(&str, DataType, &[i64])]) -> ModelInfo {
    let inputs = inputs.iter().map(|(name, data_type, shape)| info(name, *data_type, shape)).collect();
    ModelInfo { inputs, outputs: vec![info("y", DataType::Fp32, &[-1])] }
}

fn parse(instances: Value, model: &ModelInfo) -> Result<InferCall, CallError> {
    parse_instances(json!({"instances": instances}).to_string().as_bytes(), model, &Limits::default())
}

fn bytes(call: &InferCall) -> Vec<u8> {
    call.inputs[0].data().to_vec()
}

#[test]
fn rows_of_one_input_are_its_values() {
    let pairs = model(&[("x", DataType::Uint8, &[-1, 2])]);
    let call = parse(json!([[1, 2], [3, 4], [5, 6]]), &pairs).unwrap();
    assert_eq!((call.inputs[0].shape().extents(), bytes(&call)), (&[3, 2][..], vec![1, 2, 3, 4, 5, 6]));
    // By name, too.
    assert_eq!(parse(json!([{"x": [1, 2]}, {"x": [3, 4]}]), &pairs).unwrap().inputs[0].data().len(), 4);
    let scalars = model(&[("x", DataType::Int16, &[-1])]);
    assert_eq!(bytes(&parse(json!([1, -1]), &scalars).unwrap()), [1, 0, 255, 255]);
    // Free extents are as the first row has them.
    let free = model(&[("x", DataType::Uint8, &[-1, -1, 2])]);
    let call = parse(json!([[[1, 2], [3, 4]], [[5, 6], [7, 8]]]), &free).unwrap();
    assert_eq!(call.inputs[0].shape().extents(), [2, 2, 2]);
    let none = parse(json!([]), &free).unwrap();
    assert_eq!(none.inputs[0].shape().extents(), [0, 0, 2]);
    assert_eq!(parse(json!([[], []]), &free).unwrap_err().code, ErrorCode::InvalidTensor);
}

#[test]
fn rows_of_several_inputs_have_names() {
    let two = model(&[("a", DataType::Uint8, &[-1, 2]), ("b", DataType::Fp32, &[-1])]);
    let call = parse(json!([{"b": 0.5, "a": [1, 2]}, {"a": [3, 4], "b": 1.5}]), &two).unwrap();
    assert_eq!(bytes(&call), [1, 2, 3, 4]);
    assert_eq!(call.inputs[1].data()[..4], 0.5f32.to_le_bytes());
    for (instances, expected) in [
        (json!([{"a": [1, 2]}]), "input `b`: instance 0 does not have it"),
        (json!([{"a": [1, 2], "b": 1}, {"b": 1}]), "input `a`: instance 1 does not have it"),
        (json!([[1, 2]]), "an object with the model's inputs by name"),
        (json!([{"a": [1, 2], "b": 1, "c": 1}]), "no input `c`"),
        (json!([{"a": [1], "b": 1}]), "fewer values"),
        (json!([{"a": [1, 2, 3], "b": 1}]), "more values"),
        (json!([{"a": [1, 300], "b": 1}]), "out of the range"),
        (json!([{"a": [1, 2], "b": [1]}]), "expected a number"),
        (json!([{"a": [1, 2], "b": null}]), "null"),
        (json!({"a": 1}), "expected an array"),
    ] {
        let error = parse(instances, &two).unwrap_err();
        assert!(error.message.contains(expected), "{error}");
        assert!([ErrorCode::InvalidTensor, ErrorCode::BadRequest].contains(&error.code));
    }
    let twice = br#"{"instances":[{"a":[1,2],"a":[1,2],"b":1}]}"#;
    assert!(parse_instances(twice, &two, &Limits::default()).unwrap_err().message.contains("has it twice"));
}

#[test]
fn strings_are_texts_or_base64() {
    let texts = model(&[("x", DataType::Bytes, &[-1])]);
    let strings = |instances| {
        let call = parse(instances, &texts)?;
        Ok::<_, CallError>(call.inputs[0].iter_strings().map(<[u8]>::to_vec).collect::<Vec<_>>())
    };
    assert_eq!(strings(json!(["é", {"b64": "/wA="}, ""])).unwrap(), ["é".as_bytes(), &[0xff, 0], b""]);
    assert_eq!(strings(json!([{"x": {"b64": "/wA="}}])).unwrap(), [[0xff, 0]]);
    for wrong in [json!([{"b64": "!"}]), json!([{"b64": "/wA=", "more": 1}]), json!([1]), json!([{"q": "a"}])]
    {
        assert!(strings(wrong).is_err());
    }
    let pairs = model(&[("x", DataType::Bytes, &[-1, 2])]);
    let call = parse(json!([["a", {"b64": "Yg=="}]]), &pairs).unwrap();
    assert_eq!(call.inputs[0].iter_strings().collect::<Vec<_>>(), [b"a", b"b"]);
}

#[test]
fn what_is_no_request_is_refused() {
    let pairs = model(&[("x", DataType::Uint8, &[-1, 2])]);
    for (body, code) in [
        (&b"{}"[..], ErrorCode::BadRequest),
        (b"[]", ErrorCode::BadRequest),
        (b"{\"instances\":[[1,2]],\"instances\":[]}", ErrorCode::BadRequest),
        (b"{\"instances\":[[1,2]]", ErrorCode::MalformedJson),
        (b"{\"instances\":[[1,2]]}x", ErrorCode::MalformedJson),
        (b"{\"instances\":[[1,2],]}", ErrorCode::MalformedJson),
        (b"\xff", ErrorCode::MalformedJson),
        (b"{\"instances\":[[[[[[[[[1]]]]]]]]]}", ErrorCode::InvalidTensor),
    ] {
        let error = parse_instances(body, &pairs, &Limits::default()).unwrap_err();
        assert_eq!(error.code, code, "{error}");
    }
    let more = br#" {"signature_name":"s","parameters":{"a":[1]},"instances":[[1,2]]} "#;
    assert!(parse_instances(more, &pairs, &Limits::default()).is_ok());
    let scalar = model(&[("x", DataType::Uint8, &[])]);
    assert!(parse(json!([1]), &scalar).unwrap_err().message.contains("has no rows"));
    let limits = Limits { rank: 1, ..Limits::default() };
    assert!(parse_instances(more, &pairs, &limits).unwrap_err().message.contains("more than 1 dimensions"));
    let limits = Limits { tensor_bytes: 3, ..Limits::default() };
    let two = json!({"instances": [[1, 2], [3, 4]]}).to_string();
    assert!(
        parse_instances(two.as_bytes(), &pairs, &limits).unwrap_err().message.contains("more than 3 bytes")
    );
    let huge = model(&[("x", DataType::Fp32, &[-1, 1 << 40])]);
    assert_eq!(parse(json!([[1]]), &huge).unwrap_err().code, ErrorCode::InvalidTensor);
}

fn predictions(outputs: &[(&str, Tensor)]) -> Result<Value, CallError> {
    let infos = outputs.iter().map(|(name, tensor)| info(name, tensor.data_type(), tensor.shape().extents()));
    let model = ModelInfo { inputs: vec![], outputs: infos.collect() };
    let wanted: Vec<_> = (0..outputs.len()).map(|index| Wanted { index, form: Form::Values }).collect();
    let tensors: Vec<_> = outputs.iter().map(|(_, tensor)| tensor.clone()).collect();
    let (model_version, id) = (None, None);
    let reply =
        InferReply { model_name: "m", model_version, id, model: &model, outputs: &wanted, tensors: &tensors };
    Ok(serde_json::from_slice(&encode_predictions(&reply)?).unwrap())
}

fn singles(shape: &[i64], values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    Tensor::new(DataType::Fp32, Shape::new(shape).unwrap(), data.into()).unwrap()
}

#[test]
fn results_are_told_row_by_row() {
    let y = singles(&[2, 2], &[0.5, 1.0, -2.0, 3.0]);
    assert_eq!(predictions(&[("y", y.clone())]).unwrap(), json!({"predictions": [[0.5, 1.0], [-2.0, 3.0]]}));
    let labels = Tensor::strings(Shape::new([2]).unwrap(), &[&b"a\""[..], b"\xff"]).unwrap();
    assert_eq!(
        predictions(&[("y", y.clone()), ("label", labels)]).unwrap(),
        json!({"predictions": [{"y": [0.5, 1.0], "label": "a\""}, {"y": [-2.0, 3.0], "label": {"b64": "/w=="}}]})
    );
    let none = singles(&[0, 2], &[]);
    assert_eq!(predictions(&[("y", none)]).unwrap(), json!({"predictions": []}));
    assert_eq!(
        predictions(&[("y", singles(&[1], &[f32::NAN]))]).unwrap_err().code,
        ErrorCode::ResultNotFinite
    );
    assert_eq!(
        predictions(&[("y", y), ("z", singles(&[1], &[1.0]))]).unwrap_err().code,
        ErrorCode::ModelFailed
    );
    assert_eq!(predictions(&[("y", singles(&[], &[1.0]))]).unwrap_err().code, ErrorCode::ModelFailed);
}

proptest! {
    #[test]
    fn no_damage_makes_it_panic(at in 0usize..60, remove in 0usize..4, insert in "[\\[\\]{}\",:0-9b64a]{0,5}") {
        let mut body = r#"{"instances":[{"a":[1,2],"b":"x"},{"a":[3,4],"b":{"b64":"YQ=="}}]}"#.to_owned();
        let end = (at + remove).min(body.len());
        body.replace_range(at.min(end)..end, &insert);
        let two = model(&[("a", DataType::Uint8, &[-1, -1]), ("b", DataType::Bytes, &[-1])]);
        if parse_instances(body.as_bytes(), &two, &Limits::default()).is_ok() {
            prop_assert!(serde_json::from_str::<Value>(&body).is_ok(), "{}", body);
        }
    }

    #[test]
    fn what_is_told_is_read_back(values in prop::collection::vec(-1e6f32..1e6, 6)) {
        let told = predictions(&[("y", singles(&[3, 2], &values))]).unwrap();
        let call = parse(told["predictions"].clone(), &model(&[("x", DataType::Fp32, &[-1, 2])])).unwrap();
        let sent: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        prop_assert_eq!(call.inputs[0].data(), &Bytes::from(sent));
    }
}
