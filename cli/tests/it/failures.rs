//! Workers that are killed, hang or take all memory: what it costs, and whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::{KEY, message};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::proof::{say, scale, signal, spread};
use crate::support::{client, outcome, outrigger, score};

/// An answer under load.
struct Heard {
    sent: String,
    status: u16,
    code: String,
    body: Value,
    since: Instant,
    at: Instant,
}

/// Callers that call one after the other, each with texts of its own, until they are told to stop.
struct Load {
    over: Arc<AtomicBool>,
    callers: JoinSet<Vec<Heard>>,
}

impl Load {
    fn start(replica: &ReplicaProcess, callers: usize) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for caller in 0..callers {
            let (over, url, client) = (Arc::clone(&over), format!("{}/score", replica.score), client());
            tasks.spawn(async move {
                let mut heard = Vec::new();
                while !over.load(Ordering::Acquire) {
                    let sent = format!("caller {caller} call {}", heard.len());
                    let since = Instant::now();
                    let request = client.post(&url).bearer_auth(KEY).body(sent.clone());
                    let (status, code, body) = outcome(request.send().await.unwrap()).await;
                    heard.push(Heard { sent, status, code, body, since, at: Instant::now() });
                }
                heard
            });
        }
        Self { over, callers: tasks }
    }

    async fn stop(self) -> Vec<Heard> {
        self.over.store(true, Ordering::Release);
        self.callers.join_all().await.into_iter().flatten().collect()
    }
}

/// Waits for a line of the log on a thread that may wait.
async fn wait_for(
    mut replica: ReplicaProcess,
    wanted: impl Fn(&Value) -> bool + Send + 'static,
) -> (ReplicaProcess, Value, Instant) {
    tokio::task::spawn_blocking(move || {
        let line = replica.wait_for(wanted);
        (replica, line, Instant::now())
    })
    .await
    .unwrap()
}

fn pid_of(line: &Value) -> u32 {
    line["fields"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a process number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_load_a_worker_takes_its_own_call_only() {
    let script = r#"
import os, time
def init():
    pass
def run(data):
    time.sleep(0.005)
    return [data, os.getpid()]
"#;
    let mut replica = outrigger().script(script).args(["--script-workers", "2"]).spawn();
    let mut workers = Vec::new();
    for _ in 0..2 {
        workers.push(pid_of(&replica.wait_for(|line| message(line) == "worker ready")));
    }
    replica.wait_for(|line| message(line) == "ready");
    let load = Load::start(&replica, 8);
    let kills = scale(10, 200);
    let (mut killed, mut ready) = (Vec::new(), Vec::new());
    for round in 0..kills {
        // Each worker in turn, once it has work: a call of its own says so.
        let place = round % 2;
        let pid = workers[place];
        loop {
            let (status, _, body) = outcome(score(&replica, "probe").send().await.unwrap()).await;
            if status == 200 && body[1] == pid {
                break;
            }
        }
        killed.push(Instant::now());
        signal(pid, Signal::KILL);
        let (same, line, at) = wait_for(replica, |line| message(line) == "worker ready").await;
        replica = same;
        workers[place] = pid_of(&line);
        ready.push((at, workers[place]));
    }
    // What follows the last one.
    while outcome(score(&replica, "probe").send().await.unwrap()).await.2[1] != workers[(kills - 1) % 2] {}
    let heard = load.stop().await;
    let (mut good, mut lost) = (0, 0);
    for answer in &heard {
        if answer.status == 200 {
            assert_eq!(answer.body[0], json!(answer.sent));
            good += 1;
        } else {
            assert_eq!((answer.status, answer.code.as_str()), (500, "worker_lost"), "{}", answer.body);
            let text = answer.body["message"].as_str().unwrap();
            assert!(text.contains("signal 9 (SIGKILL)"), "{text}");
            lost += 1;
        }
    }
    assert!(lost <= kills, "{lost} calls lost by {kills} kills");
    say(format!("{kills} kills of 2 workers under 8 callers: {good} good answers, {lost} lost, no other"));
    let since = |at: &Instant, kill: &Instant| at.duration_since(*kill);
    spread(
        "kill to `worker ready`",
        ready.iter().zip(&killed).map(|((at, _), kill)| since(at, kill)).collect(),
    );
    let next = ready.iter().zip(&killed).filter_map(|((_, pid), kill)| {
        let answers = heard.iter().filter(|answer| answer.status == 200 && answer.body[1] == *pid);
        answers.map(|answer| answer.at).min().map(|at| since(&at, kill))
    });
    spread("kill to the next good answer of that lane", next.collect());
    let ended = replica.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_loop_in_c_ends_at_its_deadline() {
    // Never looks at signals and never lets the interpreter's lock go.
    let script = "def init():\n    pass\ndef run(data):\n    return sum(range(10 ** 18)) if data == 'loop' else data\n";
    let limit = Duration::from_millis(150);
    let mut replica = outrigger().script(script).args(["--script-timeout", "150ms"]).start();
    let client = client();
    let call = async |body: &'static str| {
        let request = client.post(format!("{}/score", replica.score)).bearer_auth(KEY).body(body);
        let since = Instant::now();
        let outcome = outcome(request.send().await.unwrap()).await;
        (outcome, since.elapsed())
    };
    let (mut late, mut back) = (Vec::new(), Vec::new());
    for _ in 0..scale(5, 100) {
        let ((status, _, body), _) = call("warm").await;
        assert_eq!((status, &body), (200, &json!("warm")));
        let ((status, code, body), took) = call("loop").await;
        assert_eq!((status, code.as_str()), (500, "scoring_timeout"), "{body}");
        late.push(took.saturating_sub(limit));
        let ((status, _, body), took) = call("next").await;
        assert_eq!((status, &body), (200, &json!("next")));
        back.push(took);
    }
    spread("timeout error after the deadline", late);
    spread("the next good answer after the timeout error", back);
    for part in ["Current thread", "score.py\\\", line 4 in run", "run() is over its time limit"] {
        replica.wait_for_text(part);
    }
}

/// One of two workers takes memory until it is stopped, while callers use the other; the answer of the one that took all, and the log.
async fn take_all_memory(args: &[&str]) -> ((u16, String, Value), String) {
    let script = r#"
import json, os, time
def init():
    pass
def run(data):
    if data != "all":
        return [data, os.getpid()]
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1)) * (4 << 20))
"#;
    let replica = outrigger()
        .script(script)
        .args(["--script-workers", "2", "--script-memory", "256MiB", "--script-breaker=false"])
        .args(args.iter().copied())
        .start();
    let quiet = Load::start(&replica, 1);
    for _ in 0..scale(50, 400) {
        assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
    }
    let quiet = quiet.stop().await;
    let load = Load::start(&replica, 1);
    let mut last = None;
    for _ in 0..scale(2, 20) {
        let answer = outcome(score(&replica, "all").send().await.unwrap()).await;
        assert_eq!(answer.0, 500, "{answer:?}");
        last = Some(answer);
    }
    let heard = load.stop().await;
    for answer in &heard {
        assert_eq!((answer.status, &answer.body[0]), (200, &json!(answer.sent)), "{}", answer.body);
    }
    let took = |heard: &[Heard]| heard.iter().map(|answer| answer.at.duration_since(answer.since)).collect();
    spread("the other worker's answers, alone", took(&quiet));
    spread("the other worker's answers, beside one that takes all memory", took(&heard));
    (last.unwrap(), replica.log_text())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_without_bound_ends_at_its_control_group() {
    let ((_, code, body), log) = take_all_memory(&[]).await;
    if log.contains("memory (RLIMIT_DATA") {
        println!("skipped: no control groups can be made here");
        return;
    }
    assert_eq!(code, "worker_lost", "{body}\n{log}");
    assert!(body["message"].as_str().unwrap().contains("script.memory"), "{body}");
    assert!(log.contains("it used more memory than script.memory allows"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_without_bound_ends_at_its_resource_limit() {
    let ((_, code, body), log) = take_all_memory(&["--script-cgroups=false"]).await;
    assert_eq!(code, "script_error", "{body}");
    assert!(log.contains("MemoryError"), "{log}");
    let hint = log.lines().find(|line| line.contains("MemoryError") && line.contains("script.memory"));
    assert!(hint.is_some(), "the setting is named with the error:\n{log}");
}
