//! What the engine is given to build from: the Dockerfile and exactly what it copies.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::quietly;
use crate::build;
use crate::repo::Repo;
use crate::say;
use crate::setup::{Environment, Stamp};

const DOCKERFILE: &str = "deploy/Dockerfile";
const LOCK: &str = "deploy/requirements.lock";
const PYTHON_PACKAGES: &[&str] = &["outrigger", "outrigger_worker"];

/// Debian 12's interpreter and C library, which the wheels have to suit.
const PYTHON: &str = "3.11";
const GLIBC: u32 = 36;

/// A folder that holds the context.
pub(super) struct Context {
    pub(super) folder: PathBuf,
}

impl Context {
    /// Lays the context out in target/image/context; wheels that are there already are not downloaded again.
    pub(super) fn assemble(repo: &Repo, environment: &Environment, executable: &Path) -> Result<Self> {
        let folder = repo.target()?.join("image/context");
        let prefix = folder.join("prefix");
        if prefix.exists() {
            fs::remove_dir_all(&prefix).with_context(|| format!("could not remove {}", prefix.display()))?;
        }
        let built = executable.parent().context("an executable is in a folder")?;
        copy(executable, &prefix.join("bin/outrigger"))?;
        for library in build::plugin_libraries() {
            copy(&built.join(&library), &prefix.join("lib/outrigger").join(&library))?;
        }
        for package in PYTHON_PACKAGES {
            let source = repo.path("entry-scripts").join(package);
            copy_package(&source, &prefix.join("share/outrigger/python").join(package))?;
        }
        copy(&repo.path(DOCKERFILE), &folder.join("Dockerfile"))?;
        copy(&repo.path(LOCK), &folder.join("requirements.txt"))?;
        wheels(repo, environment, &folder.join("wheels"))?;
        Ok(Self { folder })
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let into = to.parent().context("a file is in a folder")?;
    fs::create_dir_all(into).with_context(|| format!("could not make {}", into.display()))?;
    fs::copy(from, to).with_context(|| format!("could not copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Copies a folder with all that is in it, except bytecode.
fn copy_package(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("could not read {}", from.display()))? {
        let entry = entry?;
        let (source, name) = (entry.path(), entry.file_name());
        if name == "__pycache__" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy_package(&source, &to.join(name))?;
        } else {
            copy(&source, &to.join(name))?;
        }
    }
    Ok(())
}

/// Downloads the wheels of the lock file, each by its hash, for the image's Python and not for ours.
fn wheels(repo: &Repo, environment: &Environment, folder: &Path) -> Result<()> {
    let mark = folder.with_extension("stamp");
    let stamp = Stamp::of("wheels", &[&repo.path(LOCK)])?;
    if stamp.is_in(&mark) {
        say::line("the wheels are up to date");
        return Ok(());
    }
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("could not remove {}", folder.display()))?;
    }
    let spinner = say::spinner("downloading wheels");
    let mut command = repo.command(&environment.python);
    command.args(["-m", "pip", "download", "--disable-pip-version-check", "--quiet"]);
    command.args(["--no-deps", "--require-hashes"]);
    command.args(["--only-binary", ":all:", "--python-version", PYTHON]);
    command.args(platforms(std::env::consts::ARCH)?.iter().flat_map(|tag| ["--platform", tag]));
    command.args(["--requirement", LOCK, "--dest"]).arg(folder);
    quietly(command)?;
    spinner.finish_and_clear();
    stamp.write(&mark)
}

/// pip's names of the platforms whose wheels run on the image's C library, the newest first.
fn platforms(architecture: &str) -> Result<Vec<String>> {
    // The first glibc that wheels are named after: 2.5 on x86-64, 2.17 on arm64.
    let oldest = match architecture {
        "x86_64" => 5,
        "aarch64" => 17,
        other => bail!("there is no image for {other}, only for x86_64 and aarch64"),
    };
    let minors = (oldest..=GLIBC).rev();
    let legacy = format!("manylinux2014_{architecture}");
    Ok(minors.map(|minor| format!("manylinux_2_{minor}_{architecture}")).chain([legacy]).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn wheels_are_asked_for_from_new_to_old() {
        let tags = platforms("aarch64").unwrap();
        assert_eq!(tags.first().unwrap(), "manylinux_2_36_aarch64");
        assert_eq!(tags[tags.len() - 2..], ["manylinux_2_17_aarch64", "manylinux2014_aarch64"]);
        let error = platforms("riscv64").unwrap_err().to_string();
        assert!(error.contains("riscv64"), "{error}");
    }

    #[test]
    fn the_image_has_what_the_tests_have() {
        let pins = |text: &'static str| -> BTreeSet<&str> {
            let pinned = text.lines().filter(|line| line.contains("==") && !line.starts_with([' ', '#']));
            pinned.filter_map(|line| line.split_whitespace().next()).collect()
        };
        let image = pins(include_str!("../../../deploy/requirements.lock"));
        let tests = pins(include_str!("../../../entry-scripts/requirements.lock"));
        assert!(image.iter().any(|pin| pin.starts_with("onnxruntime==")), "{image:?}");
        let strangers: Vec<_> = image.difference(&tests).collect();
        assert!(strangers.is_empty(), "not in entry-scripts/requirements.lock: {strangers:?}");
    }

    #[test]
    fn a_package_is_copied_without_bytecode() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        for file in ["a.py", "inner/b.py", "__pycache__/a.pyc", "inner/__pycache__/b.pyc"] {
            fs::create_dir_all(from.join(file).parent().unwrap()).unwrap();
            fs::write(from.join(file), file).unwrap();
        }
        copy_package(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("inner/b.py")).unwrap(), "inner/b.py");
        assert!(to.join("a.py").exists() && !to.join("__pycache__").exists());
        assert!(!to.join("inner/__pycache__").exists());
    }
}
