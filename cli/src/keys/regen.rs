//! `outrigger keys regen`: another key in place of one, which does not hold any more.

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Command};
use outrigger_auth::{EditError, Lifetime, SERVICE, Which, wall_clock};
use outrigger_runtime::config::KeysConfig;

use super::{given_which, name, named, note_stranger, say, settings, show, time, value, which};

pub(super) fn command() -> Command {
    let command = Command::new("regen")
        .about("Makes a key anew: the one before is refused from then on, the other of the two holds on; shows it once")
        .arg(name())
        .arg(which().value_name("WHICH").required(true).help("Which of the two"))
        .arg(
            Arg::new("expires")
                .long("expires")
                .value_name("TIME")
                .help("How long it holds, such as 90d, or never [default: as long as the one before was to]"),
        )
        .arg(value::argument())
        .arg(show());
    settings(command)
}

pub(super) fn run(config: &KeysConfig, matches: &ArgMatches) -> anyhow::Result<()> {
    let principal = named(matches);
    let which = given_which(matches).unwrap_or(Which::Primary);
    let now = wall_clock();
    let lifetime = match matches.get_one::<String>("expires") {
        Some(text) => Lifetime::Until(time::lifetime(text)?.map(|lifetime| now.saturating_add(lifetime))),
        None => Lifetime::AsBefore,
    };
    outrigger_auth::check_principal(principal)?;
    let value = value::get(matches)?;
    let stored = config.keys.store.edit(|store| {
        let stored = store.regen(principal, which, &value.key, now, lifetime)?;
        Ok::<_, anyhow::Error>(stored.clone())
    });
    let stored = stored.map_err(|error| explained(config, principal, error)).context("no key was made")?;
    say("made anew", &stored);
    note_stranger(config, principal);
    value.show(&stored)
}

/// Says where a key is that is not in the store.
pub(super) fn explained(config: &KeysConfig, principal: &str, error: anyhow::Error) -> anyhow::Error {
    let is_missing = matches!(error.downcast_ref(), Some(EditError::Missing { .. } | EditError::None { .. }));
    let service = &config.keys.service;
    if !is_missing || principal != SERVICE {
        return error;
    }
    if service.primary.is_some() {
        return error.context(
            "the service's keys are in the configuration (auth.primary_key), where they are changed",
        );
    }
    if service.file.exists() {
        let file = service.file.display();
        return error.context(format!(
            "the service's keys are in {file}: `outrigger keys import` takes them into the store"
        ));
    }
    error
}
