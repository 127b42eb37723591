//! Whether the upstream is ready and alive, and what follows from that.

use std::io::{BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use outrigger_testkit::Launch;
use outrigger_testkit::http::Head;
use outrigger_testkit::upstream::App;
use serde_json::json;

use super::{control, in_front_of, metric, not_ready, patiently, seen, until_ready, until_seen};
use crate::residency::asked;
use crate::support::{busy, header, outcome, outrigger, score};

fn often(launch: Launch) -> Launch {
    launch.args(["--upstream-probe-period", "20ms"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_ready_when_the_upstream_is() {
    let app = App::start();
    control(&app, "answer/ready/503").await;
    let flags = ["--upstream-ready-path", "/ready", "--upstream-success-threshold", "2"];
    let mut replica = often(in_front_of(&app)).args(flags).spawn();
    replica.wait_for(|line| line["fields"]["message"] == "waiting for the upstream");
    let said = not_ready(&replica).await.unwrap();
    assert!(said.contains("the upstream is not ready") && said.contains("/ready answers 503"), "{said}");
    let (status, code, _) = outcome(score(&replica, "x").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (503, "not_ready"));
    let seen_busy = busy(&replica).await;
    assert_eq!((&seen_busy["ready"], &seen_busy["loading"]), (&json!(false), &json!(true)), "{seen_busy}");
    control(&app, "answer/ready/204").await;
    replica.wait_for(|line| line["fields"]["message"] == "ready");
    until_ready(&replica, true).await;
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
    assert_eq!(metric(&replica, "outrigger_upstream_ready").await, Some(1.0));

    control(&app, "answer/ready/500").await;
    let said = until_ready(&replica, false).await.unwrap();
    assert!(said.contains("/ready answers 500"), "{said}");
    let refused = score(&replica, "x").send().await.unwrap();
    assert_eq!(header(&refused, "retry-after"), "1");
    assert_eq!(header(&refused, "outrigger-retryable"), "true");
    let (status, code, body) = outcome(refused).await;
    assert_eq!((status, code.as_str()), (503, "upstream_unavailable"), "{body}");
    assert_eq!(metric(&replica, "outrigger_upstream_ready").await, Some(0.0));
    assert_eq!(busy(&replica).await["refused"], 1);
    control(&app, "answer/ready/200").await;
    until_ready(&replica, true).await;
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
    assert_eq!(seen(&app).await["requests"], json!(["/score", "/score"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_answer_of_several_takes_nothing_away() {
    let app = App::start();
    let flags = ["--upstream-ready-path", "/ready", "--upstream-failure-threshold", "1000"];
    let replica = in_front_of(&app).args(["--upstream-probe-period", "200ms"]).args(flags).start();
    control(&app, "answer/ready/503").await;
    let before = seen(&app).await["probes"].as_u64().unwrap();
    until_seen(&app, "questions", |seen| seen["probes"].as_u64().unwrap() > before + 3).await;
    // It has answered so several times, and is ready all the same.
    let status = asked(&replica, "/status").await["upstream"].clone();
    assert_eq!((&status["ready"], &status["not_ready_because"]), (&json!(true), &json!(null)), "{status}");
    assert_eq!(not_ready(&replica).await, None);
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_it_is_not_alive_is_said_and_nothing_else() {
    let app = App::start();
    let port = app.address().port().to_string();
    let flags = ["--upstream-live-path", "/live", "--upstream-live-port", &port];
    let mut replica = often(in_front_of(&app)).args(flags).start();
    let status = asked(&replica, "/status").await["upstream"].clone();
    assert_eq!((&status["url"], &status["live"]), (&json!(app.url()), &json!(true)), "{status}");
    control(&app, "answer/live/500").await;
    replica.wait_for(|line| line["fields"]["message"] == "the upstream is not alive");
    assert_eq!(metric(&replica, "outrigger_upstream_live").await, Some(0.0));
    let status = asked(&replica, "/status").await["upstream"].clone();
    assert_eq!((&status["ready"], &status["live"]), (&json!(true), &json!(false)), "{status}");
    let reason = status["not_live_because"].as_str().unwrap();
    assert!(reason.contains("/live answers 500"), "{reason}");
    assert_eq!(not_ready(&replica).await, None);
    control(&app, "answer/live/200").await;
    replica.wait_for(|line| line["fields"]["message"] == "the upstream is alive again");
    assert_eq!(metric(&replica, "outrigger_upstream_live").await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_ends_is_missed_and_found_again_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("app.sock");
    let url = format!("unix:{}", socket.display());
    // It need not be there first.
    let mut replica = often(patiently(outrigger())).args(["--upstream-url", &url]).spawn();
    replica.wait_for(|line| line["fields"]["message"] == "waiting for the upstream");
    let said = not_ready(&replica).await.unwrap();
    assert!(said.contains("there is no socket at unix:"), "{said}");
    let app = App::at_socket(&socket);
    replica.wait_for(|line| line["fields"]["message"] == "ready");
    let (status, _, told) = outcome(score(&replica, "x").send().await.unwrap()).await;
    assert_eq!((status, &told["body"]), (200, &json!("x")), "{told}");
    let host: Vec<_> =
        told["headers"].as_array().unwrap().iter().filter(|header| header[0] == "host").collect();
    assert_eq!(host, [&json!(["host", "localhost"])]);
    drop(app);
    // Before and after it is missed.
    let (status, code, _) = outcome(score(&replica, "x").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (503, "upstream_unavailable"));
    let said = until_ready(&replica, false).await.unwrap();
    assert!(said.contains("nobody listens at unix:"), "{said}");
    let (status, code, _) = outcome(score(&replica, "x").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (503, "upstream_unavailable"));
    let _app = App::at_socket(&socket);
    until_ready(&replica, true).await;
    assert_eq!(score(&replica, "y").send().await.unwrap().status(), 200);
    assert_eq!(busy(&replica).await["executing"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_waits_for_it_says_so_and_ends_when_it_is_told_to() {
    let url = "http://127.0.0.1:1";
    let mut replica =
        often(patiently(outrigger())).args(["--upstream-url", url, "--upstream-initial-delay", "1h"]).spawn();
    crate::devices::until("the reason", async || {
        not_ready(&replica).await.unwrap().contains("the upstream is not ready: it has not been asked yet")
    })
    .await;
    assert_eq!(replica.ended(), None);
    assert_eq!(replica.stop().status.code(), Some(0));
}

/// A server with one thread: while a call is at work in it, it takes no question.
struct Single {
    url: String,
    /// Questions that have come, those without an answer among them.
    asked: Arc<AtomicUsize>,
    /// Ends the call that is at work.
    end: Sender<()>,
}

fn single() -> Single {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (end, ended) = std::sync::mpsc::channel();
    let asked = Arc::new(AtomicUsize::new(0));
    let (ended, is_busy) = (Arc::new(Mutex::new(ended)), Arc::new(AtomicBool::new(false)));
    let questions = Arc::clone(&asked);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let (ended, is_busy, asked) = (Arc::clone(&ended), Arc::clone(&is_busy), Arc::clone(&questions));
            std::thread::spawn(move || {
                let Ok(Some(head)) = Head::read(&mut BufReader::new(&stream)) else { return };
                if !head.first.contains("/ready") {
                    is_busy.store(true, Ordering::SeqCst);
                    ended.lock().unwrap().recv().unwrap();
                    is_busy.store(false, Ordering::SeqCst);
                } else {
                    asked.fetch_add(1, Ordering::SeqCst);
                    if is_busy.load(Ordering::SeqCst) {
                        let _ = stream.read_to_end(&mut Vec::new());
                        return;
                    }
                }
                let _ =
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
            });
        }
    });
    Single { url, asked, end }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_at_work_need_not_answer_and_one_that_says_nothing_for_too_long_is_missed() {
    for (timeout, holds) in [("10m", true), ("300ms", false)] {
        let server = single();
        let flags = ["--upstream-ready-path", "/ready", "--upstream-probe-timeout", "200ms"];
        let launch = often(patiently(outrigger())).args(["--upstream-url", &server.url]).args(flags);
        let replica = launch.args(["--upstream-timeout", timeout]).start();
        // Where a question takes long although nothing is at work, the call comes later.
        let mut call = tokio::spawn(score(&replica, "x").send());
        crate::devices::until("the call", async || {
            if call.is_finished() {
                call = tokio::spawn(score(&replica, "x").send());
            }
            busy(&replica).await["executing"] == 1
        })
        .await;
        if holds {
            let before = server.asked.load(Ordering::SeqCst);
            crate::devices::until("questions", async || server.asked.load(Ordering::SeqCst) > before + 8)
                .await;
            assert_eq!(not_ready(&replica).await, None, "it is at work");
            server.end.send(()).unwrap();
            assert_eq!(call.await.unwrap().unwrap().status(), 200);
        } else {
            let (status, code, _) = outcome(call.await.unwrap().unwrap()).await;
            assert_eq!((status, code.as_str()), (500, "scoring_timeout"));
            let said = until_ready(&replica, false).await.unwrap();
            assert!(said.contains("has not answered within"), "{said}");
            server.end.send(()).unwrap();
            until_ready(&replica, true).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_liveness_route_that_hangs_holds_nothing_up() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let app = App::start();
    let flags =
        ["--upstream-ready-path", "/ready", "--upstream-live-path", "/live", "--upstream-live-port", &port];
    // Nobody takes up what is asked there, for ten minutes.
    let replica = often(in_front_of(&app)).args(flags).start();
    control(&app, "answer/ready/500").await;
    until_ready(&replica, false).await;
    control(&app, "answer/ready/200").await;
    until_ready(&replica, true).await;
    drop(server);
}
