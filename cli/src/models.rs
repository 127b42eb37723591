//! `outrigger models`: models in storage, by name and version, and the cache of their files on this machine.

mod gc;
mod index;
mod label;
mod list;
mod progress;
mod pull;
mod push;
mod verify;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command};
use outrigger_runtime::config::key::{self, KEYS, Key};
use outrigger_runtime::config::{self, StoreConfig};
use outrigger_store::{Cache, Fetcher, Location, ModelWish, Registry};

use crate::{exit, serve, sources};

/// For the network; files have threads of their own.
const THREADS: usize = 2;
/// What the keys begin with that these commands know, and their flags do not.
const SECTION: &str = "store.";

/// The command line of `models`.
pub(crate) fn command() -> Command {
    Command::new("models")
        .about("Stores models in blob storage under name:version, lists, verifies and fetches them, and looks after the cache on this machine")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(push::command())
        .subcommand(list::command())
        .subcommand(label::command())
        .subcommand(index::command())
        .subcommand(verify::command())
        .subcommand(pull::command())
        .subcommand(gc::command())
}

/// Runs the command.
pub(crate) fn run(matches: &ArgMatches) -> ExitCode {
    let Some((name, matches)) = matches.subcommand() else { return ExitCode::from(exit::CONFIG) };
    let config = match configuration(matches) {
        Ok(config) => config,
        Err(code) => return code,
    };
    serve::run_async(THREADS, async {
        let done = match name {
            "push" => push::run(&config, matches).await,
            "list" => list::run(&config, matches).await,
            "label" => label::run(&config, matches).await,
            "index" => index::run(&config).await,
            "verify" => verify::run(&config, matches).await,
            "pull" => pull::run(&config, matches).await,
            _ => gc::run(&config, matches).await,
        };
        done.unwrap_or_else(|error| sources::say(&error, exit::FOUND))
    })
}

fn configuration(matches: &ArgMatches) -> Result<StoreConfig, ExitCode> {
    let sources = sources::collect(matches).map_err(|error| sources::say(&error, exit::CONFIG))?;
    config::store(&sources).map_err(|mistakes| sources::say_mistakes(&mistakes, exit::CONFIG))
}

/// Adds flags for keys of `[store]`, and the file that may have them.
fn settings(command: Command, keys: &[&'static Key]) -> Command {
    let file = Arg::new("config").long("config").short('c').value_name("FILE");
    let command = command
        .arg(file.help("Configuration file (TOML), of which [store] counts here [env: OUTRIGGER_CONFIG]"));
    let named = KEYS.iter().filter(|key| keys.iter().any(|named| named.name == key.name));
    named.fold(command, |command, key| {
        command.arg(serve::setting(key, key.flag().trim_start_matches(&SECTION.replace('.', "-")).to_owned()))
    })
}

/// The keys that say how files are fetched.
const FETCHING: &[&Key] = &[
    key::STORE_REGISTRY,
    key::STORE_CACHE,
    key::STORE_CACHE_SIZE,
    key::STORE_CONNECTIONS,
    key::STORE_PIECE,
    key::STORE_BANDWIDTH,
    key::STORE_ATTEMPTS,
    key::STORE_STALL_TIMEOUT,
    key::STORE_TRUSTED_KEYS,
    key::STORE_ARCHIVE_FILES,
    key::STORE_ARCHIVE_FILE_BYTES,
    key::STORE_ARCHIVE_BYTES,
    key::STORE_ARCHIVE_RATIO,
];

/// The argument that names models.
fn models_argument(help: &'static str) -> Arg {
    Arg::new("wish").value_name("NAME[:VERSION|@LABEL]").action(ArgAction::Append).help(help)
}

/// The models that are named.
fn wishes(matches: &ArgMatches) -> anyhow::Result<Vec<ModelWish>> {
    let named = matches.get_many::<String>("wish").unwrap_or_default();
    named.map(|text| Ok(text.parse::<ModelWish>()?)).collect()
}

/// Where models are registered.
fn registry(config: &StoreConfig) -> anyhow::Result<Registry> {
    let text = config.registry.as_ref().context(
        "no registry is named: give --registry URL, or set OUTRIGGER_STORE_REGISTRY or store.registry; a folder will do",
    )?;
    let at = Location::open(text.as_str(), &config.base, &config.environment)?;
    Ok(Registry::new(at))
}

/// The cache on this machine.
fn cache(config: &StoreConfig) -> anyhow::Result<Cache> {
    let path = config.cache.as_ref().context(
        "the cache has no default here, as neither XDG_CACHE_HOME nor HOME is set: give --cache DIR, or set OUTRIGGER_STORE_CACHE",
    )?;
    let opened = Cache::open(path, Some(config.cache_size));
    opened.with_context(|| format!("the cache `{}` cannot be opened", path.display()))
}

fn fetcher(config: &StoreConfig) -> anyhow::Result<Fetcher> {
    Ok(Fetcher::new(cache(config)?, config.fetch.clone()))
}
