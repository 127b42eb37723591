//! `outrigger dev`: a script that changes while it is served.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outrigger_testkit::Launch;
use outrigger_testkit::replica::{kill, message};

use crate::support::client;

fn dev() -> Launch {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.args(["dev", "app/score.py"]);
    Launch::of(command).env_remove("OUTRIGGER_AUTH_PRIMARY_KEY").env_remove("OUTRIGGER_AUTH_SECONDARY_KEY")
}

fn says(text: &str) -> String {
    format!("def init():\n    pass\n\ndef run(data):\n    return {text:?}\n")
}

async fn score(url: &str) -> (u16, String) {
    let response = client().post(format!("{url}/score")).body("x").send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_script_takes_over_and_no_call_is_lost() {
    let mut replica = dev().file("app/score.py", says("one")).start();
    assert_eq!(score(&replica.score).await, (200, "\"one\"".into()), "no key is asked for");
    let live = client().get(format!("{}/ready", replica.observe)).send().await.unwrap();
    assert_eq!(live.status(), 200);

    // Calls without a pause, each on a connection of its own, while the script is replaced.
    let stop = Arc::new(AtomicBool::new(false));
    let calls = tokio::spawn({
        let (stop, url) = (Arc::clone(&stop), replica.score.clone());
        async move {
            let mut seen = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                seen.push(score(&url).await);
            }
            seen
        }
    });
    let script = replica.directory().join("app/score.py");
    std::fs::write(&script, says("two")).unwrap();
    replica.wait_for(|line| message(line) == "ready");
    while score(&replica.score).await.1 != "\"two\"" {}
    stop.store(true, Ordering::Relaxed);
    let mut seen = calls.await.unwrap();
    assert!(seen.iter().all(|(status, _)| *status == 200), "{seen:?}");
    seen.dedup();
    assert!(seen.len() <= 2, "first the old one, then the new one: {seen:?}");

    // One that does not come up changes nothing.
    std::fs::write(&script, "def init(:\n").unwrap();
    replica.wait_for(|line| message(line).contains("the one before goes on"));
    assert!(replica.log_text().contains("SyntaxError"), "{}", replica.log_text());
    assert_eq!(score(&replica.score).await, (200, "\"two\"".into()));

    // Modules beside the script are its files too, those in a new folder as well.
    std::fs::create_dir(replica.directory().join("app/lib")).unwrap();
    std::fs::write(replica.directory().join("app/lib/part.py"), "WORD = 'three'\n").unwrap();
    std::fs::write(
        &script,
        "from lib.part import WORD\n\ndef init():\n    pass\n\ndef run(data):\n    return WORD\n",
    )
    .unwrap();
    replica.wait_for(|line| message(line) == "ready");
    assert_eq!(score(&replica.score).await, (200, "\"three\"".into()));
    std::fs::write(replica.directory().join("app/lib/part.py"), "WORD = 'four'\n").unwrap();
    replica.wait_for(|line| message(line) == "ready");
    assert_eq!(score(&replica.score).await, (200, "\"four\"".into()), "a file in a folder that is new");
    let ended = replica.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.text());
}

#[tokio::test]
async fn a_script_that_does_not_come_up_at_first_is_answered_for_and_tried_again() {
    let mut replica = dev().file("app/score.py", "def init(:\n").spawn();
    replica.wait_for(|line| message(line).contains("tried again when a file is saved"));
    let (status, body) = score(&replica.score).await;
    assert_eq!(status, 503);
    assert!(body.contains("has not come up"), "{body}");
    std::fs::write(replica.directory().join("app/score.py"), says("one")).unwrap();
    replica.wait_for(|line| message(line) == "ready");
    assert_eq!(score(&replica.score).await, (200, "\"one\"".into()));
}

/// Waits until a file holds so many lines with a text.
async fn until_said(log: &Path, text: &str, times: usize) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let said = std::fs::read_to_string(log).unwrap();
        if said.matches(text).count() >= times {
            return said;
        }
        assert!(Instant::now() < deadline, "`{text}` was not said {times} times:\n{said}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn its_own_log_in_the_folder_is_no_change() {
    let launch = dev().file("app/score.py", says("0")).file("app/said.txt", "");
    let app = launch.directory().join("app");
    let log = app.join("said.txt");
    let (mut command, _directory) = launch.into_command();
    let file = std::fs::OpenOptions::new().append(true).open(&log).unwrap();
    let mut child = Child(command.stderr(file).spawn().unwrap());
    for generation in 1..4 {
        until_said(&log, "\"ready\"", generation).await;
        std::fs::write(app.join("score.py"), says(&generation.to_string())).unwrap();
    }
    let said = until_said(&log, "\"ready\"", 4).await;
    assert_eq!(said.matches("starting anew").count(), 3, "{said}");
    kill("TERM", child.0.id());
    assert!(child.0.wait().unwrap().success());
}

/// Ends with the test.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_debugger_port_without_debugpy_is_said() {
    // Found before any package of that name, since the interpreter is started where the script is.
    let ended = dev()
        .file("app/score.py", says("one"))
        .file("app/debugpy.py", "raise ImportError('none here')\n")
        .args(["--debug-port", "5678"])
        .run();
    assert_eq!(ended.status.code(), Some(2), "{}", ended.text());
    assert!(ended.text().contains("has no debugpy"), "{}", ended.text());
}

/// A `debugpy` that says what it was asked.
const DEBUGPY: &str =
    "def connect(port):\n    print('connect', repr(port))\n\ndef wait_for_client():\n    print('wait')\n";

#[test]
fn workers_connect_to_the_debugger_before_they_import_the_script() {
    let script = format!("print('imported')\n{}", says("one"));
    let launch = dev().file("lib/debugpy.py", DEBUGPY).file("app/score.py", script);
    let lib = launch.directory().join("lib");
    let mut replica = launch.env("PYTHONPATH", lib).args(["--debug-port", "5678"]).start();
    replica.wait_for_text("imported");
    let log = replica.log_text();
    let places = ["not for production", "connect 5678", "\"wait\"", "imported"].map(|text| log.find(text));
    assert!(places[0].is_some() && places.is_sorted(), "{places:?} in\n{log}");
}

#[test]
fn a_debugger_that_cannot_be_reached_is_said() {
    let launch = outrigger_testkit::Launch::new(env!("CARGO_BIN_EXE_outrigger"))
        .file("lib/debugpy.py", "def connect(port):\n    raise ConnectionRefusedError('nobody listens')\n")
        .script(&says("one"));
    let lib = launch.directory().join("lib");
    let ended = launch.env("PYTHONPATH", lib).env("AZUREML_DEBUG_PORT", "5678").run();
    assert_eq!(ended.status.code(), Some(3), "{}", ended.text());
    assert!(ended.text().contains("no debugger on port 5678"), "{}", ended.text());
}

#[test]
fn it_listens_beyond_loopback_only_when_that_is_said() {
    let ended = dev().file("app/score.py", says("one")).args(["--score-listen", "0.0.0.0:0"]).run();
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.text().contains("auth.allow_open"), "{}", ended.text());
}
