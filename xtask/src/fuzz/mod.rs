//! Fuzz targets: built by plain cargo with the flags of `cargo fuzz`, and run side by side.
//!
//! The tool itself is not needed. It would be installed first, which takes as long as all targets run in the tests, and its flags are few: they make
//! LLVM say which code an input reaches, which stable Rust can. No sanitizer is among them, for those need a nightly compiler: what is safe Rust needs
//! none, and what is not is held by other tests. `cargo fuzz run --sanitizer none TARGET` works all the same.

mod corpus;
mod outcome;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::process;
use crate::repo::Repo;

pub(crate) use outcome::{Crash, Outcome};

/// The workspace of the targets.
pub(crate) const MANIFEST: &str = "fuzz/Cargo.toml";
/// Where each target has its file.
const FILES: &str = "fuzz/fuzz_targets";

/// What `cargo fuzz` 0.13 gives the compiler.
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
];

/// Where inputs are kept that were found.
const FOUND: &str = "found";

/// How long one input may take. It takes some milliseconds; machines that do other things beside stand still for longer.
const TIMEOUT_S: u32 = 60;
/// The most memory that a target may take, for all inputs. What one may take is counted by the targets.
const RSS_MIB: u32 = 2048;

#[derive(Deserialize)]
struct Manifest {
    bin: Vec<Bin>,
}

#[derive(Deserialize)]
struct Bin {
    name: String,
}

/// The names of all targets: those that the manifest lists, which are those that have a file.
pub(crate) fn targets(repo: &Repo) -> Result<Vec<String>> {
    let text =
        fs::read_to_string(repo.path(MANIFEST)).with_context(|| format!("could not read {MANIFEST}"))?;
    let Manifest { bin } = toml::from_str(&text).context(MANIFEST)?;
    let listed: BTreeSet<String> = bin.into_iter().map(|bin| bin.name).collect();
    let mut there = BTreeSet::new();
    for entry in fs::read_dir(repo.path(FILES)).with_context(|| format!("could not read {FILES}"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        there.extend(name.strip_suffix(".rs").map(str::to_owned));
    }
    match listed.symmetric_difference(&there).next() {
        Some(odd) if there.contains(odd) => bail!("{FILES}/{odd}.rs has no line in {MANIFEST}"),
        Some(odd) => bail!("{MANIFEST} lists `{odd}`, which has no file in {FILES}"),
        None => Ok(listed.into_iter().collect()),
    }
}

/// Targets that are built.
pub(crate) struct Built {
    /// Where they are.
    programs: PathBuf,
    /// Where inputs that were found, and logs, are kept between runs.
    work: PathBuf,
    corpus: PathBuf,
    artifacts: PathBuf,
}

/// How targets are run.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    /// Each for so long.
    pub(crate) seconds: u32,
    /// What chance begins with; each time something else where it is not said.
    pub(crate) seed: Option<u32>,
    /// Whether it is gone on with what was found in earlier runs that did so. Else what is found is of no use later.
    pub(crate) resume: bool,
    /// How many at once; one on each core where it is not said.
    pub(crate) jobs: Option<usize>,
}

/// Compiles all targets.
pub(crate) fn build(repo: &Repo) -> Result<Built> {
    let mut compiler = repo.command(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()));
    compiler.arg("--version");
    process::capture(compiler).context("LLVM's libFuzzer needs a C++ compiler: install g++, or set CXX")?;
    let host = host(repo)?;
    let folder = repo.target()?.join("fuzz");
    // With a target that is named, the flags are not those of build scripts and macros.
    let mut command =
        repo.cargo(["build", "--release", "--bins", "--manifest-path", MANIFEST, "--target", &host]);
    command
        .arg("--target-dir")
        .arg(&folder)
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    process::run(command)?;
    Ok(Built {
        programs: folder.join(host).join("release"),
        work: folder,
        corpus: repo.path("fuzz/corpus"),
        artifacts: repo.path("fuzz/artifacts"),
    })
}

/// What cargo builds for where nobody says.
fn host(repo: &Repo) -> Result<String> {
    let mut command = repo.command(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command.arg("-vV");
    let text = process::capture(command)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

impl Built {
    /// Runs targets, several at a time, and hands over what became of each as it ends.
    pub(crate) fn run_all(
        &self,
        targets: &[String],
        run: Run,
        mut each: impl FnMut(Outcome) -> Result<()>,
    ) -> Result<()> {
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        let jobs = run.jobs.unwrap_or_else(cores).max(1);
        let (sender, outcomes) = mpsc::channel();
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..jobs.min(targets.len()) {
                let (sender, next) = (sender.clone(), &next);
                scope.spawn(move || {
                    while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                        // Nobody listens once something has failed.
                        if sender.send(self.run(target, run)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            outcomes.into_iter().try_for_each(|outcome| each(outcome?))
        })
    }

    /// Runs a target.
    fn run(&self, target: &str, run: Run) -> Result<Outcome> {
        let found = self.work.join(if run.resume { FOUND } else { "moment" }).join(target);
        if !run.resume && found.exists() {
            fs::remove_dir_all(&found).with_context(|| format!("could not remove {}", found.display()))?;
        }
        let (seeds, artifacts) = (self.corpus.join(target), self.artifacts.join(target));
        for folder in [&found, &seeds, &artifacts] {
            fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
        }
        let mut command = self.command(target);
        command
            .arg(format!("-max_total_time={}", run.seconds))
            .arg(format!("-timeout={TIMEOUT_S}"))
            .arg(format!("-rss_limit_mb={RSS_MIB}"))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .args(["-print_final_stats=1", "-reload=0"])
            .args(run.seed.map(|seed| format!("-seed={seed}")))
            // New ones go into the first folder.
            .args([&found, &seeds]);
        let log = self.work.join(format!("{target}.log"));
        let file = File::create(&log).with_context(|| format!("could not create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let status = process::status(command)?;
        let text = fs::read(&log).with_context(|| format!("could not read {}", log.display()))?;
        let mut outcome = Outcome::read(target, &String::from_utf8_lossy(&text));
        if !status.success() {
            let input = outcome.input.take();
            let shown = |input: &String| format!("{} {input}", self.programs.join(target).display());
            let reproduce = input.as_ref().map(shown);
            let said = std::mem::take(&mut outcome.said);
            outcome.crash = Some(Crash { status, log, reproduce, said });
        }
        Ok(outcome)
    }

    fn command(&self, target: &str) -> Command {
        let mut command = Command::new(self.programs.join(target));
        command.env("RUST_BACKTRACE", "1");
        command
    }
}
