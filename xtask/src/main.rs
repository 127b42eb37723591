//! The project's own tasks: `cargo xtask NAME`.
//!
//! Set-up, demo, tests, checks and long proofs are programs, not pages of instructions. Arguments are parsed by
//! [`args`] and not by a crate: this one compiles before anything else on a fresh machine.

mod apt;
mod args;
mod build;
mod cache;
mod check;
mod demo;
mod fuzz;
mod headers;
mod http;
mod image;
mod metadata;
mod optional;
mod peers;
mod process;
mod prove;
mod repo;
mod say;
mod setup;
#[expect(unsafe_code, reason = "the standard library has no signals")]
mod signals;
mod table;
mod test;
mod torch;
mod train;
mod webgpu;
mod wheels;

use std::process::ExitCode;

use anyhow::Result;

use args::{Arguments, Spec};
use repo::Repo;

/// A task: what can be typed, and what it does. The exit code is the task's own; an error is a failure with a reason.
struct Task {
    spec: &'static Spec,
    run: fn(&Repo, &Arguments) -> Result<ExitCode>,
}

const TASKS: &[Task] = &[
    Task { spec: &demo::SPEC, run: demo::run },
    Task { spec: &test::SPEC, run: test::run },
    Task { spec: &check::SPEC, run: check::run },
    Task { spec: &setup::SPEC, run: setup::run },
    Task { spec: &build::SPEC, run: build::run },
    Task { spec: &torch::SPEC, run: torch::run },
    Task { spec: &image::SPEC, run: image::run },
    Task { spec: &headers::SPEC, run: headers::run },
    Task { spec: &prove::SPEC, run: prove::run },
    Task { spec: &peers::SPEC, run: peers::run },
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "help".into());
    if matches!(name.as_str(), "help" | "--help" | "-h") {
        print!("{}", overview());
        return ExitCode::SUCCESS;
    }
    let Some(task) = TASKS.iter().find(|task| task.spec.name == name) else {
        eprintln!("error: there is no task `{name}`\n\n{}", overview());
        return ExitCode::from(2);
    };
    let arguments = match Arguments::parse(task.spec, arguments) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            print!("{}", task.spec.help());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error:#}\n\n{}", task.spec.help());
            return ExitCode::from(2);
        }
    };
    Repo::find().and_then(|repo| (task.run)(&repo, &arguments)).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn overview() -> String {
    let rows = TASKS.iter().map(|task| (task.spec.name.to_owned(), task.spec.about)).collect::<Vec<_>>();
    format!(
        "Outrigger's tasks\n\nUsage: cargo xtask NAME [FLAGS]\n\n{}\n`cargo xtask NAME --help` says more.\n",
        args::aligned(&rows)
    )
}
