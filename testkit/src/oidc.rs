//! An issuer of tokens that is not ours: oidc-provider, a process of a test's own, whose keys can change and which can go away and come back.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::repository;
use crate::storage::Server;

/// The issuer; it ends when dropped.
#[derive(Debug)]
pub struct Oidc {
    server: Option<Server>,
    address: SocketAddr,
}

impl Oidc {
    /// Whether it can be started.
    ///
    /// # Errors
    /// Why not, as a test says when it is skipped.
    pub fn available() -> Result<(), String> {
        if !repository().join(".node-oidc/outrigger-setup.txt").is_file() {
            return Err("no issuer of tokens in .node-oidc: `cargo xtask setup` makes it".into());
        }
        let node = Command::new("node").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        match node {
            Ok(status) if status.success() => Ok(()),
            _ => Err("no issuer of tokens: there is no Node.js to run it".into()),
        }
    }

    /// Starts one whose keys' names begin so; where it cannot be, says `skipped` with the reason.
    ///
    /// # Panics
    /// If it does not come up; the message has what it said.
    pub fn found(kid: &str) -> Option<Self> {
        Self::available().map_err(|reason| println!("skipped: {reason}")).ok()?;
        let server = start(0, kid);
        let address = server.address;
        Some(Self { server: Some(server), address })
    }

    /// What it calls itself, which is where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Has it go away.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// Has it come back in the same place with other keys.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn restart(&mut self, kid: &str) {
        self.stop();
        self.server = Some(start(self.address.port(), kid));
    }
}

fn start(port: u16, kid: &str) -> Server {
    let mut node = Command::new("node");
    node.arg(repository().join("testkit/oidc/issuer.mjs"));
    node.arg(repository().join(".node-oidc")).args([port.to_string().as_str(), kid]);
    node.env_remove("NODE_OPTIONS");
    Server::start(node)
}
