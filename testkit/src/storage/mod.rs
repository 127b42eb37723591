//! Blob storage for tests: Azurite for Azure, moto for S3, each a process of a test's own with nothing in it, on a free port of this machine.
//!
//! Beside them what a cloud tells a machine by which that is let in ([`Metadata`]).
//!
//! `cargo xtask setup` installs both. What they hold is in their memory. They end when dropped, and with the test's process, however that
//! ends: they read a pipe which it holds. So one for all tests of a program may stand in a `static`, with a container for each.

mod azurite;
mod metadata;
mod moto;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use azurite::{Azurite, SecureAzurite};
pub use metadata::{Metadata, SECRET};
pub use moto::Moto;

/// Longer than either takes to start on a slow machine; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// What tells an S3 or Azure client where to go, and as whom: variables of the environment.
pub type Environment = Vec<(&'static str, String)>;

/// A server that runs.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    reading: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a program that prints `http://ADDRESS`, or `https://ADDRESS`, once it listens, and ends when its input does.
    pub(crate) fn start(mut command: Command) -> Self {
        let complaints = tempfile::tempfile().expect("a temporary file");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(complaints.try_clone().expect("a second handle of a file"));
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = child.stdout.take().expect("it was asked for");
        let (sender, address) = mpsc::channel();
        let reading = thread::spawn(move || read(stdout, &sender));
        let address = address.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let _ = child.kill();
            let status = child.wait();
            panic!("{command:?} does not listen; {status:?}: {}", text(complaints))
        });
        Self { child, address, reading: Some(reading) }
    }

    /// Has it end by itself, and waits for that.
    pub(crate) fn end(&mut self) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reading) = self.reading.take() {
            let _ = reading.join();
        }
    }
}

/// Reads what the program prints to its end, so that it never waits for a reader, and passes on the address in it.
fn read(stdout: ChildStdout, found: &mpsc::Sender<SocketAddr>) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        let address = line.split_once("://").and_then(|(_, address)| address.trim().parse().ok());
        if let Some(address) = address {
            let _ = found.send(address);
        }
    }
}

fn text(mut file: File) -> String {
    let mut text = Vec::new();
    let _ = file.rewind().and_then(|()| file.read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}
