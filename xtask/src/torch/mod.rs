//! `cargo xtask torch`: TorchScript for the CPU and for NVIDIA's GPUs. Fetches libtorch, builds what is linked with it, and puts that beside the executable.
//!
//! Both are large or slow, and the same for every checkout, so they are kept outside of it: libtorch takes half a gigabyte, and the
//! wrapper around it is one C++ file that compiles for minutes. Cargo's own fingerprints see to it that this happens once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::args::{Arguments, Flag, Spec};
use crate::build::{self, Scope};
use crate::cache::Cache;
use crate::repo::Repo;
use crate::wheels::Wheels;
use crate::{say, setup};

pub(crate) const SPEC: Spec = Spec {
    name: "torch",
    about: "TorchScript: fetch libtorch for the CPU, build what needs it",
    details: "\
Builds the plug-ins `cpu_torch` and `cuda_torch`, and outrigger_torch_core.so, which they open, into target/debug or
target/release, beside a link `libtorch` to libtorch itself, for the CPU. That comes out of the packages of backends/torch/requirements.lock, each by its
hash: 544 MB, once. It and what is built of it are kept in $XDG_CACHE_HOME/outrigger, or ~/.cache/outrigger; the first
build takes some five minutes of one core and 2 GB of memory. For x86-64 Linux.
GPUs need another libtorch when they are used, which is not fetched: the Python package `torch` 2.11.0.
`cargo xtask test` does it as well. Nothing else needs libtorch.",
    operands: None,
    flags: &[Flag { name: "--release", value: None, about: "into target/release" }],
};

/// Libtorch, out of PyTorch's Python packages: their headers, and those of their libraries that the CPU needs.
const LIBTORCH: Wheels = Wheels {
    name: "libtorch",
    package: "torch",
    lock: "backends/torch/requirements.lock",
    unpack: include_str!("unpack.py"),
};

/// The package that is linked with libtorch, and those which open it.
const CORE: &str = "outrigger-torch";
const PLUGINS: &[&str] = &["outrigger-cpu-torch", "outrigger-cuda-torch"];

pub(crate) fn run(repo: &Repo, arguments: &Arguments) -> Result<ExitCode> {
    if !is_supported() {
        bail!("libtorch is to be had for x86-64 Linux only");
    }
    let environment = setup::ensure(repo)?;
    ensure(repo, &environment.python, arguments.has("--release"))?;
    Ok(ExitCode::SUCCESS)
}

/// Whether there is a libtorch for this machine.
pub(crate) fn is_supported() -> bool {
    cfg!(all(target_os = "linux", target_arch = "x86_64"))
}

/// Does what is still to be done. `python` has pip.
pub(crate) fn ensure(repo: &Repo, python: &Path, release: bool) -> Result<()> {
    let (cache, libtorch) = fetched(repo, python)?;
    build(repo, &cache, &libtorch, release)
}

/// The same for tests, which go on without libtorch where that cannot be had, and say so.
pub(crate) fn ensure_for_tests(repo: &Repo, python: &Path) -> Result<()> {
    match fetched(repo, python) {
        Ok((cache, libtorch)) => build(repo, &cache, &libtorch, false),
        Err(error) => {
            say::line(&format!("skipped: {error:#}; nothing that needs libtorch is tested"));
            Ok(())
        }
    }
}

fn build(repo: &Repo, cache: &Cache, libtorch: &Path, release: bool) -> Result<()> {
    say::step("build what is linked with libtorch");
    let core = core(repo, libtorch, &cache.folder.join("torch-target"))?;
    let profile = if release { &["--release"][..] } else { &[] };
    build::packages(repo, PLUGINS, profile)?;
    let beside = repo.target()?.join(if release { "release" } else { "debug" });
    put(&core, &beside.join("outrigger_torch_core.so"))?;
    link(libtorch, &beside.join("libtorch"))?;
    say::line(&format!("TorchScript is in {}", repo.shown(&beside)));
    Ok(())
}

fn fetched(repo: &Repo, python: &Path) -> Result<(Cache, PathBuf)> {
    say::step("libtorch");
    let cache = Cache::open("torch")?;
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let has_compiler = Command::new(&compiler).arg("--version").output().is_ok();
    if !has_compiler {
        bail!("libtorch's wrapper needs a C++ compiler, and there is no `{}`", compiler.display());
    }
    let libtorch = LIBTORCH.ensure(repo, python, &cache.folder)?;
    Ok((cache, libtorch))
}

/// Builds the library that is linked with libtorch: always optimised, so that its dependencies are compiled once.
fn core(repo: &Repo, libtorch: &Path, target: &Path) -> Result<PathBuf> {
    let mut command = repo.cargo(["rustc", "--release", "--package", CORE, "--features", "libtorch"]);
    command.args(["--crate-type", "cdylib", "--target-dir"]).arg(target).env("LIBTORCH", libtorch);
    // Each would have it link something else.
    for name in
        ["LIBTORCH_USE_PYTORCH", "LIBTORCH_LIB", "LIBTORCH_INCLUDE", "LIBTORCH_STATIC", "LIBTORCH_CXX11_ABI"]
    {
        command.env_remove(name);
    }
    build::watch(repo, command, Scope::Features(CORE, "libtorch"))?;
    Ok(target.join("release/liboutrigger_torch.so"))
}

/// Copies a file. What was there may be in use: it is replaced and not written to.
fn put(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    fs::copy(from, &new)
        .with_context(|| format!("could not copy {} to {}", from.display(), new.display()))?;
    fs::rename(&new, to).with_context(|| format!("could not rename {}", new.display()))
}

/// Makes a link to a folder, in place of what link was there.
fn link(folder: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    let _ = fs::remove_file(&new);
    std::os::unix::fs::symlink(folder, &new).with_context(|| format!("could not make {}", new.display()))?;
    fs::rename(&new, to).with_context(|| format!("could not make the link {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_somewhere_replaces_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a.so"), "new").unwrap();
        fs::write(path("b.so"), "old").unwrap();
        put(&path("a.so"), &path("b.so")).unwrap();
        assert_eq!(fs::read_to_string(path("b.so")).unwrap(), "new");
        for target in ["one", "two"] {
            fs::create_dir(path(target)).unwrap();
            link(&path(target), &path("libtorch")).unwrap();
            assert_eq!(fs::read_link(path("libtorch")).unwrap(), path(target));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 5);
    }
}
