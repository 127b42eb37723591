//! `outrigger keys list`: which keys there are, and when each was last used.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command};
use outrigger_auth::{CallerId, KeyRing, KeySource, LastUsed, SERVICE, UsedFile, wall_clock};
use outrigger_runtime::config::{Endpoint, KeysConfig};
use serde::Serialize;
use serde_json::Value;

use super::{settings, time};
use crate::table::Table;

/// How long a replica may take to tell what it knows; one that does not is left out.
const PATIENCE: Duration = Duration::from_secs(2);
/// No answer of it is longer, in bytes.
const MOST: u64 = 1 << 20;

pub(super) fn command() -> Command {
    let command = Command::new("list")
        .about(
            "Lists keys: what they are called, whose they are, when they were made, end, and were last used",
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("As JSON, times in seconds since 1970"),
        );
    settings(command)
}

#[derive(Serialize)]
struct Row {
    id: String,
    principal: String,
    which: &'static str,
    place: &'static str,
    made: Option<u64>,
    expires: Option<u64>,
    last_used: Option<u64>,
}

pub(super) fn run(config: &KeysConfig, matches: &ArgMatches) -> anyhow::Result<()> {
    let rows = rows(config)?;
    let mut stdout = std::io::stdout().lock();
    let text = if matches.get_flag("json") {
        serde_json::to_string_pretty(&serde_json::json!({ "keys": rows }))? + "\n"
    } else {
        shown(&rows)
    };
    stdout.write_all(text.as_bytes()).context("stdout")
}

fn rows(config: &KeysConfig) -> anyhow::Result<Vec<Row>> {
    let store = config.keys.store.read()?;
    let service = KeySource::find(&config.keys.service)?;
    let mut used = UsedFile::beside(config.keys.store.path()).read();
    for (id, time) in asked(config) {
        let known = used.entry(id).or_default();
        *known = (*known).max(time);
    }
    // Names of callers stand for themselves here, so any will do to tell them by.
    const ANY: CallerId = CallerId::LOCAL;
    let configured = config.configured.iter().map(|(name, key)| (ANY, name.as_str(), key));
    let ring = KeyRing::of(service.as_ref(), store.as_ref(), configured, |_| Some(ANY));
    let ring = ring.context("there are no random numbers")?;
    let mut rows: Vec<_> = ring
        .keys()
        .map(|key| Row {
            last_used: used.get(&key.id).copied(),
            id: key.id,
            principal: key.principal,
            which: key.which.as_str(),
            place: key.place.as_str(),
            made: key.made,
            expires: key.expires,
        })
        .collect();
    rows.sort_by(|one, other| {
        let rank = |row: &Row| (row.principal != SERVICE, row.principal.clone(), row.which);
        rank(one).cmp(&rank(other))
    });
    Ok(rows)
}

fn shown(rows: &[Row]) -> String {
    let mut table = Table::new(&["KEY", "PRINCIPAL", "WHICH", "MADE", "ENDS", "LAST USED", "KEPT IN"]);
    let now = wall_clock();
    for row in rows {
        let date = |time: Option<u64>, none: &str| time.map_or_else(|| none.to_owned(), time::shown);
        let ends = match row.expires {
            Some(end) if end <= now => "has ended".to_owned(),
            end => date(end, "never"),
        };
        let cells = [
            row.id.clone(),
            row.principal.clone(),
            row.which.to_owned(),
            date(row.made, "-"),
            ends,
            date(row.last_used, "-"),
            row.place.to_owned(),
        ];
        table.row(cells, []);
    }
    table.show()
}

/// What the replica knows, if one runs that can be asked without a key. It has later times than what is written down.
fn asked(config: &KeysConfig) -> LastUsed {
    let Endpoint::Unix(socket) = &config.admin else { return LastUsed::new() };
    let answer = ask(socket).and_then(|answer| Ok(serde_json::from_slice::<Value>(&answer)?));
    let Ok(answer) = answer else { return LastUsed::new() };
    let keys = answer["keys"].as_array().into_iter().flatten();
    keys.filter_map(|key| Some((key["id"].as_str()?.to_owned(), key["last_used"].as_u64()?))).collect()
}

/// The body of the answer to `GET /keys`.
fn ask(socket: &Path) -> anyhow::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // Of HTTP/1.0, so that the body comes as it is and ends with the connection.
    stream.write_all(b"GET /keys HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("no answer")?;
    anyhow::ensure!(answer.starts_with(b"HTTP/1.") && answer.get(9..12) == Some(b"200"), "not answered");
    Ok(answer.split_off(end + 4))
}
