//! Where things are in a checkout, and how programs are started in it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process;

/// A checkout of the project.
pub(crate) struct Repo {
    /// The folder with the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    cargo: PathBuf,
}

impl Repo {
    /// Finds the checkout that `cargo xtask` was typed in.
    ///
    /// Asked at run time: with a shared target folder the program may have been compiled for another checkout.
    pub(crate) fn find() -> Result<Self> {
        let here = match env::var_os("CARGO_MANIFEST_DIR") {
            Some(manifest) => PathBuf::from(manifest),
            None => env::current_dir().context("no current directory")?,
        };
        let root = here.ancestors().find(|folder| folder.join("xtask/Cargo.toml").is_file());
        let root = root.with_context(|| format!("{} is not in a checkout of Outrigger", here.display()))?;
        let cargo = env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from);
        Ok(Self { root: root.to_owned(), cargo })
    }

    /// A path below the root.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A path as it reads best: relative to the root where it is below it.
    pub(crate) fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    /// A program to be started in the root, as if it had been typed there.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        // `cargo run` described this crate in the environment. Handed on, it would make build scripts that watch these
        // variables run again, and let a program find libraries that it does not find when it is started by hand.
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(is_about_this_crate) {
                command.env_remove(name);
            }
        }
        if let Some(path) = env::var_os("LD_LIBRARY_PATH") {
            match without_cargos_own(&path, &self.cargo) {
                Some(path) => command.env("LD_LIBRARY_PATH", path),
                None => command.env_remove("LD_LIBRARY_PATH"),
            };
        }
        command
    }

    /// The cargo that runs this task.
    pub(crate) fn cargo<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.command(&self.cargo);
        command.args(arguments);
        command
    }

    /// The folder that cargo builds into.
    pub(crate) fn target(&self) -> Result<PathBuf> {
        #[derive(Deserialize)]
        struct Answer {
            target_directory: PathBuf,
        }
        let text = process::capture(self.cargo(["metadata", "--no-deps", "--format-version", "1"]))?;
        let answer: Answer = serde_json::from_str(&text).context("`cargo metadata` printed no JSON")?;
        Ok(answer.target_directory)
    }
}

fn is_about_this_crate(variable: &str) -> bool {
    variable.starts_with("CARGO_PKG_")
        || variable.starts_with("CARGO_MANIFEST_")
        || matches!(variable, "CARGO_BIN_NAME" | "CARGO_CRATE_NAME" | "CARGO_PRIMARY_PACKAGE")
}

/// A library path without what cargo put in front of it: its target folders and the toolchain's libraries.
fn without_cargos_own(path: &OsStr, cargo: &Path) -> Option<OsString> {
    let toolchain = cargo.parent().and_then(Path::parent).map(|folder| folder.join("lib"));
    let built = env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let own = |entry: &Path| {
        toolchain.as_ref().is_some_and(|folder| entry.starts_with(folder))
            || built.as_ref().is_some_and(|folder| entry.starts_with(folder))
    };
    let rest: Vec<PathBuf> =
        env::split_paths(path).filter(|entry| !entry.as_os_str().is_empty() && !own(entry)).collect();
    if rest.is_empty() { None } else { env::join_paths(rest).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cargos_own_library_paths_go() {
        let cargo = Path::new("/toolchain/bin/cargo");
        let check = |path: &str, expected: Option<&str>| {
            assert_eq!(without_cargos_own(path.as_ref(), cargo), expected.map(OsString::from), "{path}");
        };
        check("/toolchain/lib", None);
        check("/toolchain/lib/rustlib:/opt/cuda/lib", Some("/opt/cuda/lib"));
        check("/opt/a:/opt/b", Some("/opt/a:/opt/b"));
        check("", None);
    }

    #[test]
    fn settings_of_cargo_are_kept() {
        assert!(is_about_this_crate("CARGO_PKG_NAME") && is_about_this_crate("CARGO_MANIFEST_DIR"));
        assert!(!is_about_this_crate("CARGO_HOME") && !is_about_this_crate("CARGO_TARGET_DIR"));
    }
}
