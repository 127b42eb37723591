//! Start and end: readiness, exit codes, what is said when something is missing, draining.

use std::time::{Duration, Instant};

use outrigger_testkit::replica::message;

use crate::support::{ECHO, client, outcome, outrigger, score};

/// A script whose `init()` or `run()` waits until a file appears, so that tests decide when, without sleeping.
fn waits_for(file: &str, place: &str) -> String {
    let wait =
        format!("    import os, time\n    while not os.path.exists({file:?}):\n        time.sleep(0.01)\n");
    let (init, run) = if place == "init" { (wait.as_str(), "") } else { ("", wait.as_str()) };
    format!("def init():\n{init}    pass\n\ndef run(data):\n{run}    return data\n")
}

#[tokio::test]
async fn readiness_comes_only_after_init() {
    let launch = outrigger();
    let flag = launch.directory().join("go");
    let mut replica = launch.script(&waits_for(flag.to_str().unwrap(), "init")).spawn();
    let ready = format!("{}/ready", replica.observe);
    let live = format!("{}/live", replica.observe);
    assert_eq!(client().get(&live).send().await.unwrap().status(), 200);
    let response = client().get(&ready).send().await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.text().await.unwrap().contains("being loaded"));
    let (status, code, _) = outcome(score(&replica, "x").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (503, "not_ready"));
    std::fs::write(&flag, "").unwrap();
    replica.wait_for(|line| line["fields"]["message"] == "ready");
    assert_eq!(client().get(&ready).send().await.unwrap().status(), 200);
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
}

#[test]
fn a_failing_init_exits_with_3_and_shows_script_and_models() {
    let script =
        "def init():\n    raise RuntimeError('no such weights')\n\ndef run(data):\n    return data\n";
    let launch = outrigger().file("models/digits/1/model.joblib", "").script(script);
    let ended = launch.args(["--model-dir", "models"]).run();
    assert_eq!(ended.status.code(), Some(3));
    let text = ended.text();
    for part in [
        "no such weights",
        "in init",
        "expected entry script: ",
        "app/score.py",
        "    digits/\n        1/\n            model.joblib",
    ] {
        assert!(text.contains(part), "{part} not in\n{text}");
    }
}

#[test]
fn scripts_that_do_not_load_exit_with_3_and_say_why() {
    for (script, part) in [
        ("def init(:\n", "SyntaxError"),
        ("import no_such_module\ndef init():\n    pass\ndef run(data):\n    pass\n", "no_such_module"),
        ("def run(data):\n    pass\n", "init"),
        ("def init():\n    pass\n", "run"),
        (
            "def init():\n    pass\ndef run():\n    pass\n",
            "run() needs to accept an argument for input data.",
        ),
        (
            "def init():\n    pass\ndef run(*args):\n    pass\n",
            "run() cannot accept positional-only arguments, *args, or **kwargs.",
        ),
        ("import os\nos._exit(9)\n", "exit code 9"),
    ] {
        let ended = outrigger().script(script).run();
        assert_eq!(ended.status.code(), Some(3), "{script}: {}", ended.text());
        assert!(ended.text().contains(part), "{part} not in\n{}", ended.text());
    }
    let ended = outrigger().args(["--script-entry", "gone.py"]).run();
    assert_eq!(ended.status.code(), Some(3));
    assert!(ended.text().contains("(not there)"), "{}", ended.text());
    let ended = outrigger()
        .script("def init():\n    while True: pass\ndef run(data): pass\n")
        .args(["--script-init-timeout", "300ms"])
        .run();
    assert_eq!(ended.status.code(), Some(3));
    assert!(ended.text().contains("script.init_timeout"), "{}", ended.text());
    let ended = outrigger().script(ECHO).env("OUTRIGGER_SCRIPT_PYTHON", "/no/such/python").run();
    assert_eq!(ended.status.code(), Some(3));
    assert!(ended.text().contains("script.python"), "{}", ended.text());
}

#[test]
fn models_that_do_not_load_exit_with_3_and_name_the_file() {
    let ended = outrigger().file("bad.onnx", "this is no model").args(["--model", "bad=bad.onnx"]).run();
    assert_eq!(ended.status.code(), Some(3), "{}", ended.text());
    assert!(ended.text().contains("model `bad`") && ended.text().contains("bad.onnx"), "{}", ended.text());
    let ended = outrigger().args(["--model", "gone=gone.onnx"]).run();
    assert_eq!(ended.status.code(), Some(3));
    let ended = outrigger().file("models/readme.txt", "").args(["--model-dir", "models"]).run();
    assert_eq!(ended.status.code(), Some(3));
    assert!(ended.text().contains("no model file"), "{}", ended.text());
    let ended = outrigger().args(["--model", "gone=gone.onnx", "--backends-path", "/nowhere"]).run();
    assert!(ended.text().contains("backends.path"), "{}", ended.text());
    let ended = outrigger()
        .file("m.onnx", "")
        .args(["--model", "m=m.onnx", "--backends-onnxruntime", "/nowhere/lib.so"])
        .run();
    assert!(ended.text().contains("/nowhere/lib.so"), "{}", ended.text());
}

#[tokio::test]
async fn sigterm_finishes_what_was_accepted_and_exits_with_0() {
    let launch = outrigger();
    let flag = launch.directory().join("go");
    let mut replica = launch.script(&waits_for(flag.to_str().unwrap(), "run")).start();
    let call = tokio::spawn(score(&replica, "slow").send());
    let busy = format!("{}/busy", replica.observe);
    while outcome(client().get(&busy).send().await.unwrap()).await.2["executing"] != 1 {}
    replica.signal("TERM");
    replica.wait_for(|line| line["fields"]["message"] == "draining");
    let draining = outcome(client().get(&busy).send().await.unwrap()).await.2;
    assert_eq!(
        (&draining["draining"], &draining["executing"]),
        (&true.into(), &1.into()),
        "probes answer to the end"
    );
    // The listener closes in a moment; from then on there are no new connections.
    while client().get(format!("{}/", replica.score)).send().await.is_ok() {}
    std::fs::write(&flag, "").unwrap();
    let (status, _, body) = outcome(call.await.unwrap().unwrap()).await;
    assert_eq!((status, body), (200, "slow".into()));
    let ended = replica.wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.text());
}

#[tokio::test]
async fn calls_that_outlast_the_drain_are_broken_off_with_exit_code_4() {
    let replica = outrigger().script(&waits_for("/never", "run")).args(["--shutdown-drain", "200ms"]).start();
    let call = tokio::spawn(score(&replica, "slow").send());
    let busy = format!("{}/busy", replica.observe);
    while outcome(client().get(&busy).send().await.unwrap()).await.2["executing"] != 1 {}
    let ended = replica.stop();
    assert_eq!(ended.status.code(), Some(4), "{}", ended.text());
    assert_eq!(outcome(call.await.unwrap().unwrap()).await.1, "draining", "the caller is told");
}

#[tokio::test]
async fn in_the_quiet_period_calls_are_still_taken() {
    let mut replica = outrigger().script(ECHO).args(["--shutdown-quiet", "60s"]).start();
    replica.signal("TERM");
    replica.wait_for(|line| line["fields"]["message"].as_str().is_some_and(|text| text.contains("SIGTERM")));
    let ready = format!("{}/ready", replica.observe);
    while client().get(&ready).send().await.unwrap().status() != 503 {}
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
    replica.signal("TERM");
    assert_eq!(replica.wait().status.code(), Some(4), "a second signal ends it at once");
}

#[tokio::test]
async fn a_worker_that_is_killed_is_back_and_takes_nothing_with_it() {
    let script = "import os\ndef init():\n    pass\ndef run(data):\n    return os.getpid()\n";
    let replica = outrigger().script(script).start();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..5 {
        // A call that comes before the death is seen may be lost with a typed error; the next one after it is answered.
        let (mut status, mut code, mut pid) = outcome(score(&replica, "x").send().await.unwrap()).await;
        if code == "worker_lost" {
            (status, code, pid) = outcome(score(&replica, "x").send().await.unwrap()).await;
        }
        assert_eq!((status, code.as_str()), (200, ""), "{pid}");
        let pid = u32::try_from(pid.as_u64().unwrap()).unwrap();
        assert!(seen.insert(pid), "a new process each time");
        outrigger_testkit::replica::kill("KILL", pid);
    }
}

#[tokio::test]
async fn workers_die_with_a_replica_that_is_killed() {
    let script = "import os\ndef init():\n    pass\ndef run(data):\n    return os.getpid()\n";
    let replica = outrigger().script(script).start();
    let pid = outcome(score(&replica, "x").send().await.unwrap()).await.2.to_string();
    replica.signal("KILL");
    replica.wait();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while alive(&pid) {
        assert!(std::time::Instant::now() < deadline, "worker {pid} lives on");
        std::thread::yield_now();
    }
}

/// Whether a process is there and no zombie that nobody has reaped yet.
fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with('Z'))
}

#[tokio::test]
async fn what_a_script_has_started_does_not_keep_its_lane() {
    // A process in a session of its own that keeps the worker's stderr open for as long as a file is there.
    let script = r#"
import os, subprocess
def init():
    pass
def run(data):
    if data == "die":
        loop = "while [ -e alive ]; do sleep 0.05; done"
        subprocess.Popen(["sh", "-c", loop], start_new_session=True)
        os._exit(5)
    return data
"#;
    let replica = outrigger().file("app/alive", "").script(script).start();
    assert_eq!(outcome(score(&replica, "die").send().await.unwrap()).await.1, "worker_lost");
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
    std::fs::remove_file(replica.directory().join("app/alive")).unwrap();
}

/// Prints more than a pipe holds, ten times over.
const NOISY: &str = "
def init():
    pass
def run(data):
    for _ in range(1000):
        print('y' * 1000)
    return data
";

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_no_call() {
    let mut replica = outrigger().script(NOISY).args(["--log-buffer", "10KiB"]).start();
    let paused = replica.pause_log();
    for _ in 0..5 {
        assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
    }
    drop(paused);
    let lost = replica.wait_for(|line| message(line).contains("lines of the log are lost"));
    assert!(lost["fields"]["lines"].as_u64() > Some(0), "{lost}");
    let ended = replica.stop();
    assert_eq!(ended.status.code(), Some(0));
    assert!(ended.text().ends_with("ended\n"), "what was waiting is written out: {}", ended.text());
}

#[tokio::test]
async fn a_log_that_nobody_reads_does_not_keep_the_replica_from_ending() {
    let mut replica = outrigger().script(NOISY).start();
    let _paused = replica.pause_log();
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
    replica.signal("TERM");
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        match replica.ended() {
            Some(status) => break status,
            None => assert!(Instant::now() < deadline, "it does not end"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(status.code(), Some(0));
}
