//! `cargo xtask image smoke`: what a service in a container relies on, tried on a real engine.

use std::fs;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::checks::CHECKS;
use super::engine::{Engine, Found};
use super::{base, engine, make, quietly};
use crate::repo::Repo;
use crate::table::{self, Align};
use crate::test::{self, Skip};
use crate::{process, say, setup, signals};

/// The image alone.
pub(super) const IMAGE: &str = "outrigger-python:smoke";
/// A user's, upon it.
pub(super) const SERVICE: &str = "outrigger-smoke-service:smoke";
const SCRIPT: &str = "deploy/smoke/score.py";
const MODEL: &str = "deploy/smoke/make_model.py";

/// All that a user writes: the README promises that no more is needed.
const USERS_DOCKERFILE: &str = "\
FROM outrigger-python:smoke
COPY . /var/azureml-app/
ENV AZUREML_ENTRY_SCRIPT=score.py
";

pub(super) fn run(repo: &Repo, release: bool, given_base: Option<&str>) -> Result<ExitCode> {
    let engine = match engine::find(repo)? {
        Found::Engine(engine) => engine,
        Found::None(reason) => return skipped(repo, reason),
    };
    if given_base.is_none() {
        base::ensure(repo, &engine)?;
    }
    make(repo, &engine, release, Some(given_base.unwrap_or(base::NAME)), IMAGE)?;
    users_build(repo, &engine)?;
    say::step("smoke test");
    let mut rows = Vec::new();
    let mut failed = 0;
    for check in CHECKS {
        if signals::heard() > 0 {
            bail!("interrupted");
        }
        let begin = Instant::now();
        let verdict = match (check.run)(&engine) {
            Ok(()) => "ok",
            Err(error) => {
                println!("{}: {error:#}", check.name);
                failed += 1;
                "failed"
            }
        };
        rows.push(vec![check.name.into(), verdict.into(), format!("{:.1}", begin.elapsed().as_secs_f64())]);
    }
    // What an engine of the developer's would keep; the base and the build cache make the next run short.
    let _ = quietly(engine.command(["image", "rm", SERVICE, IMAGE]));
    let header = [("image smoke", Align::Left), ("result", Align::Left), ("seconds", Align::Right)];
    println!("\n{}", table::render(&header, &rows));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says that nothing was tried; only a skip that is listed is no failure.
fn skipped(repo: &Repo, reason: String) -> Result<ExitCode> {
    println!("skipped: {reason}");
    let skip = Skip { suite: "image".into(), test: "image::smoke".into(), reason };
    if test::allowed(repo)?.line_for(&skip).is_none() {
        println!("problem: ci/allowed-skips does not list this skip");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the service upon the image, as its user would.
fn users_build(repo: &Repo, engine: &Engine) -> Result<()> {
    let folder = repo.target()?.join("image/service");
    let models = folder.join("models");
    fs::create_dir_all(&models).with_context(|| format!("could not make {}", models.display()))?;
    fs::write(folder.join("Dockerfile"), USERS_DOCKERFILE)?;
    fs::copy(repo.path(SCRIPT), folder.join("score.py"))?;
    let mut command = repo.command(setup::existing(repo)?.python);
    command.arg(MODEL).arg(models.join("double.onnx"));
    process::run(command)?;
    quietly(engine.build(&folder, SERVICE))
}
