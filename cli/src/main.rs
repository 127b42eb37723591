//! `outrigger`: the one executable. It reads the command line and joins the crates; what they do is theirs.

mod admin;
mod azmlinfsrv;
mod collect;
mod dev;
mod devices;
mod exit;
mod health;
mod init;
mod keys;
mod lint;
mod log;
mod logs;
mod models;
mod plan;
mod serve;
mod sources;
mod table;
mod tls;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Command;

fn main() -> ExitCode {
    keep_to_ourselves();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // Images and habits know the server under this name.
    if arguments.first().is_some_and(|name| Path::new(name).file_stem() == Some(azmlinfsrv::NAME.as_ref())) {
        return azmlinfsrv::run(&arguments);
    }
    // Its command line has rules of its own, exit codes too.
    if arguments.get(1).is_some_and(|name| name == azmlinfsrv::NAME) {
        return azmlinfsrv::run(&arguments[1..]);
    }
    let command = Command::new("outrigger")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Serves machine-learning models: entry scripts and ONNX files behind one HTTP front")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(serve::command())
        .subcommand(dev::command())
        .subcommand(lint::command())
        .subcommand(plan::command())
        .subcommand(devices::command())
        .subcommand(models::command())
        .subcommand(keys::command())
        .subcommand(health::command())
        .subcommand(logs::command())
        .subcommand(collect::command())
        .subcommand(azmlinfsrv::command())
        // Started by the replica, with two sockets, for a script that is a shared library.
        .subcommand(Command::new("native-worker").hide(true))
        // Started by the replica, with a socket as its standard input, for a device.
        .subcommand(Command::new("device-host").hide(true));
    match command.get_matches_from(arguments).subcommand() {
        Some(("serve", matches)) => serve::run(matches),
        Some(("dev", matches)) => dev::run(matches),
        Some(("lint", matches)) => lint::run(matches),
        Some(("plan", matches)) => plan::run(matches),
        Some(("devices", matches)) => devices::run(matches),
        Some(("models", matches)) => models::run(matches),
        Some(("keys", matches)) => keys::run(matches),
        Some(("health", matches)) => health::run(matches),
        Some(("logs", matches)) => logs::run(matches),
        Some(("collect", matches)) => collect::run(matches),
        Some(("native-worker", _)) => outrigger_native::serve_worker().into(),
        Some(("device-host", _)) => outrigger_device_host::serve().into(),
        _ => ExitCode::from(exit::CONFIG),
    }
}

/// ONNX Runtime has a telemetry of its own, with a thread that lives as long as the process, whatever its environment is told later.
#[expect(unsafe_code, reason = "sets a variable of this process")]
fn keep_to_ourselves() {
    // SAFETY: the first thing that the process does; there is no other thread that could read variables meanwhile.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
}
