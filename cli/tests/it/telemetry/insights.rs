//! Records of requests at Application Insights: at a server that stands in its place and keeps what it gets.

use std::io::{BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use flate2::read::GzDecoder;
use outrigger_testkit::http::Head;
use serde_json::{Value, json};

use crate::devices::until;
use crate::support::{ECHO, metric, outcome, outrigger, score};

const KEY: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// Takes all that comes, as the real one answers.
struct Ingestion {
    url: String,
    records: Arc<Mutex<Vec<Value>>>,
}

impl Ingestion {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let records = Arc::<Mutex<Vec<Value>>>::default();
        let kept = Arc::clone(&records);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut out = stream;
                while let Ok(Some(head)) = Head::read(&mut reader) {
                    let length = head.field("content-length").unwrap().parse().unwrap();
                    let (mut body, mut text) = (vec![0; length], String::new());
                    reader.read_exact(&mut body).unwrap();
                    match head.field("content-encoding") {
                        Some("gzip") => GzDecoder::new(&body[..]).read_to_string(&mut text).unwrap(),
                        _ => (&body[..]).read_to_string(&mut text).unwrap(),
                    };
                    let all: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|_| {
                        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
                    });
                    let count = all.len();
                    kept.lock().unwrap().extend(all);
                    let body =
                        json!({"itemsReceived": count, "itemsAccepted": count, "errors": []}).to_string();
                    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
                    let answer = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
                    if out.write_all(answer.as_bytes()).is_err() {
                        break;
                    }
                }
            }
        });
        Self { url, records }
    }

    fn records(&self) -> Vec<Value> {
        self.records.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_request_is_a_record_with_the_fields_of_azureml_s_server() {
    let ingestion = Ingestion::start();
    let connection = format!("InstrumentationKey={KEY};IngestionEndpoint={}/", ingestion.url);
    let replica = outrigger()
        .script(ECHO)
        .env("APPLICATIONINSIGHTS_CONNECTION_STRING", connection)
        .env("SERVICE_NAME", "digits")
        .env("WORKSPACE_NAME", "lab")
        .env("POD_NAME", "pod-7")
        .start();
    let asked =
        score(&replica, "1").header("x-request-id", "the-id").header("x-ms-client-request-id", "theirs");
    assert_eq!(outcome(asked.send().await.unwrap()).await.0, 200);
    let refused = crate::support::client().post(format!("{}/score", replica.score)).body("1");
    assert_eq!(refused.header("x-request-id", "refused").send().await.unwrap().status(), 401);
    // Probes are left out.
    let probe = crate::support::client().get(format!("{}/", replica.score)).send().await.unwrap();
    assert_eq!(probe.status(), 200);
    until("both records", async || ingestion.records().len() == 2).await;
    let records = ingestion.records();
    let of = |id: &str| {
        let found =
            records.iter().find(|record| record["data"]["baseData"]["properties"]["Request Id"] == id);
        found.unwrap_or_else(|| panic!("{records:?}")).clone()
    };
    let (good, refused) = (of("the-id"), of("refused"));
    assert_eq!(
        (&good["name"], &good["iKey"]),
        (&json!("Microsoft.ApplicationInsights.Request"), &json!(KEY))
    );
    let data = &good["data"]["baseData"];
    assert_eq!(
        (&data["name"], &data["responseCode"], &data["success"]),
        (&json!("POST /score"), &json!("200"), &json!(true))
    );
    assert!(data["url"].as_str().unwrap().ends_with("/score"), "{data}");
    let properties = &data["properties"];
    for (name, value) in [
        ("Container Id", "pod-7"),
        ("Client Request Id", "theirs"),
        ("Workspace Name", "lab"),
        ("Service Name", "digits"),
        ("http_method", "POST"),
        ("outrigger.caller", "primary"),
    ] {
        assert_eq!(properties[name], value, "{name}: {properties}");
    }
    assert!(
        properties["outrigger.run_ms"].is_string() || properties["outrigger.run_ms"].is_number(),
        "{properties}"
    );
    // `[d.]HH:MM:SS.mmm`
    assert!(data["duration"].as_str().unwrap().contains("00:00:"), "{data}");
    let data = &refused["data"]["baseData"];
    assert_eq!((&data["responseCode"], &data["success"]), (&json!("401"), &json!(false)));
    until("the count", async || {
        metric(&replica, "outrigger_telemetry_requests_total{outcome=\"sent\",to=\"insights\"}").await
            == Some(2.0)
    })
    .await;
}

#[tokio::test]
async fn azureml_s_variables_switch_it_on_and_a_key_that_is_none_does_not() {
    let replica = outrigger()
        .script(ECHO)
        .env("AML_APP_INSIGHTS_ENABLED", "true")
        .env("AML_APP_INSIGHTS_KEY", "no-key")
        .start();
    assert!(replica.log_text().contains("AML_APP_INSIGHTS_ENABLED has no effect"), "{}", replica.log_text());
    assert_eq!(outcome(score(&replica, "1").send().await.unwrap()).await.0, 200);
    let ended = outrigger().script(ECHO).env("APPLICATIONINSIGHTS_CONNECTION_STRING", "nonsense").run();
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.text().contains("InstrumentationKey among them"), "{}", ended.text());
}
