//! What is described is so: a validator and a client that are not ours believe it, of models and scripts, answers, headers and errors.

use outrigger_backend::DataType;
use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::KEY;
use serde_json::json;

use super::{document, everything, listeners, looked_at, models, one};
use crate::support::{client, outcome, outrigger};

/// A script that says what it takes.
const TYPED: &str = "
from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType
from inference_schema.schema_decorators import input_schema, output_schema
def init():
    pass
@input_schema('numbers', StandardPythonParameterType([1.5, 2.5]))
@output_schema(StandardPythonParameterType(4.0))
def run(numbers):
    return sum(numbers)
";

/// Has a client that is not ours read a description and believe it. `calls` examples with a body have to be there at least.
fn believed(replica: &ReplicaProcess, base: &str, calls: usize) {
    looked_at(replica, "client.py", [base.trim_start_matches("http://"), KEY, "--calls", &calls.to_string()]);
}

#[test]
fn what_is_described_of_models_is_valid_and_so() {
    let replica = models().args(["--score-model", "add", "--admin-listen", "127.0.0.1:0"]).start();
    let calls = [DataType::ALL.len() + 3, 0, 0];
    for ((_, base), calls) in listeners(&replica).iter().zip(calls) {
        believed(&replica, base, calls);
    }
}

#[test]
fn what_is_described_of_models_by_sagemakers_contract_alone_is_valid_and_so() {
    let replica = models().args(["--score-model", "add", "--score-contracts", "sagemaker"]).start();
    believed(&replica, &replica.score, DataType::ALL.len() + 2);
}

#[test]
fn what_is_described_of_answers_is_so_as_they_are_configured() {
    let flags = |load: &'static str, version: &'static str, origins: &'static str| {
        let flags = ["--score-load-metrics", load, "--score-server-version", version];
        models().args(flags).args(["--score-cors-origins", origins]).start()
    };
    for replica in [flags("bin", "", "https://a.example"), flags("off", "mine/1", "*")] {
        believed(&replica, &replica.score, DataType::ALL.len() + 1);
    }
}

#[test]
fn what_is_described_of_a_script_is_valid_and_so() {
    let replica = everything(outrigger().script(TYPED)).start();
    for ((_, base), calls) in listeners(&replica).iter().zip([3, 0, 0]) {
        believed(&replica, base, calls);
    }
}

#[tokio::test]
async fn what_a_script_takes_and_gives_is_in_the_description() {
    let replica = outrigger().script(TYPED).start();
    let document = document(&replica.score, "").await;
    let post = &document["paths"]["/score"]["post"];
    let input = &post["requestBody"]["content"]["application/json"];
    assert_eq!(input["schema"]["properties"]["numbers"]["items"]["type"], "number", "{input}");
    assert_eq!(input["example"], json!({ "numbers": [1.5, 2.5] }));
    assert_eq!(post["responses"]["200"]["content"]["application/json"]["schema"]["type"], "number", "{post}");
    assert_eq!(
        document["paths"]["/vertex/predict"]["post"]["requestBody"]["content"]["application/json"],
        *input
    );
}

#[tokio::test]
async fn headers_are_described_where_they_are_configured() {
    for (flags, there) in [
        (vec![], [true, true, false]),
        (vec!["--score-load-metrics", "off"], [false, true, false]),
        (vec!["--score-server-version", ""], [true, false, false]),
        (vec!["--score-cors-origins", "https://a.example"], [true, true, true]),
    ] {
        let replica = one().args(flags.iter().copied()).start();
        let document = document(&replica.score, "").await;
        let infer = &document["paths"]["/v2/models/add/infer"]["post"];
        let names = ["endpoint-load-metrics", "x-ms-server-version", "Access-Control-Allow-Origin"];
        let is_there = names.map(|name| infer["responses"]["200"]["headers"].get(name).is_some());
        assert_eq!(is_there, there, "{flags:?}");
        let takes = infer["parameters"].to_string();
        assert_eq!(takes.contains("parameters/LoadFormat"), there[0], "{flags:?}");
        assert!(takes.contains("parameters/MsClientRequestId") && takes.contains("parameters/TraceId"));
    }
}

#[tokio::test]
async fn what_cannot_go_wrong_is_not_described() {
    let replica = one().args(["--admin-listen", "127.0.0.1:0"]).start();
    let base = format!("http://{}", replica.admin);
    let document = document(&base, "").await;
    let label = &document["paths"]["/models/{model}/labels/{label}"]["put"];
    let statuses: Vec<_> = label["responses"].as_object().unwrap().keys().map(String::as_str).collect();
    assert!(statuses.contains(&"408") && statuses.contains(&"413"), "{statuses:?}");
    assert!(!statuses.contains(&"415") && !statuses.contains(&"422"), "{statuses:?}");
    let bodies = [vec![b' '; (64 << 10) + 1], b"{".to_vec(), b"{}".to_vec(), b"[]".to_vec()];
    let expected =
        [(413, "body_too_large"), (400, "bad_request"), (400, "bad_request"), (400, "bad_request")];
    for (body, expected) in bodies.into_iter().zip(expected) {
        let request = client().put(format!("{base}/models/add/labels/it")).bearer_auth(KEY).body(body);
        let (status, code, _) = outcome(request.send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), expected);
    }
    let known = label["responses"]["400"]["$ref"].as_str().unwrap();
    assert_eq!(known, "#/components/responses/Message-400-bad_request");
    let events = document["paths"]["/events"]["get"]["parameters"].to_string();
    assert!(events.contains("parameters/LastEvent"), "{events}");
    assert_eq!(document["components"]["parameters"]["LastEvent"]["name"], "Last-Event-ID");
}

#[tokio::test]
async fn a_status_with_an_answer_and_an_error_has_both_bodies() {
    let replica = one().start();
    let document = document(&replica.score, "").await;
    let content = &document["paths"]["/v2/models/{model}/ready"]["get"]["responses"]["503"]["content"];
    let bodies = content["application/json"]["schema"]["anyOf"].as_array().unwrap();
    assert_eq!(bodies.len(), 2, "{content}");
    assert_eq!(bodies[1]["$ref"], "#/components/schemas/ErrorAnswer");
    for path in ["/v2/models/{model}", "/v2/models/{model}/config", "/openapi.json"] {
        assert!(document["paths"][path]["get"]["responses"].get("429").is_some(), "{path}");
    }
}
