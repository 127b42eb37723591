//! The rule about listening beyond loopback, through the executable. Its table is in `runtime/src/config/exposure.rs`.

use outrigger_testkit::Launch;

use super::certificates::Authority;
use super::{asking, with};
use crate::support::{ECHO, outrigger};

const ALL: [&str; 2] = ["--score-listen", "0.0.0.0:0"];

fn refused(launch: Launch, part: &str) {
    let ended = launch.args(ALL).run();
    assert_eq!(ended.status.code(), Some(2), "{}", ended.text());
    assert!(ended.text().contains(part), "{part} not in {}", ended.text());
}

/// It starts, and warns of this, or of nothing where that is empty.
fn taken(launch: Launch, part: &str) {
    let replica = launch.args(ALL).start();
    let log = replica.log_text();
    let warns = log.contains("score.listen` is 0.0.0.0:0");
    assert_eq!(warns, !part.is_empty(), "{log}");
    assert!(log.contains(part), "{part} not in {log}");
}

fn machine() -> Launch {
    outrigger().script(ECHO).args(["--process-container", "false"])
}

#[test]
fn without_tls_a_machine_s_address_is_to_be_asked_for() {
    refused(machine(), "tls.allow_plain = true");
    taken(machine().args(["--tls-allow-plain"]), "keys and requests can be read");
    taken(outrigger().script(ECHO).args(["--process-container", "true"]), "");
    let pair = Authority::new("root").server();
    taken(with(&pair).args(["--process-container", "false"]), "");
}

#[test]
fn without_auth_every_address_is_to_be_asked_for() {
    for container in ["true", "false"] {
        let open =
            || outrigger().script(ECHO).args(["--auth-enabled=false", "--process-container", container]);
        refused(open(), "auth.allow_open = true");
        taken(open().args(["--auth-allow-open"]), "anybody who reaches it can score");
    }
    // Whoever has a certificate is no longer anybody.
    let (authority, clients) = (Authority::new("root"), Authority::new("clients"));
    let launch = |word| {
        let launch = asking(&authority.server(), word, &clients);
        launch.args(["--auth-enabled=false", "--process-container", "false"])
    };
    refused(launch("optional"), "auth.allow_open = true");
    taken(launch("required"), "");
}

#[test]
fn a_container_is_told_by_what_its_surroundings_say() {
    // Whatever this test runs in: Kubernetes' variable is enough.
    taken(outrigger().script(ECHO).env("KUBERNETES_SERVICE_HOST", "10.0.0.1"), "");
    // Vertex AI and SageMaker say the port in variables of their own, and only start containers.
    let vertex = outrigger().script(ECHO).env_remove("OUTRIGGER_SCORE_LISTEN").env("AIP_HTTP_PORT", "0");
    assert!(vertex.start().score.starts_with("http://0.0.0.0:"));
}

#[test]
fn probes_beyond_loopback_are_said_on_a_machine() {
    let replica = machine().env("OUTRIGGER_OBSERVE_LISTEN", "0.0.0.0:0").start();
    assert!(replica.log_text().contains("observe.listen` is 0.0.0.0:0"), "{}", replica.log_text());
}
