//! Versions of a model: one takes the place of another while calls go on, and gives it back if it does worse.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess, onnx};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::devices::until;
use crate::models::Stored;
use crate::placement::{adder, call, contains, metrics};
use crate::residency::{asked, told};
use crate::support::{client, infer, outcome, outrigger, score};

/// `sum` in two versions, of which the first is served.
fn two() -> Stored {
    let stored = Stored::folder();
    version(&stored, "onnx");
    version(&stored, "onnx");
    stored
}

/// Pushes a version of `sum`.
fn version(stored: &Stored, what: &str) {
    let (model, toml) = match what {
        "onnx" => (onnx::add(3), ""),
        // Other inputs.
        "picky" => (onnx::picky(3), ""),
        "nonsense" => (b"nonsense".to_vec(), ""),
        "infinite" => (onnx::never_finite(3), ""),
        _ => (onnx::add(3), "[[samples]]\nrequest = 'ask.json'\nexpect = 'golden.json'\n"),
    };
    stored.write("sum/model.onnx", model);
    stored.write("sum/model.toml", toml);
    stored.write("sum/ask.json", call());
    let output = json!({"name": "z", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]});
    stored.write("sum/golden.json", json!({"model_name": "sum", "outputs": [output]}).to_string());
    stored.done(&["push", "sum"]);
}

fn first(stored: &Stored) -> Launch {
    stored.replica().args(["--store-models", "sum:1"])
}

/// Asks the admin listener for something with a label.
async fn label(replica: &ReplicaProcess, method: Method, path: &str, body: Value) -> (u16, String, Value) {
    let client = Client::builder().no_proxy().unix_socket(replica.admin_socket()).build().unwrap();
    let request = client.request(method, format!("http://admin/models/{path}")).json(&body);
    outcome(request.send().await.unwrap()).await
}

async fn put(replica: &ReplicaProcess, label_of: &str, version: &str) -> (u16, String, Value) {
    let (model, word) = label_of.split_once('@').unwrap();
    label(replica, Method::PUT, &format!("{model}/labels/{word}"), json!({"version": version})).await
}

async fn moved(replica: &ReplicaProcess, label_of: &str, version: &str) -> Value {
    let (status, _, body) = put(replica, label_of, version).await;
    assert_eq!(status, 200, "{body}\n{}", replica.log_text());
    body
}

/// The answer of a version, or of the one that calls get which name none.
async fn of(replica: &ReplicaProcess, which: &str) -> (u16, String, Value) {
    answer_of(&replica.score, which).await
}

async fn answer_of(score: &str, which: &str) -> (u16, String, Value) {
    let url = match which {
        "" => format!("{score}/v2/models/sum/infer"),
        which => format!("{score}/v2/models/sum/versions/{which}/infer"),
    };
    outcome(client().post(url).bearer_auth(KEY).body(call()).send().await.unwrap()).await
}

/// Which version answers.
async fn serves(replica: &ReplicaProcess, which: &str) -> String {
    serves_at(&replica.score, which).await
}

async fn serves_at(score: &str, which: &str) -> String {
    let (status, _, body) = answer_of(score, which).await;
    assert_eq!((status, &body["outputs"][0]["data"]), (200, &json!([11.0, 22.0, 33.0])), "{body}");
    body["model_version"].as_str().unwrap().to_owned()
}

/// Calls of the second version fail, and after five of them have the first one again.
async fn is_given_up(replica: &ReplicaProcess, code: &str) {
    for _ in 0..5 {
        assert_eq!(of(replica, "").await.1, code);
    }
    until("the old one is back", async || of(replica, "").await.0 == 200).await;
    assert_eq!(serves(replica, "").await, "1");
}

async fn events(replica: &ReplicaProcess, version: &str) -> Vec<String> {
    let events = asked(replica, "/events").await;
    let events = events["events"].as_array().unwrap().clone();
    let of_it = events.into_iter().filter(|event| event["version"] == version);
    of_it.map(|event| event["event"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_takes_the_place_of_another_while_calls_go_on() {
    let stored = two();
    let replica = first(&stored).start();
    let (over, mut callers) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
    let all_have_called = Arc::new(Barrier::new(5));
    for _ in 0..4 {
        let (score, over, called) = (replica.score.clone(), Arc::clone(&over), Arc::clone(&all_have_called));
        callers.spawn(async move {
            let mut seen = vec![serves_at(&score, "").await];
            called.wait().await;
            while !over.load(Ordering::Relaxed) || seen.last().is_none_or(|last| last == "1") {
                seen.push(serves_at(&score, "").await);
            }
            seen
        });
    }
    assert_eq!(serves(&replica, "1").await, "1");
    all_have_called.wait().await;
    let shown = moved(&replica, "sum@stable", "2").await;
    assert_eq!((&shown["version"], &shown["labels"]), (&json!("2"), &json!({"stable": "2"})));
    assert_eq!((&shown["rollout"]["stage"], &shown["rollout"]["from"]), (&json!("watching"), &json!("1")));
    assert_eq!(shown["others"][0]["version"], "1");
    assert_eq!(serves(&replica, "").await, "2", "from now on");
    over.store(true, Ordering::Relaxed);
    for seen in callers.join_all().await {
        assert!(seen.is_sorted() && seen.first().is_some_and(|first| first == "1"), "{seen:?}");
    }
    assert_eq!((serves(&replica, "1").await, serves(&replica, "stable").await), ("1".into(), "2".into()));
    let metadata = client().get(format!("{}/v2/models/sum", replica.score)).bearer_auth(KEY);
    let metadata = outcome(metadata.send().await.unwrap()).await.2;
    assert_eq!(metadata["versions"], json!(["1", "2"]));
    let steps = ["fetching", "fetched", "queued", "loading", "warming", "ready", "switched"];
    assert_eq!(events(&replica, "2").await, steps);

    // Back while the new one is watched: the old one is still there.
    moved(&replica, "sum@stable", "1").await;
    assert_eq!(serves(&replica, "").await, "1");
    assert_eq!(events(&replica, "1").await, ["switched"], "it was never away");
    assert!(asked(&replica, "/models/sum").await.get("rollout").is_none(), "it has proved itself before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_is_refused_changes_nothing_of_one_that_is_watched() {
    let stored = Stored::folder();
    ["onnx", "picky", "nonsense"].iter().for_each(|what| version(&stored, what));
    let replica = first(&stored).start();
    moved(&replica, "sum@stable", "2").await;
    assert_eq!(put(&replica, "sum@stable", "3").await.0, 409);
    assert_eq!(put(&replica, "sum@stable", "7").await.0, 404);
    let shown = asked(&replica, "/models/sum").await;
    let rollout = &shown["rollout"];
    assert_eq!(
        (&rollout["stage"], &rollout["to"], &rollout["from"]),
        (&json!("watching"), &json!("2"), &json!("1"))
    );
    is_given_up(&replica, "invalid_tensor").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_end_without_a_result_count_and_mistakes_of_callers_do_not() {
    let stored = Stored::folder();
    ["onnx", "infinite"].iter().for_each(|what| version(&stored, what));
    let replica = first(&stored).start();
    moved(&replica, "sum@stable", "2").await;
    for _ in 0..20 {
        let url = format!("{}/v2/models/sum/infer", replica.score);
        let wrong = call().replace("\"y\"", "\"why\"");
        let wrong = outcome(client().post(url).bearer_auth(KEY).body(wrong).send().await.unwrap()).await;
        assert_eq!(wrong.1, "invalid_tensor");
    }
    assert_eq!(asked(&replica, "/models/sum").await["rollout"]["stage"], "watching");
    is_given_up(&replica, "result_not_finite").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nothing_calls_any_more_goes() {
    let stored = two();
    let replica = first(&stored).args(["--rollout-watch", "0s"]).start();
    let at = |version: &str| replica.directory().join("state/azureml-models/sum").join(version);
    assert!(at("1").exists());
    moved(&replica, "sum@stable", "2").await;
    until("the old one is gone", async || of(&replica, "1").await.0 == 404).await;
    let (status, code, body) = of(&replica, "1").await;
    assert_eq!((status, code.as_str()), (404, "model_not_found"));
    contains(&body.to_string(), &["this version of model `sum` is not served here; there is 2"]);
    until("its files too", async || !at("1").exists()).await;
    assert!(at("2/sum/model.onnx").exists());
    assert_eq!(events(&replica, "1").await, ["draining", "unloaded", "retired"]);
    // Its place among the models is another's.
    version(&stored, "onnx");
    moved(&replica, "sum@stable", "latest").await;
    assert_eq!(serves(&replica, "").await, "3");
    moved(&replica, "sum@stable", "1").await;
    assert_eq!(serves(&replica, "").await, "1", "it comes again");
    let shown = asked(&replica, "/models").await;
    assert_eq!((&shown["total"], &shown["models"][0]["version"]), (&json!(1), &json!("1")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_does_not_do_what_it_says_never_serves() {
    let stored = Stored::folder();
    ["onnx", "golden", "nonsense"].iter().for_each(|what| version(&stored, what));
    let replica = first(&stored).start();
    let refused = async |which: &str, status: u16, code: &str, why: &[&str]| {
        let (answered, said, body) = put(&replica, "sum@stable", which).await;
        assert_eq!((answered, said.as_str()), (status, code), "{body}");
        contains(&body.to_string(), why);
        assert_eq!(serves(&replica, "").await, "1");
    };
    refused("2", 409, "conflict", &["version `2` of model `sum` does not serve", "sample", "ask.json"]).await;
    refused("3", 409, "conflict", &["version `3` of model `sum` does not serve: it does not load"]).await;
    refused("4", 404, "model_not_found", &["4/outrigger-manifest.json` is not there"]).await;
    refused("blue", 404, "model_not_found", &["labels/blue` is not there"]).await;
    refused("../1", 404, "model_not_found", &["`../1` is no version, and no label of one"]).await;
    until("nothing is left of them", async || asked(&replica, "/models/sum").await.get("others").is_none())
        .await;
    assert!(events(&replica, "2").await.contains(&"refused".to_owned()));
    let (status, code, body) =
        label(&replica, Method::PUT, "sum/labels/Stable", json!({"version": "1"})).await;
    assert_eq!((status, code.as_str()), (400, "bad_request"), "{body}");
    for body in [json!({}), json!({"version": 1}), json!({"version": "1", "by": "me"})] {
        let (status, code, text) = label(&replica, Method::PUT, "sum/labels/stable", body).await;
        assert_eq!((status, code.as_str()), (400, "bad_request"), "{text}");
        contains(&text.to_string(), &["the body is"]);
    }
    assert_eq!(put(&replica, "nil@stable", "1").await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_have_the_old_version_again_if_more_of_them_fail() {
    let stored = Stored::folder();
    ["onnx", "picky"].iter().for_each(|what| version(&stored, what));
    let replica = first(&stored).args(["--rollout-failures", "5"]).start();
    for _ in 0..30 {
        serves(&replica, "").await;
    }
    moved(&replica, "sum@stable", "2").await;
    is_given_up(&replica, "invalid_tensor").await;
    let all = asked(&replica, "/events").await;
    let returned = all["events"].as_array().unwrap().iter().find(|event| event["event"] == "returned");
    let text = metrics(&replica).await;
    let counted =
        |outcome: &str| format!("outrigger_model_rollouts_total{{model=\"sum\",outcome=\"{outcome}\"}} 1");
    contains(&text, &[&counted("switched"), &counted("returned")]);
    let why = returned.unwrap()["reason"].as_str().unwrap();
    contains(
        why,
        &["`stable` is version 1 again:", "calls failed; of the version before it, 0 of the last 30"],
    );
    until("the new one is gone", async || of(&replica, "2").await.0 == 404).await;
    assert!(asked(&replica, "/models/sum").await.get("rollout").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_scripts_count_as_well() {
    let stored = Stored::folder();
    ["onnx", "picky"].iter().for_each(|what| version(&stored, what));
    let script = "import numpy\nfrom outrigger import model\n\ndef init():\n    global sums\n    sums = model('sum')\n\n\
                  def run(data):\n    x = numpy.ones((1, 3), 'float32')\n    return sums.predict(x=x, y=x).tolist()\n";
    let config = "[models.sum]\nsource = 'sum:1'\n";
    let launch = stored.replica().file("outrigger.toml", config).args(["--config", "outrigger.toml"]);
    let replica = launch.script(script).start();
    let scored = async || outcome(score(&replica, "{}").send().await.unwrap()).await;
    assert_eq!((scored().await.0, scored().await.2), (200, json!([[2.0, 2.0, 2.0]])));
    moved(&replica, "sum@stable", "2").await;
    for _ in 0..5 {
        assert_eq!(scored().await.0, 500);
    }
    until("the old one is back", async || scored().await.0 == 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_stay_for_as_long_as_any_model_is_that_version() {
    let stored = two();
    let config = "[models.a]\nsource = 'sum:1'\n[models.b]\nsource = 'sum:1'\n[rollout]\nwatch = '0s'\n";
    let launch = stored.replica().file("outrigger.toml", config).args(["--config", "outrigger.toml"]);
    let replica = launch.start();
    let at = |version: &str| replica.directory().join("state/azureml-models/sum").join(version);
    let answers = async |model: &str| {
        let (status, _, body) = outcome(infer(&replica, model, call()).send().await.unwrap()).await;
        assert_eq!(status, 200, "{body}");
        body["model_version"].as_str().unwrap().to_owned()
    };
    moved(&replica, "a@stable", "2").await;
    until("it is gone", async || events(&replica, "1").await.contains(&"retired".to_owned())).await;
    told(&replica, "/models/b/unload").await;
    assert_eq!([answers("a").await, answers("b").await], ["2", "1"], "the other one comes back");
    moved(&replica, "b@stable", "2").await;
    until("nobody is that version", async || !at("1").exists()).await;
    moved(&replica, "a@stable", "1").await;
    assert_eq!([answers("a").await, answers("b").await], ["1", "2"]);
    told(&replica, "/models/b/unload").await;
    assert_eq!(answers("b").await, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_name_versions_beside_the_stable_one() {
    let stored = two();
    let replica = first(&stored).start();
    let shown = moved(&replica, "sum@canary", "2").await;
    assert_eq!(shown["labels"], json!({"canary": "2", "stable": "1"}));
    let served = async |which: &str| serves(&replica, which).await;
    assert_eq!([served("").await, served("canary").await, served("2").await], ["1", "2", "2"]);
    let ready = |which: &str| {
        let url = format!("{}/v2/models/sum/versions/{which}/ready", replica.score);
        client().get(url).bearer_auth(KEY).send()
    };
    assert_eq!(ready("canary").await.unwrap().status(), 200);
    assert_eq!(ready("blue").await.unwrap().status(), 404);

    moved(&replica, "sum@stable", "canary").await;
    assert_eq!(served("").await, "2");
    let (status, code, body) = label(&replica, Method::DELETE, "sum/labels/stable", Value::Null).await;
    assert_eq!((status, code.as_str()), (409, "conflict"), "{body}");
    moved(&replica, "sum@stable", "1").await;
    let (status, _, body) = label(&replica, Method::DELETE, "sum/labels/canary", Value::Null).await;
    assert_eq!((status, &body["labels"]), (200, &json!({"stable": "1"})));
    assert_eq!(label(&replica, Method::DELETE, "sum/labels/canary", Value::Null).await.0, 404);
    until("it is gone", async || of(&replica, "2").await.0 == 404).await;
    assert_eq!(served("").await, "1");
}

/// `a` in folders of versions, of a backend that is none of ours.
fn folders(memory: u64, settings: &str) -> Launch {
    let config = format!(
        "model_dir = 'models'\n[placement]\ndevices = ['adder']\n[backends.adder]\nlibrary = '{}'\nprocess = 'in'\nmemory = '{memory}B'\nsettings = [{settings}]\n",
        adder().display()
    );
    [("1", "one.txt"), ("2", "two.txt"), ("3", "three.txt")].into_iter().fold(
        outrigger().file("outrigger.toml", config).args(["--config", "outrigger.toml"]),
        |launch, (version, file)| {
            let launch = launch.file(&format!("models/sum/{version}/{file}"), "add 3\n");
            launch.file(&format!("models/sum/{version}/model.toml"), format!("file = '{file}'\n"))
        },
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_lie_beside_each_other_in_a_folder() {
    let replica = folders(100, "").start();
    assert_eq!(serves(&replica, "").await, "3", "the highest one");
    moved(&replica, "sum@stable", "1").await;
    assert_eq!(serves(&replica, "").await, "1");
    // Once more, so that it is not watched any more. There is memory for two.
    moved(&replica, "sum@stable", "1").await;
    until("the old one is gone", async || of(&replica, "3").await.0 == 404).await;
    moved(&replica, "sum@canary", "2").await;
    let (status, code, body) = put(&replica, "sum@stable", "7").await;
    assert_eq!((status, code.as_str()), (404, "model_not_found"));
    contains(&body.to_string(), &["there is no `", "models/sum/7`"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_wait_hears_that_a_version_is_on_its_way() {
    let replica = folders(200, "'load=held:one.txt'").args(["--residency-loads", "2"]).start();
    let client = Client::builder().no_proxy().unix_socket(replica.admin_socket()).build().unwrap();
    let request = client.put("http://admin/models/sum/labels/stable").json(&json!({"version": "1"}));
    let hasty = request.header("x-request-deadline-ms", "50");
    let (status, _, body) = outcome(hasty.send().await.unwrap()).await;
    assert_eq!((status, &body["rollout"]["stage"], &body["version"]), (202, &json!("loading"), &json!("3")));
    assert_eq!(serves(&replica, "").await, "3");
    // Who asks for another does not wait for that.
    moved(&replica, "sum@stable", "2").await;
    assert_eq!(serves(&replica, "").await, "2");
    let first = async || asked(&replica, "/models/sum").await["labels"]["stable"] == "1";
    std::fs::write(replica.directory().join("models/sum/1/one.go"), "").unwrap();
    moved(&replica, "sum@stable", "3").await;
    assert!(!first().await, "it was given up");
    moved(&replica, "sum@stable", "1").await;
    assert_eq!(serves(&replica, "").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_does_not_wait_for_a_version() {
    let replica = folders(100, "'load=never:one.txt'").args(["--shutdown-drain", "100ms"]).start();
    let client = Client::builder().no_proxy().unix_socket(replica.admin_socket()).build().unwrap();
    let request = client.put("http://admin/models/sum/labels/stable").json(&json!({"version": "1"}));
    let waits = tokio::spawn(request.send());
    until("the load", async || asked(&replica, "/models/sum").await["rollout"]["stage"] == "loading").await;
    replica.signal("TERM");
    let answer = waits.await.unwrap();
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 503));
    assert!(replica.wait().status.code().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_that_moves_in_the_registry_is_followed() {
    let stored = two();
    stored.done(&["label", "sum:1", "stable"]);
    let launch = stored.replica().args(["--store-models", "sum@stable", "--store-refresh", "20ms"]);
    let replica = launch.start();
    assert_eq!(serves(&replica, "").await, "1");
    stored.done(&["label", "sum:2", "stable"]);
    until("the other version", async || serves(&replica, "").await == "2").await;
    // One that does not serve is tried again after longer and longer, and the label tells of the next.
    version(&stored, "nonsense");
    stored.done(&["label", "sum:3", "stable"]);
    until("it is refused", async || events(&replica, "3").await.contains(&"refused".to_owned())).await;
    assert_eq!(serves(&replica, "").await, "2");
    stored.done(&["label", "sum:1", "stable"]);
    until("the first one", async || serves(&replica, "").await == "1").await;
}
