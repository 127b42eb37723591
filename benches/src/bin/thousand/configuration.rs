//! What the replicas are told, all of it.

use std::path::Path;

use crate::options::Load;

/// The registry that [`Stored`](crate::stored::Stored) fills.
pub(crate) const REGISTRY: &str = "az://models/registry";

/// All models of the registry; `folder` holds what outlives a start.
pub(crate) fn registered(folder: &Path, models: usize, load: Load, memory: Option<u64>) -> String {
    let folder = folder.display();
    let load = match load {
        Load::Default => String::new(),
        load => format!("[residency]\nload = '{}'\n", load.name()),
    };
    let memory = memory.map(|bytes| format!("[backends.cpu]\nmemory = '{bytes}B'\n")).unwrap_or_default();
    format!(
        "[store]\nregistry = '{REGISTRY}'\nmodels = ['*']\ncache = '{folder}/cache'\nroot = '{folder}/root'\n\
         [limits]\nmodels = {models}\n{load}{memory}"
    )
}

/// Files of the replica's own folder, by the names of the models.
pub(crate) fn files(models: &[(&str, &str)]) -> String {
    models.iter().map(|(name, path)| format!("[models.{name}]\npath = '{path}'\n")).collect()
}
