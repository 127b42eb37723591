//! The direction of dependencies between the crates of the workspace.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::metadata::{Kind, Metadata};
use crate::repo::Repo;
use crate::say;

const TABLE: &str = "ci/arrows.toml";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arrows {
    /// For each crate of the workspace, the ones of the workspace that it may depend on.
    arrows: BTreeMap<String, BTreeSet<String>>,
    /// Crates that any crate's tests may depend on besides.
    tests: BTreeSet<String>,
    /// Crates from elsewhere, and who alone may contain them.
    only: BTreeMap<String, BTreeSet<String>>,
    /// Crates from elsewhere, and who alone may name them in its manifest, tests apart.
    named: BTreeMap<String, BTreeSet<String>>,
}

/// Returns what is wrong, a line for each.
pub(super) fn check(repo: &Repo) -> Result<Vec<String>> {
    let text = fs::read_to_string(repo.path(TABLE)).with_context(|| format!("could not read {TABLE}"))?;
    let arrows: Arrows = toml::from_str(&text).context(TABLE)?;
    let metadata = Metadata::read(repo, &["--locked", "--all-features"])?;
    say::line(&format!("{} crates of the workspace", metadata.members().count()));
    Ok(arrows.problems(&metadata))
}

impl Arrows {
    fn problems(&self, metadata: &Metadata) -> Vec<String> {
        let mut problems = self.rows(metadata);
        problems.extend(self.edges(metadata));
        problems.extend(self.contained(metadata));
        problems.extend(self.named(metadata));
        problems
    }

    /// The table has a row for every crate and for no other.
    fn rows(&self, metadata: &Metadata) -> Vec<String> {
        let members: BTreeSet<&str> = metadata.members().map(|package| package.name.as_str()).collect();
        let rows: BTreeSet<&str> = self.arrows.keys().map(String::as_str).collect();
        let named = self.arrows.values().flatten().chain(&self.tests).chain(self.owners());
        let new = members.difference(&rows).map(|name| format!("{name} has no row in {TABLE}"));
        let known: BTreeSet<&str> = rows.iter().copied().chain(named.map(String::as_str)).collect();
        let gone =
            known.difference(&members).map(|name| format!("{TABLE} names {name}, which is no crate of ours"));
        new.chain(gone).collect()
    }

    /// Those to whom crates from elsewhere are kept.
    fn owners(&self) -> impl Iterator<Item = &String> {
        self.only.values().chain(self.named.values()).flatten()
    }

    /// Every dependency between our crates is in the table.
    fn edges(&self, metadata: &Metadata) -> Vec<String> {
        let name = |id: &str| {
            let ours = metadata.workspace_members.contains(id);
            metadata.package(id).filter(|_| ours).map(|package| package.name.clone())
        };
        let mut problems = BTreeSet::new();
        for dependency in metadata.dependencies() {
            let (Some(from), Some(to)) = (name(dependency.from), name(dependency.to)) else { continue };
            let drawn = self.arrows.get(&from).is_some_and(|row| row.contains(&to));
            let test = dependency.kind == Kind::Dev && (self.tests.contains(&to) || from == to);
            if !drawn && !test {
                let kind = if dependency.kind == Kind::Dev { "its tests depend" } else { "it depends" };
                problems.insert(format!("{from}: {kind} on {to}, an arrow that {TABLE} does not have"));
            }
        }
        problems.into_iter().collect()
    }

    /// No other crate of ours contains what belongs to one, not even through others.
    fn contained(&self, metadata: &Metadata) -> Vec<String> {
        let mut problems = Vec::new();
        for member in metadata.members() {
            let needed = metadata.needed(&[&member.id], false);
            for package in needed.iter().filter_map(|id| metadata.package(id)) {
                if self.only.get(&package.name).is_some_and(|owners| !owners.contains(&member.name)) {
                    problems.push(format!(
                        "{} contains {}, which {TABLE} keeps to others",
                        member.name, package.name
                    ));
                }
            }
        }
        problems
    }

    /// Whoever contains what belongs to one has it through that one.
    fn named(&self, metadata: &Metadata) -> Vec<String> {
        let mut problems = BTreeSet::new();
        for dependency in metadata.dependencies().filter(|dependency| dependency.kind == Kind::Normal) {
            let ours = metadata.workspace_members.contains(dependency.from);
            let packages = metadata.package(dependency.from).zip(metadata.package(dependency.to));
            let Some((from, to)) = packages.filter(|_| ours) else { continue };
            if self.named.get(&to.name).is_some_and(|owners| !owners.contains(&from.name)) {
                problems.insert(format!("{} names {}, which {TABLE} keeps to others", from.name, to.name));
            }
        }
        problems.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::tests::drawn;

    const TEXT: &str = r#"
        tests = ["kit"]
        [arrows]
        app = ["service"]
        service = ["words"]
        device = ["words", "drive"]
        drive = ["words"]
        words = []
        kit = ["words"]
        [only]
        driver = ["device", "drive"]
        [named]
        driver = ["drive"]"#;

    fn check(extra: &[&str], expected: &[&str]) {
        let arrows: Arrows = toml::from_str(TEXT).unwrap();
        let mut edges = vec![
            "app -> service",
            "service -> words",
            "device -> words",
            "device -> drive",
            "drive -> driver",
            "kit -> words",
        ];
        edges.extend(extra);
        let workspace = drawn(&["app", "service", "device", "drive", "words", "kit"], &edges);
        assert_eq!(arrows.problems(&workspace), expected, "{extra:?}");
    }

    #[test]
    fn arrows_of_the_table() {
        check(&[], &[]);
        check(&["service -> elsewhere", "service ~> kit"], &[]);
    }

    #[test]
    fn other_arrows() {
        let missing = |text: &str| format!("{text}, an arrow that ci/arrows.toml does not have");
        check(&["words -> app"], &[&missing("words: it depends on app")]);
        check(&["app -> words"], &[&missing("app: it depends on words")]);
        check(&["service -> kit"], &[&missing("service: it depends on kit")]);
        check(&["service ~> app"], &[&missing("service: its tests depend on app")]);
    }

    #[test]
    fn a_driver_is_kept_to_its_crate_through_others_too() {
        let contains = |name: &str| format!("{name} contains driver, which ci/arrows.toml keeps to others");
        check(&["service -> helper", "helper -> driver"], &[&contains("app"), &contains("service")]);
        check(&["service ~> driver"], &[]);
        check(&["device -> driver"], &["device names driver, which ci/arrows.toml keeps to others"]);
        check(&["device ~> driver"], &[]);
    }

    #[test]
    fn rows_for_every_crate_and_no_other() {
        let arrows: Arrows = toml::from_str(TEXT).unwrap();
        let workspace = drawn(&["app", "service", "device", "drive", "words", "new"], &[]);
        assert_eq!(
            arrows.problems(&workspace),
            ["new has no row in ci/arrows.toml", "ci/arrows.toml names kit, which is no crate of ours"]
        );
    }
}
