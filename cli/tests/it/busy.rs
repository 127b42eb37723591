//! The busy signal in all its forms, as those read them who are told to: watchers, load balancers, scalers. Its numbers by
//! themselves are in `listeners.rs`.
//!
//! The messages are written down here once more, from the protocols' own pages, so that a wrong number shows.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use http::uri::PathAndQuery;
use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess};
use prost::Message;
use reqwest::Response;
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::support::{ECHO, client, header, outcome, outrigger, score};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits in `run` until a file is there.
struct Held {
    replica: ReplicaProcess,
    flag: PathBuf,
}

impl Held {
    fn start(launch: Launch) -> Self {
        let flag = launch.directory().join("go");
        let wait = format!(
            "    while data == 'wait' and not os.path.exists({flag:?}):\n        time.sleep(0.005)\n"
        );
        let script =
            format!("import os, time\ndef init():\n    pass\n\ndef run(data):\n{wait}    return data\n");
        Self { replica: launch.script(&script).start(), flag }
    }

    /// A call that is executing.
    async fn call(&self) -> tokio::task::JoinHandle<reqwest::Result<Response>> {
        let call = tokio::spawn(score(&self.replica, "wait").send());
        self.until(|seen| seen["executing"] == 1).await;
        call
    }

    async fn until(&self, holds: impl Fn(&Value) -> bool) -> Value {
        let url = format!("{}/busy", self.replica.observe);
        patient(async {
            loop {
                let seen = outcome(client().get(&url).send().await.unwrap()).await.2;
                if holds(&seen) {
                    return seen;
                }
            }
        })
        .await
    }

    fn release(&self) {
        std::fs::write(&self.flag, "").unwrap();
    }
}

async fn patient<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it takes too long")
}

/// Server-sent events.
struct Events {
    response: Response,
    text: String,
}

impl Events {
    async fn open(replica: &ReplicaProcess) -> Self {
        let response = client().get(format!("{}/busy?watch", replica.observe)).send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), header(&response, "content-type").as_str()),
            (200, "text/event-stream")
        );
        Self { response, text: String::new() }
    }

    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let seen = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
                self.text = rest.to_owned();
                return Some(seen);
            }
            let chunk = patient(self.response.chunk()).await.unwrap()?;
            self.text += std::str::from_utf8(&chunk).unwrap();
        }
    }

    async fn until(&mut self, holds: impl Fn(&Value) -> bool) -> Value {
        loop {
            let seen = self.next().await.expect("another event");
            if holds(&seen) {
                return seen;
            }
        }
    }
}

#[tokio::test]
async fn a_watcher_is_told_of_every_change() {
    let held = Held::start(outrigger());
    let mut events = Events::open(&held.replica).await;
    let first = events.next().await.unwrap();
    assert_eq!((&first["busy"], &first["ready"], &first["slots"]), (&json!(false), &json!(true), &json!(1)));
    let call = held.call().await;
    let busy = events.until(|seen| seen["executing"] == 1).await;
    assert_eq!(busy["busy"], true);
    let second = tokio::spawn(score(&held.replica, "second").send());
    events.until(|seen| seen["queued"] == 1).await;
    held.release();
    let idle = events.until(|seen| seen["busy"] == false).await;
    assert!(idle["busy_seconds"].as_f64() > busy["busy_seconds"].as_f64());
    // Two calls were here for a time, so there are more call-seconds than busy ones.
    assert!(idle["call_seconds"].as_f64() > idle["busy_seconds"].as_f64(), "{idle}");
    assert_eq!(call.await.unwrap().unwrap().status(), 200);
    assert_eq!(second.await.unwrap().unwrap().status(), 200);
    let end = events.until(|seen| seen["answered"] == 2).await;
    // What is polled has the same members.
    let polled = held.until(|_| true).await;
    let members = |seen: &Value| seen.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(members(&end), members(&polled));
    // Nothing changes now, and yet it is heard that the replica lives.
    let alive = events.next().await.unwrap();
    assert!(alive["uptime_seconds"].as_f64() > end["uptime_seconds"].as_f64());
}

#[tokio::test]
async fn watchers_are_limited_and_leave_with_the_replica() {
    let replica = outrigger().args(["--observe-watchers", "2"]).script(ECHO).start();
    let mut first = Events::open(&replica).await;
    first.next().await.unwrap();
    let mut grpc = Grpc::connect(&replica).await;
    let mut reports = grpc.reports(None).await.unwrap();
    reports.message().await.unwrap().unwrap();

    let url = format!("{}/busy?watch", replica.observe);
    let refused = client().get(&url).send().await.unwrap();
    assert!(refused.headers().contains_key("retry-after"));
    let (status, code, body) = outcome(refused).await;
    assert_eq!((status, code.as_str()), (503, "overloaded"), "{body}");
    assert!(body["message"].as_str().unwrap().contains("observe.watchers"), "{body}");
    for refused in [grpc.reports(None).await.err(), grpc.stream_is_active(&[]).await.err()] {
        assert_eq!(refused.unwrap().code(), Code::ResourceExhausted);
    }
    // Who only asks is answered.
    assert!(!grpc.is_active(&[("activeFor", "0.001")]).await.unwrap().result);
    let metrics =
        client().get(format!("{}/metrics", replica.observe)).send().await.unwrap().text().await.unwrap();
    for line in ["outrigger_watchers 2", "outrigger_load 0", "outrigger_service_calls_total 0"] {
        assert!(metrics.lines().any(|shown| shown == line), "{line} not in\n{metrics}");
    }

    drop(first);
    let mut again = patient(async {
        loop {
            let response = client().get(&url).send().await.unwrap();
            if response.status() == 200 {
                break Events { response, text: String::new() };
            }
        }
    })
    .await;
    let ended = tokio::task::spawn_blocking(|| replica.stop());
    let draining = again.until(|seen| seen["draining"] == true).await;
    assert_eq!(draining["ready"], false);
    while again.next().await.is_some() {}
    patient(async { while reports.message().await.unwrap().is_some() {} }).await;
    assert_eq!(ended.await.unwrap().status.code(), Some(0));
}

/// Name and value of the header with the load.
async fn load(replica: &ReplicaProcess, asked: Option<&str>) -> Option<(String, String)> {
    let request = score(replica, "\"x\"");
    let response = match asked {
        Some(format) => request.header("endpoint-load-metrics-format", format),
        None => request,
    };
    let response = response.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let names = ["endpoint-load-metrics", "endpoint-load-metrics-bin"];
    let mut there = names.into_iter().filter(|name| response.headers().contains_key(*name));
    let name = there.next()?;
    assert_eq!(there.next(), None, "one of them");
    Some((name.to_owned(), header(&response, name)))
}

#[tokio::test]
async fn answers_tell_the_load_in_each_form_that_is_asked_for() {
    let replica = outrigger().script(ECHO).start();
    assert_eq!(load(&replica, None).await, None);
    assert_eq!(load(&replica, Some("XML")).await, None);
    // Rates are there once a call has been seen.
    patient(async {
        while !load(&replica, Some("TEXT")).await.unwrap().1.contains("rps_fractional=")
            || load(&replica, Some("TEXT")).await.unwrap().1.contains("rps_fractional=0,")
        {}
    })
    .await;
    let (name, text) = load(&replica, Some("TEXT")).await.unwrap();
    assert_eq!(name, "endpoint-load-metrics");
    let fields: HashMap<&str, f64> = text
        .strip_prefix("TEXT ")
        .unwrap()
        .split(", ")
        .map(|field| field.split_once('=').map(|(name, value)| (name, value.parse().unwrap())).unwrap())
        .collect();
    assert!(fields["rps_fractional"] > 0.0 && fields["application_utilization"] > 0.0, "{text}");
    assert_eq!((fields["eps"], fields["named_metrics.slots"]), (0.0, 1.0));

    let (name, json) = load(&replica, Some("json")).await.unwrap();
    assert_eq!(name, "endpoint-load-metrics");
    let json: Value = serde_json::from_str(json.strip_prefix("JSON ").unwrap()).unwrap();
    assert!(json["rps_fractional"].as_f64() > Some(0.0), "{json}");
    assert_eq!(json["named_metrics"]["slots"], 1);

    let (name, bin) = load(&replica, Some("BIN")).await.unwrap();
    assert_eq!(name, "endpoint-load-metrics-bin");
    let bytes = base64::engine::general_purpose::STANDARD.decode(bin).unwrap();
    let report = Report::decode(&bytes[..]).unwrap();
    assert!(report.rps_fractional > 0.0 && report.application_utilization > 0.0, "{report:?}");
    assert_eq!(report.named_metrics["slots"], 1.0);
}

#[tokio::test]
async fn answers_tell_the_load_unasked_where_that_is_set_and_to_nobody_without_a_key() {
    let held = Held::start(outrigger().args(["--score-load-metrics", "text", "--queue-items", "0"]));
    let call = held.call().await;
    held.until(|seen| seen["recent"]["calls"].as_f64() > Some(0.0)).await;
    let refused = score(&held.replica, "x").send().await.unwrap();
    assert_eq!(refused.status(), 503);
    let text = header(&refused, "endpoint-load-metrics");
    assert!(text.starts_with("TEXT application_utilization=") && text.contains("executing=1"), "{text}");
    let stranger = client().post(format!("{}/score", held.replica.score)).body("x");
    for request in [
        stranger.try_clone().unwrap(),
        stranger.header("endpoint-load-metrics-format", "TEXT"),
        client().request(reqwest::Method::OPTIONS, format!("{}/score", held.replica.score)),
        client().get(format!("{}/swagger.json", held.replica.score)).bearer_auth(KEY),
    ] {
        let response = request.send().await.unwrap();
        assert!(!response.headers().contains_key("endpoint-load-metrics"), "{:?}", response.headers());
    }
    held.release();
    assert_eq!(call.await.unwrap().unwrap().status(), 200);

    let off = outrigger().args(["--score-load-metrics", "off"]).script(ECHO).start();
    assert_eq!(load(&off, Some("TEXT")).await, None);
}

#[tokio::test]
async fn reports_come_out_of_band() {
    let held = Held::start(outrigger().args(["--observe-report-interval", "20ms", "--queue-items", "0"]));
    let mut grpc = Grpc::connect(&held.replica).await;
    let mut reports = grpc.reports(Some(Interval { seconds: 0, nanos: 1 })).await.unwrap();
    let idle = patient(reports.message()).await.unwrap().unwrap();
    assert_eq!((idle.application_utilization, idle.rps_fractional), (0.0, 0.0));
    assert_eq!(idle.named_metrics["slots"], 1.0);
    let call = held.call().await;
    assert_eq!(score(&held.replica, "refused").send().await.unwrap().status(), 503);
    let busy = patient(async {
        loop {
            let report = reports.message().await.unwrap().unwrap();
            if report.application_utilization > 0.0 && report.eps > 0.0 {
                break report;
            }
        }
    })
    .await;
    assert_eq!(busy.named_metrics["executing"], 1.0, "{busy:?}");
    assert!(busy.application_utilization < 1.5, "one call in one slot: {busy:?}");
    held.release();
    assert_eq!(call.await.unwrap().unwrap().status(), 200);
    patient(async { while reports.message().await.unwrap().unwrap().rps_fractional == 0.0 {} }).await;
}

#[tokio::test]
async fn keda_is_told_whether_and_how_many() {
    let held = Held::start(outrigger());
    let mut grpc = Grpc::connect(&held.replica).await;
    let soon = [("scalerAddress", "x:1"), ("activeFor", "0.5"), ("utilisation", "0.5")];
    let mut active = grpc.stream_is_active(&soon).await.unwrap();
    let mut told = Vec::new();
    let spec = grpc.metric_spec(&soon).await.unwrap().specs.remove(0);
    assert_eq!((spec.name.as_str(), spec.target, spec.target_float), ("outrigger-calls", 1, 0.5));

    // It began a moment ago, and is idle a moment later.
    patient(async {
        while told.last() != Some(&false) {
            told.push(active.message().await.unwrap().unwrap().result);
        }
    })
    .await;
    assert!(!grpc.is_active(&soon).await.unwrap().result);
    assert!(grpc.is_active(&[("activeFor", "3600")]).await.unwrap().result);
    let call = held.call().await;
    assert!(patient(active.message()).await.unwrap().unwrap().result, "pushed");
    assert!(grpc.is_active(&soon).await.unwrap().result);
    patient(async { while grpc.metrics("outrigger-calls").await.unwrap().values[0].value_float == 0.0 {} })
        .await;
    held.release();
    assert_eq!(call.await.unwrap().unwrap().status(), 200);
    assert!(!patient(active.message()).await.unwrap().unwrap().result, "pushed");

    let wrong = grpc.is_active(&[("utilisation", "all")]).await.unwrap_err();
    assert_eq!((wrong.code(), wrong.message().contains("utilisation")), (Code::InvalidArgument, true));
    assert_eq!(grpc.metrics("other").await.unwrap_err().code(), Code::NotFound);
    // Also what KEDA may ask of newer scalers.
    let newer = grpc.unary::<_, MetricSpecs>(KEDA, "StreamMetricSpec", Object::default()).await;
    assert_eq!(newer.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused() {
    let replica = outrigger().args(["--observe-message", "1KiB"]).script(ECHO).start();
    let mut grpc = Grpc::connect(&replica).await;
    assert!(grpc.is_active(&[("a", "small")]).await.is_ok());
    let large = grpc.is_active(&[("a", &"x".repeat(1024))]).await.unwrap_err();
    assert_eq!(large.code(), Code::OutOfRange, "{large}");
}

#[tokio::test]
async fn knative_reads_its_own_message_where_prometheus_reads_text() {
    let held = Held::start(outrigger().args(["--service-pod", "pod-7"]));
    let call = held.call().await;
    let read = async || {
        let request = client().get(format!("{}/metrics", held.replica.observe));
        let response = request.header("accept", "application/protobuf").send().await.unwrap();
        assert_eq!(header(&response, "content-type"), "application/protobuf");
        Stat::decode(response.bytes().await.unwrap()).unwrap()
    };
    // The mean of a whole second with one call in it.
    let stat = patient(async {
        loop {
            let stat = read().await;
            if stat.average_concurrent_requests > 0.95 {
                break stat;
            }
        }
    })
    .await;
    assert!(stat.average_concurrent_requests < 1.01, "{stat:?}");
    assert_eq!(stat.pod_name, "pod-7");
    assert!(stat.process_uptime > 0.9, "{stat:?}");
    held.release();
    assert_eq!(call.await.unwrap().unwrap().status(), 200);
    assert_eq!(score(&held.replica, "x").send().await.unwrap().status(), 200);
    patient(async { while read().await.request_count == 0.0 {} }).await;
}

const ORCA: &str = "xds.service.orca.v3.OpenRcaService";
const KEDA: &str = "externalscaler.ExternalScaler";

/// A client without generated code.
struct Grpc(tonic::client::Grpc<Channel>);

impl Grpc {
    async fn connect(replica: &ReplicaProcess) -> Self {
        let channel = Endpoint::from_shared(replica.observe.clone()).unwrap().connect().await.unwrap();
        Self(tonic::client::Grpc::new(channel))
    }

    async fn unary<M: Message + 'static, R: Message + Default + 'static>(
        &mut self,
        service: &str,
        method: &str,
        message: M,
    ) -> Result<R, Status> {
        self.0.ready().await.unwrap();
        let path = PathAndQuery::try_from(format!("/{service}/{method}")).unwrap();
        let codec = ProstCodec::<M, R>::default();
        Ok(patient(self.0.unary(Request::new(message), path, codec)).await?.into_inner())
    }

    async fn streaming<M: Message + 'static, R: Message + Default + 'static>(
        &mut self,
        service: &str,
        method: &str,
        message: M,
    ) -> Result<Streaming<R>, Status> {
        self.0.ready().await.unwrap();
        let path = PathAndQuery::try_from(format!("/{service}/{method}")).unwrap();
        let codec = ProstCodec::<M, R>::default();
        Ok(patient(self.0.server_streaming(Request::new(message), path, codec)).await?.into_inner())
    }

    async fn reports(&mut self, interval: Option<Interval>) -> Result<Streaming<Report>, Status> {
        self.streaming(ORCA, "StreamCoreMetrics", ReportRequest { interval }).await
    }

    async fn is_active(&mut self, settings: &[(&str, &str)]) -> Result<Active, Status> {
        self.unary(KEDA, "IsActive", Object::of(settings)).await
    }

    async fn stream_is_active(&mut self, settings: &[(&str, &str)]) -> Result<Streaming<Active>, Status> {
        self.streaming(KEDA, "StreamIsActive", Object::of(settings)).await
    }

    async fn metric_spec(&mut self, settings: &[(&str, &str)]) -> Result<MetricSpecs, Status> {
        self.unary(KEDA, "GetMetricSpec", Object::of(settings)).await
    }

    async fn metrics(&mut self, name: &str) -> Result<Metrics, Status> {
        let asked = MetricsRequest { object: Some(Object::of(&[])), name: name.into() };
        self.unary(KEDA, "GetMetrics", asked).await
    }
}

#[derive(Clone, PartialEq, Message)]
struct Report {
    #[prost(double, tag = "1")]
    cpu_utilization: f64,
    #[prost(double, tag = "6")]
    rps_fractional: f64,
    #[prost(double, tag = "7")]
    eps: f64,
    #[prost(map = "string, double", tag = "8")]
    named_metrics: HashMap<String, f64>,
    #[prost(double, tag = "9")]
    application_utilization: f64,
}

#[derive(Clone, PartialEq, Message)]
struct ReportRequest {
    #[prost(message, optional, tag = "1")]
    interval: Option<Interval>,
}

#[derive(Clone, PartialEq, Message)]
struct Interval {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Object {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(map = "string, string", tag = "3")]
    settings: HashMap<String, String>,
}

impl Object {
    fn of(settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Self { name: "replicas".into(), namespace: "default".into(), settings }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Active {
    #[prost(bool, tag = "1")]
    result: bool,
}

#[derive(Clone, PartialEq, Message)]
struct MetricSpecs {
    #[prost(message, repeated, tag = "1")]
    specs: Vec<MetricSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct MetricSpec {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int64, tag = "2")]
    target: i64,
    #[prost(double, tag = "3")]
    target_float: f64,
}

#[derive(Clone, PartialEq, Message)]
struct MetricsRequest {
    #[prost(message, optional, tag = "1")]
    object: Option<Object>,
    #[prost(string, tag = "2")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Metrics {
    #[prost(message, repeated, tag = "1")]
    values: Vec<MetricValue>,
}

#[derive(Clone, PartialEq, Message)]
struct MetricValue {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int64, tag = "2")]
    value: i64,
    #[prost(double, tag = "3")]
    value_float: f64,
}

#[derive(Clone, PartialEq, Message)]
struct Stat {
    #[prost(string, tag = "1")]
    pod_name: String,
    #[prost(double, tag = "2")]
    average_concurrent_requests: f64,
    #[prost(double, tag = "3")]
    average_proxied_concurrent_requests: f64,
    #[prost(double, tag = "4")]
    request_count: f64,
    #[prost(double, tag = "6")]
    process_uptime: f64,
}
