//! `outrigger keys add`: one more key.

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Command};
use outrigger_auth::{SERVICE, wall_clock};
use outrigger_runtime::config::KeysConfig;

use super::{given_which, name, named, note_stranger, say, settings, show, time, value, which};

pub(super) fn command() -> Command {
    let command = Command::new("add")
        .about("Makes a key: the primary one, or the secondary one where that is there; shows it once")
        .arg(name())
        .arg(which().long("which").value_name("WHICH").help("Which of the two"))
        .arg(
            Arg::new("expires")
                .long("expires")
                .value_name("TIME")
                .default_value("never")
                .help("How long it holds, such as 90d, 12h or 1y"),
        )
        .arg(value::argument())
        .arg(show());
    settings(command)
}

pub(super) fn run(config: &KeysConfig, matches: &ArgMatches) -> anyhow::Result<()> {
    let principal = named(matches);
    let lifetime = matches.get_one::<String>("expires").map_or(Ok(None), |text| time::lifetime(text))?;
    outrigger_auth::check_principal(principal)?;
    if principal == SERVICE && config.keys.service.file.exists() {
        // Two primary keys would both hold, and one could not be made anew.
        let file = config.keys.service.file.display();
        anyhow::bail!("the service's keys are in {file}: `outrigger keys import` takes them into the store");
    }
    let value = value::get(matches)?;
    let now = wall_clock();
    let expires = lifetime.map(|lifetime| now.saturating_add(lifetime));
    let stored = config.keys.store.edit(|store| {
        let stored = store.add(principal, given_which(matches), &value.key, now, expires)?;
        Ok::<_, anyhow::Error>(stored.clone())
    });
    let stored = stored.context("no key was made")?;
    say("made", &stored);
    note_stranger(config, principal);
    value.show(&stored)
}
