//! What the tests are told about the machine, and how a program with tests is run.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process;
use crate::repo::Repo;
use crate::say;

/// Longest time without a line. No test takes as long, and libtest and pytest print a line for each.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// The machine, as the tests see it.
pub(super) struct Place {
    /// Variables for every test.
    pub(super) variables: Vec<(&'static str, PathBuf)>,
    /// The interpreter that runs the Python tests.
    pub(super) python: PathBuf,
    /// Where the full output is kept.
    pub(super) logs: PathBuf,
}

/// How a program with tests ended.
#[derive(Clone, Copy)]
pub(super) enum Ending {
    Succeeded,
    Failed,
    /// It was killed, because it printed nothing for too long.
    Silent,
}

impl Place {
    /// Runs tests: all they print goes to a log, what `shows` says so to stdout as well.
    pub(super) fn run(
        &self,
        repo: &Repo,
        mut command: Command,
        log: &str,
        mut shows: impl FnMut(&str) -> bool,
    ) -> Result<Ending> {
        let log = self.logs.join(log);
        let mut file = File::create(&log).with_context(|| format!("could not create {}", log.display()))?;
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        let mut written = Ok(());
        let status = process::watched(command, PATIENCE, |line| {
            if shows(line) {
                println!("{line}");
            }
            if written.is_ok() {
                written = writeln!(file, "{line}");
            }
        })?;
        written.with_context(|| format!("could not write {}", log.display()))?;
        say::line(&format!("the full output is in {}", repo.shown(&log)));
        Ok(match status {
            Some(status) if status.success() => Ending::Succeeded,
            Some(_) => Ending::Failed,
            None => Ending::Silent,
        })
    }
}
