//! A replica in front of servers that are not ours: FastAPI on uvicorn, mosec, and a socket that does what no server should.

mod calls;
mod cancelled;
mod faults;
mod health;
mod models;
mod slots;
mod streams;

use std::time::Instant;

use outrigger_testkit::replica::KEY;
use outrigger_testkit::upstream::App;
use outrigger_testkit::{Launch, ReplicaProcess};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::Value;

use crate::support::{PATIENCE, client, metric, outcome, outrigger};

/// Limits of time that no call meets which is not about one, however slow the machine.
fn patiently(launch: Launch) -> Launch {
    let limits =
        ["TIMEOUT", "CONNECT_TIMEOUT", "PAUSE_TIMEOUT", "STALL_TIMEOUT", "GAP_TIMEOUT", "PROBE_TIMEOUT"];
    limits.iter().fold(launch, |launch, limit| launch.env(&format!("OUTRIGGER_UPSTREAM_{limit}"), "10m"))
}

/// A replica in front of the application, of which all below `/app/` is passed on.
fn in_front_of(app: &App) -> Launch {
    patiently(outrigger()).args(["--upstream-url", &app.url(), "--upstream-paths", "/app/*"])
}

/// A request of a path that is passed on, with the primary key.
fn pass(replica: &ReplicaProcess, path: &str) -> RequestBuilder {
    client().request(Method::POST, format!("{}{path}", replica.score)).bearer_auth(KEY)
}

/// A client of each version.
fn both() -> [(&'static str, Client); 2] {
    let two = Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    [("HTTP/1.1", client()), ("HTTP/2", two)]
}

/// What the application has seen, asked of itself.
async fn seen(app: &App) -> Value {
    outcome(client().get(format!("{}/control/seen", app.url())).send().await.unwrap()).await.2
}

/// Waits until it has seen something.
async fn until_seen(app: &App, what: &str, is_there: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = seen(app).await;
        if is_there(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "{what} does not come: {seen}");
    }
}

/// Waits until a caller of that gate is seen to have left.
async fn until_left(app: &App, gate: &str) {
    until_seen(app, "a disconnect", |seen| seen["disconnects"].as_array().unwrap().contains(&gate.into()))
        .await;
}

/// Has it do something.
async fn control(app: &App, what: &str) {
    let answer = client().post(format!("{}/control/{what}", app.url())).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{what}");
}

/// What `/ready` says: nothing while it is.
async fn not_ready(replica: &ReplicaProcess) -> Option<String> {
    let answer = client().get(format!("{}/ready", replica.observe)).send().await.unwrap();
    let is_ready = answer.status() == 200;
    let text = answer.text().await.unwrap();
    (!is_ready).then_some(text)
}

/// Waits until it says so.
async fn until_ready(replica: &ReplicaProcess, ready: bool) -> Option<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = not_ready(replica).await;
        if said.is_none() == ready {
            return said;
        }
        assert!(Instant::now() < deadline, "{said:?}\n{}", replica.log_text());
    }
}
