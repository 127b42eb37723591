//! What Prometheus itself says of the metrics of a replica that has answered calls of all kinds.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use outrigger_testkit::onnx;
use outrigger_testkit::replica::KEY;
use serde_json::json;

use crate::support::{client, infer, outcome, outrigger, score};

/// Where set-up has put it, or the system has it.
fn promtool() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let kept = cache.map(|cache| cache.join("outrigger/promtool/promtool"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|folder| folder.join("promtool"));
    kept.into_iter().chain(installed).find(|program| program.is_file())
}

#[tokio::test]
async fn metrics_are_as_prometheus_would_have_them() {
    let Some(promtool) = promtool() else {
        println!("skipped: no promtool");
        return;
    };
    let config = "[models.add]\npath = 'add.onnx'\nmax_batch = 2\ncache = true\n[callers.bob]\nkey = 'bob-has-a-key-of-his-own'\nconcurrency = 3\n";
    let replica = outrigger()
        .file("add.onnx", onnx::add(3))
        .file("outrigger.toml", config)
        .script(crate::support::ECHO)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        .args(["--config", "outrigger.toml"])
        .start();
    let tensor = |name: &str| json!({"name": name, "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]});
    let body = json!({"inputs": [tensor("x"), tensor("y")]}).to_string();
    for _ in 0..2 {
        assert_eq!(outcome(infer(&replica, "add", body.clone()).send().await.unwrap()).await.0, 200);
        assert_eq!(outcome(score(&replica, "1").send().await.unwrap()).await.0, 200);
    }
    let _ = outcome(infer(&replica, "add", "{").send().await.unwrap()).await;
    let url = format!("{}/v2/models/add", replica.score);
    drop(client().get(url).bearer_auth(KEY).send().await.unwrap());
    let metrics = client().get(format!("{}/metrics", replica.observe)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    for family in [
        "outrigger_phase_seconds",
        "outrigger_cache_lookups_total",
        "outrigger_batch_rows",
        "outrigger_caller_calls",
    ] {
        assert!(metrics.contains(family), "{family} is not in\n{metrics}");
    }
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}
