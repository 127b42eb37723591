//! The container engine: Docker, one that answers or one of our own.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::quietly;
use crate::optional::is_ci;
use crate::repo::Repo;
use crate::{process, say, signals};

/// Longest time for a command of the client's that builds nothing, in seconds: above what `docker stop` may take.
const COMMAND_SECONDS: &str = "120";
/// Held by whoever runs an engine of our kind. Two on one machine would share the bridge and hand out the same addresses.
const LOCK: &str = "/run/outrigger-engine.lock";
/// Longest wait for it.
const TURN: Duration = Duration::from_secs(10 * 60);
/// Longest time until an engine of our own answers.
const START: Duration = Duration::from_secs(30);
/// Longest time for it to end; containers are gone by then.
const END: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(50);
/// As much of old builds is kept by an engine of our own.
const CACHE: &str = "3GB";

/// An engine that answers.
pub(super) struct Engine {
    client: Client,
    daemon: Option<Daemon>,
}

/// What the search for an engine found.
pub(super) enum Found {
    Engine(Engine),
    /// None, and why.
    None(String),
}

/// Finds the engine that answers where the client looks by itself, or starts one.
pub(super) fn find(repo: &Repo) -> Result<Found> {
    let client = Client::find(repo);
    if let Err(error) = process::capture(client.command(None, ["--version"])) {
        return Ok(Found::None(format!("no container engine: no docker client: {error:#}")));
    }
    if client.answers(None) {
        return Ok(Found::Engine(Engine { client, daemon: None }));
    }
    Ok(match Daemon::start(repo, &client)? {
        Ok(daemon) => Found::Engine(Engine { client, daemon: Some(daemon) }),
        Err(reason) => Found::None(format!("no container engine: none answers, and {reason}")),
    })
}

impl Engine {
    /// A command of the client's that is soon over.
    pub(super) fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        self.client.command(self.socket(), arguments)
    }

    /// The command that builds an image; further arguments may follow.
    pub(super) fn build(&self, context: &Path, tag: &str) -> Command {
        let mut command = self.client.unbounded(self.socket(), ["build", "--tag", tag]);
        if self.client.has_buildkit {
            command.env("DOCKER_BUILDKIT", "1");
        }
        command.arg(context);
        command
    }

    fn socket(&self) -> Option<&Path> {
        self.daemon.as_ref().map(|daemon| daemon.socket.as_path())
    }

    /// One fact about an image or a container, by a Go template.
    pub(super) fn inspect(&self, what: &str, template: &str) -> Result<String> {
        let text = process::capture(self.command(["inspect", "--format", template, what]))?;
        Ok(text.trim().to_owned())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            // Nobody else cleans an engine that is ours alone.
            let _ = quietly(self.command(["image", "prune", "--force"]));
            let _ = quietly(self.command(["builder", "prune", "--force", "--keep-storage", CACHE]));
        }
    }
}

/// The program that talks to the engine.
struct Client {
    program: PathBuf,
    has_buildkit: bool,
}

impl Client {
    /// Debian's client where it is installed: another one, earlier on the search path, may not be able to build.
    fn find(repo: &Repo) -> Self {
        let mut listing = repo.command("dpkg");
        listing.args(["--listfiles", "docker.io"]);
        let files = process::capture(listing).unwrap_or_default();
        match files.lines().find(|file| file.ends_with("/bin/docker")) {
            Some(file) => Self { program: file.into(), has_buildkit: true },
            None => Self { program: "docker".into(), has_buildkit: false },
        }
    }

    fn command<'a>(&self, socket: Option<&Path>, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let unbounded = self.unbounded(socket, arguments);
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=5", COMMAND_SECONDS])
            .arg(unbounded.get_program())
            .args(unbounded.get_args());
        command
    }

    fn unbounded<'a>(&self, socket: Option<&Path>, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(socket) = socket {
            command.arg("--host").arg(format!("unix://{}", socket.display()));
        }
        command.args(arguments);
        command
    }

    fn answers(&self, socket: Option<&Path>) -> bool {
        process::capture(self.command(socket, ["version", "--format", "{{.Server.Version}}"])).is_ok()
    }
}

/// An engine of our own, ended when dropped.
struct Daemon {
    child: Child,
    socket: PathBuf,
    /// Sockets and process files: in a short path, since a socket's name has at most 107 bytes.
    run: PathBuf,
    /// Images and layers.
    data: PathBuf,
    /// Let go when it has ended.
    _turn: File,
}

impl Daemon {
    /// Starts dockerd and waits until it answers; the inner error is why it cannot run here.
    fn start(repo: &Repo, client: &Client) -> Result<Result<Self, String>> {
        let turn = match turn()? {
            Ok(turn) => turn,
            Err(reason) => return Ok(Err(reason)),
        };
        let kept = repo.target()?.join("image/engine");
        fs::create_dir_all(&kept).with_context(|| format!("could not make {}", kept.display()))?;
        let data = kept.join("data");
        let run = std::env::temp_dir().join(format!("outrigger-engine-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&run)
            .with_context(|| format!("could not make {}", run.display()))?;
        let log = kept.join("dockerd.log");
        let file = File::create(&log).with_context(|| format!("could not create {}", log.display()))?;
        let socket = run.join("docker.sock");
        // Ended with us even if we are killed.
        let mut command = repo.command("setpriv");
        command.args(["--pdeathsig", "TERM", "dockerd", "--host"]);
        command.arg(format!("unix://{}", socket.display()));
        command.arg("--data-root").arg(&data).arg("--exec-root").arg(run.join("exec"));
        command.arg("--pidfile").arg(run.join("dockerd.pid"));
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // A group of its own: Ctrl-C must not end it before its containers are removed.
        command.process_group(0);
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let _ = fs::remove_dir_all(&run);
                return Ok(Err(format!("dockerd cannot be started: {error}")));
            }
        };
        let mut daemon = Self { child, socket, run, data, _turn: turn };
        let begin = Instant::now();
        while !client.answers(Some(&daemon.socket)) {
            if signals::heard() > 0 {
                bail!("interrupted");
            }
            if let Some(status) = daemon.child.try_wait()? {
                return Ok(Err(format!("dockerd ended: {status}: {}", last_line(&log))));
            }
            if begin.elapsed() > START {
                let seconds = START.as_secs();
                return Ok(Err(format!("dockerd does not answer after {seconds} s: {}", last_line(&log))));
            }
            thread::sleep(LOOK);
        }
        say::line(&format!("started an engine, {:.1} s", begin.elapsed().as_secs_f64()));
        Ok(Ok(daemon))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            signals::terminate(&self.child);
            let begin = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) {
                if begin.elapsed() > END {
                    signals::kill_group(&self.child);
                    let _ = self.child.wait();
                }
                thread::sleep(LOOK);
            }
        }
        let _ = fs::remove_dir_all(&self.run);
        // What makes a developer's next run short is 5 GB; a machine that begins from nothing each time needs them for what comes next.
        if is_ci() {
            let _ = fs::remove_dir_all(&self.data);
        }
    }
}

/// Waits until no other engine of our kind runs on this machine; the inner error is why it cannot be waited for.
fn turn() -> Result<Result<File, String>> {
    let file = match File::create(LOCK) {
        Ok(file) => file,
        Err(error) => {
            return Ok(Err(format!("dockerd cannot be started without being root: {LOCK}: {error}")));
        }
    };
    let begin = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Ok(file)),
            Err(TryLockError::Error(error)) => return Err(error).context(LOCK),
            Err(TryLockError::WouldBlock) if begin.elapsed() > TURN => {
                bail!("another run has held {LOCK} for {} s", TURN.as_secs())
            }
            Err(TryLockError::WouldBlock) if signals::heard() > 0 => bail!("interrupted"),
            Err(TryLockError::WouldBlock) => thread::sleep(LOOK),
        }
    }
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing").to_owned()
}
