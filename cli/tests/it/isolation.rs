//! No call sees another's data, however long a script keeps what it was given.

use outrigger_testkit::replica::KEY;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::proof::{say, scale};
use crate::support::{client, outrigger};

/// Keeps views of bodies across calls, in threads and in forked children, and looks at all of them again and again. A body is one
/// byte many times, so that any other byte in a view is another's.
const SCRIPT: &str = r#"
import json, os, random, threading, time
import numpy as np
from azureml.contrib.services.aml_request import rawhttp
from azureml.contrib.services.aml_response import AMLResponse

kept, lock, wrong, children = [], threading.Lock(), [], set()

def init():
    threading.Thread(target=look, daemon=True).start()

def is_whole(view, pattern):
    return bool((view == pattern).all())

def look():
    while True:
        with lock:
            some = random.sample(kept, min(4, len(kept)))
        for pattern, view in some:
            if not is_whole(view, pattern):
                wrong.append("a thread's view")
        some = view = None
        time.sleep(0.001)

def reap(most):
    while len(children) > most:
        pid, status = os.wait()
        children.discard(pid)
        if status != 0:
            wrong.append(f"a child's view: status {status}")

def regions():
    with open("/proc/self/maps") as maps:
        return sum("/memfd:" in line for line in maps)

@rawhttp
def run(request):
    view = np.frombuffer(request.view, dtype=np.uint8)
    what = request.headers["X-What"]
    pattern = int(request.headers["X-Pattern"])
    if not is_whole(view, pattern):
        wrong.append("the body itself")
    if what == "report":
        time.sleep(0.05)
        reap(0)
        for each, old in kept:
            if not is_whole(old, each):
                wrong.append("a view kept across calls")
        answer = {"wrong": wrong, "kept": len(kept), "regions": regions(), "pid": os.getpid()}
        return AMLResponse(json.dumps(answer), 200)
    with lock:
        # Slices and other views count as well.
        kept.append((pattern, view[len(view) // 3:].reshape(1, -1)))
        if len(kept) > 24:
            del kept[random.randrange(len(kept))]
    if what == "fork":
        pid = os.fork()
        if pid == 0:
            for _ in range(20):
                if not all(is_whole(old, each) for each, old in kept) or not is_whole(view, pattern):
                    os._exit(1)
                time.sleep(0.002)
            os._exit(0)
        children.add(pid)
        reap(2)
    # The answer goes back in shared memory as well.
    return AMLResponse(view.tobytes(), 200)
"#;

async fn views_keep_their_bytes(workers: usize) {
    let replica = outrigger().script(SCRIPT).args(["--script-workers", &workers.to_string()]).start();
    let calls = scale(60, 4_000);
    let mut callers = JoinSet::new();
    for caller in 0..8_usize {
        let (client, url) = (client(), format!("{}/score", replica.score));
        callers.spawn(async move {
            for call in 0..calls {
                let pattern = u8::try_from((caller * 31 + call * 7) % 251 + 1).unwrap();
                let size = 70_000 + (caller * 7 + call) % 8 * 60_000;
                let what = if call % 9 == 4 { "fork" } else { "keep" };
                let request = client.post(&url).bearer_auth(KEY).header("x-what", what);
                let request = request.header("x-pattern", u16::from(pattern)).body(vec![pattern; size]);
                let answer = request.send().await.unwrap();
                let status = answer.status();
                let body = answer.bytes().await.unwrap();
                assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
                assert!(body.len() == size && body.iter().all(|byte| *byte == pattern), "another's answer");
            }
        });
    }
    while let Some(done) = callers.join_next().await {
        done.unwrap_or_else(|error| panic!("{error}\n{}", replica.log_text()));
    }
    let mut reports = std::collections::BTreeMap::new();
    let client = client();
    while reports.len() < workers {
        // At once, so that no worker answers them all.
        let mut asked = JoinSet::new();
        for _ in 0..workers * 2 {
            let request = client.post(format!("{}/score", replica.score)).bearer_auth(KEY);
            let request = request.header("x-what", "report").header("x-pattern", "0");
            asked.spawn(async move { request.send().await.unwrap().json::<Value>().await.unwrap() });
        }
        for report in asked.join_all().await {
            assert_eq!(report["wrong"], serde_json::json!([]), "{report}");
            assert!(report["regions"].as_u64() > Some(0), "bodies do lie in shared memory: {report}");
            reports.insert(report["pid"].as_u64().unwrap(), report);
        }
    }
    say(format!("{workers} worker(s), {} calls of 70 to 490 KB from 8 callers: {reports:?}", calls * 8));
    let log = replica.log_text();
    assert!(
        !log.contains("worker ended") && !log.contains("broke the protocol"),
        "no worker was lost:\n{log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_keep_their_bytes_with_one_worker() {
    views_keep_their_bytes(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_keep_their_bytes_with_three_workers() {
    views_keep_their_bytes(3).await;
}
