//! Series of metrics by model: those of many are summed up.

use outrigger_testkit::{Launch, ReplicaProcess, onnx};
use serde_json::json;

use crate::devices::until;
use crate::support::{infer, metric, outcome, outrigger};

fn serving(models: usize, shown: &str) -> Launch {
    let launch = outrigger().file("add.onnx", onnx::add(3)).args(["--metrics-models", shown]);
    let names: Vec<String> = (0..models).map(|number| format!("m{number}=add.onnx")).collect();
    names.iter().fold(launch, |launch, name| launch.args(["--model", name]))
}

async fn call(replica: &ReplicaProcess, model: &str, times: usize) {
    let tensor = |name: &str| json!({"name": name, "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]});
    let body = json!({"inputs": [tensor("x"), tensor("y")]}).to_string();
    for _ in 0..times {
        assert_eq!(outcome(infer(replica, model, body.clone()).send().await.unwrap()).await.0, 200);
    }
}

async fn counted(replica: &ReplicaProcess, model: &str) -> Option<f64> {
    let name = format!("outrigger_model_requests_total{{model=\"{model}\",outcome=\"ok\"}}");
    metric(replica, &name).await
}

#[tokio::test]
async fn models_without_calls_make_way_for_those_with_and_nothing_goes_back() {
    let replica = serving(4, "2").start();
    call(&replica, "m3", 3).await;
    until("its series", async || counted(&replica, "m3").await == Some(3.0)).await;
    call(&replica, "m2", 2).await;
    until("its series", async || counted(&replica, "m2").await == Some(2.0)).await;
    call(&replica, "m1", 1).await;
    until("the sum of the others", async || counted(&replica, "other").await == Some(1.0)).await;
    assert_eq!((counted(&replica, "m1").await, counted(&replica, "m0").await), (None, None));
    // One that has more calls than another takes its place, and begins with those that are not the others'.
    call(&replica, "m1", 9).await;
    until("its series", async || counted(&replica, "m1").await.is_some()).await;
    assert_eq!(counted(&replica, "m2").await, None);
    let (own, others) = (counted(&replica, "m1").await.unwrap(), counted(&replica, "other").await.unwrap());
    assert!(own + others == 10.0 && others >= 1.0, "{own} and {others}");
    let runs =
        metric(&replica, "outrigger_model_runs_total{device=\"cpu:0\",fallback=\"false\",model=\"m3\"}");
    assert_eq!(runs.await, Some(3.0), "it has been shown all the time");
    // A name that a caller makes up is none of a series.
    let unknown = infer(&replica, "not-there", "{}").send().await.unwrap();
    assert_eq!(outcome(unknown).await.1, "model_not_found");
    assert_eq!(counted(&replica, "not-there").await, None);
}
