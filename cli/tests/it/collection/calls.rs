//! The collections `request` and `response`: what passes, by every contract.

use std::collections::BTreeSet;

use outrigger_testkit::onnx;
use outrigger_testkit::replica::KEY;
use serde_json::{Value, json};

use super::{collecting, events, metrics, objects, until_settled};
use crate::support::{ECHO, client, infer, outcome, score, still_serves};

fn of<'a>(events: &'a [Value], request: &str) -> &'a Value {
    let mut found = events.iter().filter(|event| event["xrequestid"] == request);
    let event = found.next().unwrap_or_else(|| panic!("{request} in {events:?}"));
    assert!(found.next().is_none(), "{request} is there once");
    event
}

#[tokio::test]
async fn a_call_and_its_answer_are_kept_and_joined() {
    let replica =
        collecting("request, response").env("OUTRIGGER_COLLECT_HEADERS", "x-tenant").script(ECHO).start();
    let body = json!({"data": [1, 2, 3]});
    let answer = score(&replica, body.to_string())
        .header("content-type", "application/json")
        .header("x-request-id", "one")
        .header("x-tenant", "acme")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    for collection in ["request", "response"] {
        let counted = until_settled(&replica, collection, 1.0).await;
        assert_eq!(counted.persisted, 1.0);
    }
    let (requests, responses) = (events(&replica, "request"), events(&replica, "response"));
    let (request, response) = (of(&requests, "one"), of(&responses, "one"));
    assert_eq!(request["specversion"], "1.0");
    assert_eq!(request["type"], "azureml.inference.request");
    assert_eq!((&request["method"], &request["path"]), (&json!("POST"), &json!("/score")));
    assert_eq!(request["data"], body);
    assert_eq!(request["xtenant"], "acme");
    assert_eq!(response["type"], "azureml.inference.response");
    assert_eq!(response["status"], 200);
    assert_eq!(request["correlationid"], response["correlationid"]);
    assert!(
        !objects(&replica.directory().join("blob"))
            .values()
            .any(|bytes| { String::from_utf8_lossy(bytes).contains(KEY) })
    );
}

#[tokio::test]
async fn models_and_streams_and_binary_tensors_are_kept() {
    let streams = "def init():\n    pass\ndef run(data):\n    yield b'a' * 10\n    yield b'b' * 10\n";
    let replica = collecting("request, response").file("add.onnx", onnx::add(2)).script(streams);
    let replica = replica.args(["--model", "add=add.onnx"]).start();
    let tensor = |name: &str| json!({"name": name, "shape": [1, 2], "datatype": "FP32", "data": [1, 2]});
    let text = json!({"inputs": [tensor("x"), tensor("y")]}).to_string();
    let json = infer(&replica, "add", text.clone()).header("content-type", "application/json");
    assert_eq!(json.header("x-request-id", "json").send().await.unwrap().status(), 200);
    let binary = |name: &str| json!({"name": name, "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}});
    let head = json!({"inputs": [binary("x"), binary("y")]}).to_string();
    let body = [head.as_bytes(), &[0; 16]].concat();
    let answer = infer(&replica, "add", body.clone())
        .header("inference-header-content-length", head.len())
        .header("content-type", "application/octet-stream")
        .header("x-request-id", "binary")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let answer = score(&replica, "x").header("x-request-id", "stream").send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "aaaaaaaaaabbbbbbbbbb");
    for collection in ["request", "response"] {
        until_settled(&replica, collection, 3.0).await;
    }
    let (requests, responses) = (events(&replica, "request"), events(&replica, "response"));
    assert_eq!(
        of(&requests, "json")["data"].to_string(),
        serde_json::from_str::<Value>(&text).unwrap().to_string()
    );
    assert_eq!(of(&responses, "json")["data"]["outputs"][0]["data"], json!([2.0, 4.0]));
    let event = of(&requests, "binary");
    assert_eq!(event["datainblob"], true);
    let url = event["data"].as_str().unwrap();
    let objects = objects(&replica.directory().join("blob"));
    let (_, stored) = objects.iter().find(|(name, _)| url.ends_with(name.as_str())).unwrap();
    assert_eq!(stored, &body);
    assert_eq!(of(&responses, "stream")["status"], 200);
}

#[tokio::test]
async fn what_is_not_allowed_and_what_is_no_call_is_not_kept() {
    let replica = collecting("request, response").script(ECHO).start();
    let url = format!("{}/score", replica.score);
    for request in [client().post(&url).body("x"), client().post(&url).bearer_auth("wrong").body("x")] {
        assert_eq!(request.send().await.unwrap().status(), 401);
    }
    assert_eq!(
        client()
            .get(format!("{}/swagger.json", replica.score))
            .bearer_auth(KEY)
            .send()
            .await
            .unwrap()
            .status(),
        200
    );
    still_serves(&replica).await;
    for collection in ["request", "response"] {
        until_settled(&replica, collection, 1.0).await;
    }
}

#[tokio::test]
async fn request_and_response_are_sampled_together_and_errors_are_kept() {
    let script = "def init():\n    pass\ndef run(data):\n    if 'bad' in data:\n        raise ValueError(data)\n    return data\n";
    let config = "[collections.request]\nsampling = 0.3\nkeep_errors = true\n\
                  [collections.response]\nsampling = 0.3\nkeep_errors = true\n";
    let replica = collecting("").file("o.toml", config).args(["--config", "o.toml"]).script(script).start();
    for number in 0..100 {
        let body = if number % 10 == 0 { "\"bad\"" } else { "\"good\"" };
        let request = score(&replica, body).header("x-request-id", format!("r-{number}"));
        let status = request.send().await.unwrap().status();
        assert_eq!(status.is_success(), number % 10 != 0);
    }
    let mut kept = Vec::new();
    for collection in ["request", "response"] {
        let counted = until_settled(&replica, collection, 100.0).await;
        let ids: BTreeSet<String> = events(&replica, collection)
            .iter()
            .map(|event| event["xrequestid"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!((counted.persisted, counted.sampled_out), (ids.len() as f64, 100.0 - ids.len() as f64));
        kept.push(ids);
    }
    assert_eq!(kept[0], kept[1]);
    assert!((0..100).step_by(10).all(|number| kept[0].contains(&format!("r-{number}"))));
    // Of 90 others three tenths are kept, by their ids, which are the same each time.
    assert!((20..60).contains(&kept[0].len()), "{}", kept[0].len());
}

#[tokio::test]
async fn of_a_long_body_the_beginning_is_kept() {
    let replica = collecting("request").env("OUTRIGGER_COLLECT_BODY", "1KiB").script(ECHO).start();
    let body = "x".repeat(3000);
    let request =
        score(&replica, body.clone()).header("content-type", "text/plain").header("x-request-id", "long");
    assert_eq!(request.send().await.unwrap().status(), 200);
    until_settled(&replica, "request", 1.0).await;
    let requests = events(&replica, "request");
    let event = of(&requests, "long");
    assert_eq!((&event["data"], &event["truncatedfrom"]), (&json!(body[..1024]), &json!("3000")));
    assert_eq!(metrics(&replica).await["outrigger_collect_truncated_total{limit=\"body\"}"], 1.0);
}

#[tokio::test]
async fn credentials_of_a_query_are_not_kept() {
    let replica = collecting("request").script(ECHO).start();
    let url = format!("{}/score?a=1&api_key=very-secret&max_tokens=5", replica.score);
    let request = client().post(url).bearer_auth(KEY).header("x-request-id", "one").body("1");
    assert_eq!(request.send().await.unwrap().status(), 200);
    until_settled(&replica, "request", 1.0).await;
    let requests = events(&replica, "request");
    assert_eq!(of(&requests, "one")["path"], "/score?a=1&api_key=***&max_tokens=5");
}

#[tokio::test]
async fn with_block_what_is_answered_is_on_disk() {
    let config = "[collections.request]\nfull = 'block'\nblock = '1m'\nsync = 'always'\n\
                  [collections.response]\nfull = 'block'\nblock = '1m'\nsync = 'always'\n";
    // Blob storage that is never reached.
    let replica = collecting("").env("OUTRIGGER_COLLECT_FLUSH", "1h").file("o.toml", config);
    let replica = replica.args(["--config", "o.toml"]).script(ECHO).start();
    for number in 0..20 {
        let request = score(&replica, "\"x\"").header("x-request-id", format!("r-{number}"));
        assert_eq!(outcome(request.send().await.unwrap()).await.0, 200);
    }
    let blob = replica.directory().join("blob");
    assert!(objects(&blob).is_empty());
    let (state, folder) = (replica.directory().join("state"), replica.directory().to_owned());
    replica.signal("KILL");
    // The folder goes with its replica.
    let kept = tempfile::tempdir().unwrap();
    let spool = kept.path().join("state");
    copy(&state, &spool);
    drop((replica, folder));
    let next = collecting("").env("OUTRIGGER_COLLECT_SPOOL", spool.join("collect")).file("o.toml", config);
    let next = next.args(["--config", "o.toml"]).script(ECHO).start();
    for collection in ["request", "response"] {
        until_settled(&next, collection, 20.0).await;
        let mut ids: Vec<_> = events(&next, collection)
            .iter()
            .map(|event| event["xrequestid"].as_str().unwrap().to_owned())
            .collect();
        ids.sort();
        let mut wanted: Vec<_> = (0..20).map(|number| format!("r-{number}")).collect();
        wanted.sort();
        assert_eq!(ids, wanted);
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else if kind.is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
