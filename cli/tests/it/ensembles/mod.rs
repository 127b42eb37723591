//! Ensembles: several models that callers see as one.

use std::collections::BTreeMap;

use outrigger_backend::DataType;
use outrigger_testkit::onnx::{self, Dim, Graph};
use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess};
use serde_json::{Value, json};
use tokio::task::JoinSet;

mod loads;
mod start;
mod versions;

use crate::placement::{adder, call, contains, metrics};
use crate::residency::asked;
use crate::support::{busy, client, header, infer, outcome, outrigger, score};

/// `y = op(x, ..)`, FP32 `[batch, 3]`.
fn operator(operator: &str, inputs: &[&str]) -> Vec<u8> {
    let mut graph = Graph::default();
    let shape = [Dim::Named("batch"), Dim::Fixed(3)];
    inputs.iter().for_each(|input| graph.input(input, DataType::Fp32, &shape));
    graph.output("y", DataType::Fp32, &shape);
    graph.node(operator, inputs, &["y"]);
    graph.model()
}

/// `neg`, `abs`, `sum` (`x`, `y` to `z`) and `picky`, in a directory of models, with these ensembles.
fn serving(ensembles: &[(&str, &str)]) -> Launch {
    let launch = outrigger()
        .file("models/neg.onnx", operator("Neg", &["x"]))
        .file("models/abs.onnx", operator("Abs", &["x"]))
        .file("models/sum.onnx", onnx::add(3))
        .file("models/picky.onnx", onnx::picky(3))
        .args(["--model-dir", "models"]);
    ensembles
        .iter()
        .fold(launch, |launch, (name, graph)| launch.file(&format!("models/{name}/graph.toml"), graph))
}

/// |−i| + |−i|, and −i.
const DIAMOND: &str = "
    inputs = [{name = 'i'}]
    outputs = [{name = 'both', from = 'sum.z'}, {name = 'minus', from = 'neg.y'}]
    nodes = [
        {model = 'sum', inputs = {x = 'left.y', y = 'right.y'}},
        {name = 'left', model = 'abs', inputs = {x = 'neg.y'}},
        {name = 'right', model = 'abs', inputs = {x = 'neg.y'}},
        {model = 'neg', inputs = {x = 'i'}},
    ]";

/// The roots of |i|, and what is looked up.
const PICKING: &str = "
    inputs = [{name = 'i'}, {name = 'index'}]
    outputs = [{name = 'root', from = 'pick.root'}, {name = 'picked', from = 'pick.picked'}]
    nodes = [{model = 'abs', inputs = {x = 'i'}}, {name = 'pick', model = 'picky', inputs = {x = 'abs.y', index = 'index'}}]";

fn row(name: &str, values: [f32; 3]) -> Value {
    json!({"name": name, "datatype": "FP32", "shape": [1, 3], "data": values})
}

fn one(values: [f32; 3]) -> String {
    json!({"inputs": [row("i", values)]}).to_string()
}

fn picking(index: i64) -> String {
    let index = json!({"name": "index", "datatype": "INT64", "shape": [1], "data": [index]});
    json!({"inputs": [row("i", [-1.0, 4.0, -9.0]), index]}).to_string()
}

/// Status, code, and the outputs by name, or what is said of an error.
async fn outputs(replica: &ReplicaProcess, model: &str, body: String) -> (u16, String, Value) {
    let (status, code, body) = outcome(infer(replica, model, body).send().await.unwrap()).await;
    let Some(outputs) = body["outputs"].as_array() else { return (status, code, body["error"].clone()) };
    let named = outputs.iter().map(|output| (output["name"].as_str().unwrap(), output["data"].clone()));
    (status, code, json!(named.collect::<BTreeMap<_, _>>()))
}

async fn get(replica: &ReplicaProcess, path: &str) -> (u16, Value) {
    let url = format!("{}{path}", replica.score);
    let (status, _, body) = outcome(client().get(url).bearer_auth(KEY).send().await.unwrap()).await;
    (status, body)
}

/// `z` of a model, twice over: (x + y) + (x + y).
fn twice(first: &str, second: &str) -> String {
    format!(
        "inputs = [{{name = 'x'}}, {{name = 'y'}}]\noutputs = [{{name = 'z', from = 'b.z'}}]\n\
         nodes = [{{name = 'a', model = '{first}', inputs = {{x = 'x', y = 'y'}}}}, {{name = 'b', model = '{second}', inputs = {{x = 'a.z', y = 'a.z'}}}}]"
    )
}

/// Models of a device that has so many bytes for them, each of which takes 42, and ensembles of two of them.
fn lazily(memory: u64, models: &[(&str, &str)], ensembles: &[(&str, &str, &str)], rest: &str) -> Launch {
    let tables: String =
        models.iter().map(|(name, _)| format!("[models.{name}]\npath = '{name}.txt'\n")).collect();
    let made: String =
        ensembles.iter().map(|(name, ..)| format!("[models.{name}]\npath = '{name}'\n")).collect();
    let config = format!(
        "[placement]\ndevices = ['adder']\n[backends.adder]\nlibrary = '{}'\nprocess = 'in'\nthreads = 2\nmemory = '{memory}B'\n\
         [residency]\nload = 'use'\n{rest}\n{tables}{made}",
        adder().display()
    );
    let launch = outrigger().file("outrigger.toml", config).args(["--config", "outrigger.toml"]);
    let launch =
        models.iter().fold(launch, |launch, (name, text)| launch.file(&format!("{name}.txt"), *text));
    ensembles.iter().fold(launch, |launch, (name, first, second)| {
        launch.file(&format!("{name}/graph.toml"), twice(first, second))
    })
}

const TWO: [(&str, &str); 2] = [("a", "add 3\n"), ("b", "add 3\n")];
const THREE: [(&str, &str); 3] = [("a", "add 3\n"), ("b", "add 3\n"), ("c", "add 3\n")];

async fn is_twice(replica: &ReplicaProcess, model: &str) {
    let (status, _, given) = outputs(replica, model, call()).await;
    assert_eq!((status, given), (200, json!({"z": [22.0, 44.0, 66.0]})), "{}", replica.log_text());
}

#[tokio::test]
async fn callers_see_a_model() {
    let replica = serving(&[("e", DIAMOND), ("picking", PICKING)]).start();
    let response = infer(&replica, "e", one([1.0, -2.0, 3.0])).send().await.unwrap();
    assert_eq!(header(&response, "outrigger-device"), "cpu:0");
    let (status, _, body) = outcome(response).await;
    assert_eq!(
        (status, &body["model_name"], &body["model_version"]),
        (200, &json!("e"), &json!("1")),
        "{body}"
    );
    assert_eq!(
        body["outputs"][0],
        json!({"name": "both", "datatype": "FP32", "shape": [1, 3], "data": [2.0, 4.0, 6.0]})
    );
    assert_eq!(body["outputs"][1]["data"], json!([-1.0, 2.0, -3.0]));
    // Only what is asked for.
    let wanted = json!({"inputs": [row("i", [1.0, 2.0, 3.0])], "outputs": [{"name": "minus"}]});
    let (_, _, given) = outputs(&replica, "e", wanted.to_string()).await;
    assert_eq!(given, json!({"minus": [-1.0, -2.0, -3.0]}));

    let (status, metadata) = get(&replica, "/v2/models/e").await;
    let tensor = |name: &str| json!({"name": name, "datatype": "FP32", "shape": [-1, 3]});
    let expected = json!({
        "name": "e", "versions": ["1"], "platform": "ensemble",
        "inputs": [tensor("i")], "outputs": [tensor("both"), tensor("minus")],
    });
    assert_eq!((status, metadata), (200, expected));
    assert_eq!(get(&replica, "/v2/models/e/ready").await.0, 200);
    assert_eq!(get(&replica, "/v2/models/e/versions/1/ready").await.0, 200);
    assert_eq!(get(&replica, "/v2/models/e/versions/2").await.0, 404);

    let (status, code, said) =
        outputs(&replica, "e", json!({"inputs": [row("x", [1.0; 3])]}).to_string()).await;
    assert_eq!((status, code.as_str()), (400, "invalid_tensor"), "{said}");
    assert_eq!(
        outputs(&replica, "picking", picking(7)).await.2,
        json!({"root": [1.0, 2.0, 3.0], "picked": [7.0]})
    );

    let shown = asked(&replica, "/models/e").await;
    assert_eq!(
        (&shown["state"], &shown["platform"], &shown["bytes_held"]),
        (&json!("ready"), &json!("ensemble"), &json!(0))
    );
    assert_eq!(shown["devices"], json!(["cpu:0"]));
    let nodes: Vec<_> = shown["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (&node["node"], &node["model"], &node["version"]))
        .collect();
    let node = |node: &'static str, model: &'static str| (json!(node), json!(model), json!("1"));
    let expected = [node("neg", "neg"), node("left", "abs"), node("right", "abs"), node("sum", "sum")];
    assert_eq!(nodes, expected.each_ref().map(|(node, model, version)| (node, model, version)));
    let status = asked(&replica, "/status").await;
    let models = status["models"].as_array().unwrap();
    assert!(
        models.iter().any(|model| model["name"] == "e" && model["nodes"][0]["node"] == "neg"),
        "{status}"
    );
    let text = metrics(&replica).await;
    // One call needs four runs and the other one.
    contains(
        &text,
        &[
            "outrigger_model_runs_total{device=\"cpu:0\",fallback=\"false\",model=\"neg\"} 2",
            "outrigger_model_runs_total{device=\"cpu:0\",fallback=\"false\",model=\"abs\"} 3",
            "outrigger_ensemble_tensors_total{ensemble=\"e\",place=\"host\"} 2",
            "outrigger_ensemble_tensors_total{ensemble=\"e\",place=\"device\"} 0",
        ],
    );
    let stats = async |model: &str| {
        let (_, stats) = get(&replica, &format!("/v2/models/{model}/stats")).await;
        let stats = &stats["model_stats"][0];
        [&stats["inference_count"], &stats["execution_count"]].map(|count| count.as_u64().unwrap())
    };
    // What is called is the ensemble; what it calls are its models, once or twice a call.
    assert_eq!([stats("e").await, stats("neg").await, stats("abs").await], [[2, 2], [2, 2], [3, 3]]);
    let busy = busy(&replica).await;
    let counts =
        ["arrived", "answered", "service_count", "executing"].map(|what| busy[what].as_u64().unwrap());
    assert_eq!(counts, [3, 3, 3, 0], "a call is one call: {busy}");
}

#[tokio::test]
async fn the_docs_show_one() {
    let docs = include_str!("../../../../docs/ensembles.md");
    let mut blocks = docs.split("```toml\n").skip(1).filter_map(|block| block.split("```").next());
    let example = blocks.find(|block| block.contains("[[nodes]]")).unwrap();
    let launch = outrigger()
        .file("models/embedding.onnx", onnx::mlp(&[4, 8]))
        .file("models/head.onnx", onnx::mlp(&[8, 3]));
    let replica = launch.file("models/review/graph.toml", example).args(["--model-dir", "models"]).start();
    let body = |name: &str, data: Value| {
        let width = data.as_array().unwrap().len();
        json!({"inputs": [{"name": name, "datatype": "FP32", "shape": [1, width], "data": data}]}).to_string()
    };
    let image = json!([0.5, -1.0, 2.0, 0.25]);
    let embedded = outputs(&replica, "embedding", body("x", image.clone())).await.2["y"].clone();
    let one_by_one = outputs(&replica, "head", body("x", embedded)).await.2["y"].clone();
    let (status, _, given) = outputs(&replica, "review", body("image", image)).await;
    assert_eq!((status, &given["label"]), (200, &one_by_one));
    assert_ne!(one_by_one, json!([0.0, 0.0, 0.0]));
}

#[tokio::test]
async fn a_node_that_fails_is_named() {
    let replica = serving(&[("picking", PICKING)]).start();
    let (status, code, said) = outputs(&replica, "picking", picking(77)).await;
    assert_eq!((status, code.as_str()), (400, "invalid_tensor"));
    contains(said.as_str().unwrap(), &["node `pick` (model `picky`): "]);
    assert_eq!(outputs(&replica, "picking", picking(7)).await.0, 200);
    let replica = lazily(100, &[("a", "add 3\n"), ("b", "panic now")], &[("e", "a", "b")], "").start();
    let (status, code, said) = outputs(&replica, "e", call()).await;
    assert_eq!((status, code.as_str()), (500, "model_failed"));
    assert_eq!(said, "node `b` (model `b`): model `b` failed; the log says why");
}

#[tokio::test]
async fn what_goes_between_nodes_is_bounded() {
    let replica = serving(&[("e", DIAMOND)]).args(["--limits-ensemble", "24B"]).start();
    let (status, code, said) = outputs(&replica, "e", one([1.0, 2.0, 3.0])).await;
    assert_eq!((status, code.as_str()), (400, "invalid_tensor"));
    let text = "the tensors between nodes take 36 bytes, more than limits.ensemble, 24 bytes";
    contains(said.as_str().unwrap(), &["with node `", text]);
    let wanted = json!({"inputs": [row("i", [1.0, 2.0, 3.0])], "outputs": [{"name": "minus"}]});
    assert_eq!(outputs(&replica, "e", wanted.to_string()).await.0, 200, "less is made of it");
}

#[tokio::test]
async fn calls_of_ensembles_are_put_together_by_their_models() {
    let config = "model_dir = 'models'\n[models.abs]\npath = 'models/abs.onnx'\nmax_batch = 2\nmax_delay = '60s'\n[models.e]\npath = 'models/e'\n";
    let graph = "inputs = [{name = 'i'}]\noutputs = [{name = 'o', from = 'abs.y'}]\nnodes = [{model = 'abs', inputs = {x = 'i'}}]";
    let launch = serving(&[("e", graph)]).file("outrigger.toml", config);
    let replica = launch.args(["--config", "outrigger.toml"]).start();
    let mut calls = JoinSet::new();
    for value in [-1.0, -2.0] {
        let request = infer(&replica, "e", one([value; 3]));
        calls.spawn(async move { (value, outcome(request.send().await.unwrap()).await.2) });
    }
    // Neither is run before the other is there.
    for (value, body) in calls.join_all().await {
        assert_eq!(body["outputs"][0]["data"], json!([-value, -value, -value]), "{body}");
    }
    contains(
        &metrics(&replica).await,
        &["outrigger_model_runs_total{device=\"cpu:0\",fallback=\"false\",model=\"abs\"} 1"],
    );
}

#[tokio::test]
async fn scripts_have_handles_of_ensembles() {
    let script = "import json\nimport numpy\nfrom outrigger import model\n\ndef init():\n    global e\n    e = model('e')\n\n\
                  def run(data):\n    given = e.predict(i=numpy.array([json.loads(data)], 'float32'))\n    return [given['both'].tolist(), given['minus'].tolist()]\n";
    let tables: String =
        ["neg", "abs", "sum"].map(|name| format!("[models.{name}]\npath = 'models/{name}.onnx'\n")).concat();
    let config = format!("{tables}[models.e]\npath = 'models/e/graph.toml'\n");
    let launch = serving(&[("e", DIAMOND)]).file("outrigger.toml", config);
    let replica = launch.args(["--config", "outrigger.toml"]).script(script).start();
    let response = score(&replica, "[1, -2, 3]").send().await.unwrap();
    assert_eq!(header(&response, "outrigger-device"), "cpu:0");
    let (status, _, body) = outcome(response).await;
    assert_eq!(
        (status, body),
        (200, json!([[[2.0, 4.0, 6.0]], [[-1.0, 2.0, -3.0]]])),
        "{}",
        replica.log_text()
    );
}

#[tokio::test]
async fn who_may_call_an_ensemble_need_not_know_its_models() {
    let launch = serving(&[("e", DIAMOND)]).file(
        "outrigger.toml",
        "model_dir = 'models'\n[callers.bob]\nkey = 'bob-s-key-bob-s-key-bob-s-key'\nmodels = ['e']\noperations = ['infer', 'model_metadata']\n",
    );
    let replica = launch.args(["--config", "outrigger.toml"]).start();
    let ask = async |model: &str, body: String| {
        let url = format!("{}/v2/models/{model}/infer", replica.score);
        let request = client().post(url).bearer_auth("bob-s-key-bob-s-key-bob-s-key").body(body);
        outcome(request.send().await.unwrap()).await
    };
    assert_eq!(ask("e", one([1.0; 3])).await.0, 200);
    let (status, code, _) = ask("neg", json!({"inputs": [row("x", [1.0; 3])]}).to_string()).await;
    assert_eq!((status, code.as_str()), (403, "forbidden"));
}
