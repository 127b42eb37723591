//! `outrigger serve`: reads the configuration, runs a replica, ends it in order.

pub(crate) mod failure;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command};
use outrigger_auth::{AuthMode, KeyOrigin};
use outrigger_runtime::config::key::{self, KEYS, Key};
use outrigger_runtime::config::{Config, Kind, Settings};
use outrigger_runtime::telemetry::KeptLines;
use outrigger_runtime::{ModelsError, Replica, ReplicaError, tls};
use tokio::signal::unix::{SignalKind, signal};

use crate::{exit, init, log, sources};

/// The command line of `serve`: a flag for each configuration key.
pub(crate) fn command() -> Command {
    let command = Command::new("serve")
        .about("Starts a replica: serves an entry script, models, or both, or stands in front of another server")
        .long_about(
            "Starts a replica: serves an entry script (Python init() and run()), models without a script, or both; or stands in front of \
             another server on this machine (--upstream-url).\n\n\
             Every setting is a key of the configuration file, an environment variable (script.workers is \
             OUTRIGGER_SCRIPT_WORKERS) and a flag; flag beats environment beats file. AzureML's variables are honoured.\n\n\
             Exit codes: 0 ended in order, 2 wrong configuration or address taken, 3 script or model did not come up, \
             4 calls were broken off at the end.",
        )
        .arg(
            Arg::new("check")
                .long("check")
                .action(ArgAction::SetTrue)
                .help("Validates the configuration, prints it with where each value came from, and ends"),
        )
        .after_help(
            "`--help` shows the keys of [models.NAME], [backends.NAME], [callers.NAME], [tokens.issuers.NAME] and [collections.NAME] as well.",
        )
        .after_long_help(tables());
    settings(command)
}

/// The keys that only a file can have, as each is for one of many by its name.
fn tables() -> String {
    let table = |(heading, keys): (&str, &[&Key])| {
        let rows = keys.iter().map(|key| {
            let default =
                if key.default.is_empty() { String::new() } else { format!(" [default: {}]", key.default) };
            format!("  {} = {}\n          {}{default}\n", key.name, value_name(key.kind), key.doc)
        });
        format!("{heading}\n{}", rows.collect::<Vec<_>>().join("\n"))
    };
    [
        ("In the configuration file, for each model, [models.NAME]:", key::MODEL_KEYS),
        ("For each backend, [backends.NAME]:", key::BACKEND_KEYS),
        ("For each caller, [callers.NAME]:", key::CALLER_KEYS),
        ("For each collection, [collections.NAME]:", key::COLLECTION_KEYS),
        ("For each issuer of tokens, [tokens.issuers.NAME]:", key::ISSUER_KEYS),
    ]
    .map(table)
    .join("\n")
}

/// Adds what a configuration can be given by: `--config`, `--model`, and a flag for each key.
pub(crate) fn settings(command: Command) -> Command {
    let mut command = command
        .arg(
            Arg::new("config")
                .long("config")
                .short('c')
                .value_name("FILE")
                .help("Configuration file (TOML) [env: OUTRIGGER_CONFIG]"),
        )
        .arg(
            Arg::new("model")
                .long("model")
                .value_name("NAME=PATH")
                .action(ArgAction::Append)
                .help("Serves the model file at PATH as NAME; may be repeated"),
        );
    for key in KEYS {
        // A key on the command line is seen by everybody on the machine.
        if !matches!(key.kind, Kind::Secret) {
            command = command.arg(setting(key, key.flag()));
        }
    }
    command
}

/// The flag of a key.
pub(crate) fn setting(key: &'static Key, flag: String) -> Arg {
    let default = if key.default.is_empty() { String::new() } else { format!(" [default: {}]", key.default) };
    let aliases: String = key.aliases.iter().map(|alias| format!(", {}", alias.variable)).collect();
    let arg = Arg::new(key.name)
        .long(flag)
        .value_name(value_name(key.kind))
        .allow_hyphen_values(true)
        .help(format!("{}{default} [env: {}{aliases}]", key.doc, key.variable()));
    match key.kind {
        Kind::List => arg.action(ArgAction::Append),
        Kind::Flag => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        _ => arg,
    }
}

fn value_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Text | Kind::Secret | Kind::List => "TEXT",
        Kind::Location => "URL",
        Kind::Path => "PATH",
        Kind::Program => "PROGRAM",
        Kind::Count { .. } => "N",
        Kind::Flag => "true|false",
        Kind::Duration | Kind::Timeout | Kind::Delay => "TIME",
        Kind::Size { .. } => "SIZE",
        Kind::Address => "IP:PORT",
        Kind::Endpoint => "IP:PORT|unix:PATH",
        Kind::OneOf(_) => "WORD",
        Kind::Number { .. } => "NUMBER",
    }
}

/// Runs the command.
pub(crate) fn run(matches: &ArgMatches) -> ExitCode {
    let sources = match sources::collect(matches) {
        Ok(sources) => sources,
        Err(error) => return sources::say(&error, exit::CONFIG),
    };
    let (config, settings) = match sources::load(sources) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    if matches.get_flag("check") {
        return check(&config, &settings);
    }
    replica(config, &settings)
}

/// Runs a replica to its end. The process must have no other thread yet.
pub(crate) fn replica(config: Config, settings: &Settings) -> ExitCode {
    match init::split(&config) {
        Ok(None) => {}
        Ok(Some(code)) => return code,
        Err(error) => return sources::say(&anyhow::Error::new(error).context("process.init"), exit::START),
    }
    let (log, kept) = match log::start(&config.log) {
        Ok(started) => started,
        Err(error) => {
            return sources::say(&anyhow::Error::new(error).context("the log's thread"), exit::START);
        }
    };
    for notice in &settings.notices {
        tracing::warn!("{notice}");
    }
    for variable in &settings.strangers {
        tracing::warn!(variable, "environment variable looks like a setting and is none");
    }
    let code: u8 = run_async(config.threads, serve(config, settings.show(), kept));
    drop(log);
    if code != 0 {
        exit::at_once(code);
    }
    ExitCode::SUCCESS
}

/// Runs a future on `threads` threads.
pub(crate) fn run_async<Code: From<u8>>(threads: usize, future: impl Future<Output = Code>) -> Code {
    match tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(future);
            // A thread that is stuck in a model must not keep the process from ending.
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
            code
        }
        Err(error) => {
            tracing::error!(%error, "cannot start threads");
            Code::from(exit::START)
        }
    }
}

/// `--check`: the effective configuration, and whether the files that it names are there.
fn check(config: &Config, settings: &Settings) -> ExitCode {
    // A closed pipe is the reader's choice.
    let _ = std::io::stdout().write_all(settings.show().as_bytes());
    let mut missing = Vec::new();
    if let Some(script) = &config.script {
        let (key, path) = match &script.native {
            Some(library) => ("script.native", library),
            None => ("script.entry", &script.entry),
        };
        missing.extend((!path.is_file()).then(|| (key, path.clone())));
    }
    if let Some(directory) = &config.model_dir {
        missing.extend((!directory.is_dir()).then(|| ("model_dir", directory.clone())));
    }
    for model in config.models.values().filter(|model| model.source.is_none()) {
        missing.extend((!model.path.exists()).then(|| ("models", model.path.clone())));
    }
    for (key, path) in &missing {
        eprintln!("outrigger: `{key}`: there is no {}", path.display());
    }
    let tls = config.tls.as_ref().map(|tls| tls::check(tls, config.process.container)).transpose();
    let mut notices = settings.notices.clone();
    let is_sound = match tls {
        Ok(said) => {
            notices.extend(said.into_iter().flatten());
            missing.is_empty()
        }
        Err(error) => {
            eprintln!("outrigger: {:#}", anyhow::Error::new(error));
            false
        }
    };
    for notice in &notices {
        eprintln!("outrigger: {notice}");
    }
    if is_sound { ExitCode::SUCCESS } else { ExitCode::from(exit::CONFIG) }
}

async fn serve(config: Config, effective: String, kept: Arc<KeptLines>) -> u8 {
    // Installed first, so that a signal during the start ends it in order too.
    let (mut terminate, mut interrupt) =
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "cannot wait for signals");
                return exit::START;
            }
        };
    let replica = match Replica::listen(config.clone(), effective) {
        Ok(replica) => replica,
        Err(error) => return failed(&error, &config),
    };
    replica.show_log(kept);
    announce(&replica, &config);
    tokio::select! {
        loaded = replica.load() => if let Err(error) = loaded {
            let code = failed(&error, &config);
            replica.stop().await;
            return code;
        },
        _ = terminate.recv() => return 0,
        _ = interrupt.recv() => return 0,
    }
    if let Some(script) = config.script.as_ref().filter(|_| config.compat) {
        // As AzureML's server says it, for those who look for it.
        tracing::info!("Scoring timeout is set to {}", script.timeout.as_millis());
    }
    tracing::info!(score = %replica.addresses().score, "ready");
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM, ending in order"),
        _ = interrupt.recv() => tracing::info!("SIGINT, ending in order; again to end at once"),
    }
    tokio::select! {
        drained = replica.stop() => {
            tracing::info!(drained, "ended");
            if drained { 0 } else { exit::BROKEN_OFF }
        }
        _ = terminate.recv() => exit::BROKEN_OFF,
        _ = interrupt.recv() => exit::BROKEN_OFF,
    }
}

/// Says where the replica listens and how calls are let in. Keys go to a terminal only, never to a log.
pub(crate) fn announce(replica: &Arc<Replica>, config: &Config) {
    let addresses = replica.addresses();
    tracing::info!(score = %addresses.score, observe = %addresses.observe, admin = %addresses.admin, "listening");
    if let Some(evidence) = &config.process.evidence {
        tracing::info!(evidence, "this process is taken to be in a container (process.container)");
    }
    // Where others can come, the configuration has said more.
    if !config.auth.enabled && config.listen.score.ip().to_canonical().is_loopback() {
        tracing::warn!("auth.enabled = false: anybody who reaches score.listen can score");
    }
    if let Some(tokens) = &config.tokens {
        let issuers: Vec<_> = tokens.issuers.iter().map(|issuer| issuer.rules.issuer.as_str()).collect();
        let local = tokens.local.as_ref().map(|local| local.rules.issuer.as_str());
        tracing::info!(?issuers, local, "scoring takes tokens: `Authorization: Bearer TOKEN`");
    }
    let Some(keys) = replica.take_keys() else { return };
    let origin = keys.service.as_ref().map(|keys| match &keys.origin {
        KeyOrigin::FromFile(path) => format!("in {}", path.display()),
        KeyOrigin::Generated(path) => format!("made now and written to {}", path.display()),
        _ => "from the configuration".to_owned(),
    });
    let stored = keys.store.as_ref().map(|store| {
        format!("hashes of {} in {}", store.keys().len(), config.auth.keys.store.path().display())
    });
    let keys_are = origin.into_iter().chain(stored).collect::<Vec<_>>().join("; ");
    match config.callers.mode {
        AuthMode::Token => tracing::info!(keys = keys_are, "keys are good for POST /token alone"),
        _ => tracing::info!(keys = keys_are, "scoring needs a key: `Authorization: Bearer KEY`"),
    }
    let Some(made) = keys.service.as_ref().filter(|_| keys.is_made()) else { return };
    let mut stdout = std::io::stdout();
    if stdout.is_terminal() {
        let _ = writeln!(stdout, "primary key:   {}", made.primary.expose());
        if let Some(secondary) = &made.secondary {
            let _ = writeln!(stdout, "secondary key: {}", secondary.expose());
        }
    }
}

fn failed(error: &ReplicaError, config: &Config) -> u8 {
    failure::report(error, config);
    match error {
        ReplicaError::Bind(_)
        | ReplicaError::Keys(_)
        | ReplicaError::Tokens(_)
        | ReplicaError::Tls(_)
        | ReplicaError::Collect(_) => exit::CONFIG,
        // What is said of a model does not go together with the model.
        ReplicaError::Models(ModelsError::Batch { .. }) => exit::CONFIG,
        _ => exit::START,
    }
}
