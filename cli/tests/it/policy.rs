//! Who may do what: every route asks, rates and places are held, and configuration says what is wrong with it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use outrigger_testkit::replica::{KEY, SECONDARY_KEY};
use outrigger_testkit::{Launch, ReplicaProcess, onnx};
use reqwest::{Client, Method};
use serde_json::json;

use crate::support::{ECHO, client, header, metric, outcome, outrigger};

fn key_of(caller: &str) -> String {
    format!("the-key-of-{caller}-0123456789")
}

/// A replica with these `[callers.NAME]` tables, each with its key.
fn with_callers(callers: &[(&str, &str)]) -> Launch {
    let mut text = String::from("[models.add]\npath = 'add.onnx'\n");
    for (name, rules) in callers {
        let built_in = ["primary", "secondary", "anonymous"].contains(name);
        let key = if built_in { String::new() } else { format!("key = '{}'\n", key_of(name)) };
        text += &format!("[callers.{name}]\n{key}{rules}\n");
    }
    outrigger().file("add.onnx", onnx::add(3)).file("o.toml", text).args(["--config", "o.toml"])
}

/// What is switched on so that every route is served.
const EVERYTHING: [&str; 5] = ["--admin-listen", "127.0.0.1:0", "--auth-mode", "both", "--tokens-local"];

/// `POST /score` as this caller, over a connection of its own.
fn score_as(replica: &ReplicaProcess, caller: &str, body: &'static str) -> reqwest::RequestBuilder {
    client().post(format!("{}/score", replica.score)).bearer_auth(key_of(caller)).body(body)
}

/// `POST /v2/models/add/infer` as this caller.
fn infer_as(replica: &ReplicaProcess, caller: &str) -> reqwest::RequestBuilder {
    let tensor = |name: &str| json!({"name": name, "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]});
    let body = json!({"inputs": [tensor("x"), tensor("y")]});
    let url = format!("{}/v2/models/add/infer", replica.score);
    client().post(url).bearer_auth(key_of(caller)).body(body.to_string())
}

/// Waits until a metric has a value; a test that waits for long has failed.
async fn until(replica: &ReplicaProcess, name: &str, value: f64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while metric(replica, name).await != Some(value) {
        assert!(
            Instant::now() < deadline,
            "{name} does not become {value}: {:?}",
            metric(replica, name).await
        );
    }
}

/// Waits until a caller has so many calls in the house.
async fn until_calls(replica: &ReplicaProcess, caller: &str, calls: f64) {
    until(replica, &format!("outrigger_caller_calls{{caller=\"{caller}\"}}"), calls).await;
}

/// Every route there is: listener, path, and the operation that is asked for. A new one is added here, with the operation whose
/// rights it takes; the test below then holds it.
const ROUTES: &[(&str, &str, &str)] = &[
    ("admin", "/collect", "status"),
    ("admin", "/collect/deletions", "collect_control"),
    ("admin", "/collect/deletions/{deletion}", "status"),
    ("admin", "/collect/expire", "collect_control"),
    ("admin", "/docs", "page"),
    ("admin", "/events", "status"),
    ("admin", "/keys", "status"),
    ("admin", "/logs", "status"),
    ("admin", "/models", "status"),
    ("admin", "/models/{model}", "status"),
    ("admin", "/models/{model}/labels/{label}", "model_control"),
    ("admin", "/models/{model}/load", "model_control"),
    ("admin", "/models/{model}/pin", "model_control"),
    ("admin", "/models/{model}/unload", "model_control"),
    ("admin", "/models/{model}/unpin", "model_control"),
    ("admin", "/openapi.json", "status"),
    ("admin", "/status", "status"),
    ("observe", "/", "health"),
    ("observe", "/busy", "observe"),
    ("observe", "/docs", "page"),
    ("observe", "/externalscaler.ExternalScaler/GetMetricSpec", "observe"),
    ("observe", "/externalscaler.ExternalScaler/GetMetrics", "observe"),
    ("observe", "/externalscaler.ExternalScaler/IsActive", "observe"),
    ("observe", "/externalscaler.ExternalScaler/StreamIsActive", "observe"),
    ("observe", "/grpc.health.v1.Health/Check", "health"),
    ("observe", "/grpc.health.v1.Health/Watch", "health"),
    ("observe", "/health", "health"),
    ("observe", "/live", "health"),
    ("observe", "/metrics", "observe"),
    ("observe", "/openapi.json", "observe"),
    ("observe", "/ready", "health"),
    ("observe", "/started", "health"),
    ("observe", "/v2/health/live", "health"),
    ("observe", "/v2/health/ready", "health"),
    ("observe", "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics", "observe"),
    ("score", "/", "health"),
    ("score", "/.well-known/jwks.json", "token_keys"),
    ("score", "/docs", "page"),
    ("score", "/grpc.health.v1.Health/Check", "health"),
    ("score", "/grpc.health.v1.Health/Watch", "health"),
    ("score", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "server_metadata"),
    ("score", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "server_metadata"),
    ("score", "/inference.GRPCInferenceService/ModelConfig", "model_metadata"),
    ("score", "/inference.GRPCInferenceService/ModelInfer", "infer"),
    ("score", "/inference.GRPCInferenceService/ModelMetadata", "model_metadata"),
    ("score", "/inference.GRPCInferenceService/ModelReady", "model_metadata"),
    ("score", "/inference.GRPCInferenceService/ModelStatistics", "model_metadata"),
    ("score", "/inference.GRPCInferenceService/ModelStreamInfer", "infer"),
    ("score", "/inference.GRPCInferenceService/RepositoryIndex", "model_metadata"),
    ("score", "/inference.GRPCInferenceService/RepositoryModelLoad", "model_control"),
    ("score", "/inference.GRPCInferenceService/RepositoryModelUnload", "model_control"),
    ("score", "/inference.GRPCInferenceService/ServerLive", "health"),
    ("score", "/inference.GRPCInferenceService/ServerMetadata", "server_metadata"),
    ("score", "/inference.GRPCInferenceService/ServerReady", "health"),
    ("score", "/inference.GRPCInferenceService/SystemSharedMemoryRegister", "shared_memory"),
    ("score", "/inference.GRPCInferenceService/SystemSharedMemoryStatus", "shared_memory"),
    ("score", "/inference.GRPCInferenceService/SystemSharedMemoryUnregister", "shared_memory"),
    ("score", "/invocations", "score"),
    ("score", "/models", "model_metadata"),
    ("score", "/models/{model}", "model_metadata"),
    ("score", "/models/{model}/invoke", "infer"),
    ("score", "/openapi.json", "model_metadata"),
    ("score", "/ping", "health"),
    ("score", "/score", "score"),
    ("score", "/swagger.json", "swagger"),
    ("score", "/tensorflow.serving.PredictionService/Predict", "infer"),
    ("score", "/token", "token"),
    ("score", "/v2", "server_metadata"),
    ("score", "/v2/health/live", "health"),
    ("score", "/v2/health/ready", "health"),
    ("score", "/v2/models/stats", "model_metadata"),
    ("score", "/v2/models/{model}", "model_metadata"),
    ("score", "/v2/models/{model}/config", "model_metadata"),
    ("score", "/v2/models/{model}/infer", "infer"),
    ("score", "/v2/models/{model}/ready", "model_metadata"),
    ("score", "/v2/models/{model}/stats", "model_metadata"),
    ("score", "/v2/models/{model}/versions/{version}", "model_metadata"),
    ("score", "/v2/models/{model}/versions/{version}/config", "model_metadata"),
    ("score", "/v2/models/{model}/versions/{version}/infer", "infer"),
    ("score", "/v2/models/{model}/versions/{version}/ready", "model_metadata"),
    ("score", "/v2/models/{model}/versions/{version}/stats", "model_metadata"),
    ("score", "/v2/repository/index", "model_metadata"),
    ("score", "/v2/repository/models/{model}/load", "model_control"),
    ("score", "/v2/repository/models/{model}/unload", "model_control"),
    ("score", "/v2/systemsharedmemory/region/{region}/register", "shared_memory"),
    ("score", "/v2/systemsharedmemory/region/{region}/status", "shared_memory"),
    ("score", "/v2/systemsharedmemory/region/{region}/unregister", "shared_memory"),
    ("score", "/v2/systemsharedmemory/status", "shared_memory"),
    ("score", "/v2/systemsharedmemory/unregister", "shared_memory"),
    ("score", "/vertex/health", "health"),
    ("score", "/vertex/predict", "score"),
];

/// The operations that need rights.
const OPERATIONS: [&str; 10] = [
    "score",
    "swagger",
    "infer",
    "shared_memory",
    "model_metadata",
    "server_metadata",
    "token",
    "status",
    "model_control",
    "collect_control",
];

/// A client of HTTP/2 in clear text.
fn over_http2() -> Client {
    Client::builder().no_proxy().http2_prior_knowledge().build().unwrap()
}

/// Whether a route is gRPC's.
fn is_grpc(path: &str) -> bool {
    path.contains('.') && !path.ends_with(".json")
}

/// A message of gRPC's that names a model, in whichever field that is: of calls, loads and unloads, and of what is asked otherwise.
fn message(path: &str, model: &str) -> Vec<u8> {
    let field = if path.contains("RepositoryModel") { 2 } else { 1 };
    let named = [&[field << 3 | 2, model.len() as u8], model.as_bytes()].concat();
    let named = match path {
        _ if path.contains("Model") => named,
        // In the `model_spec`.
        _ if path.contains("tensorflow") => [&[10, named.len() as u8], &named[..]].concat(),
        _ => Vec::new(),
    };
    [&[0, 0, 0, 0, named.len() as u8], &named[..]].concat()
}

/// The status of an answer; of gRPC's the one that REST has for the same.
fn status_of(response: &reqwest::Response) -> u16 {
    match header(response, "grpc-status").as_str() {
        "7" => 403,
        "16" => 401,
        "5" | "12" => 404,
        "3" => 400,
        _ => response.status().as_u16(),
    }
}

#[tokio::test]
async fn no_route_answers_a_method_or_contract_without_a_key() {
    let replica = with_callers(&[]).script(ECHO).args(EVERYTHING).start();
    let admin = format!("http://{}", replica.admin);
    let methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"];
    let (client, mut asked) = ([client(), over_http2()], 0);
    for route in outrigger_runtime::routes().into_iter().filter(|route| !route.operation.public()) {
        let base = match route.listener {
            "score" => &replica.score,
            "observe" => &replica.observe,
            _ => &admin,
        };
        let path = route.path.replace("{model}", "add").replace("{version}", "1");
        let path = path.replace("{label}", "blue").replace("{region}", "r");
        for method in methods {
            for content_type in ["application/json", "application/grpc", "application/octet-stream"] {
                for key in ["", "Bearer wrong-wrong-wrong-wrong"] {
                    let method = Method::from_bytes(method.as_bytes()).unwrap();
                    let client = &client[usize::from(content_type == "application/grpc")];
                    let request = client.request(method.clone(), format!("{base}{path}"));
                    let request = request.header("content-type", content_type).body(message(&path, "add"));
                    let request = if key.is_empty() { request } else { request.header("authorization", key) };
                    let response = request.send().await.unwrap();
                    let place = format!("{method} {path} as {content_type} with {key:?}");
                    // Preflights are answered to everybody, and tell nothing.
                    let preflight =
                        method == Method::OPTIONS && ["/score", "/swagger.json"].contains(&&*path);
                    let status = status_of(&response);
                    assert!(preflight || [400, 401, 404, 405, 415].contains(&status), "{place}: {status}");
                    assert!(response.text().await.unwrap().len() < 300, "{place}");
                    asked += 1;
                }
            }
        }
    }
    assert!(asked > 2000, "{asked}");
    let busy = outcome(client[0].get(format!("{}/busy", replica.observe)).send().await.unwrap()).await.2;
    assert_eq!(busy["arrived"], 0, "{busy}");
}

#[tokio::test]
async fn every_route_asks_who_calls_and_what_they_may() {
    let listed: BTreeSet<_> = ROUTES.iter().copied().collect();
    let routes = outrigger_runtime::routes();
    let there: BTreeSet<_> =
        routes.iter().map(|route| (route.listener, route.path, route.operation.as_str())).collect();
    assert_eq!(listed, there, "each route has its line in ROUTES");

    let only: Vec<_> = OPERATIONS
        .iter()
        .map(|operation| {
            (format!("only-{}", operation.replace('_', "-")), format!("operations = ['{operation}']"))
        })
        .collect();
    let mut callers: Vec<_> = only.iter().map(|(name, rules)| (name.as_str(), rules.as_str())).collect();
    callers.push(("nothing", "operations = []"));
    // What administers has to be named.
    let operations = format!("operations = {OPERATIONS:?}");
    let (no_models, add_only) =
        (format!("models = []\n{operations}"), format!("models = ['add']\n{operations}"));
    callers.push(("no-models", &no_models));
    callers.push(("add-only", &add_only));
    let replica = with_callers(&callers).script(ECHO).args(EVERYTHING).start();
    let admin = format!("http://{}", replica.admin);

    for (listener, path, operation) in ROUTES {
        let base = match *listener {
            "score" => &replica.score,
            "observe" => &replica.observe,
            _ => &admin,
        };
        let methods = match *operation {
            _ if path.contains("/labels/") => vec![Method::PUT, Method::DELETE],
            "score" | "infer" | "token" | "model_control" | "collect_control" => vec![Method::POST],
            _ if is_grpc(path) || path.ends_with("register") || path.ends_with("/index") => {
                vec![Method::POST]
            }
            _ => vec![Method::GET, Method::HEAD],
        };
        for method in methods {
            let ask = async |model: &str, key: Option<String>| {
                let message = message(path, model);
                let path = path.replace("{model}", model).replace("{version}", "1");
                let path = path.replace("{label}", "blue").replace("{region}", "r");
                let client = if is_grpc(&path) { over_http2() } else { client() };
                let request = client.request(method.clone(), format!("{base}{path}"));
                let request = match is_grpc(&path) {
                    true => request.header("content-type", "application/grpc").body(message),
                    false => request,
                };
                let request = key.into_iter().fold(request, reqwest::RequestBuilder::bearer_auth);
                let response = request.send().await.unwrap();
                let code = header(&response, "outrigger-code");
                let status = status_of(&response);
                (status, code, response.text().await.unwrap())
            };
            let place = format!("{method} {path} on {listener}");
            if !OPERATIONS.contains(operation) {
                if !["Watch", "Stream"].iter().any(|endless| path.contains(endless)) {
                    let status = ask("add", None).await.0;
                    assert!(![401, 403, 405, 415].contains(&status), "{place} is open: {status}");
                }
                continue;
            }
            for model in ["add", "no-such-model"] {
                assert_eq!(ask(model, None).await.0, 401, "{place} without a key");
                assert_eq!(ask(model, Some(key_of("stranger"))).await.0, 401, "{place} with a wrong key");
                let refused = ask(model, Some(key_of("nothing"))).await;
                assert_eq!((refused.0, refused.1.as_str()), (403, "forbidden"), "{place} without rights");
            }
            for (name, rules) in &only {
                let status = ask("add", Some(key_of(name))).await.0;
                let allowed = rules.contains(&format!("'{operation}'"));
                assert_eq!(![401, 403].contains(&status), allowed, "{place} as {name}: {status}");
            }
            let status = ask("add", Some(KEY.into())).await.0;
            assert!(![401, 403].contains(&status), "{place} with the primary key: {status}");
            let of_a_model = is_grpc(path)
                && ["Model", "Predict"].iter().any(|part| path.contains(part))
                && !path.contains("Stream");
            if path.contains("{model}") || of_a_model {
                let (known, unknown) = (
                    ask("add", Some(key_of("no-models"))).await,
                    ask("nil", Some(key_of("no-models"))).await,
                );
                assert_eq!(known.0, 403, "{place} with a model that is not the caller's");
                assert_eq!(known, unknown, "nothing is learnt of which models there are");
                assert_eq!(ask("nil", Some(KEY.into())).await.0, 404, "{place}");
                assert_eq!(ask("nil", Some(key_of("add-only"))).await, unknown, "{place}");
                assert_ne!(ask("add", Some(key_of("add-only"))).await.0, 403, "{place}");
            }
        }
    }
    // Where there is nothing, the admin listener says so to administrators alone.
    let nowhere = async |key: String| {
        client().get(format!("{admin}/nowhere")).bearer_auth(key).send().await.unwrap().status().as_u16()
    };
    assert_eq!(nowhere(KEY.into()).await, 404);
    assert_eq!(nowhere(key_of("only-status")).await, 404);
    assert_eq!(nowhere(key_of("only-score")).await, 403);
    assert_eq!(nowhere(key_of("stranger")).await, 401);
    // A preflight carries no credentials and needs none.
    let options = client().request(Method::OPTIONS, format!("{}/score", replica.score));
    assert_eq!(options.send().await.unwrap().status(), 200);
    for key in [key_of("nothing"), key_of("only-score"), KEY.into()] {
        assert!(!replica.log_text().contains(&key), "{}", replica.log_text());
    }
}

#[tokio::test]
async fn the_service_s_own_keys_can_have_rules_too() {
    let replica =
        with_callers(&[("secondary", "operations = ['score']\nrate = 0.01\nburst = 1")]).script(ECHO).start();
    let ask = |path: &str, key: &str| {
        client().post(format!("{}{path}", replica.score)).bearer_auth(key).body("1").send()
    };
    assert_eq!(ask("/score", SECONDARY_KEY).await.unwrap().status(), 200);
    assert_eq!(ask("/score", SECONDARY_KEY).await.unwrap().status(), 429);
    assert_eq!(ask("/v2/models/add/infer", SECONDARY_KEY).await.unwrap().status(), 403);
    for _ in 0..5 {
        assert_eq!(ask("/score", KEY).await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_rate_is_held_over_both_contracts_and_the_refusal_says_when_to_come_back() {
    let replica = with_callers(&[("slow", "rate = 0.01\nburst = 3"), ("other", "")]).script(ECHO).start();
    assert_eq!(score_as(&replica, "slow", "1").send().await.unwrap().status(), 200);
    assert_eq!(infer_as(&replica, "slow").send().await.unwrap().status(), 200);
    // What is refused for another reason costs nothing, and what only describes is free.
    for _ in 0..10 {
        let get = |path: &str| client().get(format!("{}{path}", replica.score)).bearer_auth(key_of("slow"));
        assert_eq!(get("/v2/models/add").send().await.unwrap().status(), 200);
        assert_eq!(get("/v2/models/nil").send().await.unwrap().status(), 404);
    }
    assert_eq!(score_as(&replica, "slow", "1").send().await.unwrap().status(), 200);
    for request in [score_as(&replica, "slow", "1"), infer_as(&replica, "slow")] {
        let response = request.send().await.unwrap();
        let seconds: u64 = header(&response, "retry-after").parse().unwrap();
        assert!((1..=100).contains(&seconds), "{seconds}");
        assert_eq!(header(&response, "outrigger-retryable"), "true");
        let (status, code, body) = outcome(response).await;
        assert_eq!((status, code.as_str()), (429, "rate_limited"), "{body}");
    }
    assert_eq!(score_as(&replica, "other", "1").send().await.unwrap().status(), 200);

    // Before the body is read: an answer comes although the body does not.
    let mut stream = TcpStream::connect(replica.score.trim_start_matches("http://")).unwrap();
    let (host, key) = ("Host: t\r\nContent-Length: 1000000", key_of("slow"));
    write!(stream, "POST /score HTTP/1.1\r\n{host}\r\nAuthorization: Bearer {key}\r\n\r\n").unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 429");

    for (answer, count) in [("granted", 23.0), ("rate_limited", 3.0)] {
        let name = format!("outrigger_caller_requests_total{{answer=\"{answer}\",caller=\"slow\"}}");
        assert_eq!(metric(&replica, &name).await, Some(count), "{answer}");
    }
    let busy = outcome(client().get(format!("{}/busy", replica.observe)).send().await.unwrap()).await.2;
    assert_eq!(busy["arrived"], 4, "a caller that comes too often is no load: {busy}");
}

/// A script that comes back once the file that its input names is there; `stream` is sent in pieces.
const WAITS: &str = r#"
import os, time
def init():
    pass
def run(data):
    if data.startswith("stream"):
        return pieces(data)
    while not os.path.exists("outputs/" + data):
        time.sleep(0.002)
    return data
def pieces(data):
    yield "first"
    if data == "stream long":
        for _ in range(16):
            yield "x" * 4096
        return
    while not os.path.exists("outputs/" + data):
        time.sleep(0.002)
        yield "more"
"#;

fn waiting(callers: &[(&str, &str)], workers: &str) -> ReplicaProcess {
    let launch = with_callers(callers).script(WAITS).file("app/outputs/now", "");
    launch.args(["--script-workers", workers, "--script-cancel-grace", "50ms"]).start()
}

fn allow(replica: &ReplicaProcess, what: &str) {
    std::fs::write(replica.directory().join("app/outputs").join(what), "").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_are_held_while_calls_run_and_wait_and_are_free_when_an_answer_is_there() {
    let replica = waiting(&[("one", "concurrency = 1"), ("two", "concurrency = 2")], "1");
    let running = tokio::spawn(score_as(&replica, "one", "a").send());
    until_calls(&replica, "one", 1.0).await;
    for request in [score_as(&replica, "one", "now"), infer_as(&replica, "one")] {
        let response = request.send().await.unwrap();
        assert_eq!(header(&response, "retry-after"), "1");
        assert_eq!(header(&response, "outrigger-retryable"), "true");
        let (status, code, body) = outcome(response).await;
        assert_eq!((status, code.as_str()), (429, "too_many_calls"), "{body}");
    }
    // Others wait for the slot, and their waiting calls count.
    let waiting = [(); 2].map(|()| tokio::spawn(score_as(&replica, "two", "now").send()));
    until_calls(&replica, "two", 2.0).await;
    assert_eq!(score_as(&replica, "two", "now").send().await.unwrap().status(), 429);
    allow(&replica, "a");
    assert_eq!(running.await.unwrap().unwrap().status(), 200);
    for call in waiting {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    // Who has an answer finds its place free, also on another connection: whole answers, models, streams, errors.
    allow(&replica, "stream");
    for _ in 0..40 {
        for request in
            [score_as(&replica, "one", "now"), infer_as(&replica, "one"), score_as(&replica, "one", "stream")]
        {
            let response = request.send().await.unwrap();
            let status = response.status();
            let body = response.text().await.unwrap();
            assert_eq!(status, 200, "{body}");
        }
        let (status, _, body) =
            outcome(infer_as(&replica, "one").body("no JSON").send().await.unwrap()).await;
        assert_eq!(status, 400, "{body}");
    }
    until_calls(&replica, "one", 0.0).await;
    until_calls(&replica, "two", 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_gives_its_place_back_when_its_call_ends() {
    let replica = waiting(&[("two", "concurrency = 2")], "1");
    let two = Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for (version, client) in [("HTTP/1.1", client()), ("HTTP/2", two)] {
        let call = |body: String| {
            let url = format!("{}/score", replica.score);
            tokio::spawn(client.post(url).bearer_auth(key_of("two")).body(body).send())
        };
        let running = call(version.replace('/', "-"));
        until_calls(&replica, "two", 1.0).await;
        let waiting = call("now".into());
        until_calls(&replica, "two", 2.0).await;
        // What waits leaves at once; what runs keeps its place for as long as it keeps its lane.
        waiting.abort();
        until_calls(&replica, "two", 1.0).await;
        running.abort();
        let other = call("now".into());
        until_calls(&replica, "two", 2.0).await;
        assert_eq!(score_as(&replica, "two", "now").send().await.unwrap().status(), 429, "{version}");
        allow(&replica, &version.replace('/', "-"));
        assert_eq!(other.await.unwrap().unwrap().status(), 200, "{version}");
        until_calls(&replica, "two", 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_keeps_its_place_until_it_ends_or_its_client_leaves() {
    let replica = waiting(&[("one", "concurrency = 1")], "2");
    let mut response = score_as(&replica, "one", "stream-a").send().await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    assert_eq!(score_as(&replica, "one", "now").send().await.unwrap().status(), 429);
    allow(&replica, "stream-a");
    while response.chunk().await.unwrap().is_some() {}
    assert_eq!(score_as(&replica, "one", "now").send().await.unwrap().status(), 200, "the stream is over");

    let mut response = score_as(&replica, "one", "stream-b").send().await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    assert_eq!(score_as(&replica, "one", "now").send().await.unwrap().status(), 429);
    drop(response);
    until_calls(&replica, "one", 0.0).await;
    assert_eq!(score_as(&replica, "one", "now").send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_its_client_does_not_take_keeps_its_place_after_the_lane_is_free() {
    let replica = waiting(&[("one", "concurrency = 1")], "1");
    allow(&replica, "stream");
    let narrow = Client::builder().no_proxy().http2_prior_knowledge().http2_initial_stream_window_size(4096);
    let url = format!("{}/score", replica.score);
    let request = narrow.build().unwrap().post(url).bearer_auth(key_of("one")).body("stream long");
    let mut response = request.send().await.unwrap();
    until(&replica, "outrigger_answered_total", 1.0).await;
    assert_eq!(metric(&replica, "outrigger_executing").await, Some(0.0));
    assert_eq!(score_as(&replica, "one", "now").send().await.unwrap().status(), 429);
    let mut taken = 0;
    while let Some(chunk) = response.chunk().await.unwrap() {
        taken += chunk.len();
    }
    assert!(taken > 64_000, "{taken}");
    assert_eq!(score_as(&replica, "one", "now").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn without_keys_there_are_rules_for_everybody() {
    let rules = "operations = ['infer', 'server_metadata']\nrate = 0.01\nburst = 1";
    let launch = with_callers(&[("anonymous", rules)]).script(ECHO);
    let replica = launch.env("OUTRIGGER_AUTH_ENABLED", "false").start();
    let post = |path: &str| client().post(format!("{}{path}", replica.score)).body("1").send();
    let (status, code, _) = outcome(post("/score").await.unwrap()).await;
    assert_eq!((status, code.as_str()), (403, "forbidden"));
    assert_eq!(infer_as(&replica, "whoever").send().await.unwrap().status(), 200);
    assert_eq!(infer_as(&replica, "whoever").send().await.unwrap().status(), 429);
    assert_eq!(client().get(format!("{}/v2", replica.score)).send().await.unwrap().status(), 200);
    assert_eq!(client().get(format!("{}/swagger.json", replica.score)).send().await.unwrap().status(), 403);
}

fn check(directory: &Path, environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(["serve", "--check", "--config", "o.toml"])
        .current_dir(directory)
        .env_clear()
        .env("HOME", "/nonexistent")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn check_shows_callers_without_their_keys() {
    let dir = configured(
        "[models.add]\npath = 'add.onnx'\n[callers.bob]\nkey = 'bob-s-key-bob-s-key-bob-s-key'\nrate = 2.5\n\
         operations = ['infer']\n[callers.batch-jobs]\npriority = 'low'\n",
    );
    let (status, text, error) =
        check(dir.path(), &[("OUTRIGGER_CALLERS_BATCH_JOBS_KEY", "batch-s-key-batch-s-key-batch-s-key")]);
    assert_eq!(status, Some(0), "{error}");
    for line in [
        "[callers.bob]",
        "key = \"***\"",
        "rate = 2.5",
        "operations = [\"infer\"]",
        "[callers.batch-jobs]",
        "priority = \"low\"",
        "# environment OUTRIGGER_CALLERS_BATCH_JOBS_KEY",
    ] {
        assert!(text.contains(line), "{line} not in\n{text}");
    }
    assert!(!format!("{text}{error}").contains("-s-key-"), "{text}{error}");
    // One that has none there may have some in the store.
    let (status, _, error) = check(dir.path(), &[]);
    assert_eq!(status, Some(0), "{error}");
    assert!(!error.contains("-s-key-"), "{error}");
}

fn configured(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("o.toml"), text).unwrap();
    std::fs::write(dir.path().join("add.onnx"), onnx::add(3)).unwrap();
    dir
}
