//! `outrigger health`: what images ask with.

use std::process::{Command, Output};

use crate::support::{ECHO, outrigger};

fn health(arguments: &[&str], observe: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command
        .arg("health")
        .args(arguments)
        .env_clear()
        .env("OUTRIGGER_OBSERVE_LISTEN", observe)
        .output()
        .unwrap()
}

#[test]
fn a_replica_is_asked_at_its_configured_address() {
    let launch = outrigger();
    let flag = launch.directory().join("go");
    let script = format!(
        "def init():\n    import os, time\n    while not os.path.exists({flag:?}):\n        time.sleep(0.01)\n\ndef run(data):\n    return data\n"
    );
    let mut replica = launch.script(&script).spawn();
    let observe = replica.observe.trim_start_matches("http://").to_owned();
    let output = health(&[], &observe);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("503"), "{output:?}");
    assert_eq!(health(&["--live"], &observe).status.code(), Some(0));
    std::fs::write(&flag, "").unwrap();
    replica.wait_for(|line| line["fields"]["message"] == "ready");
    let output = health(&[], &observe);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"ready\n"[..]));
    let output = health(&["--url", &format!("{}/", replica.score)], "127.0.0.1:1");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"Healthy\n"[..]));
    assert_eq!(health(&["--url", &format!("{}/nowhere", replica.score)], &observe).status.code(), Some(1));
}

#[test]
fn silence_and_nonsense_are_not_health() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let output = health(&["--timeout", "1"], &address);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    drop(silent);
    let output = health(&[], &address);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&address), "{output:?}");
    assert_eq!(health(&["--url", "ftp://x/"], &address).status.code(), Some(1));
    assert_eq!(health(&[], "nonsense").status.code(), Some(1));
    let replica = outrigger().script(ECHO).start();
    assert_eq!(
        health(&["--url", &format!("{}/score", replica.score)], &address).status.code(),
        Some(1),
        "401"
    );
}
