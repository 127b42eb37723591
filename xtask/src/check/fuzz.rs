//! The workspace of the fuzz targets: complete, and of the same crates as the product.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::fuzz::{MANIFEST, targets};
use crate::metadata::{Metadata, Package};
use crate::repo::Repo;
use crate::say;

/// What mends the lock file.
const CURE: &str =
    "`cp Cargo.lock fuzz/Cargo.lock`, then `cargo update --workspace --manifest-path fuzz/Cargo.toml`";

/// Returns what is wrong, a line for each.
pub(super) fn check(repo: &Repo) -> Result<Vec<String>> {
    say::line(&format!("{} fuzz targets", targets(repo)?.len()));
    let Ok(theirs) = Metadata::read(repo, &["--locked", "--manifest-path", MANIFEST]) else {
        return Ok(vec![format!("fuzz/Cargo.lock is out of date: {CURE}")]);
    };
    let ours = Metadata::read(repo, &["--locked", "--all-features"])?;
    Ok(others(&ours.packages, &theirs.packages))
}

/// Crates of which the targets have another release than the product: then it is not the product that is fuzzed.
fn others(ours: &[Package], theirs: &[Package]) -> Vec<String> {
    let mut known: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in ours {
        known.entry(&package.name).or_default().insert(&package.version);
    }
    let other = |package: &&Package| {
        known.get(package.name.as_str()).is_some_and(|releases| !releases.contains(package.version.as_str()))
    };
    let shown = |package: &Package| {
        format!("fuzz/Cargo.lock has {} {}, Cargo.lock another: {CURE}", package.name, package.version)
    };
    theirs.iter().filter(other).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_those_of_the_product() {
        let package = |name: &str, version: &str| Package {
            id: format!("{name} {version}"),
            name: name.into(),
            version: version.into(),
            license: None,
            source: None,
        };
        let ours = [package("a", "1.0.0"), package("b", "1.0.0"), package("b", "2.0.0")];
        assert_eq!(
            others(&ours, &[package("a", "1.0.0"), package("b", "2.0.0"), package("c", "1.0.0")]),
            [""; 0]
        );
        let found = others(&ours, &[package("a", "1.0.1")]);
        assert!(
            matches!(&found[..], [line] if line.starts_with("fuzz/Cargo.lock has a 1.0.1, ")),
            "{found:?}"
        );
    }
}
