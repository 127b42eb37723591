//! What the listeners say of themselves: `/openapi.json`, all of which is so, and the page at `/docs`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::PathBuf;
use std::process::Command;

use outrigger_backend::DataType;
use outrigger_testkit::onnx::Dim;
use outrigger_testkit::replica::KEY;
use outrigger_testkit::upstream::App;
use outrigger_testkit::{Launch, ReplicaProcess, onnx, repository};
use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::residency::{lazily, state};
use crate::support::{ECHO, client, header, outcome, outrigger};

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

/// What is switched on beside what always is.
fn everything(launch: Launch) -> Launch {
    launch.args([
        "--score-model-control",
        "--score-shared-memory",
        "/dev/shm",
        "--admin-listen",
        "127.0.0.1:0",
    ])
}

/// Models of all datatypes, and one with two inputs.
fn models() -> Launch {
    let mut launch = outrigger().file("add.onnx", onnx::add(3)).args(["--model", "add=add.onnx"]);
    for data_type in DataType::ALL {
        let model = onnx::identity(data_type, &[Dim::Named("batch"), Dim::Fixed(2)]);
        let file = format!("{}.onnx", data_type.name().to_lowercase());
        launch = launch.file(&file, model).args(["--model", &format!("id-{}={file}", data_type.name())]);
    }
    launch
}

/// The addresses of the listeners, by name.
fn listeners(replica: &ReplicaProcess) -> [(&'static str, String); 3] {
    let admin = format!("http://{}", replica.admin);
    [("score", replica.score.clone()), ("observe", replica.observe.clone()), ("admin", admin)]
}

async fn document(base: &str, query: &str) -> Value {
    let request = client().get(format!("{base}/openapi.json{query}")).bearer_auth(KEY);
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let document: Value = response.json().await.unwrap();
    assert_eq!(status, 200, "{document}");
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["cache-control"], "no-store");
    document
}

fn paths(document: &Value) -> BTreeSet<&str> {
    document["paths"].as_object().unwrap().keys().map(String::as_str).collect()
}

/// The Python that has a validator and a client which are not ours. Where it is not there, the test says so, and is no success of `cargo xtask test`.
fn python() -> Option<PathBuf> {
    let python = repository().join(".venv-triton/bin/python");
    if !python.exists() {
        println!("skipped: no openapi-spec-validator in .venv-triton: `cargo xtask setup` makes it");
        return None;
    }
    Some(python)
}

/// Has a client that is not ours read a description and believe it. `calls` examples with a body have to be there at least.
fn believed(replica: &ReplicaProcess, base: &str, calls: usize) {
    let Some(python) = python() else { return };
    let script = repository().join("cli/tests/openapi/client.py");
    let calls = calls.to_string();
    let mut command = Command::new(python);
    let ran = command
        .arg(script)
        .args([base.trim_start_matches("http://"), KEY, "--calls", &calls])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}\n{}", replica.log_text());
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

#[tokio::test]
async fn a_model_is_described_by_the_contract_that_is_spoken() {
    let launch = outrigger().file("add.onnx", onnx::add(3)).args(["--model", "add=add.onnx"]);
    let replica = launch.args(["--score-contracts", "sagemaker"]).start();
    let document = document(&replica.score, "").await;
    let post = &document["paths"]["/models/add/invoke"]["post"];
    let binary = "application/vnd.sagemaker-triton.binary+json";
    for content in [&post["requestBody"]["content"], &post["responses"]["200"]["content"]] {
        let media: Vec<_> = content.as_object().unwrap().keys().collect();
        assert_eq!(media, ["application/json", binary]);
        assert_eq!(content["application/json"]["schema"]["anyOf"].as_array().unwrap().len(), 2, "{content}");
    }
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

#[tokio::test]
async fn headers_are_described_where_they_are_configured() {
    for (flags, there) in [
        (vec![], [true, true, false]),
        (vec!["--score-load-metrics", "off"], [false, true, false]),
        (vec!["--score-server-version", ""], [true, false, false]),
        (vec!["--score-cors-origins", "https://a.example"], [true, true, true]),
    ] {
        let launch = outrigger().file("add.onnx", onnx::add(3)).args(["--model", "add=add.onnx"]);
        let replica = launch.args(flags.iter().copied()).start();
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
async fn who_asks_for_the_head_alone_has_no_model_loaded() {
    let replica = lazily(100, "", &[("a", "add 3\n")], "").start();
    let url = format!("{}/openapi.json?model=", replica.score);
    for (model, expected) in [("a", 200), ("b", 404)] {
        let answer = client().head(format!("{url}{model}")).bearer_auth(KEY).send().await.unwrap();
        assert_eq!(answer.status(), expected, "{model}");
    }
    assert_eq!(state(&replica, "a").await, "on_disk");
    document(&replica.score, "?model=a").await;
    assert_eq!(state(&replica, "a").await, "ready");
}

#[tokio::test]
async fn what_cannot_go_wrong_is_not_described() {
    let launch = outrigger().file("add.onnx", onnx::add(3)).args(["--model", "add=add.onnx"]);
    let replica = launch.args(["--admin-listen", "127.0.0.1:0"]).start();
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

/// Whether a route is gRPC's.
fn is_grpc(path: &str) -> bool {
    path.contains('.') && !path.ends_with(".json")
}

#[tokio::test]
async fn every_route_and_method_is_described_and_nothing_else() {
    let launch = everything(outrigger().script(ECHO).file("add.onnx", onnx::add(3)));
    let replica = launch.args(["--model", "add=add.onnx"]).start();
    let over_http2 = Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for (listener, base) in listeners(&replica) {
        let document = document(&base, "").await;
        let routes = outrigger_runtime::routes();
        let routes: BTreeSet<_> =
            routes.iter().filter(|route| route.listener == listener).map(|route| route.path).collect();
        let mut described = paths(&document);
        assert_eq!(described.remove("/v2/models/add/infer"), listener == "score");
        assert_eq!(described, routes, "{listener}");
        for path in routes {
            let item = document["paths"][path].as_object().unwrap();
            if is_grpc(path) {
                assert_eq!(item.keys().collect::<Vec<_>>(), ["post"], "{path}");
            }
            let url =
                ["model", "version", "label", "region"].iter().fold(format!("{base}{path}"), |url, name| {
                    let value = if *name == "model" { "add" } else { "1" };
                    url.replace(&format!("{{{name}}}"), value)
                });
            for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
                // Preflights are answered to browsers, and are none of the service's operations.
                if method == "OPTIONS" && ["/", "/score", "/swagger.json"].contains(&path) {
                    continue;
                }
                // Streams have no end.
                if is_grpc(path) && method == "POST" {
                    continue;
                }
                let client = if is_grpc(path) { over_http2.clone() } else { client() };
                let request = client.request(Method::from_bytes(method.as_bytes()).unwrap(), &url);
                let content_type = if is_grpc(path) { "application/grpc" } else { "application/json" };
                let request = request.bearer_auth(KEY).header("content-type", content_type).body("{}");
                let response = request.send().await.unwrap();
                let refused = response.status() == 405 || header(&response, "grpc-status") == "12";
                let counts_as =
                    if method == "HEAD" && path != "/score" { "get" } else { &method.to_lowercase() };
                let known = item.contains_key(counts_as);
                assert_eq!(!refused, known, "{method} {path} on {listener}: {}", response.status());
            }
        }
    }
}

#[tokio::test]
async fn what_is_switched_off_is_not_described() {
    let replica = outrigger().file("add.onnx", onnx::add(3)).args(["--model", "add=add.onnx"]).start();
    let all = document(&replica.score, "").await;
    for absent in ["/score", "/v2/systemsharedmemory/status", "/v2/repository/models/{model}/load"] {
        assert!(!paths(&all).contains(absent), "{absent}");
    }
    assert!(all["paths"]["/models"]["get"].is_object() && all["paths"]["/models"]["post"].is_null());
    assert!(!all.to_string().contains("SystemSharedMemory"));
    for (contracts, there, absent) in [
        (
            "aml",
            vec!["/swagger.json"],
            vec!["/v2", "/ping", "/vertex/predict", "/inference.GRPCInferenceService/ModelInfer"],
        ),
        ("oip", vec!["/v2/models/add/infer"], vec!["/swagger.json", "/ping", "/grpc.health.v1.Health/Check"]),
        ("sagemaker", vec!["/models/add/invoke", "/ping"], vec!["/v2", "/vertex/predict"]),
        ("vertex", vec!["/vertex/predict", "/predict"], vec!["/v2", "/ping"]),
    ] {
        let launch = outrigger().file("add.onnx", onnx::add(3)).args(["--model", "add=add.onnx"]);
        let replica =
            launch.args(["--score-contracts", contracts, "--score-vertex-predict-route", "/predict"]).start();
        let document = document(&replica.score, "").await;
        let paths = paths(&document);
        assert!(there.iter().all(|path| paths.contains(path)), "{contracts}: {paths:?}");
        assert!(!absent.iter().any(|path| paths.contains(path)), "{contracts}: {paths:?}");
        if contracts == "aml" {
            assert!(
                document["components"]["schemas"].get("InferRequest").is_none(),
                "what is not used is left out"
            );
        }
    }
}

#[tokio::test]
async fn a_replica_that_is_not_ready_describes_what_does_not_depend_on_it() {
    let launch = outrigger().args(["--upstream-url", "http://127.0.0.1:9", "--admin-listen", "127.0.0.1:0"]);
    let replica = launch.spawn();
    // Nothing is behind it, so it does not become ready; other listeners describe themselves all the same.
    for (listener, base) in listeners(&replica).into_iter().skip(1) {
        assert!(paths(&document(&base, "").await).contains("/openapi.json"), "{listener}");
    }
    let request = client().get(format!("{}/openapi.json", replica.score)).bearer_auth(KEY);
    let (status, code, _) = outcome(request.send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (503, "not_ready"));
}

#[tokio::test]
async fn a_sidecar_describes_what_it_passes_on_and_not_what_it_hides() {
    let app = App::start();
    let launch = outrigger().file("add.onnx", onnx::add(3)).args(["--model", "add=add.onnx"]);
    let launch = launch.args(["--upstream-url", &app.url()]);
    let passed_on = ["/predict", "/docs", "/v2/*"].into_iter().flat_map(|path| ["--upstream-paths", path]);
    let replica = launch.args(passed_on).start();
    let document = document(&replica.score, "").await;
    let described = paths(&document);
    assert!(["/score", "/predict"].iter().all(|path| described.contains(path)), "{described:?}");
    // These are the other server's.
    assert!(!described.iter().any(|path| path.starts_with("/v2/")), "{described:?}");
    assert_eq!(document["paths"]["/docs"]["get"]["tags"], json!(["Scoring"]));
    assert!(document["info"]["description"].as_str().unwrap().contains("/v2/*"));
    // These are passed on whatever the method, but for two that are none for the server behind.
    let methods: BTreeSet<_> = document["paths"]["/predict"].as_object().unwrap().keys().cloned().collect();
    let all = ["delete", "get", "head", "options", "patch", "post", "put"];
    assert_eq!(methods, all.map(str::to_owned).into());
    let own = &document["paths"]["/score"]["post"]["responses"]["default"]["content"];
    assert!(own.get("*/*").is_some(), "{own}");
    let codes = document["paths"]["/score"]["post"]["responses"].as_object().unwrap();
    assert!(codes.contains_key("502"), "{codes:?}");
}

#[tokio::test]
async fn many_models_are_described_a_page_at_a_time_and_each_alone() {
    let names: Vec<_> = (0..7).map(|number| format!("m{number}")).collect();
    let mut launch =
        outrigger().file("add.onnx", onnx::add(3)).args(["--openapi-models", "3", "--residency-load", "use"]);
    for name in &names {
        launch = launch.args(["--model", &format!("{name}=add.onnx")]);
    }
    let replica = launch.start();
    let (mut seen, mut query) = (Vec::new(), String::new());
    loop {
        let document = document(&replica.score, &query).await;
        let models = &document["info"]["x-outrigger-models"];
        let described: Vec<_> =
            models["described"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert!(described.len() <= 3);
        assert_eq!(models["total"], 7);
        for name in &described {
            let post = &document["paths"][format!("/v2/models/{name}/infer")]["post"];
            let request = &post["requestBody"]["content"]["application/json"];
            assert_eq!(
                request["schema"]["$ref"], "#/components/schemas/InferRequest",
                "it is not loaded for this"
            );
        }
        seen.extend(described.into_iter().map(str::to_owned));
        let Some(next) = models["next"].as_str() else { break };
        query = format!("?after={next}");
    }
    assert_eq!(seen, names);

    let alone = document(&replica.score, "?model=m5").await;
    assert_eq!(alone["info"]["x-outrigger-models"]["described"], json!(["m5"]));
    let request =
        &alone["paths"]["/v2/models/m5/infer"]["post"]["requestBody"]["content"]["application/json"];
    let example = request["example"].to_string();
    assert_eq!(request["example"]["inputs"].as_array().unwrap().len(), 2, "{example}");
    let call = client().post(format!("{}/v2/models/m5/infer", replica.score)).bearer_auth(KEY).body(example);
    assert_eq!(call.send().await.unwrap().status(), 200);
    let unknown = client().get(format!("{}/openapi.json?model=nil", replica.score)).bearer_auth(KEY);
    let (status, code, _) = outcome(unknown.send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (404, "model_not_found"));
}

/// A model whose description is long: 400 outputs with names of 250 characters, all of them `x`.
fn long() -> Vec<u8> {
    let mut graph = onnx::Graph::default();
    graph.input("x", DataType::Fp32, &[Dim::Fixed(1)]);
    for number in 0..400 {
        let name = format!("{number:0>250}");
        graph.output(&name, DataType::Fp32, &[Dim::Fixed(1)]);
        graph.node("Identity", &["x"], &[&name]);
    }
    graph.model()
}

/// The description as it is sent.
async fn text(base: &str, query: &str) -> String {
    let request = client().get(format!("{base}/openapi.json{query}")).bearer_auth(KEY);
    request.send().await.unwrap().text().await.unwrap()
}

#[tokio::test]
async fn a_description_has_so_many_bytes_about_models() {
    const BYTES: usize = 64 * 1024;
    // Names in the list of those that are described, and what the list is made of.
    const BESIDE: usize = 2048;
    let names: Vec<_> = (0..30).map(|number| format!("m{number:02}")).collect();
    let launch = || outrigger().file("add.onnx", onnx::add(3)).file("long.onnx", long());
    let mut many = launch().args(["--openapi-models", "1000", "--openapi-bytes", "64KiB"]);
    for name in &names {
        let file = if name == "m05" { "long.onnx" } else { "add.onnx" };
        many = many.args(["--model", &format!("{name}={file}")]);
    }
    let replica = many.start();
    let without = text(&replica.score, "?after=z").await.len();
    let (mut seen, mut query, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let text = text(&replica.score, &query).await;
        assert!(text.len() < without + BYTES + BESIDE, "{} of {without}", text.len());
        let document: Value = serde_json::from_str(&text).unwrap();
        let models = &document["info"]["x-outrigger-models"];
        for name in models["described"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()) {
            let post = &document["paths"][format!("/v2/models/{name}/infer")]["post"];
            let request = &post["requestBody"]["content"]["application/json"];
            assert_eq!(request["example"].is_object(), name != "m05", "{name}");
            let said = post["description"].as_str().unwrap();
            assert_eq!(said.contains("openapi.bytes"), name == "m05", "{said}");
            seen.push(name.to_owned());
        }
        pages += 1;
        let Some(next) = models["next"].as_str() else { break };
        query = format!("?after={next}");
    }
    assert_eq!(seen, names);
    assert!(pages > 1, "it fits into one");
    let alone = text(&replica.score, "?model=m05").await;
    assert!(alone.len() < without + BYTES + BESIDE && alone.contains("/v2/models/m05/infer"));
    // What is meant by calls without a name is about a model, too.
    for (bytes, is_there) in [("64KiB", false), ("16MiB", true)] {
        let launch = launch().args(["--model", "long=long.onnx", "--openapi-bytes", bytes]);
        let replica = launch.start();
        let document = document(&replica.score, "").await;
        let of = |path: &str| {
            document["paths"][path]["post"]["responses"]["200"]["content"]["application/json"].to_string()
        };
        let name = format!("{:0>250}", 399);
        for path in ["/invocations", "/vertex/predict", "/v2/models/long/infer"] {
            assert_eq!(of(path).contains(&name), is_there, "{path} {bytes}");
        }
        let call = json!({ "inputs": [{ "name": "x", "shape": [1], "datatype": "FP32", "data": [1.5] }] });
        let call = client().post(format!("{}/invocations", replica.score)).bearer_auth(KEY).json(&call);
        assert_eq!(call.send().await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn those_that_are_said_to_be_described_are() {
    let app = App::start();
    let launch = || {
        let mut launch = outrigger().file("add.onnx", onnx::add(3)).args(["--openapi-models", "2"]);
        for name in ["a", "b", "c", "d"] {
            launch = launch.args(["--model", &format!("{name}=add.onnx")]);
        }
        launch
    };
    let passed_on = ["/v2/models/a/*", "/v2/models/b/*", "/v2/models/c/*"];
    let passed_on = passed_on.into_iter().flat_map(|path| ["--upstream-paths", path]);
    let sidecar = launch().args(["--upstream-url", &app.url()]).args(passed_on).start();
    let without = launch().args(["--score-contracts", "vertex"]).start();
    let all = launch().start();
    for (replica, expected) in [
        (&sidecar, [json!([]), json!(["d"])].to_vec()),
        (&without, [json!([])].to_vec()),
        (&all, [json!(["a", "b"]), json!(["c", "d"])].to_vec()),
    ] {
        let (mut pages, mut query) = (Vec::new(), String::new());
        loop {
            let document = document(&replica.score, &query).await;
            let models = &document["info"]["x-outrigger-models"];
            let paths: Vec<_> =
                paths(&document).into_iter().filter_map(|path| path.strip_prefix("/v2/models/")).collect();
            let paths: Vec<_> = paths.into_iter().filter_map(|path| path.strip_suffix("/infer")).collect();
            let paths: Vec<_> = paths.into_iter().filter(|name| !name.contains('{')).collect();
            assert_eq!(models["described"], json!(paths));
            assert_eq!(models["total"], 4);
            pages.push(models["described"].clone());
            let Some(next) = models["next"].as_str() else { break };
            query = format!("?after={next}");
        }
        assert_eq!(pages, expected);
    }
    let passed_on = document(&sidecar.score, "?model=a").await;
    assert_eq!(passed_on["info"]["x-outrigger-models"]["described"], json!([]));
}

/// The names of operations, by path and method.
fn ids(document: &Value) -> BTreeMap<(String, String), String> {
    let paths = document["paths"].as_object().unwrap().iter();
    let methods = paths.flat_map(|(path, item)| {
        item.as_object().unwrap().iter().map(move |(method, operation)| {
            ((path.clone(), method.clone()), operation["operationId"].as_str().unwrap().to_owned())
        })
    });
    methods.collect()
}

#[tokio::test]
async fn names_of_operations_depend_on_nothing_else_in_the_description() {
    let launch = |names: &[&str]| {
        let mut launch = outrigger().file("add.onnx", onnx::add(3));
        for name in names {
            launch = launch.args(["--model", &format!("{name}=add.onnx")]);
        }
        launch.args(["--score-vertex-predict-route", "/v2/models"]).start()
    };
    // Names that come to the same where only letters and digits count, and one that is like a route's.
    let many = launch(&["a-b", "a.b", "a_b", "aB", "ab", "model"]);
    let all = ids(&document(&many.score, "").await);
    let different: BTreeSet<_> = all.values().collect();
    assert_eq!(different.len(), all.len(), "{all:?}");
    let of = |path: &str| all[&(path.to_owned(), "post".to_owned())].as_str();
    assert_eq!(of("/v2/models/{model}/infer"), "postV2ModelsModelInfer");
    assert_eq!(of("/v2/models/a-b/infer"), "postV2ModelsModelInfer_a_2db");
    assert_eq!(of("/v2/models/model/infer"), "postV2ModelsModelInfer_model");
    assert_eq!(of("/v2/models"), "postVertexPredict_v2_2fmodels");
    let one = launch(&["a_b"]);
    let others = [
        document(&many.score, "?after=a-b").await,
        document(&many.score, "?model=a_b").await,
        document(&one.score, "").await,
    ];
    for other in others {
        let other = ids(&other);
        assert!(other.contains_key(&("/v2/models/a_b/infer".into(), "post".into())), "{other:?}");
        assert!(other.iter().all(|(at, id)| all[at] == *id), "{other:?}");
    }
}

#[tokio::test]
async fn callers_see_their_own_models_alone() {
    let key = "the-key-of-bob-0123456789";
    let config = format!(
        "[models.add]\npath = 'add.onnx'\n[models.secret]\npath = 'add.onnx'\n[callers.bob]\nkey = '{key}'\nmodels = ['add']\noperations = ['model_metadata']\n"
    );
    let launch = outrigger().file("add.onnx", onnx::add(3)).file("o.toml", config);
    let replica = launch.args(["--config", "o.toml", "--score-model", "secret"]).start();
    let request = client().get(format!("{}/openapi.json", replica.score)).bearer_auth(key);
    let (status, _, document) = outcome(request.send().await.unwrap()).await;
    assert_eq!(status, 200, "{document}");
    assert!(document["paths"]["/v2/models/add/infer"].is_object());
    assert!(!document.to_string().contains("secret"), "{document}");
    let request = client().get(format!("{}/openapi.json?model=secret", replica.score)).bearer_auth(key);
    assert_eq!(request.send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn the_page_stands_alone_and_needs_no_key() {
    let replica = outrigger().script(ECHO).args(["--admin-listen", "127.0.0.1:0"]).start();
    for (listener, base) in listeners(&replica) {
        let get = |coding: &'static str| {
            client().get(format!("{base}/docs")).header("accept-encoding", coding).send()
        };
        let plain = get("identity").await.unwrap();
        assert_eq!(plain.status(), 200, "{listener}");
        let policy = header(&plain, "content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'; ") && policy.contains("frame-ancestors 'none'"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe") && !policy.contains("http") && !policy.contains('*'), "{policy}");
        for (name, value) in [
            ("content-type", "text/html; charset=utf-8"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("vary", "Accept-Encoding"),
            ("content-encoding", ""),
        ] {
            assert_eq!(header(&plain, name), value, "{listener}");
        }
        let plain = plain.text().await.unwrap();
        for foreign in ["http:", "https:", " src=", "@import", "url("] {
            assert!(!plain.contains(foreign), "{foreign}");
        }
        assert!(!plain.contains("ML service"), "nothing of the service is in it");
        let compressed = get("br, gzip;q=0.8").await.unwrap();
        assert_eq!(header(&compressed, "content-encoding"), "gzip");
        let compressed = compressed.bytes().await.unwrap();
        assert!(compressed.len() < plain.len() / 2, "{} of {}", compressed.len(), plain.len());
    }
}

/// A Chromium: the one that is named, or one that is installed.
fn chromium() -> Option<PathBuf> {
    let named = std::env::var_os("OUTRIGGER_TEST_CHROMIUM").map(PathBuf::from);
    let folders: Vec<_> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let installed = ["chromium", "chromium-headless-shell", "google-chrome"];
    let mut installed = installed.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    named.or_else(|| installed.find(|path| path.exists()))
}

/// Has a Chromium use the page of a listener, as a case of `page.py` says.
fn browse(replica: &ReplicaProcess, base: &str, case: &str, arguments: &[&str]) {
    let Some(chromium) = chromium() else {
        println!("skipped: no Chromium");
        return;
    };
    let Some(python) = python() else { return };
    let script = repository().join("cli/tests/openapi/page.py");
    let mut command = Command::new(python);
    command.arg(script).arg(chromium).args([case, base.trim_start_matches("http://"), KEY]);
    let ran = command.args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}\n{}", replica.log_text());
}

#[test]
fn the_page_works_in_a_browser() {
    let replica = outrigger().file("add.onnx", onnx::add(3)).args(["--model", "add=add.onnx"]).start();
    let pictures = std::env::var("OUTRIGGER_TEST_PICTURES").ok();
    let arguments: Vec<_> = std::iter::once("add").chain(pictures.as_deref()).collect();
    browse(&replica, &replica.score, "use", &arguments);
}

#[test]
fn hostile_names_are_text_in_a_browser() {
    let input = "<script>violations.push('input')</script>";
    let output = "\"><img src=x onerror=\"violations.push('output')\">'; exit 1; `exit 1` $(exit 1) \\";
    let extent = "<b onclick='violations.push(1)'>extent</b>";
    let service = "</title><svg onload=\"violations.push('service')\">'$(exit 1)";
    let mut graph = onnx::Graph::default();
    let shape = [Dim::Named(extent), Dim::Fixed(2)];
    graph.input(input, DataType::Fp32, &shape);
    graph.input(output, DataType::Fp32, &shape);
    graph.output("sum", DataType::Fp32, &shape);
    graph.node("Add", &[input, output], &["sum"]);
    // All that the name of a model may have.
    let model = "0-a.b_C";
    let launch = outrigger().file("m.onnx", graph.model()).args(["--model", &format!("{model}=m.onnx")]);
    let replica = launch.args(["--service-name", service]).start();
    browse(&replica, &replica.score, "hostile", &[model, input, output, extent, service]);
}

#[test]
fn of_a_long_answer_the_beginning_is_shown_in_a_browser() {
    let replica = models().start();
    browse(&replica, &replica.score, "long", &[]);
}

#[test]
fn an_answer_without_end_is_stopped_in_a_browser() {
    let replica = outrigger().script(ECHO).start();
    browse(&replica, &replica.observe, "endless", &[]);
}

#[tokio::test]
async fn a_description_is_compressed_for_who_takes_that() {
    let replica = outrigger().script(ECHO).args(["--admin-listen", "127.0.0.1:0"]).start();
    for (listener, base) in listeners(&replica) {
        let get = |method: Method, coding: &'static str| {
            let request = client().request(method, format!("{base}/openapi.json")).bearer_auth(KEY);
            request.header("accept-encoding", coding).send()
        };
        let plain = get(Method::GET, "identity").await.unwrap();
        assert_eq!(
            (header(&plain, "content-encoding"), header(&plain, "vary")),
            ("".into(), "Accept-Encoding".into())
        );
        let plain = plain.bytes().await.unwrap();
        let compressed = get(Method::GET, "br, gzip").await.unwrap();
        assert_eq!(header(&compressed, "content-encoding"), "gzip", "{listener}");
        assert_eq!(header(&compressed, "vary"), "Accept-Encoding");
        let head = get(Method::HEAD, "gzip").await.unwrap();
        assert_eq!(header(&head, "content-encoding"), "gzip", "{listener}");
        let compressed = compressed.bytes().await.unwrap();
        assert!(compressed.len() < plain.len() / 2, "{} of {}", compressed.len(), plain.len());
        let mut read = Vec::new();
        flate2::read::GzDecoder::new(&compressed[..]).read_to_end(&mut read).unwrap();
        assert_eq!(read, plain, "{listener}");
    }
}

#[tokio::test]
async fn page_and_description_can_be_switched_off() {
    let status = async |base: &str, path: &str| {
        client().get(format!("{base}{path}")).bearer_auth(KEY).send().await.unwrap().status().as_u16()
    };
    for (flags, expected) in [
        (vec!["--openapi-page=false"], [200, 404]),
        (vec!["--openapi-enabled=false"], [404, 404]),
        (vec!["--compat"], [404, 404]),
        (vec!["--compat", "--openapi-enabled=true"], [200, 200]),
    ] {
        let launch = outrigger().script(ECHO).args(["--admin-listen", "127.0.0.1:0"]);
        let replica = launch.args(flags.iter().copied()).start();
        for (listener, base) in listeners(&replica) {
            let got = [status(&base, "/openapi.json").await, status(&base, "/docs").await];
            assert_eq!(got, expected, "{flags:?} on {listener}");
        }
    }
}

#[tokio::test]
async fn without_keys_none_is_asked_for() {
    let replica = outrigger().script(ECHO).env("OUTRIGGER_AUTH_ENABLED", "false").start();
    let document: Value =
        client().get(format!("{}/openapi.json", replica.score)).send().await.unwrap().json().await.unwrap();
    assert_eq!(
        (&document["security"], &document["components"]["securitySchemes"]),
        (&Value::Null, &Value::Null)
    );
    assert!(document["paths"]["/score"]["post"]["responses"].get("401").is_none());
}

#[tokio::test]
async fn what_manages_models_needs_a_key_also_where_scoring_is_open() {
    let launch = outrigger().file("add.onnx", onnx::add(3)).args(["--model", "add=add.onnx"]);
    let launch = launch.args(["--score-model-control"]).env("OUTRIGGER_AUTH_ENABLED", "false");
    let replica = launch.args(["--admin-listen", "127.0.0.1:0"]).start();
    let document: Value =
        client().get(format!("{}/openapi.json", replica.score)).send().await.unwrap().json().await.unwrap();
    assert!(document["components"]["securitySchemes"]["key"].is_object() && document["security"].is_null());
    for (path, method, keyed) in [
        ("/v2/repository/models/{model}/load", "post", true),
        ("/v2/repository/models/{model}/unload", "post", true),
        ("/models", "post", true),
        ("/models/{model}", "delete", true),
        ("/models", "get", false),
        ("/v2/models/{model}/infer", "post", false),
        ("/v2/models/add/infer", "post", false),
    ] {
        let operation = &document["paths"][path][method];
        assert!(operation.is_object(), "{method} {path}");
        assert_eq!(operation["security"] == json!([{ "key": [] }]), keyed, "{method} {path}");
        assert_eq!(operation["responses"].get("401").is_some(), keyed, "{method} {path}");
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let url = format!("{}{}", replica.score, path.replace("{model}", "add"));
        let status = client().request(method, url).body("{}").send().await.unwrap().status().as_u16();
        assert_eq!(status == 401, keyed, "{path}: {status}");
    }
}

#[tokio::test]
async fn what_nobody_has_a_key_for_is_not_described() {
    let launch = outrigger().file("add.onnx", onnx::add(3)).args(["--model", "add=add.onnx"]);
    let replica = launch.args(["--score-model-control"]).env("OUTRIGGER_AUTH_ENABLED", "false").start();
    let document: Value =
        client().get(format!("{}/openapi.json", replica.score)).send().await.unwrap().json().await.unwrap();
    assert!(document["paths"].get("/v2/repository/models/{model}/load").is_none());
    assert!(document["paths"]["/models"].get("post").is_none());
    let url = format!("{}/v2/repository/models/add/load", replica.score);
    let status = client().post(url).bearer_auth(KEY).body("{}").send().await.unwrap().status();
    assert_eq!(status, 403, "it is refused, whoever asks");
}

#[tokio::test]
async fn a_status_with_an_answer_and_an_error_has_both_bodies() {
    let replica = outrigger().file("add.onnx", onnx::add(3)).args(["--model", "add=add.onnx"]).start();
    let document = document(&replica.score, "").await;
    let content = &document["paths"]["/v2/models/{model}/ready"]["get"]["responses"]["503"]["content"];
    let bodies = content["application/json"]["schema"]["anyOf"].as_array().unwrap();
    assert_eq!(bodies.len(), 2, "{content}");
    assert_eq!(bodies[1]["$ref"], "#/components/schemas/ErrorAnswer");
    for path in ["/v2/models/{model}", "/v2/models/{model}/config", "/openapi.json"] {
        assert!(document["paths"][path]["get"]["responses"].get("429").is_some(), "{path}");
    }
}

#[tokio::test]
async fn head_has_the_head_of_get_and_no_body() {
    let replica = outrigger().script(ECHO).args(["--admin-listen", "127.0.0.1:0"]).start();
    for (listener, base) in listeners(&replica) {
        let head = client().head(format!("{base}/openapi.json")).bearer_auth(KEY).send().await.unwrap();
        assert_eq!(head.status(), 200, "{listener}");
        assert_eq!(header(&head, "content-type"), "application/json", "{listener}");
        assert_eq!(header(&head, "content-length"), "", "no length is said: {listener}");
        assert_eq!(head.bytes().await.unwrap().len(), 0, "{listener}");
    }
}

#[tokio::test]
async fn many_who_ask_at_once_get_the_description_or_are_told_to_come_again() {
    let replica = outrigger().script(ECHO).args(["--openapi-at-once", "1"]).start();
    let ask = || client().get(format!("{}/openapi.json", replica.score)).bearer_auth(KEY).send();
    let asked: Vec<_> = (0..32).map(|_| tokio::spawn(ask())).collect();
    for answer in asked {
        let answer = answer.await.unwrap().unwrap();
        if answer.status() != 200 {
            assert_eq!((answer.status().as_u16(), header(&answer, "retry-after")), (503, "1".into()));
            assert_eq!(header(&answer, "outrigger-code"), "overloaded");
        }
    }
    assert_eq!(ask().await.unwrap().status(), 200);
}
