//! `outrigger logs`: the last lines of a replica and of its script, as they are kept.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::KEY;
use serde_json::Value;

use super::is_line_of;
use crate::support::{client, outcome, outrigger, score};

const SCRIPT: &str = "
import logging

def init():
    pass

def run(data):
    print('asked ' + data)
    logging.getLogger('mine').warning('warned ' + data)
    if data == 'bad':
        raise ValueError('no')
    return data
";

fn command(replica: &ReplicaProcess, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.arg("logs").args(arguments).env("OUTRIGGER_STATE_DIR", replica.directory().join("state"));
    command.stdin(Stdio::null());
    command
}

fn asked(replica: &ReplicaProcess, arguments: &[&str]) -> Output {
    command(replica, arguments).output().unwrap()
}

fn lines(output: &Output) -> Vec<String> {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout.clone()).unwrap().lines().map(str::to_owned).collect()
}

async fn call(replica: &ReplicaProcess, id: &str, body: &'static str) {
    drop(score(replica, body).header("x-request-id", id).send().await.unwrap().bytes().await);
}

#[tokio::test]
async fn lines_of_replica_and_script_are_found_by_their_request() {
    let mut replica = outrigger().script(SCRIPT).start();
    call(&replica, "one", "good").await;
    call(&replica, "two & more", "bad").await;
    replica.wait_for(|line| is_line_of(line, "two & more"));
    let said = |output: &Output| -> Vec<String> {
        let parsed = lines(output).into_iter().map(|line| serde_json::from_str::<Value>(&line).unwrap());
        parsed.map(|line| line["fields"]["message"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(said(&asked(&replica, &["--request-id", "one"])), ["asked good", "warned good"]);
    let two = said(&asked(&replica, &["--request-id", "two & more"]));
    assert_eq!(two[..2], ["asked bad", "warned bad"]);
    assert!(two[2].starts_with("run() raised") && two[3].starts_with("POST /score 500"), "{two:?}");
    let severe = said(&asked(&replica, &["--level", "warn", "--source", "script"]));
    assert_eq!(severe, ["warned good", "warned bad"]);
    let all = said(&asked(&replica, &[]));
    assert!(all.iter().any(|line| line == "ready") && all.len() > 6, "{all:?}");
    assert_eq!(said(&asked(&replica, &["-n", "2"])), all[all.len() - 2..]);

    let json = lines(&asked(&replica, &["--request-id", "one", "--json"]));
    let line: Value = serde_json::from_str(&json[1]).unwrap();
    assert_eq!(
        (&line["level"], &line["source"], &line["request"]),
        (&"warn".into(), &"script".into(), &"one".into())
    );
    assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
}

#[tokio::test]
async fn lines_are_followed_until_the_replica_ends() {
    let replica = outrigger().script(SCRIPT).start();
    call(&replica, "before", "first").await;
    let mut following =
        command(&replica, &["--follow", "--source", "script"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut read = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut next = || read.next().unwrap().unwrap();
    assert!(next().contains("asked first"), "what was there before");
    assert!(next().contains("warned first"));
    call(&replica, "after", "second").await;
    let line = next();
    assert!(line.contains("asked second") && line.contains("\"request\":\"after\""), "{line}");
    next();
    replica.signal("TERM");
    assert!(following.wait().unwrap().success(), "it ends with the replica");
}

#[tokio::test]
async fn only_administrators_see_the_log_and_little_of_it_is_kept_if_so_wanted() {
    let replica =
        outrigger().script(SCRIPT).args(["--admin-listen", "127.0.0.1:0", "--log-kept", "0B"]).start();
    let url = format!("http://{}/logs", replica.admin);
    assert_eq!(client().get(&url).send().await.unwrap().status(), 401);
    let none = client().get(&url).bearer_auth(KEY).send().await.unwrap();
    let (status, code, body) = outcome(none).await;
    assert_eq!((status, code.as_str()), (404, "not_found"));
    assert!(body.to_string().contains("log.kept"), "{body}");
    let listen = ["--admin-listen", replica.admin.as_str()];
    let output = command(&replica, &listen).env("OUTRIGGER_AUTH_PRIMARY_KEY", KEY).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("log.kept"), "{text}");
    let text = String::from_utf8_lossy(&asked(&replica, &listen).stderr).into_owned();
    assert!(text.contains("OUTRIGGER_AUTH_PRIMARY_KEY"), "{text}");
    let text = String::from_utf8_lossy(&asked(&replica, &[]).stderr).into_owned();
    assert!(text.contains("is the replica running"), "{text}");
}
