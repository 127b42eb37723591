//! Registered models that are fetched with the first call that needs them.

use outrigger_testkit::faults::{Fault, On};
use outrigger_testkit::{Launch, ReplicaProcess, onnx, onnxruntime};
use reqwest::Method;
use serde_json::{Value, json};

use crate::models::Stored;
use crate::placement::{call, contains, metrics};
use crate::residency::{admin, asked, state, told};
use crate::support::{header, infer, outcome};

/// Models that are the same to callers, of files that are not.
fn three() -> Option<Stored> {
    let stored = Stored::azure()?;
    for name in ["a", "b", "c"] {
        stored.write(&format!("{name}/model.onnx"), onnx::add(3));
        stored.write(&format!("{name}/notes.txt"), name);
        stored.done(&["push", name]);
    }
    stored.proxy().forget();
    Some(stored)
}

fn lazily(stored: &Stored) -> Launch {
    stored.replica().args(["--store-models", "*", "--residency-load", "use"])
}

async fn sum(replica: &ReplicaProcess, model: &str) -> (u16, String, Value) {
    outcome(infer(replica, model, call()).send().await.unwrap()).await
}

async fn sums(replica: &ReplicaProcess, model: &str) {
    let (status, _, body) = sum(replica, model).await;
    let answer = &body["outputs"][0]["data"];
    assert_eq!((status, answer), (200, &json!([11.0, 22.0, 33.0])), "{body}\n{}", replica.log_text());
}

fn gets(stored: &Stored, path: &str) -> usize {
    stored.proxy().counts(&On::get().path(path)).requests
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_fetched_with_the_first_call_that_needs_it() {
    let Some(stored) = three() else { return };
    let replica = lazily(&stored).start();
    assert_eq!(state(&replica, "a").await, "registered");
    contains(&metrics(&replica).await, &["outrigger_models{state=\"registered\"} 3"]);
    assert_eq!((gets(&stored, "model.onnx"), gets(&stored, "notes.txt")), (0, 0));
    let at = |name: &str| replica.directory().join("state/azureml-models").join(name);
    assert!(!at("b").exists());

    sums(&replica, "b").await;
    assert_eq!((gets(&stored, "model.onnx"), gets(&stored, "notes.txt")), (1, 1), "of one model");
    assert_eq!(std::fs::read_to_string(at("b/1/b/notes.txt")).unwrap(), "b");
    assert_eq!(state(&replica, "a").await, "registered");
    let shown = asked(&replica, "/models/b").await;
    let load = &shown["last_load"];
    let bytes = onnx::add(3).len() as u64 + 1;
    assert_eq!((&load["fetched_bytes"], &load["verified_bytes"]), (&json!(bytes), &json!(bytes)), "{load}");
    for step in ["fetch", "verify", "queued", "load", "warm"] {
        assert!(load[step].as_f64().is_some_and(|seconds| seconds >= 0.0), "{step}: {load}");
    }
    let events = asked(&replica, "/events").await;
    let events: Vec<_> = events["events"].as_array().unwrap().iter().map(|event| &event["event"]).collect();
    assert_eq!(events, ["fetching", "fetched", "queued", "loading", "warming", "ready"]);
    let text = metrics(&replica).await;
    let fetched = format!("outrigger_model_fetched_bytes_total {bytes}");
    contains(&text, &["outrigger_model_fetches_total 1", &fetched]);

    sums(&replica, "c").await;
    assert_eq!((gets(&stored, "model.onnx"), gets(&stored, "notes.txt")), (1, 2), "what is equal is here");
    drop(replica);
    let replica = lazily(&stored).start();
    sums(&replica, "b").await;
    assert_eq!((gets(&stored, "model.onnx"), gets(&stored, "notes.txt")), (1, 2), "nor is it fetched again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifests_of_many_models_come_by_one_request() {
    let Some(stored) = Stored::azure() else { return };
    stored.write("sum.onnx", onnx::add(3));
    let names: Vec<_> = (0..16).map(|number| format!("sum{number:02}")).collect();
    for name in &names {
        stored.done(&["push", "sum.onnx", "--name", name]);
    }
    let said = stored.done(&["index"]);
    assert!(
        said.starts_with("az://models/registry/outrigger-index.json: 16 version(s) of 16 model(s), "),
        "{said}"
    );
    stored.done(&["push", "sum.onnx", "--name", "sum16"]);
    stored.proxy().forget();
    let replica = lazily(&stored).start();
    sums(&replica, "sum16").await;
    let requests = stored.proxy().counts(&On::get());
    assert_eq!(
        (requests.requests, gets(&stored, "outrigger-index.json"), gets(&stored, "sum.onnx")),
        (3, 1, 1),
        "and a listing"
    );
    drop(replica);
    // So it is where they are named; and where the listing does not come, they are asked for one by one.
    let named = |cache: &str| {
        let launch = stored.replica().args(["--residency-load", "use"]);
        let launch =
            names.iter().fold(launch, |launch, name| launch.args(["--store-models", &format!("{name}:1")]));
        launch.env("OUTRIGGER_STORE_CACHE", stored.path(cache).to_str().unwrap())
    };
    for (cache, expected) in [("named", (2, 1)), ("stalled", (17, 0))] {
        stored.proxy().forget();
        if cache == "stalled" {
            stored.proxy().inject(On::get().path("comp=list"), Fault::Stall { after: 0 });
        }
        let replica = named(cache).start();
        assert_eq!(state(&replica, "sum15").await, "registered");
        let requests = stored.proxy().counts(&On::get()).requests;
        assert_eq!((requests, gets(&stored, "outrigger-index.json")), expected, "{cache}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_model_says_of_itself_is_here_before_its_files_are() {
    let Some(stored) = Stored::azure() else { return };
    stored.write("sum/weights.onnx", onnx::add(3));
    stored.write("sum/ask.json", call());
    let says = "file = 'weights.onnx'\nmax_batch = 4\n[[samples]]\nrequest = 'ask.json'\n";
    stored.write("sum/model.toml", says);
    stored.done(&["push", "sum"]);
    stored.proxy().forget();
    // By a name of its own, and beside one that is fetched at the start.
    let config = "[models.adder]\nsource = 'sum'\nload = 'use'\n";
    let launch = stored.replica().file("outrigger.toml", config).args(["--config", "outrigger.toml"]);
    let replica = launch.start();
    assert_eq!((gets(&stored, "model.toml"), gets(&stored, "weights.onnx")), (1, 0));
    assert_eq!(state(&replica, "adder").await, "registered");
    sums(&replica, "adder").await;
    assert_eq!((gets(&stored, "model.toml"), gets(&stored, "weights.onnx")), (1, 1));
    // Who looks at what there would be needs the files.
    let place = stored.write("outrigger.toml", config);
    let mut plan = stored.outrigger("plan");
    plan.arg("--config").arg(place).env("OUTRIGGER_BACKENDS_ONNXRUNTIME", onnxruntime());
    let plan = plan.output().unwrap();
    let text = String::from_utf8(plan.stdout).unwrap();
    assert!(plan.status.success() && text.contains("adder"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_cannot_be_fetched_is_left_alone_for_a_while_and_others_are_not() {
    let Some(stored) = three() else { return };
    stored.proxy().inject(On::get().path("a/1/a/notes.txt").always(), Fault::Corrupt { at: 0 });
    let replica = lazily(&stored).args(["--residency-retry", "1h", "--residency-max-retry", "1h"]).start();
    for _ in 0..2 {
        let response = infer(&replica, "a", call()).send().await.unwrap();
        let retry: u64 = header(&response, "retry-after").parse().unwrap();
        let (status, code, body) = outcome(response).await;
        assert_eq!((status, code.as_str()), (503, "model_unavailable"), "{body}");
        assert!(retry > 3000, "{retry}");
    }
    assert_eq!(state(&replica, "a").await, "failed");
    let shown = asked(&replica, "/models/a").await;
    let failure = shown["last_load"]["failure"].as_str().unwrap();
    contains(failure, &["its files cannot be fetched", "has the SHA-256"]);
    sums(&replica, "b").await;
    let asked_for = gets(&stored, "a/1/a/notes.txt");
    assert!(asked_for > 0 && asked_for < 10, "not again with each call: {asked_for}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_cache_is_full_files_of_models_that_are_not_loaded_make_way() {
    let Some(stored) = Stored::azure() else { return };
    for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
        stored.write(&format!("{name}/model.onnx"), onnx::sized(1_000_000, number as u64));
        stored.write(&format!("{name}/model.toml"), "max_batch = 2\n");
        stored.done(&["push", name]);
    }
    let launch = lazily(&stored).args(["--store-cache-size", "2500000B", "--residency-retry", "1ms"]);
    let replica = launch.start();
    let loaded = async |model: &str| told(&replica, &format!("/models/{model}/load")).await["state"].clone();
    assert_eq!([loaded("a").await, loaded("b").await], ["ready", "ready"]);
    // Both are in use.
    let load = admin(&replica, Method::POST, "/models/c/load").await;
    assert_eq!(load.status(), 503);
    let shown = asked(&replica, "/models/c").await;
    contains(shown["last_load"]["failure"].as_str().unwrap(), &["cannot take", "store.cache_size"]);
    told(&replica, "/models/a/unload").await;
    assert_eq!(loaded("c").await, "ready");
    assert_eq!(state(&replica, "a").await, "registered");
    let at = |name: &str| replica.directory().join("state/azureml-models").join(name);
    assert!(!at("a/1/a/model.onnx").exists() && at("a/1/a/model.toml").exists());
    told(&replica, "/models/b/unload").await;
    assert_eq!(loaded("a").await, "ready", "it is fetched again");
    assert_eq!([state(&replica, "b").await, state(&replica, "c").await], ["registered", "ready"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_does_not_wait_for_a_fetch() {
    let Some(stored) = three() else { return };
    stored.proxy().inject(On::get().path("a/1/a/notes.txt").always(), Fault::Stall { after: 0 });
    let replica = lazily(&stored).args(["--shutdown-drain", "100ms"]).start();
    let waits = tokio::spawn(infer(&replica, "a", call()).send());
    crate::devices::until("the fetch", async || state(&replica, "a").await == "fetching").await;
    // Others are fetched beside it.
    sums(&replica, "b").await;
    replica.signal("TERM");
    let (status, code, body) = outcome(waits.await.unwrap().unwrap()).await;
    assert_eq!((status, code.as_str()), (503, "draining"), "{body}");
    let ended = replica.wait();
    assert!(ended.status.code().is_some(), "{}", ended.text());
}
