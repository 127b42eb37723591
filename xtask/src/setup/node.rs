//! Programs for Node.js that tests talk to, made from lock files as Python's environments are: Azurite, Microsoft's own stand-in for Azure Blob
//! Storage, and oidc-provider, an issuer of tokens. Node.js is not ours to install.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::stamp::Stamp;
use crate::optional;
use crate::process;
use crate::repo::Repo;
use crate::say;

/// What a program is made of.
struct Program {
    /// Where it is made, relative to the root.
    folder: &'static str,
    /// What it is made from.
    source: &'static str,
    /// What is not tested without it.
    what: &'static str,
}

const PROGRAMS: [Program; 2] = [
    Program { folder: ".node-azurite", source: "testkit/storage/azurite", what: "Azure Blob Storage" },
    Program { folder: ".node-oidc", source: "testkit/oidc", what: "an issuer of tokens" },
];
const FILES: [&str; 2] = ["package.json", "package-lock.json"];
/// In its folder; tests look for it.
const STAMP: &str = "outrigger-setup.txt";
/// What their packages want of Node.js.
const NODE: u32 = 20;

/// Makes those that are not there. Where that cannot be, it says why; in CI that is an error.
pub(super) fn ensure(repo: &Repo) -> Result<()> {
    for program in &PROGRAMS {
        optional::or_without(make(repo, program), optional::is_ci(), program.what)?;
    }
    Ok(())
}

fn make(repo: &Repo, program: &Program) -> Result<()> {
    node(repo)?;
    let (name, source) = (program.folder, program.source);
    let (folder, sources) = (repo.path(name), FILES.map(|file| repo.path(source).join(file)));
    let stamp = Stamp::of("packages", &sources.each_ref().map(PathBuf::as_path))?;
    if stamp.is_in(&folder.join(STAMP)) {
        say::line(&format!("{name} is up to date"));
        return Ok(());
    }
    if folder.exists() {
        say::line(&format!("{name} is out of date or incomplete: making it anew"));
        fs::remove_dir_all(&folder).with_context(|| format!("could not remove {name}"))?;
    }
    fs::create_dir(&folder).with_context(|| format!("could not make {name}"))?;
    for (file, path) in FILES.iter().zip(&sources) {
        fs::copy(path, folder.join(file)).with_context(|| format!("could not copy {source}/{file}"))?;
    }
    let spinner = say::spinner(&format!("making {name}"));
    say::line(&format!("installing the packages of {source}"));
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
