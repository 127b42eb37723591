//! Fuzz targets, each for a moment: that they build, that what was found once is still right, and what chance finds beside.

use std::time::Instant;

use anyhow::Result;

use super::suite::Suite;
use crate::fuzz::{self, Run};
use crate::repo::Repo;
use crate::say;

/// Long proofs are `cargo xtask prove fuzz`; here the same inputs come each time, as far as time goes.
const RUN: Run = Run { seconds: 30, seed: Some(1), resume: false, jobs: None };

pub(super) fn run(repo: &Repo) -> Result<Suite> {
    let start = Instant::now();
    let targets = fuzz::targets(repo)?;
    say::step("build the fuzz targets");
    let built = fuzz::build(repo)?;
    say::step(&format!("{} fuzz targets, {} s each", targets.len(), RUN.seconds));
    let mut suite = Suite::new("fuzz");
    built.run_all(&targets, RUN, |outcome| {
        match &outcome.crash {
            None => suite.passed += 1,
            Some(crash) => {
                println!("{}", outcome.line());
                suite.failed += 1;
                suite.failures.push(format!("fuzz::{}: {}", outcome.target, crash.shown()));
            }
        }
        Ok(())
    })?;
    suite.seconds = start.elapsed().as_secs_f64();
    Ok(suite)
}
