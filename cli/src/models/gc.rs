//! `outrigger models gc`: room in the cache, and what pushes have left.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use outrigger_runtime::config::{Kind, StoreConfig, Value, key};

use crate::table::size;

pub(super) fn command() -> Command {
    let command = Command::new("gc")
        .about("Brings the cache of this machine below its size, or removes from a registry what pushes have left unfinished")
        .arg(
            Arg::new("unused").long("unused").action(ArgAction::SetTrue)
                .help("Removes all that no replica uses, whatever the size"),
        )
        .arg(
            Arg::new("unfinished").long("unfinished").value_name("AGE").conflicts_with("unused")
                .help("Removes from the registry what there is of versions without a manifest to which nothing was written for so long, such as 24h; longer than any push takes"),
        )
        .arg(Arg::new("dry-run").long("dry-run").action(ArgAction::SetTrue).requires("unfinished").help("Says what would be removed"));
    super::settings(command, &[key::STORE_REGISTRY, key::STORE_CACHE, key::STORE_CACHE_SIZE])
}

pub(super) async fn run(config: &StoreConfig, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    match matches.get_one::<String>("unfinished") {
        Some(age) => unfinished(config, age, matches.get_flag("dry-run")).await?,
        None => cached(config, matches.get_flag("unused"))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn cached(config: &StoreConfig, unused: bool) -> anyhow::Result<()> {
    let cache = super::cache(config)?;
    let limit = if unused { cache.usage()?.linked } else { config.cache_size };
    let room = cache.make_room_within(0, limit)?;
    let left = room.left;
    println!(
        "{}: removed {} file(s), {}; {} file(s), {} are left, {} of it in use",
        cache.root().display(),
        room.files,
        size(Some(room.bytes)),
        left.files,
        size(Some(left.bytes)),
        size(Some(left.linked)),
    );
    Ok(())
}

async fn unfinished(config: &StoreConfig, age: &str, dry: bool) -> anyhow::Result<()> {
    let Some(Value::Duration(age)) = Kind::Duration.parse(age) else {
        anyhow::bail!("`--unfinished {age}` is no time, such as 24h");
    };
    let registry = super::registry(config)?;
    let left = registry.unfinished(age).await?;
    for version in &left {
        if !dry {
            registry.remove_unfinished(version).await?;
        }
        let did = if dry { "would remove" } else { "removed" };
        println!("{}: {did} {} object(s), {}", version.id, version.objects.len(), size(Some(version.size)));
    }
    if left.is_empty() {
        let hours = age.max(Duration::from_secs(1)).as_secs_f64() / 3600.0;
        println!("{}: nothing unfinished that is older than {hours:.1} h", registry.at());
    }
    Ok(())
}
