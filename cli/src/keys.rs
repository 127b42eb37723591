//! `outrigger keys`: keys of the service and of callers, of which a file keeps hashes. Replicas see what changes there while they run.

mod add;
mod import;
mod list;
mod regen;
mod revoke;
mod time;
mod value;

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use outrigger_auth::{SERVICE, StoredKey, Which};
use outrigger_runtime::config::key::{self, KEYS, Key};
use outrigger_runtime::config::{self, KeysConfig};

use crate::{exit, serve, sources};

/// The command line of `keys`.
pub(crate) fn command() -> Command {
    Command::new("keys")
        .about("Makes keys for the service and for callers, makes them anew, revokes and lists them; replicas follow while they run")
        .long_about(
            "Makes keys for the service and for callers, makes them anew, revokes and lists them.\n\n\
             Each has a primary and a secondary key, both valid, so that one can be made anew while callers have the other. A file \
             (auth.key_store) keeps hashes of them, never the keys: what is made is shown once. Replicas that have the file see what has \
             changed within a second or so (auth.key_poll).",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(add::command())
        .subcommand(regen::command())
        .subcommand(revoke::command())
        .subcommand(list::command())
        .subcommand(import::command())
}

/// Runs the command.
pub(crate) fn run(matches: &ArgMatches) -> ExitCode {
    let Some((name, matches)) = matches.subcommand() else { return ExitCode::from(exit::CONFIG) };
    let config = sources::collect(matches).map_err(|error| sources::say(&error, exit::CONFIG));
    let config = config.and_then(|sources| {
        config::keys(&sources).map_err(|mistakes| sources::say_mistakes(&mistakes, exit::CONFIG))
    });
    let config = match config {
        Ok(config) => config,
        Err(code) => return code,
    };
    let done = match name {
        "add" => add::run(&config, matches),
        "regen" => regen::run(&config, matches),
        "revoke" => revoke::run(&config, matches),
        "import" => import::run(&config),
        _ => list::run(&config, matches),
    };
    done.map_or_else(|error| sources::say(&error, exit::FOUND), |()| ExitCode::SUCCESS)
}

/// The keys of the configuration that say where keys are.
const WHERE: &[&Key] = &[key::STATE_DIR, key::AUTH_KEY_STORE, key::AUTH_KEYS_FILE, key::ADMIN_LISTEN];

/// Adds flags for these, and the file that may have them.
fn settings(command: Command) -> Command {
    let file = Arg::new("config").long("config").short('c').value_name("FILE");
    let command = command
        .arg(file.help("Configuration file (TOML), which says where keys are and who the callers are [env: OUTRIGGER_CONFIG]"));
    KEYS.iter()
        .filter(|key| WHERE.iter().any(|named| named.name == key.name))
        .fold(command, |command, key| command.arg(serve::setting(key, key.flag())))
}

/// Whose keys.
fn name() -> Arg {
    Arg::new("name")
        .value_name("NAME")
        .required(true)
        .help("The caller's name, as in [callers.NAME]; `service` for the service itself")
}

fn named(matches: &ArgMatches) -> &str {
    matches.get_one::<String>("name").map_or("", String::as_str)
}

/// Which of the two.
fn which() -> Arg {
    Arg::new("which").value_parser(["primary", "secondary"])
}

fn given_which(matches: &ArgMatches) -> Option<Which> {
    Which::from_name(matches.get_one::<String>("which")?)
}

fn show() -> Arg {
    Arg::new("show")
        .long("show")
        .action(ArgAction::SetTrue)
        .help("Writes the key to stdout though that is no terminal, for whoever is to read it there")
}

/// Says what has been done, on stderr: stdout is for the key alone.
fn say(what: &str, key: &StoredKey) {
    let end = key.expires.map_or_else(
        || "holds until it is revoked".into(),
        |end| format!("holds until {}", time::shown(end)),
    );
    eprintln!("{what} the {} key {} of {}; it {end}", key.which, key.id, key.principal);
}

/// What a replica would not let in: said, and no error, as the store may serve others, and the configuration may follow.
fn note_stranger(config: &KeysConfig, name: &str) {
    if name != SERVICE && !config.callers.iter().any(|known| known == name) {
        eprintln!(
            "outrigger: the configuration has no [callers.{name}]: replicas let nobody in with this key until it has"
        );
    }
}
