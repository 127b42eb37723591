use bytes::Bytes;
use outrigger_backend::{DataType, ModelInfo, Shape, Tensor, TensorInfo};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::encode::write_tensor;
use super::messages::{model_metadata, server_metadata};
use super::*;
use crate::call::*;
use crate::error::{CallError, ErrorCode};

fn info(name: &str, data_type: DataType, shape: &[i64]) -> TensorInfo {
    TensorInfo { name: name.into(), data_type, shape: shape.to_vec(), symbols: vec![] }
}

/// One input `x` of this type and shape, and the outputs `y` and `z`.
fn model(data_type: DataType, shape: &[i64]) -> ModelInfo {
    ModelInfo {
        inputs: vec![info("x", data_type, shape)],
        outputs: vec![info("y", DataType::Fp32, &[-1]), info("z", DataType::Int64, &[-1])],
    }
}

fn body(datatype: &str, shape: &str, data: &str) -> String {
    format!(r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}]}}"#)
}

fn parse(body: &str, model: &ModelInfo) -> Result<InferCall, CallError> {
    parse_within(body.as_bytes(), model, &Limits::default())
}

fn parse_within(body: &[u8], model: &ModelInfo, limits: &Limits) -> Result<InferCall, CallError> {
    parse_infer(Request::json(&Bytes::copy_from_slice(body)), model, limits, &NoRegions)
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// The bytes of `x` for a body with this data.
fn read(data_type: DataType, shape: &[i64], data: &str) -> Result<Vec<u8>, CallError> {
    let body = body(data_type.name(), &format!("{shape:?}"), data);
    parse(&body, &model(data_type, shape)).map(|call| call.inputs[0].data().to_vec())
}

fn code(result: Result<impl std::fmt::Debug, CallError>) -> ErrorCode {
    result.unwrap_err().code
}

#[test]
fn data_may_be_flat_or_nested() {
    let expected = floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    for data in ["[1,2,3,4,5,6]", "[[1,2,3],[4,5,6]]", " [ [ 1 , 2 , 3 ] ,\n[ 4\t, 5 , 6 ] ] "] {
        assert_eq!(read(DataType::Fp32, &[2, 3], data).unwrap(), expected, "{data}");
    }
    assert_eq!(read(DataType::Fp32, &[1, 2, 3, 1], "[[[[1],[2],[3]],[[4],[5],[6]]]]").unwrap(), expected);
    assert_eq!(read(DataType::Fp32, &[], "[7]").unwrap(), floats(&[7.0]));
    for (shape, data) in [(&[0][..], "[]"), (&[0, 3], "[]"), (&[2, 0], "[]"), (&[2, 0], "[[],[ ]]")] {
        assert_eq!(read(DataType::Fp32, shape, data).unwrap(), [0u8; 0]);
    }
}

#[test]
fn data_that_does_not_follow_the_shape_is_refused() {
    let table = [
        (&[3][..], "[1,2]", "fewer"),
        (&[3], "[1,2,3,4]", "more"),
        (&[3], "[]", "fewer"),
        (&[0], "[1]", "more"),
        (&[3], "[[1,2,3]]", "expected a number"),
        (&[3], "5", "expected an array"),
        (&[], "5", "expected an array"),
        (&[2, 2], "[1,2,3]", "fewer"),
        (&[2, 2], "[[1,2],[3]]", "fewer"),
        (&[2, 2], "[[1,2,3],[4]]", "more"),
        (&[2, 2], "[[1,2]]", "fewer"),
        (&[2, 2], "[[1,2],[3,4],[5,6]]", "more"),
        (&[2, 2], "[[1,2],3,4]", "expected an array"),
        (&[2, 2], "[[[1,2],[3,4]]]", "expected a number"),
        (&[2, 2], "[[1,2],[3,[4]]]", "expected a number"),
        (&[2, 2], "[1,2,[3,4]]", "expected a number"),
    ];
    for (shape, data, text) in table {
        let error = read(DataType::Fp32, shape, data).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidTensor, "{shape:?} {data}: {error}");
        assert!(error.message.contains(text), "{shape:?} {data}: {error}");
        assert!(error.message.starts_with("input `x`: "), "{error}");
    }
}

#[test]
fn numbers_that_are_no_json_are_malformed() {
    for data in [
        "NaN",
        "Infinity",
        "-Infinity",
        "-NaN",
        "nan",
        "+1",
        ".5",
        "1.",
        "-",
        "01",
        "-01",
        "1e",
        "1e+",
        "0x1",
        "1_0",
        "1 2",
        "1,",
        ",1",
        "1,,2",
        "nul",
        "tru",
        "'1'",
        "",
    ] {
        let data = format!("[{data}]");
        let expected = if data == "[]" { ErrorCode::InvalidTensor } else { ErrorCode::MalformedJson };
        for data_type in [DataType::Fp32, DataType::Int32] {
            let error = read(data_type, &[2], &data).unwrap_err();
            assert_eq!(error.code, expected, "{data}: {error}");
        }
    }
    assert!(read(DataType::Fp32, &[1], "[NaN]").unwrap_err().message.contains("NaN and infinities"));
}

#[test]
fn values_of_another_kind_are_refused() {
    for data_type in [DataType::Fp32, DataType::Fp64, DataType::Int8, DataType::Uint64] {
        for data in [r#"["1"]"#, "[true]", "[null]", "[{}]", "[[1]]"] {
            assert_eq!(code(read(data_type, &[1], data)), ErrorCode::InvalidTensor, "{data_type} {data}");
        }
    }
    for data in ["[1]", "[0]", r#"["true"]"#, "[null]", "[[true]]"] {
        assert_eq!(code(read(DataType::Bool, &[1], data)), ErrorCode::InvalidTensor, "{data}");
    }
    assert!(read(DataType::Fp32, &[1], "[null]").unwrap_err().message.contains("null"));
    for data in ["[1.0]", "[1e2]", "[1E0]", "[-0.0]"] {
        let error = read(DataType::Int32, &[1], data).unwrap_err();
        assert!(error.message.contains("expected an integer"), "{error}");
    }
}

#[test]
fn booleans() {
    assert_eq!(read(DataType::Bool, &[2, 2], "[[true, false],[false,true]]").unwrap(), [1, 0, 0, 1]);
}

#[test]
fn integers_reach_from_the_smallest_to_the_largest() {
    let table: [(DataType, i128, i128); 8] = [
        (DataType::Int8, i8::MIN.into(), i8::MAX.into()),
        (DataType::Int16, i16::MIN.into(), i16::MAX.into()),
        (DataType::Int32, i32::MIN.into(), i32::MAX.into()),
        (DataType::Int64, i64::MIN.into(), i64::MAX.into()),
        (DataType::Uint8, 0, u8::MAX.into()),
        (DataType::Uint16, 0, u16::MAX.into()),
        (DataType::Uint32, 0, u32::MAX.into()),
        (DataType::Uint64, 0, u64::MAX.into()),
    ];
    for (data_type, min, max) in table {
        let size = data_type.size().unwrap();
        let mut expected = min.to_le_bytes()[..size].to_vec();
        expected.extend_from_slice(&max.to_le_bytes()[..size]);
        // The test's own bytes are little-endian; so is every machine it runs on.
        assert_eq!(read(data_type, &[2], &format!("[{min},{max}]")).unwrap(), expected, "{data_type}");
        for value in [min - 1, max + 1, i128::MAX, i128::MIN] {
            let error = read(data_type, &[1], &format!("[{value}]")).unwrap_err();
            assert!(error.message.contains("out of the range"), "{data_type} {value}: {error}");
        }
        assert_eq!(read(data_type, &[1], "[-0]").unwrap(), vec![0; size]);
    }
}

#[test]
fn floats_are_the_nearest() {
    let halfway = "1.000000059604644775390625"; // exactly between 1 and the next single
    let above = "1.0000000596046447753906250000000000000001";
    let texts = [
        "0",
        "-0",
        "0.0",
        "1",
        "-1.5",
        "3.14159274",
        "0.1",
        "1e-45",
        "7e-46",
        "1.4e-45",
        "1e-38",
        "3.4028235e38",
        "3.4028234663852886e38",
        "1e22",
        "1e23",
        "123456789012345678901234567890",
        "0.000000000000000000000001",
        "9007199254740993",
        "16777217",
        "16777219",
        "33554435e-1",
        "1E5",
        "1e+5",
        "1e-5",
        "0e99999999999",
        "1e-99999999999",
        "2.2250738585072014e-308",
        "4.9e-324",
        "0.7134567890123456",
        halfway,
        above,
    ];
    for text in texts {
        let single: f32 = text.parse().unwrap();
        let double: f64 = text.parse().unwrap();
        let data = format!("[{text}]");
        if single.is_finite() {
            assert_eq!(read(DataType::Fp32, &[1], &data).unwrap(), single.to_ne_bytes(), "{text}");
        }
        assert_eq!(read(DataType::Fp64, &[1], &data).unwrap(), double.to_ne_bytes(), "{text}");
    }
}

#[test]
fn floats_that_overflow_are_refused() {
    for (data_type, text) in [
        (DataType::Fp32, "1e39"),
        (DataType::Fp32, "-3.4028236e38"),
        (DataType::Fp32, "1e999999999999"),
        (DataType::Fp64, "1e309"),
        (DataType::Fp64, "-1e99999"),
    ] {
        let error = read(data_type, &[1], &format!("[{text}]")).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidTensor);
        assert!(error.message.contains("out of the range"), "{error}");
    }
}

#[test]
fn shapes_are_held_against_the_models() {
    let fits = |wanted: &[i64], shape: &str, data: &str| {
        parse(&body("FP32", shape, data), &model(DataType::Fp32, wanted)).map(drop)
    };
    assert!(fits(&[-1, 2], "[1,2]", "[1,2]").is_ok());
    assert!(fits(&[-1, 2], "[2,2]", "[1,2,3,4]").is_ok());
    assert!(fits(&[-1, 2], "[0,2]", "[]").is_ok());
    for (wanted, shape) in
        [(&[-1, 2][..], "[1,3]"), (&[-1, 2], "[2]"), (&[2], "[1,2]"), (&[], "[1]"), (&[1], "[]")]
    {
        let error = fits(wanted, shape, "[1,2,3]").unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidTensor);
        assert!(error.message.contains(&format!("the model takes {wanted:?}")), "{error}");
    }
    for shape in ["[-1,2]", "[1.0,2]", "[\"1\",2]", "[null]", "5", "{}", "[true]", "[99999999999999999999]"] {
        assert_eq!(code(fits(&[-1, 2], shape, "[1,2]")), ErrorCode::BadRequest, "{shape}");
    }
    let overflow = "[9223372036854775807,9223372036854775807]";
    assert_eq!(code(fits(&[-1, -1], overflow, "[1]")), ErrorCode::InvalidTensor);
}

#[test]
fn free_extents_of_one_name_are_equal() {
    let mut model = model(DataType::Uint8, &[-1, -1]);
    model.inputs[0].symbols = vec!["batch".into(), String::new()];
    model.inputs.push(TensorInfo { symbols: vec!["batch".into()], ..info("w", DataType::Uint8, &[-1]) });
    let body = |w: &str| {
        format!(
            r#"{{"inputs":[{{"name":"x","shape":[2,1],"datatype":"UINT8","data":[1,2]}},
            {{"name":"w","shape":[{}],"datatype":"UINT8","data":{w}}}]}}"#,
            w.split(',').count()
        )
    };
    assert!(parse(&body("[1,2]"), &model).is_ok());
    let error = parse(&body("[1,2,3]"), &model).unwrap_err();
    assert_eq!(error.message, "input `w`: its `batch` is 3, and 2 elsewhere in the call");
}

#[test]
fn datatypes_are_the_models() {
    let error = parse(&body("FP64", "[1]", "[1]"), &model(DataType::Fp32, &[1])).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidTensor);
    assert_eq!(error.message, "input `x`: it has datatype `FP64`, the model takes FP32");
    assert_eq!(
        code(parse(&body("fp32", "[1]", "[1]"), &model(DataType::Fp32, &[1]))),
        ErrorCode::InvalidTensor
    );
}

#[test]
fn halves_are_numbers() {
    let bits = |data_type: DataType, number: &str| {
        let body = body(data_type.name(), "[1]", &format!("[{number}]"));
        let call = parse(&body, &model(data_type, &[1]))?;
        Ok::<_, CallError>(u16::from_ne_bytes(call.inputs[0].data()[..].try_into().unwrap()))
    };
    // The bit patterns are those of IEEE 754 binary16 and of the upper half of binary32.
    for (data_type, number, expected) in [
        (DataType::Fp16, "1", 0x3c00),
        (DataType::Fp16, "-2", 0xc000),
        (DataType::Fp16, "-0.0", 0x8000),
        (DataType::Fp16, "0.1", 0x2e66),
        (DataType::Fp16, "2049", 0x6800), // in the middle: the even one
        (DataType::Fp16, "2051", 0x6802),
        (DataType::Fp16, "65519.99", 0x7bff),
        (DataType::Fp16, "6.103515625e-05", 0x0400), // the smallest that is normal
        (DataType::Fp16, "6.1e-05", 0x03ff),
        (DataType::Fp16, "2.99e-8", 0x0001),
        (DataType::Fp16, "2.9802322387695312e-8", 0x0000),
        (DataType::Fp16, "1e-300", 0x0000),
        (DataType::Bf16, "1", 0x3f80),
        (DataType::Bf16, "3.14159", 0x4049),
        (DataType::Bf16, "-3.3895314e38", 0xff7f),
        (DataType::Bf16, "1e-40", 0x0001),
    ] {
        assert_eq!(bits(data_type, number).unwrap(), expected, "{data_type} {number}");
    }
    for (data_type, number) in
        [(DataType::Fp16, "65520"), (DataType::Fp16, "-1e300"), (DataType::Bf16, "3.4e38")]
    {
        assert_eq!(code(bits(data_type, number)), ErrorCode::InvalidTensor, "{data_type} {number}");
    }
}

#[test]
fn inputs_come_back_in_the_models_order() {
    let mut model = model(DataType::Uint8, &[1]);
    model.inputs.push(info("w", DataType::Int8, &[1]));
    let w = r#"{"data":[-2],"datatype":"INT8","name":"w","shape":[1],"parameters":{"a":[{}]}}"#;
    let x = r#"{"data":[1],"shape":[1],"datatype":"UINT8","name":"x","later":null}"#;
    for inputs in [format!("{x},{w}"), format!("{w},{x}")] {
        let call = parse(&format!(r#"{{"inputs":[{inputs}]}}"#), &model).unwrap();
        let bytes: Vec<_> = call.inputs.iter().map(|tensor| tensor.data()[0]).collect();
        assert_eq!(bytes, [1, 0xfe]);
    }
    let table = [
        (x.to_string(), "input `w`: it is missing"),
        (String::new(), "input `x`: it is missing"),
        (format!("{x},{x}"), "input `x`: it is given twice"),
        (x.replace("\"x\"", "\"q\""), "the model has no input `q`; it has `x`, `w`"),
    ];
    for (inputs, text) in table {
        let error = parse(&format!(r#"{{"inputs":[{inputs}]}}"#), &model).unwrap_err();
        assert_eq!((error.code, &*error.message), (ErrorCode::InvalidTensor, text));
    }
}

#[test]
fn members_are_the_protocols() {
    let model = model(DataType::Uint8, &[1]);
    let x = r#"{"name":"x","shape":[1],"datatype":"UINT8","data":[1]}"#;
    let table = [
        ("{}".to_string(), "the body has no `inputs`"),
        ("[]".into(), "the body is wrong at byte 0: expected an object"),
        ("null".into(), "the body is wrong at byte 0: null has no place here"),
        (r#"{"inputs":{}}"#.into(), "`inputs` is wrong at byte 10: expected an array"),
        (r#"{"inputs":[1]}"#.into(), "an input is wrong at byte 11: expected an object"),
        (r#"{"inputs":[{}]}"#.into(), "an input has no `name`"),
        (r#"{"inputs":[{"name":"x"}]}"#.into(), "input `x` has no `datatype`"),
        (r#"{"inputs":[{"name":"x","datatype":"UINT8"}]}"#.into(), "input `x` has no `shape`"),
        (r#"{"inputs":[{"name":"x","datatype":"UINT8","shape":[1]}]}"#.into(), "input `x` has no `data`"),
        (r#"{"inputs":[{"name":"x","name":"x"}]}"#.into(), "`name` is given twice"),
        (format!(r#"{{"inputs":[{x}],"inputs":[{x}]}}"#), "`inputs` is given twice"),
        (format!(r#"{{"id":"a","id":"b","inputs":[{x}]}}"#), "`id` is given twice"),
        (
            format!(r#"{{"parameters":1,"inputs":[{x}]}}"#),
            "`parameters` is wrong at byte 14: expected an object",
        ),
        (format!(r#"{{"id":7,"inputs":[{x}]}}"#), "`id` is wrong at byte 6: expected a string"),
        (format!(r#"{{"inputs":[{x}],"outputs":[{{}}]}}"#), "an output has no `name`"),
        (format!(r#"{{"id":"{}","inputs":[{x}]}}"#, "i".repeat(257)), "`id` has 257 bytes, the limit is 256"),
    ];
    for (body, text) in table {
        let error = parse(&body, &model).unwrap_err();
        assert_eq!((error.code, &*error.message), (ErrorCode::BadRequest, text), "{body}");
    }
    let body =
        format!(r#" {{"id":"\u00e9\"","parameters":{{"a":[1,true,null,"x"]}},"more":{{}},"inputs":[{x}]}} "#);
    assert_eq!(parse(&body, &model).unwrap().id.as_deref(), Some("é\""));
}

#[test]
fn outputs_are_those_asked_for() {
    let model = model(DataType::Uint8, &[1]);
    let ask = |outputs: &str| {
        let x = r#"{"name":"x","shape":[1],"datatype":"UINT8","data":[1]}"#;
        parse(&format!(r#"{{"inputs":[{x}]{outputs}}}"#), &model).map(|call| call.indices())
    };
    assert_eq!(ask("").unwrap(), [0, 1]);
    assert_eq!(ask(r#","outputs":[]"#).unwrap(), [0, 1]);
    assert_eq!(ask(r#","outputs":[{"name":"z","parameters":{"binary_data":false}}]"#).unwrap(), [1]);
    assert_eq!(ask(r#","outputs":[{"name":"z"},{"name":"y"}]"#).unwrap(), [1, 0]);
    let error = ask(r#","outputs":[{"name":"q"}]"#).unwrap_err();
    assert_eq!(error.message, "the model has no output `q`; it has `y`, `z`");
    let error = ask(r#","outputs":[{"name":"y"},{"name":"y"}]"#).unwrap_err();
    assert_eq!(error.message, "output `y` is asked for twice");
}

#[test]
fn bodies_that_are_no_json_are_malformed() {
    let whole = body("FP32", "[2]", "[1.5,2]");
    let model = model(DataType::Fp32, &[2]);
    assert!(parse(&whole, &model).is_ok());
    for end in 0..whole.len() {
        assert_eq!(code(parse(&whole[..end], &model)), ErrorCode::MalformedJson, "{}", &whole[..end]);
    }
    for text in [
        "x",
        "{'inputs':[]}",
        "{inputs:[]}",
        r#"{"inputs" []}"#,
        r#"{"a":1 "inputs":[]}"#,
        r#"{"a":1,}"#,
        r#"{"a":"\q"}"#,
        "{\"a\":\"\n\"}",
        r#"{"a":[1,]}"#,
        r#"{"a":nil}"#,
        "\u{feff}{}",
        r#"{"a":"\ud800"}"#,
        r#"{"a":NaN}"#,
        r#"{"a":01}"#,
    ] {
        assert_eq!(code(parse(text, &model)), ErrorCode::MalformedJson, "{text}");
    }
    assert_eq!(code(parse(&format!("{whole}x"), &model)), ErrorCode::MalformedJson);
    for data in ["[1.5,2,]", "[1.5,]", "[,]", "[1.5,,2]"] {
        let text = body("FP32", "[2]", data);
        assert_eq!(code(parse(&text, &model)), ErrorCode::MalformedJson, "{text}");
    }
    assert_eq!(code(parse(&body("FP32", "[2]", "[1.5,2,3]"), &model)), ErrorCode::InvalidTensor);
    assert_eq!(code(parse_within(b"{\"\xff\":1}", &model, &Limits::default())), ErrorCode::MalformedJson);
}

#[test]
fn limits_hold_before_memory_is_taken() {
    let huge = body("FP32", "[1000000000000]", "[1]");
    let limits = Limits { elements: usize::MAX, tensor_bytes: usize::MAX, ..Limits::default() };
    let free = model(DataType::Fp32, &[-1]);
    let error = parse_within(huge.as_bytes(), &free, &limits).unwrap_err();
    assert!(error.message.contains("fewer values"), "{error}");

    let two = body("FP32", "[2]", "[1,2]");
    let table = [
        (Limits { elements: 1, ..limits }, "input `x`: it has 2 elements, the limit is 1"),
        (
            Limits { tensor_bytes: 7, ..limits },
            "input `x`: with it the call has more than 7 bytes of tensors, the limit",
        ),
        (Limits { rank: 0, ..limits }, "a shape has more than 0 dimensions, the limit"),
    ];
    for (limits, text) in table {
        assert_eq!(parse_within(two.as_bytes(), &free, &limits).unwrap_err().message, text);
    }
    let exact = Limits { elements: 2, tensor_bytes: 8, rank: 1, ..limits };
    assert!(parse_within(two.as_bytes(), &free, &exact).is_ok());

    let rank = format!("[{}1]", "1,".repeat(32));
    assert_eq!(code(parse(&body("FP32", &rank, "[1]"), &free)), ErrorCode::InvalidTensor);
}

#[test]
fn deep_nesting_is_refused() {
    let model = model(DataType::Fp32, &[1]);
    let x = r#"{"name":"x","shape":[1],"datatype":"FP32","data":[1]}"#;
    let nested =
        |depth: usize| format!(r#"{{"a":{}{},"inputs":[{x}]}}"#, "[".repeat(depth), "]".repeat(depth));
    // The body's own object counts.
    assert!(parse(&nested(31), &model).is_ok());
    let error = parse(&nested(32), &model).unwrap_err();
    assert!(error.message.contains("nested too deeply"), "{error}");
    let limits = Limits { depth: usize::MAX, ..Limits::default() };
    assert_eq!(code(parse_within(nested(100_000).as_bytes(), &model, &limits)), ErrorCode::MalformedJson);
    // In data the shape says how deep it goes, whether it comes before that or after.
    let limits = Limits { depth: 4, ..Limits::default() };
    let (open, close) = ("[".repeat(32), "]".repeat(32));
    let deep = self::model(DataType::Fp32, &[1; 32]);
    let data = format!(
        r#"{{"inputs":[{{"data":{open}1{close},"name":"x","datatype":"FP32","shape":{:?}}}]}}"#,
        [1; 32]
    );
    assert!(parse_within(data.as_bytes(), &deep, &limits).is_ok());
    let data = format!("{{\"data\":{}", "[".repeat(100_000));
    assert_eq!(code(parse(&format!("{{\"inputs\":[{data}"), &model)), ErrorCode::MalformedJson);
    assert_eq!(code(read(DataType::Fp32, &[1], &"[".repeat(100_000))), ErrorCode::InvalidTensor);
}

#[test]
fn texts_from_outside_are_cut_short() {
    let long = "é".repeat(10_000);
    let body = body("FP32", "[1]", "[1]").replace("\"x\"", &format!("\"{long}\""));
    let error = parse(&body, &model(DataType::Fp32, &[1])).unwrap_err();
    assert!(error.message.len() < 300, "{}", error.message.len());
}

fn reply(model: &ModelInfo, outputs: &[usize], tensors: &[Tensor]) -> Result<Value, CallError> {
    let wanted: Vec<_> = outputs.iter().map(|index| Wanted { index: *index, form: Form::Values }).collect();
    let (model_version, id) = (Some("1"), Some("i"));
    let reply = InferReply { model_name: "m\"", model_version, id, model, outputs: &wanted, tensors };
    encode_infer(&reply).map(|body| {
        assert_eq!((body.pieces.len(), body.json_length), (1, None));
        serde_json::from_slice(&body.pieces[0]).unwrap()
    })
}

#[test]
fn results_are_written_flat() {
    let model = model(DataType::Fp32, &[1]);
    let y = Tensor::new(DataType::Fp32, Shape::new([2]).unwrap(), floats(&[0.1, -0.5]).into()).unwrap();
    let z = Tensor::new(DataType::Int64, Shape::new([1, 1]).unwrap(), (-5i64).to_ne_bytes().to_vec().into());
    assert_eq!(
        reply(&model, &[1, 0], &[z.unwrap(), y.clone()]).unwrap(),
        json!({
            "model_name": "m\"", "model_version": "1", "id": "i",
            "outputs": [
                { "name": "z", "datatype": "INT64", "shape": [1, 1], "data": [-5] },
                { "name": "y", "datatype": "FP32", "shape": [2], "data": [0.1, -0.5] },
            ],
        })
    );
    assert_eq!(code(reply(&model, &[0, 1], std::slice::from_ref(&y))), ErrorCode::Internal);
    assert_eq!(code(reply(&model, &[2], &[y])), ErrorCode::Internal);
}

#[test]
fn results_that_json_cannot_say_are_errors() {
    let model = model(DataType::Fp32, &[1]);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let single =
            Tensor::new(DataType::Fp32, Shape::new([2]).unwrap(), floats(&[1.0, value]).into()).unwrap();
        let error = reply(&model, &[0], &[single]).unwrap_err();
        assert_eq!(error.code, ErrorCode::ResultNotFinite);
        assert!(error.message.contains("output `y`"), "{error}");
        let double = f64::from(value).to_ne_bytes().to_vec();
        let double = Tensor::new(DataType::Fp64, Shape::new([1]).unwrap(), double.into()).unwrap();
        assert_eq!(code(reply(&model, &[0], &[double])), ErrorCode::ResultNotFinite);
    }
    for (data_type, infinite) in [(DataType::Fp16, 0x7c00u16), (DataType::Bf16, 0xff80)] {
        let data = infinite.to_ne_bytes().to_vec();
        let half = Tensor::new(data_type, Shape::new([1]).unwrap(), data.into()).unwrap();
        assert_eq!(code(reply(&model, &[0], &[half])), ErrorCode::ResultNotFinite);
    }
    let strings = Tensor::strings(Shape::new([1]).unwrap(), &[b"\xff"]).unwrap();
    assert_eq!(code(reply(&model, &[0], &[strings])), ErrorCode::UnsupportedDatatype);
}

#[test]
fn errors_have_one_member() {
    let response = encode_error(&CallError::new(ErrorCode::ModelNotFound, "no model `m`"));
    assert_eq!(response.status().as_u16(), 404);
    assert_eq!(&response.body()[..], br#"{"error": "no model `m`"}"#);
    assert_eq!(response.headers()["outrigger-code"], "model_not_found");
    assert_eq!(response.headers()["outrigger-retryable"], "false");
    assert!(!response.headers().contains_key("x-ms-run-function-failed"));
}

#[test]
fn metadata_is_the_protocols() {
    let parsed = |body: Bytes| serde_json::from_slice::<Value>(&body).unwrap();
    assert_eq!(
        json!(model_metadata("m", &["1", "2"], "onnx_onnxruntime", &model(DataType::Uint8, &[-1, 3]))),
        json!({
            "name": "m", "versions": ["1", "2"], "platform": "onnx_onnxruntime",
            "inputs": [{ "name": "x", "datatype": "UINT8", "shape": [-1, 3] }],
            "outputs": [
                { "name": "y", "datatype": "FP32", "shape": [-1] },
                { "name": "z", "datatype": "INT64", "shape": [-1] },
            ],
        })
    );
    assert_eq!(json!(server_metadata(false))["name"], "outrigger");
    assert_eq!(server_metadata(true).extensions.len(), server_metadata(false).extensions.len() + 1);
    assert_eq!(parsed(server_live(true)), json!({ "live": true }));
    assert_eq!(parsed(server_ready(false)), json!({ "ready": false }));
    assert_eq!(parsed(model_ready("m", true)), json!({ "name": "m", "ready": true }));
}

/// Tensors of every type that is carried, with finite values.
fn tensors() -> impl Strategy<Value = Tensor> {
    use DataType::*;
    let types = prop::sample::select(vec![
        Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Bf16, Fp32, Fp64,
    ]);
    let shapes = prop::collection::vec(0i64..4, 0..4);
    (types, shapes, prop::collection::vec(any::<u64>(), 27)).prop_map(|(data_type, shape, bits)| {
        let shape = Shape::new(shape).unwrap();
        let mut data = Vec::new();
        for bits in bits.into_iter().take(shape.elements()) {
            match data_type {
                Bool => data.push((bits & 1) as u8),
                // With an exponent that is not the last one, which would be infinite or NaN.
                Fp16 => data.extend((bits as u16 & 0xfbff).to_ne_bytes()),
                Bf16 => data.extend((bits as u16 & 0xff7f).to_ne_bytes()),
                Fp32 => {
                    let value = f32::from_bits(bits as u32);
                    data.extend(if value.is_finite() { value } else { -0.0 }.to_ne_bytes());
                }
                Fp64 => {
                    let value = f64::from_bits(bits);
                    data.extend(if value.is_finite() { value } else { -0.0 }.to_ne_bytes());
                }
                other => data.extend(&bits.to_le_bytes()[..other.size().unwrap()]),
            }
        }
        Tensor::new(data_type, shape, data.into()).unwrap()
    })
}

/// `values`, a flat list, nested as `shape` says.
fn nest<'a>(values: &mut impl Iterator<Item = &'a str>, shape: &[i64]) -> String {
    match shape {
        [] => values.next().unwrap().into(),
        [extent, inner @ ..] => {
            let items: Vec<_> = (0..*extent).map(|_| nest(values, inner)).collect();
            format!("[{}]", items.join(","))
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(tensor in tensors(), nested: bool) {
        let mut written = Vec::new();
        write_tensor(&mut written, "x", &tensor, &Form::Values).unwrap();
        let mut text = String::from_utf8(written).unwrap();
        let extents = tensor.shape().extents();
        if nested && !extents.is_empty() {
            let (before, data) = text.split_once("\"data\":[").unwrap();
            let data = nest(&mut data.trim_end_matches("]}").split(','), extents);
            text = format!("{before}\"data\":{data}}}");
        }
        let free = vec![-1; extents.len()];
        let call = parse(&format!(r#"{{"inputs":[{text}]}}"#), &model(tensor.data_type(), &free)).unwrap();
        prop_assert_eq!(&call.inputs, &[tensor]);
    }

    #[test]
    fn numbers_are_read_as_the_standard_library_reads_them(
        text in r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?",
    ) {
        let data = format!("[{text}]");
        let (single, double): (f32, f64) = (text.parse().unwrap(), text.parse().unwrap());
        let expected = single.is_finite().then(|| single.to_ne_bytes().to_vec());
        prop_assert_eq!(read(DataType::Fp32, &[1], &data).ok(), expected);
        let expected = double.is_finite().then(|| double.to_ne_bytes().to_vec());
        prop_assert_eq!(read(DataType::Fp64, &[1], &data).ok(), expected);
        let expected = text.parse::<i64>().ok().map(|value| value.to_ne_bytes().to_vec());
        prop_assert_eq!(read(DataType::Int64, &[1], &data).ok(), expected);
    }

    #[test]
    fn near_the_middle_between_two_singles(bits in 0x0080_0000u32..0x7f00_0000, digits in 1usize..20) {
        let value = f32::from_bits(bits);
        let middle = (f64::from(value) + f64::from(f32::from_bits(bits + 1))) / 2.0;
        let text = format!("{middle:.digits$e}");
        let expected: f32 = text.parse().unwrap();
        prop_assert_eq!(read(DataType::Fp32, &[1], &format!("[{text}]")).unwrap(), expected.to_ne_bytes());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_within(&bytes, &model(DataType::Fp32, &[-1, 2]), &Limits::default());
    }

    #[test]
    fn no_damage_to_a_body_makes_it_panic(
        at in 0usize..140,
        remove in 0usize..6,
        insert in prop::collection::vec(prop::sample::select(b"{}[]\",:\\-0159.eE ntfNI\xc3\xa9".to_vec()), 0..6),
    ) {
        let model = model(DataType::Fp32, &[-1, 2]);
        let whole = r#"{"id":"a","parameters":{"k":[1,null,{}]},"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2.5],[-3e2,4]]}],"outputs":[{"name":"y"}]}"#;
        let mut bytes = whole.as_bytes().to_vec();
        let end = (at + remove).min(bytes.len());
        bytes.splice(at.min(end)..end, insert);
        let result = parse_within(&bytes, &model, &Limits::default());
        // What is accepted is JSON for everybody else, too.
        if result.is_ok() {
            prop_assert!(serde_json::from_slice::<Value>(&bytes).is_ok(), "{}", String::from_utf8_lossy(&bytes));
        }
    }
}
