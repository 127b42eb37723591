//! `outrigger health`: asks a replica whether it is ready, for images that have no other client. Over TLS too, and then without looking at the certificate, as
//! Kubernetes' probes do: it is asked at an address that no certificate names, and tells nobody anything.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use outrigger_runtime::config;

use crate::tls::{self, Trust};
use crate::{exit, sources};

/// As much of an answer is read and shown.
const ANSWER_LIMIT: u64 = 4096;

/// The command line of `health`.
pub(crate) fn command() -> Command {
    let command = Command::new("health")
        .about("Asks whether the replica of this configuration is ready: exit code 0, else 1")
        .arg(
            Arg::new("live")
                .long("live")
                .action(ArgAction::SetTrue)
                .help("Asks /live instead of /ready: whether it is there, ready or not"),
        )
        .arg(
            Arg::new("url")
                .long("url")
                .value_name("URL")
                .conflicts_with("live")
                .help("Asks this instead, such as http://127.0.0.1:5001/, or https:// without looking at the certificate"),
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("SECONDS")
                .value_parser(value_parser!(u64).range(1..=3600))
                .default_value("5")
                .help("Time for the whole exchange"),
        );
    crate::serve::settings(command)
}

/// Runs the command.
pub(crate) fn run(matches: &ArgMatches) -> ExitCode {
    let limit = Duration::from_secs(matches.get_one::<u64>("timeout").copied().unwrap_or(5));
    let target = match matches.get_one::<String>("url") {
        Some(url) => Target::parse(url),
        None => configured(matches, if matches.get_flag("live") { "/live" } else { "/ready" }),
    };
    match target.and_then(|target| target.ask(limit)) {
        Ok(answer) => {
            println!("{}", answer.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => sources::say(&error, exit::FOUND),
    }
}

/// Where and what to ask.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    is_encrypted: bool,
    authority: String,
    path: String,
}

fn configured(matches: &ArgMatches, path: &str) -> anyhow::Result<Target> {
    let (address, is_encrypted) = match config::observe_address(&sources::collect(matches)?) {
        Ok(found) => found,
        Err(mistakes) => {
            let all: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
            bail!("the configuration is wrong: {}", all.join("; "));
        }
    };
    Ok(Target { is_encrypted, authority: reachable(address).to_string(), path: path.into() })
}

/// The address to ask at where a replica listens on all.
pub(crate) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    address
}

impl Target {
    fn parse(url: &str) -> anyhow::Result<Self> {
        let (is_encrypted, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => bail!("the URL must begin with http:// or https://"),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let clean = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if authority.is_empty() || !clean(url) {
            bail!("`{url}` is no URL");
        }
        let host = authority.rsplit(']').next().unwrap_or(authority);
        let port = if is_encrypted { 443 } else { 80 };
        let authority = if host.contains(':') { authority.to_owned() } else { format!("{authority}:{port}") };
        Ok(Self { is_encrypted, authority, path: if path.is_empty() { "/".into() } else { path.into() } })
    }

    /// Asks; gives the body of an answer that is 2xx.
    fn ask(&self, limit: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + limit;
        let answer = self.exchange(deadline).with_context(|| format!("no answer from {}", self.authority))?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.lines().next().unwrap_or_default();
        match status.split(' ').nth(1) {
            Some(code) if code.len() == 3 && code.starts_with('2') => Ok(body.to_owned()),
            Some(_) => bail!("{self} says: {status} {}", body.trim()),
            // What a server that speaks TLS says to whoever does not: an alert.
            None if status.starts_with('\u{15}') => bail!(
                "{} speaks TLS: `tls.certificate` and `tls.listeners` are to be here what they are there, or --url to begin with https://",
                self.authority
            ),
            None => bail!("{} does not speak HTTP", self.authority),
        }
    }

    fn exchange(&self, deadline: Instant) -> anyhow::Result<Vec<u8>> {
        let left = || {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() { Err(anyhow::anyhow!("it took too long")) } else { Ok(left) }
        };
        let address = self.authority.to_socket_addrs()?.next().context("the name has no address")?;
        let stream = TcpStream::connect_timeout(&address, left()?)?;
        let timed = stream.try_clone()?;
        timed.set_read_timeout(Some(left()?))?;
        timed.set_write_timeout(Some(left()?))?;
        let mut stream: Box<dyn Stream> = if self.is_encrypted {
            Box::new(tls::over(stream, address.ip(), Trust::Whoever)?)
        } else {
            Box::new(stream)
        };
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: outrigger-health\r\nConnection: close\r\n\r\n",
            self.path, self.authority
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        let mut part = [0; 1024];
        while (answer.len() as u64) < ANSWER_LIMIT {
            timed.set_read_timeout(Some(left()?))?;
            match stream.read(&mut part)? {
                0 => break,
                count => answer.extend_from_slice(&part[..count]),
            }
        }
        Ok(answer)
    }
}

/// What is written to and read from.
trait Stream: Read + Write {}

impl<S: Read + Write> Stream for S {}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let check = |url: &str, expected: Option<&str>| {
            let target = Target::parse(url).ok().map(|target| target.to_string());
            assert_eq!(target.as_deref(), expected, "{url}");
        };
        check("http://127.0.0.1:5001/", Some("http://127.0.0.1:5001/"));
        check("http://localhost", Some("http://localhost:80/"));
        check("http://[::1]:5002/ready?x=1", Some("http://[::1]:5002/ready?x=1"));
        check("http://[::1]/ready", Some("http://[::1]:80/ready"));
        check("https://localhost/", Some("https://localhost:443/"));
        check("ftp://localhost/", None);
        check("http:///ready", None);
        check("http://localhost/a b", None);
        check("http://localhost/\r\nX: y", None);
    }

    #[test]
    fn an_address_that_means_all_is_asked_on_loopback() {
        for (listen, ask) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.1.2.3:1", "10.1.2.3:1")]
        {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), ask);
        }
    }
}
