//! Keys that an issuer has withdrawn, and those that it has not stood by for too long.

use std::time::Instant;

use outrigger_testkit::ReplicaProcess;
use serde_json::{Value, json};

use super::forged::Forger;
use super::{launch, status, until, until_known};
use crate::support::{PATIENCE, metric};

const KNOWN: &str = "outrigger_token_keys{issuer=\"forger\"}";
const DEGRADED: &str = "outrigger_degraded{part=\"issuer\"}";

/// Waits until it does: keys hold a moment before that is told.
async fn shows(replica: &ReplicaProcess, name: &str, value: f64) {
    let deadline = Instant::now() + PATIENCE;
    while metric(replica, name).await != Some(value) {
        assert!(Instant::now() < deadline, "{name} is never {value}: {}", replica.log_text());
    }
}

#[tokio::test]
async fn an_issuer_that_withdraws_all_of_its_keys_has_its_tokens_refused() {
    let forger = Forger::start();
    let mut replica = launch("token", &forger.table()).args(["--tokens-refresh", "50ms"]).start();
    until_known(&replica, "forger", 1.0).await;
    let token = forger.good();
    assert_eq!(status(&replica, &token).await, 200, "{}", replica.log_text());
    // Nothing in it, and nothing that could be used.
    for none in [json!([]), json!([{ "kty": "oct", "k": "c2VjcmV0" }])] {
        forger.say(Some(none));
        until(&replica, &token, 401).await;
        replica.wait_for_text("has no key that anything could be verified by");
        assert_eq!(metric(&replica, KNOWN).await, Some(0.0));
        shows(&replica, DEGRADED, 1.0).await;
        forger.say_own();
        until(&replica, &token, 200).await;
        shows(&replica, DEGRADED, 0.0).await;
    }
    // One that fails says nothing of its keys, and neither does one that has too many.
    let before = metric(&replica, KNOWN).await;
    let failed = "outrigger_token_key_fetches_total{issuer=\"forger\",outcome=\"failed\"}";
    for wrong in [None, Some(json!(vec![json!({}); 101]))] {
        let failures = metric(&replica, failed).await.unwrap_or(0.0);
        forger.say(wrong);
        super::until_metric(&replica, failed, failures + 2.0).await;
        assert_eq!((status(&replica, &token).await, metric(&replica, KNOWN).await), (200, before));
    }
}

#[tokio::test]
async fn keys_of_an_issuer_that_is_away_for_too_long_end() {
    let forger = Forger::start();
    let arguments = ["--tokens-refresh", "50ms", "--tokens-max-age", "2s"];
    let mut replica = launch("token", &forger.table()).args(arguments).start();
    until_known(&replica, "forger", 1.0).await;
    let token = forger.good();
    forger.say(None);
    until(&replica, &token, 401).await;
    replica.wait_for_text("could not be asked for longer than tokens.max_age");
    let refused = "outrigger_auth_refusals_total{reason=\"token_no_keys\"}";
    assert!(metric(&replica, refused).await >= Some(1.0));
    assert_eq!(metric(&replica, KNOWN).await, Some(0.0));
    forger.say_own();
    until(&replica, &token, 200).await;

    // It counts from the last good answer, over a new start too.
    let kept = replica.stop_keeping();
    forger.say(None);
    let file = kept.path().join("state/issuers/forger.json");
    let mut text: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let asked = text["asked"].as_u64().unwrap();
    let again = || launch("token", &forger.table()).env("OUTRIGGER_STATE_DIR", kept.path().join("state"));
    let second = again().args(["--tokens-max-age", "7d"]).start();
    assert_eq!(status(&second, &token).await, 200, "{}", second.log_text());
    drop(second);
    text["asked"] = (asked - 8 * 86_400).into();
    std::fs::write(&file, text.to_string()).unwrap();
    let mut third = again().start();
    third.wait_for_text("are older than tokens.max_age");
    assert_eq!(status(&third, &token).await, 401);
}
