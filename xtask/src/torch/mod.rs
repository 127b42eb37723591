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
use crate::cache::{self, Cache};
use crate::repo::Repo;
use crate::wheels::{self, Wheels};
use crate::{process, say, setup};

pub(crate) const SPEC: Spec = Spec {
    name: "torch",
    about: "TorchScript: fetch libtorch for the CPU, build what needs it",
    details: "\
Builds the plug-ins `cpu_torch` and `cuda_torch`, and outrigger_torch_core.so, which they open, into target/debug or
target/release, beside a link `libtorch` to libtorch itself, for the CPU. That comes out of the packages of backends/torch/requirements.lock, each by its
hash: 544 MB, once. It and what is built of it are kept in $XDG_CACHE_HOME/outrigger, or ~/.cache/outrigger; the first
build takes some five minutes of one core and 2 GB of memory. For x86-64 Linux.
GPUs need another libtorch when they are used, which is not fetched: the Python package `torch` 2.11.0.
`cargo xtask test` does it as well, and takes what Python needs to use PyTorch out of the same packages: 80 MB, to hold
TorchScript against. Nothing else needs libtorch.",
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

/// What Python has beside that, out of the same packages: tests ask it what is true.
const PYTORCH: Wheels = Wheels {
    name: "pytorch",
    package: "torch",
    lock: "backends/torch/requirements.lock",
    unpack: include_str!("pytorch.py"),
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
    let (cache, libtorch) = fetched(&[&LIBTORCH], repo, python)?;
    build(repo, &cache, &libtorch, release)
}

/// The same for tests, and PyTorch's folder. They go on without what cannot be had, and say so.
pub(crate) fn ensure_for_tests(repo: &Repo, python: &Path) -> Result<Option<PathBuf>> {
    let fetched = fetched(&[&LIBTORCH, &PYTORCH], repo, python).or_else(|error| {
        say::line(&format!("without PyTorch: {error:#}"));
        fetched(&[&LIBTORCH], repo, python)
    });
    match fetched {
        Ok((cache, libtorch)) => build(repo, &cache, &libtorch, false)?,
        Err(error) => {
            say::line(&format!("skipped: {error:#}; nothing that needs libtorch is tested"));
            return Ok(None);
        }
    }
    existing(repo, python).map(Some).or_else(|error| {
        say::line(&format!("skipped: {error:#}; TorchScript is not held against it"));
        Ok(None)
    })
}

/// PyTorch's folder, if it is there and this Python can use it: the package is for one version of it.
pub(crate) fn existing(repo: &Repo, python: &Path) -> Result<PathBuf> {
    let folder = PYTORCH.existing(repo, &cache::folder()?)?;
    let mut import = repo.command(python);
    import.args(["-c", "import torch"]).env("PYTHONPATH", &folder);
    process::capture(import).context("PyTorch is not to be had for this Python")?;
    Ok(folder)
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

fn fetched(wanted: &[&Wheels], repo: &Repo, python: &Path) -> Result<(Cache, PathBuf)> {
    say::step("libtorch");
    let cache = Cache::open("torch")?;
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let has_compiler = Command::new(&compiler).arg("--version").output().is_ok();
    if !has_compiler {
        bail!("libtorch's wrapper needs a C++ compiler, and there is no `{}`", compiler.display());
    }
    wheels::ensure(wanted, repo, python, &cache.folder)?;
    let libtorch = LIBTORCH.existing(repo, &cache.folder)?;
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
