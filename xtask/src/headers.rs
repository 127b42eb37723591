//! `cargo xtask headers`: writes the C headers that are made from Rust.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::args::{Arguments, Spec};
use crate::process;
use crate::repo::Repo;

pub(crate) const SPEC: Spec = Spec {
    name: "headers",
    about: "write the C headers that are made from Rust",
    details: "\
Writes entry-scripts/native/include/outrigger_script.h out of entry-scripts/native/abi, and
backends/api/include/outrigger_backend.h out of backends/api/src/abi.rs. `check` fails if that was
forgotten.",
    operands: None,
    flags: &[],
};

/// A crate of its own does it: what reads Rust for this takes longer to compile than all of xtask.
pub(crate) fn command(repo: &Repo, check: bool) -> Command {
    let mut command = repo.cargo(["run", "--quiet", "--package", "outrigger-headers", "--"]);
    command.args(check.then_some("--check"));
    command
}

pub(crate) fn run(repo: &Repo, _: &Arguments) -> Result<ExitCode> {
    let status = process::status(command(repo, false))?;
    if !status.success() {
        bail!("the headers were not written: {status}");
    }
    Ok(ExitCode::SUCCESS)
}
