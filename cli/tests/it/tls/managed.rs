//! Commands that ask a replica that is managed over TCP, with TLS and without.

use std::process::{Command, Output, Stdio};

use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::KEY;

use super::certificates::Authority;
use super::{asking, with, write};
use crate::support::{ECHO, outrigger};

fn logs(replica: &ReplicaProcess, key: Option<&str>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OUTRIGGER_"))
    {
        command.env_remove(name);
    }
    command.current_dir(replica.directory()).env("OUTRIGGER_STATE_DIR", replica.directory().join("state"));
    command.args(["logs", "--admin-listen", &replica.admin]).args(arguments);
    command.envs(key.map(|key| ("OUTRIGGER_AUTH_PRIMARY_KEY", key)));
    command.stdin(Stdio::null()).output().unwrap()
}

fn shown(output: &Output) -> bool {
    output.status.success() && String::from_utf8_lossy(&output.stdout).contains("ready")
}

fn said(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const TCP: [&str; 2] = ["--admin-listen", "127.0.0.1:0"];
const TLS: [&str; 4] = ["--tls-certificate", "server.pem", "--tls-key", "server.key"];

#[test]
fn logs_are_shown_over_tls_by_the_certificate_that_is_configured_alone() {
    let authority = Authority::new("root");
    let replica = with(&authority.server()).args(TCP).start();
    let sent = logs(&replica, Some(KEY), &TLS);
    assert!(shown(&sent), "{sent:?}");
    let plain = said(&logs(&replica, Some(KEY), &[]));
    assert!(plain.contains("speaks TLS: `tls.certificate` and `tls.listeners`"), "{plain}");
    write(replica.directory(), "other", &authority.server());
    let other = ["--tls-certificate", "other.pem", "--tls-key", "other.key"];
    let other = said(&logs(&replica, Some(KEY), &other));
    assert!(other.contains("only the first certificate in") && other.contains("other.pem"), "{other}");
    assert!(!replica.log_text().contains("\"reason\":"), "no key was sent");

    let clients = Authority::new("clients");
    let strict = asking(&authority.server(), "required", &clients).args(TCP).start();
    let more = ["--tls-client-certificates", "required", "--tls-client-ca", "clients.pem"];
    let strict = said(&logs(&strict, Some(KEY), &[&TLS[..], &more].concat()));
    assert!(strict.contains("asks for a certificate"), "{strict}");
}

#[test]
fn the_services_own_key_is_found_and_else_it_is_said_where_it_is() {
    let keyless = || {
        let launch = outrigger().script(ECHO).args(TCP);
        launch.env_remove("OUTRIGGER_AUTH_PRIMARY_KEY").env_remove("OUTRIGGER_AUTH_SECONDARY_KEY")
    };
    let replica = keyless().start();
    assert!(shown(&logs(&replica, None, &[])), "{:?}", logs(&replica, None, &[]));
    let mut import = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    let file = replica.directory().join("state/keys.toml");
    let kept: toml::Table = toml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    import.args(["keys", "import"]).env("OUTRIGGER_STATE_DIR", replica.directory().join("state"));
    assert!(import.output().unwrap().status.success());
    let hashed = said(&logs(&replica, None, &[]));
    assert!(hashed.contains("are kept as hashes") && hashed.contains("--key-file"), "{hashed}");
    std::fs::write(replica.directory().join("mine"), kept["primary"].as_str().unwrap()).unwrap();
    assert!(shown(&logs(&replica, None, &["--key-file", "mine"])));
    std::fs::write(replica.directory().join("mine"), "two words\n").unwrap();
    assert!(said(&logs(&replica, None, &["--key-file", "mine"])).contains("mine holds no key or token"));
}
