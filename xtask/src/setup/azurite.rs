//! Azurite, Microsoft's own stand-in for Azure Blob Storage, which tests put models into: a program for Node.js, made from a lock file as
//! Python's environments are. Node.js is not ours to install.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::stamp::Stamp;
use crate::optional;
use crate::process;
use crate::repo::Repo;
use crate::say;

/// Where it is made, relative to the root.
const FOLDER: &str = ".node-azurite";
/// What it is made from.
const SOURCE: &str = "testkit/storage/azurite";
const FILES: [&str; 2] = ["package.json", "package-lock.json"];
/// In its folder; tests look for it.
const STAMP: &str = "outrigger-setup.txt";
/// What its packages want of Node.js.
const NODE: u32 = 20;

/// Makes it if it is not there. Where that cannot be, it says why; in CI that is an error.
pub(super) fn ensure(repo: &Repo) -> Result<()> {
    optional::or_without(make(repo), optional::is_ci(), "Azure Blob Storage").map(|_| ())
}

fn make(repo: &Repo) -> Result<()> {
    node(repo)?;
    let (folder, sources) = (repo.path(FOLDER), FILES.map(|file| repo.path(SOURCE).join(file)));
    let stamp = Stamp::of("packages", &sources.each_ref().map(PathBuf::as_path))?;
    if stamp.is_in(&folder.join(STAMP)) {
        say::line(&format!("{FOLDER} is up to date"));
        return Ok(());
    }
    if folder.exists() {
        say::line(&format!("{FOLDER} is out of date or incomplete: making it anew"));
        fs::remove_dir_all(&folder).with_context(|| format!("could not remove {FOLDER}"))?;
    }
    fs::create_dir(&folder).with_context(|| format!("could not make {FOLDER}"))?;
    for (name, source) in FILES.iter().zip(&sources) {
        fs::copy(source, folder.join(name)).with_context(|| format!("could not copy {SOURCE}/{name}"))?;
    }
    let spinner = say::spinner(&format!("making {FOLDER}"));
    say::line(&format!("installing the packages of {SOURCE}"));
    let mut npm = repo.command("npm");
    // Each package by its hash, and nothing of theirs is run.
    npm.args(["ci", "--omit=dev", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund"]);
    npm.args(["--no-update-notifier", "--loglevel=error"]).current_dir(&folder);
    process::capture(npm)?;
    spinner.finish_and_clear();
    stamp.write(&folder.join(STAMP))
}

/// Whether Node.js is there with npm, and recent enough.
fn node(repo: &Repo) -> Result<()> {
    let version = |program: &str| {
        let mut command = repo.command(program);
        command.arg("--version");
        process::capture(command).ok()
    };
    let node = version("node");
    match node.as_deref().and_then(major) {
        Some(major) if major >= NODE && version("npm").is_some() => Ok(()),
        _ => bail!(
            "there is no Node.js {NODE} or later with npm, but {}; on Debian 13: sudo apt-get install --yes nodejs npm",
            node.as_deref().map_or("none", str::trim)
        ),
    }
}

/// The number in `v20.19.2`.
fn major(version: &str) -> Option<u32> {
    version.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_version() {
        for (said, expected) in [("v20.19.2\n", Some(20)), ("v8.0.0", Some(8)), ("20.1", None), ("", None)] {
            assert_eq!(major(said), expected, "{said}");
        }
    }
}
