//! Native scripts, in workers and in the replica's own process.

use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess, repository};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::support::{client, outcome, outrigger};

/// The two ways to run a script.
const WORKER: bool = false;
const TRUSTED: bool = true;
const BOTH: [bool; 2] = [WORKER, TRUSTED];

/// Compiles `source` to `library`.
fn cc(source: &Path, library: &Path, flags: &[&str]) {
    std::fs::create_dir_all(library.parent().unwrap()).unwrap();
    let mut command = Command::new("cc");
    command.args(["-O1", "-shared", "-fPIC", "-I"]).arg(repository().join("entry-scripts/native/include"));
    let output = command.arg("-o").arg(library).arg(source).args(flags).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn tests_script() -> PathBuf {
    repository().join("cli/tests/it/native.c")
}

/// Serves a library that lies in the launch's directory.
fn serving(launch: Launch, trusted: bool) -> Launch {
    let launch = launch.args(["--script-native", "app/libscript.so"]);
    if trusted { launch.args(["--script-trusted"]) } else { launch }
}

/// Serves the script of these tests, compiled with `flags`.
fn launch_with(trusted: bool, flags: &[&str]) -> Launch {
    let launch = outrigger();
    cc(&tests_script(), &launch.directory().join("app/libscript.so"), flags);
    serving(launch, trusted)
}

fn launch(trusted: bool) -> Launch {
    launch_with(trusted, &[])
}

/// A request that has the script do what `query` says.
fn ask(replica: &ReplicaProcess, method: Method, query: &str) -> RequestBuilder {
    client().request(method, format!("{}/score?{query}", replica.score)).bearer_auth(KEY)
}

fn post(replica: &ReplicaProcess, query: &str) -> RequestBuilder {
    ask(replica, Method::POST, query)
}

async fn echoes(replica: &ReplicaProcess) {
    let (status, _, body) = outcome(post(replica, "").body("good").send().await.unwrap()).await;
    assert_eq!((status, body), (200, json!("good")), "{}", replica.log_text());
}

async fn observe(replica: &ReplicaProcess, path: &str) -> (u16, Value) {
    let (status, _, body) =
        outcome(client().get(format!("{}{path}", replica.observe)).send().await.unwrap()).await;
    (status, body)
}

fn float32(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

#[tokio::test]
async fn the_examples_answer_in_both_ways() {
    let in_c = repository().join("entry-scripts/native/examples/mean.c");
    // The tests are in target/PROFILE/deps.
    let in_rust =
        std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/libnative_mean.so");
    for (trusted, rust) in BOTH.into_iter().flat_map(|trusted| [(trusted, false), (trusted, true)]) {
        let launch = outrigger();
        let library = launch.directory().join("app/libscript.so");
        if rust {
            std::fs::create_dir_all(library.parent().unwrap()).unwrap();
            std::fs::copy(&in_rust, &library).unwrap();
        } else {
            cc(&in_c, &library, &["-lm"]);
        }
        let mut replica = serving(launch, trusted).start();
        let send = async |body: Vec<u8>| outcome(post(&replica, "").body(body).send().await.unwrap()).await;
        let (status, _, body) = send(float32(&[1.0, 2.0, 6.0])).await;
        assert_eq!((status, body["mean"].as_f64()), (200, Some(3.0)), "trusted {trusted}, rust {rust}");
        // Far above script.region_threshold.
        let (status, _, body) = send(float32(&vec![2.5; 1 << 20])).await;
        assert_eq!((status, body["mean"].as_f64()), (200, Some(2.5)), "trusted {trusted}, rust {rust}");
        let (status, code, body) = send(b"abc".to_vec()).await;
        assert_eq!((status, code.as_str()), (400, "bad_request"));
        assert_eq!(body, json!({"message": "the body must be one or more float32 values"}));
        if rust {
            let answer = post(&replica, "running").body(float32(&vec![4.0; 1 << 18])).send().await.unwrap();
            assert_eq!(answer.headers()["x-values"], "262144");
            assert_eq!(answer.bytes().await.unwrap(), float32(&vec![4.0; 1 << 18]));
            let answer = ask(&replica, Method::GET, "count=3").send().await.unwrap();
            assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (200, "1\n2\n3\n"));
        }
        replica.wait_for_text("ready for float32 values");
        let log = replica.log_text();
        assert_eq!(log.contains("NOT SANDBOXED"), trusted, "{log}");
        assert_eq!(log.contains("workers are confined"), !trusted, "{log}");
    }
}

#[tokio::test]
async fn failures_are_told_apart() {
    for trusted in BOTH {
        let mut replica = launch(trusted).start();
        let (status, code, body) = outcome(post(&replica, "fail").send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), (500, "script_error"));
        assert!(!body.to_string().contains("detail"), "{body}");
        replica.wait_for_text("a detail of the inside");
        let (status, code, body) = outcome(post(&replica, "input").send().await.unwrap()).await;
        assert_eq!(
            (status, code.as_str(), body),
            (400, "bad_request", json!({"message": "say it otherwise"}))
        );
        echoes(&replica).await;
        let busy = observe(&replica, "/busy").await.1;
        assert_eq!((&busy["executing"], &busy["failed"]), (&json!(0), &json!(2)), "{busy}");
    }
}

#[tokio::test]
async fn requests_come_as_they_are_without_the_key() {
    for trusted in BOTH {
        let replica = launch(trusted).start();
        let large = vec![7; 4 << 20];
        let answer = post(&replica, "").body(large.clone()).send().await.unwrap();
        assert!(answer.bytes().await.unwrap() == large, "a large body goes there and back");
        let asked = ask(&replica, Method::GET, "what").header("X-Mine", "a b").send().await.unwrap();
        let text = asked.text().await.unwrap();
        assert!(text.contains("method 0\n") && text.contains("x-mine: a b\n"), "{text}");
        assert!(!text.contains("authorization") && !text.contains(KEY), "{text}");
    }
}

#[tokio::test]
async fn methods_are_those_that_the_library_asks_for() {
    for trusted in BOTH {
        let replica = launch(trusted).args(["--script-args", "all"]).start();
        for (method, number) in [(Method::GET, 0), (Method::POST, 1), (Method::OPTIONS, 2)] {
            let text = ask(&replica, method, "what").send().await.unwrap().text().await.unwrap();
            assert!(text.starts_with(&format!("method {number}\n")), "{text}");
        }
        let head = ask(&replica, Method::HEAD, "what").send().await.unwrap();
        assert_eq!(
            (head.status().as_u16(), head.headers()["content-type"].to_str().unwrap()),
            (200, "text/plain")
        );
        drop(replica);

        let replica = launch(trusted).start();
        assert_eq!(ask(&replica, Method::HEAD, "what").send().await.unwrap().status(), 405);
        let options = ask(&replica, Method::OPTIONS, "what").send().await.unwrap();
        assert_eq!((options.status().as_u16(), options.text().await.unwrap().as_str()), (200, ""));
        drop(replica);

        let replica = launch(trusted).args(["--script-args", "post"]).start();
        let (status, code, _) = outcome(ask(&replica, Method::GET, "what").send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), (405, "method_not_allowed"));
        echoes(&replica).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_wait_for_their_reader_and_hear_when_it_leaves() {
    for trusted in BOTH {
        let mut replica = launch(trusted).args(["--script-stream-window", "64KiB"]).start();
        let text = post(&replica, "stream").send().await.unwrap().text().await.unwrap();
        assert_eq!(text.len(), 2000 * 1000);
        let numbers = text.as_bytes().chunks(1000).map(|piece| std::str::from_utf8(&piece[..7]).unwrap());
        assert!(numbers.map(|number| number.parse::<usize>().unwrap()).eq(0..2000), "in order");
        // Ends broken off, not as if it were complete.
        let broken = post(&replica, "broken").send().await.unwrap();
        assert_eq!(broken.status(), 200);
        assert!(broken.bytes().await.is_err());
        replica.wait_for_text("half way");
        let mut answer = post(&replica, "flood").send().await.unwrap();
        answer.chunk().await.unwrap().unwrap();
        drop(answer);
        replica.wait_for_text("nobody reads");
        echoes(&replica).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_for_too_long_loses_its_stream() {
    for trusted in BOTH {
        let flags = ["--script-stream-window", "64KiB", "--script-stall-timeout", "300ms"];
        let mut replica = launch(trusted).args(flags).start();
        let unread = post(&replica, "flood").send().await.unwrap();
        replica.wait_for_text("nobody reads");
        // There is one worker, or one thread.
        echoes(&replica).await;
        let (_, busy) = observe(&replica, "/busy").await;
        assert_eq!(
            (&busy["cancelled"], &busy["failed"]),
            (&1.into(), &0.into()),
            "trusted {trusted}: {busy}"
        );
        replica.wait_for_text("a client does not read its stream");
        drop(unread);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_hears_that_its_client_has_gone_and_that_its_time_is_over() {
    for trusted in BOTH {
        let flags = ["--script-timeout", "2s", "--script-cancel-grace", "60s"];
        let mut replica = launch(trusted).args(flags).start();
        let request = post(&replica, "patient");
        let call = tokio::spawn(async move { request.send().await.map(|_| ()) });
        replica.wait_for(|line| line["fields"]["message"] == "waiting");
        call.abort();
        replica.wait_for_text("client gone");
        echoes(&replica).await;
        let (status, code, _) = outcome(post(&replica, "patient").send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), (500, "scoring_timeout"));
        replica.wait_for_text("out of time");
        echoes(&replica).await;
    }
}

#[tokio::test]
async fn a_worker_that_crashes_or_hangs_is_replaced() {
    let mut replica = launch(WORKER).args(["--script-timeout", "1s"]).start();
    let (status, code, _) = outcome(post(&replica, "crash").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (500, "worker_lost"));
    replica.wait_for_text("signal 6 (SIGABRT)");
    echoes(&replica).await;
    let (status, code, _) = outcome(post(&replica, "loop").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (500, "scoring_timeout"));
    echoes(&replica).await;
}

#[tokio::test]
async fn a_thread_that_hangs_leaves_the_others_and_is_counted() {
    let launch = launch(TRUSTED).args(["--script-timeout", "1s", "--script-workers", "2"]);
    let go = launch.directory().join("app/go");
    let mut replica = launch.start();
    let (status, code, _) = outcome(post(&replica, "loop").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (500, "scoring_timeout"));
    replica.wait_for_text("its thread cannot be ended");
    for _ in 0..50 {
        echoes(&replica).await;
    }
    let busy = observe(&replica, "/busy").await.1;
    assert_eq!((&busy["slots"], &busy["executing"]), (&json!(2), &json!(1)), "{busy}");
    assert_eq!(observe(&replica, "/ready").await.0, 200);

    let (_, code, _) = outcome(post(&replica, "hold").send().await.unwrap()).await;
    assert_eq!(code, "scoring_timeout");
    replica.wait_for_text("no thread of the native script is left");
    let (status, reason) = observe(&replica, "/ready").await;
    assert_eq!(status, 503);
    assert!(reason.to_string().contains("all 2 threads of the native script are in calls"), "{reason}");

    std::fs::write(go, "").unwrap();
    replica.wait_for_text("has returned");
    assert_eq!(observe(&replica, "/ready").await.0, 200);
    echoes(&replica).await;
}

#[tokio::test]
async fn who_waits_too_long_for_a_thread_is_refused() {
    let launch = launch(TRUSTED).args(["--queue-wait", "300ms"]);
    let go = launch.directory().join("app/go");
    let replica = launch.start();
    // Fast calls in a row, so that the next ones come ahead of their slots.
    for _ in 0..64 {
        echoes(&replica).await;
    }
    let held = tokio::spawn(post(&replica, "hold").send());
    while observe(&replica, "/busy").await.1["executing"] != 1 {}
    let (status, code, _) = outcome(post(&replica, "").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (503, "overloaded"));
    std::fs::write(go, "").unwrap();
    assert_eq!(held.await.unwrap().unwrap().status(), 200);
    echoes(&replica).await;
}

#[tokio::test]
async fn a_library_that_is_not_thread_safe_has_one_thread() {
    let replica = launch(TRUSTED).args(["--script-workers", "3", "--script-args", "serial"]).start();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        calls.spawn(post(&replica, "").body("x").send());
    }
    while let Some(answer) = calls.join_next().await {
        assert_eq!(answer.unwrap().unwrap().status(), 200);
    }
    let busy = observe(&replica, "/busy").await.1;
    assert_eq!((&busy["slots"], &busy["answered"]), (&json!(1), &json!(20)), "{busy}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_in_order_or_breaks_off() {
    for trusted in BOTH {
        let replica = launch(trusted).start();
        echoes(&replica).await;
        let ended = replica.stop();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.text());
        assert!(ended.text().contains("shutdown was here"), "{}", ended.text());

        let mut replica = launch(trusted).args(["--shutdown-drain", "200ms"]).start();
        let request = post(&replica, "patient");
        let call = tokio::spawn(async move { outcome(request.send().await.unwrap()).await });
        replica.wait_for(|line| line["fields"]["message"] == "waiting");
        let ended = replica.stop();
        assert_eq!(ended.status.code(), Some(4), "{}", ended.text());
        let (status, code, _) = call.await.unwrap();
        assert_eq!((status, code.as_str()), (503, "draining"));
    }
    // What does not return ends with the process.
    let mut replica =
        launch(TRUSTED).args(["--shutdown-drain", "200ms", "--script-timeout", "300ms"]).start();
    assert_eq!(outcome(post(&replica, "loop").send().await.unwrap()).await.1, "scoring_timeout");
    replica.wait_for_text("no thread of the native script is left");
    let ended = replica.stop();
    assert!(ended.text().contains("it ends with the process"), "{}", ended.text());
    assert_eq!(ended.status.code(), Some(0), "its caller had an answer: {}", ended.text());
}

#[test]
fn libraries_that_do_not_fit_exit_with_3_and_say_what_to_do() {
    for trusted in BOTH {
        let cases = [
            (
                vec!["-DRUN=something_else"],
                vec![],
                "does not export `outrigger_script_run`",
                "as outrigger_script.h",
            ),
            (vec!["-DABI=0x90000"], vec![], "was made for ABI 9.0", "build it with the outrigger_script.h"),
            (vec![], vec!["--script-args", "refuse"], "no such weights", "outrigger_script_init"),
            (
                vec![],
                vec![
                    "--script-args",
                    "hang",
                    "--script-init-timeout",
                    "300ms",
                    "--script-import-timeout",
                    "300ms",
                ],
                "script.init_timeout",
                "native script: ",
            ),
        ];
        for (flags, args, cause, cure) in cases {
            let ended = launch_with(trusted, &flags).args(args).run();
            let text = ended.text();
            assert_eq!(ended.status.code(), Some(3), "{text}");
            assert!(text.contains(cause) && text.contains(cure), "{cause}, {cure}:\n{text}");
        }
        let ended = serving(outrigger().file("app/other", ""), trusted).run();
        assert_eq!(ended.status.code(), Some(3), "{}", ended.text());
        assert!(ended.text().contains("there is no library at"), "{}", ended.text());
        assert!(ended.text().contains("libscript.so (not there)"), "{}", ended.text());
    }
    let ended = outrigger().script("def init(): pass\n").args(["--script-trusted"]).run();
    assert_eq!(ended.status.code(), Some(2));
    let log = format!("{:?}", ended.log);
    assert!(log.contains("`script.trusted` is for `script.native`"), "{log}");
}

#[tokio::test]
async fn a_worker_needs_no_python_and_finds_libraries_beside_its_own() {
    let launch = outrigger().file("other.c", "int other(void) { return 5; }");
    let root = launch.directory().to_owned();
    cc(&root.join("other.c"), &root.join("kept/libother.so"), &[]);
    let script = std::fs::read_to_string(tests_script()).unwrap();
    let uses = "\nint other(void);\n__attribute__((constructor)) static void use(void) { if (other() != 5) abort(); }\n";
    let launch = launch.file("script.c", script + uses);
    let beside =
        ["-L", root.join("kept").to_str().unwrap(), "-lother", "-Wl,-rpath,$ORIGIN"].map(str::to_owned);
    cc(&root.join("script.c"), &root.join("kept/libscript.so"), &beside.each_ref().map(String::as_str));
    std::fs::create_dir(root.join("app")).unwrap();
    std::os::unix::fs::symlink("../kept/libscript.so", root.join("app/libscript.so")).unwrap();
    let launch = launch.args(["--script-python", "/no/such/python", "--script-host", "/no/such/host"]);
    let replica = serving(launch, WORKER).start();
    echoes(&replica).await;
}
