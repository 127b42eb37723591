//! `outrigger`: the one executable. It reads the command line and joins the crates; what they do is theirs.

mod serve;

use std::process::ExitCode;

use clap::Command;

fn main() -> ExitCode {
    let command = Command::new("outrigger")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Serves machine-learning models: entry scripts and ONNX files behind one HTTP front")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(serve::command())
        // Started by the replica, with two sockets, for a script that is a shared library.
        .subcommand(Command::new("native-worker").hide(true));
    match command.get_matches().subcommand() {
        Some(("serve", matches)) => serve::run(matches),
        Some(("native-worker", _)) => outrigger_native::serve_worker().into(),
        _ => ExitCode::from(2),
    }
}
