//! The fork-server: one process that has Python and what the operator names loaded, and forks workers that are ready at once. How
//! it talks is in `entry-scripts/PROTOCOL.md`.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger_regions::seqpacket_pair;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Signal, pidfd_send_signal};
use serde::Deserialize;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::confinement::Confinement;
use super::process::{self, End, Inherited, Tail};
use super::worker::Failure;
use crate::config::ScriptConfig;

/// The longest message.
const MESSAGE: usize = 64 * 1024;
/// How long a worker may take to be forked: longer ones mean that the fork-server is in trouble.
const FORK_LIMIT: Duration = Duration::from_secs(5);

/// A fork-server that is running.
pub(super) struct ForkServer {
    shared: Arc<Shared>,
    /// Ends the reading task, and so the process, when dropped.
    _tasks: JoinSet<()>,
}

struct Shared {
    socket: UnixDatagram,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    spawning: HashMap<u64, oneshot::Sender<Result<Forked, String>>>,
    living: HashMap<i32, watch::Sender<Option<End>>>,
    /// The fork-server is gone: nothing more comes.
    gone: bool,
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker that was forked.
pub(super) struct Forked {
    pid: i32,
    process: OwnedFd,
    end: watch::Receiver<Option<End>>,
}

impl Forked {
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal. A process that is gone already is no error.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.process, signal);
    }

    /// Waits until it has ended, and been reaped with everything that it left behind.
    pub(super) async fn wait(&mut self) -> End {
        match self.end.wait_for(Option::is_some).await {
            Ok(end) => end.unwrap_or(End::Unknown),
            // The fork-server is gone, and its workers with it.
            Err(_) => End::Unknown,
        }
    }
}

/// What the fork-server says.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    ready: bool,
    preloaded: Vec<String>,
    failed: Option<FailedModule>,
    spawned: Option<u64>,
    pid: i32,
    refused: Option<u64>,
    message: String,
    exited: Option<i32>,
    code: Option<i32>,
    signal: Option<i32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FailedModule {
    module: String,
    message: String,
    traceback: String,
}

/// Why there is no fork-server.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForkServerError {
    /// The interpreter does not start.
    #[error("cannot start the fork-server")]
    Spawn(#[from] io::Error),
    /// A module of `script.preload` does not import.
    #[error("script.preload: {} does not import: {}", .0.phase, .0.message)]
    Preload(Failure),
    /// It ended or said something else.
    #[error("the fork-server did not come up: {0}")]
    Broken(String),
}

impl ForkServer {
    /// Starts the process and waits until it has imported what it is to import.
    pub(super) async fn start(
        config: &ScriptConfig,
        host: &std::path::Path,
        model_dir: Option<&std::path::Path>,
        confinement: &Confinement,
    ) -> Result<Self, ForkServerError> {
        let (ours, theirs) = seqpacket_pair()?;
        let mut command = process::python(config, host, "outrigger_worker.forkserver");
        process::environment(&mut command, config, host, model_dir, confinement);
        command
            .env("OUTRIGGER_FORKSERVER_FD", theirs.as_raw_fd().to_string())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        process::sys::prepare(&mut command, [theirs.as_raw_fd()]);
        confinement.confine(&mut command, None)?;
        let mut child = command.spawn()?;
        drop(theirs);
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
        rustix::io::ioctl_fionbio(&ours, true).map_err(io::Error::from)?;
        // A seqpacket socket is one that also tells when the other end is gone; tokio need not know the difference.
        let socket = UnixDatagram::from_std(std::os::unix::net::UnixDatagram::from(ours))?;
        let shared = Arc::new(Shared { socket, state: Mutex::default() });

        let tail = Tail::default();
        let mut tasks = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            tasks.spawn(process::log_lines(stdout, usize::MAX, pid, "stdout", None));
        }
        if let Some(stderr) = child.stderr.take() {
            tasks.spawn(process::log_lines(stderr, usize::MAX, pid, "stderr", Some(Arc::clone(&tail))));
        }
        let mut path = vec![config.app_root.clone()];
        path.extend(config.source_directory.as_ref().map(|below| config.app_root.join(below)));
        let first = serde_json::json!({ "preload": config.preload, "path": path });
        let begun = async {
            shared.send(first.to_string().as_bytes(), &[]).await?;
            shared.receive().await
        };
        let said = match tokio::time::timeout(config.import_timeout, begun).await {
            Ok(Ok((said, _))) => said,
            Ok(Err(error)) => {
                let tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
                let tail = tail.iter().map(|line| format!("\n  {line}")).collect::<String>();
                return Err(ForkServerError::Broken(format!("{error}{tail}")));
            }
            Err(_) => {
                let text =
                    format!("imports took longer than script.import_timeout ({:?})", config.import_timeout);
                return Err(ForkServerError::Broken(text));
            }
        };
        if let Some(FailedModule { module, message, traceback }) = said.failed {
            return Err(ForkServerError::Preload(Failure { phase: module, message, traceback }));
        }
        if !said.ready {
            return Err(ForkServerError::Broken("it said something else than `ready`".into()));
        }
        tracing::info!(pid, preloaded = ?said.preloaded, "fork-server ready");
        let reader = Arc::clone(&shared);
        tasks.spawn(async move {
            let error = reader.listen().await;
            tracing::warn!(%error, "the fork-server has ended");
            reader.state().gone = true;
            // It may be alive and have said what makes no sense. What it had forked ends with it, and is over only then.
            let _ = child.start_kill();
            let _ = child.wait().await;
            reader.lose_all();
        });
        Ok(Self { shared, _tasks: tasks })
    }

    /// Whether it can fork no more.
    pub(super) fn is_gone(&self) -> bool {
        self.shared.state().gone
    }

    /// Has a worker forked.
    ///
    /// # Errors
    /// Why not, in words.
    pub(super) async fn spawn(&self, inherited: &Inherited) -> Result<Forked, String> {
        let (sender, forked) = oneshot::channel();
        let number = {
            let mut state = self.shared.state();
            if state.gone {
                return Err("the fork-server has ended".into());
            }
            state.next += 1;
            let number = state.next;
            state.spawning.insert(number, sender);
            number
        };
        let message = format!("{{\"spawn\": {number}}}");
        let Inherited { stream, regions, stdout, stderr } = inherited;
        let files = [stream.as_fd(), regions.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let asked = async {
            self.shared.send(message.as_bytes(), &files).await.map_err(|error| error.to_string())?;
            forked.await.map_err(|_| "the fork-server has ended".to_owned())?
        };
        let forked = tokio::time::timeout(FORK_LIMIT, asked).await;
        self.shared.state().spawning.remove(&number);
        forked.unwrap_or_else(|_| Err(format!("the fork-server did not answer within {FORK_LIMIT:?}")))
    }
}

impl Shared {
    /// Nothing more comes: whoever waits is told.
    fn lose_all(&self) {
        let mut state = self.state();
        state.gone = true;
        state.spawning.clear();
        state.living.clear();
    }

    async fn send(&self, message: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.socket
            .async_io(Interest::WRITABLE, || {
                let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                sendmsg(&self.socket, &[io::IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?;
                Ok(())
            })
            .await
    }

    async fn receive(&self) -> io::Result<(Said, Option<OwnedFd>)> {
        self.socket
            .async_io(Interest::READABLE, || {
                let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut ancillary = RecvAncillaryBuffer::new(&mut space);
                let mut bytes = vec![0; MESSAGE];
                let got = recvmsg(
                    &self.socket,
                    &mut [io::IoSliceMut::new(&mut bytes)],
                    &mut ancillary,
                    RecvFlags::CMSG_CLOEXEC,
                )?;
                if got.bytes == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let file = ancillary.drain().find_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut files) => files.next(),
                    _ => None,
                });
                Ok((serde_json::from_slice(&bytes[..got.bytes])?, file))
            })
            .await
    }

    /// Hears what the fork-server says, until it says no more.
    async fn listen(&self) -> io::Error {
        loop {
            let (said, file) = match self.receive().await {
                Ok(said) => said,
                Err(error) => return error,
            };
            let mut state = self.state();
            if let (Some(number), Some(process)) = (said.spawned, file) {
                let (sender, end) = watch::channel(None);
                let forked = Forked { pid: said.pid, process, end };
                state.living.insert(said.pid, sender);
                let wanted = state.spawning.remove(&number);
                // Nobody waits any more: the worker finds its sockets closed and ends.
                if let Some(Err(Ok(forked))) = wanted.map(|wanted| wanted.send(Ok(forked))) {
                    forked.signal(Signal::KILL);
                }
            } else if let Some(number) = said.refused {
                if let Some(wanted) = state.spawning.remove(&number) {
                    let _ = wanted.send(Err(said.message));
                }
            } else if let Some(sender) = said.exited.and_then(|pid| state.living.remove(&pid)) {
                let end = match (said.code, said.signal) {
                    (Some(code), _) => End::Code(code),
                    (_, Some(signal)) => End::Signal(signal),
                    _ => End::Unknown,
                };
                sender.send_replace(Some(end));
            }
        }
    }
}
