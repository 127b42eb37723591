//! `cargo xtask test`: all tests, Rust and Python, and one table of what ran.

mod cargo_output;
mod fuzz;
mod place;
mod python;
mod rust;
mod skips;
mod suite;

use std::collections::BTreeSet;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::args::{Arguments, Flag, Spec};
use crate::repo::Repo;
use crate::webgpu::WebGpu;
use crate::{say, setup, signals, torch, train};
use place::Place;
use suite::{Suite, Totals};

pub(crate) use skips::{Allowed, DEMAND};
pub(crate) use suite::Skip;

pub(crate) const SPEC: Spec = Spec {
    name: "test",
    about: "set up, train, run all tests, Rust and Python, and each fuzz target for a moment",
    details: "\
Sets up libtorch as well, which takes its time once on a machine (`cargo xtask torch --help`).
Ends with a table of what ran and every skip with its reason. Fails on a failed test, on a skip that ci/allowed-skips
does not list, or for a reason that begins as one of those in OUTRIGGER_TEST_DEMAND (`;` between them), and when Rust or
Python ran no test at all. The last line is `N passed, N failed, N skipped`.
The full output is kept in target/xtask.",
    operands: None,
    flags: &[Flag { name: "--no-setup", value: None, about: "trust that set-up and training are done" }],
};

const ALLOWED: &str = "ci/allowed-skips";
const DIGITS: &str = ".outrigger/digits";

pub(crate) fn run(repo: &Repo, arguments: &Arguments) -> Result<ExitCode> {
    // Read first: a mistake in it should not cost the time of all tests.
    let allowed = allowed(repo)?;
    let (environment, digits, pytorch) = if arguments.has("--no-setup") {
        let environment = setup::existing(repo)?;
        let pytorch = torch::existing(repo, &environment.python).ok();
        (environment, repo.path(DIGITS), pytorch)
    } else {
        let environment = setup::ensure_for_tests(repo)?;
        let digits = train::ensure(repo, &environment)?;
        let is_supported = torch::is_supported();
        let pytorch = is_supported.then(|| torch::ensure_for_tests(repo, &environment.python)).transpose()?;
        (environment, digits, pytorch.flatten())
    };
    // Their tests are skipped then, and that is no success.
    let problem = |error: anyhow::Error| format!("{error:#}");
    let no_node = environment.node.err().map(problem);
    let (webgpu, no_webgpu) = match environment.webgpu {
        Ok(webgpu) => (webgpu, None),
        Err(error) => (None, Some(problem(error))),
    };
    let logs = repo.target()?.join("xtask");
    fs::create_dir_all(&logs).with_context(|| format!("could not make {}", logs.display()))?;
    let place = Place {
        variables: [
            ("OUTRIGGER_ONNXRUNTIME", environment.onnxruntime),
            ("OUTRIGGER_PYTHON", environment.python.clone()),
            ("OUTRIGGER_TEST_DIGITS", digits),
        ]
        .into_iter()
        .chain(pytorch.map(|folder| ("OUTRIGGER_TEST_PYTORCH", folder)))
        .chain(webgpu.into_iter().flat_map(WebGpu::variables))
        .collect(),
        python: environment.python,
        logs,
    };
    // A language whose tests could not even be started is a failed suite: the other one still has something to say.
    let rust = rust::run(repo, &place).unwrap_or_else(|error| vec![Suite::broken("rust", &error)]);
    stop_if_interrupted()?;
    let python = python::run(repo, &place).unwrap_or_else(|error| Suite::broken("python", &error));
    stop_if_interrupted()?;
    let fuzz = fuzz::run(repo).unwrap_or_else(|error| Suite::broken("fuzz", &error));
    stop_if_interrupted()?;
    let python_ran = nothing_ran("python", std::slice::from_ref(&python));
    let problems = [nothing_ran("rust", &rust), python_ran, no_node, no_webgpu];
    let suites: Vec<Suite> = rust.into_iter().chain([python, fuzz]).collect();
    Ok(finish(&suites, &allowed, problems.into_iter().flatten().collect()))
}

/// The skips that `ci/allowed-skips` lists.
pub(crate) fn allowed(repo: &Repo) -> Result<Allowed> {
    let text = fs::read_to_string(repo.path(ALLOWED)).with_context(|| format!("could not read {ALLOWED}"))?;
    let allowed = Allowed::parse(&text).with_context(|| ALLOWED.to_owned())?;
    Ok(allowed.demanding(&std::env::var(DEMAND).unwrap_or_default()))
}

fn stop_if_interrupted() -> Result<()> {
    if signals::heard() > 0 {
        bail!("interrupted");
    }
    Ok(())
}

fn nothing_ran(language: &str, suites: &[Suite]) -> Option<String> {
    (Totals::of(suites).ran() == 0).then(|| format!("{language}: no test ran"))
}

/// Prints skips, the table, failures, and at the very end the one line that machines read.
fn finish(suites: &[Suite], allowed: &Allowed, mut problems: Vec<String>) -> ExitCode {
    let totals = Totals::of(suites);
    say::step("what ran");
    println!();
    let list = |title: &str, names: Vec<String>| {
        if !names.is_empty() {
            println!("{title}:\n  {}\n", names.join("\n  "));
        }
    };
    list("skipped", suite::skips(suites));
    let mut used = BTreeSet::new();
    for skip in suites.iter().flat_map(|suite| &suite.skips) {
        match allowed.line_for(skip) {
            Some(line) => {
                used.insert(line);
            }
            None => problems.push(format!(
                "{}: this skip is not in {ALLOWED}, or not allowed by {DEMAND}: {}",
                skip.test, skip.reason
            )),
        }
    }
    for line in allowed.unused(&used) {
        println!("note: {ALLOWED} allows what was not skipped here: {line}\n");
    }
    println!("{}", suite::table(suites));
    // Last, where those look who see the end of a log alone.
    list("failed", suite::failures(suites));
    for problem in &problems {
        println!("problem: {problem}");
    }
    println!("{}", totals.line());
    if totals.failed == 0 && problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
