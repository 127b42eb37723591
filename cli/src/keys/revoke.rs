//! `outrigger keys revoke`: keys that do not hold any more.

use anyhow::Context as _;
use clap::{ArgMatches, Command};
use outrigger_runtime::config::KeysConfig;

use super::regen::explained;
use super::{given_which, name, named, settings, which};

pub(super) fn command() -> Command {
    let command = Command::new("revoke")
        .about("Takes a key away, or both of a caller: replicas refuse it within a second or so")
        .arg(name())
        .arg(which().value_name("WHICH").help("Which of the two [default: both]"));
    settings(command)
}

pub(super) fn run(config: &KeysConfig, matches: &ArgMatches) -> anyhow::Result<()> {
    let principal = named(matches);
    let revoked = config
        .keys
        .store
        .edit(|store| Ok::<_, anyhow::Error>(store.revoke(principal, given_which(matches))?));
    let revoked =
        revoked.map_err(|error| explained(config, principal, error)).context("no key was revoked")?;
    for key in revoked {
        eprintln!("revoked the {} key {} of {}", key.which, key.id, key.principal);
    }
    Ok(())
}
