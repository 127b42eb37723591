//! The licence and the source of every crate that a build may contain.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::spdx;
use crate::fuzz;
use crate::metadata::{Metadata, Package};
use crate::repo::Repo;
use crate::say;

const POLICY: &str = "ci/licences.toml";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    sources: Vec<String>,
    licence: Vec<Licence>,
    #[serde(default)]
    exception: Vec<Exception>,
}

/// A licence that any crate may have.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Licence {
    id: String,
    #[expect(dead_code, reason = "written for people; that it is there is checked by reading the file")]
    reason: String,
}

/// A licence that one crate may have: for a crate without an expression, too.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    licence: String,
    #[expect(dead_code, reason = "written for people; that it is there is checked by reading the file")]
    reason: String,
}

/// Returns what is wrong, a line for each.
pub(super) fn check(repo: &Repo) -> Result<Vec<String>> {
    let text = fs::read_to_string(repo.path(POLICY)).with_context(|| format!("could not read {POLICY}"))?;
    let policy: Policy = toml::from_str(&text).context(POLICY)?;
    // --locked: what is checked is what Cargo.lock says, and it is an error if that is out of date.
    let mut packages = Metadata::read(repo, &["--locked", "--all-features"])?.packages;
    let known: BTreeSet<String> = packages.iter().map(|package| package.id.clone()).collect();
    let fuzz = Metadata::read(repo, &["--locked", "--manifest-path", fuzz::MANIFEST])?.packages;
    packages.extend(fuzz.into_iter().filter(|package| !known.contains(&package.id)));
    let mut used = BTreeSet::new();
    let problems = packages.iter().flat_map(|package| policy.problems(package, &mut used)).collect();
    say::line(&format!("{} crates", packages.len()));
    for licence in policy.licence.iter().filter(|licence| !used.contains(licence.id.as_str())) {
        say::line(&format!("note: no crate names {} any longer, {POLICY} can lose it", licence.id));
    }
    Ok(problems)
}

impl Policy {
    /// What is wrong with a crate; licences that it names are added to `used`.
    fn problems<'a>(&'a self, package: &Package, used: &mut BTreeSet<&'a str>) -> Vec<String> {
        let name = format!("{} {}", package.name, package.version);
        let mut problems = Vec::new();
        if let Some(source) = package.source.as_ref().filter(|source| !self.sources.contains(source)) {
            problems.push(format!("{name}: its source `{source}` is not in {POLICY}"));
        }
        let exception = self.exception.iter().find(|exception| exception.name == package.name);
        let mut allowed = |id: &str| {
            let listed = self.licence.iter().find(|licence| licence.id == id);
            used.extend(listed.map(|licence| licence.id.as_str()));
            listed.is_some() || exception.is_some_and(|exception| exception.licence == id)
        };
        let expression = package.license.as_deref().or(exception.map(|exception| exception.licence.as_str()));
        match expression.map(|expression| (expression, spdx::satisfied(expression, &mut allowed))) {
            None => problems.push(format!("{name}: it names no licence, and no exception in {POLICY} does")),
            Some((_, Err(error))) => problems.push(format!("{name}: {error}")),
            Some((expression, Ok(false))) => {
                problems.push(format!("{name}: `{expression}` is not met by {POLICY}"))
            }
            Some((_, Ok(true))) => {}
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        sources = ["registry+one"]
        licence = [{ id = "MIT", reason = "-" }, { id = "Zlib", reason = "-" }]
        exception = [
            { crate = "odd", licence = "LicenseRef-odd", reason = "-" },
            { crate = "weak", licence = "MPL-2.0", reason = "-" },
        ]"#;

    fn check(name: &str, license: Option<&str>, source: Option<&str>, expected: &[&str]) {
        let package = Package {
            id: name.into(),
            name: name.into(),
            version: "1.0.0".into(),
            license: license.map(str::to_owned),
            source: source.map(str::to_owned),
        };
        let policy: Policy = toml::from_str(TEXT).unwrap();
        assert_eq!(policy.problems(&package, &mut BTreeSet::new()), expected);
    }

    #[test]
    fn licences_and_exceptions() {
        check("a", Some("MIT OR GPL-3.0"), None, &[]);
        check("a", Some("GPL-3.0"), None, &["a 1.0.0: `GPL-3.0` is not met by ci/licences.toml"]);
        check("a", None, None, &["a 1.0.0: it names no licence, and no exception in ci/licences.toml does"]);
        check("a", Some("MIT OR"), None, &["a 1.0.0: `MIT OR` lacks the name of a licence"]);
        check("odd", None, None, &[]);
        check("weak", Some("MPL-2.0 AND MIT"), None, &[]);
        check("strong", Some("MPL-2.0"), None, &["strong 1.0.0: `MPL-2.0` is not met by ci/licences.toml"]);
    }

    #[test]
    fn sources() {
        check("a", Some("MIT"), Some("registry+one"), &[]);
        let expected = "a 1.0.0: its source `git+https://x` is not in ci/licences.toml";
        check("a", Some("MIT"), Some("git+https://x"), &[expected]);
    }

    #[test]
    fn licences_in_use_are_noted() {
        let policy: Policy = toml::from_str(TEXT).unwrap();
        let mut used = BTreeSet::new();
        let package = &crate::metadata::tests::drawn(&["a"], &[]).packages[0];
        policy.problems(package, &mut used);
        assert_eq!(used, BTreeSet::from(["MIT"]));
    }
}
