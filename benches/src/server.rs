//! Servers under test that are programs of others: started on a free port, awaited, and ended with all their processes.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;

use crate::{cpu, load};

/// Longer than any of them takes to be ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than any of them takes to end.
const GRACE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// A server that runs. It is ended when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// What it writes beside its answers: temporary files, a home, its log.
    scratch: TempDir,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Server {
    /// Starts one of our own programs that prints the address it listens on.
    ///
    /// # Errors
    /// If it does not start or prints something else.
    pub fn ours(executable: &Path) -> anyhow::Result<Self> {
        let name = executable.display();
        let scratch = tempfile::tempdir()?;
        let mut child =
            Command::new(executable).stdout(Stdio::piped()).spawn().with_context(|| name.to_string())?;
        let mut line = String::new();
        let read = child.stdout.take().map(|stdout| BufReader::new(stdout).read_line(&mut line));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut server = Self { child, scratch, address };
        read.context("stdout")??;
        server.address = line.trim().parse().with_context(|| format!("{name} printed {line:?}"))?;
        Ok(server)
    }

    /// Starts a command that is given its port, and waits until it answers `request` with 200.
    ///
    /// # Errors
    /// If it ends before, or takes too long; with what it logged.
    pub async fn theirs(command: impl FnOnce(SocketAddr) -> Command, request: &[u8]) -> anyhow::Result<Self> {
        let scratch = tempfile::tempdir()?;
        let log = scratch.path().join("log");
        let file = File::create(&log)?;
        let address = free_port()?;
        let mut command = command(address);
        command
            .env("HOME", scratch.path())
            .env("TMPDIR", scratch.path())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        let mut server = Self { child, scratch, address };
        let begun = Instant::now();
        loop {
            let Err(error) = load::once(address, request).await else { return Ok(server) };
            let ended = server.child.try_wait()?;
            if ended.is_some() || begun.elapsed() > PATIENCE {
                let state = ended.map_or_else(|| "does not answer".to_owned(), |status| status.to_string());
                bail!("{command:?} {state}: {error:#}\n{}", std::fs::read_to_string(log)?);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The directory that goes with it.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }
}

impl Drop for Server {
    /// In order where it can, since only the server knows in which order its processes end; what is left then is killed.
    fn drop(&mut self) {
        let family = cpu::descendants(self.pid());
        let begun = Instant::now();
        signal("TERM", &[self.pid()]);
        while begun.elapsed() < GRACE && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(PAUSE);
        }
        signal("KILL", &family);
        let _ = self.child.wait();
    }
}

/// Signals those that are still there. The shell's own `kill`, since a small system has no other.
fn signal(name: &str, pids: &[u32]) {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let command = format!("kill -{name} {} 2>/dev/null", pids.join(" "));
    let _ = Command::new("sh").args(["-c", &command]).status();
}

/// Where this program and those built with it are.
///
/// # Errors
/// If the system does not tell.
pub fn executable_folder() -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe()?.parent().context("no folder")?.to_owned())
}

/// The product, built with the same profile as this program.
///
/// # Errors
/// If it has not been built.
pub fn outrigger() -> anyhow::Result<PathBuf> {
    let path = executable_folder()?.join("outrigger");
    ensure!(
        path.is_file(),
        "{} is missing: cargo build --release -p outrigger -p outrigger-cpu",
        path.display()
    );
    Ok(path)
}

/// A port that nobody listens on. Somebody else may take it before the server does; the server then says so and the run ends.
fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outlives_its_server() {
        let mut command = Command::new("sh");
        // A child that ignores SIGTERM, as a worker in C code may.
        command
            .args(["-c", "sh -c 'trap \"\" TERM; echo up; while :; do sleep 1; done' & wait"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let family = cpu::descendants(child.id());
        assert!(family.len() >= 2, "{family:?}");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        drop(Server { child, scratch: tempfile::tempdir().unwrap(), address });
        let lives = |pid: &u32| {
            // Who reaps it is not our business.
            std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
        };
        // The kernel may still be at it.
        let begun = Instant::now();
        while family.iter().any(lives) {
            assert!(begun.elapsed() < PATIENCE, "{family:?}");
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn a_server_that_ends_says_why() {
        let command = |_| {
            let mut command = Command::new("sh");
            command.args(["-c", "echo no such module; exit 3"]);
            command
        };
        let error = Server::theirs(command, b"").await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no such module"), "{error}");
    }
}
