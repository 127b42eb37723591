//! Slots are taken for exactly as long as the upstream works, and what ends a call early ends it there too.

use outrigger_testkit::upstream::App;
use reqwest::Client;
use serde_json::json;

use super::{control, in_front_of, metric, pass, seen, until_left, until_seen};
use crate::devices::until;
use crate::support::{busy, header, outcome, score, until_busy};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_upstream_never_has_more_calls_than_slots() {
    let app = App::start();
    let replica = in_front_of(&app).args(["--upstream-slots", "3"]).start();
    let calls: Vec<_> =
        (0..24).map(|_| tokio::spawn(pass(&replica, "/app/wait/a").body("x").send())).collect();
    until_busy(&replica, 3, 21).await;
    until_seen(&app, "three calls", |seen| seen["running"] == 3).await;
    control(&app, "open/a").await;
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    let busy = until_busy(&replica, 0, 0).await;
    assert_eq!((&busy["answered"], &busy["failed"]), (&json!(24), &json!(0)), "{busy}");
    // A slot is free when its answer is here, so that one at a time never waits.
    for _ in 0..50 {
        assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
    }
    let seen = seen(&app).await;
    assert_eq!((&seen["most"], &seen["running"]), (&json!(3), &json!(0)), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses() {
    let app = App::start();
    let replica = in_front_of(&app).args(["--queue-items", "1"]).start();
    let calls = [(); 2].map(|()| tokio::spawn(pass(&replica, "/app/wait/a").send()));
    until_busy(&replica, 1, 1).await;
    let refused = pass(&replica, "/app/wait/a").send().await.unwrap();
    assert!(!header(&refused, "retry-after").is_empty());
    let (status, code, body) = outcome(refused).await;
    assert_eq!((status, code.as_str()), (503, "overloaded"), "{body}");
    control(&app, "open/a").await;
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(seen(&app).await["most"], 1);
}

/// Times of waiting, each twice as long: on some machine the first is over before a call has come as far as it is to come.
fn longer() -> impl Iterator<Item = u64> {
    (0..7).map(|number| 500 << number)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_is_over_ends_the_call_there_too() {
    let app = App::start();
    let replica = in_front_of(&app).start();
    for limit in longer() {
        let call = pass(&replica, "/app/wait/deadline").header("x-request-deadline-ms", limit);
        let (status, code, body) = outcome(call.send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), (504, "deadline_exceeded"), "{body}");
        if seen(&app).await["requests"] != json!([]) {
            break;
        }
    }
    until_left(&app, "deadline").await;
    let busy = until_busy(&replica, 0, 0).await;
    assert_eq!(busy["cancelled"], 0, "{busy}");
    assert!(busy["failed"].as_u64().unwrap() >= 1, "{busy}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_limit_that_is_over_ends_the_call_there_too() {
    let app = App::start();
    let replica = in_front_of(&app).args(["--upstream-timeout", "1500ms"]).start();
    // It begins when the request is sent, so that it always gets there.
    let late = pass(&replica, "/app/wait/limit").body("x").send().await.unwrap();
    assert_eq!(header(&late, "x-ms-run-function-failed"), "True");
    let (status, code, body) = outcome(late).await;
    assert_eq!((status, code.as_str()), (500, "scoring_timeout"), "{body}");
    assert_eq!(body["message"], "Scoring timeout after 1500 ms");
    until_left(&app, "limit").await;
    until_busy(&replica, 0, 0).await;
    let failures = metric(&replica, "outrigger_upstream_failures_total{code=\"scoring_timeout\"}").await;
    assert_eq!(failures, Some(1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_is_seen_to_leave() {
    let app = App::start();
    let replica = in_front_of(&app).start();
    let two = Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for (number, (gate, client)) in [("one", crate::support::client()), ("two", two)].into_iter().enumerate()
    {
        let call = |path: String| {
            let key = outrigger_testkit::replica::KEY;
            tokio::spawn(client.post(format!("{}{path}", replica.score)).bearer_auth(key).body("x").send())
        };
        let running = call(format!("/app/wait/{gate}"));
        until_seen(&app, "the call", |seen| seen["running"] == 1).await;
        let waiting = call("/app/wait/never-begun".into());
        until_busy(&replica, 1, 1).await;
        waiting.abort();
        until_busy(&replica, 1, 0).await;
        running.abort();
        until_left(&app, gate).await;
        let busy = until_busy(&replica, 0, 0).await;
        assert_eq!((&busy["cancelled"], &busy["failed"]), (&json!(2 * (number + 1)), &json!(0)), "{busy}");
        assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
    }
    let seen = seen(&app).await;
    assert!(!seen["requests"].to_string().contains("never-begun"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_finishes_what_was_accepted() {
    let app = App::start();
    let replica = in_front_of(&app).start();
    let calls = [(); 2].map(|()| tokio::spawn(pass(&replica, "/app/wait/a").send()));
    let mut stream = None;
    until_busy(&replica, 1, 1).await;
    replica.signal("TERM");
    crate::devices::until("draining", async || busy(&replica).await["draining"] == true).await;
    control(&app, "open/a").await;
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    let ended = replica.wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.text());

    // What takes longer than it may is told so, and the upstream too.
    let flags = ["--shutdown-drain", "100ms", "--upstream-slots", "2"];
    let replica = in_front_of(&app).args(flags).start();
    let waits = tokio::spawn(pass(&replica, "/app/wait/b").send());
    let mut streams = pass(&replica, "/app/events/c").send().await.unwrap();
    control(&app, "open/c0").await;
    assert_eq!(streams.chunk().await.unwrap().unwrap(), "data: 0\n\n");
    until_busy(&replica, 2, 0).await;
    until_seen(&app, "both", |seen| seen["running"] == 2).await;
    replica.signal("TERM");
    let (status, code, _) = outcome(waits.await.unwrap().unwrap()).await;
    assert_eq!((status, code.as_str()), (503, "draining"));
    stream.replace(streams.chunk().await.is_err());
    assert_eq!(stream, Some(true), "a stream does not end as if it were complete");
    until_left(&app, "b").await;
    let ended = replica.wait();
    assert_eq!(ended.status.code(), Some(4), "{}", ended.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_at_once_have_their_own_answers() {
    let app = App::start();
    let replica = in_front_of(&app).args(["--upstream-slots", "8", "--upstream-idle-timeout", "1h"]).start();
    let body = |number: usize| format!("{number} {}", "x".repeat(number * 100));
    let calls: Vec<_> = (0..200).map(|number| tokio::spawn(score(&replica, body(number)).send())).collect();
    for (number, call) in calls.into_iter().enumerate() {
        let told = outcome(call.await.unwrap().unwrap()).await.2;
        assert_eq!(told["body"], body(number), "{number}");
    }
    let seen = seen(&app).await;
    assert!(seen["most"].as_u64().unwrap() <= 8, "{seen}");
    assert!(metric(&replica, "outrigger_upstream_connects_total").await.unwrap() < 100.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_come_and_go_leave_nothing_behind() {
    let app = App::start();
    let launch = in_front_of(&app).args(["--upstream-slots", "4"]);
    let replica = launch.args(["--upstream-idle-timeout", "1h"]).start();
    let paths = ["/app/wait/a", "/app/echo", "/app/bytes/3000000", "/app/status/500"];
    let calls: Vec<_> = (0..160)
        .map(|number| {
            let call = pass(&replica, paths[number % paths.len()]).body("x".repeat(number * 20_000));
            let call = tokio::spawn(async move { call.send().await?.bytes().await });
            // At once, or somewhere on the way.
            let end = call.abort_handle();
            tokio::spawn(async move {
                for _ in 0..number * number {
                    tokio::task::yield_now().await;
                }
                end.abort();
            });
            call
        })
        .collect();
    for call in calls {
        let _ = call.await;
    }
    control(&app, "open/a").await;
    until_busy(&replica, 0, 0).await;
    until_seen(&app, "the end", |seen| seen["running"] == 0).await;
    let here = metric(&replica, "outrigger_upstream_connections").await.unwrap();
    assert!(here <= 4.0, "{here}");
    for _ in 0..8 {
        assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
    }
    // What is still held goes with the connections that callers have let go of.
    for held in ["outrigger_body_bytes", "outrigger_answer_bytes"] {
        until("an end of what is held", async || metric(&replica, held).await == Some(0.0)).await;
    }
    assert!(!replica.log_text().contains("panicked"), "{}", replica.log_text());
}
