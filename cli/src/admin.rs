//! Asking a replica at its admin listener: over its Unix socket, or over TCP with a key or token, in TLS where it speaks that.

use std::cell::OnceCell;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgMatches};
use outrigger_auth::{AuthMode, KeySource, Secret};
use outrigger_runtime::config::{self, AdminAccess, AdminTls, Endpoint};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;

use crate::sources;
use crate::tls::{self, Trust};

/// How long a replica has for its answer, or for the next sign of life: it gives one every few seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most of an answer's head, and of one that is an error.
const HEAD: u64 = 64 * 1024;
/// The longest key or token that is sent.
const MOST: u64 = 64 * 1024;

/// The flag of every command that asks.
pub(crate) fn key_file() -> Arg {
    Arg::new("key-file")
        .long("key-file")
        .value_name("FILE")
        .help("Sends the key or token in this file, or on stdin (`-`), where admin.listen is an address")
}

/// The admin listener of the replica of a configuration.
pub(crate) struct Admin {
    access: AdminAccess,
    /// A file with what says who asks.
    given: Option<String>,
    /// What says who asks, once that is known.
    key: OnceCell<Secret>,
}

/// An answer whose head has been read.
pub(crate) struct Answer {
    pub(crate) body: BufReader<Box<dyn Read>>,
}

trait Stream: Read + Write {}

impl<S: Read + Write> Stream for S {}

impl Admin {
    /// That of a command's configuration.
    pub(crate) fn of(matches: &ArgMatches) -> anyhow::Result<Self> {
        let access = config::admin_access(&sources::collect(matches)?).map_err(|mistakes| {
            let all: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("the configuration is wrong: {}", all.join("; "))
        })?;
        Ok(Self { access, given: matches.get_one("key-file").cloned(), key: OnceCell::new() })
    }

    /// Asks for something whose answer is JSON.
    pub(crate) fn json(&self, method: &str, path: &str, body: &str) -> anyhow::Result<Value> {
        let mut text = String::new();
        self.ask(method, path, body)?.body.read_to_string(&mut text)?;
        serde_json::from_str(&text).context("the answer is not JSON")
    }

    /// Asks for a path; a body is JSON.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> anyhow::Result<Answer> {
        let access = &self.access;
        let endpoint = &access.endpoint;
        let to = || format!("no answer at {endpoint} (admin.listen): is the replica running?");
        let (mut stream, authorization): (Box<dyn Stream>, _) = match endpoint {
            Endpoint::Unix(socket) => {
                let stream = UnixStream::connect(socket).with_context(to)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                (Box::new(stream), String::new())
            }
            Endpoint::Tcp(address) => {
                let key = self.key(*address)?;
                let header = format!("Authorization: Bearer {}\r\n", key.expose());
                let stream = TcpStream::connect_timeout(address, PATIENCE).with_context(to)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                match &access.tls {
                    None => (Box::new(stream), header),
                    Some(tls) => {
                        (Box::new(tls::over(stream, address.ip(), trusted(tls, *address)?)?), header)
                    }
                }
            }
        };
        let about = match method {
            "GET" => String::new(),
            _ => format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()),
        };
        // The old version has the end of the connection be the end of the answer.
        let request =
            format!("{method} {path} HTTP/1.0\r\nHost: replica\r\n{authorization}{about}\r\n{body}");
        let request = Secret::new(request);
        drop(Secret::new(authorization));
        stream.write_all(request.expose().as_bytes()).with_context(|| unanswered(access, &to()))?;
        Answer::read(access, stream)
    }

    fn key(&self, address: SocketAddr) -> anyhow::Result<&Secret> {
        if let Some(key) = self.key.get() {
            return Ok(key);
        }
        let key = key(&self.access, address, self.given.as_deref())?;
        Ok(self.key.get_or_init(|| key))
    }
}

impl Answer {
    fn read(access: &AdminAccess, stream: Box<dyn Stream>) -> anyhow::Result<Self> {
        let endpoint = &access.endpoint;
        let to = || unanswered(access, &format!("no answer at {endpoint} (admin.listen)"));
        let mut body = BufReader::new(Box::new(stream) as Box<dyn Read>);
        let mut status = Vec::new();
        body.by_ref().take(HEAD).read_until(b'\n', &mut status).with_context(to)?;
        if status.first() == Some(&0x15) {
            // An alert of TLS's.
            bail!(
                "{endpoint} speaks TLS: `tls.certificate` and `tls.listeners` are to be here what they are there"
            );
        }
        let status = String::from_utf8_lossy(&status).into_owned();
        let mut line = String::new();
        while body.by_ref().take(HEAD).read_line(&mut line).with_context(to)? > 2 {
            line.clear();
        }
        match status.split(' ').nth(1) {
            Some(code) if code.starts_with('2') => Ok(Self { body }),
            None => bail!("{endpoint} does not speak HTTP here, or TLS is expected of it and it speaks none"),
            Some(_) => {
                let mut text = String::new();
                let _ = body.take(HEAD).read_to_string(&mut text);
                let json: Value = serde_json::from_str(&text).unwrap_or_default();
                bail!("{endpoint} says: {}", json["message"].as_str().unwrap_or(status.trim()));
            }
        }
    }
}

/// What is said of no answer.
fn unanswered(access: &AdminAccess, said: &str) -> String {
    match &access.tls {
        Some(tls) => format!(
            "{said} over TLS: only the first certificate in {} (tls.certificate) is taken",
            tls.certificate.display()
        ),
        None => said.to_owned(),
    }
}

/// What says who asks: what is given, or the service's own key.
fn key(access: &AdminAccess, address: SocketAddr, given: Option<&str>) -> anyhow::Result<Secret> {
    if let Some(file) = given {
        return read(file);
    }
    if access.mode == AuthMode::Token {
        bail!(
            "management at {address} takes tokens alone (auth.mode): --key-file names a file with one, or `-` for stdin"
        );
    }
    let found = KeySource::find(&access.keys.service).context("the service's keys")?;
    found.map(|keys| keys.primary.clone()).with_context(|| {
        let store = access.keys.store.path();
        let kept = match store.exists() {
            true => format!("the keys in {} (auth.key_store) are kept as hashes", store.display()),
            false => "this configuration has none".to_owned(),
        };
        format!(
            "management at {address} needs a key, and {kept}: set OUTRIGGER_AUTH_PRIMARY_KEY, or --key-file to a file with one"
        )
    })
}

fn read(file: &str) -> anyhow::Result<Secret> {
    let mut text = String::new();
    let read = match file {
        "-" => std::io::stdin().lock().take(MOST + 1).read_to_string(&mut text),
        path => std::fs::File::open(path).and_then(|file| file.take(MOST + 1).read_to_string(&mut text)),
    };
    let text = Secret::new(text);
    read.with_context(|| format!("no key can be read from {file}"))?;
    let key = text.expose().trim_ascii();
    let is_sendable = key.bytes().all(|byte| byte.is_ascii_graphic());
    anyhow::ensure!(
        !key.is_empty() && is_sendable && key.len() as u64 <= MOST,
        "{file} holds no key or token"
    );
    Ok(Secret::new(key))
}

/// The certificate that the replica of this configuration shows. A key goes to nobody else, whoever listens there.
fn trusted(tls: &AdminTls, address: SocketAddr) -> anyhow::Result<Trust> {
    if tls.requires_clients {
        bail!(
            "management at {address} asks for a certificate (tls.client_certificates = \"required\"), of which this command shows none: have admin.listen be a \
             Unix socket"
        );
    }
    Ok(Trust::Only(first(&tls.certificate)?))
}

fn first(path: &Path) -> anyhow::Result<CertificateDer<'static>> {
    let found = CertificateDer::pem_file_iter(path).ok().and_then(|mut found| found.next()?.ok());
    found.with_context(|| {
        format!("there is no certificate to be read in {} (tls.certificate)", path.display())
    })
}
