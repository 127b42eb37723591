//! Clients that go away: what waited for them is taken off the queue, what runs is told, what streams is closed.

use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::KEY;
use reqwest::Client;

use crate::support::{client, outcome, outrigger, score, until_busy as until};

fn both() -> [(&'static str, Client); 2] {
    let two = Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    [("HTTP/1.1", client()), ("HTTP/2", two)]
}

fn call(client: &Client, replica: &ReplicaProcess, body: &'static str) -> reqwest::RequestBuilder {
    client.post(format!("{}/score", replica.score)).bearer_auth(KEY).body(body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_call_is_cancelled_and_a_running_one_is_told() {
    let script = r#"
import time
from outrigger import ctx
def init():
    pass
def run(data):
    print(f"begun {data}")
    while data == "wait" and not ctx.cancelled:
        time.sleep(0.005)
    print(f"over {data}, cancelled: {ctx.cancelled}")
    return data
"#;
    for (version, client) in both() {
        let mut replica = outrigger().script(script).start();
        let first = tokio::spawn(call(&client, &replica, "wait").send());
        until(&replica, 1, 0).await;
        let second = tokio::spawn(call(&client, &replica, "second").send());
        until(&replica, 1, 1).await;
        second.abort();
        let seen = until(&replica, 1, 0).await;
        assert_eq!(seen["cancelled"], 1, "{version}: {seen}");
        first.abort();
        let seen = until(&replica, 0, 0).await;
        replica.wait_for_text("over wait, cancelled: True");
        assert_eq!((&seen["cancelled"], &seen["failed"]), (&2.into(), &0.into()), "{version}: {seen}");
        assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
        assert!(!replica.log_text().contains("begun second"), "{version}: it never began");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_coroutine_is_cancelled() {
    let script = r#"
import asyncio
from outrigger import ctx
def init():
    pass
async def run(data):
    if data == "wait":
        print("begun")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            print(f"task cancelled: {ctx.cancelled}")
            raise
    return data
"#;
    for (version, client) in both() {
        let mut replica = outrigger().script(script).args(["--script-concurrency", "4"]).start();
        let first = tokio::spawn(call(&client, &replica, "wait").send());
        replica.wait_for_text("begun");
        // Another call of the same worker goes on undisturbed.
        assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
        first.abort();
        replica.wait_for_text("task cancelled: True");
        let seen = until(&replica, 0, 0).await;
        assert_eq!((&seen["cancelled"], &seen["failed"]), (&1.into(), &0.into()), "{version}: {seen}");
        assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coroutine_that_is_out_of_time_has_longer_to_end_than_its_neighbours_lives() {
    // A stream has limits of its own, so that one call is out of time and the other is not.
    let script = r#"
import asyncio
done = None
def init():
    pass
async def run(data):
    global done
    if data == "stream":
        done = asyncio.Event()
        return pieces()
    if data != "hang":
        return data
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            # Longer than the grace of a worker that says nothing.
            await asyncio.sleep(2)
            if done.is_set():
                continue
            done.set()
            raise
async def pieces():
    yield b"a"
    await done.wait()
    yield b"b"
"#;
    let flags = ["--script-concurrency", "4", "--script-timeout", "300ms", "--script-task-grace", "60s"];
    let flags = flags.into_iter().chain(["--script-cancel-grace", "1s"]);
    let replica = outrigger().script(script).args(flags).start();
    let mut stream = score(&replica, "stream").send().await.unwrap();
    assert_eq!(stream.chunk().await.unwrap().unwrap(), "a");
    let late = score(&replica, "hang").send().await.unwrap();
    assert_eq!(outcome(late).await.1, "scoring_timeout");
    assert_eq!(stream.chunk().await.unwrap().unwrap(), "b", "the worker lives");
    assert!(stream.chunk().await.unwrap().is_none());

    // One that never ends does end, and the worker with it.
    let flags = ["--script-concurrency", "4", "--script-timeout", "300ms", "--script-task-grace", "400ms"];
    let endless = script.replace("done.is_set()", "True");
    let mut replica = outrigger().script(&endless).args(flags).start();
    let mut stream = score(&replica, "stream").send().await.unwrap();
    assert_eq!(stream.chunk().await.unwrap().unwrap(), "a");
    let late = score(&replica, "hang").send().await.unwrap();
    assert_eq!(outcome(late).await.1, "scoring_timeout");
    assert!(stream.chunk().await.is_err(), "the neighbour's stream breaks off");
    replica.wait_for_text("worker ended");
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generator_is_closed() {
    for kind in ["def", "async def"] {
        let script = format!(
            r#"
import time, asyncio
def init():
    pass
{kind} run(data):
    try:
        while True:
            yield b"x" * 1000
            if data == "slow":
                {wait}
    finally:
        print("generator closed")
"#,
            wait = if kind == "def" { "time.sleep(0.01)" } else { "await asyncio.sleep(0.01)" }
        );
        for (version, client) in both() {
            for body in ["slow", "fast"] {
                let mut replica = outrigger().script(&script).start();
                let mut answer = call(&client, &replica, body).send().await.unwrap();
                assert_eq!(answer.status(), 200);
                assert!(!answer.chunk().await.unwrap().unwrap().is_empty());
                drop(answer);
                replica.wait_for_text("generator closed");
                let seen = until(&replica, 0, 0).await;
                assert_eq!(
                    (&seen["cancelled"], &seen["failed"]),
                    (&1.into(), &0.into()),
                    "{kind} {version} {body}: {seen}"
                );
                let log = replica.log_text();
                assert!(!log.contains("run() raised"), "leaving is no mistake of the script's: {log}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_batch_the_others_are_answered() {
    let script = r#"
import os, time
from outrigger import ctx
def init():
    pass
def run_batch(items):
    print(f"batch of {len(items)}")
    while not os.path.exists("outputs/go"):
        time.sleep(0.005)
    print(f"batch over, cancelled: {ctx.cancelled}")
    return items
"#;
    let args = ["--script-max-batch", "2", "--script-max-delay", "10s"];
    let mut replica = outrigger().script(script).args(args).start();
    let client = client();
    let left = tokio::spawn(call(&client, &replica, "left").send());
    let stays = tokio::spawn(call(&client, &replica, "stays").send());
    replica.wait_for_text("batch of 2");
    left.abort();
    std::fs::create_dir_all(replica.directory().join("app/outputs")).unwrap();
    std::fs::write(replica.directory().join("app/outputs/go"), "").unwrap();
    let (status, _, body) = outcome(stays.await.unwrap().unwrap()).await;
    assert_eq!((status, body), (200, "stays".into()));
    replica.wait_for_text("batch over, cancelled: False");
    until(&replica, 0, 0).await;
}
