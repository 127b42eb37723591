//! A package of Debian's, downloaded and not installed.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process;
use crate::repo::Repo;
use crate::say;

/// Held by whoever changes what apt knows, as in `.ci/run`. Downloading changes nothing, and needs no rights.
const LOCK: &str = "/run/outrigger-apt.lock";
/// Longest time for all of it, waiting for others counted in.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often it is looked whether the lock is free.
const PAUSE: Duration = Duration::from_millis(200);

/// Downloads a package into a folder that nobody else is at. The lists of packages may be missing or old: once more with new ones, if that is
/// permitted.
pub(super) fn download(repo: &Repo, folder: &Path, package: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let fetch = || apt(repo, folder, &["download", package], deadline);
    if fetch().is_ok() {
        return Ok(());
    }
    // That the lists of somebody else could not be had need not matter; if it does, it is the reason.
    let updated = update(repo, folder, deadline);
    fetch().map_err(|error| match updated {
        Ok(()) => error,
        Err(update) => error.context(format!("{update:#}")),
    })
}

fn update(repo: &Repo, folder: &Path, deadline: Instant) -> Result<()> {
    let lock = File::create(LOCK).with_context(|| format!("could not make {LOCK}"))?;
    if lock.try_lock().is_err() {
        say::line(&format!("waiting for another that is at apt ({LOCK}), up to {:.0?}", left(deadline)?));
        while lock.try_lock().is_err() {
            left(deadline).with_context(|| format!("{LOCK} is held"))?;
            thread::sleep(PAUSE);
        }
    }
    // Without it a registry that cannot be reached is no error.
    apt(repo, folder, &["update", "-o", "APT::Update::Error-Mode=any"], deadline)
}

fn apt(repo: &Repo, folder: &Path, arguments: &[&str], deadline: Instant) -> Result<()> {
    let left = left(deadline)?;
    say::line(&format!("apt-get {}, up to {left:.0?}", arguments.join(" ")));
    let mut command = repo.command("timeout");
    command.args(["--kill-after=5", &left.as_secs().max(1).to_string(), "apt-get"]);
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    process::capture(command).map(drop)
}

fn left(deadline: Instant) -> Result<Duration> {
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) => Ok(left),
        None => bail!("timed out after {PATIENCE:?}"),
    }
}
