//! What the tests share: a replica of this build, and a client that carries a key.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::Value;

/// Longest time that something is waited for which has to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A replica of this build, to be started.
pub(crate) fn outrigger() -> Launch {
    Launch::new(env!("CARGO_BIN_EXE_outrigger"))
}

/// A script that gives back what it gets.
pub(crate) const ECHO: &str = "import json\n\ndef init():\n    pass\n\ndef run(data):\n    return data\n";

/// A client.
pub(crate) fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

/// `POST /score` with the primary key.
pub(crate) fn score(replica: &ReplicaProcess, body: impl Into<reqwest::Body>) -> RequestBuilder {
    client().post(format!("{}/score", replica.score)).bearer_auth(KEY).body(body)
}

/// `POST /v2/models/{model}/infer` with the primary key.
pub(crate) fn infer(replica: &ReplicaProcess, model: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
    client().post(format!("{}/v2/models/{model}/infer", replica.score)).bearer_auth(KEY).body(body)
}

/// Status, `outrigger-code`, and the JSON body of an answer.
pub(crate) async fn outcome(response: Response) -> (u16, String, Value) {
    let status = response.status().as_u16();
    let code = header(&response, "outrigger-code");
    let body = response.bytes().await.unwrap();
    let json = serde_json::from_slice(&body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
    (status, code, json)
}

/// A header's text, empty where there is none.
pub(crate) fn header(response: &Response, name: &str) -> String {
    response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

/// The busy signal.
pub(crate) async fn busy(replica: &ReplicaProcess) -> Value {
    outcome(client().get(format!("{}/busy", replica.observe)).send().await.unwrap()).await.2
}

/// A metric's value, by its name with its labels; nothing where there is none.
pub(crate) async fn metric(replica: &ReplicaProcess, name: &str) -> Option<f64> {
    let text =
        client().get(format!("{}/metrics", replica.observe)).send().await.unwrap().text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// Waits until so many calls execute and wait.
pub(crate) async fn until_busy(replica: &ReplicaProcess, executing: u64, queued: u64) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let busy = busy(replica).await;
        if busy["executing"] == executing && busy["queued"] == queued {
            return busy;
        }
        assert!(Instant::now() < deadline, "{executing} and {queued} do not come: {busy}");
    }
}

/// Sends bytes as they are and reads until the server closes.
pub(crate) fn raw(replica: &ReplicaProcess, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(replica.score.trim_start_matches("http://")).unwrap();
    // A server that refuses early may close before everything is written.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// The next good request is answered, and nothing panicked.
pub(crate) async fn still_serves(replica: &ReplicaProcess) {
    let response = score(replica, "\"good\"").send().await.unwrap();
    let (status, _, body) = outcome(response).await;
    assert_eq!((status, body), (200, Value::String("\"good\"".into())), "{}", replica.log_text());
    assert!(!replica.log_text().contains("panicked"), "{}", replica.log_text());
}
