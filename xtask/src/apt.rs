//! A package of Debian's, downloaded and not installed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::optional;
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
pub(crate) fn download(repo: &Repo, folder: &Path, package: &str) -> Result<()> {
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

/// The package that [`download`] has left in a folder.
pub(crate) fn downloaded(folder: &Path) -> Result<PathBuf> {
    let package = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let package = package.into_iter().find(|path| path.extension().is_some_and(|end| end == "deb"));
    package.with_context(|| format!("apt left no package in {}", folder.display()))
}

/// Whether packages are to be had: where it is CI's, as root, and on Debian.
pub(crate) fn is_expected(repo: &Repo) -> bool {
    let user = || {
        let mut id = repo.command("id");
        id.arg("-u");
        process::capture(id).is_ok_and(|user| user.trim() == "0")
    };
    optional::is_ci() && Path::new("/etc/debian_version").exists() && user()
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
