//! Clients that are not ours, over each version and protocol; health checks and the busy signal.

use std::process::{Command, Output};

use outrigger_backend::DataType;
use outrigger_testkit::onnx::{self, Dim};
use outrigger_testkit::replica::KEY;
use outrigger_testkit::{ReplicaProcess, python, repository};
use reqwest::Version;

use super::certificates::Authority;
use super::{Caller, NEW, OLD, bare, over_tls, score, with};
use crate::support::{PATIENCE, client, metric};

#[tokio::test]
async fn both_versions_and_both_protocols_are_spoken_as_clients_wish() {
    let authority = Authority::new("root");
    let replica = with(&authority.server()).start();
    for versions in [OLD, NEW] {
        for (protocols, expected) in [
            (&["http/1.1"][..], Version::HTTP_11),
            (&["h2"][..], Version::HTTP_2),
            (&["http/1.1", "h2"][..], Version::HTTP_2),
            (&[][..], Version::HTTP_11),
        ] {
            let caller = Caller { versions, protocols, ..Caller::trusting(&authority) };
            let url = format!("{}/score", over_tls(&replica.score));
            let answer = caller.client().post(url).bearer_auth(KEY).body("x").send().await.unwrap();
            assert_eq!((answer.status().as_u16(), answer.version()), (200, expected), "{protocols:?}");
        }
    }
    let ok = "outrigger_tls_handshakes_total{listener=\"score\",outcome=\"ok\"}";
    assert_eq!(metric(&replica, ok).await, Some(8.0));
    // A protocol that is not spoken is none to fall back from.
    let strange = Caller { protocols: &["spdy/3"], ..Caller::trusting(&authority) };
    assert!(score(&strange.client(), &replica).await.is_err());
    let parameters = "outrigger_tls_handshakes_total{listener=\"score\",outcome=\"parameters\"}";
    assert_eq!(metric(&replica, parameters).await, Some(1.0));
}

#[tokio::test]
async fn the_oldest_version_is_the_operator_s_choice() {
    let authority = Authority::new("root");
    let replica = with(&authority.server()).args(["--tls-min-version", "1.3"]).start();
    let old = Caller { versions: OLD, ..Caller::trusting(&authority) };
    assert!(score(&old.client(), &replica).await.is_err());
    assert_eq!(score(&Caller::trusting(&authority).client(), &replica).await.unwrap(), 200);
    let version = "outrigger_tls_handshakes_total{listener=\"score\",outcome=\"version\"}";
    assert_eq!(metric(&replica, version).await, Some(1.0));
}

#[tokio::test]
async fn a_chain_is_sent_whole() {
    let authority = Authority::new("root");
    let intermediate = authority.intermediate("between");
    let mut pair = intermediate.server();
    pair.certificate += &intermediate.pem();
    let replica = with(&pair).start();
    assert_eq!(score(&Caller::trusting(&authority).client(), &replica).await.unwrap(), 200);
}

/// What Python's own client says. Its library is OpenSSL, which is not ours.
fn ask_with_python(replica: &ReplicaProcess, authority: &Authority, program: &str) -> Output {
    let file = replica.directory().join("root.pem");
    std::fs::write(&file, authority.pem()).unwrap();
    let mut command = Command::new(python());
    command.args(["-c", program]).arg(file).args([bare(&replica.score), KEY]).output().unwrap()
}

#[test]
fn python_s_own_client_calls_over_1_2_and_1_3_and_not_over_1_1() {
    const PROGRAM: &str = r#"
import ssl, sys, urllib.request
root, address, key = sys.argv[1:]
host, port = address.split(":")
for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
    context = ssl.create_default_context(cafile=root)
    context.minimum_version = context.maximum_version = version
    request = urllib.request.Request(f"https://{address}/score", b"good", {"Authorization": f"Bearer {key}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    with opener.open(request, timeout=60) as answer:
        assert answer.status == 200 and answer.read() == b'"good"', answer.status
import socket
context = ssl.create_default_context(cafile=root)
# Without this its own library would not even ask.
context.set_ciphers("ALL:@SECLEVEL=0")
context.minimum_version = ssl.TLSVersion.TLSv1
context.maximum_version = ssl.TLSVersion.TLSv1_1
try:
    context.wrap_socket(socket.create_connection((host, int(port)), 60), server_hostname="localhost")
except ssl.SSLError as error:
    print("refused", error.reason)
else:
    raise SystemExit("TLS 1.1 was taken")
# The end of an answer is told, so that one that was cut off is not taken for whole.
context = ssl.create_default_context(cafile=root)
context.set_alpn_protocols(["http/1.1"])
secured = context.wrap_socket(
    socket.create_connection((host, int(port)), 60), server_hostname="localhost", suppress_ragged_eofs=False)
assert secured.selected_alpn_protocol() == "http/1.1"
secured.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
answer = b""
while part := secured.recv(4096):
    answer += part
assert answer.startswith(b"HTTP/1.1 200"), answer
"#;
    let authority = Authority::new("root");
    let replica = with(&authority.server()).start();
    let output = ask_with_python(&replica, &authority, PROGRAM);
    assert!(output.status.success(), "{output:?}\n{}", replica.log_text());
    assert!(String::from_utf8_lossy(&output.stdout).contains("refused"), "{output:?}");
    assert!(!replica.log_text().contains("panicked"));
}

#[test]
fn grpc_s_own_client_calls_over_tls() {
    const PROGRAM: &str = r#"
import sys
import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
root, address, key = sys.argv[1:]
headers = {"authorization": f"Bearer {key}"}
values = np.array([[1.5, -2.0]], np.float32)
client = grpc_client.InferenceServerClient(address, ssl=True, root_certificates=root)
assert client.is_server_ready(headers=headers)
tensor = grpc_client.InferInput("x", values.shape, "FP32")
tensor.set_data_from_numpy(values)
for _ in range(3):
    answer = client.infer("identity", [tensor], headers=headers)
    assert (answer.as_numpy("y") == values).all()
try:
    client.infer("identity", [tensor])
except Exception as error:
    assert "UNAUTHENTICATED" in str(error), error
else:
    raise SystemExit("no key was needed")
"#;
    let interpreter = repository().join(".venv-triton/bin/python");
    if !interpreter.exists() {
        println!("skipped: no tritonclient");
        return;
    }
    let authority = Authority::new("root");
    let model = onnx::identity(DataType::Fp32, &[Dim::Named("batch"), Dim::Fixed(2)]);
    let replica = with(&authority.server())
        .file("identity.onnx", model)
        .args(["--model", "identity=identity.onnx"])
        .start();
    let root = replica.directory().join("root.pem");
    std::fs::write(&root, authority.pem()).unwrap();
    let mut command = Command::new(interpreter);
    let output = command.args(["-c", PROGRAM]).arg(root).args([bare(&replica.score), KEY]).output().unwrap();
    assert!(output.status.success(), "{output:?}\n{}", replica.log_text());
}

#[tokio::test]
async fn probes_are_in_clear_text_unless_they_are_asked_to_be_otherwise() {
    let authority = Authority::new("root");
    let plain = with(&authority.server()).start();
    assert_eq!(client().get(format!("{}/ready", plain.observe)).send().await.unwrap().status(), 200);
    drop(plain);

    let replica = with(&authority.server()).env("OUTRIGGER_TLS_LISTENERS", "score,observe").start();
    let caller = Caller::trusting(&authority).client();
    let observe = over_tls(&replica.observe);
    for path in ["/ready", "/live", "/metrics", "/busy"] {
        assert_eq!(caller.get(format!("{observe}{path}")).send().await.unwrap().status(), 200, "{path}");
    }
    assert!(client().get(format!("{}/ready", replica.observe)).send().await.is_err());
    // The busy signal is followed, and what changes comes at once.
    let mut watch = caller.get(format!("{observe}/busy?watch")).send().await.unwrap();
    let first = watch.chunk().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&first).contains("\"busy\":false"), "{first:?}");
    assert_eq!(score(&caller, &replica).await.unwrap(), 200);
    let mut seen = String::new();
    // Who follows sees the latest, which may be that the call is over already.
    while !seen.contains("\"arrived\":1") {
        let next = tokio::time::timeout(PATIENCE, watch.chunk()).await.expect("a change comes");
        seen += &String::from_utf8_lossy(&next.unwrap().unwrap());
    }
}

fn health(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.arg("health").args(arguments).env_clear().envs(variables.iter().copied()).output().unwrap()
}

#[test]
fn the_health_check_asks_over_what_is_spoken() {
    let authority = Authority::new("root");
    // Certificates of clients are never asked for there.
    let launch = super::asking(&authority.server(), "required", &authority);
    let replica = launch.args(["--tls-listeners", "score", "--tls-listeners", "observe"]).start();
    let files = ("OUTRIGGER_TLS_CERTIFICATE", "server.pem");
    let observe = ("OUTRIGGER_OBSERVE_LISTEN", bare(&replica.observe));
    let listeners = ("OUTRIGGER_TLS_LISTENERS", "score,observe");
    let output = health(&[], &[files, observe, listeners]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"ready\n"[..]), "{output:?}");
    let output = health(&["--live"], &[files, observe, listeners]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let url = format!("{}/ready", over_tls(&replica.observe));
    assert_eq!(health(&["--url", &url], &[]).status.code(), Some(0));
    // In clear text, as the default listeners say, nothing is to be had.
    let output = health(&["--timeout", "20"], &[files, observe]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("speaks TLS"), "{output:?}");
    assert!(!replica.log_text().contains("panicked"), "{}", replica.log_text());
}
