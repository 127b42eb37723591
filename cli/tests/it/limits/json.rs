//! JSON of calls: how deep it goes, and what numbers, identifiers, names and parameters there may be.

use outrigger_testkit::ReplicaProcess;
use prost::Message as _;
use serde_json::{Value, json};

use super::requests::{models, models_still_serve, tensors};
use super::tensors::tensor;
use crate::grpc::{Grpc, INFER, STREAM, StreamReply, call, framed};
use crate::support::{infer, outcome};

async fn is(replica: &ReplicaProcess, model: &str, body: String, expected: (u16, &str)) -> Value {
    let shown: String = body.chars().take(200).collect();
    let (status, code, answer) = outcome(infer(replica, model, body).send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), expected, "{shown}: {answer}");
    answer
}

/// A body with one more member.
fn with(name: &str, value: &str) -> String {
    tensors().to_string().replacen('{', &format!("{{\"{name}\":{value},"), 1)
}

pub(super) async fn depth() {
    let replica = models().args(["--limits-depth", "6"]).start();
    let nested = |depth: usize, inner: &str| format!("{}{inner}{}", "[".repeat(depth), "]".repeat(depth));
    let objects = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    // The body's own object counts.
    for inner in ["", "1", "null"] {
        is(&replica, "f", with("more", &nested(5, inner)), (200, "")).await;
        is(&replica, "f", with("more", &nested(6, inner)), (400, "malformed_json")).await;
    }
    is(&replica, "f", with("more", &objects(5)), (200, "")).await;
    is(&replica, "f", with("more", &objects(6)), (400, "malformed_json")).await;
    is(&replica, "f", with("parameters", &objects(5)), (200, "")).await;
    is(&replica, "f", with("parameters", &objects(6)), (400, "malformed_json")).await;
    is(&replica, "f", with("more", &"[".repeat(1 << 20)), (400, "malformed_json")).await;
    models_still_serve(&replica).await;
}

pub(super) async fn numbers() {
    let replica = models().start();
    let of = |datatype: &str, number: &str| {
        tensor(datatype, json!([1, 1]), json!([0])).to_string().replace("[0]", &format!("[{number}]"))
    };
    is(&replica, "b", of("UINT8", "255"), (200, "")).await;
    for wrong in ["256", "-1", "1.5", "1e9", "18446744073709551616"] {
        is(&replica, "b", of("UINT8", wrong), (400, "invalid_tensor")).await;
    }
    // However many digits it has.
    let third = format!("0.{}", "3".repeat(100_000));
    let answer = is(&replica, "f", of("FP32", &third), (200, "")).await;
    assert_eq!(answer["outputs"][0]["data"], json!([0.33333334]));
    is(&replica, "f", of("FP32", "3.4028234e38"), (200, "")).await;
    for wrong in ["1e39", "-1e39", "1e999999999"] {
        is(&replica, "f", of("FP32", wrong), (400, "invalid_tensor")).await;
    }
    for wrong in ["NaN", "Infinity", "0x1", "1.", "+1", "01"] {
        is(&replica, "f", of("FP32", wrong), (400, "malformed_json")).await;
    }
    models_still_serve(&replica).await;
}

pub(super) async fn id() {
    let replica = models().args(["--limits-id", "8B"]).start();
    let answer = is(&replica, "f", with("id", "\"12345678\""), (200, "")).await;
    assert_eq!(answer["id"], "12345678");
    is(&replica, "f", with("id", "\"123456789\""), (400, "bad_request")).await;
    let mut grpc = Grpc::connect(&replica).await;
    for (id, status, code) in [("12345678", 0, ""), ("123456789", 3, "bad_request")] {
        let message = call("f", id, "FP32", &[1, 2], vec![0; 8]).encode_to_vec();
        assert_eq!(grpc.ask(INFER, &[], framed(&message)).await.outcome(), (status, code));
        let told = grpc.ask(STREAM, &[], framed(&message)).await;
        let known = if code.is_empty() { id } else { "" };
        assert_eq!(StreamReply::of(&told.messages[0]), (known.into(), code.into()));
    }
    models_still_serve(&replica).await;
}

pub(super) async fn names() {
    let replica = models().start();
    let long = "é".repeat(100_000);
    for (body, code) in [
        (tensors().to_string().replace("\"x\"", &format!("\"{long}\"")), "invalid_tensor"),
        (tensors().to_string().replace("FP32", &long), "invalid_tensor"),
        (with("outputs", &json!([{"name": long}]).to_string()), "invalid_tensor"),
    ] {
        let answer = is(&replica, "f", body, (400, code)).await;
        let said = answer["error"].as_str().unwrap();
        assert!(
            said.len() < 400 && said.contains(&"é".repeat(64)) && !said.contains(&"é".repeat(65)),
            "{said}"
        );
    }
    let message = call(&long, "", "FP32", &[1, 2], vec![0; 8]).encode_to_vec();
    let told = Grpc::connect(&replica).await.ask(INFER, &[], framed(&message)).await;
    assert_eq!(told.outcome(), (5, "model_not_found"));
    assert!(told.headers["grpc-message"].len() < 1000, "{}", told.headers["grpc-message"].len());
    models_still_serve(&replica).await;
}

/// The most memory that a replica has had in use, bytes.
fn most(replica: &ReplicaProcess) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", replica.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// A body with parameters of the call, of its input, and of its output.
fn with_parameters(of_call: &str, of_input: &str, of_output: &str) -> String {
    let body = tensors().to_string().replacen("{\"data", &format!("{{\"parameters\":{of_input},\"data"), 1);
    assert!(body.contains(of_input), "{body}");
    let more =
        format!("{{\"parameters\":{of_call},\"outputs\":[{{\"name\":\"y\",\"parameters\":{of_output}}}],");
    body.replacen('{', &more, 1)
}

pub(super) async fn parameters() {
    let replica = models().start();
    let plain = is(&replica, "f", with_parameters("{}", "{}", "{}"), (200, "")).await;
    // Whatever they are called and hold, they change nothing and do not come back.
    let strange =
        r#"{"mine": {"shape": [9], "deep": [[[1]]]}, "name": "z", "datatype": 7, "": null, "mine": true}"#;
    let answer = is(&replica, "f", with_parameters(strange, strange, strange), (200, "")).await;
    assert_eq!(answer, plain);
    // As deep as anything else in the JSON.
    let deep = format!("{{\"mine\":{}{}}}", "[".repeat(32), "]".repeat(32));
    for body in [
        with_parameters(&deep, "{}", "{}"),
        with_parameters("{}", &deep, "{}"),
        with_parameters("{}", "{}", &deep),
    ] {
        is(&replica, "f", body, (400, "malformed_json")).await;
    }
    // What means something is checked.
    is(&replica, "f", with_parameters(r#"{"timeout": "soon"}"#, "{}", "{}"), (400, "bad_request")).await;

    // However many there are, no memory is taken for them: the body's alone, and again as much while it comes. If each were kept, it would take
    // far more than the few bytes that it has there.
    let many: String = (0..2_000_000).map(|number| format!("\"{number}\":0,")).collect();
    let body = with_parameters(&format!("{{{many}\"last\":0}}"), "{}", "{}");
    let (length, before) = (body.len(), most(&replica));
    assert_eq!(is(&replica, "f", body, (200, "")).await, plain);
    let grown = most(&replica).saturating_sub(before);
    assert!(grown < 3 * length, "{grown} bytes for {length}");
    models_still_serve(&replica).await;
}

pub(super) async fn lengths() {
    let replica = models().start();
    let x = |bytes: usize| {
        let parameters = json!({"binary_data_size": bytes});
        json!({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": parameters}]})
            .to_string()
    };
    let behind = [1f32.to_le_bytes(), 2f32.to_le_bytes()].concat();
    for (said, of_json, expected) in [
        (8, 0, (200, "")),
        (9, 0, (400, "invalid_tensor")),
        (usize::MAX >> 1, 0, (400, "invalid_tensor")),
        (8, 9, (400, "bad_request")),
        (8, usize::MAX >> 1, (400, "bad_request")),
    ] {
        let json = x(said);
        let length = (json.len() + of_json).to_string();
        let body = [json.as_bytes(), &behind].concat();
        let request = infer(&replica, "f", body).header("inference-header-content-length", length);
        let (status, code, answer) = outcome(request.send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), expected, "{said} {of_json}: {answer}");
    }
    models_still_serve(&replica).await;
}
