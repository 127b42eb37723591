//! Deletion by correlation id, and by age, as an operator has it done.

use std::process::{Command, Output};

use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::KEY;
use outrigger_testkit::storage::Azurite;
use serde_json::{Value, json};

use super::{collecting, events, objects, until_settled};
use crate::support::{ECHO, client, score};

/// `outrigger collect`, beside a replica.
fn collect(replica: &ReplicaProcess, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.arg("collect").args(arguments).env_clear();
    command.env("OUTRIGGER_ADMIN_LISTEN", &replica.admin).env("OUTRIGGER_AUTH_PRIMARY_KEY", KEY);
    command.current_dir(replica.directory()).output().unwrap()
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

async fn asked(replica: &ReplicaProcess, id: &str) {
    let request = score(replica, json!({ "said": id }).to_string()).header("x-request-id", id);
    let request = request.header("content-type", "application/json");
    assert_eq!(request.send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_asked_is_gone_from_azures_storage() {
    let Some(azurite) = Azurite::found() else { return };
    azurite.create_container("logs");
    let environment: Vec<(&'static str, String)> = azurite.environment().into_iter().collect();
    let launch = environment
        .iter()
        .fold(collecting("request, response"), |launch, (name, value)| launch.env(name, value));
    let launch = launch.env("OUTRIGGER_COLLECT_TO", "az://logs/here").args(["--admin-listen", "127.0.0.1:0"]);
    let replica = launch.script(ECHO).start();
    for id in ["ann", "bob", "cem"] {
        asked(&replica, id).await;
    }
    for collection in ["request", "response"] {
        until_settled(&replica, collection, 3.0).await;
    }
    // What is in blob, and in objects to which more comes.
    let said = done(&collect(&replica, &["delete", "--correlation-id", "ann"]));
    assert!(said.ends_with(" deleted\n") && !said.starts_with('0'), "{said}");
    asked(&replica, "dee").await;
    for collection in ["request", "response"] {
        until_settled(&replica, collection, 4.0).await;
    }
    let folder = tempfile::tempdir().unwrap();
    super::scripts::download("az://logs/here", environment.into_iter(), folder.path()).await;
    let all = objects(folder.path());
    let text: String = all.values().map(|bytes| String::from_utf8_lossy(bytes)).collect();
    assert!(!text.contains("ann"), "{text}");
    for other in ["bob", "cem", "dee"] {
        assert_eq!(text.matches(&format!("\"xrequestid\":\"{other}\"")).count(), 2, "{text}");
    }
    let status = done(&collect(&replica, &["status"]));
    assert!(status.contains("request") && status.contains("done"), "{status}");
    assert!(!status.contains("ann") && !replica.log_text().contains("ann"), "nobody is told whose it was");
    assert!(done(&collect(&replica, &["expire"])).starts_with("0 "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_waits_for_what_cannot_be_read_and_says_what_that_is() {
    let replica = collecting("request").args(["--admin-listen", "127.0.0.1:0"]).script(ECHO).start();
    asked(&replica, "ann").await;
    until_settled(&replica, "request", 1.0).await;
    let torn = replica.directory().join("blob/modelDataCollector/shop/blue/request/torn.jsonl");
    std::fs::write(&torn, "{\"correlationid\":\"ann").unwrap();
    let output = collect(&replica, &["delete", "--correlation-id", "ann", "--timeout", "1s"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("torn.jsonl") && text.contains("is not done within"), "{text}");
    assert!(events_but(&replica, "torn").is_empty());
    let status: Value = serde_json::from_str(&done(&collect(&replica, &["status", "--json"]))).unwrap();
    let id = status["deletions"][0]["id"].as_str().unwrap().to_owned();
    assert!(["waiting", "running"].contains(&status["deletions"][0]["state"].as_str().unwrap()), "{status}");
    // The same is not begun twice.
    let again = done(&collect(&replica, &["delete", "--correlation-id", "ann", "--no-wait"]));
    assert_eq!(again.trim(), id);
    std::fs::remove_file(torn).unwrap();
    done(&collect(&replica, &["delete", "--correlation-id", "ann"]));
    let url = format!("http://{}/collect/deletions/{id}", replica.admin);
    let state: Value = client().get(url).bearer_auth(KEY).send().await.unwrap().json().await.unwrap();
    assert_eq!((&state["state"], state.get("problem")), (&json!("done"), None));
}

/// Objects but those of a name.
fn events_but(replica: &ReplicaProcess, name: &str) -> Vec<String> {
    let mut all = objects(&replica.directory().join("blob"));
    all.retain(|path, _| !path.contains(name));
    all.into_keys().collect()
}

#[tokio::test]
async fn what_is_asked_wrongly_is_refused() {
    let replica = collecting("request").args(["--admin-listen", "127.0.0.1:0"]).script(ECHO).start();
    let post = async |path: &str, body: &str| {
        let url = format!("http://{}{path}", replica.admin);
        client().post(url).bearer_auth(KEY).body(body.to_owned()).send().await.unwrap().status().as_u16()
    };
    for body in [
        "",
        "{}",
        "{\"correlation_id\":\"\"}",
        "{\"correlation_id\":1}",
        "{\"correlation_id\":\"a\",\"b\":1}",
    ] {
        assert_eq!(post("/collect/deletions", body).await, 400, "{body}");
    }
    assert_eq!(
        post("/collect/deletions", &json!({ "correlation_id": "a".repeat(5000) }).to_string()).await,
        400
    );
    assert_eq!(post("/collect/deletions", "{\"correlation_id\":\"nobody\"}").await, 202);
    assert!(events(&replica, "request").is_empty());
    let without = crate::support::outrigger().args(["--admin-listen", "127.0.0.1:0"]).script(ECHO).start();
    let output = collect(&without, &["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing is collected"));
}
