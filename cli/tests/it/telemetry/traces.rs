//! Traces and metrics at a real collector: of requests with their phases, into scripts, and on to what is behind the replica.

use std::net::TcpListener;

use outrigger_testkit::replica::KEY;
use outrigger_testkit::upstream::App;
use outrigger_testkit::{Launch, onnx, repository};
use serde_json::{Value, json};

use super::collector::{Collector, Span};
use crate::devices::until;
use crate::support::{client, infer, metric, outcome, outrigger, score};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

fn to(collector: &Collector, launch: Launch) -> Launch {
    launch.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{}", collector.http))
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name}: {spans:?}"))
}

/// What a script sees of its trace, and spans of its own.
const SCRIPT: &str = "
import sys
from outrigger import ctx
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

def init():
    trace.set_tracer_provider(TracerProvider())

def run(data):
    with trace.get_tracer('script').start_as_current_span('own') as span:
        own = span.get_span_context()
        parent = getattr(span, 'parent', None)
    return {'trace': f'{own.trace_id:032x}', 'parent': f'{parent.span_id:016x}' if parent else '',
            'carrier': ctx.trace_context, 'id': ctx.request_id}
";

fn scripted(script: &str) -> Launch {
    let python = repository().join(".venv-rotel/bin/python");
    outrigger().env("OUTRIGGER_SCRIPT_PYTHON", python).script(script)
}

#[tokio::test]
async fn a_request_is_a_span_with_its_phases_and_the_script_s_own_spans_belong_to_it() {
    let collector = Collector::start();
    let replica = to(&collector, scripted(SCRIPT)).env("OTEL_SERVICE_NAME", "digits").start();
    let answer = score(&replica, "{}")
        .header("traceparent", traceparent("01"))
        .header("tracestate", "vendor=1")
        .header("baggage", "user=7")
        .header("x-request-id", "the-id")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.headers().get("traceparent"), None, "as the system that we succeed has it");
    let (status, _, seen) = outcome(answer).await;
    assert_eq!(status, 200, "{seen}");
    let spans = collector.trace(TRACE, 9).await;
    let root = named(&spans, "POST /score");
    assert_eq!((root.parent.as_str(), root.kind.as_str()), (PARENT, "SPAN_KIND_SERVER"));
    for (name, value) in [
        ("http.request.method", "Str(POST)"),
        ("http.route", "Str(/score)"),
        ("url.path", "Str(/score)"),
        ("http.response.status_code", "Int(200)"),
        ("outrigger.operation", "Str(score)"),
        ("outrigger.caller", "Str(primary)"),
        ("outrigger.request_id", "Str(the-id)"),
    ] {
        assert_eq!(root.attributes.get(name).map(String::as_str), Some(value), "{name}: {root:?}");
    }
    for phase in ["receive", "auth", "queue", "batch", "copy_in", "run", "copy_out", "send"] {
        let span = named(&spans, phase);
        assert_eq!(span.parent, root.id, "{phase}");
        assert!(
            root.begun <= span.begun && span.begun <= span.ended && span.ended <= root.ended,
            "{span:?} {root:?}"
        );
    }
    assert!(named(&spans, "queue").ended <= named(&spans, "run").ended);
    assert!(collector.printed().contains("-> service.name: Str(digits)"));

    assert_eq!(
        (&seen["trace"], &seen["parent"], &seen["id"]),
        (&json!(TRACE), &json!(root.id), &json!("the-id"))
    );
    let carrier = json!({"traceparent": format!("00-{TRACE}-{}-01", root.id), "tracestate": "vendor=1", "baggage": "user=7"});
    assert_eq!(seen["carrier"], carrier);
    drop(replica);
}

#[tokio::test]
async fn what_a_trace_says_of_itself_is_followed_and_what_is_malformed_is_not() {
    let collector = Collector::start();
    let replica = to(&collector, scripted(&SCRIPT.replace("def run", "async def run"))).start();
    let ask = async |parent: &str| {
        outcome(score(&replica, "{}").header("traceparent", parent).send().await.unwrap()).await.2
    };
    // Not recorded there, so not here either; but it goes on.
    let seen = ask(&traceparent("00")).await;
    assert_eq!(seen["trace"], TRACE);
    assert!(seen["carrier"]["traceparent"].as_str().unwrap().ends_with("-00"), "{seen}");
    let seen = ask("00-zz").await;
    let own = seen["trace"].as_str().unwrap().to_owned();
    assert_ne!(own, TRACE);
    let spans = collector.trace(&own, 9).await;
    assert_eq!(named(&spans, "POST /score").parent, "");
    assert!(collector.spans().iter().all(|span| span.trace == own), "{:?}", collector.spans());
}

#[tokio::test]
async fn a_script_sees_the_trace_that_a_request_brings_where_nothing_is_recorded() {
    let replica = scripted(SCRIPT).start();
    let answer = score(&replica, "{}").header("traceparent", traceparent("01")).send().await.unwrap();
    let (_, _, seen) = outcome(answer).await;
    assert_eq!((&seen["trace"], &seen["parent"]), (&json!(TRACE), &json!(PARENT)));
    let (_, _, seen) = outcome(score(&replica, "{}").send().await.unwrap()).await;
    assert_eq!((&seen["carrier"], &seen["parent"]), (&json!({}), &json!("")));
}

#[tokio::test]
async fn calls_that_run_together_know_of_each_other_and_metrics_come_too() {
    let collector = Collector::start();
    let model = "[models.add]\npath = 'add.onnx'\nmax_batch = 2\nmax_delay = '10s'\n";
    let replica = outrigger()
        .file("add.onnx", onnx::add(3))
        .file("outrigger.toml", model)
        .args(["--config", "outrigger.toml"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{}", collector.grpc))
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .env("OTEL_METRIC_EXPORT_INTERVAL", "200")
        .start();
    let tensor = |name: &str| json!({"name": name, "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]});
    let body = json!({"inputs": [tensor("x"), tensor("y")]}).to_string();
    let ask = |parent: String| infer(&replica, "add", body.clone()).header("traceparent", parent).send();
    let other = TRACE.replace("0af", "1bf");
    let (one, two) = tokio::join!(ask(traceparent("01")), ask(traceparent("01").replace(TRACE, &other)));
    assert_eq!(
        (one.unwrap().status(), two.unwrap().status()),
        (200.try_into().unwrap(), 200.try_into().unwrap())
    );
    for trace in [TRACE, &other] {
        let spans = collector.trace(trace, 9).await;
        let root = named(&spans, "POST /v2/models/{model}/infer");
        assert_eq!(root.attributes["outrigger.model"], "Str(add)");
        assert_eq!(named(&spans, "run").attributes["outrigger.batch.calls"], "Int(2)", "{spans:?}");
    }
    until("metrics", async || collector.printed().contains("outrigger_model_requests_total")).await;
    until("metrics", async || collector.printed().contains("outrigger_phase_seconds")).await;
    let sent = "outrigger_telemetry_requests_total{outcome=\"sent\",to=\"collector\"}";
    until("what is sent is counted", async || metric(&replica, sent).await == Some(2.0)).await;
}

#[tokio::test]
async fn what_is_behind_the_replica_gets_its_span_as_parent() {
    let (app, collector) = (App::start(), Collector::start());
    let replica =
        to(&collector, outrigger().args(["--upstream-url", &app.url(), "--upstream-paths", "/app/*"]))
            .start();
    let asked = client().post(format!("{}/app/echo", replica.score)).bearer_auth(KEY);
    let asked = asked.header("traceparent", traceparent("01")).body("x").send().await.unwrap();
    let told = asked.bytes().await.unwrap();
    let told: Value = serde_json::from_slice(&told).unwrap_or_default();
    let spans = collector.trace(TRACE, 6).await;
    let root = spans.iter().find(|span| span.kind == "SPAN_KIND_SERVER").unwrap();
    let expected = format!("00-{TRACE}-{}-01", root.id);
    assert!(told.to_string().contains(&expected), "{told}");
}

#[tokio::test]
async fn a_collector_that_is_away_matters_to_no_call_and_all_spans_are_counted() {
    // A port that nobody listens on.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let replica = outrigger()
        .script(crate::support::ECHO)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}"))
        .env("OTEL_BSP_MAX_QUEUE_SIZE", "3")
        .start();
    let count = async |outcome: &str| {
        let name = format!("outrigger_telemetry_requests_total{{outcome=\"{outcome}\",to=\"collector\"}}");
        metric(&replica, &name).await.unwrap_or_default()
    };
    // Those of the first second are on their way to nobody, and behind them there is room for three.
    let mut calls = 0.0;
    until("a span that finds no room", async || {
        assert_eq!(outcome(score(&replica, "1").send().await.unwrap()).await.0, 200);
        calls += 1.0;
        count("dropped").await > 0.0
    })
    .await;
    until("all spans", async || count("dropped").await + count("failed").await == calls).await;
    until("failures", async || {
        metric(&replica, "outrigger_telemetry_failures_total{signal=\"traces\"}").await > Some(0.0)
    })
    .await;
}
