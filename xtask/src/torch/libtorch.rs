//! Libtorch, out of PyTorch's Python packages: their headers, and those of their libraries that the CPU needs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process;
use crate::repo::Repo;
use crate::say;
use crate::setup::{self, Stamp};

const LOCK: &str = "backends/torch/requirements.lock";
/// What takes the packages apart.
const UNPACK: &str = include_str!("unpack.py");
/// In the folder that is made.
const STAMP: &str = "outrigger-setup.txt";

/// The packages are for one Python, whichever runs pip: libtorch itself needs none. Each of them names another platform.
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

/// The folder with `include` and `lib`, made if it is not there.
pub(super) fn ensure(repo: &Repo, python: &Path, cache: &Path) -> Result<PathBuf> {
    let version =
        version(&fs::read_to_string(repo.path(LOCK)).with_context(|| format!("could not read {LOCK}"))?)?;
    let folder = cache.join(format!("libtorch-{version}"));
    let stamp =
        Stamp::of("requirements", &[&repo.path(LOCK)])?.with("unpack", &format!("{:016x}", sum(UNPACK)));
    if stamp.is_in(&folder.join(STAMP)) {
        say::line(&format!("{} is up to date", folder.display()));
        return Ok(folder);
    }
    // Nobody else is at it, so what is there was left by one that was interrupted.
    let work = cache.join("libtorch-work");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir(&work).with_context(|| format!("could not make {}", work.display()))?;
    download(repo, python, &work)?;
    let spinner = say::spinner("taking the packages apart");
    let made = work.join("made");
    let mut command = repo.command(python);
    command.args(["-c", UNPACK, &version]).arg(&work).arg(&made);
    process::capture(command)?;
    stamp.write(&made.join(STAMP))?;
    spinner.finish_and_clear();
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("could not remove {}", folder.display()))?;
    }
    fs::rename(&made, &folder).with_context(|| format!("could not make {}", folder.display()))?;
    let _ = fs::remove_dir_all(&work);
    Ok(folder)
}

fn download(repo: &Repo, python: &Path, folder: &Path) -> Result<()> {
    let mut pip = repo.command(python);
    pip.args(["-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]);
    pip.args(["--require-hashes", "--only-binary", ":all:", "--requirement", LOCK]);
    pip.args(PLATFORM).arg("--dest").arg(folder);
    say::line(&format!("fetching the packages of {LOCK}"));
    setup::pip(pip)
}

/// The version of `torch` in the lock file.
fn version(lock: &str) -> Result<String> {
    let line = lock.lines().find_map(|line| line.strip_prefix("torch=="));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.map(str::to_owned).with_context(|| format!("{LOCK} names no version of torch"))
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
        assert_eq!(version("# x\ntorch==2.11.0 \\\n    --hash=sha256:1\n").unwrap(), "2.11.0");
        assert!(version("nvidia-cuda-cupti==13.0.85\n").is_err());
    }
}
