//! What is to be loaded: what the operator says of each model goes over what its manifest says, and that over the defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use outrigger_backend::LoadOptions;
use outrigger_store::ManifestFile;

use super::discover::{self, Located};
use super::files::Files;
use super::graph::{self, Graph};
use super::manifest::{self, Manifest, Said};
use super::{DEFAULT_VERSION, ModelsError, format};
use crate::config::{
    BackendsConfig, BatchDelay, Config, DeviceWish, LoadTime, ModelConfig, PlacementConfig, StepsWish,
};
use crate::fetching::Fetched;

/// A model that is to be loaded.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) version: String,
    /// The file.
    pub(super) path: PathBuf,
    /// The file's format, where that is known.
    pub(super) format: Option<String>,
    pub(super) intra_threads: Option<usize>,
    pub(super) max_batch: usize,
    pub(super) max_delay: BatchDelay,
    pub(super) devices: Vec<DeviceWish>,
    pub(super) fallback: bool,
    pub(super) instances: usize,
    /// When it is loaded.
    pub(super) load: LoadTime,
    /// Where its steps run.
    pub(super) steps: StepsWish,
    /// Of the backend's, for this model.
    pub(super) settings: Vec<(String, String)>,
    pub(super) manifest: Option<Manifest>,
    /// Whether its answers are kept.
    pub(super) cache: Keeping,
    /// What it is made of, if it is an ensemble: then it has no file.
    pub(super) graph: Option<Arc<Graph>>,
}

/// Whether answers of a model are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeping {
    /// It says so itself.
    Said(bool),
    /// As of all that say nothing.
    Default(bool),
}

impl Keeping {
    /// Whether they are, of a model that is no ensemble.
    pub(super) fn keeps(self) -> bool {
        let (Self::Said(keeps) | Self::Default(keeps)) = self;
        keeps
    }
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            name: String::new(),
            version: DEFAULT_VERSION.into(),
            path: PathBuf::new(),
            format: None,
            intra_threads: None,
            max_batch: 1,
            max_delay: BatchDelay::AtMost(Duration::ZERO),
            devices: Vec::new(),
            fallback: true,
            instances: 1,
            load: LoadTime::Start,
            steps: StepsWish::Auto,
            settings: Vec::new(),
            manifest: None,
            cache: Keeping::Default(false),
            graph: None,
        }
    }
}

/// Every model that the configuration names, or, without a script or an upstream, every model that the model directory holds; by name. Files that are
/// fetched later count as if they were here.
///
/// # Errors
/// [`ModelsError`], for the first one of which that cannot be said.
pub(super) fn all(config: &Config, fetched: Option<&Fetched>) -> Result<Vec<Wanted>, ModelsError> {
    let mut all = Vec::new();
    for (name, model) in &config.models {
        let later = fetched.and_then(|fetched| Some((fetched, fetched.served(name)?.later.as_ref()?)));
        let files = later.map_or(Files::Disk, |(fetched, manifest)| {
            let place = |file: &ManifestFile| fetched.storage().place(manifest.id(), &file.path);
            Files::Awaited(manifest.files().iter().map(place).collect())
        });
        all.push(at(config, name, model.clone(), None, &files)?);
    }
    if !config.leaves_models_to_others()
        && all.is_empty()
        && let Some(directory) = &config.model_dir
    {
        for (name, located) in discover::models(directory, config.limits.models)? {
            all.push(one(name, ModelConfig::default(), located, config, &Files::Disk)?);
        }
    }
    let is_here = |name: &str| {
        let served = fetched.and_then(|fetched| fetched.served(name));
        served.is_none_or(|served| served.later.is_none())
    };
    let ensembles = all.iter().filter(|wanted| wanted.graph.is_some()).map(|wanted| wanted.name.clone());
    let said = ensembles.filter_map(|name| Some((config.models.get(&name)?.load?, name)));
    for (load, name) in said.collect::<Vec<_>>() {
        raise(&mut all, &name, load, &is_here);
    }
    Ok(all)
}

/// When an ensemble is said to be loaded, what it is made of is, where that is earlier, and the files are here. That it is pinned counts for what it
/// is made of as long as it is made of it, and is seen to later.
fn raise(all: &mut [Wanted], ensemble: &str, load: LoadTime, is_here: &dyn Fn(&str) -> bool) {
    let places: BTreeMap<String, usize> =
        all.iter().enumerate().map(|(at, wanted)| (wanted.name.clone(), at)).collect();
    let (mut open, mut seen) = (vec![ensemble.to_owned()], Vec::new());
    while let Some(name) = open.pop() {
        let Some(wanted) = places.get(&name).and_then(|at| all.get_mut(*at)) else { continue };
        if load != LoadTime::Use && wanted.load == LoadTime::Use && is_here(&name) {
            wanted.load = LoadTime::Start;
        }
        // One that reaches itself is told later.
        if let Some(graph) = wanted.graph.clone()
            && !seen.contains(&name)
        {
            open.extend(graph.models().map(str::to_owned));
            seen.push(name);
        }
    }
}

/// The model that a configuration says where to find; in a folder of this version's, if that is known beforehand.
///
/// # Errors
/// [`ModelsError`], if it cannot be said what it is.
pub(super) fn at(
    config: &Config,
    name: &str,
    said: ModelConfig,
    version: Option<String>,
    files: &Files,
) -> Result<Wanted, ModelsError> {
    let mut located = discover::locate(&said.path, files)
        .map_err(|source| ModelsError::Directory { path: said.path.clone(), source })?;
    if version.is_some() && located.manifest.is_none() {
        // One that all versions share.
        located.manifest = said.path.parent().and_then(|all| discover::manifest(all, files));
    }
    located.version = located.version.or(version);
    one(name.to_owned(), said, located, config, files)
}

fn one(
    name: String,
    mut said: ModelConfig,
    located: Located,
    config: &Config,
    files: &Files,
) -> Result<Wanted, ModelsError> {
    said.load = said.load.or(Some(config.residency.load));
    let manifest = located.manifest.map(|path| read(&name, &path, &config.backends, files)).transpose()?;
    let keeping = said.cache.or(manifest.as_ref().and_then(|manifest| manifest.cache));
    let cache = keeping.map_or(Keeping::Default(config.cache.models), Keeping::Said);
    if let Some(path) = located.graph {
        let ensemble = ensemble(name, said, path, located.file, (manifest, located.version))?;
        return Ok(Wanted { cache, ..ensemble });
    }
    let file = match (&manifest, files.is_file(&said.path)) {
        // The operator names the file itself.
        (_, true) => Some(said.path.clone()),
        (Some(manifest), false) => manifest.file.clone().or(located.file),
        (None, false) => located.file,
    };
    let path = file.ok_or_else(|| ModelsError::NoFile { name: name.clone(), path: located.place })?;
    Ok(Wanted { cache, ..resolve(name, path, said, manifest, located.version, &config.placement) })
}

/// An ensemble, which has nothing of its own but a graph.
fn ensemble(
    name: String,
    said: ModelConfig,
    path: PathBuf,
    file: Option<PathBuf>,
    (mut manifest, folder): (Option<Manifest>, Option<String>),
) -> Result<Wanted, ModelsError> {
    let wrong = |problem| ModelsError::Graph { path: path.clone(), problem };
    if let Some(file) = file {
        return Err(wrong(format!("lies beside the model {}: it is one or the other", file.display())));
    }
    let own = Said {
        devices: said.devices,
        fallback: said.fallback,
        instances: said.instances,
        max_batch: said.max_batch,
        max_delay: said.max_delay,
        intra_threads: said.intra_threads,
        steps: said.steps,
        settings: said.settings,
    };
    if let Some(key) = own.first() {
        return Err(wrong(format!(
            "`models.{name}.{key}` is said of an ensemble, and is its models' to have"
        )));
    }
    if let Some(manifest) = &manifest
        && let Some(key) = manifest.of_a_file()
    {
        let problem = format!("`{key}` is said of an ensemble, and is its models' to have");
        return Err(ModelsError::Manifest { path: manifest.path.clone(), problem });
    }
    let graph = graph::read(&path).map_err(wrong)?;
    let defaults = Wanted::default();
    let own = manifest.as_mut().and_then(|manifest| manifest.version.take());
    let version = said.version.or(own).or(folder).unwrap_or(defaults.version.clone());
    let load = said.load.unwrap_or(defaults.load);
    Ok(Wanted { name, version, path, load, manifest, graph: Some(Arc::new(graph)), ..defaults })
}

fn read(name: &str, path: &Path, backends: &BackendsConfig, files: &Files) -> Result<Manifest, ModelsError> {
    let failed = |problem| ModelsError::Manifest { path: path.to_owned(), problem };
    let manifest = manifest::read(path, &backends.tables, files).map_err(failed)?;
    match &manifest.name {
        Some(own) if own != name => {
            Err(failed(format!("`name` is `{own}`, but the model is served as `{name}`")))
        }
        _ => Ok(manifest),
    }
}

fn resolve(
    name: String,
    path: PathBuf,
    said: ModelConfig,
    mut manifest: Option<Manifest>,
    folder: Option<String>,
    placement: &PlacementConfig,
) -> Wanted {
    let own = manifest.as_mut().map(|manifest| std::mem::take(&mut manifest.settings)).unwrap_or_default();
    let defaults = Wanted::default();
    let format = format::of(&path).map(str::to_owned);
    Wanted {
        name,
        // What it was registered as goes before what its author calls it.
        version: said
            .version
            .or_else(|| manifest.as_mut().and_then(|manifest| manifest.version.take()))
            .or(folder)
            .unwrap_or(defaults.version),
        format: manifest.as_mut().and_then(|manifest| manifest.format.take()).or(format),
        path,
        intra_threads: said.intra_threads.or(own.intra_threads),
        max_batch: said.max_batch.or(own.max_batch).unwrap_or(defaults.max_batch),
        max_delay: said.max_delay.or(own.max_delay).unwrap_or(defaults.max_delay),
        devices: said.devices.or(own.devices).unwrap_or_else(|| placement.devices.clone()),
        fallback: said.fallback.or(own.fallback).unwrap_or(placement.fallback),
        instances: said.instances.or(own.instances).unwrap_or(defaults.instances),
        load: said.load.unwrap_or(defaults.load),
        steps: said.steps.or(own.steps).unwrap_or(defaults.steps),
        settings: over(said.settings, own.settings),
        manifest,
        ..defaults
    }
}

/// Settings key by key: those of the operator's, and what they do not name of the others.
fn over(said: Vec<(String, String)>, mut own: Vec<(String, String)>) -> Vec<(String, String)> {
    own.retain(|(key, _)| said.iter().all(|(known, _)| known != key));
    own.extend(said);
    own
}

impl Wanted {
    /// The entries of its list that count: where it may not fall back, the others are not touched.
    pub(super) fn wishes(&self) -> impl Iterator<Item = &DeviceWish> {
        self.devices.iter().take(if self.fallback { usize::MAX } else { 1 })
    }

    /// What a backend is told.
    pub(super) fn options(&self) -> LoadOptions {
        LoadOptions {
            format: self.format.clone(),
            intra_threads: self.intra_threads,
            settings: self.settings.clone(),
            signature: self.manifest.as_ref().map(|manifest| manifest.signature.clone()).unwrap_or_default(),
            ..LoadOptions::of(&self.path)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_go_over_each_other_key_by_key() {
        let pairs = |texts: &[(&str, &str)]| {
            texts.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
        };
        let said =
            ModelConfig { settings: pairs(&[("b", "operator"), ("c", "3")]), ..ModelConfig::default() };
        let own = pairs(&[("a", "1"), ("b", "manifest")]);
        let mut manifest = Some(Manifest::default());
        manifest.iter_mut().for_each(|manifest| manifest.settings.settings.clone_from(&own));
        let placement = PlacementConfig::default();
        let wanted = resolve("m".into(), "m.onnx".into(), said, manifest, None, &placement);
        assert_eq!(wanted.options().settings, pairs(&[("a", "1"), ("b", "operator"), ("c", "3")]));
    }
}
