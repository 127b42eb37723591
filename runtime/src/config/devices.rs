//! `[backends.NAME]`, and lists of devices: which backends there are, how each is opened, and where models may go.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::hosts::{self, HostConfig};
use super::key::{
    BACKEND_LIBRARY, BACKEND_MEMORY, BACKEND_PROCESS, BACKEND_SETTINGS, BACKEND_THREADS,
    BACKENDS_CPU_THREADS, KEYS, Key, MODEL_DEVICES, MODEL_SETTINGS, PLACEMENT_DEVICES,
};
use super::value::Value;
use super::{Mistake, Origin, Section, Settings, suggestion};

/// The backends that need no table to be named.
const BACKENDS: [&str; 6] = ["cpu", "cpu_torch", "cuda", "cuda_torch", "gpu", "fpga"];
/// The most tables.
const MAX_BACKENDS: usize = 16;
/// The most entries of a list of devices.
const MAX_DEVICES: usize = 16;
/// The most settings of a backend, and of a model.
const MAX_SETTINGS: usize = 64;

/// `[backends]`.
#[derive(Clone, Debug)]
pub struct BackendsConfig {
    /// Directory of libraries.
    pub path: Option<PathBuf>,
    /// ONNX Runtime's library.
    pub onnxruntime: Option<PathBuf>,
    /// Interpreter whose `onnxruntime` package is used when no library is named.
    pub python: String,
    /// Threads that run models on the CPU.
    pub cpu_threads: usize,
    /// Threads inside one run.
    pub intra_threads: usize,
    /// `[backends.NAME]`.
    pub tables: BTreeMap<String, BackendConfig>,
}

/// `[backends.NAME]`.
#[derive(Clone, Debug, Default)]
pub struct BackendConfig {
    /// Its library.
    pub library: Option<PathBuf>,
    /// Where it runs, if that is said.
    pub process: Option<ProcessKind>,
    /// Threads that run models on each of its devices.
    pub threads: Option<usize>,
    /// Bytes that models may hold on each of its devices.
    pub memory: Option<u64>,
    /// Settings of its own.
    pub settings: Vec<(String, String)>,
    /// How processes of its own are held.
    pub host: HostConfig,
}

/// Where a backend runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessKind {
    /// In the replica's process.
    In,
    /// In one of its own.
    Out,
}

impl BackendsConfig {
    /// What is said of a backend.
    pub fn of(&self, name: &str) -> BackendConfig {
        self.tables.get(name).cloned().unwrap_or_default()
    }

    /// Bytes that models may hold on each of its devices, if that is said: of it, or of the backend whose devices they are.
    pub(crate) fn memory_of(&self, name: &str) -> Option<u64> {
        let main = main_backend(name, self.tables.keys().map(String::as_str));
        self.of(name).memory.or_else(|| self.of(main).memory)
    }

    /// Where a backend runs.
    pub fn process(&self, name: &str) -> ProcessKind {
        process(name, self.tables.get(name))
    }
}

fn process(name: &str, table: Option<&BackendConfig>) -> ProcessKind {
    let own = if name == "cpu" { ProcessKind::In } else { ProcessKind::Out };
    table.and_then(|table| table.process).unwrap_or(own)
}

/// `[placement]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlacementConfig {
    /// Where models go, best first.
    pub devices: Vec<DeviceWish>,
    /// Whether they may go elsewhere than where the list begins.
    pub fallback: bool,
}

/// An entry of a list of devices: all of a backend, or one. The backends that drive the same devices by other libraries, by the names
/// `NAME_…`, are meant as well: `cpu` also means `cpu_torch`, which takes what `cpu` does not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceWish {
    /// The backend.
    pub backend: String,
    /// The number of the device; `None` for any.
    pub index: Option<usize>,
}

impl DeviceWish {
    /// Whether a backend is meant.
    pub fn means(&self, backend: &str) -> bool {
        backend == self.backend || is_beside(backend, &self.backend)
    }

    /// Whether a device of a backend that is meant is, too.
    pub fn has(&self, index: usize) -> bool {
        self.index.is_none_or(|wanted| wanted == index)
    }
}

/// Whether a backend drives the devices of another one, as its name says.
fn is_beside(backend: &str, main: &str) -> bool {
    backend.strip_prefix(main).is_some_and(|rest| rest.starts_with('_'))
}

/// The backend whose devices a backend drives, as its name says: its own, or that of one of ours or of `others`.
pub(crate) fn main_backend<'a>(backend: &'a str, others: impl Iterator<Item = &'a str>) -> &'a str {
    let mains = BACKENDS.into_iter().chain(others).filter(|main| is_beside(backend, main));
    mains.min_by_key(|main| main.len()).unwrap_or(backend)
}

impl fmt::Display for DeviceWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{}:{index}", self.backend),
            None => f.write_str(&self.backend),
        }
    }
}

impl FromStr for DeviceWish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (backend, index) = match text.split_once(':') {
            None => (text, None),
            Some((backend, index)) => {
                let digits = index.len() <= 4 && index.bytes().all(|byte| byte.is_ascii_digit());
                let index = index.parse().ok().filter(|_| digits);
                (
                    backend,
                    Some(index.ok_or_else(|| format!("`{text}` is no device, such as cuda or cuda:1"))?),
                )
            }
        };
        check_backend_name(backend)?;
        Ok(Self { backend: backend.to_owned(), index })
    }
}

/// Checks a backend's name: a lower-case letter, then also digits, `-` and `_`, 32 at most. So it stands in labels, headers and the
/// names of libraries as it is.
pub(super) fn check_backend_name(name: &str) -> Result<(), String> {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    let rest = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'));
    if !(first && rest && name.len() <= 32) {
        return Err(format!(
            "`{name}` is no backend's name: a lower-case letter, then lower-case letters, digits, `-` or `_`, 32 at most"
        ));
    }
    if KEYS.iter().any(|key| key.name.strip_prefix("backends.") == Some(name)) {
        return Err(format!("`backends.{name}` is a key, so no backend can be called that"));
    }
    Ok(())
}

/// Whether a backend could be called that.
pub(crate) fn is_backend_name(name: &str) -> bool {
    check_backend_name(name).is_ok()
}

/// Whether a backend of this name is one of ours.
fn is_ours(name: &str) -> bool {
    BACKENDS.contains(&name)
}

/// The names that lists of devices may use.
pub(crate) fn known_backends(tables: &BTreeMap<String, BackendConfig>) -> impl Iterator<Item = &str> {
    BACKENDS.into_iter().chain(tables.keys().map(String::as_str))
}

/// Reads a list of devices, which must name something, and nothing that is not known.
pub(crate) fn check_list(
    items: &[String],
    tables: &BTreeMap<String, BackendConfig>,
) -> Result<Vec<DeviceWish>, String> {
    if items.is_empty() {
        return Err("names no device".into());
    }
    if items.len() > MAX_DEVICES {
        return Err(format!("names {} devices, {MAX_DEVICES} are the most", items.len()));
    }
    let wish = |item: &String| {
        let wish: DeviceWish =
            item.parse().map_err(|problem: String| format!("holds what is none: {problem}"))?;
        if known_backends(tables).any(|known| known == wish.backend) {
            return Ok(wish);
        }
        let near = suggestion(&wish.backend, known_backends(tables));
        Err(format!(
            "names `{item}`, but there is no backend `{}`{near}; [backends.{}] with a library would make one",
            wish.backend, wish.backend
        ))
    };
    items.iter().map(wish).collect()
}

/// A list that has been checked.
pub(super) fn wishes(items: &[String]) -> Vec<DeviceWish> {
    items.iter().filter_map(|item| item.parse().ok()).collect()
}

/// What is wrong with the lists of devices.
pub(super) fn lists(settings: &Settings, tables: &BTreeMap<String, BackendConfig>) -> Vec<Mistake> {
    let models = settings.models.iter().map(|(name, section)| {
        (format!("models.{name}.{}", MODEL_DEVICES.name), section.get(MODEL_DEVICES.name))
    });
    let all = (PLACEMENT_DEVICES.name.to_owned(), settings.keys.get(PLACEMENT_DEVICES.name));
    let mistake = |(key, setting): (String, Option<&super::Setting>)| {
        let setting = setting?;
        let Value::List(items) = &setting.value else { return None };
        let problem = check_list(items, tables).err()?;
        Some(Mistake { origin: setting.origin.to_string(), problem: format!("`{key}` {problem}") })
    };
    std::iter::once(all).chain(models).filter_map(mistake).collect()
}

/// What is wrong with the settings of models.
pub(super) fn model_settings(settings: &Settings) -> Vec<Mistake> {
    let mistake = |(name, section): (&String, &Section)| {
        let super::Setting { value: Value::List(items), origin } = section.get(MODEL_SETTINGS.name)? else {
            return None;
        };
        Some(mistake(origin, "models", name, &pairs(items).err()?))
    };
    settings.models.iter().filter_map(mistake).collect()
}

/// The tables, and what is wrong with them.
pub(super) fn tables(
    settings: &Settings,
    cpu_threads: usize,
) -> (BTreeMap<String, BackendConfig>, Vec<Mistake>) {
    let (mut tables, mut mistakes) = (BTreeMap::new(), Vec::new());
    for (name, named) in &settings.backends {
        let table = table(name, &named.section, &mut mistakes);
        if table.library.is_none() && !is_ours(name) {
            let near = suggestion(name, BACKENDS.into_iter());
            let problem = format!("`backends.{name}.library` is missing: `{name}` is none of ours{near}");
            mistakes.push(Mistake { origin: named.origin.to_string(), problem });
        }
        let own = format!("backends.{name}.{}", BACKEND_THREADS.name);
        let threads = match table.threads {
            Some(threads) => Some((own.as_str(), threads)),
            None => (name == "cpu").then_some((BACKENDS_CPU_THREADS.name, cpu_threads)),
        };
        mistakes.extend(hosts::mistakes(name, named, &table, process(name, Some(&table)), threads));
        tables.insert(name.clone(), table);
    }
    if let Some(named) = settings.backends.values().nth(MAX_BACKENDS) {
        let problem = format!("{} backends are named, {MAX_BACKENDS} are the most", tables.len());
        mistakes.push(Mistake { origin: named.origin.to_string(), problem });
    }
    (tables, mistakes)
}

fn table(name: &str, section: &Section, mistakes: &mut Vec<Mistake>) -> BackendConfig {
    let value = |key: &Key| section.get(key.name).map(|setting| &setting.value);
    let mut table = BackendConfig {
        library: match value(BACKEND_LIBRARY) {
            Some(Value::Path(path)) => Some(path.clone()),
            _ => None,
        },
        process: value(BACKEND_PROCESS).map(|value| match value {
            Value::Text(word) if word == "in" => ProcessKind::In,
            _ => ProcessKind::Out,
        }),
        threads: match value(BACKEND_THREADS) {
            Some(Value::Count(count)) => usize::try_from(*count).ok(),
            _ => None,
        },
        memory: match value(BACKEND_MEMORY) {
            Some(Value::Size(size)) => Some(*size),
            _ => None,
        },
        settings: Vec::new(),
        host: hosts::host(section),
    };
    if let Some(super::Setting { value: Value::List(items), origin }) = section.get(BACKEND_SETTINGS.name) {
        match pairs(items) {
            Ok(pairs) => table.settings = pairs,
            Err(problem) => mistakes.push(mistake(origin, "backends", name, &problem)),
        }
    }
    table
}

fn mistake(origin: &Origin, kind: &str, name: &str, problem: &str) -> Mistake {
    Mistake { origin: origin.to_string(), problem: format!("`{kind}.{name}.settings` {problem}") }
}

/// Reads settings, KEY=VALUE each.
pub(crate) fn pairs(items: &[String]) -> Result<Vec<(String, String)>, String> {
    if items.len() > MAX_SETTINGS {
        return Err(format!("has {} settings, {MAX_SETTINGS} are the most", items.len()));
    }
    let mut pairs: Vec<(String, String)> = Vec::with_capacity(items.len());
    for item in items {
        let (key, value) = item
            .split_once('=')
            .map(|(key, value)| (key.trim(), value.trim()))
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| format!("holds `{item}`, which is not KEY=VALUE"))?;
        if pairs.iter().any(|(known, _)| known == key) {
            return Err(format!("sets `{key}` twice"));
        }
        pairs.push((key.to_owned(), value.to_owned()));
    }
    Ok(pairs)
}
