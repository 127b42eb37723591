//! `outrigger models push`: a new version of a model.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use outrigger_runtime::config::{StoreConfig, key};
use outrigger_store::registry::{LocalModel, Push, PushError, Version};
use outrigger_store::signature::SigningKey;
use outrigger_store::{LocationError, ModelName};

use super::progress::Progress;
use crate::table::size;

pub(super) fn command() -> Command {
    let command = Command::new("push")
        .about("Stores a file, or a folder, as a new version of a model; its manifest is written last")
        .arg(Arg::new("path").value_name("PATH").required(true).help("File or folder"))
        .arg(Arg::new("name").long("name").value_name("NAME").help("Name of the model [default: that of the file or folder, as far as it can be one]"))
        .arg(
            Arg::new("version").long("version").value_name("N").value_parser(value_parser!(u64).range(1..))
                .help("Version, which must not be there [default: one more than the latest]"),
        )
        .arg(Arg::new("description").long("description").value_name("TEXT").help("What it is for"))
        .arg(Arg::new("tag").long("tag").value_name("NAME=VALUE").action(ArgAction::Append).help("What else is said of it; may be repeated"))
        .arg(
            Arg::new("unpack").long("unpack").action(ArgAction::SetTrue)
                .help("Whether archives (.tar, .tar.gz, .tgz, .zip) are unpacked, where they lie, by whoever fetches it"),
        )
        .arg(Arg::new("sign").long("sign").value_name("FILE").help("Private key to sign with (Ed25519, PEM)"));
    super::settings(command, &[key::STORE_REGISTRY])
}

pub(super) async fn run(config: &StoreConfig, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let path = config.base.join(text("path").unwrap_or_default());
    let registry = match super::registry(config) {
        // A registry begins as a folder that is not there yet; whether it can be made is known at once.
        Err(error) => match missing_folder(&error) {
            Some(folder) => {
                std::fs::create_dir_all(folder)
                    .with_context(|| format!("`{}` cannot be made", folder.display()))?;
                super::registry(config)?
            }
            None => return Err(error),
        },
        Ok(registry) => registry,
    };
    let model = LocalModel::read(&path)?;
    let (files, bytes) = (model.files.len(), model.size());
    let push = Push {
        name: name(text("name"), &path)?,
        version: matches.get_one("version").map_or(Version::Next, |version| Version::Exactly(*version)),
        description: text("description").unwrap_or_default(),
        tags: tags(matches)?,
        model,
        unpack: matches.get_flag("unpack"),
        key: text("sign").map(|path| key(&config.base.join(path))).transpose()?,
    };
    let progress = Arc::new(Progress::new("reading", bytes));
    let pushed = registry.push(push, Arc::clone(&progress) as _).await;
    progress.finish();
    let manifest = match pushed {
        Err(error @ PushError::Claimed { .. }) => {
            return Err(error).context(
                "try another version, or remove what was left: `outrigger models gc --unfinished 24h`",
            );
        }
        pushed => pushed?,
    };
    let id = manifest.id();
    println!("{id}");
    eprintln!("{id}: {files} file(s), {}, at {}", size(Some(bytes)), registry.folder(id));
    Ok(ExitCode::SUCCESS)
}

fn missing_folder(error: &anyhow::Error) -> Option<&Path> {
    match error.downcast_ref() {
        Some(LocationError::Folder { path, source }) if source.kind() == std::io::ErrorKind::NotFound => {
            Some(path)
        }
        _ => None,
    }
}

fn name(given: Option<String>, path: &Path) -> anyhow::Result<ModelName> {
    if let Some(name) = given {
        return Ok(ModelName::new(name)?);
    }
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
    let stem = stem.and_then(|stem| stem.to_str()).unwrap_or_default();
    ModelName::new(stem).context("give the model a name with --name")
}

fn tags(matches: &ArgMatches) -> anyhow::Result<BTreeMap<String, String>> {
    let given = matches.get_many::<String>("tag").unwrap_or_default();
    given
        .map(|tag| {
            let (name, value) =
                tag.split_once('=').with_context(|| format!("`--tag {tag}` is no NAME=VALUE"))?;
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect()
}

fn key(path: &Path) -> anyhow::Result<SigningKey> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let key = SigningKey::from_pem(&text).with_context(|| format!("cannot sign with {}", path.display()));
    key.context("`openssl genpkey -algorithm ed25519 -out FILE` makes a key")
}
