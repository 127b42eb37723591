//! `outrigger lint`: imports an entry script in a worker, checks it as a start would, and shows how it is called.

mod capture;
mod report;

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use outrigger_runtime::config::{Sources, key};
use outrigger_runtime::scripts;

use self::capture::Capture;
use self::report::Report;
use crate::{exit, serve, sources};

/// The command line of `lint`.
pub(crate) fn command() -> Command {
    let command = Command::new("lint")
        .about("Imports an entry script, checks it, and shows how it is called: exit code 0, else 1")
        .arg(Arg::new("SCRIPT").required(true).help("Entry script with init() and run()"))
        .arg(Arg::new("init").long("init").action(ArgAction::SetTrue).help("Calls init() too"))
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Writes one JSON object instead of text"),
        );
    serve::settings(command)
}

/// Runs the command.
pub(crate) fn run(matches: &ArgMatches) -> ExitCode {
    let sources = match sources::collect(matches) {
        Ok(sources) => prepare(sources, matches),
        Err(error) => return sources::say(&error, exit::CONFIG),
    };
    let (config, settings) = match sources::load(sources) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let init = matches.get_flag("init");
    // Only `init()` looks at models.
    let (config, _fetched) = match if init { sources::fetched(config) } else { Ok((config, None)) } {
        Ok(fetched) => fetched,
        Err(code) => return code,
    };
    let Some(script) = &config.script else { return ExitCode::from(exit::CONFIG) };
    let capture = Capture::start();
    serve::run_async(1, async {
        let examined = scripts::examine(script, config.model_dir.as_deref(), init, config.compat).await;
        let report = Report::new(script, examined, capture.take(), init, &config, &settings.notices);
        if matches.get_flag("json") {
            println!("{}", report.json());
        } else {
            print!("{}", report.text());
        }
        ExitCode::from(if report.is_ok() { 0 } else { exit::FOUND })
    })
}

fn prepare(mut sources: Sources, matches: &ArgMatches) -> Sources {
    let script = matches.get_one::<String>("SCRIPT").cloned().unwrap_or_default();
    let script = sources.working_directory.join(script).to_string_lossy().into_owned();
    sources.flags.push((key::SCRIPT_ENTRY, vec![script]));
    sources
}
