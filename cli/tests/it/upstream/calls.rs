//! Calls that are passed on: who may, what is said on the way, and what comes back.

use outrigger_testkit::onnx;
use outrigger_testkit::replica::KEY;
use outrigger_testkit::upstream::App;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::{both, in_front_of, metric, pass, patiently, seen};
use crate::devices::until;
use crate::placement::call;
use crate::support::{busy, client, header, infer, outcome, outrigger, raw, score};

/// The values of a header that the application has seen.
fn had<'a>(told: &'a Value, name: &str) -> Vec<&'a str> {
    let headers = told["headers"].as_array().unwrap().iter();
    headers.filter(|header| header[0] == name).map(|header| header[1].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_url_alone_is_enough() {
    let app = App::start();
    let replica = patiently(outrigger()).args(["--upstream-url", &app.url()]).start();
    let (status, _, told) = outcome(score(&replica, "[1, 2]").send().await.unwrap()).await;
    assert_eq!((status, &told["method"], &told["body"]), (200, &json!("POST"), &json!("[1, 2]")), "{told}");
    assert_eq!((&told["path"], &told["query"]), (&json!("/score"), &json!("")));
    let get = client().get(format!("{}/score?a=1&b=%2F", replica.score)).bearer_auth(KEY);
    let (status, _, told) = outcome(get.send().await.unwrap()).await;
    assert_eq!(
        (status, &told["method"], &told["query"]),
        (200, &json!("GET"), &json!("a=1&b=%2F")),
        "{told}"
    );
    assert_eq!(had(&told, "content-length").len() + had(&told, "transfer-encoding").len(), 0, "{told}");
    let busy = busy(&replica).await;
    assert_eq!((&busy["slots"], &busy["answered"]), (&json!(1), &json!(2)), "{busy}");
    // What is no path of the replica's, and named nowhere, does not get through.
    let (status, code, _) = outcome(pass(&replica, "/app/echo").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (404, "not_found"));
    assert_eq!(seen(&app).await["requests"], json!(["/score", "/score"]));
    assert_eq!(replica.stop().status.code(), Some(0));
}

#[tokio::test]
async fn who_may_not_score_never_reaches_the_upstream() {
    let app = App::start();
    let key = |caller: &str| format!("the-key-of-{caller}-0123456789");
    let callers = format!(
        "[callers.infers]\nkey = '{}'\noperations = ['infer']\n[callers.scores]\nkey = '{}'\noperations = ['score']\n",
        key("infers"),
        key("scores")
    );
    let launch = in_front_of(&app).file("o.toml", callers).args(["--config", "o.toml"]);
    let replica = launch.args(["--upstream-paths", "/v2/*", "--upstream-paths", "/predict"]).start();
    let paths = ["/score", "/app/echo", "/v2/models/m/infer", "/v2/health/ready", "/predict"];
    for path in paths {
        let ask = async |key: Option<String>, method: Method| {
            let request = client().request(method, format!("{}{path}", replica.score)).body("x");
            let request = match key {
                Some(key) => request.bearer_auth(key),
                None => request,
            };
            outcome(request.send().await.unwrap()).await
        };
        for method in [Method::GET, Method::POST] {
            let (status, code, _) = ask(None, method.clone()).await;
            assert_eq!((status, code.as_str()), (401, "unauthenticated"), "{method} {path}");
            assert_eq!(ask(Some(key("stranger")), method.clone()).await.0, 401, "{method} {path}");
            let (status, code, _) = ask(Some(key("infers")), method.clone()).await;
            assert_eq!((status, code.as_str()), (403, "forbidden"), "{method} {path}");
        }
        let preflight = ask(None, Method::OPTIONS).await.0;
        assert_eq!(preflight, if path == "/score" { 200 } else { 401 }, "{path}");
    }
    assert_eq!(seen(&app).await["requests"], json!([]));
    // What could be taken for a path elsewhere is none that is passed on, whoever asks.
    for path in ["/app/../score", "/app/%2e%2e/score", "/app/..%2fscore", "/app/x;/..;/../score", "/predict/"]
    {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let answer = raw(&replica, request.as_bytes());
        assert!(
            answer.starts_with("HTTP/1.1 404 ") && answer.contains("outrigger-code: not_found"),
            "{path}: {answer}"
        );
    }
    assert_eq!(seen(&app).await["requests"], json!([]));
    for path in paths {
        let request = client().post(format!("{}{path}", replica.score)).bearer_auth(key("scores")).body("x");
        let answer = request.send().await.unwrap();
        // Those that it does not have are the application's to say so.
        let expected = if ["/score", "/app/echo"].contains(&path) { 200 } else { 404 };
        assert_eq!(
            (answer.status().as_u16(), header(&answer, "outrigger-code")),
            (expected, String::new()),
            "{path}"
        );
    }
    assert_eq!(seen(&app).await["requests"], json!(paths));
}

#[tokio::test]
async fn headers_go_both_ways_without_what_is_of_one_connection_and_without_the_key() {
    let app = App::start();
    let replica = in_front_of(&app).args(["--upstream-trust-forwarded"]).start();
    for (version, path) in [(1, "/score"), (2, "/score"), (1, "/app/echo/a%20b"), (2, "/app/echo")] {
        let mut builder = Client::builder().no_proxy();
        if version == 2 {
            builder = builder.http2_prior_knowledge();
        }
        let request = builder.build().unwrap().post(format!("{}{path}", replica.score)).body("x");
        let request = request.bearer_auth(KEY).header("proxy-authorization", "Basic hush");
        let request = request.header("x-request-id", "id-1").header("x-ms-client-request-id", "client-1");
        let request = request.header("x-own", "1").header("x-own", "2").header("cookie", "c=d");
        let request = request.header("x-forwarded-for", "192.0.2.1").header("outrigger-caller", "root");
        let mut request = request.header("content-type", "text/csv").header("x-request-deadline-ms", "50000");
        if version == 1 {
            request = request
                .header("connection", "keep-alive, x-hop")
                .header("x-hop", "1")
                .header("te", "trailers");
        }
        let answer = request.send().await.unwrap();
        let case = format!("{version} {path}");
        assert_eq!(answer.status(), 200, "{case}");
        assert_eq!(header(&answer, "x-request-id"), "id-1", "ours, {case}");
        assert_eq!(header(&answer, "x-ms-client-request-id"), "client-1", "{case}");
        assert_eq!(
            (header(&answer, "x-own").as_str(), header(&answer, "server").as_str()),
            ("yes", "uvicorn"),
            "{case}"
        );
        assert_eq!(header(&answer, "content-type"), "application/json", "{case}");
        let cookies: Vec<_> = answer.headers().get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=1", "b=2"], "{case}");
        for gone in ["x-hop", "connection", "keep-alive", "transfer-encoding", "outrigger-code"] {
            assert_eq!(header(&answer, gone), "", "{gone}, {case}");
        }
        let told = outcome(answer).await.2;
        assert!(!told.to_string().contains(KEY) && !told.to_string().contains("hush"), "{told}");
        for gone in ["authorization", "proxy-authorization", "x-hop", "te", "connection", "keep-alive"] {
            assert_eq!(had(&told, gone), [""; 0], "{gone}, {case}");
        }
        let host = app.address().to_string();
        for (name, expected) in [
            ("host", vec![host.as_str()]),
            ("x-request-id", vec!["id-1"]),
            ("x-ms-request-id", vec!["client-1"]),
            ("x-ms-client-request-id", vec!["client-1"]),
            ("x-own", vec!["1", "2"]),
            ("cookie", vec!["c=d"]),
            ("content-type", vec!["text/csv"]),
            ("content-length", vec!["1"]),
            ("outrigger-caller", vec!["primary"]),
            ("x-forwarded-for", vec!["192.0.2.1, 127.0.0.1"]),
            ("x-forwarded-host", vec![replica.score.trim_start_matches("http://")]),
            ("x-forwarded-proto", vec!["http"]),
        ] {
            assert_eq!(had(&told, name), expected, "{name}, {case}");
        }
        let left: u64 = had(&told, "x-request-deadline-ms")[0].parse().unwrap();
        assert!(left <= 50_000 && left > 10_000, "what is left of it, {case}: {left}");
    }
}

#[tokio::test]
async fn where_a_call_comes_from_is_not_for_the_caller_to_say() {
    let app = App::start();
    let replica = in_front_of(&app).start();
    for (version, client) in both() {
        let mut request = client.post(format!("{}/app/echo", replica.score)).bearer_auth(KEY);
        for name in
            ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-real-ip"]
        {
            request = request.header(name, "forged").header(name.replace('-', "_"), "forged");
        }
        request = request.header("forwarded", "for=forged").header("x-forwarded-prefix", "/forged");
        let told = outcome(request.send().await.unwrap()).await.2;
        assert!(!told.to_string().contains("forged"), "{version}: {told}");
        assert_eq!(had(&told, "x-forwarded-for"), ["127.0.0.1"], "{version}");
        assert_eq!(had(&told, "x-forwarded-proto"), ["http"], "{version}");
        assert_eq!(
            had(&told, "x-forwarded-host"),
            [replica.score.trim_start_matches("http://")],
            "{version}"
        );
    }
}

#[tokio::test]
async fn what_http_1_1_has_other_rules_for_is_put_into_them() {
    let app = App::start();
    let replica = in_front_of(&app).start();
    for (version, client) in both() {
        let ask =
            |method: Method| client.request(method, format!("{}/app/echo", replica.score)).bearer_auth(KEY);
        // That there is no body is said where one is expected.
        for (method, expected) in
            [(Method::POST, &["0"][..]), (Method::PUT, &["0"]), (Method::PATCH, &["0"]), (Method::GET, &[])]
        {
            let told = outcome(ask(method.clone()).send().await.unwrap()).await.2;
            assert_eq!(had(&told, "content-length"), expected, "{version} {method}: {told}");
            assert_eq!(had(&told, "transfer-encoding"), [""; 0], "{version} {method}");
        }
        let split = ask(Method::GET).header("cookie", "a=1").header("cookie", "b=2");
        let told = outcome(split.send().await.unwrap()).await.2;
        assert_eq!(had(&told, "cookie"), ["a=1; b=2"], "{version}");
    }
}

#[tokio::test]
async fn all_that_is_no_route_leaves_the_routes_alone() {
    let app = App::start();
    let launch =
        patiently(outrigger()).args(["--upstream-url", &app.url(), "--upstream-score-path", "/app/echo"]);
    let replica = launch.args(["--upstream-paths", "/*", "--upstream-paths", "/score"]).start();
    let ask = async |method: Method, path: &str| {
        let request = client().request(method, format!("{}{path}", replica.score)).bearer_auth(KEY);
        outcome(request.send().await.unwrap()).await
    };
    assert_eq!(ask(Method::GET, "/").await.2, json!("Healthy"));
    assert_eq!(ask(Method::GET, "/v2/health/live").await.0, 200);
    let told = ask(Method::POST, "/score").await.2;
    assert_eq!(told["path"], "/app/echo", "{told}");
    ask(Method::GET, "/swagger.json").await;
    assert_eq!(seen(&app).await["requests"], json!(["/app/echo"]));
    // And what is none goes there, as it is.
    assert_eq!(ask(Method::GET, "/app/echo/x").await.2["path"], "/app/echo/x");
    let (status, code, body) = ask(Method::GET, "/nowhere").await;
    assert_eq!((status, code.as_str(), &body["detail"]), (404, "", &json!("Not Found")));
    let answer = client().get(format!("{}/app/echo/x", replica.score)).send().await.unwrap();
    assert_eq!(answer.status(), 401);
    let answer = raw(
        &replica,
        format!(
            "GET /app/../x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n"
        )
        .as_bytes(),
    );
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("outrigger-code: not_found"), "{answer}");
    assert_eq!(seen(&app).await["requests"], json!(["/app/echo", "/app/echo/x", "/nowhere"]));
}

#[tokio::test]
async fn statuses_and_methods_are_passed_on() {
    let app = App::start();
    let replica = in_front_of(&app).start();
    for code in [201, 204, 301, 304, 400, 404, 409, 422, 429, 500, 503] {
        let quiet = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let url = format!("{}/app/status/{code}", replica.score);
        let answer = quiet.post(url).bearer_auth(KEY).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), header(&answer, "retry-after").as_str()), (code, "7"));
        assert_eq!(header(&answer, "outrigger-code"), "", "it is no error of ours: {code}");
        assert!(!header(&answer, "x-request-id").is_empty());
        let body = answer.text().await.unwrap();
        assert_eq!(body, if [204, 304].contains(&code) { String::new() } else { format!("status {code}") });
    }
    for (class, answers) in [("2xx", 2.0), ("3xx", 2.0), ("4xx", 5.0), ("5xx", 2.0)] {
        let name = format!("outrigger_upstream_answers_total{{status=\"{class}\"}}");
        assert_eq!(metric(&replica, &name).await, Some(answers), "{class}");
    }
    let ask = |method: Method, path: &str| {
        client().request(method, format!("{}{path}", replica.score)).bearer_auth(KEY).send()
    };
    for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS] {
        let (status, _, told) = outcome(ask(method.clone(), "/app/echo?x=y").await.unwrap()).await;
        assert_eq!((status, &told["method"], &told["query"]), (200, &json!(method.as_str()), &json!("x=y")));
    }
    let head = ask(Method::HEAD, "/app/status/200").await.unwrap();
    assert_eq!((head.status().as_u16(), header(&head, "content-length").as_str()), (200, "10"));
    assert_eq!(ask(Method::TRACE, "/app/echo").await.unwrap().status(), 405);
    for (method, expected) in [(Method::HEAD, 405), (Method::PUT, 405), (Method::OPTIONS, 200)] {
        assert_eq!(ask(method.clone(), "/score").await.unwrap().status(), expected, "{method} /score");
    }
    let busy = busy(&replica).await;
    assert_eq!((&busy["failed"], &busy["executing"]), (&json!(0), &json!(0)), "{busy}");
}

#[tokio::test]
async fn connections_are_kept_for_the_next_calls() {
    let app = App::start();
    for (kept, connects) in [("1", 1.0), ("0", 12.0)] {
        let launch =
            in_front_of(&app).args(["--upstream-connections", kept, "--upstream-idle-timeout", "1h"]);
        let replica = launch.start();
        for number in 0..12 {
            let path = ["/app/echo", "/app/status/500", "/app/bytes/300000"][number % 3];
            let answer = pass(&replica, path).body("x").send().await.unwrap();
            let length = answer.bytes().await.unwrap().len();
            assert!(length > 0 && (number % 3 < 2 || length == 300_000), "{path}: {length}");
        }
        assert_eq!(metric(&replica, "outrigger_upstream_connects_total").await, Some(connects));
        let there = metric(&replica, "outrigger_upstream_connections").await;
        assert_eq!(there, Some(kept.parse().unwrap()));
    }
    // And no longer than they are to be, whenever it is asked how it is.
    let flags = ["--upstream-idle-timeout", "200ms", "--upstream-probe-period", "1h"];
    let replica = in_front_of(&app).args(flags).start();
    assert_eq!(pass(&replica, "/app/echo").send().await.unwrap().status(), 200);
    until("the end of the connection", async || {
        metric(&replica, "outrigger_upstream_connections").await == Some(0.0)
    })
    .await;
}

#[tokio::test]
async fn another_protocol_is_refused_and_an_offer_of_one_is_ignored() {
    let app = App::start();
    let replica = in_front_of(&app).start();
    let ask = |more: &str| {
        let head =
            format!("GET /app/echo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n{more}\r\n\r\n");
        raw(&replica, head.as_bytes())
    };
    let answer = ask(
        "Connection: close, upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13",
    );
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("WebSocket"), "{answer}");
    assert_eq!(seen(&app).await["requests"], json!([]));
    let answer = ask(
        "Connection: close, upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
    );
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("settings"), "{answer}");
}

#[tokio::test]
async fn pages_of_other_origins_may_ask_first() {
    let app = App::start();
    let replica = in_front_of(&app).args(["--score-cors-origins", "https://a.example"]).start();
    let url = format!("{}/app/echo", replica.score);
    let preflight = client().request(Method::OPTIONS, &url).header("origin", "https://a.example");
    let answer = preflight.header("access-control-request-method", "POST").send().await.unwrap();
    assert_eq!(answer.status(), 204);
    assert_eq!(header(&answer, "access-control-allow-origin"), "https://a.example");
    assert_eq!(seen(&app).await["requests"], json!([]));
    let answer =
        client().post(&url).bearer_auth(KEY).header("origin", "https://a.example").send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), header(&answer, "access-control-allow-origin").as_str()),
        (200, "https://a.example")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_another_make() {
    let app = App::with_batches();
    let flags =
        ["--upstream-score-path", "/inference", "--upstream-ready-path", "/", "--upstream-slots", "8"];
    let replica = patiently(outrigger()).args(["--upstream-url", &app.url()]).args(flags).start();
    let calls: Vec<_> = (0..32)
        .map(|number| tokio::spawn(score(&replica, json!([number, 1, 2]).to_string()).send()))
        .collect();
    for (number, answer) in calls.into_iter().enumerate() {
        let (status, _, sum) = outcome(answer.await.unwrap().unwrap()).await;
        assert_eq!((status, &sum["sum"]), (200, &json!(number + 3)), "{sum}");
    }
    // What it says of a wrong request is its own.
    let answer = score(&replica, "no JSON").send().await.unwrap();
    assert_eq!((answer.status().as_u16(), header(&answer, "outrigger-code").as_str()), (400, ""));
    drop(replica);
}

#[tokio::test]
async fn models_are_served_beside_it() {
    let app = App::start();
    let launch = patiently(outrigger()).file("add.onnx", onnx::add(3)).args(["--model", "add=add.onnx"]);
    let replica = launch.args(["--upstream-url", &app.url(), "--upstream-slots", "2"]).start();
    assert_eq!(busy(&replica).await["slots"], 2);
    let (status, _, body) = outcome(infer(&replica, "add", call()).send().await.unwrap()).await;
    assert_eq!((status, &body["outputs"][0]["data"]), (200, &json!([11.0, 22.0, 33.0])), "{body}");
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
}
