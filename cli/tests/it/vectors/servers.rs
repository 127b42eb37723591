//! The servers that vectors are run against: the real one, and a replica of ours.

use std::io::{BufRead as _, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use outrigger_testkit::{ReplicaProcess, replica, repository};
use tempfile::TempDir;

use super::data::{Service, Side};
use crate::support;

/// Longer than anything here takes; who waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that serves a service.
pub(super) enum Server {
    Real(RealServer),
    Replica(Box<ReplicaProcess>),
}

/// How a service that was to fail ended.
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) log: String,
}

impl Server {
    /// Starts one and waits until it is ready.
    ///
    /// # Panics
    /// If it does not come up; the message holds its log.
    pub(super) fn start(service: &Service, side: Side) -> Self {
        match side {
            Side::Real => Self::Real(RealServer::start(service)),
            Side::Compat | Side::Strict => Self::Replica(Box::new(launch(service, side).start())),
        }
    }

    /// `IP:PORT`.
    pub(super) fn address(&self) -> &str {
        match self {
            Self::Real(server) => &server.address,
            Self::Replica(replica) => replica.score.trim_start_matches("http://"),
        }
    }

    /// The script's working directory.
    pub(super) fn directory(&self) -> PathBuf {
        match self {
            Self::Real(server) => server.directory.path().to_owned(),
            Self::Replica(replica) => replica.directory().join("app"),
        }
    }

    /// What it has logged, for a message about something that went wrong.
    pub(super) fn log(&self) -> String {
        match self {
            Self::Real(server) => server.log.try_iter().map(|line| line + "\n").collect(),
            Self::Replica(replica) => replica.log_text(),
        }
    }
}

/// Runs a service that fails to its end.
pub(super) fn run(service: &Service, side: Side) -> Ended {
    if side == Side::Real {
        return RealServer::run(service);
    }
    let ended = launch(service, side).run();
    // The log is JSON; texts are looked for as they were before they became that.
    let log = ended.log.iter().map(|line| line["fields"]["message"].as_str().unwrap_or_default().to_owned());
    Ended { code: ended.status.code(), log: log.collect::<Vec<_>>().join("\n") }
}

/// The Python of the real server's environment. The replica's workers run on it, too: what differs is not the packages.
fn python() -> PathBuf {
    let python = repository().join(".venv-azml/bin/python");
    assert!(python.is_file(), "{} is missing: run `cargo xtask setup`", python.display());
    python
}

fn launch(service: &Service, side: Side) -> outrigger_testkit::Launch {
    let mut launch = support::outrigger()
        .env("OUTRIGGER_SCRIPT_PYTHON", python())
        .env("OUTRIGGER_COMPAT", (side == Side::Compat).to_string())
        .env("OUTRIGGER_AUTH_ENABLED", (side == Side::Strict).to_string());
    for (name, value) in &service.environment {
        launch = launch.env(name, value);
    }
    for (name, content) in &service.files {
        launch = launch.file(&format!("app/{name}"), content);
    }
    launch.script(&service.script)
}

/// A running azureml-inference-server-http. It is ended when dropped.
pub(super) struct RealServer {
    child: Child,
    directory: TempDir,
    address: String,
    log: Receiver<String>,
}

impl RealServer {
    fn start(service: &Service) -> Self {
        // It takes no port 0, and somebody else may take the one that was free a moment ago.
        Self::try_start(service)
            .or_else(|_| Self::try_start(service))
            .unwrap_or_else(|why| panic!("the real server does not start: {why}"))
    }

    fn try_start(service: &Service) -> Result<Self, String> {
        let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let directory = directory(service);
        let mut command = Self::command(service, directory.path(), port);
        let mut child = command.spawn().expect("the real server starts");
        let (sender, log) = mpsc::channel();
        let follow = |stream: Box<dyn Read + Send>| {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        };
        follow(Box::new(child.stdout.take().expect("stdout is piped")));
        follow(Box::new(child.stderr.take().expect("stderr is piped")));
        drop(sender);
        let server = Self { child, directory, address: format!("127.0.0.1:{port}"), log };
        server.wait_until_ready()?;
        Ok(server)
    }

    fn command(service: &Service, directory: &Path, port: u16) -> Command {
        let mut command = Command::new(python().with_file_name("azmlinfsrv"));
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("AZUREML_") || name.starts_with("AML_")) {
                command.env_remove(name);
            }
        }
        command
            .args(["--entry_script", "score.py", "--port", &port.to_string()])
            .envs(&service.environment)
            .env("PYTHONUNBUFFERED", "1")
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn wait_until_ready(&self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = String::new();
        loop {
            match self.log.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains("ready for serving traffic") => return Ok(()),
                Ok(line) => seen = seen + &line + "\n",
                Err(RecvTimeoutError::Timeout) => return Err(format!("not ready in time:\n{seen}")),
                Err(RecvTimeoutError::Disconnected) => return Err(format!("it ended:\n{seen}")),
            }
        }
    }

    fn run(service: &Service) -> Ended {
        let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let directory = directory(service);
        let output = Self::command(service, directory.path(), port).output().expect("the real server starts");
        let log = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        Ended { code: output.status.code(), log: log.into_owned() }
    }
}

impl Drop for RealServer {
    fn drop(&mut self) {
        // Its quick end, upon which it ends its workers, too.
        if matches!(self.child.try_wait(), Ok(None)) {
            replica::kill("INT", self.child.id());
        }
        let _ = self.child.wait();
    }
}

/// A directory with the service's files.
fn directory(service: &Service) -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let script = ("score.py".to_owned(), service.script.clone());
    for (name, content) in
        service.files.iter().map(|(name, text)| (name.clone(), text.clone())).chain([script])
    {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, content).expect("a file");
    }
    directory
}
