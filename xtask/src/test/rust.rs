//! The Rust tests of all crates.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};

use super::cargo_output::{Program, Reader};
use super::place::{Ending, Place};
use super::suite::{Suite, Totals};
use crate::build::{self, Artifact, Scope};
use crate::metadata::Metadata;
use crate::repo::Repo;
use crate::say;

/// The program whose tests are called by backend and place: `cpu::in_process::adds`.
const CONFORMANCE: &str = "outrigger::conformance";

pub(super) fn run(repo: &Repo, place: &Place) -> Result<Vec<Suite>> {
    // Nothing depends on a plug-in, so that the tests that open one do not build it. The executable is built with the
    // tests that start it: by itself it would have other features on, and everything below it would be built twice.
    build::plugins(repo)?;
    say::step("build the Rust tests");
    let artifacts = build::compile(repo, &["test", "--workspace", "--no-run"], Scope::Tests)?;
    let mut reader = Reader::new(programs(&Metadata::read(repo, &[])?, &artifacts));

    say::step("Rust tests");
    // Skips are told in the output of tests that pass, hence --show-output; it goes to the log only.
    let mut command = repo.cargo(["test", "--workspace", "--no-fail-fast", "--", "--show-output"]);
    command.env("CARGO_TERM_COLOR", "never").env("CARGO_TERM_PROGRESS_WHEN", "never");
    let ending = place.run(repo, command, "test-rust.log", |line| reader.line(line))?;
    Ok(with_ending(reader.finish(), ending))
}

/// Cargo's own verdict counts: a program that does not even start prints no result to be read.
fn with_ending(mut suites: Vec<Suite>, ending: Ending) -> Vec<Suite> {
    let failure = match ending {
        Ending::Silent => {
            "killed because it printed nothing for too long; test programs after that one did not run"
        }
        Ending::Failed if Totals::of(&suites).failed == 0 => {
            "`cargo test` failed without a failed test, see above"
        }
        Ending::Failed | Ending::Succeeded => return suites,
    };
    suites.push(Suite::broken("rust", &anyhow!(failure)));
    suites
}

/// Test programs by file name: tests in `src` are called `crate::path`, those in `tests/x.rs` `crate::x::path`.
fn programs(metadata: &Metadata, artifacts: &[Artifact]) -> BTreeMap<String, Program> {
    let mut programs = BTreeMap::new();
    for artifact in artifacts {
        let file =
            artifact.executable.as_ref().and_then(|path| path.file_name()).and_then(|name| name.to_str());
        let (Some(file), Some(package)) = (file, metadata.package(&artifact.package_id)) else { continue };
        let suite = package.name.clone();
        let prefix = match artifact.target.kind.iter().any(|kind| kind == "test") {
            true => format!("{suite}::{}", artifact.target.name),
            false => suite.clone(),
        };
        let places = if prefix == CONFORMANCE { 2 } else { 0 };
        programs.insert(file.to_owned(), Program { suite, prefix, places });
    }
    programs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::Target;
    use crate::metadata::tests::drawn;

    #[test]
    fn programs_by_crate() {
        let artifact = |kind: &str, name: &str, file: Option<&str>| Artifact {
            package_id: "outrigger".into(),
            target: Target { kind: vec![kind.into()], name: name.into() },
            executable: file.map(|file| format!("/target/debug/deps/{file}").into()),
        };
        let artifacts = [
            artifact("bin", "outrigger", Some("outrigger-1")),
            artifact("test", "serve", Some("serve-2")),
            artifact("lib", "other", None),
        ];
        let programs = programs(&drawn(&["outrigger"], &[]), &artifacts);
        let prefixes: Vec<&str> = programs.values().map(|program| program.prefix.as_str()).collect();
        assert_eq!(prefixes, ["outrigger", "outrigger::serve"]);
    }

    #[test]
    fn cargos_verdict_counts() {
        let failed = |suites: Vec<Suite>, ending| Totals::of(&with_ending(suites, ending)).failed;
        assert_eq!(failed(vec![], Ending::Succeeded), 0);
        assert_eq!(failed(vec![], Ending::Failed), 1);
        assert_eq!(failed(vec![], Ending::Silent), 1);
        assert_eq!(failed(vec![Suite { failed: 2, ..Suite::new("a") }], Ending::Failed), 2);
    }
}
