//! `graph.toml`: which models an ensemble is made of, and which tensors go where. Strict: what is wrong is said by names, before anything is
//! loaded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use outrigger_backend::{DataType, MAX_RANK};
use serde::Deserialize;

use super::order::in_order;
use super::{MAX_BYTES, MAX_NODES, MAX_TENSORS};
use crate::config::{check_model_name, suggestion};
use crate::models::manifest::{self, Extent};

/// What a `graph.toml` says.
#[derive(Debug)]
pub(in crate::models) struct Graph {
    /// Where it is.
    pub(in crate::models) path: PathBuf,
    /// What callers send.
    pub(super) inputs: Vec<Declared>,
    /// What they get.
    pub(super) outputs: Vec<Given>,
    /// The runs of models, each after those that it takes tensors from.
    pub(super) nodes: Vec<Node>,
}

impl Graph {
    /// The models that its nodes name.
    pub(in crate::models) fn models(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| node.model.as_str())
    }
}

/// A tensor that callers see.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub(super) name: String,
    pub(super) data_type: Option<DataType>,
    /// Extents, −1 where free, each with its name.
    pub(super) shape: Option<Vec<(i64, String)>>,
}

/// One that they get.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) declared: Declared,
    pub(super) from: Source,
}

/// A run of a model.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) model: String,
    /// The version, by its own name or by what it is called; nothing for the stable one.
    pub(super) version: Option<String>,
    /// The model's inputs, each with what goes there.
    pub(super) inputs: Vec<(String, Source)>,
}

/// Where a tensor comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// From callers: the number of an input.
    Input(usize),
    /// From a run: the number of a node, and the name of an output of its model.
    Node(usize, String),
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    inputs: Vec<RawTensor>,
    #[serde(default)]
    outputs: Vec<RawTensor>,
    #[serde(default)]
    nodes: Vec<RawNode>,
}

#[derive(Deserialize)]
struct RawTensor {
    name: String,
    datatype: Option<String>,
    shape: Option<Vec<Extent>>,
    from: Option<String>,
}

#[derive(Deserialize)]
struct RawNode {
    name: Option<String>,
    model: String,
    version: Option<toml::Value>,
    #[serde(default)]
    inputs: BTreeMap<String, String>,
}

const KEYS: &[&str] = &["inputs", "outputs", "nodes"];
const INPUT_KEYS: &[&str] = &["name", "datatype", "shape"];
const OUTPUT_KEYS: &[&str] = &["name", "from", "datatype", "shape"];
const NODE_KEYS: &[&str] = &["name", "model", "version", "inputs"];

/// Reads a graph.
///
/// # Errors
/// What is wrong with it, naming key, node or tensor.
pub(in crate::models) fn read(path: &Path) -> Result<Graph, String> {
    let bytes = manifest::read_file(path, MAX_BYTES)?;
    let text = String::from_utf8(bytes).map_err(|_| "is no UTF-8".to_owned())?;
    parse(path, &text)
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Graph, String> {
    let table: toml::Table = text.parse().map_err(|error| manifest::said(text, &error))?;
    manifest::check_keys(&table, "", KEYS)?;
    for (list, keys) in [("inputs", INPUT_KEYS), ("outputs", OUTPUT_KEYS), ("nodes", NODE_KEYS)] {
        let items = table.get(list).and_then(toml::Value::as_array).into_iter().flatten();
        items
            .filter_map(toml::Value::as_table)
            .try_for_each(|item| manifest::check_keys(item, &format!("{list}."), keys))?;
    }
    let raw: Raw = toml::from_str(text).map_err(|error| manifest::said(text, &error))?;
    build(path, raw)
}

fn build(path: &Path, raw: Raw) -> Result<Graph, String> {
    count(&raw)?;
    let inputs = raw.inputs.iter().map(|input| declared("input", input)).collect::<Result<Vec<_>, _>>()?;
    let names = raw.nodes.iter().map(node_name).collect::<Result<Vec<_>, _>>()?;
    once("input", inputs.iter().map(|input| input.name.as_str()))?;
    once("node", names.iter().map(String::as_str))?;
    once("output", raw.outputs.iter().map(|output| output.name.as_str()))?;
    let all = Names { inputs: &inputs, nodes: &names };
    all.are_apart()?;
    let nodes = raw.nodes.into_iter().zip(&names).map(|(raw, name)| node(raw, name, &all));
    let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
    let outputs = raw.outputs.iter().map(|raw| {
        let declared = declared("output", raw)?;
        let from = raw.from.as_deref().ok_or_else(|| {
            format!("output `{}` does not say where it comes from: `from = \"NODE.OUTPUT\"`", raw.name)
        })?;
        let from = all.source(from).map_err(|why| format!("output `{}`: {why}", raw.name))?;
        Ok(Given { declared, from })
    });
    let outputs = outputs.collect::<Result<Vec<_>, String>>()?;
    in_order(Graph { path: path.to_owned(), inputs, outputs, nodes })
}

fn count(raw: &Raw) -> Result<(), String> {
    for (list, is_empty) in [("nodes", raw.nodes.is_empty()), ("outputs", raw.outputs.is_empty())] {
        if is_empty {
            return Err(format!("there is no `[[{list}]]`"));
        }
    }
    if raw.nodes.len() > MAX_NODES {
        return Err(format!("`nodes` has {} entries, {MAX_NODES} are the most", raw.nodes.len()));
    }
    let taken = raw.nodes.iter().map(|node| node.inputs.len()).fold(0, usize::saturating_add);
    let tensors = raw.inputs.len().saturating_add(raw.outputs.len()).saturating_add(taken);
    if tensors > MAX_TENSORS {
        return Err(format!(
            "inputs, outputs and what nodes take are {tensors} tensors, {MAX_TENSORS} are the most"
        ));
    }
    Ok(())
}

fn once<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if name.is_empty() {
            return Err(format!("an {what} has no name"));
        }
        if !seen.insert(name) {
            return Err(format!("there are two {what}s by the name of `{name}`"));
        }
    }
    Ok(())
}

fn declared(what: &str, raw: &RawTensor) -> Result<Declared, String> {
    let name = raw.name.clone();
    let data_type = raw.datatype.as_deref().map(|text| {
        DataType::from_name(text).ok_or_else(|| {
            let names = DataType::ALL.map(DataType::name);
            format!("{what} `{name}` has the datatype `{text}`{}", suggestion(text, names.into_iter()))
        })
    });
    let data_type = data_type.transpose()?;
    let shape = raw.shape.as_ref().map(|shape| shape.iter().map(Extent::named).collect::<Vec<_>>());
    match shape.as_ref().map(Vec::len).filter(|rank| *rank > MAX_RANK) {
        Some(rank) => Err(format!("{what} `{name}` has {rank} dimensions, {MAX_RANK} are the most")),
        None => Ok(Declared { name, data_type, shape }),
    }
}

/// What a node is called: its model's name, where nothing else is said.
fn node_name(raw: &RawNode) -> Result<String, String> {
    let rules = |kind: &str, name: &str| {
        let shown: String = name.chars().take(100).collect();
        format!(
            "{kind} `{shown}` is not called by a letter or digit, then letters, digits, `-`, `.` or `_`, 255 at most"
        )
    };
    check_model_name(&raw.model).map_err(|_| rules("model", &raw.model))?;
    let name = raw.name.clone().unwrap_or_else(|| raw.model.clone());
    check_model_name(&name).map_err(|_| rules("node", &name))?;
    match (name.contains('.'), &raw.name) {
        (false, _) => Ok(name),
        (true, Some(_)) => Err(format!("node `{name}` has a `.` in its name, which stands before an output")),
        (true, None) => Err(format!("the node of model `{name}` needs a `name` without a `.`")),
    }
}

fn node(raw: RawNode, name: &str, all: &Names<'_>) -> Result<Node, String> {
    let version = match raw.version {
        None => None,
        Some(toml::Value::Integer(version)) => Some(version.to_string()),
        Some(toml::Value::String(version)) if !version.is_empty() => Some(version),
        Some(_) => return Err(format!("node `{name}`: `version` is no text")),
    };
    let inputs = raw.inputs.into_iter().map(|(input, from)| {
        let source = all.source(&from).map_err(|why| format!("node `{name}`: input `{input}`: {why}"))?;
        Ok((input, source))
    });
    let inputs = inputs.collect::<Result<_, String>>()?;
    Ok(Node { name: name.to_owned(), model: raw.model, version, inputs })
}

/// What tensors can be called after.
struct Names<'a> {
    inputs: &'a [Declared],
    nodes: &'a [String],
}

impl Names<'_> {
    /// No input may look like an output of a node.
    fn are_apart(&self) -> Result<(), String> {
        let node = |name: &str| self.nodes.iter().find(|node| Some(node.as_str()) == before_dot(name));
        match self.inputs.iter().find_map(|input| Some((&input.name, node(&input.name)?))) {
            Some((input, node)) => Err(format!("input `{input}` could be an output of node `{node}`, too")),
            None => Ok(()),
        }
    }

    fn source(&self, text: &str) -> Result<Source, String> {
        if let Some(at) = self.inputs.iter().position(|input| input.name == text) {
            return Ok(Source::Input(at));
        }
        let shown: String = text.chars().take(200).collect();
        let inputs = self.inputs.iter().map(|input| input.name.as_str());
        let nodes = self.nodes.iter().map(String::as_str);
        let Some((node, output)) = text.split_once('.') else {
            if self.nodes.iter().any(|node| node == text) {
                return Err(format!("`{shown}` is a node; say which of its outputs: `{shown}.OUTPUT`"));
            }
            return Err(format!("there is no input `{shown}`{}", suggestion(&shown, inputs)));
        };
        match self.nodes.iter().position(|known| known == node) {
            Some(_) if output.is_empty() => Err(format!("`{shown}` names no output")),
            Some(at) => Ok(Source::Node(at, output.to_owned())),
            None => {
                let node: String = node.chars().take(200).collect();
                Err(format!(
                    "`{shown}`: there is no input of that name, and no node `{node}`{}",
                    suggestion(&node, nodes)
                ))
            }
        }
    }
}

fn before_dot(name: &str) -> Option<&str> {
    name.split_once('.').map(|(node, _)| node)
}
