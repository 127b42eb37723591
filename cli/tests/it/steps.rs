//! Steps before and after a model by its `model.toml`: callers send images as bytes and get classes, whatever the model takes and gives.

use std::time::Duration;

use outrigger_backend::DataType;
use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess, onnx};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::placement::{adder, contains, metrics, outrigger_in, refused};
use crate::support::{client, infer, outcome, outrigger, score};

/// Pixels along each side of what the network takes.
pub(crate) const SIDE: usize = 8;
pub(crate) const CLASSES: usize = 6;
const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const STD: [f64; 3] = [0.229, 0.224, 0.225];

/// Weight of a channel for a class.
pub(crate) fn weight(channel: usize, class: usize) -> f32 {
    ((channel * 7 + class * 5) % 11) as f32 / 4.0 - 1.0
}

/// The mean of each channel times weights: `logits` of `[batch, 6]` for `pixels` of `[batch, 3, side, side]`, FP32.
fn network(side: usize) -> Vec<u8> {
    use onnx::Dim::{Fixed, Named};
    let mut graph = onnx::Graph::default();
    let side = Fixed(side as i64);
    graph.input("pixels", DataType::Fp32, &[Named("batch"), Fixed(3), side, side]);
    graph.output("logits", DataType::Fp32, &[Named("batch"), Fixed(CLASSES as i64)]);
    let weights: Vec<f32> =
        (0..3).flat_map(|channel| (0..CLASSES).map(move |class| weight(channel, class))).collect();
    graph.initializer("weights", &[3, CLASSES as i64], &weights);
    graph.node("GlobalAveragePool", &["pixels"], &["means"]);
    graph.node("Flatten", &["means"], &["flat"]);
    graph.node("Gemm", &["flat", "weights"], &["logits"]);
    graph.model()
}

pub(crate) const MANIFEST: &str = r#"
[[inputs]]
name = "image"
datatype = "UINT8"
shape = ["n", "height", "width", 3]

[[before]]
step = "resize"
height = 8
width = 8
mode = "nearest"

[[before]]
step = "convert"
datatype = "FP32"

[[before]]
step = "normalize"
scale = 0.00392156862745098
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]

[[before]]
step = "layout"
layout = "NCHW"
to = "pixels"

[[after]]
step = "softmax"

[[after]]
step = "top_k"
k = 2
to = "scores"
indices = "classes"

[[outputs]]
name = "classes"
datatype = "INT64"
shape = [-1, 2]

[[outputs]]
name = "scores"
datatype = "FP32"
shape = ["n", 2]
"#;

fn with(top: &str, manifest: &str) -> Launch {
    outrigger()
        .file("models/classes/classes.onnx", network(SIDE))
        .file("models/classes/model.toml", format!("{top}\n{manifest}"))
        .args(["--model-dir", "models", "--admin-listen", "127.0.0.1:0"])
}

/// An image that is like no other.
pub(crate) fn image(seed: usize, height: usize, width: usize) -> Vec<u8> {
    (0..height * width * 3).map(|at| ((at * 31 + seed * 101 + at % 3 * seed * 40) % 251) as u8).collect()
}

pub(crate) fn body(images: &[Vec<u8>], height: usize, width: usize) -> String {
    let shape = [images.len(), height, width, 3];
    json!({"inputs": [{"name": "image", "datatype": "UINT8", "shape": shape, "data": images.concat()}]})
        .to_string()
}

/// The best two classes of an image, and how likely they are: all of it calculated here, in 64 bits.
fn expected(image: &[u8], height: usize, width: usize) -> [(usize, f64); 2] {
    let pick = |at: usize, from: usize| (2 * at + 1) * from / (2 * SIDE);
    let mut means = [0.0; 3];
    for (y, x) in (0..SIDE).flat_map(|y| (0..SIDE).map(move |x| (y, x))) {
        for (channel, mean) in means.iter_mut().enumerate() {
            let byte = image[(pick(y, height) * width + pick(x, width)) * 3 + channel];
            *mean += (f64::from(byte) / 255.0 - MEAN[channel]) / STD[channel] / (SIDE * SIDE) as f64;
        }
    }
    let logit = |class: usize| (0..3).map(|at| means[at] * f64::from(weight(at, class))).sum::<f64>();
    let all: Vec<f64> = (0..CLASSES).map(|class| logit(class).exp()).collect();
    let mut order: Vec<usize> = (0..CLASSES).collect();
    order.sort_by(|one, other| all[*other].total_cmp(&all[*one]));
    [0, 1].map(|at| (order[at], all[order[at]] / all.iter().sum::<f64>()))
}

/// Whether an answer has, row by row, what it should.
pub(crate) fn is_right(answer: &Value, images: &[Vec<u8>], height: usize, width: usize) {
    let outputs = &answer["outputs"];
    assert_eq!((&outputs[0]["name"], &outputs[1]["name"]), (&json!("classes"), &json!("scores")), "{answer}");
    assert_eq!(outputs[1]["shape"], json!([images.len(), 2]), "{answer}");
    for (row, image) in images.iter().enumerate() {
        for (column, (class, score)) in expected(image, height, width).into_iter().enumerate() {
            let at = row * 2 + column;
            assert_eq!(outputs[0]["data"][at], json!(class), "{answer}");
            let got = outputs[1]["data"][at].as_f64().unwrap();
            assert!((got - score).abs() < 1e-5, "{got} is not {score}: {answer}");
        }
    }
}

pub(crate) async fn call(replica: &ReplicaProcess, body: String) -> (u16, String, Value) {
    outcome(infer(replica, "classes", body).send().await.unwrap()).await
}

#[tokio::test]
async fn the_docs_show_one() {
    let docs = include_str!("../../../docs/model.md");
    let mut blocks = docs.split("```toml\n").skip(1).filter_map(|block| block.split("```").next());
    let example = blocks.find(|block| block.contains("before = [")).unwrap();
    let replica = with("", example).file("models/classes/classes.onnx", network(224)).start();
    let (status, _, answer) = call(&replica, body(&[image(1, 30, 40), image(2, 30, 40)], 30, 40)).await;
    assert_eq!(status, 200, "{answer}");
    let outputs: Vec<_> =
        [0, 1].map(|at| (&answer["outputs"][at]["name"], &answer["outputs"][at]["shape"])).into();
    assert_eq!(outputs, [(&json!("scores"), &json!([2, 5])), (&json!("classes"), &json!([2, 5]))]);
}

/// Sixteen calls at once.
pub(crate) async fn together(replica: &ReplicaProcess) {
    let mut calls = JoinSet::new();
    for seed in 0..16 {
        let request = infer(replica, "classes", body(&[image(seed, 6, 5)], 6, 5));
        calls.spawn(async move { (seed, outcome(request.send().await.unwrap()).await) });
    }
    for (seed, (status, _, answer)) in calls.join_all().await {
        assert_eq!(status, 200, "{answer}");
        is_right(&answer, &[image(seed, 6, 5)], 6, 5);
    }
}

#[tokio::test]
async fn images_go_in_as_bytes_and_classes_come_out() {
    // The steps are the replica's, wherever the model is.
    for process in ["in", "out"] {
        let config = format!("[backends.cpu]\nprocess = '{process}'");
        let launch = with("", MANIFEST).file("outrigger.toml", config);
        let replica = launch.args(["--config", "outrigger.toml"]).start();
        let url = format!("{}/v2/models/classes", replica.score);
        let (_, _, metadata) = outcome(client().get(url).bearer_auth(KEY).send().await.unwrap()).await;
        let image_input = json!([{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]);
        assert_eq!(metadata["inputs"], image_input, "{metadata}");
        let classes = json!({"name": "classes", "datatype": "INT64", "shape": [-1, 2]});
        let scores = json!({"name": "scores", "datatype": "FP32", "shape": [-1, 2]});
        assert_eq!(metadata["outputs"], json!([classes, scores]), "{metadata}");
        for (count, height, width) in [(1, 8, 8), (3, 5, 20), (2, 33, 9), (1, 1, 1)] {
            let images: Vec<_> = (0..count).map(|seed| image(seed, height, width)).collect();
            let (status, _, answer) = call(&replica, body(&images, height, width)).await;
            assert_eq!(status, 200, "{answer}");
            is_right(&answer, &images, height, width);
        }
        let sent = image(0, 4, 4);
        let good = body(std::slice::from_ref(&sent), 4, 4);
        for (from, to, said) in [
            ("UINT8", "FP32", "`image`"),
            ("[1,4,4,3]", "[1,4,12,1]", "`image`"),
            ("[1,4,4,3]", "[48]", "`image`"),
            ("\"image\"", "\"pixels\"", "`pixels`"),
        ] {
            assert!(good.contains(from));
            let (status, _, answer) = call(&replica, good.replace(from, to)).await;
            assert!(status == 400 && answer["error"].as_str().unwrap().contains(said), "{status} {answer}");
        }
        let none = body(&[Vec::new()], 0, 4);
        let (status, code, answer) = call(&replica, none).await;
        assert_eq!((status, code.as_str()), (400, "invalid_tensor"), "{answer}");
        contains(answer["error"].as_str().unwrap(), &["step 1 (`resize`)", "images of 0 x 4 pixels"]);
    }
}

#[tokio::test]
async fn what_steps_take_is_bounded() {
    // 8 × 8 × 3 for each image: as bytes, and in FP32 three times; and where each of 8 + 8 rows and columns comes from.
    let takes = |images: usize| 8 * 8 * 3 * 13 * images + 12 * (8 + 8);
    let limit = takes(10);
    let replica = with("", MANIFEST).args(["--limits-steps", &format!("{limit}B")]).start();
    let images = |count: usize| (0..count).map(|seed| image(seed, 1, 2)).collect::<Vec<_>>();
    assert_eq!(call(&replica, body(&images(10), 1, 2)).await.0, 200);
    let (status, code, answer) = call(&replica, body(&images(11), 1, 2)).await;
    assert_eq!((status, code.as_str()), (400, "invalid_tensor"), "{answer}");
    let took = takes(11);
    let said = format!("the steps before the model take {took} bytes, more than limits.steps, {limit} bytes");
    contains(answer["error"].as_str().unwrap(), &[&said]);
    // Of sixteen that come together as many go together as may, and are then held back no longer.
    let limit = 8 * takes(1);
    let replica = with("max_batch = 16\nmax_delay = '1h'", MANIFEST);
    let replica = replica.args(["--limits-steps", &format!("{limit}B")]).start();
    together(&replica).await;
    contains(
        &metrics(&replica).await,
        &[
            "outrigger_batch_bisections_total{model=\"classes\"} 0\n",
            "outrigger_model_runs_total{device=\"cpu:0\",fallback=\"false\",model=\"classes\"} 2\n",
            "outrigger_batch_rows_sum{model=\"classes\"} 16\n",
            "outrigger_batch_rows_bucket{model=\"classes\",le=\"8\"} 2\n",
        ],
    );
    // One that can never be run is not held back, nor does it hold up others.
    let refused = tokio::time::timeout(Duration::from_secs(60), call(&replica, body(&images(11), 1, 2)));
    let (status, code, answer) = refused.await.expect("it is refused at once");
    assert_eq!((status, code.as_str()), (400, "invalid_tensor"), "{answer}");
    let said = format!("the steps before the model take {took} bytes, more than limits.steps, {limit} bytes");
    contains(answer["error"].as_str().unwrap(), &[&said]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_through_the_steps_together() {
    // Held back for so long that nothing but a full batch can be run.
    let replica = with("max_batch = 16\nmax_delay = '1h'", MANIFEST).start();
    together(&replica).await;
    let text = metrics(&replica).await;
    contains(
        &text,
        &["outrigger_model_runs_total{device=\"cpu:0\",fallback=\"false\",model=\"classes\"} 1\n"],
    );
}

#[tokio::test]
async fn a_script_has_the_model_with_its_steps() {
    let script = r#"
import json
import numpy as np
from outrigger import model

def init():
    global classes
    classes = model("classes")

def run(data):
    image = np.asarray(json.loads(data), dtype=np.uint8)
    got = classes.predict(image)
    near = [[(2 * at + 1) * side // 16 for at in range(8)] for side in image.shape[1:3]]
    x = image[:, near[0]][:, :, near[1]] / 255
    x = (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    weights = [[(channel * 7 + label * 5) % 11 / 4 - 1 for label in range(6)] for channel in range(3)]
    e = np.exp(x.mean(axis=(1, 2)) @ np.array(weights))
    scores = e / e.sum(axis=1, keepdims=True)
    order = np.argsort(-scores, axis=1)[:, :2]
    return [
        [list(tensor.shape) for tensor in (got["classes"], got["scores"])],
        bool((got["classes"] == order).all()),
        bool(np.allclose(got["scores"], np.take_along_axis(scores, order, 1), atol=1e-5)),
    ]
"#;
    let launch =
        with("", MANIFEST).script(script).file("outrigger.toml", "[models.classes]\npath = 'models/classes'");
    let replica = launch.args(["--config", "outrigger.toml"]).start();
    let images: Vec<Vec<Vec<[usize; 3]>>> = (0..3)
        .map(|n| (0..11).map(|y| (0..9).map(|x| [n * 50 + x, y * 20, (x * y * 3) % 250]).collect()).collect())
        .collect();
    let answer = outcome(score(&replica, json!(images).to_string()).send().await.unwrap()).await;
    assert_eq!(answer, (200, String::new(), json!([[[3, 2], [3, 2]], true, true])));
}

#[tokio::test]
async fn a_backend_that_must_be_told_is_told_what_comes_out_of_the_steps() {
    let config = format!("[backends.adder]\nlibrary = '{}'\nprocess = 'in'", adder().display());
    let manifest = "file = 'words.txt'\nformat = 'text'\ndevices = ['adder']
        inputs = [{name = 'x', datatype = 'UINT8', shape = ['n', 4]}]
        outputs = [{name = 'y', datatype = 'FP32', shape = ['n']}]
        before = [{step = 'convert', datatype = 'FP32'}]";
    // Its model is what it was told: with another input, what steps give would not be what it takes.
    let replica = outrigger()
        .file("models/told/model.toml", manifest)
        .file("models/told/words.txt", "said beside")
        .file("outrigger.toml", config)
        .args(["--config", "outrigger.toml", "--model-dir", "models"])
        .start();
    let url = format!("{}/v2/models/told", replica.score);
    let (_, _, metadata) = outcome(client().get(url).bearer_auth(KEY).send().await.unwrap()).await;
    assert_eq!(
        metadata["inputs"],
        json!([{"name": "x", "datatype": "UINT8", "shape": [-1, 4]}]),
        "{metadata}"
    );
}

#[test]
fn samples_and_plans_are_those_of_callers() {
    let sent = image(3, 7, 7);
    let [(first, one), (second, two)] = expected(&sent, 7, 7);
    let golden = |first: usize| {
        let outputs = json!([
            {"name": "classes", "datatype": "INT64", "shape": [1, 2], "data": [first, second]},
            {"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [one, two]},
        ]);
        json!({"outputs": outputs}).to_string()
    };
    let launch = |first: usize| {
        let sample = "[[samples]]\nrequest = 'request.json'\nexpect = 'golden.json'\nrtol = 1e-4";
        with("", &format!("{MANIFEST}\n{sample}"))
            .file("models/classes/request.json", body(std::slice::from_ref(&sent), 7, 7))
            .file("models/classes/golden.json", golden(first))
    };
    drop(launch(first).start());
    let wrong = refused(launch(second), 3);
    contains(&wrong, &["sample request.json: output `classes` at index 0 is", "in golden.json"]);

    let plan = |manifest: &str| {
        let launch = with("", manifest).file("outrigger.toml", "");
        let output = outrigger_in(launch.directory(), &["plan", "--model-dir", "models"]);
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        (output.status.success(), text)
    };
    let (planned, text) = plan(MANIFEST);
    assert!(planned && text.contains("classes"), "{text}");
    let (planned, text) = plan(&MANIFEST.replace("\"resize\"", "\"resise\""));
    assert!(
        !planned && text.contains("step 1 of `[[before]]` (`resise`): unknown variant `resise`"),
        "{text}"
    );
}

#[test]
fn what_does_not_fit_ends_the_start() {
    for (from, to, said) in [
        (
            "height = 8",
            "height = 9",
            "`[[before]]` gives `pixels` FP32 [-1, 3, 9, 8], the model takes `pixels` FP32 [-1, 3, 8, 8]",
        ),
        (
            "to = \"pixels\"",
            "to = \"pixel\"",
            "the model takes `pixels` FP32 [-1, 3, 8, 8], and after `[[before]]` there are only `image`, `pixel`",
        ),
        ("mean =", "maen =", "step 3 of `[[before]]` (`normalize`): unknown field `maen`"),
        ("k = 2", "k = 7", "`[[after]]`: step 2 (`top_k`): `k` is 7, axis -1 of tensor `logits` has 6"),
        (
            "shape = [-1, 2]",
            "shape = [-1, 3]",
            "output `classes` has shape [-1, 2] in the model, not [-1, 3]",
        ),
        ("[[inputs]]", "[[input]]", "unknown key `input`, did you mean `inputs`?"),
    ] {
        assert!(MANIFEST.contains(from));
        contains(&refused(with("", &MANIFEST.replacen(from, to, 1)), 3), &["classes/model.toml", said]);
    }
    let mixes = MANIFEST.replace("step = \"softmax\"", "step = \"softmax\"\naxis = 0");
    drop(with("", &mixes).start());
    let said = "`models.classes.max_batch` is 4, and model `classes` cannot run several calls at once: step 1 of `[[after]]` (`softmax`) does not take each row";
    contains(&refused(with("max_batch = 4", &mixes), 2), &[said]);
}

#[test]
fn steps_do_not_hide_that_a_model_s_outputs_are_no_rows_of_calls() {
    use onnx::Dim::{Fixed, Named};
    let mut found = onnx::Graph::default();
    found.input("x", DataType::Fp32, &[Named("batch"), Fixed(2)]);
    found.output("boxes", DataType::Fp32, &[Named("found"), Fixed(2)]);
    found.node("Identity", &["x"], &["boxes"]);
    let mut pairs = onnx::Graph::default();
    pairs.input("x", DataType::Fp32, &[Named("batch"), Fixed(2)]);
    pairs.output("boxes", DataType::Fp32, &[Named("batch"), Named("batch")]);
    pairs.node("Transpose", &["x"], &["t"]);
    pairs.node("MatMul", &["x", "t"], &["boxes"]);
    for (model, said) in [(found, "found"), (pairs, "batch")] {
        for place in ["host", "device"] {
            for rows in ["-1", "'n'", "'batch'", "'found'"] {
                let manifest = format!(
                    "max_batch = 4\nsteps = '{place}'\n[[inputs]]\nname = 'x'\ndatatype = 'UINT8'\nshape = [{rows}, 2]\n\
                    [[before]]\nstep = 'convert'\ndatatype = 'FP32'"
                );
                let launch = outrigger()
                    .file("models/boxes/boxes.onnx", model.model())
                    .file("models/boxes/model.toml", manifest)
                    .args(["--model-dir", "models"]);
                let text = refused(launch, 2);
                contains(&text, &["model `boxes` cannot run several calls at once"]);
                assert!(place == "device" || text.contains(said), "{text}");
            }
        }
    }
}

/// What a model gives depends on what is in its inputs, and is known after its run alone.
#[tokio::test]
async fn what_comes_out_of_steps_in_a_graph_is_bounded_too() {
    use onnx::Dim::{Fixed, Named};
    let mut graph = onnx::Graph::default();
    graph.input("x", DataType::Fp32, &[Named("n"), Fixed(2)]);
    graph.output("y", DataType::Int64, &[Fixed(2), Named("found")]);
    graph.node("NonZero", &["x"], &["y"]);
    for place in ["host", "device"] {
        let manifest = format!("steps = '{place}'\n[[after]]\nstep = 'convert'\ndatatype = 'FP32'");
        let replica = outrigger()
            .file("models/classes/classes.onnx", graph.model())
            .file("models/classes/model.toml", manifest)
            .args(["--model-dir", "models", "--limits-steps", "200B"])
            .start();
        let body = |rows: usize| {
            let data = vec![1.0; 2 * rows];
            json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 2], "data": data}]})
                .to_string()
        };
        let (status, _, answer) = call(&replica, body(2)).await;
        assert_eq!(status, 200, "{answer}");
        let (status, _, answer) = call(&replica, body(40)).await;
        assert_eq!(status, 400, "{answer}");
        contains(&answer.to_string(), &["more than limits.steps, 200 bytes"]);
    }
}

/// What steps can be in a graph, all of it, of the same kind as [`MANIFEST`].
const IN_GRAPH: &str = r#"
[[inputs]]
name = "image"
datatype = "UINT8"
shape = ["n", "height", "width", 3]

[[before]]
step = "resize"
height = 8
width = 8

[[before]]
step = "normalize"
scale = 0.00392156862745098
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]

[[before]]
step = "layout"
layout = "NCHW"
to = "pixels"

[[after]]
step = "softmax"
"#;

/// What the admin socket says of where the model's steps run.
async fn said_of_steps(replica: &ReplicaProcess) -> Vec<String> {
    let url = format!("http://{}/status", replica.admin);
    let status = client().get(url).bearer_auth(KEY).send().await.unwrap();
    let status: Value = status.json().await.unwrap();
    serde_json::from_value(status["models"][0]["steps"].clone()).unwrap()
}

/// Holds the answers of two replicas against each other, and gives how many there were.
async fn agree(one: &ReplicaProcess, other: &ReplicaProcess) -> usize {
    let calls = [(1, 8, 8), (3, 5, 20), (2, 33, 9), (1, 1, 1), (1, 200, 300)];
    for (count, height, width) in calls {
        let images: Vec<_> = (0..count).map(|seed| image(seed, height, width)).collect();
        let (status, _, expected) = call(one, body(&images, height, width)).await;
        assert_eq!(status, 200, "{expected}");
        let (status, _, answer) = call(other, body(&images, height, width)).await;
        assert_eq!(status, 200, "{answer}");
        let both = [&expected, &answer].map(|answer| {
            let output = &answer["outputs"][0];
            assert_eq!(output["shape"], json!([count, CLASSES]), "{answer}");
            serde_json::from_value::<Vec<f64>>(output["data"].clone()).unwrap()
        });
        let near = both[0].iter().zip(&both[1]).all(|(one, other)| (one - other).abs() < 1e-4);
        assert!(near, "{both:?}");
    }
    calls.len()
}

/// The same mistakes, told in the same words.
async fn refuse_alike(one: &ReplicaProcess, other: &ReplicaProcess) {
    let good = body(&[image(0, 4, 4)], 4, 4);
    let bad = [
        body(&[Vec::new()], 0, 4),
        good.replace("UINT8", "FP32"),
        good.replace("[1,4,4,3]", "[1,4,12,1]"),
        good.replace("[1,4,4,3]", "[48]"),
        good.replace("\"image\"", "\"pixels\""),
    ];
    for bad in bad {
        let (status, code, answer) = call(one, bad.clone()).await;
        assert!(status == 400, "{answer}");
        assert_eq!(call(other, bad).await, (status, code, answer));
    }
}

#[tokio::test]
async fn steps_in_the_graph_of_a_model_give_what_they_give_outside() {
    let host = with("steps = 'host'", IN_GRAPH).start();
    let said = [
        "cpu:0: steps before the model run on the CPU: `steps` is \"host\"",
        "cpu:0: steps after the model run on the CPU: `steps` is \"host\"",
    ];
    assert_eq!(said_of_steps(&host).await, said);
    for process in ["in", "out"] {
        let cache = "settings = ['cache=cache']";
        let config = format!("[backends.cpu]\nprocess = '{process}'\n{cache}");
        let launch = with("steps = 'device'\nmax_batch = 4", IN_GRAPH).file("outrigger.toml", config);
        let mut device = launch.args(["--config", "outrigger.toml"]).start();
        let said = ["before", "after"]
            .map(|side| format!("cpu:0: steps {side} the model run on the device, in its graph"));
        assert_eq!(said_of_steps(&device).await, said);
        assert_eq!(agree(&host, &device).await, 5);
        refuse_alike(&host, &device).await;
        device.wait_for_text("steps before the model run on the device, in its graph");
    }
    // On the CPU nothing is gained by itself.
    let auto = with("", IN_GRAPH).start();
    assert!(said_of_steps(&auto).await[0].ends_with("on the CPU: the device's memory is the host's"));
    // What steps make is bounded wherever they do.
    let limit = ["--limits-steps", "20000B"];
    let [host, device] =
        ["host", "device"].map(|place| with(&format!("steps = '{place}'"), IN_GRAPH).args(limit).start());
    let large = body(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(|seed| image(seed, 8, 8)), 8, 8);
    let [refused, alike] = [call(&host, large.clone()).await, call(&device, large).await];
    assert_eq!((refused.0, refused.1.as_str()), (400, "invalid_tensor"), "{}", refused.2);
    assert_eq!(refused, alike);
}

#[test]
fn steps_that_cannot_be_in_a_graph_are_named() {
    let why = "step 2 of `[[after]]` (`top_k`): ONNX leaves open which of equal values come first, and where NaN comes";
    let log = refused(with("steps = 'device'", MANIFEST), 3);
    contains(&log, &["`steps` is \"device\", and those after the model cannot be there: ", why]);
    let plan = |top: &str| {
        let launch = with(top, MANIFEST).file("outrigger.toml", "");
        let output = outrigger_in(launch.directory(), &["plan", "--model-dir", "models"]);
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        // In lines as long as they fit.
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    contains(&plan("steps = 'device'"), &["no place", why]);
    contains(&plan(""), &["steps before the model run on the CPU: the device's memory is the host's"]);
    let log = refused(with("steps = 'gpu'", MANIFEST), 3);
    contains(&log, &["`steps` is \"gpu\", expected one of auto, device, host"]);
}

/// On WebGPU, with a driver in software. One side is there, and the other is not.
#[tokio::test]
async fn a_device_with_memory_of_its_own_has_the_steps_by_itself() {
    let webgpu = match outrigger_testkit::webgpu::set_up() {
        Ok(webgpu) => webgpu,
        Err(missing) => return println!("skipped: {missing}"),
    };
    let config =
        format!("[backends.gpu]\nsettings = ['software=true', 'onnxruntime={}']", webgpu.library.display());
    let on_gpu = |manifest: &str| {
        let launch = with("devices = ['gpu']", manifest).file("outrigger.toml", &config);
        launch
            .args(["--config", "outrigger.toml"])
            .env("VK_DRIVER_FILES", &webgpu.driver)
            .env("VK_ICD_FILENAMES", &webgpu.driver)
    };
    let (host, gpu) = (with("", IN_GRAPH).start(), on_gpu(IN_GRAPH).start());
    let in_graph = ["before", "after"]
        .map(|side| format!("gpu:0: steps {side} the model run on the device, in its graph"));
    assert_eq!(said_of_steps(&gpu).await, in_graph);
    agree(&host, &gpu).await;
    refuse_alike(&host, &gpu).await;
    drop(gpu);
    let with_top =
        format!("{IN_GRAPH}\n[[after]]\nstep = 'top_k'\nk = 2\nto = 'scores'\nindices = 'classes'");
    let gpu = on_gpu(&with_top).start();
    let said = said_of_steps(&gpu).await;
    assert_eq!(said[0], in_graph[0]);
    assert!(
        said[1].starts_with("gpu:0: steps after the model run on the CPU: step 2 of `[[after]]` (`top_k`): "),
        "{said:?}"
    );
    let (status, _, answer) = call(&gpu, body(&[image(1, 9, 7)], 9, 7)).await;
    assert_eq!((status, &answer["outputs"][1]["shape"]), (200, &json!([1, 2])), "{answer}");
}
