//! `outrigger logs`: the last lines of a replica's log and of its scripts, asked of its admin listener.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use outrigger_runtime::config::{self, AdminAccess, Endpoint};
use serde_json::Value;

use crate::{exit, sources};

/// How long a replica has for its answer, or for the next sign of life: it gives one every few seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most of an answer's head, and of one that is an error.
const HEAD: u64 = 64 * 1024;

/// The command line of `logs`.
pub(crate) fn command() -> Command {
    let command = Command::new("logs")
        .about("Shows the last lines of the replica of this configuration, and of its scripts")
        .long_about(
            "Shows the last lines of the log of the replica of this configuration, and of its scripts, in the order in which they were \
             written. They are kept in the replica's memory (log.kept) and asked for at admin.listen; where that is an address, the key is \
             auth.primary_key.",
        )
        .arg(
            Arg::new("request-id")
                .long("request-id")
                .value_name("ID")
                .help("Only lines that belong to this request (x-request-id)"),
        )
        .arg(
            Arg::new("level")
                .long("level")
                .value_name("LEVEL")
                .value_parser(["error", "warn", "info", "debug", "trace"])
                .help("No less severe ones"),
        )
        .arg(
            Arg::new("source")
                .long("source")
                .value_name("SOURCE")
                .value_parser(["replica", "script"])
                .help("Only what the replica says, or what scripts print and log"),
        )
        .arg(
            Arg::new("lines")
                .long("lines")
                .short('n')
                .value_name("N")
                .value_parser(value_parser!(u32))
                .default_value("5000")
                .help("The last so many of them"),
        )
        .arg(
            Arg::new("follow")
                .long("follow")
                .short('f')
                .action(ArgAction::SetTrue)
                .help("Goes on with those that come, until the replica ends"),
        )
        .arg(
            Arg::new("json").long("json").action(ArgAction::SetTrue).help(
                "A JSON object for each: time, level, source, request, and the line as it stands in the log",
            ),
        );
    crate::serve::settings(command)
}

/// Runs the command.
pub(crate) fn run(matches: &ArgMatches) -> ExitCode {
    match show(matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => sources::say(&error, exit::FOUND),
    }
}

fn show(matches: &ArgMatches) -> anyhow::Result<()> {
    let access = config::admin_access(&sources::collect(matches)?).map_err(|mistakes| {
        let all: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("the configuration is wrong: {}", all.join("; "))
    })?;
    let follow = matches.get_flag("follow");
    let mut answer = Answer::to(&access, &path(matches, follow))?;
    let mut out = Out { json: matches.get_flag("json"), out: io::stdout().lock() };
    if !follow {
        let mut body = String::new();
        answer.body.read_to_string(&mut body)?;
        let body: Value = serde_json::from_str(&body).context("the answer is not JSON")?;
        let lines = body["lines"].as_array().context("the answer has no lines")?;
        return lines.iter().try_for_each(|line| out.line(line)).or_else(closed);
    }
    let mut event = String::new();
    loop {
        event.clear();
        if answer.body.read_line(&mut event).context("the replica is silent")? == 0 {
            return Ok(());
        }
        let Some(data) = event.strip_prefix("data: ") else { continue };
        match serde_json::from_str(data)? {
            Value::Number(gone) => {
                eprintln!("outrigger: {gone} lines are left out: more came than were read")
            }
            line => {
                if let Err(error) = out.line(&line).and_then(|()| out.out.flush()) {
                    return closed(error);
                }
            }
        }
    }
}

/// A closed pipe is the reader's choice.
fn closed(error: io::Error) -> anyhow::Result<()> {
    if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error.into()) }
}

fn path(matches: &ArgMatches, follow: bool) -> String {
    let mut path = format!("/logs?lines={}", matches.get_one::<u32>("lines").copied().unwrap_or(5000));
    for (flag, name) in [("request-id", "request"), ("level", "level"), ("source", "source")] {
        if let Some(value) = matches.get_one::<String>(flag) {
            path.push_str(&format!("&{name}={}", escaped(value)));
        }
    }
    if follow {
        path.push_str("&watch");
    }
    path
}

/// A value of a query.
fn escaped(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

struct Out<W> {
    json: bool,
    out: W,
}

impl<W: Write> Out<W> {
    fn line(&mut self, line: &Value) -> io::Result<()> {
        match line["line"].as_str().filter(|_| !self.json) {
            Some(text) => writeln!(self.out, "{text}"),
            None => writeln!(self.out, "{line}"),
        }
    }
}

/// An answer whose head has been read.
struct Answer {
    body: BufReader<Box<dyn Read>>,
}

impl Answer {
    fn to(access: &AdminAccess, path: &str) -> anyhow::Result<Self> {
        let endpoint = &access.endpoint;
        let to = || format!("no answer at {endpoint} (admin.listen): is the replica running?");
        let authorization = match &access.key {
            Some(key) => format!("Authorization: Bearer {}\r\n", key.expose()),
            None => String::new(),
        };
        // The old version has the end of the connection be the end of the answer.
        let request = format!("GET {path} HTTP/1.0\r\nHost: replica\r\n{authorization}\r\n");
        let stream: Box<dyn Read> = match endpoint {
            Endpoint::Unix(socket) => {
                let mut stream = UnixStream::connect(socket).with_context(to)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(request.as_bytes()).with_context(to)?;
                Box::new(stream)
            }
            Endpoint::Tcp(address) => {
                if access.key.is_none() {
                    bail!("management at {address} needs a key: set OUTRIGGER_AUTH_PRIMARY_KEY");
                }
                let mut stream = TcpStream::connect_timeout(address, PATIENCE).with_context(to)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(request.as_bytes()).with_context(to)?;
                Box::new(stream)
            }
        };
        let mut body = BufReader::new(stream);
        let mut status = String::new();
        body.by_ref().take(HEAD).read_line(&mut status).with_context(to)?;
        let mut line = String::new();
        while body.by_ref().take(HEAD).read_line(&mut line).with_context(to)? > 2 {
            line.clear();
        }
        if status.split(' ').nth(1) != Some("200") {
            let mut text = String::new();
            let _ = body.take(HEAD).read_to_string(&mut text);
            let json: Value = serde_json::from_str(&text).unwrap_or_default();
            bail!("{endpoint} says: {}", json["message"].as_str().unwrap_or(status.trim()));
        }
        Ok(Self { body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stands_in_the_query() {
        let check = |arguments: &[&str], expected: &str| {
            let matches = command().get_matches_from([&["logs"], arguments].concat());
            assert_eq!(path(&matches, matches.get_flag("follow")), expected);
        };
        check(&[], "/logs?lines=5000");
        check(
            &["--request-id", "a b&c", "--level", "warn", "--source", "script", "-n", "7", "-f"],
            "/logs?lines=7&request=a%20b%26c&level=warn&source=script&watch",
        );
    }
}
