//! What is found out before a call comes: mistakes, samples, and the plan.

use outrigger_testkit::onnx;
use serde_json::{Value, json};

use super::{DIAMOND, get, one, row, serving};
use crate::placement::{contains, outrigger_in, refused};

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
