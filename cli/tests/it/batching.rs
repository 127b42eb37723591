//! Calls that are run together: each caller gets its own, and one that is at fault fails alone.

use outrigger_testkit::{Launch, ReplicaProcess, onnx};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{self, infer, outcome, outrigger, score};

/// Calls that make a batch. Batches are held back for so long that nothing but a full one can be run.
const WIDTH: usize = 32;

fn picky(config: &str) -> Launch {
    let config = format!("[models.picky]\npath = 'picky.onnx'\n{config}");
    outrigger()
        .file("picky.onnx", onnx::picky(4))
        .file("outrigger.toml", config)
        .args(["--config", "outrigger.toml"])
}

fn tensors(x: &[Vec<f32>], index: &[i64]) -> Value {
    let rows = index.len();
    let width = x.first().map_or(0, Vec::len);
    json!({"inputs": [
        {"name": "x", "datatype": "FP32", "shape": [rows, width], "data": x.concat()},
        {"name": "index", "datatype": "INT64", "shape": [rows], "data": index},
    ]})
}

/// The call with this number: one row.
fn row(number: usize) -> Vec<f32> {
    (0..4).map(|at| (number * 4 + at) as f32).collect()
}

fn expected(x: &[Vec<f32>], index: &[i64]) -> Vec<Vec<f32>> {
    vec![x.concat().iter().map(|x| x.sqrt()).collect(), index.iter().map(|index| *index as f32).collect()]
}

/// The outputs' values, exactly: as few digits are sent as bring the same number back.
fn data(answer: &Value) -> Vec<Vec<f32>> {
    let outputs = answer["outputs"].as_array().into_iter().flatten();
    outputs.map(|output| serde_json::from_value(output["data"].clone()).unwrap()).collect()
}

/// All at once, answered in order.
async fn all(requests: Vec<reqwest::RequestBuilder>) -> Vec<(u16, String, Value)> {
    let mut tasks = JoinSet::new();
    for (number, request) in requests.into_iter().enumerate() {
        tasks.spawn(async move { (number, outcome(request.send().await.unwrap()).await) });
    }
    let mut answers = tasks.join_all().await;
    answers.sort_by_key(|(number, _)| *number);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

async fn metric(replica: &ReplicaProcess, name: &str) -> f64 {
    support::metric(replica, name).await.unwrap_or_else(|| panic!("there is no {name}"))
}

/// 32 calls of which the eleventh is another one; all others must be right.
async fn one_of_many(replica: &ReplicaProcess, odd: Value) -> (u16, String, Value) {
    let request = |number: usize| match number {
        10 => odd.clone(),
        number => tensors(&[row(number)], &[number as i64 % 10]),
    };
    let requests = (0..WIDTH).map(|number| infer(replica, "picky", request(number).to_string())).collect();
    let mut answers = all(requests).await;
    for (number, (status, _, body)) in answers.iter().enumerate().filter(|(number, _)| *number != 10) {
        assert_eq!(*status, 200, "call {number}: {body}");
        assert_eq!(data(body), expected(&[row(number)], &[number as i64 % 10]), "call {number}");
    }
    answers.swap_remove(10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_batch_only_the_call_at_fault_fails() {
    let replica = picky("max_batch = 32\nmax_delay = '1h'").start();
    let bisections = "outrigger_batch_bisections_total{model=\"picky\"}";
    let wide = "outrigger_batch_rows_bucket{model=\"picky\",le=\"16\"}";
    let runs = "outrigger_batch_rows_count{model=\"picky\"}";

    // Nothing is wrong with any of them.
    let (status, _, body) = one_of_many(&replica, tensors(&[row(10)], &[7])).await;
    assert_eq!((status, data(&body)), (200, expected(&[row(10)], &[7])));
    assert_eq!(
        (metric(&replica, runs).await, metric(&replica, wide).await),
        (1.0, 0.0),
        "one run of 32 rows"
    );
    assert_eq!(metric(&replica, "outrigger_batch_rows_sum{model=\"picky\"}").await, 32.0);

    // A row that makes the run fail: one half on each of five levels.
    let (status, code, body) = one_of_many(&replica, tensors(&[row(10)], &[99])).await;
    assert_eq!((status, code.as_str()), (400, "invalid_tensor"), "{body}");
    assert!(body["error"].as_str().unwrap().contains("out of data bounds"), "{body}");
    assert_eq!(metric(&replica, bisections).await, 5.0);

    // A row whose result is NaN, which JSON cannot say.
    let (status, code, body) = one_of_many(&replica, tensors(&[vec![1.0, -1.0, 4.0, 9.0]], &[1])).await;
    assert_eq!((status, code.as_str()), (500, "result_not_finite"), "{body}");
    assert_eq!(metric(&replica, bisections).await, 5.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_too_large_or_does_not_fit_leaves_the_others_alone() {
    let replica = picky("max_batch = 32\nmax_delay = '100ms'\n[limits]\nbody = '64KiB'").start();
    let (status, code, body) = one_of_many(&replica, tensors(&[vec![1.0; 5]], &[1])).await;
    assert_eq!((status, code.as_str()), (400, "invalid_tensor"), "{body}");

    let much = tensors(&vec![row(1); 4000], &[1; 4000]);
    let (status, code, body) = one_of_many(&replica, much).await;
    assert_eq!((status, code.as_str()), (413, "body_too_large"), "{body}");

    // More rows than a batch may have are run by themselves, those of no rows too.
    let many: Vec<_> = (0..50).map(row).collect();
    let (status, _, body) = one_of_many(&replica, tensors(&many, &[3; 50])).await;
    assert_eq!((status, data(&body)), (200, expected(&many, &[3; 50])));
    let (status, _, body) = one_of_many(
        &replica,
        json!({"inputs": [
            {"name": "x", "datatype": "FP32", "shape": [0, 4], "data": []},
            {"name": "index", "datatype": "INT64", "shape": [0], "data": []},
        ]}),
    )
    .await;
    assert_eq!((status, data(&body)), (200, vec![vec![]; 2]));
    assert_eq!(metric(&replica, "outrigger_batch_bisections_total{model=\"picky\"}").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_need_not_be_the_same() {
    let replica = picky("max_batch = 32\nmax_delay = '100ms'").start();
    let requests = (0..WIDTH).map(|number| {
        let mut request = tensors(&[row(number), row(number + 1)], &[1, 2]);
        match number % 3 {
            0 => request["outputs"] = json!([{"name": "picked"}]),
            1 => request["outputs"] = json!([{"name": "picked"}, {"name": "root"}]),
            _ => {}
        }
        infer(&replica, "picky", request.to_string())
    });
    for (number, (status, _, body)) in all(requests.collect()).await.into_iter().enumerate() {
        let whole = expected(&[row(number), row(number + 1)], &[1, 2]);
        let wanted = match number % 3 {
            0 => vec![whole[1].clone()],
            1 => vec![whole[1].clone(), whole[0].clone()],
            _ => whole,
        };
        assert_eq!((status, data(&body)), (200, wanted), "call {number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_several_workers_are_run_together() {
    let script = r#"
import json
import numpy
from outrigger import model

def init():
    global picky
    picky = model("picky")

def run(data):
    index = json.loads(data)
    answer = picky.predict(x=numpy.full((1, 4), float(index), "float32"), index=numpy.array([index]))
    return [answer["picked"].tolist(), answer["root"].tolist()]
"#;
    // Held back until there is one of each worker.
    let launch = picky("max_batch = 3\nmax_delay = '1h'");
    let replica = launch.script(script).args(["--script-workers", "3"]).start();
    for _ in 0..4 {
        let answers = all([4, 9, 1].map(|index| score(&replica, index.to_string())).into()).await;
        for (index, (status, _, body)) in [4f32, 9.0, 1.0].into_iter().zip(answers) {
            assert_eq!((status, body), (200, json!([[index], [vec![index.sqrt(); 4]]])));
        }
    }
    assert_eq!(metric(&replica, "outrigger_batch_rows_count{model=\"picky\"}").await, 4.0);
    assert_eq!(metric(&replica, "outrigger_batch_rows_sum{model=\"picky\"}").await, 12.0);
}

#[test]
fn a_model_that_cannot_batch_is_a_mistake_of_the_configuration() {
    let ended = outrigger()
        .file("square.onnx", onnx::outer())
        .file("outrigger.toml", "[models.square]\npath = 'square.onnx'\nmax_batch = 8")
        .args(["--config", "outrigger.toml"])
        .run();
    assert_eq!(ended.status.code(), Some(2), "{}", ended.text());
    let text = ended.log.iter().map(ToString::to_string).collect::<String>();
    for part in
        ["models.square.max_batch", "the first dimension is `n` in input `x` and `m`", "set max_batch = 1"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

const SCRIPT: &str = r#"
import json
def init():
    pass
def run_batch(items):
    if "\"poison\"" in items:
        raise ValueError("a poisoned item")
    return [float("nan") if item == "\"nan\"" else [json.loads(item), len(items)] for item in items]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_script_s_batch_only_the_call_at_fault_fails() {
    let args = ["--script-max-batch", "32", "--script-max-delay", "1h"];
    let replica = outrigger().script(SCRIPT).args(args).start();
    for (odd, code) in [("poison", "script_error"), ("nan", "script_result_unserialisable")] {
        let body = |number: usize| if number == 10 { json!(odd) } else { json!(number) };
        let answers = all((0..WIDTH).map(|number| score(&replica, body(number).to_string())).collect()).await;
        for (number, (status, said, body)) in answers.into_iter().enumerate() {
            if number == 10 {
                assert_eq!((status, said.as_str()), (500, code), "{body}");
            } else {
                assert_eq!((status, &body[0]), (200, &json!(number)), "{odd}: {body}");
            }
        }
    }
    // Said once, with the stack, and not on every level.
    let log = replica.stop().text();
    assert_eq!(log.matches("run() raised").count(), 1, "{log}");
    assert!(log.contains("a poisoned item"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_too_large_for_a_script_s_batch_leaves_the_others_alone() {
    let args = ["--script-max-batch", "31", "--script-max-delay", "1h", "--limits-body", "1KiB"];
    let replica = outrigger().script(SCRIPT).args(args).start();
    let body = |number: usize| if number == 10 { json!("x".repeat(2000)) } else { json!(number) };
    let answers = all((0..WIDTH).map(|number| score(&replica, body(number).to_string())).collect()).await;
    for (number, (status, code, body)) in answers.into_iter().enumerate() {
        match number {
            10 => assert_eq!((status, code.as_str()), (413, "body_too_large"), "{body}"),
            _ => assert_eq!((status, body), (200, json!([number, 31]))),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_s_batch_is_not_run_again_where_that_is_not_wanted() {
    let args = ["--script-max-batch", "3", "--script-max-delay", "1h", "--script-bisect=false"];
    let replica = outrigger().script(SCRIPT).args(args).start();
    let answers = all(["1", "\"poison\"", "3"].map(|body| score(&replica, body)).into()).await;
    for (status, code, body) in answers {
        assert_eq!((status, code.as_str()), (500, "script_error"), "{body}");
    }
}
