//! `outrigger logs`: the last lines of a replica's log and of its scripts, asked of its admin listener.

use std::io::{self, BufRead as _, Read as _, Write};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::Value;

use crate::admin::{Admin, key_file};
use crate::{exit, sources};

/// The command line of `logs`.
pub(crate) fn command() -> Command {
    let command = Command::new("logs")
        .about("Shows the last lines of the replica of this configuration, and of its scripts")
        .long_about(
            "Shows the last lines of the log of the replica of this configuration, and of its scripts, in the order in which they were \
             written. They are kept in the replica's memory (log.kept) and asked for at admin.listen. Where that is an address, the key is the \
             service's own (auth.primary_key, else auth.keys_file), or what --key-file has, and over TLS only the certificate in \
             tls.certificate is taken.",
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
    let command = command.arg(key_file());
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
    let follow = matches.get_flag("follow");
    let mut answer = Admin::of(matches)?.ask("GET", &path(matches, follow), "")?;
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
