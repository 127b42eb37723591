//! A real replica: the executable, started on free ports, with its log read line by line.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything here takes on a slow machine; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// A key for tests.
pub const KEY: &str = "test-key-0123456789-abcdefghijklmnop";
/// The other one.
pub const SECONDARY_KEY: &str = "other-key-0123456789-abcdefghijklmno";

/// A replica to be started.
pub struct Launch {
    command: Command,
    directory: TempDir,
}

/// A replica that ended, with all that it logged.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its log, a JSON object for each line.
    pub log: Vec<Value>,
}

/// A replica that runs. It is killed when dropped.
pub struct ReplicaProcess {
    child: Child,
    directory: TempDir,
    log: Arc<Mutex<Vec<Value>>>,
    lines: Receiver<Value>,
    gate: Arc<Gate>,
    /// `http://IP:PORT` of the score listener.
    pub score: String,
    /// `http://IP:PORT` of the observe listener.
    pub observe: String,
    /// The admin listener's address.
    pub admin: String,
}

/// Keeps the log from being read.
pub struct PausedLog(Arc<Gate>);

impl Drop for PausedLog {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, closed: bool) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = closed;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(closed, |closed| *closed));
    }
}

impl Launch {
    /// `executable serve`, with free ports, keys of the tests', and a state directory of its own.
    pub fn new(executable: impl AsRef<Path>) -> Self {
        let mut command = Command::new(executable.as_ref());
        command.arg("serve");
        Self::of(command)
    }

    /// The same for another command line: that of `command`, to which arguments are added.
    pub fn of(mut command: Command) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // Nothing of the developer's own settings reaches a test.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if ["OUTRIGGER_", "AZUREML_", "AML_"].iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command
            .env("OUTRIGGER_STATE_DIR", directory.path().join("state"))
            .env("OUTRIGGER_SCORE_LISTEN", "127.0.0.1:0")
            .env("OUTRIGGER_OBSERVE_LISTEN", "127.0.0.1:0")
            .env("OUTRIGGER_SCRIPT_PYTHON", super::python())
            .env("OUTRIGGER_SCRIPT_HOST", super::repository().join("entry-scripts"))
            .env("OUTRIGGER_AUTH_PRIMARY_KEY", KEY)
            .env("OUTRIGGER_AUTH_SECONDARY_KEY", SECONDARY_KEY)
            .env("OUTRIGGER_LOG_FORMAT", "json")
            .env_remove("RUST_LOG")
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Self { command, directory }
    }

    /// The directory that goes with the replica; its working directory too.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a file into the directory.
    ///
    /// # Panics
    /// If it cannot be written.
    #[must_use]
    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        let path = self.directory.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, content).expect("a file");
        self
    }

    /// Adds a script of this text, and serves it.
    #[must_use]
    pub fn script(self, text: &str) -> Self {
        self.file("app/score.py", text).args(["--script-entry", "app/score.py"])
    }

    /// Adds flags.
    #[must_use]
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Removes a variable.
    #[must_use]
    pub fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// If it ends instead; the message holds its log.
    pub fn start(self) -> ReplicaProcess {
        let mut replica = self.spawn();
        replica.wait_for(|line| message(line) == "ready");
        replica
    }

    /// Starts it and waits until it listens; it may still be loading.
    ///
    /// # Panics
    /// As [`Launch::start`].
    pub fn spawn(mut self) -> ReplicaProcess {
        let mut child = self.command.spawn().expect("the replica's executable starts");
        let stderr = child.stderr.take().expect("stderr is piped");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (sender, lines) = std::sync::mpsc::channel();
        let kept = Arc::clone(&log);
        let gate = Arc::new(Gate::default());
        let opened = Arc::clone(&gate);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(line.clone());
                let _ = sender.send(line);
                opened.pass();
            }
        });
        let none = String::new;
        let mut replica = ReplicaProcess {
            child,
            directory: self.directory,
            log,
            lines,
            gate,
            score: none(),
            observe: none(),
            admin: none(),
        };
        let line = replica.wait_for(|line| message(line) == "listening");
        let field = |name: &str| line["fields"][name].as_str().expect("an address").to_owned();
        replica.score = format!("http://{}", field("score"));
        replica.observe = format!("http://{}", field("observe"));
        replica.admin = field("admin");
        replica
    }

    /// The command as it stands, for who starts it in another way; the directory goes when the second value is dropped.
    pub fn into_command(self) -> (Command, TempDir) {
        (self.command, self.directory)
    }

    /// Runs it to its end, which must come by itself; one that serves instead is killed after a while.
    ///
    /// # Panics
    /// If it does not start.
    pub fn run(mut self) -> Ended {
        let child = self.command.spawn().expect("the replica's executable starts");
        let (pid, (ended, waits)) = (child.id(), std::sync::mpsc::channel::<()>());
        let watching = std::thread::spawn(move || {
            if waits.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                kill("KILL", pid);
            }
        });
        let output = child.wait_with_output().expect("a child");
        drop(ended);
        let _ = watching.join();
        let log = String::from_utf8_lossy(&output.stderr)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| Value::String(line.to_owned())))
            .collect();
        Ended { status: output.status, log }
    }
}

impl Ended {
    /// The whole log as text.
    pub fn text(&self) -> String {
        self.log
            .iter()
            .map(|line| {
                line["fields"]["message"].as_str().map_or_else(|| line.to_string(), str::to_owned) + "\n"
            })
            .collect()
    }
}

/// A log line's message.
pub fn message(line: &Value) -> &str {
    line["fields"]["message"].as_str().unwrap_or_default()
}

/// Sends a signal by its name. The shell's own `kill`, since a small system has no other.
///
/// # Panics
/// If there is no such process.
pub fn kill(signal: &str, pid: u32) {
    let status = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status();
    assert!(status.expect("a shell").success(), "process {pid} is not there");
}

impl ReplicaProcess {
    /// The replica's directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of the log, those that came before this call and were not waited for yet counted in.
    ///
    /// # Panics
    /// If the replica ends without it.
    pub fn wait_for(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if wanted(&line) => return line,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    panic!("the line did not come in time; the log:\n{}", self.log_text())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the replica ended; its log:\n{}", self.log_text())
                }
            }
        }
    }

    /// Waits until the log holds a text, whenever it came.
    ///
    /// # Panics
    /// If the replica ends without it.
    pub fn wait_for_text(&mut self, text: &str) {
        while !self.log_text().contains(text) {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(_) => {}
                Err(_) if self.log_text().contains(text) => {}
                Err(_) => panic!("`{text}` did not come; the log:\n{}", self.log_text()),
            }
        }
    }

    /// Stops reading the log, so that the replica's pipe fills, until the value is dropped.
    pub fn pause_log(&self) -> PausedLog {
        self.gate.set(true);
        PausedLog(Arc::clone(&self.gate))
    }

    /// Everything logged so far.
    pub fn log_text(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Sends a signal by its name, such as `TERM`.
    ///
    /// # Panics
    /// If there is no such process.
    pub fn signal(&self, name: &str) {
        kill(name, self.pid());
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// If it does not come.
    pub fn wait(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(Instant::now() < deadline, "the replica does not end; its log:\n{}", self.log_text());
            // The end closes stderr, which ends the channel: no polling.
            let _ = self.lines.recv_timeout(Duration::from_millis(200));
        };
        while self.lines.recv().is_ok() {}
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ended { status, log }
    }

    /// Its exit status, if it has ended.
    ///
    /// # Panics
    /// If the system does not know the process.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child")
    }

    /// SIGTERM, then the end.
    ///
    /// # Panics
    /// As [`ReplicaProcess::wait`].
    pub fn stop(self) -> Ended {
        self.signal("TERM");
        self.wait()
    }

    /// SIGTERM, then the end; the directory stays for who looks at what was left there.
    ///
    /// # Panics
    /// As [`ReplicaProcess::wait`].
    pub fn stop_keeping(mut self) -> TempDir {
        let kept =
            std::mem::replace(&mut self.directory, tempfile::tempdir().expect("a temporary directory"));
        self.stop();
        kept
    }

    /// The path of the admin socket.
    ///
    /// # Panics
    /// If management is not on a Unix socket.
    pub fn admin_socket(&self) -> PathBuf {
        PathBuf::from(self.admin.strip_prefix("unix:").expect("a Unix socket"))
    }
}

impl Drop for ReplicaProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
