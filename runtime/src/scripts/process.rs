//! A worker process: how it is started, watched and ended.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger_regions::seqpacket_pair;
use outrigger_sandbox::Cgroup;
use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::confinement::Confinement;
use super::forkserver::{ForkServer, Forked};
use crate::config::ScriptConfig;

/// A longer line of a script's output is logged in pieces.
const LINE_LIMIT: usize = 8 * 1024;
/// Lines of stderr that are kept, to say why a worker died.
pub(super) const TAIL_LINES: usize = 50;
/// How long a dead worker's output is read on: something that it has started may keep the pipes open for ever.
const OUTPUT_GRACE: Duration = Duration::from_millis(250);
/// How long a worker has between SIGTERM, which makes it print its stack, and SIGKILL.
const TERM_GRACE: Duration = Duration::from_millis(500);

/// How often a control group is made anew that has gone before a process was in it.
const GROUP_TRIES: usize = 5;
/// How long the end of a process that was killed is waited for.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// A started process.
pub(super) struct Process {
    handle: Handle,
    pid: i32,
    tail: Tail,
    output: JoinSet<()>,
    cgroup: Option<Cgroup>,
    reaped: bool,
}

/// How a process is watched and ended.
enum Handle {
    /// A child of ours.
    Child(Box<Child>),
    /// A child of the fork-server's, which says how it ended and ends what it leaves behind.
    Forked(Forked),
}

/// The last lines that a process wrote to stderr.
pub(super) type Tail = Arc<Mutex<VecDeque<String>>>;

/// Our ends of what a process is started with.
pub(super) struct Ends {
    /// Frames.
    pub(super) stream: UnixStream,
    /// Descriptors of regions.
    pub(super) regions: OwnedFd,
}

/// What a process is started with.
pub(super) struct Inherited {
    pub(super) stream: OwnedFd,
    pub(super) regions: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

impl Drop for Process {
    fn drop(&mut self) {
        // What the script has started goes with it.
        if !self.reaped {
            self.kill();
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
    pub(super) confinement: &'a Confinement,
    pub(super) fork_server: Option<&'a ForkServer>,
}

impl Process {
    /// Starts a worker: forked from the fork-server where there is one that can, else as a program of its own.
    pub(super) async fn spawn(launch: &Launch<'_>) -> io::Result<(Self, Ends)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let (our_regions, their_regions) = seqpacket_pair()?;
        // A worker that does not look at what is sent to it must not hold us up.
        rustix::io::ioctl_fionbio(&our_regions, true)?;
        let (stdout, their_stdout) = io::pipe()?;
        let (stderr, their_stderr) = io::pipe()?;
        let inherited = Inherited {
            stream: theirs.into(),
            regions: their_regions,
            stdout: their_stdout.into(),
            stderr: their_stderr.into(),
        };
        let ends = Ends { stream: UnixStream::from_std(ours)?, regions: our_regions };
        let mut tries = 0;
        let (handle, pid, cgroup) = loop {
            let cgroup = launch.confinement.cgroup();
            match Self::begin(launch, &inherited, cgroup.as_ref()).await {
                // A replica in another namespace of processes does not see ours alive, and takes groups that are still empty for a dead one's.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) && tries < GROUP_TRIES => tries += 1,
                begun => {
                    let (handle, pid) = begun?;
                    break (handle, pid, cgroup);
                }
            }
        };
        drop(inherited);
        let tail = Tail::default();
        let mut output = JoinSet::new();
        let pipe = |end: io::PipeReader| tokio::net::unix::pipe::Receiver::from_owned_fd(end.into());
        output.spawn(log_lines(pipe(stdout)?, launch.worker, pid, "stdout", None));
        output.spawn(log_lines(pipe(stderr)?, launch.worker, pid, "stderr", Some(Arc::clone(&tail))));
        Ok((Self { handle, pid, tail, output, cgroup, reaped: false }, ends))
    }

    /// Has a process forked, or starts a program; either way it is in its control group before it comes to anything of the user's.
    async fn begin(
        launch: &Launch<'_>,
        inherited: &Inherited,
        cgroup: Option<&Cgroup>,
    ) -> io::Result<(Handle, i32)> {
        let Some(server) = launch.fork_server else { return Self::execute(launch, inherited, cgroup) };
        match server.spawn(inherited).await {
            Ok(forked) => {
                let pid = forked.pid();
                if let Some(Err(error)) = cgroup.map(|cgroup| cgroup.add(pid.unsigned_abs())) {
                    forked.signal(Signal::KILL);
                    return Err(error);
                }
                Ok((Handle::Forked(forked), pid))
            }
            Err(reason) => {
                tracing::warn!(worker = launch.worker, %reason, "not forked: the worker is started as a program of its own");
                Self::execute(launch, inherited, cgroup)
            }
        }
    }

    /// Starts `python -m outrigger_worker`, or the host of native scripts, in the code's root.
    fn execute(
        launch: &Launch<'_>,
        inherited: &Inherited,
        cgroup: Option<&Cgroup>,
    ) -> io::Result<(Handle, i32)> {
        let mut command = match &launch.config.native {
            Some(_) => {
                let mut command = Command::new(launch.host);
                command.arg("native-worker");
                command
            }
            None => python(launch.config, launch.host, "outrigger_worker"),
        };
        environment(&mut command, launch.config, launch.host, launch.model_dir, launch.confinement);
        command
            .env("OUTRIGGER_WORKER_FD", inherited.stream.as_raw_fd().to_string())
            .env("OUTRIGGER_REGIONS_FD", inherited.regions.as_raw_fd().to_string())
            .stdout(inherited.stdout.try_clone()?)
            .stderr(inherited.stderr.try_clone()?);
        sys::prepare(&mut command, [inherited.stream.as_raw_fd(), inherited.regions.as_raw_fd()]);
        launch.confinement.confine(&mut command, cgroup)?;
        let child = command.spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
        Ok((Handle::Child(Box::new(child)), pid))
    }

    /// The process's number.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Keeps a line that was meant for stderr and came another way, to say why the process died.
    pub(super) fn remember(&self, line: &str) {
        remember(&self.tail, line.to_owned());
    }

    /// Ends the process at once, and what it has started.
    fn kill(&self) {
        match &self.handle {
            Handle::Child(_) => sys::kill(-self.pid, libc::SIGKILL),
            Handle::Forked(forked) => forked.signal(Signal::KILL),
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill_all();
        }
    }

    async fn wait(&mut self) -> End {
        match &mut self.handle {
            Handle::Child(child) => End::of(child.wait().await),
            Handle::Forked(forked) => forked.wait().await,
        }
    }

    /// Waits for the end of a process that is ending by itself, at most `grace`; then ends it. Nothing of its group is left.
    pub(super) async fn reap(mut self, grace: Duration) -> Death {
        if tokio::time::timeout(grace, self.wait()).await.is_err() {
            self.kill();
        }
        // Not even SIGKILL ends what hangs in the kernel, in a device's driver say. Nobody is kept waiting for that.
        let end = tokio::time::timeout(KILL_GRACE, self.wait()).await.unwrap_or(End::Unknown);
        // What the script started itself goes with it, and so the pipes close.
        match &self.handle {
            Handle::Child(_) => sys::kill(-self.pid, libc::SIGKILL),
            // The fork-server has seen to its group; where that is gone, nobody has seen the end.
            Handle::Forked(forked) => forked.signal(Signal::KILL),
        }
        let ran_out = self.cgroup.as_ref().is_some_and(|cgroup| {
            cgroup.kill_all();
            cgroup.oom_kills() > 0
        });
        self.reaped = true;
        let rest = async { while self.output.join_next().await.is_some() {} };
        if tokio::time::timeout(OUTPUT_GRACE, rest).await.is_err() {
            self.output.abort_all();
        }
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
        Death { status: end.describe(ran_out), tail }
    }

    /// Ends a process that hangs: SIGTERM, upon which it prints its Python stack even from inside C code, then SIGKILL.
    pub(super) async fn terminate(self) -> Death {
        match &self.handle {
            Handle::Child(_) => sys::kill(self.pid, libc::SIGTERM),
            Handle::Forked(forked) => forked.signal(Signal::TERM),
        }
        self.reap(TERM_GRACE).await
    }
}

/// `python -P -m MODULE`. -P: the working directory is the script's root, and must not come before the standard library.
pub(super) fn python(config: &ScriptConfig, host: &Path, module: &str) -> Command {
    let mut command = Command::new(&config.python);
    command.args(["-P", "-m", module]).env("PYTHONPATH", python_path(host));
    command
}

/// What every process that runs a user's code is started with.
pub(super) fn environment(
    command: &mut Command,
    config: &ScriptConfig,
    host: &Path,
    model_dir: Option<&Path>,
    confinement: &Confinement,
) {
    command
        .current_dir(&config.app_root)
        .stdin(Stdio::null())
        // A group of its own: Ctrl-C on a terminal reaches the replica only, which then ends its workers in order.
        .process_group(0)
        .kill_on_drop(true);
    confinement.environment(command);
    command.env("AML_APP_ROOT", &config.app_root);
    if config.native.is_none() {
        command.env("PYTHONPATH", python_path(host));
    }
    if let Some(model_dir) = model_dir {
        command.env("AZUREML_MODEL_DIR", model_dir);
    }
    command.envs(config.environment.iter().map(|(name, value)| (name, value)));
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// Nobody knows.
    Unknown,
}

impl End {
    fn of(status: io::Result<ExitStatus>) -> Self {
        use std::os::unix::process::ExitStatusExt;
        match status {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => Self::Code(code),
                (_, Some(signal)) => Self::Signal(signal),
                _ => Self::Unknown,
            },
            Err(_) => Self::Unknown,
        }
    }

    /// In words. `ran_out` says that the system killed something of the worker's because memory ran out.
    fn describe(self, ran_out: bool) -> String {
        match self {
            Self::Code(code) => format!("exit code {code}"),
            Self::Signal(libc::SIGKILL) if ran_out => {
                "signal 9 (SIGKILL): it used more memory than script.memory allows".into()
            }
            Self::Signal(libc::SIGKILL) => {
                "signal 9 (SIGKILL): killed, perhaps because memory ran out".into()
            }
            Self::Signal(libc::SIGSEGV) => "signal 11 (SIGSEGV): crashed in native code".into(),
            Self::Signal(libc::SIGABRT) => "signal 6 (SIGABRT): aborted in native code".into(),
            Self::Signal(libc::SIGSYS) => {
                "signal 31 (SIGSYS): made a system call that the sandbox forbids".into()
            }
            Self::Signal(libc::SIGTERM) => "signal 15 (SIGTERM)".into(),
            Self::Signal(signal) => format!("signal {signal}"),
            Self::Unknown => "an end that nobody saw".into(),
        }
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

/// Finds the directory that holds `outrigger_worker`, or, for a native script, the executable that is its host: our own.
///
/// # Errors
/// The places where it was looked for.
pub(super) fn find_host(config: &ScriptConfig) -> Result<PathBuf, Vec<PathBuf>> {
    if config.native.is_some() {
        return std::env::current_exe().map_err(|_| vec!["/proc/self/exe".into()]);
    }
    let mut tried = Vec::new();
    if let Some(path) = &config.host {
        tried.push(path.clone());
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
pub(super) async fn log_lines(
    mut pipe: impl AsyncRead + Unpin,
    worker: usize,
    pid: i32,
    stream: &'static str,
    tail: Option<Tail>,
) {
    let mut buffer = Vec::with_capacity(1024);
    let emit = |line: &[u8]| {
        let text = String::from_utf8_lossy(line);
        let text = super::log::one_line(&text);
        tracing::info!(target: "outrigger::script", worker, pid, stream, "{text}");
        if let Some(tail) = &tail {
            remember(tail, text.into_owned());
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

fn remember(tail: &Tail, line: String) {
    let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    if tail.len() == TAIL_LINES {
        tail.pop_front();
    }
    tail.push_back(line);
}

#[expect(unsafe_code, reason = "signals, and what a child does between fork and exec")]
pub(super) mod sys {
    use std::os::fd::RawFd;

    use tokio::process::Command;

    /// Sends a signal; a negative number means a process group. A process that is gone already is no error.
    pub(crate) fn kill(pid: i32, signal: i32) {
        if pid.unsigned_abs() > 1 {
            // SAFETY: `kill` takes two integers and touches no memory of ours.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// Lets the child keep `sockets`, die with its parent, and write no core files.
    pub(crate) fn prepare<const N: usize>(command: &mut Command, sockets: [RawFd; N]) {
        let parent = std::process::id();
        // SAFETY: between fork and exec only async-signal-safe calls are made, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                for socket in sockets {
                    libc::fcntl(socket, libc::F_SETFD, 0);
                }
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
