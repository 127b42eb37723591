//! A worker process: how it is started, watched and ended.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::config::ScriptConfig;

/// A longer line of a script's output is logged in pieces.
const LINE_LIMIT: usize = 8 * 1024;
/// Lines of stderr that are kept, to say why a worker died.
const TAIL_LINES: usize = 50;
/// How long a dead worker's output is read on: something that it has started may keep the pipes open for ever.
const OUTPUT_GRACE: Duration = Duration::from_millis(250);
/// How long a worker has between SIGTERM, which makes it print its stack, and SIGKILL.
const TERM_GRACE: Duration = Duration::from_millis(500);

/// A started process and our end of its socket.
pub(super) struct Process {
    pub(super) stream: UnixStream,
    child: Child,
    pid: i32,
    tail: Arc<Mutex<VecDeque<String>>>,
    output: JoinSet<()>,
    reaped: bool,
}

impl Drop for Process {
    fn drop(&mut self) {
        // What the script has started goes with it.
        if !self.reaped {
            sys::kill(-self.pid, libc::SIGKILL);
        }
    }
}

/// How a process ended.
#[derive(Clone, Debug)]
pub struct Death {
    /// Exit code or signal, in words.
    pub status: String,
    /// The last lines it wrote to stderr.
    pub tail: Vec<String>,
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.status)
    }
}

/// What a worker is started with.
pub(super) struct Launch<'a> {
    pub(super) config: &'a ScriptConfig,
    pub(super) host: &'a Path,
    pub(super) model_dir: Option<&'a Path>,
    pub(super) worker: usize,
}

impl Process {
    /// Starts `python -m outrigger_worker` in the code's root.
    pub(super) fn spawn(launch: &Launch<'_>) -> io::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = Command::new(&launch.config.python);
        command
            // -P: the working directory is the script's root, and must not come before the standard library.
            .args(["-P", "-m", "outrigger_worker"])
            .current_dir(&launch.config.app_root)
            .env("PYTHONPATH", python_path(launch.host))
            .env("AML_APP_ROOT", &launch.config.app_root)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: Ctrl-C on a terminal reaches the replica only, which then ends its workers in order.
            .process_group(0)
            .kill_on_drop(true);
        // The replica's settings, keys among them, are not the script's business.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("OUTRIGGER_") {
                command.env_remove(name);
            }
        }
        command.env("OUTRIGGER_WORKER_FD", theirs.as_raw_fd().to_string());
        if let Some(model_dir) = launch.model_dir {
            command.env("AZUREML_MODEL_DIR", model_dir);
        }
        command.envs(launch.config.environment.iter().map(|(name, value)| (name, value)));
        sys::prepare(&mut command, theirs.as_raw_fd());
        let mut child = command.spawn()?;
        drop(theirs);
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let mut output = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            output.spawn(log_lines(stdout, launch.worker, pid, "stdout", None));
        }
        if let Some(stderr) = child.stderr.take() {
            output.spawn(log_lines(stderr, launch.worker, pid, "stderr", Some(Arc::clone(&tail))));
        }
        Ok(Self { stream: UnixStream::from_std(ours)?, child, pid, tail, output, reaped: false })
    }

    /// The process's number.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for the end of a process that is ending by itself, at most `grace`; then ends it. Nothing of its group is left.
    pub(super) async fn reap(mut self, grace: Duration) -> Death {
        if tokio::time::timeout(grace, self.child.wait()).await.is_err() {
            sys::kill(-self.pid, libc::SIGKILL);
        }
        let status = self.child.wait().await;
        // What the script started itself goes with it, and so the pipes close.
        sys::kill(-self.pid, libc::SIGKILL);
        self.reaped = true;
        let rest = async { while self.output.join_next().await.is_some() {} };
        if tokio::time::timeout(OUTPUT_GRACE, rest).await.is_err() {
            self.output.abort_all();
        }
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
        Death { status: describe(status), tail }
    }

    /// Ends a process that hangs: SIGTERM, upon which it prints its Python stack even from inside C code, then SIGKILL.
    pub(super) async fn terminate(self) -> Death {
        sys::kill(self.pid, libc::SIGTERM);
        self.reap(TERM_GRACE).await
    }
}

fn describe(status: io::Result<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (_, Some(libc::SIGKILL)) => "signal 9 (SIGKILL): killed, perhaps because memory ran out".into(),
            (_, Some(libc::SIGSEGV)) => "signal 11 (SIGSEGV): crashed in native code".into(),
            (_, Some(libc::SIGTERM)) => "signal 15 (SIGTERM)".into(),
            (_, Some(signal)) => format!("signal {signal}"),
            _ => status.to_string(),
        },
        Err(error) => error.to_string(),
    }
}

fn python_path(host: &Path) -> std::ffi::OsString {
    let mut path = host.as_os_str().to_owned();
    if let Some(more) = std::env::var_os("PYTHONPATH").filter(|more| !more.is_empty()) {
        path.push(":");
        path.push(more);
    }
    path
}

/// Finds the directory that holds `outrigger_worker`.
///
/// # Errors
/// The places where it was looked for.
pub(super) fn find_host(configured: Option<&Path>) -> Result<PathBuf, Vec<PathBuf>> {
    let mut tried = Vec::new();
    if let Some(path) = configured {
        tried.push(path.to_owned());
    } else if let Ok(executable) = std::env::current_exe() {
        // Installed: PREFIX/bin beside PREFIX/share. In a checkout: target/PROFILE/outrigger beside entry-scripts; tests
        // run from target/PROFILE/deps.
        for (up, below) in [(2, "share/outrigger/python"), (3, "entry-scripts"), (4, "entry-scripts")] {
            if let Some(base) = executable.ancestors().nth(up) {
                tried.push(base.join(below));
            }
        }
    }
    match tried.iter().find(|path| path.join("outrigger_worker/__main__.py").is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(tried),
    }
}

/// Logs what a worker writes, line by line, until its pipe closes.
async fn log_lines(
    mut pipe: impl AsyncRead + Unpin,
    worker: usize,
    pid: i32,
    stream: &'static str,
    tail: Option<Arc<Mutex<VecDeque<String>>>>,
) {
    let mut buffer = Vec::with_capacity(1024);
    let emit = |line: &[u8]| {
        let text = String::from_utf8_lossy(line);
        tracing::info!(target: "outrigger::script", worker, pid, stream, "{text}");
        if let Some(tail) = &tail {
            let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(text.into_owned());
        }
    };
    loop {
        match pipe.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let mut start = 0;
        while let Some(end) = buffer[start..].iter().position(|byte| *byte == b'\n') {
            emit(&buffer[start..start + end]);
            start += end + 1;
        }
        buffer.drain(..start);
        if buffer.len() >= LINE_LIMIT {
            emit(&buffer);
            buffer.clear();
        }
        buffer.reserve(1024);
    }
    if !buffer.is_empty() {
        emit(&buffer);
    }
}

#[expect(unsafe_code, reason = "signals, and what a child does between fork and exec")]
mod sys {
    use std::os::fd::RawFd;

    use tokio::process::Command;

    /// Sends a signal; a negative number means a process group. A process that is gone already is no error.
    pub(super) fn kill(pid: i32, signal: i32) {
        if pid.unsigned_abs() > 1 {
            // SAFETY: `kill` takes two integers and touches no memory of ours.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// Lets the child keep `socket`, die with its parent, and write no core files.
    pub(super) fn prepare(command: &mut Command, socket: RawFd) {
        let parent = std::process::id();
        // SAFETY: between fork and exec only async-signal-safe calls are made, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                libc::fcntl(socket, libc::F_SETFD, 0);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // The parent may have died before the line above took effect.
                if libc::getppid().unsigned_abs() != parent {
                    libc::_exit(1);
                }
                let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                libc::setrlimit(libc::RLIMIT_CORE, &none);
                Ok(())
            });
        }
    }
}
