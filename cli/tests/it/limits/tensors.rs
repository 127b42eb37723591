//! What a call says of its tensors, by every contract that has them.

use std::collections::HashMap;

use outrigger_backend::DataType;
use outrigger_testkit::{ReplicaProcess, onnx};
use prost::Message;
use serde_json::{Value, json};

use super::requests::{PREDICT, models, models_still_serve, post};
use super::resident;
use crate::grpc::{Grpc, INFER, InferRequest, Input, Output, StreamReply, call, framed};
use crate::support::{infer, outcome, outrigger};

pub(super) fn tensor(datatype: &str, shape: Value, data: Value) -> Value {
    json!({"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": data}]})
}

/// Status and code of a call with this JSON.
async fn json_call(replica: &ReplicaProcess, model: &str, body: impl ToString) -> (u16, String) {
    let (status, code, _) = outcome(infer(replica, model, body.to_string()).send().await.unwrap()).await;
    (status, code)
}

async fn is(replica: &ReplicaProcess, model: &str, body: impl ToString, expected: (u16, &str)) {
    let (status, code) = json_call(replica, model, body.to_string()).await;
    let mut text = body.to_string();
    text.truncate(300);
    assert_eq!((status, code.as_str()), expected, "{text}");
}

/// `PredictRequest`, as far as it is needed.
#[derive(Clone, PartialEq, Message)]
struct Predict {
    #[prost(message, optional, tag = "1")]
    model: Option<Named>,
    #[prost(map = "string, message", tag = "2")]
    inputs: HashMap<String, Proto>,
}

#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

/// `TensorProto`.
#[derive(Clone, PartialEq, Message)]
struct Proto {
    #[prost(int32, tag = "1")]
    data_type: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Dimensions>,
    #[prost(bytes = "vec", tag = "4")]
    content: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Dimensions {
    #[prost(message, repeated, tag = "2")]
    all: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
struct Dimension {
    #[prost(int64, tag = "1")]
    size: i64,
}

impl Predict {
    /// What says the same as a call with one tensor of numbers; nothing for others.
    fn of(call: &InferRequest) -> Option<Self> {
        let ([input], [raw], []) = (&*call.inputs, &*call.raw, &*call.outputs) else { return None };
        let data_type = match input.datatype.as_str() {
            "FP32" => 1,
            "UINT8" => 4,
            _ => return None,
        };
        let all = input.shape.iter().map(|size| Dimension { size: *size }).collect();
        let tensor = Proto { data_type, shape: Some(Dimensions { all }), content: raw.clone() };
        let model = Some(Named { name: call.model_name.clone() });
        Some(Self { model, inputs: [(input.name.clone(), tensor)].into() })
    }
}

/// What is said of this message, alone, in a stream, and as TensorFlow Serving's clients would send it: the code, empty for none.
async fn grpc_is(replica: &ReplicaProcess, request: &InferRequest, expected: &str) {
    let mut grpc = Grpc::connect(replica).await;
    let frame = framed(&request.encode_to_vec());
    let told = grpc.ask(INFER, &[], frame.clone()).await;
    let status = if expected.is_empty() { 0 } else { 3 };
    assert_eq!(told.outcome(), (status, expected));
    let told = grpc.ask(crate::grpc::STREAM, &[], frame).await;
    assert_eq!((told.status, told.messages.len()), (0, 1), "a stream goes on: {told:?}");
    assert_eq!(StreamReply::of(&told.messages[0]).1, expected);
    if let Some(predict) = Predict::of(request) {
        let told = grpc.ask(PREDICT, &[], framed(&predict.encode_to_vec())).await;
        assert_eq!(told.outcome(), (status, expected), "{:?}", predict.inputs["x"].shape);
    }
}

const INVALID: (u16, &str) = (400, "invalid_tensor");

pub(super) async fn bytes() {
    let replica = models().args(["--limits-answer", "1KiB"]).start();
    for (rows, expected) in [(128, (200, "")), (129, INVALID)] {
        is(&replica, "f", tensor("FP32", json!([rows, 2]), json!(vec![1; rows * 2])), expected).await;
        let (status, code) =
            post(&replica, "/vertex/predict", json!({"instances": vec![[1, 2]; rows]}).to_string()).await;
        // What is served at `/vertex/predict` is `score.model`.
        assert_eq!((status, code.as_str()), expected, "{rows}");
        let request = call("f", "", "FP32", &[rows as i64, 2], vec![0; rows * 8]);
        grpc_is(&replica, &request, expected.1).await;
    }
    // Strings, each with the four bytes of its length.
    for (length, expected) in [(1020, (200, "")), (1021, INVALID)] {
        is(&replica, "s", tensor("BYTES", json!([1, 1]), json!(["y".repeat(length)])), expected).await;
    }
    models_still_serve(&replica).await;
}

pub(super) async fn elements() {
    let replica = models().args(["--limits-elements", "10"]).start();
    for (rows, expected) in [(5, (200, "")), (6, INVALID)] {
        is(&replica, "f", tensor("FP32", json!([rows, 2]), json!(vec![1; rows * 2])), expected).await;
        is(&replica, "s", tensor("BYTES", json!([rows, 2]), json!(vec![""; rows * 2])), expected).await;
        let body = json!({"instances": vec![[1, 2]; rows]}).to_string();
        let (status, code) = post(&replica, "/invocations", body).await;
        assert_eq!((status, code.as_str()), expected, "{rows}");
        grpc_is(&replica, &call("b", "", "UINT8", &[rows as i64, 2], vec![0; rows * 2]), expected.1).await;
    }
    models_still_serve(&replica).await;
}

/// The same as [`is`] for a call whose tensor lies behind its JSON.
async fn binary_is(
    replica: &ReplicaProcess,
    model: &str,
    datatype: &str,
    shape: &[i64],
    raw: &[u8],
    expected: (u16, &str),
) {
    let parameters = json!({"binary_data_size": raw.len()});
    let x = json!({"name": "x", "shape": shape, "datatype": datatype, "parameters": parameters});
    let json = json!({"inputs": [x]}).to_string();
    let request = infer(replica, model, [json.as_bytes(), raw].concat());
    let request = request.header("inference-header-content-length", json.len().to_string());
    let (status, code, body) = outcome(request.send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), expected, "{model} {shape:?}: {body}");
}

pub(super) async fn product() {
    // As many as can be allowed, so that nothing else refuses what comes out small.
    let replica = models().args(["--limits-elements", "1073741824", "--limits-answer", "1GiB"]).start();
    let before = resident(&replica);
    // What is said of shapes is compared with what there is of data: where numbers wrap around, so many elements are as good as these.
    for (shape, elements) in [
        // A product of more than 64 bits: 2^66, 2^64, 2^64 + 2 and nearly 2^126.
        ([1i64 << 33, 1 << 33], 0),
        ([1 << 62, 4], 0),
        ([3, 0x5555_5555_5555_5556], 2),
        ([i64::MAX, i64::MAX], 1),
        // As many bytes of 32 bits each: 2^63, 2^64, and 2^65 + 8.
        ([1 << 61, 1], 0),
        ([1 << 62, 1], 0),
        ([(1 << 62) + 1, 2], 2),
        // And far more than there is.
        ([1 << 40, 1 << 20], 1),
        ([1 << 25, 1 << 10], 1),
    ] {
        for (model, datatype, bytes, element) in
            [("f", "FP32", 4, json!(1)), ("b", "UINT8", 1, json!(1)), ("s", "BYTES", 4, json!(""))]
        {
            is(&replica, model, tensor(datatype, json!(shape), json!(vec![element; elements])), INVALID)
                .await;
            // A string without characters is the length that it has: 32 bits of 0.
            let raw = vec![0; elements * bytes];
            binary_is(&replica, model, datatype, &shape, &raw, INVALID).await;
            grpc_is(&replica, &call(model, "", datatype, &shape, raw), "invalid_tensor").await;
        }
    }
    // The same are taken where they are as many as is said.
    for (model, datatype, bytes) in [("f", "FP32", 4), ("b", "UINT8", 1), ("s", "BYTES", 4)] {
        binary_is(&replica, model, datatype, &[1, 2], &vec![0; 2 * bytes], (200, "")).await;
        grpc_is(&replica, &call(model, "", datatype, &[1, 2], vec![0; 2 * bytes]), "").await;
    }
    // No elements are no mistake, however far a dimension goes that has none of them.
    is(&replica, "f", tensor("FP32", json!([0, 2]), json!([])), (200, "")).await;
    binary_is(&replica, "f", "FP32", &[0, 2], &[], (200, "")).await;
    let grown = resident(&replica).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
    models_still_serve(&replica).await;
}

pub(super) async fn rank() {
    let dims = |rank: usize| vec![onnx::Dim::Fixed(1); rank];
    let launch = outrigger().file("three.onnx", onnx::identity(DataType::Fp32, &dims(3)));
    let launch =
        launch.file("f.onnx", onnx::identity(DataType::Fp32, &[onnx::Dim::Named("n"), onnx::Dim::Fixed(2)]));
    let launch = launch.args(["--model", "three=three.onnx", "--model", "f=f.onnx"]);
    let replica = launch.args(["--limits-rank", "3"]).start();
    for (rank, expected) in [(3, (200, "")), (4, INVALID)] {
        is(&replica, "three", tensor("FP32", json!(vec![1; rank]), json!([1])), expected).await;
        let shape = vec![1; rank];
        grpc_is(&replica, &call("three", "", "FP32", &shape, vec![0; 4]), expected.1).await;
    }
    // However many there are, no memory is taken for them.
    let body = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": vec![1; 100_000], "data": [1]}]});
    is(&replica, "three", body, INVALID).await;
    grpc_is(&replica, &call("three", "", "FP32", &vec![1; 100_000], vec![0; 4]), "invalid_tensor").await;
    models_still_serve(&replica).await;
}

pub(super) async fn count() {
    let replica = models().start();
    let x = |name: &str| json!({"name": name, "shape": [1, 2], "datatype": "FP32", "data": [1, 2]});
    is(&replica, "f", json!({"inputs": [x("x")], "outputs": [{"name": "y"}]}), (200, "")).await;
    is(&replica, "f", json!({"inputs": [x("x"), x("x")]}), INVALID).await;
    is(&replica, "f", json!({"inputs": [x("x"), x("z")]}), INVALID).await;
    let twice = json!({"inputs": [x("x")], "outputs": [{"name": "y"}, {"name": "y"}]});
    is(&replica, "f", twice, INVALID).await;
    let one = || call("f", "", "FP32", &[1, 2], vec![0; 8]);
    let output = || Output { name: "y".into() };
    grpc_is(&replica, &InferRequest { outputs: vec![output()], ..one() }, "").await;
    for wrong in [
        InferRequest { inputs: vec![one().inputs.remove(0); 2], ..one() },
        InferRequest { inputs: vec![Input { name: "x".into(), ..Input::default() }; 10_000], ..one() },
        InferRequest { raw: vec![vec![0; 8]; 2], ..one() },
        InferRequest { outputs: vec![output(), output()], ..one() },
    ] {
        grpc_is(&replica, &wrong, "invalid_tensor").await;
    }
    models_still_serve(&replica).await;
}

pub(super) async fn strings() {
    let replica = models().start();
    let string = |length: u32, text: &[u8]| [&length.to_le_bytes(), text].concat();
    grpc_is(&replica, &call("s", "", "BYTES", &[1, 1], string(3, b"abc")), "").await;
    for wrong in [string(4, b"abc"), string(2, b"abc"), string(u32::MAX, b"abc"), vec![1, 0, 0]] {
        grpc_is(&replica, &call("s", "", "BYTES", &[1, 1], wrong), "invalid_tensor").await;
    }
    models_still_serve(&replica).await;
}
