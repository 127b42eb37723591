//! What `cargo metadata` says about the workspace and everything it depends on.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process;
use crate::repo::Repo;

/// The workspace's packages and the graph between them.
#[derive(Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) workspace_members: BTreeSet<String>,
    resolve: Resolve,
}

/// A package.
#[derive(Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    pub(crate) source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Deserialize)]
struct EdgeKind {
    kind: Option<String>,
}

/// Why a package depends on another: build dependencies end in what is shipped just as normal ones do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Normal,
    Dev,
}

/// A dependency between two packages, by their ids.
pub(crate) struct Dependency<'a> {
    pub(crate) from: &'a str,
    pub(crate) to: &'a str,
    pub(crate) kind: Kind,
}

impl Metadata {
    /// Asks cargo, with further arguments.
    pub(crate) fn read(repo: &Repo, arguments: &[&str]) -> Result<Self> {
        let mut command = repo.cargo(["metadata", "--format-version", "1"]);
        command.args(arguments);
        Self::parse(&process::capture(command)?)
    }

    fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).context("`cargo metadata` printed something unexpected")
    }

    pub(crate) fn package(&self, id: &str) -> Option<&Package> {
        self.packages.iter().find(|package| package.id == id)
    }

    /// The packages of the workspace.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }

    /// All dependencies.
    pub(crate) fn dependencies(&self) -> impl Iterator<Item = Dependency<'_>> {
        self.resolve.nodes.iter().flat_map(|node| {
            node.deps.iter().flat_map(move |edge| {
                edge.dep_kinds.iter().map(move |kind| {
                    let kind = if kind.kind.as_deref() == Some("dev") { Kind::Dev } else { Kind::Normal };
                    Dependency { from: &node.id, to: &edge.pkg, kind }
                })
            })
        })
    }

    /// Ids of what is needed to build some packages: through normal dependencies, and the dev ones of the packages
    /// themselves where tests are built.
    pub(crate) fn needed<'a>(&'a self, roots: &[&'a str], tests: bool) -> BTreeSet<&'a str> {
        let mut edges: BTreeMap<&str, Vec<(&str, Kind)>> = BTreeMap::new();
        for Dependency { from, to, kind } in self.dependencies() {
            edges.entry(from).or_default().push((to, kind));
        }
        let mut needed: BTreeSet<&str> = roots.iter().copied().collect();
        let mut open: Vec<&str> = roots.to_vec();
        while let Some(id) = open.pop() {
            for &(to, kind) in edges.get(id).into_iter().flatten() {
                if (kind == Kind::Normal || tests && roots.contains(&id)) && needed.insert(to) {
                    open.push(to);
                }
            }
        }
        needed
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A workspace drawn as lines `from -> to` and `from ~> to` for dev dependencies; `members` are ours.
    pub(crate) fn drawn(members: &[&str], edges: &[&str]) -> Metadata {
        let mut nodes: BTreeMap<String, Vec<Edge>> = BTreeMap::new();
        for edge in edges {
            let (from, arrow, to) = match edge.split_whitespace().collect::<Vec<_>>()[..] {
                [from, arrow, to] => (from, arrow, to),
                _ => panic!("{edge}"),
            };
            let kind = EdgeKind { kind: (arrow == "~>").then(|| "dev".to_owned()) };
            nodes.entry(to.into()).or_default();
            nodes.entry(from.into()).or_default().push(Edge { pkg: to.into(), dep_kinds: vec![kind] });
        }
        for member in members {
            nodes.entry(member.to_string()).or_default();
        }
        let package = |name: &String| Package {
            id: name.clone(),
            name: name.clone(),
            version: "1.0.0".into(),
            license: Some("MIT".into()),
            source: None,
        };
        Metadata {
            packages: nodes.keys().map(package).collect(),
            workspace_members: members.iter().map(|name| name.to_string()).collect(),
            resolve: Resolve { nodes: nodes.into_iter().map(|(id, deps)| Node { id, deps }).collect() },
        }
    }

    #[test]
    fn tests_need_dev_dependencies_of_the_roots_only() {
        let workspace = drawn(&["a", "b"], &["a -> b", "a ~> kit", "b ~> other", "b -> c", "kit -> d"]);
        assert_eq!(workspace.needed(&["a"], false), BTreeSet::from(["a", "b", "c"]));
        assert_eq!(workspace.needed(&["a"], true), BTreeSet::from(["a", "b", "c", "kit", "d"]));
    }

    #[test]
    fn cargos_own_words_are_understood() {
        let text = r#"{
            "packages": [{"id": "path+a", "name": "a", "version": "0.1.0", "license": "MIT", "source": null, "targets": []}],
            "workspace_members": ["path+a"],
            "resolve": {"nodes": [{"id": "path+a", "dependencies": [],
                "deps": [{"name": "b", "pkg": "b", "dep_kinds": [{"kind": null, "target": null}, {"kind": "dev", "target": null}]}]}],
                "root": null},
            "version": 1}"#;
        let metadata = Metadata::parse(text).unwrap();
        let kinds: Vec<Kind> = metadata.dependencies().map(|dependency| dependency.kind).collect();
        assert_eq!(kinds, [Kind::Normal, Kind::Dev]);
        assert_eq!(metadata.members().map(|package| package.name.as_str()).collect::<Vec<_>>(), ["a"]);
    }
}
