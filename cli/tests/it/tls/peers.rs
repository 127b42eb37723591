//! Certificates of clients: who gets in, and as whom.

use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::KEY;
use reqwest::{Client, StatusCode};

use super::certificates::{Authority, Pair};
use super::{BOTH, Caller, OLD, asking, over_tls, score};
use crate::support::metric;

/// How often handshakes of scoring ended so.
async fn outcomes(replica: &ReplicaProcess, outcome: &str) -> f64 {
    let name = format!("outrigger_tls_handshakes_total{{listener=\"score\",outcome=\"{outcome}\"}}");
    metric(replica, &name).await.unwrap()
}

#[tokio::test]
async fn where_certificates_are_required_nobody_comes_without_a_good_one() {
    let (authority, clients, strangers) =
        (Authority::new("root"), Authority::new("clients"), Authority::new("strangers"));
    let replica = asking(&authority.server(), "required", &clients).start();
    let refused = async |pair: Option<&Pair>| {
        let caller = Caller { shows: pair, ..Caller::trusting(&authority) };
        score(&caller.client(), &replica).await.expect_err("it must not be let in");
    };
    refused(None).await;
    refused(Some(&strangers.client(&["a.example"]))).await;
    refused(Some(&clients.client_of_old(&["a.example"]))).await;
    // A server's is for no client.
    refused(Some(&clients.server())).await;
    let good = clients.client(&["a.example"]);
    for versions in [BOTH, OLD] {
        let caller = Caller { versions, ..Caller::showing(&authority, &good) };
        assert_eq!(score(&caller.client(), &replica).await.unwrap(), 200);
    }
    for (outcome, count) in [
        ("no_certificate", 1.0),
        ("certificate_unknown", 1.0),
        ("certificate_expired", 1.0),
        ("certificate_invalid", 1.0),
        ("ok", 2.0),
    ] {
        assert_eq!(outcomes(&replica, outcome).await, count, "{outcome}");
    }
    // A key is needed beside it: it lets in, and is nobody's.
    let url = format!("{}/score", over_tls(&replica.score));
    let caller = Caller::showing(&authority, &good).client();
    let answer = caller.post(&url).body("x").send().await.unwrap();
    assert_eq!(answer.status(), 401);
    assert!(answer.text().await.unwrap().contains("certificate of this connection is no caller's"));
}

#[tokio::test]
async fn an_optional_certificate_is_verified_all_the_same() {
    let (authority, clients, strangers) =
        (Authority::new("root"), Authority::new("clients"), Authority::new("strangers"));
    let replica = asking(&authority.server(), "optional", &clients).start();
    assert_eq!(score(&Caller::trusting(&authority).client(), &replica).await.unwrap(), 200);
    let good = clients.client(&["a.example"]);
    assert_eq!(score(&Caller::showing(&authority, &good).client(), &replica).await.unwrap(), 200);
    // Clients know the authorities that are asked for; OpenSSL's and ours show nothing that none of them has signed.
    let old = clients.client_of_old(&["a.example"]);
    assert!(score(&Caller::showing(&authority, &old).client(), &replica).await.is_err());
    let strange = strangers.client(&["a.example"]);
    assert!(score(&Caller::showing(&authority, &strange).client(), &replica).await.is_err());
}

const CALLERS: &str = "[callers.jobs]\ncertificate = 'spiffe://example.org/jobs'\noperations = ['score']\n\
    [callers.web]\ncertificate = 'dns:web.example'\noperations = ['swagger']\n\
    [callers.ops]\ncertificate = 'cn:ops'\noperations = ['status']\n";

#[tokio::test]
async fn a_certificate_says_who_calls_where_no_key_does() {
    let (authority, clients) = (Authority::new("root"), Authority::new("clients"));
    let replica = asking(&authority.server(), "optional", &clients)
        .file("callers.toml", CALLERS)
        .args(["--config", "callers.toml", "--admin-listen", "127.0.0.1:0"])
        .start();
    let showing = |names: &[&str]| {
        let pair = clients.client(names);
        Caller::showing(&authority, &pair).client()
    };
    let url = over_tls(&replica.score);
    let scores = async |client: &Client, key: Option<&str>| {
        let request = client.post(format!("{url}/score")).body("x");
        let request = key.into_iter().fold(request, reqwest::RequestBuilder::bearer_auth);
        request.send().await.unwrap().status()
    };
    let jobs = showing(&["spiffe://example.org/jobs"]);
    assert_eq!(scores(&jobs, None).await, StatusCode::OK);
    // On the same connection too, a key goes before it.
    assert_eq!(scores(&jobs, Some(KEY)).await, StatusCode::OK);
    assert_eq!(scores(&jobs, Some("no-key-of-anybody-0123456789")).await, StatusCode::UNAUTHORIZED);
    assert_eq!(scores(&showing(&["WEB.example"]), None).await, StatusCode::FORBIDDEN);
    assert_eq!(scores(&showing(&["cn:jobs"]), None).await, StatusCode::UNAUTHORIZED);
    assert_eq!(scores(&showing(&["web.example", "cn:ops"]), None).await, StatusCode::UNAUTHORIZED);
    assert_eq!(scores(&Caller::trusting(&authority).client(), None).await, StatusCode::UNAUTHORIZED);
    let granted = "outrigger_caller_requests_total{answer=\"granted\",caller=\"jobs\"}";
    assert_eq!(metric(&replica, granted).await, Some(1.0));

    // Management over TCP speaks TLS too, and knows them by the same names.
    let status = format!("{}/status", over_tls(&replica.admin));
    let asks = async |client: &Client| client.get(&status).send().await.unwrap().status();
    assert_eq!(asks(&showing(&["cn:ops"])).await, StatusCode::OK);
    assert_eq!(asks(&jobs).await, StatusCode::FORBIDDEN);
    assert_eq!(asks(&Caller::trusting(&authority).client()).await, StatusCode::UNAUTHORIZED);
    assert!(crate::support::client().get(format!("http://{}/status", replica.admin)).send().await.is_err());
}

#[test]
fn each_request_of_a_grpc_stream_knows_the_certificate() {
    const PROGRAM: &str = r#"
import queue, sys
import numpy as np
import tritonclient.grpc as grpc_client
root, key, certificate, address = sys.argv[1:]
values = np.array([[1.5, -2.0]], np.float32)
client = grpc_client.InferenceServerClient(
    address, ssl=True, root_certificates=root, private_key=key, certificate_chain=certificate)
tensor = grpc_client.InferInput("x", values.shape, "FP32")
tensor.set_data_from_numpy(values)
assert (client.infer("identity", [tensor]).as_numpy("y") == values).all()
answers = queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)))
for _ in range(3):
    client.async_stream_infer("identity", [tensor])
for _ in range(3):
    result, error = answers.get(timeout=60)
    assert error is None and (result.as_numpy("y") == values).all(), error
client.stop_stream()
"#;
    let interpreter = outrigger_testkit::repository().join(".venv-triton/bin/python");
    if !interpreter.exists() {
        println!("skipped: no tritonclient");
        return;
    }
    use outrigger_backend::DataType;
    use outrigger_testkit::onnx::{self, Dim};
    let (authority, clients) = (Authority::new("root"), Authority::new("clients"));
    let model = onnx::identity(DataType::Fp32, &[Dim::Named("batch"), Dim::Fixed(2)]);
    let replica = asking(&authority.server(), "required", &clients)
        .file("identity.onnx", model)
        .file("callers.toml", "[callers.jobs]\ncertificate = 'dns:jobs.example'\noperations = ['infer']\n")
        .args(["--model", "identity=identity.onnx", "--config", "callers.toml"])
        .start();
    let pair = clients.client(&["jobs.example"]);
    super::write(replica.directory(), "client", &pair);
    std::fs::write(replica.directory().join("root.pem"), authority.pem()).unwrap();
    let mut command = std::process::Command::new(interpreter);
    command.current_dir(replica.directory()).args(["-c", PROGRAM, "root.pem", "client.key", "client.pem"]);
    let output = command.arg(super::bare(&replica.score)).output().unwrap();
    assert!(output.status.success(), "{output:?}\n{}", replica.log_text());
}
