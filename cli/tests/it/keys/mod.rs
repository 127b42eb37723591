//! Keys that `outrigger keys` manages: the command, and the replica that follows.

mod command;
mod following;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use outrigger_testkit::{Launch, ReplicaProcess};
use serde_json::Value;

use crate::support::{ECHO, PATIENCE, client, outrigger};

/// `outrigger keys` with these arguments, of the service that has its state in this directory.
fn keys(state: &Path, arguments: &[&str]) -> Output {
    run(command(state, arguments))
}

fn command(state: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OUTRIGGER_"))
    {
        command.env_remove(name);
    }
    command.arg("keys").args(arguments).env("OUTRIGGER_STATE_DIR", state).stdin(Stdio::null());
    command
}

fn run(mut command: Command) -> Output {
    command.output().unwrap()
}

/// The same, which has to go well; what it wrote to stdout, without the line's end.
fn done(state: &Path, arguments: &[&str]) -> String {
    let output = keys(state, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// The same, which has to fail; what it said.
fn refused(state: &Path, arguments: &[&str]) -> String {
    let output = keys(state, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn listed(state: &Path) -> Vec<Value> {
    let listed: Value = serde_json::from_str(&done(state, &["list", "--json"])).unwrap();
    listed["keys"].as_array().unwrap().clone()
}

/// A replica without keys in its configuration, with these tables, that looks at its files all the time.
fn launch(tables: &str) -> Launch {
    let launch = outrigger().script(ECHO).file("o.toml", tables).args(["--config", "o.toml"]);
    let launch = launch.args(["--auth-key-poll", "20ms", "--auth-key-use", "50ms"]);
    launch.env_remove("OUTRIGGER_AUTH_PRIMARY_KEY").env_remove("OUTRIGGER_AUTH_SECONDARY_KEY")
}

async fn status(replica: &ReplicaProcess, key: &str) -> u16 {
    let request = client().post(format!("{}/score", replica.score)).bearer_auth(key).body("1");
    request.send().await.unwrap().status().as_u16()
}

/// Waits until a key is answered so.
async fn until(replica: &ReplicaProcess, key: &str, expected: u16) {
    let deadline = Instant::now() + PATIENCE;
    while status(replica, key).await != expected {
        assert!(Instant::now() < deadline, "it is not {expected}: {}", replica.log_text());
    }
}
