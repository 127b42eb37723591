//! Ensembles: several models that callers see as one.

use std::collections::BTreeMap;

use outrigger_backend::DataType;
use outrigger_testkit::onnx::{self, Dim, Graph};
use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::devices::until;
use crate::models::Stored;
use crate::placement::{adder, call, contains, metrics, outrigger_in, refused};
use crate::residency::{admin, asked, state, told};
use crate::support::{busy, client, header, infer, outcome, outrigger, score, until_busy};

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
    let busy = busy(&replica).await;
    let counts =
        ["arrived", "answered", "service_count", "executing"].map(|what| busy[what].as_u64().unwrap());
    assert_eq!(counts, [3, 3, 3, 0], "a call is one call: {busy}");
}

#[tokio::test]
async fn the_readme_shows_one() {
    let readme = include_str!("../../../README.md");
    let mut blocks = readme.split("```toml\n").skip(1).filter_map(|block| block.split("```").next());
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

#[test]
fn what_is_wrong_with_an_ensemble_ends_the_start() {
    let wrong = |before: &str, after: &str, expected: &[&str]| {
        let graph = DIAMOND.replacen(before, after, 1);
        let text = refused(serving(&[("e", &graph)]), 3);
        contains(&text, &["models/e/graph.toml: "]);
        contains(&text, expected);
    };
    wrong("inputs = [{", "inputz = [{", &["unknown key `inputz`, did you mean `inputs`?"]);
    wrong(
        "{model = 'neg', ",
        "{name = 'neg', model = 'negg', ",
        &["node `neg`: model `negg` is not served here, did you mean `neg`?"],
    );
    wrong("'sum.z'", "'sum.y'", &["output `both`: `sum.y`: model `sum` has no output `y`"]);
    wrong("y = 'right.y'", "z = 'right.y'", &["node `sum`: model `sum` has no input `z`"]);
    wrong(
        "x = 'neg.y'",
        "x = 'sum.z'",
        &["nodes wait for each other: `sum` takes from `left` takes from `sum`"],
    );
    let text = DIAMOND.replacen("'neg', ", "'neg', version = 2, ", 1);
    let text = refused(serving(&[("e", &text)]), 3);
    contains(&text, &["node `neg`: this version of model `neg` is not served here; there is 1"]);
    let round = "inputs = [{name = 'i'}]\noutputs = [{name = 'o', from = 'f.o'}]\nnodes = [{model = 'f', inputs = {i = 'i'}}]";
    let back = round.replace("'f", "'e");
    let text = refused(serving(&[("e", round), ("f", &back)]), 3);
    contains(&text, &["the ensemble reaches itself: `e` is made of `f` is made of `e`"]);
    // What only models have.
    let text = refused(serving(&[("e", DIAMOND)]).file("models/e/model.toml", "max_batch = 4"), 3);
    contains(&text, &["models/e/model.toml: `max_batch` is said of an ensemble, and is its models' to have"]);
    let text = refused(
        serving(&[("e", DIAMOND)]).file(
            "models/e/model.toml",
            "before = [{step = 'softmax'}]\ninputs = [{name = 'i', datatype = 'FP32', shape = ['n', 3]}]",
        ),
        3,
    );
    contains(&text, &["`before` is said of an ensemble, and is its models' to have"]);
    let text = refused(serving(&[("e", DIAMOND)]).file("models/e/m.onnx", onnx::add(3)), 3);
    contains(&text, &["lies beside the model ", "models/e/m.onnx: it is one or the other"]);
    let config = "[models.neg]\npath = 'models/neg.onnx'\n[models.e]\npath = 'models/e'\ndevices = ['cpu']\n";
    let graph = "inputs = [{name = 'i'}]\noutputs = [{name = 'o', from = 'neg.y'}]\nnodes = [{model = 'neg', inputs = {x = 'i'}}]";
    let launch = serving(&[("e", graph)]).file("outrigger.toml", config).args(["--config", "outrigger.toml"]);
    contains(&refused(launch, 3), &["`models.e.devices` is said of an ensemble, and is its models' to have"]);
}

#[tokio::test]
async fn samples_are_held_against_golden_outputs() {
    let samples = "version = '7'\n[[outputs]]\nname = 'both'\ndatatype = 'FP32'\nshape = ['n', 3]\n[[outputs]]\nname = 'minus'\ndatatype = 'FP32'\nshape = ['n', 3]\n[[samples]]\nrequest = 'ask.json'\nexpect = 'golden.json'\n";
    let with = |golden: [f32; 3], toml: &str| {
        let launch = serving(&[("e", DIAMOND)]).file("models/e/model.toml", toml);
        let golden = json!({"model_name": "e", "outputs": [row("both", golden)]});
        launch
            .file("models/e/ask.json", one([1.0, -2.0, 3.0]))
            .file("models/e/golden.json", golden.to_string())
    };
    let replica = with([2.0, 4.0, 6.0], samples).start();
    let (status, metadata) = get(&replica, "/v2/models/e").await;
    assert_eq!((status, &metadata["versions"]), (200, &json!(["7"])));
    let text = refused(with([2.0, 4.0, 7.0], samples), 3);
    contains(
        &text,
        &[
            "model `e` on its models: sample ask.json: output `both` at index 2 is 6, expected 7 in golden.json",
        ],
    );
    let text = refused(with([2.0, 4.0, 6.0], &samples.replacen("['n', 3]", "['n', 4]", 1)), 3);
    contains(&text, &["models/e/model.toml: output `both` has shape [-1, 3] in the model, not [-1, 4]"]);
}

#[test]
fn the_plan_shows_where_the_nodes_would_be() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("e")).unwrap();
    std::fs::write(directory.path().join("sum.onnx"), onnx::add(3)).unwrap();
    let graph = "inputs = [{name = 'i'}]\noutputs = [{name = 'o', from = 'twice.z'}]\nnodes = [{name = 'twice', model = 'sum', inputs = {x = 'i', y = 'i'}}]";
    std::fs::write(directory.path().join("e/graph.toml"), graph).unwrap();
    let config = "[models.sum]\npath = 'sum.onnx'\n[models.e]\npath = 'e'\n";
    std::fs::write(directory.path().join("outrigger.toml"), config).unwrap();
    let output = outrigger_in(directory.path(), &["plan"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    contains(&text, &["ENSEMBLE  NODE   MODEL  DEVICE\ne         twice  sum    cpu:0\n"]);
    let output = outrigger_in(directory.path(), &["plan", "--json"]);
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    let node = json!({"node": "twice", "model": "sum", "version": "1", "devices": ["cpu:0"]});
    assert_eq!(plan["ensembles"], json!([{"ensemble": "e", "version": "1", "nodes": [node]}]));
    assert_eq!(plan["placed"].as_array().unwrap().len(), 1, "it has no place of its own");
    std::fs::write(directory.path().join("e/graph.toml"), graph.replace("'sum'", "'sun'")).unwrap();
    let output = outrigger_in(directory.path(), &["plan"]);
    assert_eq!(output.status.code(), Some(3));
    contains(
        &String::from_utf8_lossy(&output.stderr),
        &["model `sun` is not served here, did you mean `sum`?"],
    );
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
async fn its_models_are_loaded_with_the_first_call() {
    let replica = lazily(100, &TWO, &[("e", "a", "b")], "").start();
    assert_eq!([state(&replica, "a").await, state(&replica, "e").await], ["on_disk"; 2]);
    assert_eq!(get(&replica, "/v2/models/e/ready").await.0, 200, "it would be loaded");
    let (status, metadata) = get(&replica, "/v2/models/e").await;
    assert_eq!((status, &metadata["inputs"][1]["name"]), (200, &json!("y")), "{metadata}");
    is_twice(&replica, "e").await;
    assert_eq!(
        [state(&replica, "a").await, state(&replica, "b").await, state(&replica, "e").await],
        ["ready"; 3]
    );
    told(&replica, "/models/b/unload").await;
    assert_eq!(state(&replica, "e").await, "on_disk", "it is as far as the least of its models");
    assert_eq!(told(&replica, "/models/e/load").await["state"], "ready");
    assert_eq!(state(&replica, "b").await, "ready");
    assert_eq!(told(&replica, "/models/e/unload").await["state"], "on_disk");
    assert_eq!(state(&replica, "a").await, "ready", "its models stay");
    is_twice(&replica, "e").await;
    let events = asked(&replica, "/events").await;
    let events = events["events"].as_array().unwrap().clone();
    let of_e: Vec<_> =
        events.iter().filter(|event| event["model"] == "e").map(|event| &event["event"]).collect();
    assert_eq!(of_e, ["loading", "ready", "draining", "unloaded", "loading", "ready"]);
}

#[tokio::test]
async fn what_an_ensemble_says_of_its_load_its_models_do() {
    let rest = "[models.e]\npath = 'e'\nload = 'pinned'";
    let launch = lazily(200, &THREE, &[], rest).file("e/graph.toml", twice("a", "b"));
    let replica = launch.start();
    assert_eq!(
        [state(&replica, "a").await, state(&replica, "c").await, state(&replica, "e").await],
        ["ready", "on_disk", "ready"]
    );
    assert_eq!(asked(&replica, "/models/a").await["pinned"], true);
    assert_eq!(told(&replica, "/models/e/unpin").await["pinned"], false);
    assert_eq!(asked(&replica, "/models/a").await["pinned"], false);
    is_twice(&replica, "e").await;
}

#[test]
fn models_that_are_never_there_together_end_the_start() {
    let text = refused(lazily(50, &TWO, &[("e", "a", "b")], ""), 3);
    contains(
        &text,
        &[
            "ensemble `e`: its models have no place beside each other: model `b` has no place: adder:0: has no room",
            "over its 50",
        ],
    );
    // Of one model twice there is one.
    lazily(50, &TWO, &[("e", "a", "a")], "").start();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ensembles_that_take_each_other_s_room_are_all_answered() {
    let ensembles = [("ab", "a", "b"), ("bc", "b", "c"), ("ca", "c", "a")];
    let replica = lazily(90, &THREE, &ensembles, "loads = 2").start();
    let mut calls = JoinSet::new();
    for number in 0..60 {
        let (name, ..) = ensembles[number % 3];
        let request = infer(&replica, name, call());
        calls.spawn(async move { outcome(request.send().await.unwrap()).await });
    }
    for (status, _, body) in calls.join_all().await {
        assert_eq!(
            (status, &body["outputs"][0]["data"]),
            (200, &json!([22.0, 44.0, 66.0])),
            "{body}\n{}",
            replica.log_text()
        );
    }
    let text = metrics(&replica).await;
    assert!(!text.contains("outrigger_model_evictions_total 0"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_there_together_now_is_refused_at_once() {
    let replica = lazily(90, &THREE, &[("e", "a", "b")], "room_wait = '60s'").start();
    told(&replica, "/models/c/load").await;
    told(&replica, "/models/c/pin").await;
    let (status, code, said) = outputs(&replica, "e", call()).await;
    assert_eq!((status, code.as_str()), (503, "model_unavailable"), "{said}");
    contains(
        said.as_str().unwrap(),
        &["ensemble `e`: its models have no place beside each other: model `b` has no place"],
    );
    let shown = asked(&replica, "/models/e").await;
    contains(shown["refused"].as_str().unwrap(), &["no place beside each other"]);
    // Nobody has suffered for it.
    assert_eq!(outputs(&replica, "a", call()).await.0, 200);
    told(&replica, "/models/c/unpin").await;
    is_twice(&replica, "e").await;
    assert!(asked(&replica, "/models/e").await.get("refused").is_none());
}

#[tokio::test]
async fn a_deadline_ends_what_runs() {
    let models = [("a", "add 3\n"), ("b", "slow 60000")];
    let replica = lazily(100, &models, &[("e", "a", "b")], "").start();
    // The deadline is for the run, however long loading takes.
    told(&replica, "/models/e/load").await;
    let request = infer(&replica, "e", call()).header("x-request-deadline-ms", "500");
    let response = request.send().await.unwrap();
    let (status, code, body) = outcome(response).await;
    assert_eq!((status, code.as_str()), (504, "deadline_exceeded"), "{body}");
    // Its run is cancelled, and then nothing holds the model any more.
    assert_eq!(told(&replica, "/models/b/unload").await["state"], "on_disk");
    until_busy(&replica, 0, 0).await;
    let leaves = tokio::spawn(infer(&replica, "e", call()).send());
    until_busy(&replica, 1, 0).await;
    leaves.abort();
    until_busy(&replica, 0, 0).await;
    assert_eq!(told(&replica, "/models/b/unload").await["state"], "on_disk");
}

#[tokio::test]
async fn a_model_that_does_not_load_is_named() {
    let models = [("a", "add 3\n"), ("b", "nonsense")];
    let replica = lazily(100, &models, &[("e", "a", "b")], "retry = '1h'\nmax_retry = '1h'").start();
    let (status, code, said) = outputs(&replica, "e", call()).await;
    assert_eq!((status, code.as_str()), (503, "model_unavailable"));
    assert_eq!(said, "ensemble `e`: model `b` does not load; the log says why");
    assert_eq!(get(&replica, "/v2/models/e/ready").await.0, 503);
    assert_eq!(state(&replica, "e").await, "failed");
    std::fs::write(replica.directory().join("b.txt"), "add 3\n").unwrap();
    assert_eq!(told(&replica, "/models/e/load").await["state"], "ready", "who asks for it need not wait");
    is_twice(&replica, "e").await;
    // What does not go together is known once its models are.
    let models = [("a", "add 3\n"), ("b", "identity FP32")];
    let replica = lazily(100, &models, &[("e", "a", "b")], "").start();
    let (status, _, said) = outputs(&replica, "e", call()).await;
    assert_eq!(status, 503);
    contains(said.as_str().unwrap(), &["ensemble `e` cannot be had: node `b`: model `b` has no input `y`"]);
    assert_eq!(get(&replica, "/v2/models/e/ready").await.0, 503);
}

/// A device whose memory nobody can read but itself.
#[tokio::test]
async fn what_goes_from_node_to_node_stays_on_the_device() {
    for (process, batch, place) in [("in", 1, "device"), ("out", 1, "device"), ("in", 4, "host")] {
        let config = format!(
            "[placement]\ndevices = ['adder']\n[backends.adder]\nlibrary = '{}'\nprocess = '{process}'\n\
             [models.a]\npath = 'a.txt'\nmax_batch = {batch}\n[models.b]\npath = 'a.txt'\n[models.e]\npath = 'e'\n",
            adder().display()
        );
        let launch = outrigger().file("outrigger.toml", config).file("a.txt", "add 3\n");
        let launch = launch.file("e/graph.toml", twice("a", "b")).args(["--config", "outrigger.toml"]);
        let replica = launch.start();
        for _ in 0..3 {
            is_twice(&replica, "e").await;
        }
        let counted = format!("outrigger_ensemble_tensors_total{{ensemble=\"e\",place=\"{place}\"}} 3");
        contains(&metrics(&replica).await, &[&counted]);
    }
}

async fn put(replica: &ReplicaProcess, model: &str, version: &str) -> (u16, Value) {
    let client = Client::builder().no_proxy().unix_socket(replica.admin_socket()).build().unwrap();
    let request =
        client.put(format!("http://admin/models/{model}/labels/stable")).json(&json!({"version": version}));
    let (status, _, body) = outcome(request.send().await.unwrap()).await;
    (status, body)
}

/// `a` in versions: the first and the second add; the third does not take what the ensemble has for it.
fn versions(rest: &str) -> Launch {
    let config = format!(
        "model_dir = 'models'\n[placement]\ndevices = ['adder']\n[backends.adder]\nlibrary = '{}'\nprocess = 'in'\n{rest}",
        adder().display()
    );
    let launch = outrigger().file("outrigger.toml", config).args(["--config", "outrigger.toml"]);
    let launch = [("1", "add 3\n"), ("2", "add 3\n"), ("3", "identity FP32")].into_iter().fold(
        launch,
        |launch, (version, text)| {
            let launch = launch.file(&format!("models/a/{version}/a.txt"), text);
            launch.file(&format!("models/a/{version}/model.toml"), "file = 'a.txt'\n")
        },
    );
    launch
        .file("models/b/b.txt", "add 3\n")
        .file("models/b/model.toml", "file = 'b.txt'\n")
        .file("models/e/1/graph.toml", twice("a", "b"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_of_a_model_is_had_with_the_next_call() {
    // The highest one would be served, and does not go with the ensemble.
    let launch = versions("[rollout]\nfailures = 5\n");
    std::fs::rename(launch.directory().join("models/a/3"), launch.directory().join("models/a/later"))
        .unwrap();
    let replica = launch.start();
    is_twice(&replica, "e").await;
    let of_a = async || asked(&replica, "/models/e").await["nodes"][0]["version"].clone();
    assert_eq!(of_a().await, "2");
    assert_eq!(put(&replica, "a", "1").await.0, 200);
    is_twice(&replica, "e").await;
    assert_eq!(of_a().await, "1");
    assert_eq!(put(&replica, "a", "1").await.0, 200, "it is not watched any more");

    std::fs::rename(replica.directory().join("models/a/later"), replica.directory().join("models/a/3"))
        .unwrap();
    assert_eq!(put(&replica, "a", "3").await.0, 200);
    let (status, code, said) = outputs(&replica, "e", call()).await;
    assert_eq!((status, code.as_str()), (503, "model_unavailable"));
    contains(said.as_str().unwrap(), &["ensemble `e` cannot be had: node `a`: model `a` has no input `y`"]);
    contains(
        asked(&replica, "/models/e").await["refused"].as_str().unwrap(),
        &["model `a` has no input `y`"],
    );
    assert_eq!(get(&replica, "/v2/models/e/ready").await.0, 503);
    // That counts against the version: with the fifth the one before it is back.
    for _ in 0..5 {
        outputs(&replica, "e", call()).await;
    }
    until("the old one is back", async || outputs(&replica, "e", call()).await.0 == 200).await;
    assert_eq!(of_a().await, "1");
    assert!(asked(&replica, "/models/e").await.get("refused").is_none());
    let log = replica.log_text();
    assert_eq!(
        log.matches("an ensemble cannot be had with the versions that there are now").count(),
        1,
        "said once"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ensemble_has_versions_itself() {
    let launch = versions("");
    std::fs::remove_dir_all(launch.directory().join("models/a/3")).unwrap();
    let launch = launch
        .file("models/e/2/graph.toml", twice("b", "a"))
        .file("models/e/3/graph.toml", twice("b", "none"));
    std::fs::rename(launch.directory().join("models/e/3"), launch.directory().join("models/e/later"))
        .unwrap();
    let replica = launch.start();
    let first = async || asked(&replica, "/models/e").await["nodes"][0]["model"].clone();
    assert_eq!(
        (asked(&replica, "/models/e").await["version"].clone(), first().await),
        (json!("2"), json!("b"))
    );
    assert_eq!(put(&replica, "e", "1").await.0, 200);
    is_twice(&replica, "e").await;
    assert_eq!(first().await, "a");
    std::fs::rename(replica.directory().join("models/e/later"), replica.directory().join("models/e/3"))
        .unwrap();
    let (status, body) = put(&replica, "e", "3").await;
    assert_eq!(status, 409, "{body}");
    contains(&body.to_string(), &["models/e/3/graph.toml: node `b`: model `none` is not served here"]);
    is_twice(&replica, "e").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ensembles_come_from_a_registry() {
    let stored = Stored::folder();
    for name in ["a", "b"] {
        stored.write(&format!("{name}/model.onnx"), onnx::add(3));
        stored.done(&["push", name]);
    }
    stored.write("e/graph.toml", twice("a", "b"));
    stored.write("e/model.toml", "[[samples]]\nrequest = 'ask.json'\nexpect = 'golden.json'\n");
    stored.write("e/ask.json", call());
    let golden = json!({"model_name": "e", "outputs": [row("z", [22.0, 44.0, 66.0])]});
    stored.write("e/golden.json", golden.to_string());
    stored.done(&["push", "e"]);
    for load in ["start", "use"] {
        let replica = stored.replica().args(["--store-models", "*", "--residency-load", load]).start();
        let expected = if load == "start" { "ready" } else { "registered" };
        assert_eq!(state(&replica, "e").await, expected);
        is_twice(&replica, "e").await;
        assert_eq!(state(&replica, "e").await, "ready");
        let listed = admin(&replica, Method::GET, "/models?limit=2").await;
        assert_eq!(outcome(listed).await.2["total"], 3);
    }
}
