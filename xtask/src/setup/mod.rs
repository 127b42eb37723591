//! `cargo xtask setup`: everything that building, training and testing need beside Rust.

mod onnxruntime;
mod prerequisites;
mod stamp;
mod venv;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::args::{Arguments, Spec};
use crate::repo::Repo;
use crate::say;
use venv::Venv;

pub(crate) use stamp::Stamp;

/// The lock file that the Python environment is made from.
pub(crate) const LOCK: &str = "entry-scripts/requirements.lock";

/// What everything of ours runs on.
const OURS: Venv = Venv { folder: ".venv", lock: LOCK, check: |repo| onnxruntime::find(repo).map(drop) };
/// The server that we succeed, which the contract's tests ask what is true; its packages are not to be seen in ours.
const PREDECESSOR: Venv =
    Venv { folder: ".venv-azml", lock: "cli/tests/contract/requirements.lock", check: |_| Ok(()) };

pub(crate) const SPEC: Spec = Spec {
    name: "setup",
    about: "check the machine, make the Python environments in .venv and .venv-azml",
    details: "\
Checks for rustc 1.92, Python 3.11 with venv, and a C compiler, and names everything that is missing at once.
Makes .venv from entry-scripts/requirements.lock, and .venv-azml, which only tests need, from that in cli/tests/contract,
each package by its hash; what pip already keeps in its cache is not downloaded again. A second run with the same lock
files does nothing.",
    operands: None,
    flags: &[],
};

/// What set-up leaves behind.
pub(crate) struct Environment {
    /// The interpreter of `.venv`.
    pub(crate) python: PathBuf,
    /// ONNX Runtime's library.
    pub(crate) onnxruntime: PathBuf,
}

pub(crate) fn run(repo: &Repo, _: &Arguments) -> Result<ExitCode> {
    let environment = ensure_for_tests(repo)?;
    say::line(&format!("Python: {}", repo.shown(&environment.python)));
    say::line(&format!("ONNX Runtime: {}", repo.shown(&environment.onnxruntime)));
    Ok(ExitCode::SUCCESS)
}

/// Does what is still to be done.
pub(crate) fn ensure(repo: &Repo) -> Result<Environment> {
    make_missing(repo, &[OURS])?;
    existing(repo)
}

/// The same, with what only tests need.
pub(crate) fn ensure_for_tests(repo: &Repo) -> Result<Environment> {
    make_missing(repo, &[OURS, PREDECESSOR])?;
    existing(repo)
}

fn make_missing(repo: &Repo, environments: &[Venv]) -> Result<()> {
    say::step("set-up");
    let is_there: Vec<bool> = environments.iter().map(|environment| environment.is_there(repo)).collect();
    let base = prerequisites::check(repo, is_there.contains(&false))?;
    for (environment, is_there) in environments.iter().zip(is_there) {
        match &base {
            Some(base) if !is_there => environment.make(repo, base)?,
            _ => say::line(&format!("{} is up to date", environment.folder)),
        }
    }
    Ok(())
}

/// What an earlier set-up left behind.
pub(crate) fn existing(repo: &Repo) -> Result<Environment> {
    let python = OURS.python(repo);
    if !python.exists() {
        bail!("there is no .venv: run `cargo xtask setup` first");
    }
    Ok(Environment { python, onnxruntime: onnxruntime::find(repo)? })
}
