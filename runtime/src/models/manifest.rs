//! `model.toml`: what a model says of itself, beside its files. Strict, and every path in it stays inside its directory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use outrigger_backend::{DataType, MAX_RANK, ModelInfo, TensorInfo};
use outrigger_processing::{Chain, MAX_STEPS, Stage};
use serde::Deserialize;

use super::files::Files;
use super::steps;
use crate::config::key::MAX_INSTANCES;
use crate::config::{
    BackendConfig, BatchDelay, DeviceWish, Kind, StepsWish, Value, check_list, check_model_name, pairs,
    suggestion,
};

/// The largest manifest, in bytes.
const MAX_BYTES: u64 = 256 * 1024;
/// The most samples.
const MAX_SAMPLES: usize = 64;
/// The most inputs, and the most outputs, that are described.
const MAX_TENSORS: usize = 1024;
/// The most threads and rows, as in a `[models.NAME]` table.
const MAX_COUNT: u64 = 1024;

/// What a manifest says.
#[derive(Debug, Default)]
pub(super) struct Manifest {
    /// Where it is.
    pub(super) path: PathBuf,
    pub(super) name: Option<String>,
    pub(super) version: Option<String>,
    pub(super) format: Option<String>,
    /// The model's file.
    pub(super) file: Option<PathBuf>,
    /// Whether its answers are kept.
    pub(super) cache: Option<bool>,
    pub(super) settings: Said,
    pub(super) samples: Vec<Sample>,
    /// What it says of inputs and outputs: what callers send and get.
    pub(super) described: ModelInfo,
    /// The same of the model itself, as backends are told: behind the steps before it, and nothing where there are steps after it.
    pub(super) signature: ModelInfo,
    /// What happens to tensors before the model.
    pub(super) before: Chain,
    /// What happens to them after it.
    pub(super) after: Chain,
}

/// What may also stand in the `[models.NAME]` table, which goes over it.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) devices: Option<Vec<DeviceWish>>,
    pub(super) fallback: Option<bool>,
    pub(super) instances: Option<usize>,
    pub(super) max_batch: Option<usize>,
    pub(super) max_delay: Option<BatchDelay>,
    pub(super) intra_threads: Option<usize>,
    pub(super) steps: Option<StepsWish>,
    pub(super) settings: Vec<(String, String)>,
}

impl Said {
    /// The first key that is said.
    pub(super) fn first(&self) -> Option<&'static str> {
        let said = [
            ("devices", self.devices.is_some()),
            ("fallback", self.fallback.is_some()),
            ("instances", self.instances.is_some()),
            ("max_batch", self.max_batch.is_some()),
            ("max_delay", self.max_delay.is_some()),
            ("intra_threads", self.intra_threads.is_some()),
            ("steps", self.steps.is_some()),
            ("settings", !self.settings.is_empty()),
        ];
        said.into_iter().find_map(|(key, is_said)| is_said.then_some(key))
    }
}

/// A run before the model is ready.
#[derive(Debug)]
pub(super) struct Sample {
    /// A request's body.
    pub(super) request: PathBuf,
    /// The body of the answer that it must have.
    pub(super) expect: Option<PathBuf>,
    pub(super) rtol: Option<f64>,
    pub(super) atol: Option<f64>,
}

#[derive(Deserialize)]
struct Raw {
    name: Option<String>,
    version: Option<toml::Value>,
    format: Option<String>,
    file: Option<String>,
    cache: Option<bool>,
    #[serde(default)]
    inputs: Vec<Described>,
    #[serde(default)]
    outputs: Vec<Described>,
    devices: Option<Vec<String>>,
    fallback: Option<bool>,
    instances: Option<u64>,
    max_batch: Option<u64>,
    max_delay: Option<String>,
    intra_threads: Option<u64>,
    steps: Option<String>,
    #[serde(default)]
    settings: Vec<String>,
    #[serde(default)]
    samples: Vec<RawSample>,
    #[serde(default)]
    before: Vec<toml::Value>,
    #[serde(default)]
    after: Vec<toml::Value>,
}

#[derive(Debug, Deserialize)]
struct Described {
    name: String,
    datatype: String,
    shape: Vec<Extent>,
}

/// One dimension.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a whole number, or a name for an extent that is free")]
pub(super) enum Extent {
    /// Negative where it is free.
    Number(i64),
    /// Free; those of one name are equal in one call.
    Name(String),
}

impl Extent {
    /// −1 where it is free, with its name.
    pub(super) fn named(&self) -> (i64, String) {
        match self {
            Self::Number(extent) => ((*extent).max(-1), String::new()),
            Self::Name(name) => (-1, name.clone()),
        }
    }
}

impl Described {
    /// In the form that backends take.
    fn info(&self) -> Result<TensorInfo, String> {
        let Self { name, datatype, shape } = self;
        let data_type = DataType::from_name(datatype).ok_or_else(|| {
            let names = DataType::ALL.map(DataType::name);
            format!("`{name}` has the datatype `{datatype}`{}", suggestion(datatype, names.into_iter()))
        })?;
        if shape.len() > MAX_RANK {
            return Err(format!("`{name}` has {} dimensions, {MAX_RANK} are the most", shape.len()));
        }
        let (shape, symbols) = shape.iter().map(Extent::named).unzip();
        Ok(TensorInfo { name: name.clone(), data_type, shape, symbols })
    }
}

#[derive(Deserialize)]
struct RawSample {
    request: String,
    expect: Option<String>,
    rtol: Option<f64>,
    atol: Option<f64>,
}

const KEYS: &[&str] = &[
    "name",
    "version",
    "format",
    "file",
    "cache",
    "inputs",
    "outputs",
    "devices",
    "fallback",
    "instances",
    "max_batch",
    "max_delay",
    "intra_threads",
    "steps",
    "settings",
    "samples",
    "before",
    "after",
];
const TENSOR_KEYS: &[&str] = &["name", "datatype", "shape"];
const SAMPLE_KEYS: &[&str] = &["request", "expect", "rtol", "atol"];

/// Reads a manifest. It is here; the files that it names need not be yet.
///
/// # Errors
/// What is wrong with it, naming the key.
pub(super) fn read(
    path: &Path,
    backends: &BTreeMap<String, BackendConfig>,
    files: &Files,
) -> Result<Manifest, String> {
    let bytes = read_file(path, MAX_BYTES)?;
    let text = String::from_utf8(bytes).map_err(|_| "is no UTF-8".to_owned())?;
    parse(path, &text, backends, files)
}

/// The same of a text that has been read.
pub(super) fn parse(
    path: &Path,
    text: &str,
    backends: &BTreeMap<String, BackendConfig>,
    files: &Files,
) -> Result<Manifest, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| said(text, &error))?;
    check_keys(&table, "", KEYS)?;
    for (list, keys) in [("inputs", TENSOR_KEYS), ("outputs", TENSOR_KEYS), ("samples", SAMPLE_KEYS)] {
        for item in table.get(list).and_then(toml::Value::as_array).into_iter().flatten() {
            if let Some(table) = item.as_table() {
                check_keys(table, &format!("{list}."), keys)?;
            }
        }
    }
    let raw: Raw = toml::from_str(text).map_err(|error| said(text, &error))?;
    build(path, raw, backends, files)
}

/// An error with its line.
pub(super) fn said(text: &str, error: &toml::de::Error) -> String {
    let line =
        error.span().map(|span| 1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count());
    match line {
        Some(line) => format!("line {line}: {}", error.message()),
        None => error.message().to_owned(),
    }
}

pub(super) fn check_keys(table: &toml::Table, prefix: &str, known: &[&str]) -> Result<(), String> {
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(format!("unknown key `{prefix}{key}`{}", suggestion(key, known.iter().copied()))),
        None => Ok(()),
    }
}

fn build(
    path: &Path,
    raw: Raw,
    backends: &BTreeMap<String, BackendConfig>,
    files: &Files,
) -> Result<Manifest, String> {
    let directory = path.parent().unwrap_or(Path::new(""));
    let inside = |key: &str, text: &str| inside(files, directory, key, text);
    let version = match raw.version {
        None => None,
        Some(toml::Value::Integer(version)) => Some(version.to_string()),
        Some(toml::Value::String(version)) => Some(version),
        Some(_) => return Err("`version` is no text".into()),
    };
    if let Some(version) = &version {
        let problem =
            "`version` is not a letter or digit, then letters, digits, `-`, `.` or `_`, 255 at most";
        check_model_name(version).map_err(|_| problem.to_owned())?;
    }
    for (list, count, most) in [
        ("inputs", raw.inputs.len(), MAX_TENSORS),
        ("outputs", raw.outputs.len(), MAX_TENSORS),
        ("samples", raw.samples.len(), MAX_SAMPLES),
        ("before", raw.before.len(), MAX_STEPS),
        ("after", raw.after.len(), MAX_STEPS),
    ] {
        if count > most {
            return Err(format!("`{list}` has {count} entries, {most} are the most"));
        }
    }
    let settings = Said {
        devices: raw
            .devices
            .map(|items| check_list(&items, backends).map_err(|problem| format!("`devices` {problem}")))
            .transpose()?,
        fallback: raw.fallback,
        instances: count("instances", raw.instances, MAX_INSTANCES as u64)?,
        max_batch: count("max_batch", raw.max_batch, MAX_COUNT)?,
        max_delay: raw.max_delay.map(|text| delay(&text)).transpose()?,
        intra_threads: count("intra_threads", raw.intra_threads, MAX_COUNT)?,
        steps: raw.steps.map(|word| steps_wish(&word)).transpose()?,
        settings: pairs(&raw.settings).map_err(|problem| format!("`settings` {problem}"))?,
    };
    let samples = raw.samples.into_iter().map(|sample| {
        for (key, value) in [("rtol", sample.rtol), ("atol", sample.atol)] {
            if value.is_some_and(|value| !(0.0..=f64::MAX).contains(&value)) {
                return Err(format!("`samples.{key}` is not a number from 0 on"));
            }
        }
        Ok(Sample {
            request: inside("samples.request", &sample.request)?,
            expect: sample.expect.map(|expect| inside("samples.expect", &expect)).transpose()?,
            rtol: sample.rtol,
            atol: sample.atol,
        })
    });
    let described =
        ModelInfo { inputs: infos("inputs", &raw.inputs)?, outputs: infos("outputs", &raw.outputs)? };
    let (before, after) = (chain("before", raw.before)?, chain("after", raw.after)?);
    let signature = steps::signature(&described, &before, &after)?;
    Ok(Manifest {
        path: path.to_owned(),
        name: raw.name,
        version,
        format: raw.format,
        file: raw.file.map(|file| inside("file", &file)).transpose()?,
        cache: raw.cache,
        settings,
        samples: samples.collect::<Result<_, _>>()?,
        described,
        signature,
        before,
        after,
    })
}

/// Steps, each read by itself, so that what is wrong with one is told with its number and name.
fn chain(list: &str, steps: Vec<toml::Value>) -> Result<Chain, String> {
    let read = |(index, value): (usize, toml::Value)| {
        let step = value.get("step").and_then(toml::Value::as_str);
        let step = step.map(|step| format!(" (`{step}`)")).unwrap_or_default();
        value
            .try_into::<Stage>()
            .map_err(|error| format!("step {} of `[[{list}]]`{step}: {}", index + 1, error.message()))
    };
    steps.into_iter().enumerate().map(read).collect()
}

fn infos(list: &str, described: &[Described]) -> Result<Vec<TensorInfo>, String> {
    described.iter().map(|one| one.info().map_err(|problem| format!("`{list}`: {problem}"))).collect()
}

fn count(key: &str, value: Option<u64>, most: u64) -> Result<Option<usize>, String> {
    match value {
        Some(value) if value == 0 || value > most => {
            Err(format!("`{key}` is {value}, expected a whole number from 1 to {most}"))
        }
        value => Ok(value.and_then(|value| usize::try_from(value).ok())),
    }
}

fn delay(text: &str) -> Result<BatchDelay, String> {
    match Kind::Delay.parse(text) {
        Some(Value::Duration(delay)) => Ok(BatchDelay::AtMost(delay)),
        Some(_) => Ok(BatchDelay::Auto),
        None => Err(format!("`max_delay` is \"{text}\", expected {}", Kind::Delay.expects())),
    }
}

fn steps_wish(word: &str) -> Result<StepsWish, String> {
    StepsWish::of(word)
        .ok_or_else(|| format!("`steps` is \"{word}\", expected one of {}", StepsWish::WORDS.join(", ")))
}

/// A file inside the manifest's directory, links followed.
fn inside(files: &Files, directory: &Path, key: &str, text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if text.is_empty() || !path.components().all(plain) {
        return Err(format!("`{key}` is \"{text}\", which is not a path inside the model's directory"));
    }
    let missing = |error: std::io::Error| format!("`{key}`: {}: {error}", directory.join(path).display());
    let root = files.real(directory).map_err(missing)?;
    let file = files.real(&directory.join(path)).map_err(missing)?;
    if !file.starts_with(&root) {
        return Err(format!("`{key}` is \"{text}\", a link that leads out of the model's directory"));
    }
    Ok(file)
}

/// What a file holds, which must be a plain one and no larger than this.
pub(super) fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    // Asked before it is opened: to open a pipe would wait for who writes to it.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err("is no plain file".into());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > limit {
        return Err(format!("is larger than {limit} bytes"));
    }
    Ok(bytes)
}

impl Manifest {
    /// Holds what it says of inputs and outputs against what the model says. What it does not describe is as the model says.
    ///
    /// # Errors
    /// The first difference, by name.
    pub(super) fn check(&self, info: &ModelInfo) -> Result<(), String> {
        check_side("input", &self.described.inputs, &info.inputs)?;
        check_side("output", &self.described.outputs, &info.outputs)
    }

    /// The first key that only a model with a file of its own can have.
    pub(super) fn of_a_file(&self) -> Option<&'static str> {
        let said = [
            ("format", self.format.is_some()),
            ("file", self.file.is_some()),
            ("before", !self.before.stages.is_empty()),
            ("after", !self.after.stages.is_empty()),
        ];
        said.into_iter().find_map(|(key, is_said)| is_said.then_some(key)).or_else(|| self.settings.first())
    }

    /// Whether anything happens to tensors before or after the model.
    pub(super) fn has_steps(&self) -> bool {
        !self.before.stages.is_empty() || !self.after.stages.is_empty()
    }
}

/// Holds what is described of one side against what is there.
pub(super) fn check_side(side: &str, described: &[TensorInfo], there: &[TensorInfo]) -> Result<(), String> {
    if described.is_empty() {
        return Ok(());
    }
    for tensor in described {
        let name = &tensor.name;
        let Some(info) = there.iter().find(|info| info.name == *name) else {
            let near = suggestion(name, there.iter().map(|info| info.name.as_str()));
            return Err(format!("the model has no {side} `{name}`{near}"));
        };
        if info.data_type != tensor.data_type {
            return Err(format!(
                "{side} `{name}` is {} in the model, not {}",
                info.data_type, tensor.data_type
            ));
        }
        if info.shape != tensor.shape {
            return Err(format!(
                "{side} `{name}` has shape {:?} in the model, not {:?}",
                info.shape, tensor.shape
            ));
        }
    }
    match there.iter().find(|info| described.iter().all(|tensor| tensor.name != info.name)) {
        Some(info) => Err(format!("the model has an {side} `{}`, which is not described", info.name)),
        None => Ok(()),
    }
}
