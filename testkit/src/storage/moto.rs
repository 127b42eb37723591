//! moto: S3, as a library for tests of what uses AWS plays it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use super::{Environment, Server};
use crate::{http, repository};

/// Whoever comes is let in, but without a name nobody may replace an object. No signature is looked at.
const SIGNED: (&str, &str) = (
    "authorization",
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none",
);

/// moto, with no bucket in it. It takes any signature.
#[derive(Debug)]
pub struct Moto(Server);

impl Moto {
    /// Whether it can be started.
    ///
    /// # Errors
    /// Why not, as a test says when it is skipped.
    pub fn available() -> Result<(), String> {
        match folder().join("outrigger-setup.txt").is_file() {
            true => Ok(()),
            false => Err("no moto in .venv-moto: `cargo xtask setup` makes it".into()),
        }
    }

    /// Starts one; where it cannot be, says `skipped` with the reason.
    ///
    /// # Panics
    /// As [`Moto::start`].
    pub fn found() -> Option<Self> {
        Self::available().map_err(|reason| println!("skipped: {reason}")).ok().map(|()| Self::start())
    }

    /// Starts one, and returns when it listens.
    ///
    /// # Panics
    /// If it does not come up; the message has what it said.
    pub fn start() -> Self {
        let mut python = Command::new(folder().join("bin/python"));
        // Isolated: nothing of the developer's own settings reaches it.
        python.arg("-I").arg(repository().join("testkit/storage/moto/serve.py"));
        Self(Server::start(python))
    }

    /// Where it listens, for a proxy in front of it.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Variables by which a client finds it: those that object_store's `AmazonS3Builder` reads.
    pub fn environment(&self) -> Environment {
        self.environment_at(self.address())
    }

    /// The same where it is reached through a proxy.
    pub fn environment_at(&self, address: SocketAddr) -> Environment {
        vec![
            ("AWS_ENDPOINT", format!("http://{address}")),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ACCESS_KEY_ID", "test".into()),
            ("AWS_SECRET_ACCESS_KEY", "test".into()),
        ]
    }

    /// Makes an empty bucket. Names are in lower case, of 3 letters and more.
    ///
    /// # Panics
    /// If it is not made: there is one of that name, or it is none.
    pub fn create_bucket(&self, name: &str) {
        self.put(name, &[]);
    }

    /// Puts an object, in place of what was there.
    ///
    /// # Panics
    /// If there is no such bucket.
    pub fn put_object(&self, bucket: &str, path: &str, bytes: &[u8]) {
        self.put(&format!("{bucket}/{path}"), bytes);
    }

    fn put(&self, target: &str, bytes: &[u8]) {
        let answer =
            http::ask(self.address(), "PUT", &format!("/{target}"), &[SIGNED], bytes).expect("moto answers");
        let said = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.head.status(), 200, "PUT {target}: {said}");
    }
}

fn folder() -> PathBuf {
    repository().join(".venv-moto")
}
