//! Tokens beside certificates of clients, and on the admin listener.

use std::process::{Command, Stdio};

use outrigger_testkit::replica::KEY;
use serde_json::Value;

use super::forged::Forger;
use super::{BOBS_KEY, launch, status};
use crate::support::{ECHO, client, metric, outcome, outrigger};
use crate::tls::certificates::Authority;
use crate::tls::{Caller, asking, over_tls};

#[tokio::test]
async fn a_certificate_says_who_calls_beside_tokens_and_gets_none() {
    let (authority, clients) = (Authority::new("root"), Authority::new("clients"));
    let tables = "[callers.jobs]\ncertificate = 'dns:jobs.example'\n[callers.bob]\nkey = 'bob-s-own-key-0123456789-abcd'\n";
    let mut replica = asking(&authority.server(), "optional", &clients)
        .file("callers.toml", tables)
        .args(["--config", "callers.toml", "--auth-mode", "token", "--tokens-local"])
        .start();
    let url = over_tls(&replica.score);
    let pair = clients.client(&["jobs.example"]);
    let jobs = Caller::showing(&authority, &pair).client();
    let scored = jobs.post(format!("{url}/score")).body("x").send().await.unwrap();
    assert_eq!(scored.status(), 200, "{}", replica.log_text());
    // A token ends with a key, and here is none that it could end with.
    let asked = jobs.post(format!("{url}/token")).header("x-request-id", "jobs").send().await.unwrap();
    let (code, word, answer) = outcome(asked).await;
    assert_eq!((code, word.as_str()), (401, "unauthenticated"), "{answer}");
    assert!(answer["message"].as_str().unwrap().starts_with("a key or token is needed"), "{answer}");
    let line =
        replica.wait_for(|line| line["fields"]["request"] == "jobs" && line["fields"]["reason"].is_string());
    assert_eq!(
        (&line["fields"]["reason"], &line["fields"]["operation"]),
        (&"no_header".into(), &"token".into())
    );
    let refused = "outrigger_auth_refusals_total{reason=\"no_header\"}";
    assert_eq!(metric(&replica, refused).await, Some(1.0));
    let with_key = jobs.post(format!("{url}/token")).bearer_auth(BOBS_KEY).send().await.unwrap();
    let token = outcome(with_key).await.2["accessToken"].as_str().unwrap().to_owned();
    // What is in the header goes before the certificate.
    let scored = jobs.post(format!("{url}/score")).bearer_auth(&token).body("x").send().await.unwrap();
    assert_eq!(scored.status(), 200);
    for (caller, count) in [("jobs", 2.0), ("bob", 2.0)] {
        let granted = format!("outrigger_caller_requests_total{{answer=\"granted\",caller=\"{caller}\"}}");
        assert_eq!(metric(&replica, &granted).await, Some(count), "{caller}");
    }
}

#[tokio::test]
async fn management_over_tcp_takes_tokens_where_keys_are_not_taken() {
    let replica = launch("token", "").args(["--tokens-local", "--admin-listen", "127.0.0.1:0"]).start();
    let admin = format!("http://{}/status", replica.admin);
    let asks =
        async |sent: &str| client().get(&admin).bearer_auth(sent).send().await.unwrap().status().as_u16();
    let token = async |key: &str| {
        let request = client().post(format!("{}/token", replica.score)).bearer_auth(key);
        outcome(request.send().await.unwrap()).await.2["accessToken"].as_str().unwrap().to_owned()
    };
    let (service, bob) = (token(KEY).await, token(BOBS_KEY).await);
    assert_eq!((asks(&service).await, asks(&bob).await, asks(KEY).await), (200, 403, 401));

    let logs = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        command.args(["logs", "--auth-mode", "token", "--admin-listen", &replica.admin]).args(arguments);
        command.env("OUTRIGGER_STATE_DIR", replica.directory().join("state"));
        command.stdin(Stdio::null()).output().unwrap()
    };
    let refused = logs(&[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("takes tokens alone (auth.mode)"), "{said}");
    let file = replica.directory().join("token");
    std::fs::write(&file, format!("{service}\n")).unwrap();
    let shown = logs(&["--key-file", file.to_str().unwrap()]);
    assert!(shown.status.success(), "{shown:?}");
}

#[tokio::test]
async fn what_could_not_be_reached_or_used_where_tokens_alone_are_taken_is_said() {
    let forger = Forger::start();
    let table = forger.table();
    let tcp = ["--auth-mode", "token", "--admin-listen", "127.0.0.1:0"];
    let unreachable = |tables: &str| {
        let launch = outrigger().script(ECHO).file("o.toml", tables).args(["--config", "o.toml", "--check"]);
        let ended = launch.args(tcp).run();
        let said: String = ended.log.iter().map(ToString::to_string).collect();
        (ended.status.code() == Some(2)
            && (ended.text() + &said).contains("no token or certificate is of a caller who may manage"))
        .then_some(())
        .is_some()
    };
    assert!(unreachable(&table));
    assert!(unreachable(&format!("{table}[callers.bob]\n")));
    assert!(!unreachable(&format!("{table}[callers.bob]\noperations = ['status']\n")));
    assert!(!unreachable(&format!("{table}caller = 'primary'\n")));
    // A key that nothing is to be had for.
    let replica = launch("token", &table).start();
    let said = "`callers.bob.key` is good for nothing";
    assert!(replica.log_text().contains(said), "{}", replica.log_text());
    assert_eq!(status(&replica, BOBS_KEY).await, 401);
    let lines = replica.log_text();
    let warned = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    assert!(
        warned
            .into_iter()
            .any(|line| line["level"] == "WARN" && line.to_string().contains("callers.bob.key"))
    );
}
