//! The digits example's training, repeated only when it would come out differently.

use std::path::PathBuf;

use anyhow::Result;

use crate::process;
use crate::repo::Repo;
use crate::say;
use crate::setup::{Environment, LOCK, Stamp};

const SCRIPT: &str = "entry-scripts/examples/digits/train.py";
const OUT: &str = ".outrigger/digits";

/// Trains where needed and returns the folder with the models and the held-out scans.
pub(crate) fn ensure(repo: &Repo, environment: &Environment) -> Result<PathBuf> {
    say::step("training");
    let out = repo.path(OUT);
    let mark = out.join("trained.txt");
    let stamp = Stamp::of("training", &[&repo.path(SCRIPT), &repo.path(LOCK)])?;
    if stamp.is_in(&mark) {
        say::line(&format!("{OUT} is up to date"));
        return Ok(out);
    }
    let mut command = repo.command(&environment.python);
    command.args([SCRIPT, "--out", OUT]);
    process::run(command)?;
    stamp.write(&mark)?;
    Ok(out)
}
