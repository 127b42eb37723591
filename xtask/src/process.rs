//! Starting programs: to the end, for what they print, or line by line.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::signals;

/// The command as somebody would type it, for messages.
pub(crate) fn shown(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
    command.get_args().fold(program, |text, argument| text + " " + &argument.to_string_lossy())
}

/// Runs to the end with our own stdin, stdout and stderr.
pub(crate) fn status(mut command: Command) -> Result<ExitStatus> {
    command.status().with_context(|| format!("could not start `{}`", shown(&command)))
}

/// The same, and anything but success is an error.
pub(crate) fn run(command: Command) -> Result<()> {
    let text = shown(&command);
    succeeded(&text, status(command)?)
}

/// Runs to the end and returns what it printed; anything but success is an error with what it said.
pub(crate) fn capture(mut command: Command) -> Result<String> {
    let output = command.output().with_context(|| format!("could not start `{}`", shown(&command)))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    succeeded(&shown(&command), output.status).with_context(|| complaint.trim().to_owned())?;
    String::from_utf8(output.stdout).with_context(|| format!("`{}` printed no UTF-8", shown(&command)))
}

/// An error that names the command unless it succeeded.
pub(crate) fn succeeded(command: &str, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{command}` failed: {status}");
    }
    Ok(())
}

/// Runs with stdout and stderr in one pipe, so that their order stays, and hands over each line as it comes.
pub(crate) fn lines(command: Command, each: impl FnMut(&str)) -> Result<ExitStatus> {
    match Followed::start(command)?.follow(each, None)? {
        End::Exited(status) => Ok(status),
        End::Silent | End::Interrupted => bail!("stopped following without a reason"),
    }
}

/// The same for what may hang: `None` if it said nothing for `patience` and was killed with all that it had started.
///
/// To be able to kill them all they are a process group of their own, which Ctrl-C does not reach: it is heard here.
pub(crate) fn watched(
    mut command: Command,
    patience: Duration,
    each: impl FnMut(&str),
) -> Result<Option<ExitStatus>> {
    command.process_group(0);
    signals::listen();
    let mut followed = Followed::start(command)?;
    let end = followed.follow(each, Some(patience))?;
    if let End::Exited(status) = end {
        return Ok(Some(status));
    }
    signals::kill_group(&followed.child);
    followed.child.wait()?;
    if matches!(end, End::Interrupted) {
        bail!("interrupted");
    }
    Ok(None)
}

/// A program and the lines that it prints.
struct Followed {
    child: Child,
    lines: Receiver<String>,
}

enum End {
    Exited(ExitStatus),
    Silent,
    Interrupted,
}

impl Followed {
    fn start(mut command: Command) -> Result<Self> {
        let (reader, writer) = io::pipe().context("no pipe")?;
        let copy = writer.try_clone().context("no second end of a pipe")?;
        command.stdin(Stdio::null()).stdout(writer).stderr(copy);
        let child = command.spawn().with_context(|| format!("could not start `{}`", shown(&command)))?;
        drop(command); // It holds the writing ends; the reader would never see the end.
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let _ = for_each_line(reader, |line| {
                let _ = sender.send(line.to_owned());
            });
        });
        Ok(Self { child, lines })
    }

    /// Hands over lines until the program has ended, even if something it started still holds the pipe: what a test
    /// leaves running must not keep the tests from ending. With a limit of patience it also ends when that is over, or
    /// when a signal was heard.
    fn follow(&mut self, mut each: impl FnMut(&str), patience: Option<Duration>) -> Result<End> {
        const LEFT_OVER: Duration = Duration::from_secs(2);
        let mut ended: Option<(ExitStatus, Instant)> = None;
        let mut last = Instant::now();
        loop {
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => {
                    each(&line);
                    last = Instant::now();
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(End::Exited(self.child.wait()?)),
                Err(RecvTimeoutError::Timeout) => match ended {
                    Some((status, at)) if at.elapsed() > LEFT_OVER => return Ok(End::Exited(status)),
                    Some(_) => {}
                    None => ended = self.child.try_wait()?.map(|status| (status, Instant::now())),
                },
            }
            match patience {
                Some(_) if ended.is_none() && signals::heard() > 0 => return Ok(End::Interrupted),
                Some(patience) if ended.is_none() && last.elapsed() > patience => return Ok(End::Silent),
                _ => {}
            }
        }
    }
}

/// Hands over each line without its end; bytes that are no UTF-8 are replaced.
pub(crate) fn for_each_line(reader: impl Read, mut each: impl FnMut(&str)) -> io::Result<()> {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        each(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
        line.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_of_both_streams_keep_their_order() {
        let mut seen = Vec::new();
        let status =
            lines(shell("echo a; echo b >&2; echo c; exit 3"), |line| seen.push(line.to_owned())).unwrap();
        assert_eq!((seen.join(""), status.code()), ("abc".into(), Some(3)));
    }

    #[test]
    fn what_a_program_leaves_running_is_not_waited_for() {
        let start = Instant::now();
        let mut seen = 0;
        let status = lines(shell("sleep 30 & echo a"), |_| seen += 1).unwrap();
        assert!(status.success() && seen == 1);
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn what_hangs_is_killed_with_what_it_started() {
        let mut seen = Vec::new();
        let start = Instant::now();
        let script = "echo a; sleep 30 & sleep 30";
        let end =
            watched(shell(script), Duration::from_millis(300), |line| seen.push(line.to_owned())).unwrap();
        assert_eq!((end, seen), (None, vec!["a".to_owned()]));
        let end = watched(shell("echo a; exit 3"), Duration::from_secs(60), |_| ()).unwrap().unwrap();
        assert_eq!(end.code(), Some(3));
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = capture(shell("echo no paper >&2; exit 1")).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("no paper") && text.contains("exit 1"), "{text}");
    }
}
