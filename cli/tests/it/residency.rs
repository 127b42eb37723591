//! Models that are loaded with the first call that needs them, and make way for others: within what devices may hold, and without a
//! call that hears of it otherwise than by having waited.

use outrigger_testkit::{Launch, ReplicaProcess};
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::devices::until;
use crate::placement::{adder, answer, call, contains, metrics};
use crate::support::{busy, client, header, infer, outcome, outrigger, until_busy};

/// A device with so many bytes for models, of which each takes 42, and models that are loaded when they are used.
pub(crate) fn lazily(memory: u64, settings: &str, models: &[(&str, &str)], rest: &str) -> Launch {
    let tables: String =
        models.iter().map(|(name, _)| format!("[models.{name}]\npath = '{name}.txt'\n")).collect();
    let config = format!(
        "[placement]\ndevices = ['adder']\n[backends.adder]\nlibrary = '{}'\nprocess = 'in'\nthreads = 2\nmemory = '{memory}B'\nsettings = [{settings}]\n\
         [residency]\nload = 'use'\n{rest}\n{tables}",
        adder().display()
    );
    let launch = outrigger().file("outrigger.toml", config).args(["--config", "outrigger.toml"]);
    models.iter().fold(launch, |launch, (name, text)| launch.file(&format!("{name}.txt"), *text))
}

const THREE: [(&str, &str); 3] = [("a", "add 3\n"), ("b", "add 3\n"), ("c", "add 3\n")];

/// What is asked of the admin listener.
pub(crate) async fn admin(replica: &ReplicaProcess, method: Method, path: &str) -> Response {
    let client = Client::builder().no_proxy().unix_socket(replica.admin_socket()).build().unwrap();
    client.request(method, format!("http://admin{path}")).send().await.unwrap()
}

pub(crate) async fn asked(replica: &ReplicaProcess, path: &str) -> Value {
    let (status, _, body) = outcome(admin(replica, Method::GET, path).await).await;
    assert_eq!(status, 200, "{body}");
    body
}

pub(crate) async fn told(replica: &ReplicaProcess, path: &str) -> Value {
    let (status, _, body) = outcome(admin(replica, Method::POST, path).await).await;
    assert_eq!(status, 200, "{body}");
    body
}

pub(crate) async fn state(replica: &ReplicaProcess, model: &str) -> String {
    asked(replica, &format!("/models/{model}")).await["state"].as_str().unwrap().to_owned()
}

/// The states of `a`, `b` and `c`.
async fn states(replica: &ReplicaProcess) -> [String; 3] {
    [state(replica, "a").await, state(replica, "b").await, state(replica, "c").await]
}

/// Has a load of a model go on that is held.
pub(crate) fn go(replica: &ReplicaProcess, model: &str) {
    std::fs::write(replica.directory().join(format!("{model}.go")), "").unwrap();
}

/// Sends a call that waits no longer than that.
async fn hasty(replica: &ReplicaProcess, model: &str, milliseconds: u64) -> (u16, String, String, String) {
    let request = infer(replica, model, call()).header("x-request-deadline-ms", milliseconds.to_string());
    let response = request.send().await.unwrap();
    let retry = header(&response, "retry-after");
    let (status, code, body) = outcome(response).await;
    (status, code, retry, body.to_string())
}

#[tokio::test]
async fn a_model_is_loaded_with_its_first_call_and_the_least_used_makes_way() {
    let replica = lazily(100, "", &THREE, "").start();
    assert_eq!(states(&replica).await, ["on_disk"; 3]);
    let right = json!([11.0, 22.0, 33.0]);
    // Often, so that it is not by chance which of them was loaded faster.
    for model in std::iter::once("a").chain(["b"; 50]) {
        assert_eq!(answer(&replica, model).await, (right.clone(), "adder:0".into()));
    }
    assert_eq!(states(&replica).await, ["ready", "ready", "on_disk"]);
    assert_eq!(answer(&replica, "c").await.0, right);
    assert_eq!(states(&replica).await, ["on_disk", "ready", "ready"], "`a` was used least");
    assert_eq!(answer(&replica, "a").await.0, right, "it comes back when it is needed");
    let text = metrics(&replica).await;
    contains(
        &text,
        &[
            "outrigger_model_loads_total{outcome=\"ready\"} 4",
            "outrigger_model_evictions_total 2",
            "outrigger_models{state=\"ready\"} 2",
            "outrigger_models{state=\"on_disk\"} 1",
            "outrigger_model_bytes{device=\"adder:0\",model=\"a\"} 42",
        ],
    );
}

#[tokio::test]
async fn who_comes_while_a_model_is_loaded_waits_for_the_same_load() {
    let replica = lazily(100, "'load=held:a.txt'", &THREE, "loads = 2").start();
    let mut calls = JoinSet::new();
    for _ in 0..8 {
        let request = infer(&replica, "a", call());
        calls.spawn(async move { outcome(request.send().await.unwrap()).await.0 });
    }
    until("the load", async || state(&replica, "a").await == "loading").await;
    assert_eq!(answer(&replica, "b").await.0, json!([11.0, 22.0, 33.0]), "others are not held up");
    go(&replica, "a");
    let statuses = calls.join_all().await;
    assert_eq!(statuses, [200; 8]);
    contains(&metrics(&replica).await, &["outrigger_model_loads_total{outcome=\"ready\"} 2"]);
}

#[tokio::test]
async fn who_cannot_wait_is_told_when_to_come_again_and_the_load_goes_on() {
    let replica = lazily(100, "'load=held:a.txt'", &THREE, "waiters = 1").start();
    let (status, code, retry, text) = hasty(&replica, "a", 50).await;
    assert_eq!((status, code.as_str()), (503, "model_unavailable"), "{text}");
    assert!(retry.parse::<u64>().is_ok_and(|seconds| seconds > 0), "{retry}");
    contains(&text, &["model `a` is being loaded, which takes about"]);
    until("the load goes on", async || state(&replica, "a").await == "loading").await;

    // There is room for one that waits.
    let waits = tokio::spawn(infer(&replica, "a", call()).send());
    until_busy(&replica, 0, 1).await;
    contains(&metrics(&replica).await, &["outrigger_model_waiting 1"]);
    let (status, code, _, text) = hasty(&replica, "a", 5000).await;
    assert_eq!((status, code.as_str()), (503, "overloaded"));
    contains(&text, &["1 calls wait for models to be loaded already (residency.waiters)"]);
    go(&replica, "a");
    assert_eq!(waits.await.unwrap().unwrap().status(), 200);
    assert_eq!(hasty(&replica, "a", 5000).await.0, 200);
    let busy = busy(&replica).await;
    let counts = ["arrived", "refused", "answered", "queued"].map(|what| busy[what].as_u64().unwrap());
    assert_eq!(counts, [4, 2, 2, 0], "each is counted once: {busy}");
}

#[tokio::test]
async fn a_call_that_was_not_for_its_model_after_all_has_failed() {
    let replica = lazily(100, "", &THREE, "").start();
    let (status, code, _) =
        outcome(infer(&replica, "a", call().replace("\"y\"", "\"why\"")).send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (400, "invalid_tensor"));
    let busy = busy(&replica).await;
    let counts = ["arrived", "failed", "cancelled", "queued"].map(|what| busy[what].as_u64().unwrap());
    assert_eq!(counts, [1, 1, 0, 0], "it has waited for its model: {busy}");
}

#[tokio::test]
async fn a_model_that_does_not_load_is_left_alone_for_a_while() {
    let models = [("a", "nonsense"), ("b", "add 3\n")];
    let mut replica = lazily(100, "", &models, "retry = '1h'\nmax_retry = '1h'").start();
    for _ in 0..3 {
        let (status, code, retry, text) = hasty(&replica, "a", 5000).await;
        assert_eq!((status, code.as_str()), (503, "model_unavailable"), "{text}");
        contains(&text, &["model `a` does not load; the log says why"]);
        assert!(retry.parse::<u64>().unwrap() > 3000, "{retry}");
    }
    replica.wait_for_text("no model");
    assert_eq!(replica.log_text().matches("model does not load").count(), 1);
    assert_eq!(answer(&replica, "b").await.0, json!([11.0, 22.0, 33.0]));
    let shown = asked(&replica, "/models/a").await;
    assert_eq!(shown["state"], "failed");
    assert!(shown["last_load"]["failure"].as_str().unwrap().contains("no model"), "{shown}");
    // Who asks for it as an administrator does not have to wait.
    std::fs::write(replica.directory().join("a.txt"), "add 3\n").unwrap();
    assert_eq!(hasty(&replica, "a", 5000).await.0, 503);
    let ready = client().get(format!("{}/v2/models/a/ready", replica.score));
    let ready = ready.bearer_auth(outrigger_testkit::replica::KEY).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    assert_eq!(told(&replica, "/models/a/load").await["state"], "ready");
    assert_eq!(hasty(&replica, "a", 5000).await.0, 200);
}

#[tokio::test]
async fn a_file_that_is_mended_is_loaded_after_the_pause() {
    let replica = lazily(100, "", &[("a", "nonsense")], "retry = '1ms'\nmax_retry = '1ms'").start();
    assert_eq!(hasty(&replica, "a", 5000).await.0, 503);
    std::fs::write(replica.directory().join("a.txt"), "add 3\n").unwrap();
    until("it is loaded", async || hasty(&replica, "a", 5000).await.0 == 200).await;
}

#[tokio::test]
async fn what_is_in_use_does_not_make_way() {
    let models = [("a", "slow 60000"), ("b", "add 3\n")];
    let replica = lazily(50, "", &models, "room_wait = '50ms'\nretry = '1h'\nmax_retry = '1h'").start();
    let uses = tokio::spawn(infer(&replica, "a", call()).send());
    until("it is in use", async || state(&replica, "a").await == "ready").await;
    let (status, _, _, text) = hasty(&replica, "b", 10_000).await;
    assert_eq!(status, 503, "{text}");
    contains(
        asked(&replica, "/models/b").await["last_load"]["failure"].as_str().unwrap(),
        &["there is no room for it: the models that could make way were in use", "residency.room_wait"],
    );
    // Its run is cancelled when its caller leaves, and it is idle then.
    uses.abort();
    until("there is room", async || admin(&replica, Method::POST, "/models/b/load").await.status() == 200)
        .await;
    assert_eq!(state(&replica, "a").await, "on_disk");
}

#[tokio::test]
async fn a_load_that_waits_for_room_does_not_hold_up_others() {
    let models = [("a", "slow 60000"), ("b", "weights 60"), ("c", "weights 5")];
    let replica = lazily(100, "", &models, "loads = 1").start();
    let uses = tokio::spawn(infer(&replica, "a", call()).send());
    until("it is in use", async || state(&replica, "a").await == "ready").await;
    let waits = tokio::spawn(infer(&replica, "b", call()).send());
    until("its load", async || state(&replica, "b").await == "loading").await;
    assert_eq!(answer(&replica, "c").await.0, json!([11.0, 22.0, 33.0]));
    assert_eq!(state(&replica, "b").await, "loading");
    uses.abort();
    assert_eq!(waits.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_load_waits_for_room_as_long_as_its_callers_do() {
    let models = [("a", "slow 400"), ("b", "add 3\n")];
    let replica = lazily(50, "", &models, "").start();
    let uses = tokio::spawn(infer(&replica, "a", call()).send());
    until("it is in use", async || state(&replica, "a").await == "ready").await;
    assert_eq!(answer(&replica, "b").await.0, json!([11.0, 22.0, 33.0]));
    assert_eq!(uses.await.unwrap().unwrap().status(), 200, "nobody's call fails");
}

#[tokio::test]
async fn a_model_that_fits_nowhere_says_so_at_once() {
    let models = [("a", "weights 1000"), ("b", "add 3\n")];
    let replica = lazily(100, "", &models, "").start();
    assert_eq!(answer(&replica, "b").await.0, json!([11.0, 22.0, 33.0]));
    assert_eq!(hasty(&replica, "a", 60_000).await.0, 503);
    contains(
        asked(&replica, "/models/a").await["last_load"]["failure"].as_str().unwrap(),
        &["model `a` has no place: adder:0: has no room", "over its 100"],
    );
    assert_eq!(state(&replica, "b").await, "ready", "nothing makes way in vain");
}

#[tokio::test]
async fn what_is_pinned_stays() {
    let rest = "retry = '1h'\nmax_retry = '1h'\nroom_wait = '50ms'\n[models.a]\nload = 'pinned'";
    let models = [("b", "add 3\n"), ("c", "add 3\n")];
    let launch = lazily(100, "", &models, &format!("{rest}\npath = 'a.txt'")).file("a.txt", "add 3\n");
    let replica = launch.start();
    assert_eq!(states(&replica).await, ["ready", "on_disk", "on_disk"], "from the start");
    for model in ["b", "c", "b", "c"] {
        assert_eq!(answer(&replica, model).await.0, json!([11.0, 22.0, 33.0]));
    }
    assert_eq!(states(&replica).await, ["ready", "on_disk", "ready"]);
    assert_eq!(told(&replica, "/models/c/pin").await["pinned"], true);
    assert_eq!(hasty(&replica, "b", 10_000).await.0, 503, "neither makes way");
    assert_eq!(told(&replica, "/models/a/unpin").await["pinned"], false);
    assert_eq!(told(&replica, "/models/b/load").await["state"], "ready");
    assert_eq!(states(&replica).await, ["on_disk", "ready", "ready"]);
}

#[tokio::test]
async fn an_administrator_loads_unloads_and_lists() {
    let replica = lazily(100, "", &THREE, "").start();
    let loaded = told(&replica, "/models/a/load").await;
    assert_eq!((&loaded["state"], &loaded["devices"][0]), (&json!("ready"), &json!("adder:0")));
    assert_eq!((&loaded["bytes_held"], &loaded["last_load"]["bytes"]), (&json!(42), &json!(42)));
    for step in ["queued", "room", "load", "warm"] {
        assert!(loaded["last_load"][step].as_f64().is_some_and(|seconds| seconds >= 0.0), "{loaded}");
    }
    let left = told(&replica, "/models/a/unload").await;
    assert_eq!((&left["state"], &left["bytes_held"]), (&json!("on_disk"), &json!(0)));
    assert_eq!(answer(&replica, "a").await.0, json!([11.0, 22.0, 33.0]), "the next call loads it");

    let first = asked(&replica, "/models?limit=2").await;
    let names = |page: &Value| -> Vec<String> {
        page["models"]
            .as_array()
            .unwrap()
            .iter()
            .map(|model| model["name"].as_str().unwrap().into())
            .collect()
    };
    assert_eq!(
        (names(&first), &first["total"], &first["next"]),
        (vec!["a".into(), "b".into()], &json!(3), &json!("b"))
    );
    let last = asked(&replica, "/models?limit=2&after=b").await;
    assert_eq!((names(&last), &last["next"]), (vec!["c".into()], &Value::Null));
    let wrong = admin(&replica, Method::GET, "/models?limit=many").await;
    assert_eq!(wrong.status(), 400);
    assert_eq!(admin(&replica, Method::POST, "/models/none/load").await.status(), 404);
    assert_eq!(admin(&replica, Method::GET, "/models/a/load").await.status(), 405);
}

#[tokio::test]
async fn who_unloads_waits_for_the_calls_that_have_it() {
    let replica = lazily(100, "", &[("a", "slow 300")], "").start();
    let uses = tokio::spawn(infer(&replica, "a", call()).send());
    until("it is in use", async || state(&replica, "a").await == "ready").await;
    assert_eq!(told(&replica, "/models/a/unload").await["state"], "on_disk");
    assert_eq!(uses.await.unwrap().unwrap().status(), 200);
}

/// Reads to the end of the event in which there is such a text.
async fn read_to(events: &mut Response, text: &str) -> String {
    let mut read = String::new();
    // Pieces of an answer end anywhere.
    while !read.split_once(text).is_some_and(|(_, rest)| rest.contains("\n\n")) {
        read.push_str(std::str::from_utf8(&events.chunk().await.unwrap().unwrap()).unwrap());
    }
    read
}

#[tokio::test]
async fn events_tell_what_happens_and_go_on_where_a_reader_was() {
    let replica = lazily(100, "", &THREE, "").start();
    let mut live = admin(&replica, Method::GET, "/events?watch").await;
    assert_eq!(header(&live, "content-type"), "text/event-stream");
    for model in std::iter::once("a").chain(["b"; 50]).chain(["c"]) {
        answer(&replica, model).await;
    }
    let text = read_to(&mut live, "\"model\":\"c\",\"version\":\"1\",\"event\":\"ready\"").await;
    let events = |text: &str| -> Vec<(u64, String, String)> {
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let event = |line: &str| -> (u64, String, String) {
            let event: Value = serde_json::from_str(line).unwrap();
            let word = |key: &str| event[key].as_str().unwrap().to_owned();
            (event["number"].as_u64().unwrap(), word("model"), word("event"))
        };
        data.map(event).collect()
    };
    let all = events(&text);
    let of = |model: &str| -> Vec<&str> {
        all.iter().filter(|(_, name, _)| name == model).map(|(_, _, event)| event.as_str()).collect()
    };
    assert_eq!(of("a"), ["queued", "loading", "warming", "ready", "evicted"]);
    assert_eq!(of("c"), ["queued", "loading", "warming", "ready"]);
    assert!(all.iter().map(|(number, ..)| *number).eq(1..=all.len() as u64), "{all:?}");
    assert!(text.contains("makes way for model `c`"), "{text}");
    // Again, from the third on.
    let mut again = admin(&replica, Method::GET, "/events?watch&after=2").await;
    assert_eq!(events(&read_to(&mut again, "\"number\":3,").await)[0].0, 3);
    let kept = asked(&replica, "/events?after=4").await;
    assert_eq!(kept["events"][0]["number"], 5, "{kept}");
}

#[tokio::test]
async fn metadata_of_a_model_that_is_not_loaded_loads_it() {
    let replica = lazily(100, "", &THREE, "").start();
    let url = |rest: &str| format!("{}/v2/models/a{rest}", replica.score);
    let get = |rest: &str| client().get(url(rest)).bearer_auth(outrigger_testkit::replica::KEY).send();
    assert_eq!(get("/ready").await.unwrap().status(), 200, "calls of it are answered");
    assert_eq!(state(&replica, "a").await, "on_disk", "that did not need it");
    let (status, _, body) = outcome(get("").await.unwrap()).await;
    assert_eq!((status, &body["inputs"][0]["name"]), (200, &json!("x")), "{body}");
    assert_eq!(state(&replica, "a").await, "ready");
}

#[tokio::test]
async fn a_script_s_handle_loads_its_model() {
    let script = "import numpy\nfrom outrigger import model\n\ndef init():\n    global a\n    a = model('a')\n\n\
        def run(data):\n    x = numpy.ones((1, 3), numpy.float32)\n    return float(a.predict(x=x, y=x).sum())\n";
    let launch = lazily(50, "", &[("a", "add 3\n"), ("b", "add 3\n")], "");
    let replica = launch.file("score.py", script).args(["--script-entry", "score.py"]).start();
    assert_eq!(state(&replica, "a").await, "ready", "`init()` asked what it takes and gives");
    for _ in 0..2 {
        let response = crate::support::score(&replica, "0").send().await.unwrap();
        assert_eq!(header(&response, "outrigger-device"), "adder:0");
        assert_eq!(outcome(response).await.2, json!(6.0), "{}", replica.log_text());
        assert_eq!(answer(&replica, "b").await.0, json!([11.0, 22.0, 33.0]));
        assert_eq!(state(&replica, "a").await, "on_disk", "it made way, and comes back for the next call");
    }
}

#[tokio::test]
async fn more_than_was_thought_has_others_make_way() {
    // `a` holds twice as much once its sample has run.
    let manifest = "file = 'a.txt'\nformat = 'text'\n[[samples]]\nrequest = 'sample.json'\n";
    let config = format!(
        "[placement]\ndevices = ['adder']\n[backends.adder]\nlibrary = '{}'\nprocess = 'in'\nmemory = '100B'\n[residency]\nload = 'use'\n\
         [models.a]\npath = 'a'\n[models.b]\npath = 'b.txt'",
        adder().display()
    );
    let launch = outrigger().file("outrigger.toml", config).args(["--config", "outrigger.toml"]);
    let launch =
        launch.file("a/a.txt", "hoard 3\n").file("a/model.toml", manifest).file("a/sample.json", call());
    let replica = launch.file("b.txt", "add 3\n").start();
    assert_eq!(answer(&replica, "b").await.0, json!([11.0, 22.0, 33.0]));
    assert_eq!(answer(&replica, "a").await.0, json!([11.0, 22.0, 33.0]));
    assert_eq!([state(&replica, "a").await, state(&replica, "b").await], ["ready", "on_disk"]);
    assert_eq!(asked(&replica, "/models/a").await["bytes_held"], 84);
}

#[tokio::test]
async fn the_end_does_not_wait_for_a_load() {
    let replica = lazily(100, "'load=never:a.txt'", &THREE, "").args(["--shutdown-drain", "100ms"]).start();
    let waits = tokio::spawn(infer(&replica, "a", call()).send());
    until("the load", async || state(&replica, "a").await == "loading").await;
    replica.signal("TERM");
    let (status, code, _) = outcome(waits.await.unwrap().unwrap()).await;
    assert_eq!((status, code.as_str()), (503, "draining"));
    let ended = replica.wait();
    assert!(ended.status.code().is_some(), "{}", ended.text());
}
