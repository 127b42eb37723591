//! Ensembles of models in versions, and ensembles that are in versions themselves.

use outrigger_testkit::{Launch, ReplicaProcess, onnx};
use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::{get, is_twice, outputs, row, twice};
use crate::devices::until;
use crate::models::Stored;
use crate::placement::{adder, call, contains};
use crate::residency::{admin, asked, state, told};
use crate::support::{outcome, outrigger};

async fn put(replica: &ReplicaProcess, model: &str, version: &str) -> (u16, Value) {
    let client = Client::builder().no_proxy().unix_socket(replica.admin_socket()).build().unwrap();
    let request =
        client.put(format!("http://admin/models/{model}/labels/stable")).json(&json!({"version": version}));
    let (status, _, body) = outcome(request.send().await.unwrap()).await;
    (status, body)
}

/// `a` in versions: the first and the second add; the third does not take what the ensemble has for it.
fn versions(rest: &str) -> Launch {
    let config = format!(
        "model_dir = 'models'\n[placement]\ndevices = ['adder']\n[backends.adder]\nlibrary = '{}'\nprocess = 'in'\n{rest}",
        adder().display()
    );
    let launch = outrigger().file("outrigger.toml", config).args(["--config", "outrigger.toml"]);
    let launch = [("1", "add 3\n"), ("2", "add 3\n"), ("3", "identity FP32")].into_iter().fold(
        launch,
        |launch, (version, text)| {
            let launch = launch.file(&format!("models/a/{version}/a.txt"), text);
            launch.file(&format!("models/a/{version}/model.toml"), "file = 'a.txt'\n")
        },
    );
    launch
        .file("models/b/b.txt", "add 3\n")
        .file("models/b/model.toml", "file = 'b.txt'\n")
        .file("models/e/1/graph.toml", twice("a", "b"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_of_a_model_is_had_with_the_next_call() {
    // The highest one would be served, and does not go with the ensemble.
    let launch = versions("[rollout]\nfailures = 5\n");
    std::fs::rename(launch.directory().join("models/a/3"), launch.directory().join("models/a/later"))
        .unwrap();
    let replica = launch.start();
    is_twice(&replica, "e").await;
    let of_a = async || asked(&replica, "/models/e").await["nodes"][0]["version"].clone();
    assert_eq!(of_a().await, "2");
    assert_eq!(put(&replica, "a", "1").await.0, 200);
    is_twice(&replica, "e").await;
    assert_eq!(of_a().await, "1");
    assert_eq!(put(&replica, "a", "1").await.0, 200, "it is not watched any more");

    std::fs::rename(replica.directory().join("models/a/later"), replica.directory().join("models/a/3"))
        .unwrap();
    assert_eq!(put(&replica, "a", "3").await.0, 200);
    let (status, code, said) = outputs(&replica, "e", call()).await;
    assert_eq!((status, code.as_str()), (503, "model_unavailable"));
    contains(said.as_str().unwrap(), &["ensemble `e` cannot be had: node `a`: model `a` has no input `y`"]);
    contains(
        asked(&replica, "/models/e").await["refused"].as_str().unwrap(),
        &["model `a` has no input `y`"],
    );
    assert_eq!(get(&replica, "/v2/models/e/ready").await.0, 503);
    // That counts against the version: with the fifth the one before it is back.
    for _ in 0..5 {
        outputs(&replica, "e", call()).await;
    }
    until("the old one is back", async || outputs(&replica, "e", call()).await.0 == 200).await;
    assert_eq!(of_a().await, "1");
    assert!(asked(&replica, "/models/e").await.get("refused").is_none());
    let log = replica.log_text();
    assert_eq!(
        log.matches("an ensemble cannot be had with the versions that there are now").count(),
        1,
        "said once"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ensemble_has_versions_itself() {
    let launch = versions("");
    std::fs::remove_dir_all(launch.directory().join("models/a/3")).unwrap();
    let launch = launch
        .file("models/e/2/graph.toml", twice("b", "a"))
        .file("models/e/3/graph.toml", twice("b", "none"));
    std::fs::rename(launch.directory().join("models/e/3"), launch.directory().join("models/e/later"))
        .unwrap();
    let replica = launch.start();
    let first = async || asked(&replica, "/models/e").await["nodes"][0]["model"].clone();
    assert_eq!(
        (asked(&replica, "/models/e").await["version"].clone(), first().await),
        (json!("2"), json!("b"))
    );
    assert_eq!(put(&replica, "e", "1").await.0, 200);
    is_twice(&replica, "e").await;
    assert_eq!(first().await, "a");
    std::fs::rename(replica.directory().join("models/e/later"), replica.directory().join("models/e/3"))
        .unwrap();
    let (status, body) = put(&replica, "e", "3").await;
    assert_eq!(status, 409, "{body}");
    contains(&body.to_string(), &["models/e/3/graph.toml: node `b`: model `none` is not served here"]);
    is_twice(&replica, "e").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ensembles_come_from_a_registry() {
    let stored = Stored::folder();
    for name in ["a", "b"] {
        stored.write(&format!("{name}/model.onnx"), onnx::add(3));
        stored.done(&["push", name]);
    }
    stored.write("e/graph.toml", twice("a", "b"));
    stored.write("e/model.toml", "[[samples]]\nrequest = 'ask.json'\nexpect = 'golden.json'\n");
    stored.write("e/ask.json", call());
    let golden = json!({"model_name": "e", "outputs": [row("z", [22.0, 44.0, 66.0])]});
    stored.write("e/golden.json", golden.to_string());
    stored.done(&["push", "e"]);
    for load in ["start", "use"] {
        let replica = stored.replica().args(["--store-models", "*", "--residency-load", load]).start();
        let expected = if load == "start" { "ready" } else { "registered" };
        assert_eq!(state(&replica, "e").await, expected);
        is_twice(&replica, "e").await;
        assert_eq!(state(&replica, "e").await, "ready");
        if load == "use" {
            // Nothing is held, nor loaded, for an ensemble whose own files are not here.
            let events = asked(&replica, "/events").await["events"].as_array().unwrap().clone();
            let at = |model: &str, what: &str| {
                let is_it = |event: &Value| event["model"] == model && event["event"] == what;
                events.iter().position(is_it).unwrap()
            };
            assert!(at("e", "fetched") < at("a", "fetching"), "{events:?}");
        }
        let listed = admin(&replica, Method::GET, "/models?limit=2").await;
        assert_eq!(outcome(listed).await.2["total"], 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_a_node_names_is_there_as_long_as_the_node() {
    let launch = versions("[rollout]\nwatch = '0s'\n");
    std::fs::remove_dir_all(launch.directory().join("models/a/3")).unwrap();
    let named = twice("a", "b").replace("model = 'a',", "model = 'a', version = 2,");
    let launch = launch.file("models/e/1/graph.toml", named);
    let replica = launch.start();
    is_twice(&replica, "e").await;
    assert_eq!(put(&replica, "a", "1").await.0, 200);
    is_twice(&replica, "e").await;
    let of_e = asked(&replica, "/models/e").await["nodes"][0]["version"].clone();
    assert_eq!((of_e, asked(&replica, "/models/a").await["version"].clone()), (json!("2"), json!("1")));
    // Another version of the ensemble does not name it.
    std::fs::create_dir(replica.directory().join("models/e/2")).unwrap();
    std::fs::write(replica.directory().join("models/e/2/graph.toml"), twice("a", "b")).unwrap();
    assert_eq!(put(&replica, "e", "2").await.0, 200);
    until("it is gone", async || asked(&replica, "/models/a").await.get("others").is_none()).await;
    is_twice(&replica, "e").await;
}

/// `e` in two versions, the first one of `a` alone and the second one of `b`.
fn changing(memory: u64, rest: &str) -> Launch {
    let config = format!(
        "[placement]\ndevices = ['adder']\n[backends.adder]\nlibrary = '{}'\nprocess = 'in'\nmemory = '{memory}B'\n{rest}\n\
         [models.a]\npath = 'a.txt'\n[models.b]\npath = 'a.txt'\n[models.c]\npath = 'a.txt'\n",
        adder().display()
    );
    let launch = outrigger().file("outrigger.toml", config).args(["--config", "outrigger.toml"]);
    let launch = launch.file("a.txt", "add 3\n").file("e/1/graph.toml", twice("a", "a"));
    launch.file("later/graph.toml", twice("b", "b"))
}

/// The second one is there.
fn come(replica: &ReplicaProcess) {
    let directory = replica.directory();
    std::fs::rename(directory.join("later"), directory.join("e/2")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pinned_is_what_the_ensemble_is_made_of_now() {
    let rest = "[residency]\nload = 'use'\n[rollout]\nwatch = '0s'\n[models.e]\npath = 'e'\nload = 'pinned'";
    let replica = changing(200, rest).start();
    let pinned = async |model: &str| asked(&replica, &format!("/models/{model}")).await["pinned"] == true;
    assert_eq!([pinned("a").await, pinned("b").await], [true, false]);
    come(&replica);
    assert_eq!(put(&replica, "e", "2").await.0, 200);
    is_twice(&replica, "e").await;
    assert!(pinned("b").await && pinned("e").await);
    until("the first one is gone", async || !pinned("a").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_calls_may_have_again_stays() {
    let rest = "[residency]\nload = 'use'\nroom_wait = '60s'\n[models.e]\npath = 'e'";
    let replica = changing(90, rest).start();
    is_twice(&replica, "e").await;
    come(&replica);
    assert_eq!(put(&replica, "e", "2").await.0, 200);
    is_twice(&replica, "e").await;
    // The second version is watched: of what the devices hold its models alone may make way.
    told(&replica, "/models/c/load").await;
    assert_eq!([state(&replica, "a").await, state(&replica, "b").await], ["ready", "on_disk"]);
    // And what stays is in the way of others, which is found out at once.
    let launch = changing(90, &format!("{rest}\n[models.f]\npath = 'f'"));
    let replica = launch.file("f/graph.toml", twice("b", "c")).start();
    is_twice(&replica, "e").await;
    come(&replica);
    assert_eq!(put(&replica, "e", "2").await.0, 200);
    let (status, code, said) = outputs(&replica, "f", call()).await;
    assert_eq!((status, code.as_str()), (503, "model_unavailable"), "{said}");
    contains(said.as_str().unwrap(), &["ensemble `f`: its models have no place beside each other"]);
    assert_eq!(put(&replica, "e", "2").await.0, 200, "it is confirmed, and not watched any more");
    until("there is room", async || outputs(&replica, "f", call()).await.0 == 200).await;
}
