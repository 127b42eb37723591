//! `outrigger models index`: manifests by one request.

use std::process::ExitCode;

use clap::Command;
use outrigger_runtime::config::{StoreConfig, key};
use outrigger_store::registry::INDEX;

use crate::table::size;

pub(super) fn command() -> Command {
    let command = Command::new("index")
        .about("Copies the manifests of a registry into one object there, so that a replica that starts with many models asks for that and not for each")
        .after_help("The three newest versions of each model are in it, and those with labels. Pushes add to it from then on, but for one of two at once, perhaps; running this again makes it anew. A copy of what is no longer stored as it was is passed over. Who may write it may say what each model is that nobody signs.");
    super::settings(command, &[key::STORE_REGISTRY])
}

pub(super) async fn run(config: &StoreConfig) -> anyhow::Result<ExitCode> {
    let registry = super::registry(config)?;
    let Some(indexed) = registry.index().await? else {
        println!(
            "{}: manifests of a folder are read as quickly one by one; nothing is written",
            registry.at()
        );
        return Ok(ExitCode::SUCCESS);
    };
    println!(
        "{}: {} version(s) of {} model(s), {}",
        registry.at().below(INDEX),
        indexed.versions,
        indexed.models,
        size(Some(indexed.bytes))
    );
    if indexed.left_out > 0 {
        eprintln!(
            "outrigger: {} object(s) are too many or too large for it, and are asked for one by one",
            indexed.left_out
        );
    }
    Ok(ExitCode::SUCCESS)
}
