//! `outrigger keys import`: the keys that the service made at its first start, into the store.

use anyhow::Context as _;
use clap::Command;
use outrigger_auth::wall_clock;
use outrigger_runtime::config::KeysConfig;

use super::{say, settings};

pub(super) fn command() -> Command {
    settings(Command::new("import").about(
        "Takes the service's keys out of auth.keys_file into the store, as hashes, and removes that file: they hold as before, \
         can be made anew and revoked, and nobody can read them any more",
    ))
}

pub(super) fn run(config: &KeysConfig) -> anyhow::Result<()> {
    let file = config.keys.service.file.display();
    anyhow::ensure!(
        config.keys.service.primary.is_none(),
        "the service's keys are in the configuration (auth.primary_key), and {file} is not looked at"
    );
    anyhow::ensure!(config.keys.service.file.exists(), "there is no {file}");
    let taken = config.keys.import::<anyhow::Error>(wall_clock()).context("no key was taken")?;
    for key in &taken {
        say("took", key);
    }
    eprintln!("removed {file}");
    Ok(())
}
