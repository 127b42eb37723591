//! Ensembles whose models are loaded when they are needed, on devices that do not hold all models at once.

use outrigger_testkit::{Launch, ReplicaProcess};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{THREE, TWO, get, is_twice, lazily, outputs, row, twice};
use crate::placement::{adder, call, contains, metrics, refused};
use crate::residency::{asked, state, told};
use crate::support::{infer, outcome, outrigger, until_busy};

#[tokio::test]
async fn its_models_are_loaded_with_the_first_call() {
    let replica = lazily(100, &TWO, &[("e", "a", "b")], "").start();
    assert_eq!([state(&replica, "a").await, state(&replica, "e").await], ["on_disk"; 2]);
    assert_eq!(get(&replica, "/v2/models/e/ready").await.0, 200, "it would be loaded");
    let (status, metadata) = get(&replica, "/v2/models/e").await;
    assert_eq!((status, &metadata["inputs"][1]["name"]), (200, &json!("y")), "{metadata}");
    is_twice(&replica, "e").await;
    assert_eq!(
        [state(&replica, "a").await, state(&replica, "b").await, state(&replica, "e").await],
        ["ready"; 3]
    );
    let uses = async |model: &str| asked(&replica, &format!("/models/{model}")).await["uses"].clone();
    assert_eq!([uses("a").await, uses("b").await, uses("e").await], [2, 2, 2], "one who asked, and a call");
    assert_eq!(listed(&replica).await, ["a", "b", "e"]);
    told(&replica, "/models/b/unload").await;
    assert_eq!(state(&replica, "e").await, "on_disk", "it is as far as the least of its models");
    assert_eq!(listed(&replica).await, ["a"]);
    assert_eq!(told(&replica, "/models/e/load").await["state"], "ready");
    assert_eq!(state(&replica, "b").await, "ready");
    assert_eq!(told(&replica, "/models/e/unload").await["state"], "on_disk");
    assert_eq!(state(&replica, "a").await, "ready", "its models stay");
    is_twice(&replica, "e").await;
    let events = asked(&replica, "/events").await;
    let events = events["events"].as_array().unwrap().clone();
    let of_e: Vec<_> =
        events.iter().filter(|event| event["model"] == "e").map(|event| &event["event"]).collect();
    assert_eq!(of_e, ["loading", "ready", "draining", "unloaded", "loading", "ready"]);
}

#[tokio::test]
async fn what_an_ensemble_says_of_its_load_its_models_do() {
    let rest = "[models.e]\npath = 'e'\nload = 'pinned'";
    let launch = lazily(200, &THREE, &[], rest).file("e/graph.toml", twice("a", "b"));
    let replica = launch.start();
    assert_eq!(
        [state(&replica, "a").await, state(&replica, "c").await, state(&replica, "e").await],
        ["ready", "on_disk", "ready"]
    );
    assert_eq!(asked(&replica, "/models/a").await["pinned"], true);
    assert_eq!(told(&replica, "/models/e/unpin").await["pinned"], false);
    assert_eq!(asked(&replica, "/models/a").await["pinned"], false);
    is_twice(&replica, "e").await;
}

/// Those that are loaded, as SageMaker lists them.
async fn listed(replica: &ReplicaProcess) -> Vec<String> {
    let (_, body) = get(replica, "/models").await;
    let name = |model: &Value| model["modelName"].as_str().unwrap().to_owned();
    body["models"].as_array().unwrap().iter().map(name).collect()
}

/// `f` is made of `e`, which is made of `a` and `b`.
fn nested(rest: &str) -> Launch {
    let graph = "inputs = [{name = 'x'}, {name = 'y'}]
        outputs = [{name = 'z', from = 'e.z'}]
        nodes = [{model = 'e', inputs = {x = 'x', y = 'y'}}]";
    let launch = lazily(200, &TWO, &[("e", "a", "b")], &format!("{rest}\n[models.f]\npath = 'f'\n"));
    launch.file("f/graph.toml", graph)
}

#[tokio::test]
async fn what_is_made_of_an_ensemble_goes_by_it() {
    let launch = nested("retry = '1h'\nmax_retry = '1h'");
    let launch = launch.file("e/model.toml", "[[samples]]\nrequest = 'ask.json'\nexpect = 'golden.json'\n");
    let golden = |values| json!({"model_name": "e", "outputs": [row("z", values)]}).to_string();
    let replica = launch.file("e/ask.json", call()).file("e/golden.json", golden([0.0; 3])).start();
    assert_eq!(get(&replica, "/v2/models/f/ready").await.0, 200, "it would be loaded");
    let (status, code, said) = outputs(&replica, "f", call()).await;
    assert_eq!((status, code.as_str()), (503, "model_unavailable"), "{said}");
    contains(said.as_str().unwrap(), &["model `e` does not load"]);
    assert_eq!(state(&replica, "f").await, "failed");
    assert_eq!(get(&replica, "/v2/models/f/ready").await.0, 503);
    std::fs::write(replica.directory().join("e/golden.json"), golden([22.0, 44.0, 66.0])).unwrap();
    assert_eq!(told(&replica, "/models/f/load").await["state"], "ready", "who asks for it need not wait");
    is_twice(&replica, "f").await;
}

#[tokio::test]
async fn what_is_said_of_the_load_reaches_through_ensembles() {
    let graph = "inputs = [{name = 'x'}, {name = 'y'}]
        outputs = [{name = 'z', from = 'e.z'}]
        nodes = [{model = 'e', inputs = {x = 'x', y = 'y'}}]";
    let launch = lazily(200, &TWO, &[("e", "a", "b")], "[models.f]\npath = 'f'\nload = 'pinned'\n");
    let replica = launch.file("f/graph.toml", graph).start();
    let states = [state(&replica, "a").await, state(&replica, "e").await, state(&replica, "f").await];
    assert_eq!(states, ["ready"; 3]);
    let pinned = async |model: &str| asked(&replica, &format!("/models/{model}")).await["pinned"].clone();
    assert_eq!([pinned("a").await, pinned("e").await, pinned("f").await], [true; 3]);
    told(&replica, "/models/f/unpin").await;
    assert_eq!([pinned("a").await, pinned("e").await, pinned("f").await], [false; 3]);
}

#[tokio::test]
async fn a_model_goes_elsewhere_if_that_makes_room() {
    // Each device has room for one, and `b` may only be on the first.
    let config = format!(
        "[placement]\ndevices = ['adder']\n[backends.adder]\nlibrary = '{}'\nprocess = 'in'\nsettings = ['devices=2']\nmemory = '50B'\n\
         [residency]\nload = 'use'\n[models.a]\npath = 'a.txt'\n[models.b]\npath = 'a.txt'\ndevices = ['adder:0']\n[models.e]\npath = 'e'\n",
        adder().display()
    );
    let launch = outrigger().file("outrigger.toml", config).args(["--config", "outrigger.toml"]);
    let replica = launch.file("a.txt", "add 3\n").file("e/graph.toml", twice("a", "b")).start();
    told(&replica, "/models/a/load").await;
    assert_eq!(asked(&replica, "/models/a").await["devices"], json!(["adder:0"]));
    is_twice(&replica, "e").await;
    assert_eq!(asked(&replica, "/models/a").await["devices"], json!(["adder:1"]));
}

#[test]
fn models_that_are_never_there_together_end_the_start() {
    let text = refused(lazily(50, &TWO, &[("e", "a", "b")], ""), 3);
    contains(
        &text,
        &[
            "ensemble `e`: its models have no place beside each other: model `b` has no place: adder:0: has no room",
            "over its 50",
        ],
    );
    // Of one model twice there is one.
    lazily(50, &TWO, &[("e", "a", "a")], "").start();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ensembles_that_take_each_other_s_room_are_all_answered() {
    let ensembles = [("ab", "a", "b"), ("bc", "b", "c"), ("ca", "c", "a")];
    let replica = lazily(90, &THREE, &ensembles, "loads = 2").start();
    let mut calls = JoinSet::new();
    for number in 0..60 {
        let (name, ..) = ensembles[number % 3];
        let request = infer(&replica, name, call());
        calls.spawn(async move { outcome(request.send().await.unwrap()).await });
    }
    for (status, _, body) in calls.join_all().await {
        assert_eq!(
            (status, &body["outputs"][0]["data"]),
            (200, &json!([22.0, 44.0, 66.0])),
            "{body}\n{}",
            replica.log_text()
        );
    }
    let text = metrics(&replica).await;
    assert!(!text.contains("outrigger_model_evictions_total 0"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_there_together_now_is_refused_at_once() {
    let replica = lazily(90, &THREE, &[("e", "a", "b")], "room_wait = '60s'").start();
    told(&replica, "/models/c/load").await;
    told(&replica, "/models/c/pin").await;
    let (status, code, said) = outputs(&replica, "e", call()).await;
    assert_eq!((status, code.as_str()), (503, "model_unavailable"), "{said}");
    contains(
        said.as_str().unwrap(),
        &["ensemble `e`: its models have no place beside each other: model `b` has no place"],
    );
    let shown = asked(&replica, "/models/e").await;
    contains(shown["refused"].as_str().unwrap(), &["no place beside each other"]);
    // Nobody has suffered for it.
    assert_eq!(outputs(&replica, "a", call()).await.0, 200);
    told(&replica, "/models/c/unpin").await;
    is_twice(&replica, "e").await;
    assert!(asked(&replica, "/models/e").await.get("refused").is_none());
}

#[tokio::test]
async fn a_deadline_ends_what_runs() {
    let models = [("a", "add 3\n"), ("b", "slow 60000")];
    let replica = lazily(100, &models, &[("e", "a", "b")], "").start();
    // The deadline is for the run, however long loading takes.
    told(&replica, "/models/e/load").await;
    let request = infer(&replica, "e", call()).header("x-request-deadline-ms", "500");
    let response = request.send().await.unwrap();
    let (status, code, body) = outcome(response).await;
    assert_eq!((status, code.as_str()), (504, "deadline_exceeded"), "{body}");
    // Its run is cancelled, and then nothing holds the model any more.
    assert_eq!(told(&replica, "/models/b/unload").await["state"], "on_disk");
    until_busy(&replica, 0, 0).await;
    let leaves = tokio::spawn(infer(&replica, "e", call()).send());
    until_busy(&replica, 1, 0).await;
    leaves.abort();
    until_busy(&replica, 0, 0).await;
    assert_eq!(told(&replica, "/models/b/unload").await["state"], "on_disk");
}

#[tokio::test]
async fn a_model_that_does_not_load_is_named() {
    let models = [("a", "add 3\n"), ("b", "nonsense")];
    let replica = lazily(100, &models, &[("e", "a", "b")], "retry = '1h'\nmax_retry = '1h'").start();
    let (status, code, said) = outputs(&replica, "e", call()).await;
    assert_eq!((status, code.as_str()), (503, "model_unavailable"));
    assert_eq!(said, "ensemble `e`: model `b` does not load; the log says why");
    assert_eq!(get(&replica, "/v2/models/e/ready").await.0, 503);
    assert_eq!(state(&replica, "e").await, "failed");
    std::fs::write(replica.directory().join("b.txt"), "add 3\n").unwrap();
    assert_eq!(told(&replica, "/models/e/load").await["state"], "ready", "who asks for it need not wait");
    is_twice(&replica, "e").await;
    // What does not go together is known once its models are.
    let models = [("a", "add 3\n"), ("b", "identity FP32")];
    let replica = lazily(100, &models, &[("e", "a", "b")], "").start();
    let (status, _, said) = outputs(&replica, "e", call()).await;
    assert_eq!(status, 503);
    contains(said.as_str().unwrap(), &["ensemble `e` cannot be had: node `b`: model `b` has no input `y`"]);
    assert_eq!(get(&replica, "/v2/models/e/ready").await.0, 503);
}

/// A device whose memory nobody can read but itself.
#[tokio::test]
async fn what_goes_from_node_to_node_stays_on_the_device() {
    for (process, batch, place) in [("in", 1, "device"), ("out", 1, "device"), ("in", 4, "host")] {
        let config = format!(
            "[placement]\ndevices = ['adder']\n[backends.adder]\nlibrary = '{}'\nprocess = '{process}'\n\
             [models.a]\npath = 'a.txt'\nmax_batch = {batch}\n[models.b]\npath = 'a.txt'\n[models.e]\npath = 'e'\n",
            adder().display()
        );
        let launch = outrigger().file("outrigger.toml", config).file("a.txt", "add 3\n");
        let launch = launch.file("e/graph.toml", twice("a", "b")).args(["--config", "outrigger.toml"]);
        let replica = launch.start();
        for _ in 0..3 {
            is_twice(&replica, "e").await;
        }
        let counted = format!("outrigger_ensemble_tensors_total{{ensemble=\"e\",place=\"{place}\"}} 3");
        contains(&metrics(&replica).await, &[&counted]);
    }
}
