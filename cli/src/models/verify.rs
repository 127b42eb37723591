//! `outrigger models verify`: whether what is stored, or cached, is what it should be.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use outrigger_runtime::config::{StoreConfig, key};
use outrigger_store::{FetchError, ModelWish, Which};

use super::progress::Progress;
use crate::exit;
use crate::table::size;

pub(super) fn command() -> Command {
    let command = Command::new("verify")
        .about("Reads every file of the models that are named and holds it against its manifest, or the cache against the names of its files")
        .arg(super::models_argument("Models, the latest version where none is named [default: all versions of all]"))
        .arg(
            Arg::new("cached").long("cached").action(ArgAction::SetTrue).conflicts_with("wish")
                .help("Verifies the cache of this machine instead, and removes files from it that are not what they should be"),
        );
    super::settings(command, &[key::STORE_REGISTRY, key::STORE_CACHE, key::STORE_TRUSTED_KEYS])
}

pub(super) async fn run(config: &StoreConfig, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    if matches.get_flag("cached") {
        return cached(config);
    }
    let registry = super::registry(config)?;
    let mut wishes = super::wishes(matches)?;
    if wishes.is_empty() {
        let all = registry.list().await?.into_iter();
        wishes = all
            .map(|listed| ModelWish { name: listed.id.name, which: Which::Version(listed.id.version) })
            .collect();
    }
    let mut wrong = 0;
    for wish in &wishes {
        let id = registry.resolve(wish).await?;
        let manifest = match registry.manifest(&id, &config.trusted).await {
            Ok(manifest) => manifest,
            Err(
                error @ (FetchError::NotFound { .. }
                | FetchError::Manifest { .. }
                | FetchError::Signature { .. }),
            ) => {
                println!("{id}: {error}");
                wrong += 1;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let progress = Progress::new("verifying", manifest.size());
        let found = registry.verify(&manifest, &progress).await;
        progress.finish();
        let found = found?;
        found.iter().for_each(|error| println!("{id}: {error}"));
        if found.is_empty() {
            println!(
                "{id}: {} file(s), {}, all as its manifest says",
                manifest.files().len(),
                size(Some(manifest.size()))
            );
        }
        wrong += usize::from(!found.is_empty());
    }
    if wrong > 0 {
        eprintln!("outrigger: {wrong} of {} version(s) are not what they should be", wishes.len());
        return Ok(ExitCode::from(exit::FOUND));
    }
    Ok(ExitCode::SUCCESS)
}

fn cached(config: &StoreConfig) -> anyhow::Result<ExitCode> {
    let cache = super::cache(config)?;
    let blobs = cache.blobs()?;
    let (mut bytes, mut wrong) = (0, 0);
    for blob in &blobs {
        match cache.verify(&blob.digest)? {
            Some(true) => bytes += blob.size,
            Some(false) => {
                println!(
                    "{}: not what its name says; removed, and fetched anew when it is needed",
                    blob.digest
                );
                wrong += 1;
            }
            // It made way meanwhile.
            None => {}
        }
    }
    println!(
        "{}: {} file(s), {} verified, {wrong} removed",
        cache.root().display(),
        blobs.len(),
        size(Some(bytes))
    );
    Ok(if wrong > 0 { ExitCode::from(exit::FOUND) } else { ExitCode::SUCCESS })
}
