//! Answers of models that are kept for who asks the same again: by whom, for whom, and how much.

use std::collections::BTreeMap;

use outrigger_backend::DataType;
use outrigger_testkit::onnx::{self, Dim, Graph};
use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::devices::until;
use crate::models::Stored;
use crate::placement::{adder, call};
use crate::residency::{state, told};
use crate::support::{self, client, header, infer, outcome, outrigger, until_busy};

fn summing(config: &str) -> Launch {
    let config = format!("[models.sum]\npath = 'sum.onnx'\n{config}");
    outrigger()
        .file("sum.onnx", onnx::add(2))
        .file("outrigger.toml", config)
        .args(["--config", "outrigger.toml"])
}

async fn metric(replica: &ReplicaProcess, name: &str) -> f64 {
    support::metric(replica, name).await.unwrap_or_else(|| panic!("there is no {name}"))
}

fn question(x: f32) -> Value {
    json!({"inputs": [
        {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [x, x]},
        {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]},
    ]})
}

fn ask(replica: &ReplicaProcess, model: &str, x: f32) -> RequestBuilder {
    infer(replica, model, question(x).to_string())
}

/// How the answer was come by, and its first output.
async fn answer(request: RequestBuilder) -> (String, Value) {
    let response = request.send().await.unwrap();
    let how = header(&response, "outrigger-cache");
    let (status, _, body) = outcome(response).await;
    assert_eq!(status, 200, "{body}");
    (how, body["outputs"][0]["data"].clone())
}

/// Calls with a result of their own, runs, hits and misses.
async fn counts(replica: &ReplicaProcess, model: &str) -> [u64; 4] {
    let url = format!("{}/v2/models/{model}/stats", replica.score);
    let (_, _, body) = outcome(client().get(url).bearer_auth(KEY).send().await.unwrap()).await;
    let of = &body["model_stats"][0];
    let lookups = ["cache_hit", "cache_miss"].map(|name| &of["inference_stats"][name]["count"]);
    [&of["inference_count"], &of["execution_count"], lookups[0], lookups[1]]
        .map(|count| count.as_u64().unwrap_or_else(|| panic!("{body}")))
}

#[tokio::test]
async fn the_same_question_is_run_once_whatever_it_comes_by() {
    let replica = summing("cache = true").start();
    let expected = json!([4.0, 5.0]);
    assert_eq!(answer(ask(&replica, "sum", 3.0)).await, ("miss".into(), expected.clone()));
    assert_eq!(answer(ask(&replica, "sum", 3.0)).await, ("hit".into(), expected));
    assert_eq!(answer(ask(&replica, "sum", 4.0)).await, ("miss".into(), json!([5.0, 6.0])));

    let instances = json!({"instances": [{"x": [3, 3], "y": [1, 2]}]}).to_string();
    let vertex = client().post(format!("{}/vertex/predict", replica.score)).bearer_auth(KEY).body(instances);
    let response = vertex.header("content-type", "application/json").send().await.unwrap();
    assert_eq!(header(&response, "outrigger-cache"), "hit");
    assert_eq!(header(&response, "outrigger-device"), "cpu:0", "where it was run");
    assert_eq!(outcome(response).await.2["predictions"][0], json!([4.0, 5.0]));

    let mut binary = question(3.0);
    binary["id"] = json!("mine");
    binary["parameters"] = json!({"binary_data_output": true});
    let response = infer(&replica, "sum", binary.to_string()).send().await.unwrap();
    assert_eq!(header(&response, "outrigger-cache"), "hit");
    let body = response.bytes().await.unwrap();
    let floats: Vec<u8> = [4.0_f32, 5.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert!(body.ends_with(&floats), "in the form that was asked for");
    assert!(String::from_utf8_lossy(&body).contains("\"mine\""), "with the call's own id");

    assert_eq!(counts(&replica, "sum").await, [2, 2, 3, 2]);
    for (result, count) in [("hit", 3.0), ("joined", 0.0), ("miss", 2.0)] {
        let name = format!("outrigger_cache_lookups_total{{result=\"{result}\"}}");
        assert_eq!(metric(&replica, &name).await, count, "{result}");
    }
    assert_eq!(metric(&replica, "outrigger_cache_answers").await, 2.0);
}

#[tokio::test]
async fn nothing_is_kept_unless_somebody_says_so() {
    let replica = summing("").start();
    for _ in 0..2 {
        assert_eq!(answer(ask(&replica, "sum", 3.0)).await.0, "");
    }
    assert_eq!(counts(&replica, "sum").await, [2, 2, 0, 0]);
    assert_eq!(metric(&replica, "outrigger_cache_answers").await, 0.0);

    // All models, but for one that says otherwise of itself, in either place.
    let replica = summing("[models.other]\npath = 'other'\n[models.third]\npath = 'sum.onnx'\ncache = false\n[cache]\nmodels = true")
        .file("other/sum.onnx", onnx::add(2))
        .file("other/model.toml", "cache = false")
        .start();
    let mut how = BTreeMap::new();
    for model in ["sum", "other", "third"] {
        answer(ask(&replica, model, 3.0)).await;
        how.insert(model, answer(ask(&replica, model, 3.0)).await.0);
    }
    assert_eq!(
        how,
        BTreeMap::from([("sum", "hit".into()), ("other", String::new()), ("third", String::new())])
    );
}

#[tokio::test]
async fn a_request_may_do_without_it() {
    let replica = summing("cache = true").start();
    let with = |control: &'static str| ask(&replica, "sum", 3.0).header("cache-control", control);
    assert_eq!(answer(with("no-store")).await.0, "");
    assert_eq!(answer(with("no-cache")).await.0, "miss");
    assert_eq!(answer(with("no-cache")).await.0, "miss");
    assert_eq!(answer(ask(&replica, "sum", 3.0)).await.0, "hit");
    assert_eq!(answer(with("no-store")).await.0, "");
    assert_eq!(counts(&replica, "sum").await[1], 4, "runs");
}

#[tokio::test]
async fn callers_have_their_own_unless_they_share() {
    const OTHER: &str = "0123456789abcdef0123456789abcdef";
    for (shares, expected) in [(false, "miss"), (true, "hit")] {
        let config =
            format!("cache = true\n[callers.other]\nkey = '{OTHER}'\n[cache]\nper_caller = {}", !shares);
        let replica = summing(&config).start();
        answer(ask(&replica, "sum", 3.0)).await;
        let other = client().post(format!("{}/v2/models/sum/infer", replica.score)).bearer_auth(OTHER);
        let other = || other.try_clone().unwrap().body(question(3.0).to_string());
        assert_eq!(answer(other()).await.0, expected, "shared: {shares}");
        assert_eq!(answer(other()).await.0, "hit");
    }
}

/// A model that takes its time, on so many threads.
fn slow(threads: usize, millis: u64) -> Launch {
    let config = format!(
        "[backends.adder]\nlibrary = '{}'\nthreads = {threads}\n[models.slow]\npath = 'slow.txt'\ndevices = ['adder']\ncache = true",
        adder().display()
    );
    let launch = outrigger().file("slow.txt", format!("slow {millis}")).file("outrigger.toml", config);
    launch.args(["--config", "outrigger.toml"])
}

#[tokio::test]
async fn who_asks_what_is_being_run_waits_for_that() {
    const OTHERS: u64 = 20;
    let replica = slow(4, 3000).start();
    let mut calls = JoinSet::new();
    calls.spawn(answer(infer(&replica, "slow", call())));
    until_busy(&replica, 1, 0).await;
    for _ in 0..OTHERS {
        calls.spawn(answer(infer(&replica, "slow", call())));
    }
    let answers = calls.join_all().await;
    assert_eq!(answers.iter().filter(|(how, _)| how == "miss").count(), 1, "{answers:?}");
    assert!(answers.iter().all(|(_, data)| *data == answers[0].1), "{answers:?}");
    assert_eq!(counts(&replica, "slow").await, [1, 1, OTHERS, 1]);
}

/// Those that have waited in the queue for a slot, too.
#[tokio::test]
async fn who_finds_at_its_slot_that_another_is_at_it_gives_it_back() {
    const SAME: usize = 6;
    let replica = slow(2, 1000).start();
    let other = |x: f32| {
        let row = |name: &str| json!({"name": name, "datatype": "FP32", "shape": [1, 3], "data": vec![x; 3]});
        json!({"inputs": [row("x"), row("y")]}).to_string()
    };
    let mut calls = JoinSet::new();
    for x in [8.0, 9.0] {
        calls.spawn(answer(infer(&replica, "slow", other(x))));
    }
    until_busy(&replica, 2, 0).await;
    for _ in 0..SAME {
        calls.spawn(answer(infer(&replica, "slow", call())));
    }
    let answers = calls.join_all().await;
    assert_eq!(answers.iter().filter(|(how, _)| how == "miss").count(), 3, "{answers:?}");
    assert_eq!(counts(&replica, "slow").await, [3, 3, SAME as u64 - 1, 3]);
    let busy = until_busy(&replica, 0, 0).await;
    assert_eq!(busy["answered"], busy["arrived"], "each is counted once: {busy}");
}

#[tokio::test]
async fn who_waits_for_a_run_when_the_replica_ends_has_its_answer() {
    let replica = slow(1, 2000).start();
    let (first, second) = (infer(&replica, "slow", call()), infer(&replica, "slow", call()));
    let first = tokio::spawn(answer(first));
    until_busy(&replica, 1, 0).await;
    let joined = "outrigger_cache_waiting";
    let second = tokio::spawn(answer(second));
    until("the second waits", async || metric(&replica, joined).await == 1.0).await;
    replica.signal("TERM");
    assert_eq!(first.await.unwrap().0, "miss");
    assert_eq!(second.await.unwrap().0, "joined");
    let ended = tokio::task::spawn_blocking(|| replica.wait()).await.unwrap();
    assert!(ended.status.success(), "{}", ended.text());
}

#[tokio::test]
async fn bytes_are_bounded_and_large_answers_are_not_kept() {
    let replica = summing("cache = true\n[cache]\nbytes = '8KiB'\nanswer = '16B'").start();
    for x in 0..50 {
        answer(ask(&replica, "sum", x as f32)).await;
        assert!(metric(&replica, "outrigger_cache_bytes").await <= 8192.0);
    }
    assert!(metric(&replica, "outrigger_cache_evictions_total").await >= 30.0);
    assert!(metric(&replica, "outrigger_cache_answers").await >= 4.0);

    let rows = json!({"inputs": [
        {"name": "x", "datatype": "FP32", "shape": [3, 2], "data": [1, 2, 3, 4, 5, 6]},
        {"name": "y", "datatype": "FP32", "shape": [3, 2], "data": [1, 2, 3, 4, 5, 6]},
    ]});
    for _ in 0..2 {
        assert_eq!(answer(infer(&replica, "sum", rows.to_string())).await.0, "miss", "24 bytes");
    }
}

/// `z = x - y`, of what [`onnx::add`] takes.
fn difference() -> Vec<u8> {
    let mut graph = Graph::default();
    let shape = [Dim::Named("batch"), Dim::Fixed(2)];
    ["x", "y"].iter().for_each(|input| graph.input(input, DataType::Fp32, &shape));
    graph.output("z", DataType::Fp32, &shape);
    graph.node("Sub", &["x", "y"], &["z"]);
    graph.model()
}

/// Leaves and comes back, as models do that make way for others.
async fn reload(replica: &ReplicaProcess) {
    told(replica, "/models/sum/unload").await;
    until("it has left", async || state(replica, "sum").await != "ready").await;
}

#[tokio::test]
async fn a_file_that_has_changed_is_another_model() {
    let replica = summing("cache = true\nload = 'use'").start();
    assert_eq!(answer(ask(&replica, "sum", 3.0)).await, ("miss".into(), json!([4.0, 5.0])));
    std::fs::write(replica.directory().join("sum.onnx"), difference()).unwrap();
    reload(&replica).await;
    assert_eq!(answer(ask(&replica, "sum", 3.0)).await, ("miss".into(), json!([2.0, 1.0])));
}

#[tokio::test]
async fn what_storage_vouches_for_is_the_same_when_it_comes_back_and_each_version_another() {
    let stored = Stored::folder();
    stored.write("sum/model.toml", "cache = true");
    stored.write("sum/model.onnx", onnx::add(2));
    stored.done(&["push", "sum"]);
    stored.write("sum/model.onnx", difference());
    stored.done(&["push", "sum"]);
    let replica = stored.replica().args(["--store-models", "sum:1", "--residency-load", "use"]).start();
    assert_eq!(answer(ask(&replica, "sum", 3.0)).await.0, "miss");
    reload(&replica).await;
    assert_eq!(answer(ask(&replica, "sum", 3.0)).await, ("hit".into(), json!([4.0, 5.0])));

    let label = async |version: &str| {
        let client =
            reqwest::Client::builder().no_proxy().unix_socket(replica.admin_socket()).build().unwrap();
        let request = client.put("http://admin/models/sum/labels/stable").json(&json!({"version": version}));
        let (status, _, body) = outcome(request.send().await.unwrap()).await;
        assert_eq!(status, 200, "{body}");
    };
    label("2").await;
    assert_eq!(answer(ask(&replica, "sum", 3.0)).await, ("miss".into(), json!([2.0, 1.0])));
    label("1").await;
    assert_eq!(answer(ask(&replica, "sum", 3.0)).await, ("hit".into(), json!([4.0, 5.0])));
}

#[tokio::test]
async fn an_answer_that_json_cannot_say_is_one_in_bytes() {
    let replica = summing("[models.never]\npath = 'never.onnx'\ncache = true")
        .file("never.onnx", onnx::never_finite(2))
        .start();
    for _ in 0..2 {
        let response = ask(&replica, "never", 3.0).send().await.unwrap();
        let (status, code, body) = outcome(response).await;
        assert_eq!((status, code.as_str()), (500, "result_not_finite"), "{body}");
    }
    let mut binary = question(3.0);
    binary["parameters"] = json!({"binary_data_output": true});
    let response = infer(&replica, "never", binary.to_string()).send().await.unwrap();
    assert_eq!((response.status().as_u16(), header(&response, "outrigger-cache").as_str()), (200, "hit"));
    assert_eq!(counts(&replica, "never").await[1], 1, "runs");
}

#[tokio::test]
async fn what_needs_no_slot_is_refused_like_what_does() {
    const WIDTH: usize = 2000;
    let config = "[models.outer]\npath = 'outer.onnx'\ncache = true\n[limits]\nanswers = '1MiB'\n[cache]\nanswer = '32MiB'";
    let launch = outrigger().file("outer.onnx", onnx::outer()).file("outrigger.toml", config);
    let replica = launch.args(["--config", "outrigger.toml"]).start();
    let input = |name: &str, shape: [usize; 2]| json!({"name": name, "datatype": "FP32", "shape": shape, "data": vec![1; WIDTH]});
    let body = json!({"inputs": [input("x", [WIDTH, 1]), input("z", [1, WIDTH])]}).to_string();
    let ask = || infer(&replica, "outer", body.clone()).send();
    for how in ["miss", "hit"] {
        let response = ask().await.unwrap();
        assert_eq!((response.status().as_u16(), header(&response, "outrigger-cache").as_str()), (200, how));
        assert!(response.bytes().await.unwrap().len() > 4 * WIDTH * WIDTH / 2);
    }
    // More than sockets hold, and nobody reads it.
    let mut held = vec![ask().await.unwrap()];
    let refused = loop {
        let response = ask().await.unwrap();
        match response.status().as_u16() {
            200 => held.push(response),
            _ => break outcome(response).await,
        }
        assert!(held.len() < 100, "{} answers wait for their clients", held.len());
    };
    assert_eq!((refused.0, refused.1.as_str()), (503, "overloaded"), "{}", refused.2);
    assert!(refused.2.to_string().contains("limits.answers"), "{}", refused.2);
}

#[tokio::test]
async fn an_ensemble_s_answers_are_kept_as_a_model_s() {
    let graph = "
        inputs = [{name = 'x'}, {name = 'y'}]
        outputs = [{name = 'z', from = 'sum.z'}]
        nodes = [{model = 'sum', inputs = {x = 'x', y = 'y'}}]";
    let launch = outrigger().file("models/sum.onnx", onnx::add(2));
    let launch = launch.file("models/all/graph.toml", graph).file("models/all/model.toml", "cache = true");
    let replica = launch.args(["--model-dir", "models"]).start();
    for (model, expected) in [("all", "miss"), ("all", "hit"), ("sum", "")] {
        assert_eq!(answer(ask(&replica, model, 3.0)).await, (expected.into(), json!([4.0, 5.0])), "{model}");
    }
    // With what it is made of, it is another.
    reload(&replica).await;
    assert_eq!(answer(ask(&replica, "all", 3.0)).await.0, "miss");
}

#[tokio::test]
async fn an_ensemble_that_does_not_say_has_its_models_decide() {
    let graph = "
        inputs = [{name = 'x'}, {name = 'y'}]
        outputs = [{name = 'z', from = 'sum.z'}]
        nodes = [{model = 'sum', inputs = {x = 'x', y = 'y'}}]";
    let launch = outrigger().file("models/all/graph.toml", graph).args(["--model-dir", "models"]);
    let launch = launch.args(["--cache-models"]).file("models/sum/sum.onnx", onnx::add(2));
    let replica = launch.file("models/sum/model.toml", "cache = false").start();
    for _ in 0..2 {
        assert_eq!(answer(ask(&replica, "all", 3.0)).await.0, "", "its model says no");
    }
}

/// The models that an ensemble is made of stay the same, and change places.
#[tokio::test]
async fn an_ensemble_s_answers_are_those_of_its_nodes_versions() {
    let stored = Stored::folder();
    stored.write("sum/model.onnx", onnx::add(2));
    stored.done(&["push", "sum"]);
    stored.write("sum/model.onnx", difference());
    stored.done(&["push", "sum"]);
    // Both versions are in it whichever is the stable one.
    let node = |name: &str, version: &str| {
        format!("{{name = '{name}', model = 'sum', {version} inputs = {{x = 'x', y = 'y'}}}}")
    };
    let nodes = [node("one", "version = 1,"), node("two", "version = 2,"), node("stable", "")].join(", ");
    let graph = format!(
        "inputs = [{{name = 'x'}}, {{name = 'y'}}]
        outputs = [{{name = 'z', from = 'stable.z'}}, {{name = 'a', from = 'one.z'}}, {{name = 'b', from = 'two.z'}}]
        nodes = [{nodes}]"
    );
    stored.write("all/graph.toml", graph);
    stored.write("all/model.toml", "cache = true");
    stored.done(&["push", "all"]);
    let config = "[models.sum]\nsource = 'sum:1'\n[models.all]\nsource = 'all:1'\nload = 'use'";
    let replica =
        stored.replica().file("outrigger.toml", config).args(["--config", "outrigger.toml"]).start();
    let label = async |word: &str, version: &str| {
        let client =
            reqwest::Client::builder().no_proxy().unix_socket(replica.admin_socket()).build().unwrap();
        let url = format!("http://admin/models/sum/labels/{word}");
        let response = client.put(url).json(&json!({"version": version})).send().await.unwrap();
        let (status, _, body) = outcome(response).await;
        assert_eq!(status, 200, "{body}");
    };
    label("next", "2").await;
    for (stable, expected) in [("1", json!([4.0, 5.0])), ("2", json!([2.0, 1.0])), ("1", json!([4.0, 5.0]))] {
        label("stable", stable).await;
        assert_eq!(answer(ask(&replica, "all", 3.0)).await.1, expected, "stable is {stable}");
        assert_eq!(answer(ask(&replica, "all", 3.0)).await, ("hit".into(), expected));
    }
}
