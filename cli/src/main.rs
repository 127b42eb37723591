//! `outrigger`: the one executable. It reads the command line and joins the crates; what they do is theirs.

mod exit;
mod health;
mod init;
mod lint;
mod log;
mod serve;
mod sources;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Command;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let command = Command::new("outrigger")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Serves machine-learning models: entry scripts and ONNX files behind one HTTP front")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(serve::command())
        .subcommand(lint::command())
        .subcommand(health::command());
    match command.get_matches_from(arguments).subcommand() {
        Some(("serve", matches)) => serve::run(matches),
        Some(("lint", matches)) => lint::run(matches),
        Some(("health", matches)) => health::run(matches),
        _ => ExitCode::from(exit::CONFIG),
    }
}
