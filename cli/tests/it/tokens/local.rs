//! The replica's own tokens: given for a key, and good for as long as that is.

use std::process::Command;
use std::time::Instant;

use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::KEY;
use reqwest::Method;
use serde_json::{Value, json};

use super::{BOBS_KEY, launch, status, until};
use crate::support::{ECHO, PATIENCE, client, header, metric, outcome, outrigger};

async fn ask(replica: &ReplicaProcess, method: Method, key: &str) -> (u16, Value) {
    let request = client().request(method, format!("{}/token", replica.score)).bearer_auth(key);
    let (status, _, body) = outcome(request.send().await.unwrap()).await;
    (status, body)
}

async fn token(replica: &ReplicaProcess, key: &str) -> String {
    let (status, answer) = ask(replica, Method::POST, key).await;
    assert_eq!(status, 200, "{answer}");
    answer["accessToken"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_key_gets_a_token_that_is_sent_in_its_place() {
    let replica = launch("token", "").args(["--tokens-local"]).start();
    let (code, answer) = ask(&replica, Method::POST, BOBS_KEY).await;
    assert_eq!(code, 200, "{answer}");
    let members: Vec<_> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, ["accessToken", "expiryOn", "refreshAfter", "tokenType"]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let (refresh, end) = (answer["refreshAfter"].as_u64().unwrap(), answer["expiryOn"].as_u64().unwrap());
    assert!(refresh > now + 2000 && refresh < end && end <= now + 3600, "{answer}");
    assert_eq!((end - 720, &answer["tokenType"]), (refresh, &json!("Bearer")));
    let bob = answer["accessToken"].as_str().unwrap();
    assert_eq!(status(&replica, bob).await, 200, "{}", replica.log_text());
    assert_eq!(
        metric(&replica, "outrigger_caller_requests_total{answer=\"granted\",caller=\"bob\"}").await,
        Some(2.0)
    );

    // Keys are good for that alone, and tokens for everything else.
    assert_eq!(status(&replica, BOBS_KEY).await, 401);
    assert_eq!(ask(&replica, Method::POST, bob).await.0, 401);
    assert_eq!(ask(&replica, Method::POST, "wrong-key-0123456789-abcdef").await.0, 401);
    assert_eq!(ask(&replica, Method::GET, BOBS_KEY).await.0, 405);
    // The service's own key gets one, too.
    assert_eq!(token(&replica, KEY).await.split('.').count(), 3);
    let keys = client().get(format!("{}/.well-known/jwks.json", replica.score)).send().await.unwrap();
    assert_eq!(header(&keys, "content-type"), "application/json");
    let keys = outcome(keys).await.2;
    assert_eq!((&keys["keys"][0]["alg"], keys["keys"][0].get("d")), (&json!("EdDSA"), None));
    let log = replica.log_text();
    assert!(!log.contains(bob) && !log.contains(BOBS_KEY));
}

#[tokio::test]
async fn a_token_ends_with_its_time_and_with_its_key() {
    let launch = super::launch("both", "").args(["--tokens-local", "--auth-key-poll", "20ms"]);
    let replica = launch.start();
    let state = replica.directory().join("state");
    let keys = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        let output = command.arg("keys").args(arguments).env("OUTRIGGER_STATE_DIR", &state).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    let made = keys(&["add", "bob", "--show", "--which", "secondary"]);
    until(&replica, &made, 200).await;
    let (of_made, of_other) = (token(&replica, &made).await, token(&replica, BOBS_KEY).await);
    assert_eq!((status(&replica, &of_made).await, status(&replica, &of_other).await), (200, 200));
    keys(&["revoke", "bob", "secondary"]);
    until(&replica, &of_made, 401).await;
    assert_eq!(status(&replica, &of_other).await, 200);
    assert!(metric(&replica, "outrigger_auth_refusals_total{reason=\"token_revoked\"}").await >= Some(1.0));
    // A key that ends soon gets a token that does.
    let short = keys(&["add", "bob", "--show", "--which", "secondary", "--expires", "3s"]);
    let deadline = Instant::now() + PATIENCE;
    let (code, answer) = loop {
        let asked = ask(&replica, Method::POST, &short).await;
        if asked.0 == 200 || replica.log_text().contains("expired_key") {
            break asked;
        }
        assert!(Instant::now() < deadline);
    };
    // On a machine that is slow it has ended before the replica saw it.
    if code == 200 {
        until(&replica, answer["accessToken"].as_str().unwrap(), 401).await;
    }
}

#[tokio::test]
async fn a_callers_rules_hold_for_its_tokens_as_for_its_keys() {
    let more = "[callers.often]\nkey = 'often-s-own-key-0123456789'\nrate = 0.001\nburst = 2\n[callers.never]\nkey = 'never-s-own-key-0123456789'\noperations = ['score']\n";
    let replica = launch("both", more).args(["--tokens-local"]).start();
    let key = "often-s-own-key-0123456789";
    let often = token(&replica, key).await;
    let statuses =
        [status(&replica, &often).await, status(&replica, key).await, status(&replica, &often).await];
    assert_eq!(statuses, [200, 200, 429], "both have the same rate, and getting a token is no call");
    assert_eq!(ask(&replica, Method::POST, "never-s-own-key-0123456789").await.0, 403);
}

#[tokio::test]
async fn tokens_outlast_a_new_start_and_other_replicas_verify_them() {
    let replica = launch("both", "").args(["--tokens-local"]).start();
    let bob = token(&replica, BOBS_KEY).await;
    let other = format!(
        "[tokens.issuers.first]\nissuer = 'outrigger'\njwks_uri = '{}/.well-known/jwks.json'\naudiences = ['ML service']\n",
        replica.score
    );
    // On a system that trusts no authority: what is on this machine needs none.
    let bare = launch("token", &other).env("SSL_CERT_FILE", "/dev/null").env("SSL_CERT_DIR", "/nonexistent");
    let second = bare.start();
    super::until_known(&second, "first", 1.0).await;
    assert_eq!(status(&second, &bob).await, 200, "{}", second.log_text());
    let kept = replica.stop_keeping();
    let again =
        launch("both", "").args(["--tokens-local"]).env("OUTRIGGER_STATE_DIR", kept.path().join("state"));
    assert_eq!(status(&again.start(), &bob).await, 200);
}

#[tokio::test]
async fn without_them_there_is_no_route_and_contradictions_are_mistakes() {
    let replica = outrigger().script(ECHO).start();
    assert_eq!(ask(&replica, Method::POST, KEY).await.0, 404);
    for (tables, arguments, expected) in [
        ("", &["--tokens-local"][..], "`auth.mode = \"key\"` takes no tokens"),
        ("", &["--auth-mode", "token"], "nobody gives any"),
        ("", &["--auth-mode", "both", "--tokens-local", "--auth-enabled=false"], "nobody is asked for one"),
        (
            "[tokens.issuers.a]\nissuer = 'http://a.example'\naudiences = ['x']\n",
            &["--auth-mode", "token"],
            "begins neither with https://",
        ),
        (
            "[tokens.issuers.a]\nissuer = 'https://a.example'\n",
            &["--auth-mode", "token"],
            "tokens for anybody would be taken",
        ),
        (
            "[tokens.issuers.a]\naudiences = ['x']\n",
            &["--auth-mode", "token"],
            "`tokens.issuers.a.issuer`: it is missing",
        ),
        (
            "[tokens.issuers.a]\nissuer = 'https://a.example'\naudiences = ['x']\nalgorithms = ['HS256']\n",
            &["--auth-mode", "token"],
            "there is no `HS256`",
        ),
        (
            "[tokens.issuers.a]\nissuer = 'https://a.example'\naudiences = ['x']\ncaller = 'nobody'\n",
            &["--auth-mode", "token"],
            "there is no [callers.nobody]",
        ),
        (
            "[tokens.issuers.a]\nissuer = 'https://a.example'\naudiences = ['x']\ncallers = ['7=bob', '7=eve']\n[callers.bob]\n[callers.eve]\n",
            &["--auth-mode", "token"],
            "`7` is there twice",
        ),
        (
            "",
            &["--auth-mode", "both", "--tokens-local", "--tokens-skew", "11m"],
            "`tokens.skew` is more than 10m",
        ),
        (
            "",
            &["--auth-mode", "both", "--tokens-local", "--tokens-max-age", "4m"],
            "`tokens.max_age` is shorter than `tokens.refresh`",
        ),
        (
            "[tokens.issuers.local]\nissuer = 'https://a.example'\naudiences = ['x']\n",
            &["--auth-mode", "token"],
            "is no issuer's name",
        ),
        (
            "[tokens.issuers.a]\nissuer = 'https://a.example'\naudience = ['x']\n",
            &["--auth-mode", "token"],
            "did you mean `audiences`",
        ),
    ] {
        let launch = outrigger().script(ECHO).file("o.toml", tables).args(["--config", "o.toml"]);
        let ended = launch.args(arguments.iter().copied()).run();
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}");
        let said: String = ended.log.iter().map(ToString::to_string).collect();
        let said = said.replace("\\\"", "\"");
        assert!(said.contains(expected), "{expected}: {said}");
    }
}
