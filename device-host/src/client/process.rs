//! The child: how it is started, what it prints, and how it is ended.

use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use outrigger_sandbox::Rules;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use super::options::Options;
use crate::{patience, socket};

/// A longer line is logged in pieces.
const LINE_LIMIT: usize = 8 * 1024;
/// How long the end of a process is waited for that was killed: one that hangs in a driver does not end.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// How long a process has between SIGTERM and SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(1);
/// How long the output of a dead process is read on: something that it has started may keep the pipes open.
const OUTPUT_GRACE: Duration = Duration::from_millis(250);

/// A started process, in a group of its own. Killed and reaped when dropped.
pub(super) struct Process {
    child: Option<Child>,
    pid: u32,
    ended: OwnedFd,
    output: Option<(JoinHandle<()>, OwnedFd)>,
}

impl Process {
    /// Starts one; the other end of its control socket. It dies with the thread that calls this. What it prints is logged under the
    /// name of its `device`, once that is known.
    pub(super) fn start(options: &Options, device: &Arc<OnceLock<String>>) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socket::pair()?;
        let (stdout, their_stdout) = io::pipe()?;
        let (stderr, their_stderr) = io::pipe()?;
        let mut command = Command::new(&options.executable);
        command
            .arg("device-host")
            .stdin(Stdio::from(theirs))
            .stdout(their_stdout)
            .stderr(their_stderr)
            .process_group(0);
        // Neither the replica's own settings nor anybody's credentials: a backend is configured by its settings.
        let environment = outrigger_sandbox::scrub(std::env::vars_os(), Rules::default());
        command.env_clear().envs(environment.kept);
        let child = command.spawn()?;
        drop(command); // and with it the child's ends of the pipes
        let pid = child.id();
        let (child, ended) = watched(child, |pid| pidfd_open(pid, PidfdFlags::empty()))?;
        let mut process = Self { child: Some(child), pid, ended, output: None };
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let stopped = stop.try_clone()?;
        let of = Of { backend: options.name.clone(), device: Arc::clone(device), pid };
        let read = move || log_output(&of, [stdout, stderr], &stopped);
        process.output = Some((std::thread::Builder::new().name("device-log".into()).spawn(read)?, stop));
        Ok((process, ours))
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Can be read when the process has ended.
    pub(super) fn ended(&self) -> &OwnedFd {
        &self.ended
    }

    /// Waits for its end, at most so long; whether that came.
    pub(super) fn has_ended(&self, limit: Duration) -> bool {
        patience::readable(self.ended.as_fd(), limit).unwrap_or(true)
    }

    fn signal(&self, signal: Signal) {
        // Itself first, which fails where somebody else has reaped it: then its number may be another's already.
        if pidfd_send_signal(&self.ended, signal).is_ok()
            && let Some(group) = number(self.pid)
        {
            // And all that it has started. It fails only where nobody is left.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Ends it, if it has not ended by itself within `grace`: with SIGTERM, then SIGKILL.
    pub(super) fn end_within(self, grace: Duration) -> String {
        if !self.has_ended(grace) {
            self.signal(Signal::TERM);
            self.has_ended(TERM_GRACE);
        }
        self.end()
    }

    /// Ends it at once if it has not ended, and all that it has started; how it ended.
    pub(super) fn end(mut self) -> String {
        self.reap()
    }

    fn reap(&mut self) -> String {
        let Some(mut child) = self.child.take() else { return "has ended".into() };
        // Before it is reaped, for its number is another's then. What it has started goes with it, so that the pipes close.
        self.signal(Signal::KILL);
        let status = if self.has_ended(KILL_GRACE) {
            child.wait().map_or_else(|error| format!("has ended: {error}"), describe)
        } else {
            let wait = move || drop(child.wait());
            let _ = std::thread::Builder::new().spawn(wait);
            "was killed, and hangs in the kernel".to_owned()
        };
        if let Some((thread, stop)) = self.output.take() {
            finish_output(thread, &stop);
        }
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.reap();
    }
}

fn number(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// A child and what `open` makes of its number. Where that fails the child, and all that it has started, is ended.
fn watched(
    mut child: Child,
    open: impl FnOnce(Pid) -> rustix::io::Result<OwnedFd>,
) -> io::Result<(Child, OwnedFd)> {
    let pid = number(child.id()).ok_or(io::ErrorKind::NotFound)?;
    match open(pid) {
        Ok(ended) => Ok((child, ended)),
        Err(error) => {
            // Nobody has reaped it, so that the number is still its own.
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = child.kill();
            let _ = child.wait();
            Err(error.into())
        }
    }
}

/// Lets the log have what is left in the pipes.
fn finish_output(thread: JoinHandle<()>, stop: &OwnedFd) {
    let until = std::time::Instant::now() + OUTPUT_GRACE;
    while !thread.is_finished() && std::time::Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = rustix::io::write(stop, &1u64.to_ne_bytes());
    let _ = thread.join();
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (_, Some(signal)) => format!("was ended by signal {signal} ({})", name(signal)),
        _ => format!("has ended: {status}"),
    }
}

/// What a signal is called, and what it mostly means.
fn name(signal: i32) -> &'static str {
    match signal {
        4 => "SIGILL: an instruction that this processor does not have",
        6 => "SIGABRT: it gave up by itself",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL: killed, perhaps for want of memory",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        _ => "unknown",
    }
}

/// Whose output it is.
struct Of {
    backend: String,
    device: Arc<OnceLock<String>>,
    pid: u32,
}

/// Logs what a child prints, line by line, until it closes both pipes or somebody says stop.
fn log_output(of: &Of, pipes: [PipeReader; 2], stop: &OwnedFd) {
    let mut streams = pipes.map(|pipe| Stream { pipe: Some(pipe), line: Vec::new() });
    while streams.iter().any(|stream| stream.pipe.is_some()) {
        let mut polled: Vec<_> = vec![PollFd::new(stop, PollFlags::IN)];
        let open = streams.iter().filter_map(|stream| stream.pipe.as_ref());
        polled.extend(open.map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        match poll(&mut polled, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => break,
            Ok(_) => {}
        }
        let mut ready = polled.iter().map(|polled| !polled.revents().is_empty());
        if ready.next() == Some(true) {
            break;
        }
        let ready: Vec<bool> = ready.collect();
        let open = streams.iter_mut().filter(|stream| stream.pipe.is_some());
        for (stream, ready) in open.zip(ready) {
            if ready {
                stream.read(of);
            }
        }
    }
    streams.iter_mut().for_each(|stream| stream.flush(of));
}

struct Stream {
    pipe: Option<PipeReader>,
    line: Vec<u8>,
}

impl Stream {
    fn read(&mut self, of: &Of) {
        let mut chunk = [0; LINE_LIMIT];
        let read = self.pipe.as_mut().map_or(Ok(0), |pipe| pipe.read(&mut chunk));
        match read {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => self.pipe = None,
            Ok(count) => {
                for &byte in chunk.get(..count).unwrap_or_default() {
                    if byte == b'\n' || self.line.len() == LINE_LIMIT {
                        self.flush(of);
                    }
                    if byte != b'\n' {
                        self.line.push(byte);
                    }
                }
            }
        }
    }

    fn flush(&mut self, of: &Of) {
        let text = String::from_utf8_lossy(&self.line);
        let text = text.trim_end();
        if !text.is_empty() {
            // What a library prints must not look like lines of ours.
            let harmless = |c: char| if c.is_control() && c != '\t' { ' ' } else { c };
            let text: String = text.chars().map(harmless).collect();
            let device = of.device.get().unwrap_or(&of.backend);
            tracing::info!(target: "outrigger::device_host", device, pid = of.pid, "{device}: {text}");
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_cannot_be_watched_is_ended() {
        let child = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let pid = child.id();
        let error = watched(child, |_| Err(rustix::io::Errno::MFILE)).unwrap_err();
        assert!(socket::is_want(&error), "{error}");
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "neither alive nor a zombie");
    }

    #[test]
    fn ends_are_named() {
        assert_eq!(describe(ExitStatus::from_raw(3 << 8)), "exited with code 3");
        let killed = describe(ExitStatus::from_raw(9));
        assert_eq!(killed, "was ended by signal 9 (SIGKILL: killed, perhaps for want of memory)");
    }

    /// A process that has ended and left one in its group; whether that is still there after what is left of the first was ended.
    fn leftover_survives(is_reaped_elsewhere: bool) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let (program, left) = (folder.path().join("program"), folder.path().join("left"));
        let text = format!("#!/bin/sh\nsleep 600 >&- 2>&- &\necho $! > {}\n", left.display());
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let options = Options::new(program, "/x", "x", &[]);
        let (process, _control) = Process::start(&options, &Arc::default()).unwrap();
        assert!(process.has_ended(Duration::from_secs(60)));
        let pid: i32 = std::fs::read_to_string(left).unwrap().trim().parse().unwrap();
        let left = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        if is_reaped_elsewhere {
            rustix::process::waitpid(number(process.pid), rustix::process::WaitOptions::empty()).unwrap();
        }
        process.end();
        let patience = Duration::from_millis(if is_reaped_elsewhere { 200 } else { 60_000 });
        let survives = !patience::readable(left.as_fd(), patience).unwrap();
        let _ = pidfd_send_signal(&left, Signal::KILL);
        survives
    }

    #[test]
    fn a_number_that_may_be_another_s_by_now_gets_no_signal() {
        assert!(!leftover_survives(false), "what a process has started goes with it");
        assert!(leftover_survives(true), "a group of a number that is not ours any more");
    }
}
