//! The Python tests, through pytest and a plug-in of ours that writes each outcome as a line of JSON.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::place::{Ending, Place};
use super::suite::{Skip, Suite};
use crate::repo::Repo;
use crate::say;

const TESTS: &str = "entry-scripts/tests";
const PLUGIN_FOLDER: &str = "ci";
const PLUGIN: &str = "pytest_outcomes";
const SUITE: &str = "python";

/// One line of the plug-in's.
#[derive(Deserialize)]
struct Outcome {
    test: String,
    outcome: String,
    reason: String,
}

pub(super) fn run(repo: &Repo, place: &Place) -> Result<Suite> {
    say::step("Python tests");
    let outcomes = place.logs.join("pytest-outcomes.jsonl");
    if outcomes.exists() {
        fs::remove_file(&outcomes).with_context(|| format!("could not remove {}", outcomes.display()))?;
    }
    let mut command = repo.command(&place.python);
    // -v for a line per test: a run that says nothing counts as hanging.
    command.args(["-m", "pytest", TESTS, "-v", "-rs", "-p", PLUGIN]);
    let mut path = repo.path(PLUGIN_FOLDER).into_os_string();
    if let Some(given) = std::env::var_os("PYTHONPATH").filter(|given| !given.is_empty()) {
        path.push(":");
        path.push(given);
    }
    command.env("PYTHONPATH", path).env("OUTRIGGER_TEST_OUTCOMES", &outcomes);
    let start = Instant::now();
    let ending = place.run(repo, command, "test-python.log", |_| true)?;
    let seconds = start.elapsed().as_secs_f64();
    let text = fs::read_to_string(&outcomes).context("pytest did not get as far as our plug-in")?;
    let suite = Suite { seconds, ..read(&text)? };
    Ok(with_ending(suite, ending))
}

/// pytest's own verdict counts. It fails, too, when it finds no test; that is told as what it is.
fn with_ending(mut suite: Suite, ending: Ending) -> Suite {
    let failure = match ending {
        Ending::Silent => "killed because it printed nothing for too long; tests after that one did not run",
        Ending::Failed if suite.failed == 0 && suite.passed > 0 => {
            "pytest failed without a failed test, see above"
        }
        Ending::Failed | Ending::Succeeded => return suite,
    };
    suite.failed += 1;
    suite.failures.push(format!("{SUITE}: {failure}"));
    suite
}

fn read(text: &str) -> Result<Suite> {
    let mut suite = Suite::new(SUITE);
    for line in text.lines() {
        let Outcome { test, outcome, reason } =
            serde_json::from_str(line).with_context(|| format!("`{line}` is no outcome of a test"))?;
        match outcome.as_str() {
            "passed" => suite.passed += 1,
            "skipped" => suite.skips.push(Skip { suite: SUITE.into(), test, reason }),
            _ => {
                suite.failed += 1;
                suite.failures.push(test);
            }
        }
    }
    Ok(suite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes() {
        let text = r#"{"test": "a.py::one", "outcome": "passed", "reason": ""}
{"test": "a.py::two", "outcome": "skipped", "reason": "no GPU"}
{"test": "b.py", "outcome": "failed", "reason": ""}
"#;
        let suite = read(text).unwrap();
        let skip = Skip { suite: "python".into(), test: "a.py::two".into(), reason: "no GPU".into() };
        assert_eq!((suite.passed, suite.failed, suite.skips), (1, 1, vec![skip]));
        assert_eq!(suite.failures, ["b.py"]);
        assert!(read("{}").is_err());
    }

    #[test]
    fn pytests_verdict_counts() {
        let failed = |passed, failed, ending| {
            with_ending(Suite { passed, failed, ..Suite::new(SUITE) }, ending).failed
        };
        assert_eq!(failed(1, 0, Ending::Succeeded), 0);
        assert_eq!(failed(1, 0, Ending::Failed), 1);
        assert_eq!(failed(1, 2, Ending::Failed), 2);
        assert_eq!(failed(0, 0, Ending::Failed), 0);
        assert_eq!(failed(1, 2, Ending::Silent), 3);
    }
}
