//! Many crashes leave nothing behind: descriptors, processes, shared memory, control groups, threads.

use std::time::{Duration, Instant};

use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::KEY;
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::proof::{Held, fork_server, memory, say, scale, signal};
use crate::support::{client, outcome, outrigger};

const WORKERS: usize = 2;
/// Longer than anything here takes; who waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The body's first byte says how the worker ends; the rest is there to be above or below `script.region_threshold`.
const SCRIPT: &str = r#"
import ctypes, os, signal, sys, threading, time

def init():
    pass

def run(data: memoryview):
    how = chr(data[0])
    if how == "e":
        os._exit(7)
    if how == "s":
        ctypes.string_at(0)
    if how == "k":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "a":
        os.abort()
    if how == "t":
        threading.Thread(target=os._exit, args=(8,)).start()
        time.sleep(60)
    if how == "f":
        # A child with a view of the body, in the worker's process group.
        if os.fork() == 0:
            time.sleep(60)
        os._exit(9)
    if how == "g":
        # A stream that ends in the middle.
        return broken(data)
    if how == "c":
        # What the worker talks to the replica over.
        os.closerange(3, 256)
        return "nobody hears"
    if how == "x":
        # No crash: a thread that leaves does not take the worker along.
        thread = threading.Thread(target=sys.exit, args=(3,))
        thread.start()
        thread.join()
    if how == "l":
        return bytes(data).decode()
    return len(data)

def broken(data):
    yield b"x" * 100_000
    os._exit(10)
"#;

/// Crashes, and two that are none. Sizes alternate around the threshold.
const WAYS: &[u8] = b"eskatfgxesklc";

async fn crash(url: String, client: reqwest::Client, number: usize) -> (u8, Option<(u16, String)>) {
    let how = WAYS[number % WAYS.len()];
    let size = if number.is_multiple_of(2) { 100 } else { 150_000 };
    let mut body = vec![b'.'; size];
    body[0] = how;
    let answer = client.post(url).bearer_auth(KEY).body(body).send().await.unwrap();
    let status = answer.status().as_u16();
    let code = crate::support::header(&answer, "outrigger-code");
    // A stream that broke off has no whole body.
    (how, answer.bytes().await.ok().map(|_| (status, code)))
}

/// Crashes workers so many times from several callers at once.
async fn crashes(replica: &ReplicaProcess, from: usize, count: usize) {
    let client = client();
    let mut callers = JoinSet::new();
    for caller in 0..WORKERS * 2 {
        let (client, url) = (client.clone(), format!("{}/score", replica.score));
        callers.spawn(async move {
            for number in (from + caller..from + count).step_by(WORKERS * 2) {
                let (how, outcome) = crash(url.clone(), client.clone(), number).await;
                let outcome = outcome.as_ref().map(|(status, code)| (*status, code.as_str()));
                let expected = match how {
                    b'x' | b'l' => Some((200, "")),
                    b'g' => None,
                    _ => Some((500, "worker_lost")),
                };
                assert_eq!(outcome, expected, "{}", char::from(how));
            }
        });
    }
    while let Some(done) = callers.join_next().await {
        done.unwrap();
    }
}

/// Ends every worker once more, so that all are equally new, and counts what is held when all are back.
async fn settled(replica: &ReplicaProcess, expected: Option<&Held>) -> Held {
    let status = async || {
        let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        let url = format!("http://{}/status", replica.admin);
        outcome(client.get(url).bearer_auth(KEY).send().await.unwrap()).await.2
    };
    let pids = async || -> Vec<u32> {
        let status = status().await;
        let workers = status["workers"].as_array().unwrap().iter();
        workers.map(|worker| worker["pid"].as_u64().unwrap() as u32).filter(|pid| *pid > 0).collect()
    };
    let deadline = Instant::now() + PATIENCE;
    let all = async |old: &[u32]| loop {
        let new = pids().await;
        if new.len() == WORKERS && new.iter().all(|pid| !old.contains(pid)) {
            return new;
        }
        assert!(Instant::now() < deadline, "workers do not come back; the log:\n{}", replica.log_text());
    };
    let old = all(&[]).await;
    for pid in &old {
        signal(*pid, Signal::KILL);
    }
    all(&old).await;
    // What has ended is reaped, and its control group removed, a moment later; a group that still held something goes when the next
    // one is made.
    let mut held = Held::by(replica);
    for _ in 0..500 {
        if held.zombies == 0
            && held.groups <= WORKERS
            && expected.is_none_or(|expected| held.is_at_most(expected))
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        held = Held::by(replica);
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_leave_nothing_behind() {
    let replica = outrigger()
        .script(SCRIPT)
        .args(["--script-workers", "2", "--script-breaker=false"])
        .args(["--admin-listen", "127.0.0.1:0"])
        .start();
    crashes(&replica, 0, WAYS.len() * 4).await;
    let before = settled(&replica, None).await;
    let resident = |replica: &ReplicaProcess| {
        let server = fork_server(replica).expect("a fork-server");
        (memory(replica.pid(), "VmRSS"), memory(server, "VmRSS"))
    };
    let (server, resident_before) = (fork_server(&replica), resident(&replica));
    let count = scale(1_200, 12_000);
    let begun = Instant::now();
    crashes(&replica, 0, count).await;
    let took = begun.elapsed();
    let after = settled(&replica, Some(&before)).await;
    let resident_after = resident(&replica);
    say(format!("{count} calls, {} of 13 ways crash, in {took:.1?}", WAYS.len() - 2));
    say(format!("before: {before:?}, resident KiB of replica and fork-server {resident_before:?}"));
    say(format!("after:  {after:?}, resident KiB of replica and fork-server {resident_after:?}"));
    assert!(after.is_at_most(&before), "something is left");
    assert_eq!(fork_server(&replica), server, "it is the same fork-server");
    // Allocators keep what they had at the busiest moment; what leaks with each crash would be more.
    assert!(resident_after.0 < resident_before.0 + 64 * 1024, "the replica has grown");
    assert!(resident_after.1 < resident_before.1 + 32 * 1024, "the fork-server has grown");
    let ended = replica.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.text());
    assert!(!ended.text().contains("panicked"), "{}", ended.text());
}
