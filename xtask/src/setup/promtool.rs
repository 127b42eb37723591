//! Prometheus's `promtool`, which says whether metrics are as they should be, out of a package of Debian's that is not installed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::apt;
use crate::cache::Cache;
use crate::optional;
use crate::process;
use crate::repo::Repo;
use crate::say;

/// The package, and where it has the program. The version is whichever is current.
const PACKAGE: &str = "prometheus";
const PROGRAM: &str = "usr/bin/promtool";
/// Below the cache, where the test looks for it.
const KEPT: &str = "promtool";

/// Fetches it where it is not there yet. Where that cannot be, it says why; where it should be, that is an error.
pub(super) fn ensure(repo: &Repo) -> Result<()> {
    let made = Cache::open(KEPT).and_then(|cache| promtool(repo, &cache.folder));
    optional::or_without(made, apt::is_expected(repo), "the form of metrics").map(drop)
}

fn promtool(repo: &Repo, cache: &Path) -> Result<()> {
    let kept = cache.join(KEPT);
    let program = kept.join("promtool");
    if program.is_file() {
        say::line(&format!("{} is up to date", program.display()));
        return Ok(());
    }
    let work = cache.join(format!("{KEPT}-work"));
    // Nobody else is at it, so what is there was left by one that was interrupted.
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).with_context(|| format!("could not make {}", work.display()))?;
    fs::create_dir_all(&kept).with_context(|| format!("could not make {}", kept.display()))?;
    say::line(&format!("fetching promtool out of {PACKAGE}"));
    apt::download(repo, &work, PACKAGE).context("could not fetch promtool")?;
    let mut unpack = repo.command("dpkg-deb");
    unpack.arg("--extract").arg(apt::downloaded(&work)?).arg(work.join("unpacked"));
    process::capture(unpack)?;
    let from = work.join("unpacked").join(PROGRAM);
    fs::rename(from, &program).with_context(|| format!("{PACKAGE} has no {PROGRAM}"))?;
    let _ = fs::remove_dir_all(&work);
    Ok(())
}
