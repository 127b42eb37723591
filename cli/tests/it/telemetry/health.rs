//! Health that tells the truth: what is asked of a replica while it comes up, is full, and has something wrong with it.

use std::net::TcpListener;

use outrigger_testkit::{ReplicaProcess, onnx};
use serde_json::{Value, json};

use crate::devices::until;
use crate::support::{client, infer, metric, outcome, outrigger, score, until_busy};

async fn get(replica: &ReplicaProcess, path: &str) -> (u16, Value) {
    let response = client().get(format!("{}{path}", replica.observe)).send().await.unwrap();
    let (status, _, body) = outcome(response).await;
    (status, body)
}

#[tokio::test]
async fn a_replica_that_comes_up_is_live_then_started_then_ready() {
    let launch = outrigger();
    let go = launch.directory().join("go");
    let script = format!(
        "import os, time\ndef init():\n    print('waits')\n    while not os.path.exists({go:?}):\n        time.sleep(0.01)\ndef run(data):\n    return data\n"
    );
    let mut replica = launch.script(&script).spawn();
    replica.wait_for(|line| line["fields"]["message"] == "waits");
    let statuses = async || {
        let mut statuses = Vec::new();
        for path in ["/live", "/started", "/ready"] {
            statuses.push(get(&replica, path).await.0);
        }
        statuses
    };
    assert_eq!(statuses().await, [200, 503, 503]);
    let (status, health) = get(&replica, "/health").await;
    assert_eq!(status, 200, "it is a report, and no probe");
    assert_eq!(
        (&health["live"], &health["started"], &health["ready"]),
        (&json!(true), &json!(false), &json!(false))
    );
    assert!(health["not_ready_because"].is_string(), "{health}");
    std::fs::write(&go, "").unwrap();
    until("it is started", async || get(&replica, "/started").await.0 == 200).await;
    until("it is ready", async || statuses().await == [200, 200, 200]).await;
    let (_, health) = get(&replica, "/health").await;
    assert_eq!(health, json!({"live": true, "started": true, "ready": true, "degraded": []}));
}

#[tokio::test]
async fn a_full_queue_is_never_unhealthy() {
    let launch = outrigger();
    let go = launch.directory().join("go");
    let script = format!(
        "import os, time\ndef init():\n    pass\ndef run(data):\n    while not os.path.exists({go:?}):\n        time.sleep(0.01)\n"
    );
    let replica = launch.script(&script).args(["--queue-items", "2"]).start();
    let calls: Vec<_> = (0..3).map(|_| tokio::spawn(score(&replica, "x").send())).collect();
    until_busy(&replica, 1, 2).await;
    assert_eq!(outcome(score(&replica, "x").send().await.unwrap()).await.1, "overloaded");
    for path in ["/live", "/started", "/ready", "/v2/health/ready"] {
        assert_eq!(get(&replica, path).await.0, 200, "{path}");
    }
    assert_eq!(get(&replica, "/health").await.1["degraded"], json!([]));
    std::fs::write(&go, "").unwrap();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test]
async fn what_is_wrong_is_told_with_its_reason_while_calls_go_on() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = "[models.add]\npath = 'add.onnx'\n[models.broken]\npath = 'broken.onnx'\nload = 'use'\n";
    let replica = outrigger()
        .file("add.onnx", onnx::add(3))
        .file("broken.onnx", "no model")
        .file("outrigger.toml", config)
        .args(["--config", "outrigger.toml"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}"))
        .start();
    assert_ne!(outcome(infer(&replica, "broken", "{}").send().await.unwrap()).await.0, 200);
    let concern = async |part: &str, name: &str| {
        let (_, health) = get(&replica, "/health").await;
        let all = health["degraded"].as_array().unwrap().clone();
        all.into_iter().find(|one| one["part"] == part && one["name"] == name)
    };
    until("the model that does not load", async || concern("model", "broken").await.is_some()).await;
    let told = concern("model", "broken").await.unwrap();
    assert!(told["reason"].as_str().unwrap().len() > 10, "{told}");
    // The collector is asked with the first call that is traced.
    let tensor = |name: &str| json!({"name": name, "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]});
    let body = json!({"inputs": [tensor("x"), tensor("y")]}).to_string();
    assert_eq!(outcome(infer(&replica, "add", body).send().await.unwrap()).await.0, 200);
    until("the collector that is away", async || concern("telemetry", "traces").await.is_some()).await;
    assert_eq!(get(&replica, "/ready").await.0, 200);
    assert_eq!(metric(&replica, "outrigger_degraded{part=\"model\"}").await, Some(1.0));
    assert_eq!(metric(&replica, "outrigger_degraded{part=\"device\"}").await, Some(0.0));
}
