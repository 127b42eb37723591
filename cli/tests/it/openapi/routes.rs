//! What is described is what is served: every route and method, and nothing that is switched off, hidden or not ready.

use std::collections::BTreeSet;

use outrigger_testkit::onnx;
use outrigger_testkit::replica::KEY;
use outrigger_testkit::upstream::App;
use reqwest::{Client, Method};
use serde_json::json;

use super::{document, everything, listeners, one, paths};
use crate::support::{ECHO, client, header, outcome, outrigger};

/// Whether a route is gRPC's.
fn is_grpc(path: &str) -> bool {
    path.contains('.') && !path.ends_with(".json")
}

#[tokio::test]
async fn every_route_and_method_is_described_and_nothing_else() {
    let launch = everything(outrigger().script(ECHO).file("add.onnx", onnx::add(3)));
    let replica = launch.args(["--model", "add=add.onnx"]).start();
    let over_http2 = Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for (listener, base) in listeners(&replica) {
        let document = document(&base, "").await;
        let routes = outrigger_runtime::routes();
        let routes: BTreeSet<_> =
            routes.iter().filter(|route| route.listener == listener).map(|route| route.path).collect();
        let mut described = paths(&document);
        assert_eq!(described.remove("/v2/models/add/infer"), listener == "score");
        assert_eq!(described, routes, "{listener}");
        for path in routes {
            let item = document["paths"][path].as_object().unwrap();
            if is_grpc(path) {
                assert_eq!(item.keys().collect::<Vec<_>>(), ["post"], "{path}");
            }
            let url = ["model", "version", "label", "region", "deletion"].iter().fold(
                format!("{base}{path}"),
                |url, name| {
                    let value = if *name == "model" { "add" } else { "1" };
                    url.replace(&format!("{{{name}}}"), value)
                },
            );
            for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
                // Preflights are answered to browsers, and are none of the service's operations.
                if method == "OPTIONS" && ["/", "/score", "/swagger.json"].contains(&path) {
                    continue;
                }
                // Streams have no end.
                if is_grpc(path) && method == "POST" {
                    continue;
                }
                let client = if is_grpc(path) { over_http2.clone() } else { client() };
                let request = client.request(Method::from_bytes(method.as_bytes()).unwrap(), &url);
                let content_type = if is_grpc(path) { "application/grpc" } else { "application/json" };
                let request = request.bearer_auth(KEY).header("content-type", content_type).body("{}");
                let response = request.send().await.unwrap();
                let refused = response.status() == 405 || header(&response, "grpc-status") == "12";
                let counts_as =
                    if method == "HEAD" && path != "/score" { "get" } else { &method.to_lowercase() };
                let known = item.contains_key(counts_as);
                assert_eq!(!refused, known, "{method} {path} on {listener}: {}", response.status());
            }
        }
    }
}

#[tokio::test]
async fn what_is_switched_off_is_not_described() {
    let replica = one().start();
    let all = document(&replica.score, "").await;
    for absent in ["/score", "/v2/systemsharedmemory/status", "/v2/repository/models/{model}/load"] {
        assert!(!paths(&all).contains(absent), "{absent}");
    }
    assert!(all["paths"]["/models"]["get"].is_object() && all["paths"]["/models"]["post"].is_null());
    assert!(!all.to_string().contains("SystemSharedMemory"));
    for (contracts, there, absent) in [
        (
            "aml",
            vec!["/swagger.json"],
            vec!["/v2", "/ping", "/vertex/predict", "/inference.GRPCInferenceService/ModelInfer"],
        ),
        ("oip", vec!["/v2/models/add/infer"], vec!["/swagger.json", "/ping", "/grpc.health.v1.Health/Check"]),
        ("sagemaker", vec!["/models/add/invoke", "/ping"], vec!["/v2", "/vertex/predict"]),
        ("vertex", vec!["/vertex/predict", "/predict"], vec!["/v2", "/ping"]),
    ] {
        let launch = one();
        let replica =
            launch.args(["--score-contracts", contracts, "--score-vertex-predict-route", "/predict"]).start();
        let document = document(&replica.score, "").await;
        let paths = paths(&document);
        assert!(there.iter().all(|path| paths.contains(path)), "{contracts}: {paths:?}");
        assert!(!absent.iter().any(|path| paths.contains(path)), "{contracts}: {paths:?}");
        if contracts == "aml" {
            assert!(
                document["components"]["schemas"].get("InferRequest").is_none(),
                "what is not used is left out"
            );
        }
    }
}

#[tokio::test]
async fn a_replica_that_is_not_ready_describes_what_does_not_depend_on_it() {
    let launch = outrigger().args(["--upstream-url", "http://127.0.0.1:9", "--admin-listen", "127.0.0.1:0"]);
    let replica = launch.spawn();
    // Nothing is behind it, so it does not become ready; other listeners describe themselves all the same.
    for (listener, base) in listeners(&replica).into_iter().skip(1) {
        assert!(paths(&document(&base, "").await).contains("/openapi.json"), "{listener}");
    }
    let request = client().get(format!("{}/openapi.json", replica.score)).bearer_auth(KEY);
    let (status, code, _) = outcome(request.send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (503, "not_ready"));
}

#[tokio::test]
async fn a_sidecar_describes_what_it_passes_on_and_not_what_it_hides() {
    let app = App::start();
    let launch = one().args(["--upstream-url", &app.url()]);
    let passed_on = ["/predict", "/docs", "/v2/*"].into_iter().flat_map(|path| ["--upstream-paths", path]);
    let replica = launch.args(passed_on).start();
    let document = document(&replica.score, "").await;
    let described = paths(&document);
    assert!(["/score", "/predict"].iter().all(|path| described.contains(path)), "{described:?}");
    // These are the other server's.
    assert!(!described.iter().any(|path| path.starts_with("/v2/")), "{described:?}");
    assert_eq!(document["paths"]["/docs"]["get"]["tags"], json!(["Scoring"]));
    assert!(document["info"]["description"].as_str().unwrap().contains("/v2/*"));
    // These are passed on whatever the method, but for two that are none for the server behind.
    let methods: BTreeSet<_> = document["paths"]["/predict"].as_object().unwrap().keys().cloned().collect();
    let all = ["delete", "get", "head", "options", "patch", "post", "put"];
    assert_eq!(methods, all.map(str::to_owned).into());
    let own = &document["paths"]["/score"]["post"]["responses"]["default"]["content"];
    assert!(own.get("*/*").is_some(), "{own}");
    let codes = document["paths"]["/score"]["post"]["responses"].as_object().unwrap();
    assert!(codes.contains_key("502"), "{codes:?}");
}
