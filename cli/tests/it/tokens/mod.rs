//! Tokens: those of an issuer that we did not write, forged ones, and the replica's own.

mod forged;
mod issuer;
mod listeners;
mod local;
mod withdrawn;

use std::time::Instant;

use outrigger_testkit::oidc::Oidc;
use outrigger_testkit::{Launch, ReplicaProcess};
use serde_json::Value;

use crate::support::{ECHO, PATIENCE, client, metric, outrigger};

/// For whom tokens are to be.
const AUDIENCE: &str = "outrigger-test";
/// Two callers, one of whom has a key, too.
const CALLERS: &str =
    "[callers.bob]\nkey = 'bob-s-own-key-0123456789-abcd'\n[callers.eve]\noperations = ['swagger']\n";
const BOBS_KEY: &str = "bob-s-own-key-0123456789-abcd";

/// A replica that takes tokens of these issuers, and asks them all the time.
fn launch(mode: &str, issuers: &str) -> Launch {
    let text = format!("[tokens]\nretry = '50ms'\n{CALLERS}{issuers}");
    outrigger().script(ECHO).file("o.toml", text).args(["--config", "o.toml", "--auth-mode", mode])
}

/// The table of a real issuer.
fn table(issuer: &Oidc) -> String {
    format!("[tokens.issuers.real]\nissuer = '{}'\naudiences = ['{AUDIENCE}']\n", issuer.url())
}

/// A token of a real issuer for one of its clients.
async fn token(issuer: &Oidc, name: &str, algorithm: &str, audience: &str, seconds: u64) -> String {
    let resource = format!("https://outrigger.test/{algorithm}/{audience}/{seconds}");
    let form = format!("grant_type=client_credentials&scope=score&resource={resource}");
    let request = client().post(format!("{}/token", issuer.url())).body(form);
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    let request = request.basic_auth(name, Some(format!("the-secret-of-{name}")));
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    answer["access_token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

async fn status(replica: &ReplicaProcess, token: &str) -> u16 {
    let request = client().post(format!("{}/score", replica.score)).bearer_auth(token).body("1");
    request.send().await.unwrap().status().as_u16()
}

/// Waits until a token is answered so.
async fn until(replica: &ReplicaProcess, token: &str, expected: u16) {
    let deadline = Instant::now() + PATIENCE;
    while status(replica, token).await != expected {
        assert!(Instant::now() < deadline, "it is not {expected}: {}", replica.log_text());
    }
}

/// Waits until the replica has an issuer's keys.
async fn until_known(replica: &ReplicaProcess, issuer: &str, keys: f64) {
    let name = format!("outrigger_token_keys{{issuer=\"{issuer}\"}}");
    let deadline = Instant::now() + PATIENCE;
    while metric(replica, &name).await != Some(keys) {
        assert!(Instant::now() < deadline, "{}", replica.log_text());
    }
}

/// Waits until a counter has come that far.
async fn until_metric(replica: &ReplicaProcess, name: &str, least: f64) {
    let deadline = Instant::now() + PATIENCE;
    while metric(replica, name).await.is_none_or(|value| value < least) {
        assert!(Instant::now() < deadline, "{name}: {:?}", metric(replica, name).await);
    }
}
