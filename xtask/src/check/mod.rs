//! `cargo xtask check`: what is checked about the code without running it.

mod advisories;
mod arrows;
mod fuzz;
mod licences;
mod spdx;

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::args::{Arguments, Spec};
use crate::headers;
use crate::process;
use crate::repo::Repo;
use crate::say;
use crate::table::{self, Align};

pub(crate) const SPEC: Spec = Spec {
    name: "check",
    about: "format, lints, documentation, licences, direction of dependencies",
    details: "\
Without names all of them run, also after one has failed:
  fmt         cargo fmt --all --check
  arrows      dependencies between our crates are those of ci/arrows.toml
  licences    licence and source of every crate are in ci/licences.toml
  fuzz        each fuzz target has its file and its line; fuzz/Cargo.lock has the releases of Cargo.lock
  headers     the C headers are those that `cargo xtask headers` writes
  advisories  cargo deny or cargo audit, where one is installed with its database on disk
  clippy      cargo clippy --workspace --all-targets -- -D warnings, and what is there only with libtorch
  doc         cargo doc --workspace --no-deps, with warnings as errors, likewise",
    operands: Some("NAME ..."),
    flags: &[],
};

/// A check returns what is wrong, a line for each; an error means that it could not be made.
type Check = fn(&Repo) -> Result<Vec<String>>;

/// What is there only with libtorch, seen without it.
const WITH_LIBTORCH: &[&str] = &["--package", "outrigger-torch", "--features", "doc-only"];

/// The quick ones first.
const CHECKS: &[(&str, Check)] = &[
    // The names of files are enough: `cargo fmt --all` mends them.
    ("fmt", |repo| {
        let format = |which: &[&str]| {
            let mut command = repo.cargo(["fmt", "--check"]);
            command.args(which).args(["--", "--files-with-diff"]);
            by_cargo(command)
        };
        Ok([format(&["--all"])?, format(&["--manifest-path", crate::fuzz::MANIFEST])?].concat())
    }),
    ("arrows", arrows::check),
    ("licences", licences::check),
    ("advisories", advisories::check),
    ("fuzz", fuzz::check),
    ("headers", |repo| by_cargo(headers::command(repo, true))),
    ("clippy", |repo| {
        let lint = |which: &[&str]| {
            let mut command = repo.cargo(["clippy"]);
            command.args(which).args(["--all-targets", "--", "-D", "warnings"]);
            by_cargo(command)
        };
        Ok([lint(&["--workspace"])?, lint(WITH_LIBTORCH)?].concat())
    }),
    ("doc", |repo| {
        let document = |which: &[&str]| {
            let mut command = repo.cargo(["doc", "--no-deps"]);
            command.args(which).env("RUSTDOCFLAGS", "-D warnings");
            by_cargo(command)
        };
        // The last one of a crate is what stays to be read.
        Ok([document(&["--workspace"])?, document(WITH_LIBTORCH)?].concat())
    }),
];

/// Cargo says itself what is wrong, and shows its own progress on a terminal.
fn by_cargo(command: Command) -> Result<Vec<String>> {
    let text = process::shown(&command);
    let status = process::status(command)?;
    Ok(if status.success() { Vec::new() } else { vec![format!("`{text}` failed: {status}")] })
}

pub(crate) fn run(repo: &Repo, arguments: &Arguments) -> Result<ExitCode> {
    let wanted = &arguments.operands;
    if let Some(unknown) = wanted.iter().find(|name| CHECKS.iter().all(|(known, _)| known != name)) {
        let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
        bail!("there is no check `{unknown}`, only {}", names.join(", "));
    }
    let chosen =
        CHECKS.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name));
    let mut rows = Vec::new();
    let mut failed = false;
    for (name, check) in chosen {
        say::step(&format!("check {name}"));
        let start = Instant::now();
        let problems = check(repo).unwrap_or_else(|error| vec![format!("{error:#}")]);
        for problem in &problems {
            println!("{name}: {problem}");
        }
        failed |= !problems.is_empty();
        let verdict = if problems.is_empty() { "ok" } else { "failed" };
        rows.push(vec![name.to_string(), verdict.into(), format!("{:.1}", start.elapsed().as_secs_f64())]);
    }
    let header = [("check", Align::Left), ("result", Align::Left), ("seconds", Align::Right)];
    println!("\n{}", table::render(&header, &rows));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
