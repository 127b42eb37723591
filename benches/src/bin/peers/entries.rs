//! Who takes part in which case, and how they are started.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use outrigger_benches::contest::Contender;
use outrigger_benches::load;
use outrigger_benches::options::Options;
use outrigger_benches::server::{self, Server};
use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess};
use serde_json::Value;

/// A server with a script.
pub(crate) struct Entry {
    /// What the tables and `--servers` call it.
    pub(crate) name: &'static str,
    /// `None` is ours.
    peer: Option<Peer>,
    /// A file below `benches/peers`.
    script: &'static str,
    /// More of the command line; for ours alone.
    args: &'static [&'static str],
}

#[derive(Clone, Copy)]
enum Peer {
    Azureml,
    Fastapi,
    Mosec,
}

const fn ours(name: &'static str, script: &'static str) -> Entry {
    Entry { name, peer: None, script, args: &[] }
}

const fn theirs(name: &'static str, peer: Peer, script: &'static str) -> Entry {
    Entry { name, peer: Some(peer), script, args: &[] }
}

/// JSON in, the same value out. The `-bytes` entries leave out the parsing and writing that the server's users are used to.
pub(crate) const TRIVIAL: &[Entry] = &[
    ours("outrigger", "azureml/trivial.py"),
    theirs("azureml", Peer::Azureml, "azureml/trivial.py"),
    theirs("fastapi", Peer::Fastapi, "fastapi/trivial.py"),
    theirs("fastapi-bytes", Peer::Fastapi, "fastapi/trivial_bytes.py"),
    theirs("mosec", Peer::Mosec, "mosec/trivial.py"),
    theirs("mosec-bytes", Peer::Mosec, "mosec/trivial_bytes.py"),
];

/// The same for programs that are handed up to 16 requests at once.
pub(crate) const BATCH: &[Entry] = &[
    Entry { args: &["--script-max-batch", "16"], ..ours("outrigger", "outrigger/batch.py") },
    theirs("mosec", Peer::Mosec, "mosec/batch.py"),
    theirs("mosec-bytes", Peer::Mosec, "mosec/batch_bytes.py"),
];

/// 1×3×224×224 `f32` in, their mean out.
pub(crate) const TENSOR: &[Entry] = &[
    ours("outrigger", "outrigger/tensor.py"),
    ours("outrigger-raw", "outrigger/tensor_raw.py"),
    theirs("azureml", Peer::Azureml, "azureml/tensor.py"),
    theirs("fastapi", Peer::Fastapi, "fastapi/tensor.py"),
    theirs("mosec", Peer::Mosec, "mosec/tensor.py"),
];

/// Two items with a pause of 10 ms between them, so that a server which holds the first one back is seen to.
pub(crate) const STREAM: &[Entry] = &[
    ours("outrigger", "outrigger/stream.py"),
    theirs("azureml", Peer::Azureml, "azureml/stream.py"),
    theirs("fastapi", Peer::Fastapi, "fastapi/stream.py"),
    theirs("mosec", Peer::Mosec, "mosec/stream.py"),
];

fn all() -> impl Iterator<Item = &'static Entry> {
    [TRIVIAL, BATCH, TENSOR, STREAM].into_iter().flatten()
}

/// The names of all entries, each once.
pub(crate) fn names() -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for entry in all() {
        if names.iter().all(|name| name != entry.name) {
            names.push(entry.name.into());
        }
    }
    names
}

/// An entry whose server runs.
pub(crate) struct Running {
    pub(crate) entry: &'static Entry,
    /// What it is sent.
    pub(crate) request: Vec<u8>,
    process: Process,
}

enum Process {
    Replica(ReplicaProcess),
    Peer(Server),
}

/// Starts those entries that take part.
pub(crate) async fn start(
    entries: &'static [Entry],
    options: &Options,
    content_type: &str,
    body: &[u8],
) -> anyhow::Result<Vec<Running>> {
    let mut running = Vec::new();
    for entry in entries.iter().filter(|entry| options.server(entry.name)) {
        let path = entry.peer.map_or("/score", Peer::path);
        let key = entry.peer.is_none().then_some(KEY);
        let request = load::post(path, key, content_type, body);
        let process = entry.start(&request).await.context(entry.name)?;
        running.push(Running { entry, request, process });
    }
    Ok(running)
}

impl Entry {
    async fn start(&self, request: &[u8]) -> anyhow::Result<Process> {
        let script = folder().join(self.script);
        let Some(peer) = self.peer else {
            let text = std::fs::read_to_string(&script).with_context(|| script.display().to_string())?;
            let launch = Launch::new(server::outrigger()?).script(&text).args(self.args.iter().copied());
            return Ok(Process::Replica(launch.start()));
        };
        let program = peer.program()?;
        let command = |address| peer.command(&program, &script, address);
        Ok(Process::Peer(Server::theirs(command, request).await?))
    }
}

impl Peer {
    fn path(self) -> &'static str {
        match self {
            Self::Azureml | Self::Fastapi => "/score",
            Self::Mosec => "/inference",
        }
    }

    /// The folder of its requirements, scripts and environment.
    fn name(self) -> &'static str {
        match self {
            Self::Azureml => "azureml",
            Self::Fastapi => "fastapi",
            Self::Mosec => "mosec",
        }
    }

    fn program(self) -> anyhow::Result<PathBuf> {
        let program = match self {
            Self::Azureml => "azmlinfsrv",
            Self::Fastapi => "uvicorn",
            Self::Mosec => "python",
        };
        let program = environments()?.join(self.name()).join("bin").join(program);
        ensure!(program.is_file(), "{} is missing: `cargo xtask peers` installs it", program.display());
        Ok(program)
    }

    /// How somebody would start it with one worker and without a line of log for each request.
    fn command(self, program: &Path, script: &Path, address: SocketAddr) -> Command {
        let file = script.file_name().unwrap_or_default();
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let mut command = Command::new(program);
        command.current_dir(script.parent().unwrap_or(script));
        match self {
            // It takes no host, and is quiet because of the logging.json that it finds in the working directory.
            Self::Azureml => {
                command.arg("--entry_script").arg(file).args(["--worker_count", "1", "--port", &port])
            }
            Self::Fastapi => {
                let module = script.file_stem().unwrap_or_default().to_string_lossy();
                command.args([&format!("{module}:app"), "--workers", "1", "--no-access-log"]);
                command.args(["--host", &host, "--port", &port])
            }
            // One worker is what its programs ask for.
            Self::Mosec => command.arg(file).args(["--address", &host, "--port", &port]),
        };
        command
    }
}

impl Running {
    pub(crate) fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.contender()?.address)
    }

    /// As one that takes its turn.
    pub(crate) fn contender(&self) -> anyhow::Result<Contender> {
        let (name, request) = (self.entry.name, self.request.clone());
        match &self.process {
            Process::Replica(replica) => Contender::replica(name, replica, request),
            Process::Peer(server) => {
                Ok(Contender { is_peer: true, ..Contender::server(name, server, request) })
            }
        }
    }

    /// Looks at one answer, as JSON: a server that answers something else is not compared.
    pub(crate) async fn check(&self, is_right: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        let name = self.entry.name;
        let answer = load::once(self.address()?, &self.request).await.context(name)?;
        if !serde_json::from_slice(&answer).is_ok_and(|value| is_right(&value)) {
            bail!("{name} answers {}", String::from_utf8_lossy(&answer));
        }
        Ok(())
    }
}

/// Requirements and scripts.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

/// Where `cargo xtask peers` installs them: beside the profiles in cargo's target folder.
fn environments() -> anyhow::Result<PathBuf> {
    let profile = server::executable_folder()?;
    Ok(profile.parent().context("no target folder")?.join("peers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_has_its_script() {
        for entry in all() {
            assert!(folder().join(entry.script).is_file(), "{}", entry.script);
        }
    }

    #[test]
    fn names_are_those_of_servers_and_not_of_entries() {
        let names = names();
        assert!(names.len() < all().count());
        assert_eq!(names.iter().filter(|name| *name == "outrigger").count(), 1);
    }
}
