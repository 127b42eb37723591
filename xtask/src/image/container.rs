//! A running container: reached through its published ports, removed when dropped.

use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::engine::Engine;
use crate::http::{Answer, Client};
use crate::{process, signals};

/// Longest time until ready: Python's imports in an unoptimised build on a loaded machine.
const START: Duration = Duration::from_secs(90);
/// Longest wait for anything else that has to come.
const PATIENCE: Duration = Duration::from_secs(10);
/// What `docker stop` waits before it kills: above the drain time, so that a kill is a fault of ours.
const STOP_SECONDS: &str = "45";
const LOOK: Duration = Duration::from_millis(50);

pub(super) struct Container<'a> {
    engine: &'a Engine,
    id: String,
    score: SocketAddr,
    observe: SocketAddr,
    key: String,
}

/// How a container is started.
pub(super) struct Start<'a> {
    pub(super) image: &'a str,
    /// Of `docker run`.
    pub(super) options: &'a [&'a str],
    /// Of the image's entry point; none for the image's own.
    pub(super) arguments: &'a [&'a str],
    /// Handed over in the environment, if given.
    pub(super) key: Option<&'a str>,
}

impl<'a> Container<'a> {
    /// Starts a container and waits until it says that it is ready.
    pub(super) fn start(engine: &'a Engine, start: &Start<'_>) -> Result<Self> {
        let container = Self::launch(engine, start)?;
        container.wait_until_ready()?;
        Ok(container)
    }

    /// Starts a container, which may take its time to be ready.
    pub(super) fn launch(engine: &'a Engine, start: &Start<'_>) -> Result<Self> {
        let publish = ["--publish", "127.0.0.1::5001", "--publish", "127.0.0.1::5002"];
        let mut command = engine.command(["run", "--detach"].into_iter().chain(publish));
        if let Some(key) = start.key {
            // By name, so that the key is on no command line.
            command.args(["--env", KEY_VARIABLE]).env(KEY_VARIABLE, key);
        }
        command.args(start.options).arg(start.image).args(start.arguments);
        let id = process::capture(command)?.trim().to_owned();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let key = start.key.unwrap_or_default().to_owned();
        let mut container = Self { engine, id, score: nowhere, observe: nowhere, key };
        container.score = container.published("5001")?;
        container.observe = container.published("5002")?;
        Ok(container)
    }

    /// The key that calls are made with from here on.
    pub(super) fn use_key(&mut self, key: &str) {
        self.key = key.to_owned();
    }

    /// Posts JSON to the scoring listener, with the key.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        Client::new(self.score).post(path, &self.key, body.to_string().as_bytes())
    }

    /// Asks the script; anything but 200 is an error.
    pub(super) fn ask(&self, body: &Value) -> Result<Value> {
        let answer = self.post("/score", body)?;
        let text = String::from_utf8_lossy(&answer.body);
        if answer.status != 200 {
            bail!("{body} got {}: {text}\n{}", answer.status, self.log()?);
        }
        serde_json::from_str(&text).with_context(|| format!("{body} got no JSON: {text}"))
    }

    /// Gets from the observe listener.
    pub(super) fn observed(&self, path: &str) -> Result<Answer> {
        Client::new(self.observe).get(path)
    }

    /// Gets from the scoring listener, without a key.
    pub(super) fn get(&self, path: &str) -> Result<Answer> {
        Client::new(self.score).get(path)
    }

    /// Runs a program inside and returns what it printed.
    pub(super) fn exec(&self, arguments: &[&str]) -> Result<String> {
        let text = process::capture(self.command(&["exec", &self.id], arguments))?;
        Ok(text.trim().to_owned())
    }

    /// One fact about it, by a Go template.
    pub(super) fn inspect(&self, template: &str) -> Result<String> {
        self.engine.inspect(&self.id, template)
    }

    /// All it has written, stdout first.
    pub(super) fn log(&self) -> Result<String> {
        let output = self.command(&["logs", &self.id], &[]).output().context("could not start docker")?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Asks it to end and returns its exit code.
    pub(super) fn stop(&self) -> Result<i32> {
        process::capture(self.command(&["stop", "--time", STOP_SECONDS, &self.id], &[]))?;
        let code = self.inspect("{{.State.ExitCode}}")?;
        code.parse().with_context(|| format!("`{code}` is no exit code"))
    }

    /// Waits for something that comes by itself, and says what did not.
    pub(super) fn wait_for(&self, what: &str, mut come: impl FnMut() -> Result<bool>) -> Result<()> {
        let begin = Instant::now();
        while !come()? {
            if begin.elapsed() > PATIENCE {
                bail!("{what}: not within {} s", PATIENCE.as_secs());
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    fn command(&self, before: &[&str], after: &[&str]) -> Command {
        self.engine.command(before.iter().chain(after).copied())
    }

    fn published(&self, port: &str) -> Result<SocketAddr> {
        let text = process::capture(self.command(&["port", &self.id, port], &[]));
        let text = match text {
            Ok(text) => text,
            Err(_) => bail!("the container ended at once\n{}", self.log()?),
        };
        let address = text.lines().next().and_then(|line| line.trim().parse().ok());
        address.with_context(|| format!("`{text}` is no published address"))
    }

    fn wait_until_ready(&self) -> Result<()> {
        let begin = Instant::now();
        // The engine's proxy accepts before anything listens inside, so only an answer counts.
        while self.observed("/ready").map_or(true, |answer| answer.status != 200) {
            if signals::heard() > 0 {
                bail!("interrupted");
            }
            if self.inspect("{{.State.Running}}")? != "true" {
                let code = self.inspect("{{.State.ExitCode}}")?;
                bail!("the container ended with {code} before it was ready\n{}", self.log()?);
            }
            if begin.elapsed() > START {
                bail!("not ready after {} s\n{}", START.as_secs(), self.log()?);
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = process::capture(self.command(&["rm", "--force", "--volumes", &self.id], &[]));
    }
}

const KEY_VARIABLE: &str = "OUTRIGGER_AUTH_PRIMARY_KEY";
