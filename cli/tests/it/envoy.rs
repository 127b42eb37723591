//! A real Envoy in front of two replicas: `client_side_weighted_round_robin` gives each what it can take, by what it says of itself in its
//! answers or out of band. `cargo xtask setup` installs Envoy; `cargo xtask prove envoy` tries more, and longer.

use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use outrigger_testkit::replica::KEY;
use outrigger_testkit::{ReplicaProcess, repository};
use serde_json::Value;
use tempfile::TempDir;

use crate::proof::{self, say};
use crate::support::{client, outrigger};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// How the replicas tell their load.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    /// They don't.
    Nothing,
    /// In the header of each answer, in this form.
    Answers(&'static str),
    /// In a stream of the observe listener's.
    Reports,
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_goes_where_it_can_be_taken() {
    let Some(envoy) = envoy() else {
        println!("skipped: no Envoy");
        return;
    };
    let more = [By::Nothing, By::Answers("json"), By::Answers("bin")];
    let ways = [By::Answers("text"), By::Reports].into_iter().chain(more);
    for by in ways.take(proof::scale(2, 5)) {
        let pair = Pair::start(by);
        let front = Envoy::start(&envoy, &pair, by).await;
        let half = 0.45..=0.55;
        // The second one takes three times as long for a call, so the first one can take three times as many.
        let expected = if by == By::Nothing { half.clone() } else { 0.62..=0.85 };
        let share = front.settles(expected).await;
        say(format!(
            "{by:?}: of 100 calls {:.0} go to the replica that takes 10 ms for one, the others to that of 30 ms",
            share * 100.0
        ));

        // Now the first has other work to do, past Envoy: more than it can take at once.
        let others = pair.occupy_the_first(4);
        let expected = if by == By::Nothing { half } else { 0.0..=share - 0.1 };
        let occupied = front.settles(expected).await;
        say(format!(
            "{by:?}: {:.0} while it has as much to do for others as for Envoy, and calls queue",
            occupied * 100.0
        ));
        others.into_iter().for_each(|other| other.abort());
        let reports = front.admin("/stats?usedonly&filter=lb_orca_oob").await.unwrap();
        assert_eq!(reports.contains("reports_received"), by == By::Reports, "{reports}");
    }
}

fn envoy() -> Option<PathBuf> {
    let executable = repository().join(".venv-envoy/bin/envoy");
    executable.is_file().then_some(executable)
}

/// Two replicas on two addresses of this machine, with the same port for their observe listeners: Envoy knows one port for reports.
struct Pair {
    replicas: [ReplicaProcess; 2],
    observe: u16,
}

impl Pair {
    fn start(by: By) -> Self {
        let observe = free_port();
        let metrics = match by {
            By::Answers(form) => form,
            By::Nothing | By::Reports => "off",
        };
        let replicas = [("127.0.0.1", 10), ("127.0.0.2", 30)].map(|(address, millis)| {
            let script = format!(
                "import time\ndef init():\n    pass\n\ndef run(data):\n    time.sleep({millis} / 1000)\n    return '{address}'\n"
            );
            outrigger()
                .script(&script)
                .env("OUTRIGGER_SCORE_LISTEN", format!("{address}:0"))
                .env("OUTRIGGER_OBSERVE_LISTEN", format!("{address}:{observe}"))
                .args(["--script-workers", "2", "--score-load-metrics", metrics])
                .start()
        });
        Self { replicas, observe }
    }

    /// Keeps `calls` calls at the first replica.
    fn occupy_the_first(&self, calls: usize) -> Vec<tokio::task::JoinHandle<()>> {
        let client = client();
        let url = format!("{}/score", self.replicas[0].score);
        let others = (0..calls).map(|_| {
            let request = client.post(&url).bearer_auth(KEY).body("\"x\"");
            tokio::spawn(async move {
                while let Some(request) = request.try_clone() {
                    let _ = request.send().await;
                }
            })
        });
        others.collect()
    }
}

/// A port that is free on both addresses, below those that the system gives to who asks for none.
fn free_port() -> u16 {
    let begin = 20_000 + (std::process::id() % 10_000) as u16;
    let free =
        |port: &u16| ["127.0.0.1", "127.0.0.2"].iter().all(|host| TcpListener::bind((*host, *port)).is_ok());
    (begin..begin + 2_000).find(free).expect("a free port")
}

/// An Envoy. It is ended when dropped.
struct Envoy {
    child: Child,
    directory: TempDir,
    admin: String,
    url: String,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Envoy {
    async fn start(executable: &Path, pair: &Pair, by: By) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        std::fs::write(file("envoy.json"), configuration(pair, by).to_string()).unwrap();
        let child = Command::new(executable)
            .args(["-c", "envoy.json", "--admin-address-path", "admin", "--disable-hot-restart"])
            .args(["--concurrency", "1", "--log-level", "warning"])
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(file("log")).unwrap())
            .spawn()
            .unwrap();
        let mut front = Self { child, directory, admin: String::new(), url: String::new() };
        let begun = Instant::now();
        while front.url.is_empty() {
            front.admin = format!("http://{}", front.read("admin"));
            // `front::127.0.0.1:4711`, once it listens.
            let listeners = front.admin("/listeners").await.unwrap_or_default();
            if let Some((_, address)) = listeners.trim().split_once("::") {
                front.url = format!("http://{address}/score");
            }
            let ended = front.child.try_wait().unwrap();
            let comes = ended.is_none() && begun.elapsed() < PATIENCE;
            assert!(comes, "Envoy does not come up: {ended:?}\n{}", front.read("log"));
        }
        front
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(name)).unwrap_or_default()
    }

    async fn admin(&self, path: &str) -> reqwest::Result<String> {
        client().get(format!("{}{path}", self.admin)).send().await?.error_for_status()?.text().await
    }

    /// Sends calls until the share of the first replica is as expected, and says what it is of many more then. Weights are drawn in
    /// turns, not by chance: what is equal stays equal.
    async fn settles(&self, expected: RangeInclusive<f64>) -> f64 {
        let begun = Instant::now();
        loop {
            let share = self.share_of_the_first(80).await;
            if expected.contains(&share) {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "{share} is not in {expected:?}");
        }
        let share = self.share_of_the_first(proof::scale(120, 2000)).await;
        assert!(expected.contains(&share), "{share} is not in {expected:?}");
        share
    }

    /// Sends calls through four connections; returns how many of them went to the first replica, of 1.
    async fn share_of_the_first(&self, calls: usize) -> f64 {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let request = client().post(&self.url).bearer_auth(KEY).body("\"x\"");
                tokio::spawn(async move {
                    let mut first = 0;
                    for _ in 0..calls / 4 {
                        let response = request.try_clone().unwrap().send().await.unwrap();
                        let status = response.status();
                        let text = response.text().await.unwrap();
                        assert_eq!(status, 200, "{text}");
                        first += usize::from(text == "\"127.0.0.1\"");
                    }
                    first
                })
            })
            .collect();
        let mut first = 0;
        for client in clients {
            first += client.await.unwrap();
        }
        first as f64 / (calls / 4 * 4) as f64
    }
}

/// Envoy's configuration: one listener, one cluster of two endpoints.
fn configuration(pair: &Pair, by: By) -> Value {
    let address =
        |host: &str, port: u16| serde_json::json!({"socket_address": {"address": host, "port_value": port}});
    let endpoints = pair.replicas.each_ref().map(|replica| {
        let (host, port) = replica.score.trim_start_matches("http://").rsplit_once(':').unwrap();
        serde_json::json!({"endpoint": {"address": address(host, port.parse().unwrap())}})
    });
    let mut policy = serde_json::json!({
        "@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin",
        "blackout_period": "0.5s",
        "weight_update_period": "0.25s",
    });
    if by == By::Reports {
        policy["enable_oob_load_report"] = true.into();
        policy["oob_reporting_period"] = "0.25s".into();
        policy["oob_reporting_config"] = serde_json::json!({"port_value": pair.observe});
    }
    let router = serde_json::json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    });
    let manager = serde_json::json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "http_filters": [router],
        "route_config": {"virtual_hosts": [
            {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "replicas"}}]},
        ]},
    });
    let protocol = serde_json::json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    });
    let cluster = serde_json::json!({
        "name": "replicas",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "replicas", "endpoints": [{"lb_endpoints": endpoints}]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol},
        "load_balancing_policy": {"policies": [{"typed_extension_config": {
            "name": "envoy.load_balancing_policies.client_side_weighted_round_robin", "typed_config": policy,
        }}]},
    });
    let filter =
        serde_json::json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager});
    let listener = serde_json::json!({
        "name": "front", "address": address("127.0.0.1", 0), "filter_chains": [{"filters": [filter]}],
    });
    serde_json::json!({
        "admin": {"address": address("127.0.0.1", 0)},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    })
}
