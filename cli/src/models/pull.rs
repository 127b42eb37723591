//! `outrigger models pull`: models into a folder, as AzureML lays them out.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Command};
use outrigger_runtime::config::StoreConfig;
use outrigger_store::tree::TreeRoot;

use super::progress::Progress;
use crate::table::size;

pub(super) fn command() -> Command {
    let command = Command::new("pull")
        .about("Fetches models and lays their files out below a folder: azureml-models/NAME/VERSION/..., and model_config_map.json")
        .arg(super::models_argument("Models, the latest version where none is named").required(true))
        .arg(Arg::new("to").long("to").value_name("DIR").required(true).help("Folder; models of an earlier pull there make way"));
    super::settings(command, super::FETCHING)
}

pub(super) async fn run(config: &StoreConfig, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let (registry, fetcher) = (super::registry(config)?, super::fetcher(config)?);
    let to = config.base.join(matches.get_one::<String>("to").cloned().unwrap_or_default());
    let root = Arc::new(TreeRoot::open(&to)?);
    let mut manifests = Vec::new();
    for wish in super::wishes(matches)? {
        let id = registry.resolve(&wish).await?;
        manifests.push((registry.folder(&id), registry.manifest(&id, &config.trusted).await?));
    }
    let bytes = manifests.iter().fold(0_u64, |sum, (_, manifest)| sum.saturating_add(manifest.size()));
    let progress = Progress::new("fetching", bytes);
    let laid_out = fetcher.lay_out(&root, &manifests, &[], &progress).await;
    progress.finish();
    let (tree, fetched) = laid_out?;
    // Who pulls may switch the machine off next.
    let (cache, tree_root) = (fetcher.cache().clone(), Arc::clone(&root));
    let sync = move || {
        cache.sync()?;
        tree_root.sync()
    };
    tokio::task::spawn_blocking(sync)
        .await?
        .with_context(|| format!("not all is on the disk below `{}`", to.display()))?;
    for ((_, manifest), files) in manifests.iter().zip(&fetched) {
        eprintln!("{}: {} file(s), {}", manifest.id(), files.files().len(), size(Some(files.size())));
    }
    println!("{}", tree.model_dir.display());
    Ok(ExitCode::SUCCESS)
}
