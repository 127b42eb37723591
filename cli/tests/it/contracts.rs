//! Status codes, bodies and headers of the contracts, as a client sees them.

use outrigger_testkit::onnx;
use outrigger_testkit::replica::KEY;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{ECHO, client, header, infer, outcome, outrigger, score};

#[tokio::test]
async fn health_is_open_and_says_healthy() {
    let replica = outrigger().script(ECHO).start();
    let url = format!("{}/", replica.score);
    let response = client().get(&url).send().await.unwrap();
    assert_eq!(
        (response.status(), header(&response, "content-type")),
        (StatusCode::OK, "text/html; charset=utf-8".into())
    );
    assert_eq!(response.text().await.unwrap(), "Healthy");
    assert_eq!(client().head(&url).send().await.unwrap().status(), 200);
    let options = client().request(Method::OPTIONS, &url).send().await.unwrap();
    assert_eq!((options.status().as_u16(), header(&options, "allow")), (200, "GET, HEAD, OPTIONS".into()));
    let (status, code, body) = outcome(client().post(&url).send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (405, "method_not_allowed"));
    assert_eq!(body, json!({"message": "The method is not allowed for the requested URL."}));
}

#[tokio::test]
async fn an_answer_carries_the_contract_s_headers() {
    let replica = outrigger().script(ECHO).start();
    let response = score(&replica, "caf\u{e9}").header("TraceId", "trace-1").send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "content-type"), "application/json");
    assert_eq!(header(&response, "x-ms-run-function-failed"), "False");
    assert_eq!(header(&response, "traceid"), "trace-1");
    assert!(header(&response, "x-ms-server-version").starts_with("outrigger/"));
    let millis = header(&response, "x-ms-run-fn-exec-ms");
    let (_, decimals) = millis.split_once('.').unwrap();
    assert_eq!(decimals.len(), 3, "{millis}");
    assert_eq!(header(&response, "x-request-id"), header(&response, "x-ms-request-id"));
    assert_eq!(header(&response, "x-request-id").len(), 36);
    assert_eq!(response.text().await.unwrap(), "\"caf\\u00e9\"", "as Python's json.dumps writes it");
}

#[tokio::test]
async fn identifiers_follow_the_table() {
    let replica = outrigger().script(ECHO).start();
    // Sent A, B, C; returned A, B, C, where `new` is a fresh UUID.
    let table = [
        (["", "", ""], ["new", "new", ""]),
        (["a", "", ""], ["a", "a", ""]),
        (["", "b", ""], ["new", "b", "b"]),
        (["", "", "c"], ["new", "c", "c"]),
        (["a", "b", ""], ["a", "b", "b"]),
        (["", "b", "c"], ["new", "b", "c"]),
        (["a", "", "c"], ["a", "c", "c"]),
        (["a", "b", "c"], ["a", "b", "c"]),
    ];
    let names = ["x-request-id", "x-ms-request-id", "x-ms-client-request-id"];
    for (sent, expected) in table {
        let mut request = score(&replica, "x");
        for (name, value) in names.iter().zip(sent).filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, value);
        }
        let response = request.send().await.unwrap();
        let got = names.map(|name| header(&response, name));
        for (got, expected) in got.iter().zip(expected) {
            match expected {
                "new" => assert_eq!(got.len(), 36, "{sent:?}: {got}"),
                expected => assert_eq!(got, expected, "{sent:?}"),
            }
        }
    }
}

#[tokio::test]
async fn methods_and_urls_that_are_not_there() {
    let replica = outrigger().script(ECHO).start();
    for (method, path, status, code) in [
        (Method::HEAD, "/score", 405, "method_not_allowed"),
        (Method::PUT, "/score", 405, "method_not_allowed"),
        (Method::DELETE, "/score", 405, "method_not_allowed"),
        (Method::POST, "/swagger.json", 405, "method_not_allowed"),
        (Method::GET, "/nowhere", 404, "not_found"),
        (Method::POST, "/score/", 404, "not_found"),
        (Method::GET, "/v2/nowhere", 404, "not_found"),
        (Method::GET, "/v2/models/m/infer", 405, "method_not_allowed"),
        (Method::GET, "/busy", 404, "not_found"),
        (Method::GET, "/metrics", 404, "not_found"),
        (Method::GET, "/status", 404, "not_found"),
    ] {
        let response =
            client().request(method.clone(), format!("{}{path}", replica.score)).send().await.unwrap();
        assert!(!header(&response, "x-request-id").is_empty(), "{method} {path}");
        assert_eq!(header(&response, "outrigger-retryable"), "false");
        let (got, got_code, _) = outcome(response).await;
        assert_eq!((got, got_code.as_str()), (status, code), "{method} {path}");
    }
    let options = client().request(Method::OPTIONS, format!("{}/score", replica.score)).send().await.unwrap();
    assert_eq!((options.status().as_u16(), options.text().await.unwrap().as_str()), (200, ""));
}

#[tokio::test]
async fn input_reaches_run_as_text_whatever_its_type() {
    let replica = outrigger().script(ECHO).start();
    for content_type in
        ["application/json", "text/plain", "application/octet-stream", "application/x-www-form-urlencoded"]
    {
        let response = score(&replica, "a=1").header("content-type", content_type).send().await.unwrap();
        assert_eq!(outcome(response).await.2, json!("a=1"), "{content_type}");
    }
    let (status, code, body) = outcome(score(&replica, &b"\xff{}"[..]).send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (400, "bad_request"));
    let text = "Input cannot be decoded as UTF-8: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte";
    assert_eq!(body["message"], text);

    let url = format!("{}/score", replica.score);
    for (query, expected) in [
        ("", json!({})),
        ("?a=1&b=x&a=2", json!({"a": [1, 2], "b": "x"})),
        ("?A=%5B1%2C2%5D&a=%22q%22", json!({"A": [1, 2], "a": "q"})),
    ] {
        let response = client().get(format!("{url}{query}")).bearer_auth(KEY).send().await.unwrap();
        let (status, _, body) = outcome(response).await;
        let seen: Value = serde_json::from_str(body.as_str().unwrap()).unwrap();
        assert_eq!((status, seen), (200, expected), "{query}");
    }
}

#[tokio::test]
async fn swagger_describes_the_service() {
    let replica =
        outrigger().script(ECHO).args(["--service-name", "my svc", "--service-version", "7"]).start();
    let get =
        |query: &str| client().get(format!("{}/swagger.json{query}", replica.score)).bearer_auth(KEY).send();
    let (status, _, body) = outcome(get("").await.unwrap()).await;
    assert_eq!((status, &body["swagger"], &body["info"]["title"]), (200, &json!("2.0"), &json!("my svc")));
    assert_eq!(body["info"]["version"], "7");
    assert_eq!(outcome(get("?version=3").await.unwrap()).await.2["openapi"], "3.0.3");
    assert_eq!(outcome(get("?version=3.1").await.unwrap()).await.2["openapi"], "3.1.0");
    let (status, _, body) = outcome(get("?version=4").await.unwrap()).await;
    assert_eq!(status, 404);
    assert_eq!(body["message"], "Swagger version [4] is not valid. Supported versions: [2, 3, 3.1].");
}

#[tokio::test]
async fn results_go_out_as_python_writes_them() {
    let script = "import json\ndef init():\n    pass\ndef run(data):\n    return eval(data)\n";
    let replica = outrigger().script(script).start();
    for (expression, text) in [
        ("None", "{}"),
        ("(1, 2)", "[1, 2]"),
        ("{'a': [1.5, True, None]}", "{\"a\": [1.5, true, null]}"),
        ("'{\"a\": 1}'", "\"{\\\"a\\\": 1}\""),
        ("10 ** 30", "1000000000000000000000000000000"),
    ] {
        let response = score(&replica, expression).send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), response.text().await.unwrap()),
            (200, text.to_owned()),
            "{expression}"
        );
    }
}

#[tokio::test]
async fn large_bodies_and_answers_come_through_whole() {
    let replica = outrigger().script(ECHO).start();
    let body: String = (0..12 << 20).map(|at| char::from(b'a' + (at % 23) as u8)).collect();
    let response = score(&replica, body.clone()).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let answer = response.text().await.unwrap();
    assert!(answer[1..answer.len() - 1] == body, "{} bytes of {}", answer.len(), body.len() + 2);
}

#[tokio::test]
async fn one_connection_serves_many_calls_over_both_versions_of_http() {
    let replica =
        outrigger().file("add.onnx", onnx::add(3)).script(ECHO).args(["--model", "add=add.onnx"]).start();
    let old = client();
    let new = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for client in [old, new] {
        for number in 0..20 {
            let request =
                client.post(format!("{}/score", replica.score)).bearer_auth(KEY).body(number.to_string());
            assert_eq!(outcome(request.send().await.unwrap()).await.2, json!(number.to_string()));
        }
    }
    // Many streams at once on one HTTP/2 connection.
    let new = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..50 {
        let request = new.post(format!("{}/score", replica.score)).bearer_auth(KEY).body(number.to_string());
        calls.spawn(async move { (number, outcome(request.send().await.unwrap()).await.2) });
    }
    while let Some(done) = calls.join_next().await {
        let (number, body) = done.unwrap();
        assert_eq!(body, json!(number.to_string()));
    }
    let raw = crate::support::raw(
        &replica,
        b"GET / HTTP/1.1\r\nHost: t\r\n\r\nGET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(raw.matches("Healthy").count(), 2, "keep-alive is the default: {raw}");
}

#[tokio::test]
async fn models_describe_themselves() {
    let replica = outrigger().file("add.onnx", onnx::add(3)).args(["--model", "add=add.onnx"]).start();
    let get = |path: &str| client().get(format!("{}{path}", replica.score)).bearer_auth(KEY).send();
    let (status, _, body) = outcome(get("/v2/models/add").await.unwrap()).await;
    assert_eq!(status, 200);
    assert_eq!((&body["name"], &body["versions"]), (&json!("add"), &json!(["1"])));
    assert_eq!(body["inputs"][0], json!({"name": "x", "datatype": "FP32", "shape": [-1, 3]}));
    assert_eq!(outcome(get("/v2/models/add/versions/1").await.unwrap()).await.0, 200);
    assert_eq!(outcome(get("/v2/models/add/versions/2").await.unwrap()).await.1, "model_not_found");
    assert_eq!(outcome(get("/v2/models/add/ready").await.unwrap()).await.0, 200);
    assert_eq!(outcome(get("/v2").await.unwrap()).await.2["name"], "outrigger");
    let body = json!({"inputs": [
        {"name": "y", "shape": [2, 3], "datatype": "FP32", "data": [[1, 2, 3], [4, 5, 6]]},
        {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 1, 1, 2, 2, 2]},
    ]});
    let (status, _, answer) = outcome(infer(&replica, "add", body.to_string()).send().await.unwrap()).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["outputs"][0]["data"], json!([2.0, 3.0, 4.0, 6.0, 7.0, 8.0]));
}
