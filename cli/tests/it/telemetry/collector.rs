//! A collector of OpenTelemetry's that is not ours, rotel: it prints what it gets, decoded.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outrigger_testkit::repository;

use crate::support::PATIENCE;

/// One that runs.
pub(super) struct Collector {
    child: Child,
    pub(super) grpc: u16,
    pub(super) http: u16,
    printed: Arc<Mutex<String>>,
}

/// A span as it prints it.
#[derive(Clone, Debug, Default)]
pub(super) struct Span {
    pub(super) trace: String,
    pub(super) parent: String,
    pub(super) id: String,
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) begun: u64,
    pub(super) ended: u64,
    /// Values with their types, such as `Int(3)`.
    pub(super) attributes: BTreeMap<String, String>,
}

impl Collector {
    /// Starts one, which listens.
    pub(super) fn start() -> Self {
        let folder = repository().join(".venv-rotel/lib");
        let found = std::fs::read_dir(&folder).into_iter().flatten().filter_map(|version| {
            let agent = version.ok()?.path().join("site-packages/rotel/rotel-agent");
            agent.is_file().then_some(agent)
        });
        let agent = found.last();
        let agent =
            agent.unwrap_or_else(|| panic!("no rotel in {}: run `cargo xtask setup`", folder.display()));
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (grpc, http) = (free(), free());
        let mut child = Command::new(agent)
            .arg("start")
            .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
            .args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")])
            .args(["--debug-log", "traces", "--debug-log", "metrics", "--debug-log-verbosity", "detailed"])
            .args(["--exporter", "blackhole"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let printed = Arc::<Mutex<String>>::default();
        let (kept, out) = (Arc::clone(&printed), child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let mut kept = kept.lock().unwrap();
                kept.push_str(&line);
                kept.push('\n');
            }
        });
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", http)).is_err()
            || TcpStream::connect(("127.0.0.1", grpc)).is_err()
        {
            assert!(Instant::now() < deadline, "the collector does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, grpc, http, printed }
    }

    /// All that it has printed.
    pub(super) fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    /// The spans that it has had.
    pub(super) fn spans(&self) -> Vec<Span> {
        let printed = self.printed();
        let blocks = printed.split("\nSpan #").skip(1);
        blocks.map(|block| Span::of(block.split("\nResource").next().unwrap())).collect()
    }

    /// Waits for the spans of a trace, so many of them.
    pub(super) async fn trace(&self, trace: &str, count: usize) -> Vec<Span> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let spans: Vec<_> = self.spans().into_iter().filter(|span| span.trace == trace).collect();
            if spans.len() >= count {
                return spans;
            }
            assert!(Instant::now() < deadline, "{} of {count} spans:\n{}", spans.len(), self.printed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Span {
    fn of(block: &str) -> Self {
        let mut span = Self::default();
        let mut attributes = false;
        for line in block.lines().skip(1) {
            if let Some((name, value)) =
                line.trim().strip_prefix("-> ").and_then(|pair| pair.split_once(": "))
            {
                if attributes {
                    span.attributes.insert(name.to_owned(), value.to_owned());
                }
                continue;
            }
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim().to_owned();
            attributes = name.trim() == "Attributes";
            match name.trim() {
                "Trace ID" => span.trace = value,
                "Parent ID" => span.parent = value,
                "ID" => span.id = value,
                "Name" => span.name = value,
                "Kind" => span.kind = value,
                "Status code" => span.status = value,
                "Start time" => span.begun = value.parse().unwrap(),
                "End time" => span.ended = value.parse().unwrap(),
                _ => {}
            }
        }
        span
    }
}
