//! The server of the demo: started, waited for, and ended in order.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::http::Client;
use crate::{say, signals};

/// Longest time until ready: a cold disk and Python's imports, not the model.
const START: Duration = Duration::from_secs(90);
/// Longest time for the end; the server's own limit for accepted calls is 30 s.
const END: Duration = Duration::from_secs(40);
const LOOK: Duration = Duration::from_millis(50);

/// Two neighbouring ports: for scoring, and for probes, the busy signal and metrics.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) score: SocketAddr,
    pub(crate) observe: SocketAddr,
}

impl Ports {
    /// The given port and its neighbour, or any two for 0, as long as both are free.
    pub(crate) fn reserve(port: u16) -> Result<Self> {
        const TRIES: usize = 20;
        if port != 0 {
            return Self::pair(port).with_context(|| {
                format!("choose others with `--port N`: the demo needs {port} and the port after it")
            });
        }
        let free = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?.local_addr().ok();
        let pair = (0..TRIES).filter_map(free).find_map(|address| Self::pair(address.port()).ok());
        pair.context("found no two neighbouring ports that are free")
    }

    fn pair(port: u16) -> Result<Self> {
        let next = port.checked_add(1).context("there is no port after 65535")?;
        let free = |port| {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            TcpListener::bind(address).map(|_| address).with_context(|| format!("port {port} is not free"))
        };
        Ok(Self { score: free(port)?, observe: free(next)? })
    }
}

/// A running server; killed when dropped, so that nothing is left behind when the demo fails.
pub(crate) struct Server {
    child: Child,
    log: PathBuf,
    ports: Ports,
}

impl Server {
    /// Starts `command` with the ports as flags; what it prints goes to a file, so that the table stays readable.
    pub(crate) fn start(mut command: Command, ports: Ports, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("could not create {}", log.display()))?;
        command.args([
            "--score-listen",
            &ports.score.to_string(),
            "--observe-listen",
            &ports.observe.to_string(),
        ]);
        command.stdin(std::process::Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // A process group of its own: Ctrl-C reaches the demo alone, which then asks the server to end in order.
        command.process_group(0);
        signals::listen();
        let child =
            command.spawn().with_context(|| format!("could not start {:?}", command.get_program()))?;
        Ok(Self { child, log: log.to_owned(), ports })
    }

    /// Waits until the server says that it is ready.
    pub(crate) fn wait_until_ready(&mut self) -> Result<()> {
        let spinner = say::spinner("waiting until the service is ready");
        let start = Instant::now();
        let mut client = Client::new(self.ports.observe);
        while client.get("/ready").map_or(true, |answer| answer.status != 200) {
            if signals::heard() > 0 {
                bail!("interrupted");
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended while starting: {status}\n{}", self.last_words());
            }
            if start.elapsed() > START {
                bail!("the service was not ready after {} s\n{}", START.as_secs(), self.last_words());
            }
            thread::sleep(LOOK);
        }
        spinner.finish_and_clear();
        say::line(&format!("ready after {:.1} s", start.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Serves until a signal comes or the server ends by itself.
    pub(crate) fn serve(mut self) -> Result<ExitStatus> {
        while signals::heard() == 0 {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended by itself: {status}\n{}", self.last_words());
            }
            thread::sleep(LOOK);
        }
        eprintln!();
        say::line("ending: accepted calls are finished first, Ctrl-C again ends at once");
        self.end()
    }

    /// Ends the server in order and returns how it ended.
    pub(crate) fn end(mut self) -> Result<ExitStatus> {
        let (heard, start) = (signals::heard(), Instant::now());
        signals::terminate(&self.child);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if signals::heard() > heard || start.elapsed() > END {
                self.child.kill()?;
                return Ok(self.child.wait()?);
            }
            thread::sleep(LOOK);
        }
    }

    /// The end of the log, for an error message.
    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(30)..].join("\n");
        format!("the end of {}:\n{end}", self.log.display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A child's exit code as a shell would give it.
pub(crate) fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = format!("{:#}", Ports::reserve(port).err().unwrap());
        assert!(error.contains("--port N") && error.contains(&format!("port {port} is not free")), "{error}");
        let ports = Ports::reserve(0).unwrap();
        assert_eq!(ports.observe.port(), ports.score.port() + 1);
        assert!(Ports::reserve(65535).is_err());
    }
}
