//! `outrigger plan`: where each model would go, why, and what would have to leave for it; nothing is loaded.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use outrigger_runtime::placement::{Eviction, Placed, Plan, PlannedEnsemble, PlannedNode, Tried, Unplaced};
use outrigger_runtime::report;

use crate::table::{Table, size};
use crate::{exit, serve, sources};

/// The command line of `plan`.
pub(crate) fn command() -> Command {
    let command = Command::new("plan")
        .about("Shows on which device each model would go and why: exit code 0, or 3 where one has no place")
        .after_help(
            "Nothing is loaded, so a model that fits by what its backend says of it may still not load: at start it then goes to the next device of its list.",
        )
        .arg(json_flag());
    serve::settings(command)
}

/// `--json`.
pub(crate) fn json_flag() -> Arg {
    Arg::new("json").long("json").action(ArgAction::SetTrue).help("Writes one JSON object instead of text")
}

/// Runs the command.
pub(crate) fn run(matches: &ArgMatches) -> ExitCode {
    let sources = match sources::collect(matches) {
        Ok(sources) => sources,
        Err(error) => return sources::say(&error, exit::CONFIG),
    };
    let (config, _) = match sources::load(sources) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let (config, _fetched) = match sources::fetched(config) {
        Ok(fetched) => fetched,
        Err(code) => return code,
    };
    let plan = match report::plan(&config) {
        Ok(plan) => plan,
        Err(error) => return sources::say(&anyhow::Error::new(error), exit::START),
    };
    let shown = if matches.get_flag("json") {
        match serde_json::to_string_pretty(&plan) {
            Ok(json) => format!("{json}\n"),
            Err(error) => return sources::say(&error.into(), exit::START),
        }
    } else {
        text(&plan)
    };
    // A closed pipe is the reader's choice.
    let _ = std::io::stdout().write_all(shown.as_bytes());
    if plan.unplaced.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::START) }
}

fn text(plan: &Plan) -> String {
    if plan.placed.is_empty() && plan.unplaced.is_empty() {
        return "no models\n".into();
    }
    let mut models = Table::new(&["MODEL", "DEVICE", "TAKES", "WHY"]);
    let mut before = (String::new(), Vec::new());
    let mut notes = |model: &str, tried: &[Tried], evict: &[Eviction], steps: &[String]| {
        let now = (model.to_owned(), [notes(tried, evict), steps.to_vec()].concat());
        // Of the copies of a model the same is not said again.
        if now == before {
            return Vec::new();
        }
        before.clone_from(&now);
        now.1
    };
    for placed in &plan.placed {
        let Placed { model, instance, device, bytes, fallback_from, tried, evict, steps } = placed;
        let why = match fallback_from {
            None => "first choice".to_owned(),
            Some(from) => format!("fallback from {from}"),
        };
        let takes = size(Some(*bytes).filter(|bytes| *bytes > 0));
        models
            .row([copy(model, *instance), device.to_string(), takes, why], notes(model, tried, evict, steps));
    }
    for Unplaced { model, instance, tried, evict } in &plan.unplaced {
        models.row(
            [copy(model, *instance), "-".into(), "-".into(), "no place".into()],
            notes(model, tried, evict, &[]),
        );
    }
    let mut devices = Table::new(&["DEVICE", "PLANNED", "HELD", "BUDGET"]);
    for used in &plan.devices {
        devices.row(
            [used.device.to_string(), size(Some(used.planned)), size(Some(used.held)), size(used.budget)],
            [],
        );
    }
    if plan.ensembles.is_empty() {
        return format!("{}\n{}", models.show(), devices.show());
    }
    let mut ensembles = Table::new(&["ENSEMBLE", "NODE", "MODEL", "DEVICE"]);
    for PlannedEnsemble { ensemble, nodes, .. } in &plan.ensembles {
        for (number, PlannedNode { node, model, devices, .. }) in nodes.iter().enumerate() {
            let name = if number == 0 { ensemble.clone() } else { String::new() };
            let devices: Vec<_> = devices.iter().map(ToString::to_string).collect();
            let devices = if devices.is_empty() { "-".into() } else { devices.join(", ") };
            ensembles.row([name, node.clone(), model.clone(), devices], []);
        }
    }
    format!("{}\n{}\n{}", models.show(), ensembles.show(), devices.show())
}

/// Copies of a model are counted from 1.
fn copy(model: &str, instance: usize) -> String {
    if instance == 0 { model.to_owned() } else { format!("{model} #{}", instance + 1) }
}

fn notes(tried: &[Tried], evict: &[Eviction]) -> Vec<String> {
    let mut notes: Vec<_> = tried.iter().map(ToString::to_string).collect();
    if let Some(first) = evict.first() {
        let gone =
            |gone: &Eviction| format!("{} ({})", copy(&gone.model, gone.instance), size(Some(gone.bytes)));
        let gone: Vec<_> = evict.iter().map(gone).collect();
        notes.push(format!("{} would have room without {}", first.device, gone.join(", ")));
    }
    notes
}
