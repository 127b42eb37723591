//! `cargo xtask image`: the container image, and proof on a real engine that it works.

mod base;
mod checks;
mod container;
mod context;
mod engine;
mod smoke;

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::args::{Arguments, Flag, Spec};
use crate::process;
use crate::repo::Repo;
use crate::{build, say, setup, signals};
use context::Context;
use engine::{Engine, Found};

pub(crate) const SPEC: Spec = Spec {
    name: "image",
    about: "the container image: build it, try it on a real engine",
    details: "\
  build  outrigger-python, with the executable, the CPU backend, ONNX Runtime, the worker host and Python
  base   outrigger-base:bookworm, a small Debian 12, for where no registry is; needs mmdebstrap
  smoke  builds both and a user's image upon them, and checks what shapes a service in a container: user id, process 1,
         /dev/shm, addresses, keys, what a script is refused, and the end

`smoke` needs Docker. Where none answers and dockerd is installed, it starts one of its own in target/image, as root,
and ends it. With no engine at all it prints `skipped: reason`, and fails unless ci/allowed-skips lists that.",
    operands: Some("build|base|smoke"),
    flags: &[
        Flag { name: "--debug", value: None, about: "build without optimisation: minutes less, for checks" },
        Flag {
            name: "--base",
            value: Some("IMAGE"),
            about: "what to build upon [build: debian:bookworm-slim; smoke: outrigger-base:bookworm]",
        },
        Flag { name: "--tag", value: Some("NAME"), about: "name of the image [build: outrigger-python]" },
    ],
};

/// Longest time without a line from what builds or downloads; mmdebstrap and pip say nothing while all is well.
const SILENCE: Duration = Duration::from_secs(10 * 60);

pub(crate) fn run(repo: &Repo, arguments: &Arguments) -> Result<ExitCode> {
    let [what] = arguments.operands.as_slice() else {
        bail!("`image` takes one of build, base and smoke");
    };
    if !cfg!(target_os = "linux") {
        bail!("the image takes the executable that is built here, so it can be made on Linux only");
    }
    // From here on Ctrl-C does not end this process at once: containers and the engine are ended first.
    signals::listen();
    let base: Option<String> = arguments.value("--base")?;
    let tag: Option<String> = arguments.value("--tag")?;
    let release = !arguments.has("--debug");
    match what.as_str() {
        "build" => {
            let engine = required(repo)?;
            let tag = tag.unwrap_or_else(|| "outrigger-python".into());
            make(repo, &engine, release, base.as_deref(), &tag)?;
        }
        "base" => base::ensure(repo, &required(repo)?)?,
        "smoke" => return smoke::run(repo, release, base.as_deref()),
        other => bail!("there is no `image {other}`, only build, base and smoke"),
    }
    Ok(ExitCode::SUCCESS)
}

fn required(repo: &Repo) -> Result<Engine> {
    match engine::find(repo)? {
        Found::Engine(engine) => Ok(engine),
        Found::None(reason) => bail!("{reason}"),
    }
}

/// Builds the image from nothing but the checkout, and says how large it is.
fn make(repo: &Repo, engine: &Engine, release: bool, base: Option<&str>, tag: &str) -> Result<()> {
    let environment = setup::ensure(repo)?;
    let executable = build::product(repo, release)?;
    say::step(&format!("image {tag}"));
    let context = Context::assemble(repo, &environment, &executable)?;
    let mut command = engine.build(&context.folder, tag);
    if let Some(base) = base {
        command.args(["--build-arg", &format!("BASE={base}")]);
    }
    quietly(command)?;
    let bytes = engine.inspect(tag, "{{.Size}}")?;
    say::line(&format!("{:.0} MB", bytes.parse::<f64>().unwrap_or(f64::NAN) / 1e6));
    Ok(())
}

/// Runs to the end; what it said is shown only if it failed or fell silent.
fn quietly(command: Command) -> Result<()> {
    let text = process::shown(&command);
    let mut said = String::new();
    let status = process::watched(command, SILENCE, |line| {
        said += line;
        said.push('\n');
    })?;
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("{said}`{text}` failed: {status}"),
        None => bail!("{said}`{text}` said nothing for {} s and was killed", SILENCE.as_secs()),
    }
}
