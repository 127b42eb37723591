//! Models in a description: which of them, how many, and what their operations are called.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_backend::DataType;
use outrigger_testkit::onnx::{self, Dim};
use outrigger_testkit::replica::KEY;
use outrigger_testkit::upstream::App;
use serde_json::{Value, json};

use super::{document, one, paths};
use crate::residency::{lazily, state};
use crate::support::{client, outcome, outrigger};

#[tokio::test]
async fn a_model_is_described_by_the_contract_that_is_spoken() {
    let replica = one().args(["--score-contracts", "sagemaker"]).start();
    let document = document(&replica.score, "").await;
    let post = &document["paths"]["/models/add/invoke"]["post"];
    let binary = "application/vnd.sagemaker-triton.binary+json";
    for content in [&post["requestBody"]["content"], &post["responses"]["200"]["content"]] {
        let media: Vec<_> = content.as_object().unwrap().keys().collect();
        assert_eq!(media, ["application/json", binary]);
        assert_eq!(content["application/json"]["schema"]["anyOf"].as_array().unwrap().len(), 2, "{content}");
    }
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
