//! Which operations need a key, as the description has it and as it is.

use outrigger_testkit::replica::KEY;
use reqwest::Method;
use serde_json::{Value, json};

use super::one;
use crate::support::{ECHO, client, outrigger};

#[tokio::test]
async fn without_keys_none_is_asked_for() {
    let replica = outrigger().script(ECHO).env("OUTRIGGER_AUTH_ENABLED", "false").start();
    let document: Value =
        client().get(format!("{}/openapi.json", replica.score)).send().await.unwrap().json().await.unwrap();
    assert_eq!(
        (&document["security"], &document["components"]["securitySchemes"]),
        (&Value::Null, &Value::Null)
    );
    assert!(document["paths"]["/score"]["post"]["responses"].get("401").is_none());
}

#[tokio::test]
async fn what_manages_models_needs_a_key_also_where_scoring_is_open() {
    let launch = one().args(["--score-model-control"]).env("OUTRIGGER_AUTH_ENABLED", "false");
    let replica = launch.args(["--admin-listen", "127.0.0.1:0"]).start();
    let document: Value =
        client().get(format!("{}/openapi.json", replica.score)).send().await.unwrap().json().await.unwrap();
    assert!(document["components"]["securitySchemes"]["key"].is_object() && document["security"].is_null());
    for (path, method, keyed) in [
        ("/v2/repository/models/{model}/load", "post", true),
        ("/v2/repository/models/{model}/unload", "post", true),
        ("/models", "post", true),
        ("/models/{model}", "delete", true),
        ("/models", "get", false),
        ("/v2/models/{model}/infer", "post", false),
        ("/v2/models/add/infer", "post", false),
    ] {
        let operation = &document["paths"][path][method];
        assert!(operation.is_object(), "{method} {path}");
        assert_eq!(operation["security"] == json!([{ "key": [] }]), keyed, "{method} {path}");
        assert_eq!(operation["responses"].get("401").is_some(), keyed, "{method} {path}");
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let url = format!("{}{}", replica.score, path.replace("{model}", "add"));
        let status = client().request(method, url).body("{}").send().await.unwrap().status().as_u16();
        assert_eq!(status == 401, keyed, "{path}: {status}");
    }
}

#[tokio::test]
async fn what_nobody_has_a_key_for_is_not_described() {
    let replica = one().args(["--score-model-control"]).env("OUTRIGGER_AUTH_ENABLED", "false").start();
    let document: Value =
        client().get(format!("{}/openapi.json", replica.score)).send().await.unwrap().json().await.unwrap();
    assert!(document["paths"].get("/v2/repository/models/{model}/load").is_none());
    assert!(document["paths"]["/models"].get("post").is_none());
    let url = format!("{}/v2/repository/models/add/load", replica.score);
    let status = client().post(url).bearer_auth(KEY).body("{}").send().await.unwrap().status();
    assert_eq!(status, 403, "it is refused, whoever asks");
}
