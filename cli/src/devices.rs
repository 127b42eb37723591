//! `outrigger devices`: the backends that there are and their devices, or why they have none.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{ArgMatches, Command};
use outrigger_runtime::config::key;
use outrigger_runtime::report::{self, BackendReport, DeviceReport};

use crate::table::{Table, size};
use crate::{exit, plan, serve, sources};

/// The command line of `devices`.
pub(crate) fn command() -> Command {
    let command = Command::new("devices")
        .about("Lists the backends that are found or named, and their devices with memory and health")
        .arg(plan::json_flag());
    serve::settings(command)
}

/// Runs the command.
pub(crate) fn run(matches: &ArgMatches) -> ExitCode {
    let mut sources = match sources::collect(matches) {
        Ok(sources) => sources,
        Err(error) => return sources::say(&error, exit::CONFIG),
    };
    // There need not be anything to serve.
    sources.presets.push((key::MODEL_DIR, ".".into()));
    let (config, _) = match sources::load(sources) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let backends = report::devices(&config);
    let shown = if matches.get_flag("json") {
        match serde_json::to_string_pretty(&serde_json::json!({ "backends": backends })) {
            Ok(json) => format!("{json}\n"),
            Err(error) => return sources::say(&error.into(), exit::START),
        }
    } else {
        text(&backends)
    };
    // A closed pipe is the reader's choice.
    let _ = std::io::stdout().write_all(shown.as_bytes());
    ExitCode::SUCCESS
}

fn text(backends: &[BackendReport]) -> String {
    let mut devices = Table::new(&["DEVICE", "KIND", "HEALTH", "TOTAL", "FREE", "HELD", "BUDGET", "THREADS"]);
    let known = |bytes: u64| size(Some(bytes).filter(|bytes| *bytes > 0));
    for backend in backends {
        for device in &backend.devices {
            let DeviceReport {
                device,
                kind,
                memory_total,
                memory_free,
                memory_held,
                budget,
                threads,
                health,
            } = device;
            let (kind, (health, reason)) = (word(kind), state(health));
            let cells = [
                device.to_string(),
                kind,
                health,
                known(*memory_total),
                known(*memory_free),
                size(Some(*memory_held)),
                size(*budget),
                threads.to_string(),
            ];
            devices.row(cells, reason);
        }
        if backend.devices.is_empty() {
            let mut cells = vec![backend.backend.clone(), "-".into(), "none".into()];
            cells.resize(8, "-".into());
            devices.row(cells, backend.reason.clone());
        }
    }
    let mut libraries = Table::new(&["BACKEND", "PROCESS", "TAKES", "VERSION"]);
    for backend in backends {
        let takes = if backend.formats.is_empty() { "-".into() } else { backend.formats.join(",") };
        let version = backend.version.clone().unwrap_or_else(|| "-".into());
        libraries.row([backend.backend.clone(), backend.process.into(), takes, version], []);
    }
    format!("{}\n{}", devices.show(), libraries.show())
}

/// A word as JSON has it.
fn word(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

/// `healthy`, `degraded`, `recovering` or `lost`, and why.
fn state(health: &impl serde::Serialize) -> (String, Option<String>) {
    let value = serde_json::to_value(health).unwrap_or_default();
    let text = |name: &str| value.get(name).and_then(|value| value.as_str()).map(str::to_owned);
    (text("state").unwrap_or_default(), text("reason"))
}
