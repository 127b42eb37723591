//! `outrigger collect`: what became of collected records, and having them deleted, asked of a replica's admin listener.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};
use outrigger_runtime::config;
use serde_json::{Value, json};

use crate::admin::{Admin, key_file};
use crate::table::Table;
use crate::{exit, sources};

/// How often it asks whether something is done.
const LOOK: Duration = Duration::from_millis(200);

/// The command line of `collect`.
pub(crate) fn command() -> Command {
    let delete = Command::new("delete")
        .about("Deletes what the replica of this configuration knows of a correlation id, on its disk and in blob storage")
        .long_about(
            "Deletes what the replica of this configuration knows of a correlation id (or request id, where nobody has said another), on its \
             disk and in blob storage. It waits until that is done. The replica tries again what does not work, until it ends; asked again, it \
             begins again. Each replica has records of its own, and so each is to be asked.",
        )
        .arg(
            Arg::new("correlation-id")
                .long("correlation-id")
                .value_name("ID")
                .required(true)
                .help("Whose records; with ModelDataCollector what its user said"),
        );
    let expire = Command::new("expire")
        .about("Deletes what is older than retention_days of its collection now, which is done once an hour otherwise");
    let status =
        Command::new("status").about("What became of the records of each collection, and of deletions").arg(
            Arg::new("json").long("json").action(ArgAction::SetTrue).help("As the replica says it, in JSON"),
        );
    let command = Command::new("collect")
        .about("Shows what became of collected data of the replica of this configuration, and deletes it")
        .subcommand_required(true)
        .arg_required_else_help(true);
    let waits = [delete, expire].map(|command| {
        command
            .arg(
                Arg::new("timeout")
                    .long("timeout")
                    .value_name("TIME")
                    .default_value("5m")
                    .value_parser(time)
                    .help("Longest time to wait for that"),
            )
            .arg(
                Arg::new("no-wait")
                    .long("no-wait")
                    .action(ArgAction::SetTrue)
                    .help("Does not wait, and prints the deletion's id"),
            )
    });
    waits
        .into_iter()
        .chain([status])
        .fold(command, |command, sub| command.subcommand(crate::serve::settings(sub.arg(key_file()))))
}

/// Runs the command.
pub(crate) fn run(matches: &ArgMatches) -> ExitCode {
    let done = match matches.subcommand() {
        Some(("delete", matches)) => {
            let id = matches.get_one::<String>("correlation-id").map_or("", String::as_str);
            delete(matches, "/collect/deletions", &json!({ "correlation_id": id }).to_string())
        }
        Some(("expire", matches)) => delete(matches, "/collect/expire", ""),
        Some((_, matches)) => status(matches),
        None => return ExitCode::from(exit::CONFIG),
    };
    done.map_or_else(|error| sources::say(&error, exit::FOUND), |()| ExitCode::SUCCESS)
}

fn delete(matches: &ArgMatches, path: &str, body: &str) -> anyhow::Result<()> {
    let admin = Admin::of(matches)?;
    let deletion = admin.json("POST", path, body)?;
    let id = deletion["id"].as_str().context("the answer has no id")?;
    if matches.get_flag("no-wait") {
        println!("{id}");
        return Ok(());
    }
    let longest = matches.get_one::<Duration>("timeout").copied().unwrap_or_default();
    let done = wait(&admin, id, longest)?;
    println!("{} deleted", done["deleted"]);
    Ok(())
}

/// Waits until it is done, and says what goes wrong meanwhile.
fn wait(admin: &Admin, id: &str, longest: Duration) -> anyhow::Result<Value> {
    let (start, mut said) = (Instant::now(), Value::Null);
    loop {
        let deletion = admin.json("GET", &format!("/collect/deletions/{id}"), "")?;
        if deletion["state"] == "done" {
            return Ok(deletion);
        }
        let problem = &deletion["problem"];
        if problem != &said {
            said = problem.clone();
            if let Some(problem) = said.as_str() {
                eprintln!("outrigger: not done yet, and tried again: {problem}");
            }
        }
        if start.elapsed() >= longest {
            bail!(
                "deletion {id} is not done within {longest:?}, and goes on: outrigger collect status shows how far it is"
            );
        }
        sleep(LOOK);
    }
}

fn status(matches: &ArgMatches) -> anyhow::Result<()> {
    let status = Admin::of(matches)?.json("GET", "/collect", "")?;
    if matches.get_flag("json") {
        println!("{status:#}");
        return Ok(());
    }
    let all = |name: &str| status[name].as_array().cloned().unwrap_or_default();
    let text = |of: &Value, name: &str| of[name].as_str().unwrap_or("-").to_owned();
    let mut table =
        Table::new(&["COLLECTION", "OFFERED", "SAMPLED OUT", "DROPPED", "PERSISTED", "PENDING", "LAG"]);
    for of in all("collections") {
        let dropped = of["dropped"].as_object().into_iter().flat_map(|all| all.values());
        let dropped: u64 = dropped.filter_map(Value::as_u64).sum();
        let lag = of["lag_seconds"].as_f64().map_or("-".into(), |lag| format!("{lag:.1}s"));
        let number = |name: &str| of[name].to_string();
        let cells = [
            text(&of, "name"),
            number("offered"),
            number("sampled_out"),
            dropped.to_string(),
            number("persisted"),
            number("pending"),
            lag,
        ];
        table.row(cells, of["problem"].as_str().map(str::to_owned));
    }
    print!("{}", table.show());
    let deletions = all("deletions");
    if deletions.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["DELETION", "OF", "STATE", "DELETED"]);
    for of in deletions {
        let cells = [text(&of, "id"), text(&of, "what"), text(&of, "state"), of["deleted"].to_string()];
        table.row(cells, of["problem"].as_str().map(str::to_owned));
    }
    print!("\n{}", table.show());
    Ok(())
}

/// A time such as `90s`, `5m` or `1h`.
fn time(text: &str) -> Result<Duration, String> {
    config::parse_duration(text).ok_or_else(|| format!("`{text}` is no time, such as 90s, 5m or 1h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deletion_needs_an_id() {
        assert!(command().try_get_matches_from(["collect", "delete"]).is_err());
        let matches = command().get_matches_from(["collect", "delete", "--correlation-id", "a"]);
        assert!(matches.subcommand_matches("delete").is_some_and(|of| !of.get_flag("no-wait")));
    }
}
