//! Python environments, each made from a lock file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::stamp::Stamp;
use crate::process;
use crate::repo::Repo;
use crate::say;

/// In the environment's folder.
const STAMP: &str = "outrigger-setup.txt";

/// An environment, made or still to be made.
pub(crate) struct Venv {
    folder: PathBuf,
    /// Relative to the root.
    lock: String,
}

impl Venv {
    pub(crate) fn new(folder: PathBuf, lock: impl Into<String>) -> Self {
        Self { folder, lock: lock.into() }
    }

    pub(crate) fn python(&self) -> PathBuf {
        self.folder.join("bin/python")
    }

    /// Its folder, as it reads best.
    pub(crate) fn shown(&self, repo: &Repo) -> String {
        repo.shown(&self.folder)
    }

    /// Whether it is complete, was made from this lock file, and still works: its Python may have been upgraded or removed since.
    pub(crate) fn is_current(&self, repo: &Repo) -> bool {
        self.stamp(repo).is_ok_and(|stamp| stamp.is_in(&self.folder.join(STAMP)))
    }

    fn stamp(&self, repo: &Repo) -> Result<Stamp> {
        let mut command = repo.command(self.python());
        command.args(["-c", "import sys; print(sys.implementation.cache_tag, *sys.version_info[:3])"]);
        let lock = Stamp::of("requirements", &[&repo.path(&self.lock)])?;
        Ok(lock.with("python", process::capture(command)?.trim()))
    }

    /// Makes the environment anew, with a Python that is there already. One that carries no stamp of this lock file is another one,
    /// or was interrupted half-way: starting over is the only way to know what is in it.
    pub(crate) fn make(&self, repo: &Repo, base: &Path) -> Result<()> {
        let (folder, shown) = (&self.folder, self.shown(repo));
        if folder.exists() {
            say::line(&format!("{shown} is out of date or incomplete: making it anew"));
            fs::remove_dir_all(folder).with_context(|| format!("could not remove {}", folder.display()))?;
        }
        let spinner = say::spinner(&format!("making {shown}"));
        let mut command = repo.command(base);
        command.args(["-m", "venv"]).arg(folder);
        process::capture(command)?;
        spinner.finish_and_clear();

        let mut pip = repo.command(self.python());
        pip.args(["-m", "pip", "--disable-pip-version-check", "--no-input", "install"]);
        pip.args(["--require-hashes", "--only-binary", ":all:", "--requirement", &self.lock]);
        say::line(&format!("installing the packages of {}", self.lock));
        self::pip(pip)?;
        self.stamp(repo)?.write(&folder.join(STAMP))
    }
}

/// Runs pip: with its own bars, which have bytes and ETA, on a terminal.
pub(crate) fn pip(mut pip: Command) -> Result<()> {
    // Settings of the user's that contradict what it is to do.
    pip.env_remove("PIP_USER").env_remove("PIP_TARGET").env_remove("PYTHONPATH").env_remove("PYTHONHOME");
    if say::on_terminal() {
        pip.args(["--progress-bar", "on"]);
        return process::run(pip);
    }
    pip.args(["--progress-bar", "off"]);
    plainly(pip)
}

/// One line for each download, and everything pip said only when it fails.
fn plainly(pip: Command) -> Result<()> {
    let command = process::shown(&pip);
    let mut said = String::new();
    let status = process::lines(pip, |line| {
        if let Some(news) = news(line) {
            say::line(&news);
        }
        said += line;
        said.push('\n');
    })?;
    if !status.success() {
        bail!("{said}`{command}` failed: {status}");
    }
    Ok(())
}

/// The lines of pip's that are worth a line of ours.
fn news(line: &str) -> Option<String> {
    let line = line.trim();
    let wheel = line.strip_prefix("Downloading ").or_else(|| line.strip_prefix("Using cached "));
    match wheel {
        Some(wheel) if !wheel.contains(".metadata") => {
            Some(format!("  {}", wheel.rsplit('/').next().unwrap_or(wheel)))
        }
        Some(_) => None,
        None => line.starts_with("Installing collected").then(|| "  unpacking".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pips_news() {
        let check =
            |line: &str, expected: Option<&str>| assert_eq!(news(line).as_deref(), expected, "{line}");
        check("  Downloading numpy-2.4.0-cp311.whl (16.6 MB)", Some("  numpy-2.4.0-cp311.whl (16.6 MB)"));
        check(
            "  Using cached http://somewhere/packages/six-1.17.0-py3-none-any.whl (11 kB)",
            Some("  six-1.17.0-py3-none-any.whl (11 kB)"),
        );
        check("  Using cached six-1.17.0.whl.metadata (1 kB)", None);
        check("Collecting numpy==2.4.0", None);
        check("Installing collected packages: six, numpy", Some("  unpacking"));
    }
}
