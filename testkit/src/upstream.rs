//! Servers that are not ours, for replicas that stand in front of one: a FastAPI application on uvicorn, and one that is written with mosec. Each is a
//! process of a test's own, on a free port of this machine.
//!
//! `cargo xtask setup` installs both. They end when dropped, and with the test's process, however that ends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::repository;
use crate::storage::Server;

/// A server that runs.
#[derive(Debug)]
pub struct App {
    server: Server,
    /// It has processes of its own, which it takes along when it is told to end.
    in_order: bool,
}

impl App {
    /// The FastAPI application, `testkit/upstream/app.py`.
    ///
    /// # Panics
    /// If it does not come up; the message has what it said.
    pub fn start() -> Self {
        Self::of("app.py", None, false)
    }

    /// The same, which also listens on a Unix socket.
    ///
    /// # Panics
    /// As [`App::start`].
    pub fn at_socket(path: &Path) -> Self {
        Self::of("app.py", Some(path), false)
    }

    /// The one that is written with mosec, `testkit/upstream/batches.py`.
    ///
    /// # Panics
    /// As [`App::start`].
    pub fn with_batches() -> Self {
        Self::of("batches.py", None, true)
    }

    fn of(script: &str, argument: Option<&Path>, in_order: bool) -> Self {
        let folder = folder();
        let python = folder.join("bin/python");
        assert!(python.is_file(), "{} is missing: run `cargo xtask setup`", python.display());
        let mut command = Command::new(python);
        // Isolated: nothing of the developer's own settings reaches it.
        command.arg("-I").arg(repository().join("testkit/upstream").join(script)).args(argument);
        Self { server: Server::start(command), in_order }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// The same as a URL, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }
}

impl Drop for App {
    fn drop(&mut self) {
        if self.in_order {
            self.server.end();
        }
    }
}

fn folder() -> PathBuf {
    repository().join(".venv-upstream")
}
