//! `cargo xtask build`, and compiling with progress for the other tasks.

use std::collections::BTreeSet;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use serde::Deserialize;

use crate::args::{Arguments, Flag, Spec};
use crate::metadata::Metadata;
use crate::process;
use crate::repo::Repo;
use crate::say;

pub(crate) const SPEC: Spec = Spec {
    name: "build",
    about: "build the executable and its backend plug-ins",
    details: "",
    operands: None,
    flags: &[Flag { name: "--release", value: None, about: "optimised, into target/release" }],
};

const EXECUTABLE: &str = "outrigger";
/// Opened at run time, so that building the executable does not build them.
const PLUGINS: &[&str] =
    &["outrigger-cpu", "outrigger-cpu-torch", "outrigger-cuda", "outrigger-cuda-torch", "outrigger-gpu"];

pub(crate) fn run(repo: &Repo, arguments: &Arguments) -> Result<ExitCode> {
    product(repo, arguments.has("--release"))?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the executable with its plug-ins and returns its path.
pub(crate) fn product(repo: &Repo, release: bool) -> Result<PathBuf> {
    say::step(if release { "build (release)" } else { "build" });
    let profile = if release { &["--release"][..] } else { &[] };
    let artifacts = packages(repo, &[&[EXECUTABLE], PLUGINS].concat(), profile)?;
    let executable = artifacts.into_iter().find(|artifact| artifact.target.name == EXECUTABLE);
    let path = executable.and_then(|artifact| artifact.executable);
    path.with_context(|| format!("cargo built no executable `{EXECUTABLE}`"))
}

/// The names of the plug-ins' files.
pub(crate) fn plugin_libraries() -> impl Iterator<Item = String> {
    PLUGINS.iter().map(|name| format!("lib{}.so", name.replace('-', "_")))
}

/// Builds the plug-ins alone, for debugging.
pub(crate) fn plugins(repo: &Repo) -> Result<()> {
    say::step("build the plug-ins");
    packages(repo, PLUGINS, &[])?;
    Ok(())
}

/// Builds packages of the workspace.
pub(crate) fn packages(repo: &Repo, names: &[&str], flags: &[&str]) -> Result<Vec<Artifact>> {
    let mut arguments = vec!["build"];
    arguments.extend(flags);
    for name in names {
        arguments.extend(["--package", name]);
    }
    compile(repo, &arguments, Scope::Packages(names))
}

/// What is compiled, to know how much it is.
pub(crate) enum Scope<'a> {
    /// Some packages.
    Packages(&'a [&'a str]),
    /// A package with a feature.
    Features(&'a str, &'a str),
    /// The whole workspace with its tests.
    Tests,
}

/// One thing that cargo built.
#[derive(Deserialize)]
pub(crate) struct Artifact {
    /// The package that it belongs to.
    pub(crate) package_id: String,
    /// What it is called.
    pub(crate) target: Target,
    /// Where it is, if it can be started.
    pub(crate) executable: Option<PathBuf>,
}

/// The target of an artifact.
#[derive(Deserialize)]
pub(crate) struct Target {
    pub(crate) kind: Vec<String>,
    pub(crate) name: String,
}

/// Runs a cargo command that compiles: a bar with ETA on a terminal, cargo's own lines elsewhere.
pub(crate) fn compile(repo: &Repo, arguments: &[&str], scope: Scope<'_>) -> Result<Vec<Artifact>> {
    watch(repo, repo.cargo(arguments), scope)
}

/// The same, of a command that is told more.
pub(crate) fn watch(repo: &Repo, mut command: Command, scope: Scope<'_>) -> Result<Vec<Artifact>> {
    let watched = say::on_terminal();
    command.arg("--message-format=json-render-diagnostics").env("CARGO_TERM_PROGRESS_WHEN", "never");
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let bar = if watched {
        let host = host(repo)?;
        // Downloads first, with cargo's own bar and its bytes; without a terminal the build does it as well.
        process::run(repo.cargo(["fetch", "--target", &host]))?;
        command
            .stderr(Stdio::piped())
            .env("CARGO_TERM_COLOR", if say::no_colour() { "never" } else { "always" });
        say::bar(crates(repo, scope, &host)?, "crates")
    } else {
        ProgressBar::hidden()
    };
    let mut child = command.spawn().context("could not start cargo")?;
    let reporter = child.stderr.take().map(|stderr| {
        let bar = bar.clone();
        thread::spawn(move || process::for_each_line(stderr, |line| report(&bar, line)))
    });
    let mut artifacts = Vec::new();
    let mut done = BTreeSet::new();
    let stdout = BufReader::new(child.stdout.take().context("cargo has no stdout")?);
    process::for_each_line(stdout, |line| {
        if let Some(artifact) = artifact(line) {
            if done.insert(artifact.package_id.clone()) {
                bar.inc(1);
            }
            artifacts.push(artifact);
        }
    })?;
    if let Some(reporter) = reporter {
        reporter.join().expect("it only reads lines")?;
    }
    let status = child.wait()?;
    bar.finish_and_clear();
    process::succeeded(&process::shown(&command), status)?;
    say::line(&format!("{} crates are up to date", done.len()));
    Ok(artifacts)
}

/// The platform that is built for.
fn host(repo: &Repo) -> Result<String> {
    let mut command = repo.command("rustc");
    command.arg("-vV");
    let version = process::capture(command)?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not name its host")
}

/// How many crates there are to build.
fn crates(repo: &Repo, scope: Scope<'_>, host: &str) -> Result<u64> {
    let feature = match scope {
        Scope::Features(package, feature) => vec![format!("--features={package}/{feature}")],
        Scope::Packages(_) | Scope::Tests => Vec::new(),
    };
    let mut arguments = vec!["--filter-platform", host];
    arguments.extend(feature.iter().map(String::as_str));
    let metadata = Metadata::read(repo, &arguments)?;
    let (roots, tests): (Vec<&str>, bool) = match scope {
        Scope::Packages(names) => (
            metadata.members().filter(|p| names.contains(&p.name.as_str())).map(|p| p.id.as_str()).collect(),
            false,
        ),
        Scope::Features(name, _) => {
            (metadata.members().filter(|p| p.name == name).map(|p| p.id.as_str()).collect(), false)
        }
        Scope::Tests => (metadata.members().map(|package| package.id.as_str()).collect(), true),
    };
    Ok(metadata.needed(&roots, tests).len() as u64)
}

/// An artifact that ends a crate; a build script is only on the way to one.
fn artifact(line: &str) -> Option<Artifact> {
    #[derive(Deserialize)]
    struct Reason {
        reason: String,
    }
    let Reason { reason } = serde_json::from_str(line).ok()?;
    let artifact: Artifact = (reason == "compiler-artifact").then(|| serde_json::from_str(line).ok())??;
    (!artifact.target.kind.iter().any(|kind| kind == "custom-build")).then_some(artifact)
}

/// What cargo says on stderr: progress goes to the bar's message, warnings and errors above the bar.
fn report(bar: &ProgressBar, line: &str) {
    match progress(&without_colours(line)) {
        Some(message) => bar.set_message(message),
        None => bar.println(line),
    }
}

fn progress(line: &str) -> Option<String> {
    let (verb, rest) = line.trim_start().split_once(' ')?;
    // cargo right-aligns its verbs in twelve columns; a diagnostic begins at the left or with an arrow.
    let is_verb = line.len() >= 13 && line.as_bytes()[12] == b' ' && line[..12].trim_start() == verb;
    (is_verb && verb != "Finished" && verb.chars().all(char::is_alphabetic)).then(|| {
        let name: Vec<&str> = rest.split_whitespace().take(2).collect();
        name.join(" ")
    })
}

fn without_colours(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\x1b') {
        text += before;
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_progress_is_told_from_its_diagnostics() {
        let check = |line: &str, expected: Option<&str>| {
            assert_eq!(progress(&without_colours(line)).as_deref(), expected, "{line}");
        };
        check("\x1b[1m\x1b[92m   Compiling\x1b[0m tokio v1.54.1", Some("tokio v1.54.1"));
        check("  Downloaded itoa v1.0.19", Some("itoa v1.0.19"));
        check("warning: unused variable: `x`", None);
        check("  --> src/main.rs:3:9", None);
        check("   |", None);
        check("12 |     let größe = 1;", None);
        check("            größe", None);
        check("", None);
    }

    #[test]
    fn build_scripts_end_no_crate() {
        let line = |kind: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"p","target":{{"kind":["{kind}"],"name":"n"}},"executable":null}}"#
            )
        };
        assert!(artifact(&line("lib")).is_some());
        assert!(artifact(&line("custom-build")).is_none());
        assert!(artifact(r#"{"reason":"build-finished","success":true}"#).is_none());
        assert!(artifact("not json").is_none());
    }
}
