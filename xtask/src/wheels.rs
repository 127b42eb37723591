//! Libraries out of Python packages, for whoever needs no Python with them: downloaded by their hashes, taken apart, and kept.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process;
use crate::repo::Repo;
use crate::say;
use crate::setup::{self, Stamp};

/// In the folder that is made.
const STAMP: &str = "outrigger-setup.txt";

/// The packages are for one Python, whichever runs pip: what is in them that is wanted needs none. Each of them names another platform.
const PLATFORM: &[&str] = &[
    "--implementation",
    "cp",
    "--python-version",
    "3.11",
    "--abi",
    "cp311",
    "--platform",
    "manylinux_2_28_x86_64",
    "--platform",
    "manylinux_2_25_x86_64",
    "--platform",
    "manylinux_2_17_x86_64",
    "--platform",
    "manylinux2014_x86_64",
];

/// Some packages, and what becomes of them.
pub(crate) struct Wheels {
    /// Of what is made.
    pub(crate) name: &'static str,
    /// The package whose version it has.
    pub(crate) package: &'static str,
    /// The packages with their hashes, relative to the root.
    pub(crate) lock: &'static str,
    /// A script that takes them apart: it is given the version, the folder that they are in, and that which it is to make.
    pub(crate) unpack: &'static str,
}

impl Wheels {
    /// The folder with what was in them, made below `cache` if it is not there.
    pub(crate) fn ensure(&self, repo: &Repo, python: &Path, cache: &Path) -> Result<PathBuf> {
        ensure(&[self], repo, python, cache)?;
        self.folder(repo, cache)
    }

    /// Makes the folder out of packages that have been fetched.
    fn make(&self, repo: &Repo, python: &Path, cache: &Path, work: &Path) -> Result<()> {
        let spinner = say::spinner(&format!("taking the packages apart for {}", self.name));
        let made = work.join("made");
        let mut command = repo.command(python);
        command.args(["-c", self.unpack, &self.version(repo)?]).arg(work).arg(&made);
        process::capture(command)?;
        self.stamp(repo)?.write(&made.join(STAMP))?;
        spinner.finish_and_clear();
        let folder = self.folder(repo, cache)?;
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("could not remove {}", folder.display()))?;
        }
        fs::rename(&made, &folder).with_context(|| format!("could not make {}", folder.display()))
    }

    /// The same, if it is there.
    pub(crate) fn existing(&self, repo: &Repo, cache: &Path) -> Result<PathBuf> {
        let folder = self.folder(repo, cache)?;
        match self.stamp(repo)?.is_in(&folder.join(STAMP)) {
            true => Ok(folder),
            false => bail!("{} is missing or out of date", folder.display()),
        }
    }

    fn folder(&self, repo: &Repo, cache: &Path) -> Result<PathBuf> {
        Ok(cache.join(format!("{}-{}", self.name, self.version(repo)?)))
    }

    fn stamp(&self, repo: &Repo) -> Result<Stamp> {
        let stamp = Stamp::of("requirements", &[&repo.path(self.lock)])?;
        Ok(stamp.with("unpack", &format!("{:016x}", sum(self.unpack))))
    }

    fn download(&self, repo: &Repo, python: &Path, folder: &Path) -> Result<()> {
        let mut pip = repo.command(python);
        pip.args(["-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]);
        pip.args(["--require-hashes", "--only-binary", ":all:", "--requirement", self.lock]);
        pip.args(PLATFORM).arg("--dest").arg(folder);
        say::line(&format!("fetching the packages of {}", self.lock));
        setup::pip(pip)
    }

    fn version(&self, repo: &Repo) -> Result<String> {
        let lock = self.lock;
        let text = fs::read_to_string(repo.path(lock)).with_context(|| format!("could not read {lock}"))?;
        version(&text, self.package).with_context(|| format!("{lock} names no version of {}", self.package))
    }
}

/// Makes what is not there, out of the packages of one lock file, which are fetched once. Each may use those before it.
pub(crate) fn ensure(wanted: &[&Wheels], repo: &Repo, python: &Path, cache: &Path) -> Result<()> {
    let mut missing = Vec::new();
    for wheels in wanted {
        let folder = wheels.folder(repo, cache)?;
        if wheels.stamp(repo)?.is_in(&folder.join(STAMP)) {
            say::line(&format!("{} is up to date", folder.display()));
        } else {
            missing.push(wheels);
        }
    }
    let Some(first) = missing.first() else { return Ok(()) };
    // Nobody else is at it, so what is there was left by one that was interrupted.
    let work = cache.join(format!("{}-work", first.name));
    let _ = fs::remove_dir_all(&work);
    fs::create_dir(&work).with_context(|| format!("could not make {}", work.display()))?;
    first.download(repo, python, &work)?;
    for wheels in missing {
        wheels.make(repo, python, cache, &work)?;
    }
    let _ = fs::remove_dir_all(&work);
    Ok(())
}

/// The version of a package in a lock file.
fn version(lock: &str, package: &str) -> Option<String> {
    let line = lock.lines().find_map(|line| line.strip_prefix(package)?.strip_prefix("=="));
    line?.split_whitespace().next().map(str::to_owned)
}

/// Only has to notice an edit.
fn sum(text: &str) -> u64 {
    text.bytes().fold(0, |sum, byte| sum.rotate_left(5) ^ u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_lock_files() {
        let version = |lock| version(lock, "torch");
        assert_eq!(version("# x\ntorch==2.11.0 \\\n    --hash=sha256:1\n").unwrap(), "2.11.0");
        assert_eq!(version("nvidia-cuda-cupti==13.0.85\ntorchvision==1\n"), None);
    }
}
