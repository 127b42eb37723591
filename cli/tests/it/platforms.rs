//! The contracts of platforms that run containers: SageMaker and Vertex AI, in front of models and of a script; and what is spoken at all.

use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess, onnx};
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::grpc::{Grpc, framed};
use crate::support::{ECHO, client, header, outcome, outrigger};

/// `x` + `y` of three numbers a row.
fn add() -> Launch {
    outrigger().file("add.onnx", onnx::add(3)).args(["--model", "add=add.onnx"])
}

async fn ask(
    replica: &ReplicaProcess,
    method: Method,
    path: &str,
    body: impl Into<reqwest::Body>,
) -> Response {
    client()
        .request(method, format!("{}{path}", replica.score))
        .bearer_auth(KEY)
        .header("content-type", "application/json")
        .body(body)
        .send()
        .await
        .unwrap()
}

async fn post(replica: &ReplicaProcess, path: &str, body: Value) -> (u16, String, Value) {
    outcome(ask(replica, Method::POST, path, body.to_string()).await).await
}

fn tensors() -> Value {
    let tensor =
        |name: &str, data: [f32; 3]| json!({"name": name, "shape": [1, 3], "datatype": "FP32", "data": data});
    json!({"inputs": [tensor("x", [1.0, 2.0, 3.0]), tensor("y", [10.0, 20.0, 30.0])]})
}

fn instances() -> Value {
    json!([{"x": [1, 2, 3], "y": [10, 20, 30]}, {"y": [0, 0, 0.5], "x": [1, 1, 1]}])
}

fn predictions() -> Value {
    json!([[11.0, 22.0, 33.0], [1.0, 1.0, 1.5]])
}

#[tokio::test]
async fn sagemaker_invokes_the_model() {
    let replica = add().start();
    let ping = client().get(format!("{}/ping", replica.score)).send().await.unwrap();
    assert_eq!((ping.status().as_u16(), ping.text().await.unwrap()), (200, String::new()));
    let (status, _, answer) = post(&replica, "/invocations", tensors()).await;
    assert_eq!((status, &answer["outputs"][0]["data"]), (200, &json!([11.0, 22.0, 33.0])), "{answer}");
    let (status, _, answer) = post(&replica, "/invocations", json!({"instances": instances()})).await;
    assert_eq!((status, &answer["predictions"]), (200, &predictions()), "{answer}");

    // Tensors as bytes, in the form that has its length in the content type.
    let input = |name: &str| json!({"name": name, "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}});
    let head =
        json!({"inputs": [input("x"), input("y")], "parameters": {"binary_data_output": true}}).to_string();
    let ones: Vec<u8> = [1f32; 6].iter().flat_map(|one| one.to_le_bytes()).collect();
    let media = "application/vnd.sagemaker-triton.binary+json;json-header-size=";
    let response = client()
        .post(format!("{}/invocations", replica.score))
        .bearer_auth(KEY)
        .header("content-type", format!("{media}{}", head.len()))
        .body([head.as_bytes(), &ones].concat())
        .send()
        .await
        .unwrap();
    let content_type = header(&response, "content-type");
    let length: usize = content_type.strip_prefix(media).unwrap().parse().unwrap();
    let body = response.bytes().await.unwrap();
    assert_eq!(body[length..], [2f32; 3].iter().flat_map(|two| two.to_le_bytes()).collect::<Vec<u8>>());

    let (status, code, _) = post(&replica, "/invocations", json!({"instances": [{"x": [1, 2, 3]}]})).await;
    assert_eq!((status, code.as_str()), (400, "invalid_tensor"));
    let csv = client().post(format!("{}/invocations", replica.score)).bearer_auth(KEY);
    let csv = csv.header("content-type", "text/csv").body("1,2,3").send().await.unwrap();
    assert_eq!(outcome(csv).await.1, "unsupported_media_type");
    assert_eq!(ask(&replica, Method::GET, "/invocations", "").await.status(), 405);
}

#[tokio::test]
async fn a_multi_model_container_lists_loads_and_unloads() {
    let launch =
        add().file("two.onnx", onnx::add(3)).args(["--model", "two=two.onnx", "--score-model-control"]);
    let replica = launch.start();
    let names = async || {
        let (_, _, list) = outcome(ask(&replica, Method::GET, "/models", "").await).await;
        let models = list["models"].as_array().unwrap().clone();
        models.iter().map(|model| model["modelName"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names().await, ["add", "two"]);
    let (status, _, answer) = post(&replica, "/models/two/invoke", tensors()).await;
    assert_eq!((status, &answer["model_name"]), (200, &json!("two")), "{answer}");
    // Which of two is meant has to be said.
    let (status, _, answer) = post(&replica, "/invocations", tensors()).await;
    assert_eq!(status, 400);
    assert!(answer["message"].as_str().unwrap().contains("score.model"), "{answer}");

    assert_eq!(ask(&replica, Method::DELETE, "/models/two", "").await.status(), 200);
    assert_eq!(names().await, ["add"]);
    assert_eq!(ask(&replica, Method::DELETE, "/models/two", "").await.status(), 404);
    assert_eq!(ask(&replica, Method::GET, "/models/two", "").await.status(), 404);
    let load = json!({"model_name": "two", "url": "/opt/ml/models/two"});
    assert_eq!(post(&replica, "/models", load.clone()).await.0, 200);
    assert_eq!(post(&replica, "/models", load).await.0, 409);
    assert_eq!(post(&replica, "/models", json!({"model_name": "nil"})).await.0, 404);
    assert_eq!(post(&replica, "/models", json!({})).await.0, 400);
    assert_eq!(names().await, ["add", "two"]);
    assert_eq!(ask(&replica, Method::GET, "/models/two", "").await.status(), 200);

    let off = add().start();
    assert_eq!(post(&off, "/models", json!({"model_name": "add"})).await.0, 409);
    assert_eq!(ask(&off, Method::DELETE, "/models/add", "").await.status(), 404, "it is not switched on");
}

#[tokio::test]
async fn vertex_predicts_where_its_variables_say() {
    let replica = add()
        .env("AIP_PREDICT_ROUTE", "/v1/endpoints/7/deployedModels/9:predict")
        .env("AIP_HEALTH_ROUTE", "/v1/endpoints/7/deployedModels/9")
        .start();
    for path in ["/v1/endpoints/7/deployedModels/9", "/vertex/health"] {
        let health = client().get(format!("{}{path}", replica.score)).send().await.unwrap();
        assert_eq!(health.status(), 200, "{path}");
    }
    for path in ["/v1/endpoints/7/deployedModels/9:predict", "/vertex/predict"] {
        let (status, _, answer) =
            post(&replica, path, json!({"instances": instances(), "parameters": {}})).await;
        assert_eq!((status, &answer), (200, &json!({"predictions": predictions()})), "{path}");
    }
    let (status, code, answer) = post(&replica, "/vertex/predict", json!({"instances": [[1, 2, 3]]})).await;
    assert_eq!((status, code.as_str()), (400, "bad_request"));
    assert!(answer["error"].as_str().unwrap().contains("by name"), "{answer}");
    let none = client().post(format!("{}/v1/endpoints/7/deployedModels/9:predict", replica.score));
    assert_eq!(none.body("{}").send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn both_call_the_script_where_there_is_one() {
    const SCRIPT: &str = "import json\n\ndef init():\n    pass\n\ndef run(data):\n    return [sum(row) for row in json.loads(data)['instances']]\n";
    let replica = outrigger().script(SCRIPT).start();
    let body = json!({"instances": [[1, 2], [3, 4]]});
    assert_eq!(post(&replica, "/invocations", body.clone()).await.2, json!([3, 7]));
    assert_eq!(post(&replica, "/vertex/predict", body).await.2, json!({"predictions": [3, 7]}));
    let (status, code, _) = post(&replica, "/vertex/predict", json!({})).await;
    assert_eq!((status, code.as_str()), (500, "script_error"));
}

#[tokio::test]
async fn only_contracts_that_are_spoken_are_there() {
    let statuses = async |contracts: &str| {
        let launch = add().script(ECHO).env("OUTRIGGER_SCORE_CONTRACTS", contracts);
        let replica = launch.start();
        let mut found = Vec::new();
        for (name, path) in
            [("aml", "/score"), ("oip", "/v2"), ("sagemaker", "/invocations"), ("vertex", "/vertex/predict")]
        {
            let method = if name == "oip" { Method::GET } else { Method::POST };
            if ask(&replica, method, path, "{}").await.status() != 404 {
                found.push(name);
            }
        }
        let http2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
        for (name, path) in [
            ("grpc", "/inference.GRPCInferenceService/ServerLive"),
            ("tensorflow", "/tensorflow.serving.PredictionService/Predict"),
        ] {
            let request = http2.post(format!("{}{path}", replica.score)).bearer_auth(KEY);
            let request = request.header("content-type", "application/grpc").body(vec![0; 5]);
            let response = request.send().await.unwrap();
            if header(&response, "grpc-status") != "12" {
                found.push(name);
            }
        }
        found
    };
    assert_eq!(
        statuses("aml, oip, grpc, tensorflow, sagemaker, vertex").await,
        ["aml", "oip", "sagemaker", "vertex", "grpc", "tensorflow"]
    );
    assert_eq!(statuses("oip, tensorflow").await, ["oip", "tensorflow"]);
    assert_eq!(statuses("aml").await, ["aml"]);
}

#[tokio::test]
async fn reflection_tells_of_what_is_spoken_alone() {
    // `list_services`, and `file_containing_symbol`.
    let symbol = "tensorflow.serving.PredictionService";
    let list = [&[0x3a, 1][..], b"*"].concat();
    let find = [&[0x22, symbol.len() as u8][..], symbol.as_bytes()].concat();
    for (contracts, is_told) in [("grpc", false), ("grpc, tensorflow", true)] {
        let replica = add().env("OUTRIGGER_SCORE_CONTRACTS", contracts).start();
        let mut grpc = Grpc::connect(&replica).await;
        for version in ["v1", "v1alpha"] {
            let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
            let told = grpc.ask(&path, &[], framed(&list)).await;
            let listed = String::from_utf8_lossy(&told.messages[0]).into_owned();
            assert!(listed.contains("inference.GRPCInferenceService"), "{listed}");
            assert!(listed.contains("grpc.health.v1.Health"), "{listed}");
            assert_eq!(listed.contains(symbol), is_told, "{contracts} {version}: {listed}");
            let told = grpc.ask(&path, &[], framed(&find)).await;
            assert_eq!(told.status == 0, is_told, "{contracts} {version}: {told:?}");
        }
    }
}
