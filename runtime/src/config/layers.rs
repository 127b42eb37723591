//! Layers of settings: flag over environment over file over AzureML's `config.json` over default, each value with where it
//! came from.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use outrigger_store::ModelName;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::callers::{self, check_caller_name};
use super::collect::check_collection_name;
use super::devices::check_backend_name;
use super::key::{
    BACKEND_KEYS, CALLER_KEYS, COLLECT_TO, COLLECTION_KEYS, COMPAT, COMPAT_DEFAULTS, ISSUER_KEYS, KEYS, Key,
    MODEL_KEYS, MODEL_PATH, MODEL_SOURCE, SCRIPT_ARGS,
};
use super::tokens;
use super::value::{Kind, Value};

/// The texts that settings are read from; taken as arguments, so that nothing here looks at the process.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The configuration file: its path and its text.
    pub file: Option<(PathBuf, String)>,
    /// AzureML's `config.json`: its path and its text; read with `compat = true` only. See [`super::azureml::candidates`].
    pub config_json: Option<(PathBuf, String)>,
    /// Defaults of a command that are others than the table's.
    pub presets: Vec<(&'static Key, String)>,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
    /// Flags: the key and what was given, several where a flag was repeated.
    pub flags: Vec<(&'static Key, Vec<String>)>,
    /// `--model NAME=PATH`.
    pub models: Vec<String>,
    /// What relative paths from environment and flags are relative to.
    pub working_directory: PathBuf,
    /// What says that the process is in a container, if anything does. See [`super::container::evidence`].
    pub container: Option<String>,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// Nobody set it, and `compat = true` has another default.
    Compat,
    /// Nobody set it, and the command has another default.
    Preset,
    /// AzureML's `config.json`, with the name there.
    ConfigJson(PathBuf, String),
    /// The file, with the line.
    File(PathBuf, usize),
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(String),
}

impl Origin {
    /// Whether nobody set the value.
    pub fn is_default(&self) -> bool {
        matches!(self, Self::Default | Self::Compat | Self::Preset)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Compat => f.write_str("default with compat"),
            Self::Preset => f.write_str("default of this command"),
            Self::ConfigJson(path, name) => write!(f, "{}: {name}", path.display()),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::Flag(flag) => write!(f, "flag --{flag}"),
        }
    }
}

/// One thing that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {problem}")]
pub struct Mistake {
    /// Where.
    pub origin: String,
    /// What, naming the key.
    pub problem: String,
}

/// A value and where it came from.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The value.
    pub value: Value,
    /// Where it came from.
    pub origin: Origin,
}

/// A table whose name is the operator's, such as `[callers.NAME]`.
#[derive(Clone, Debug)]
pub struct NamedSection {
    /// Where it begins.
    pub origin: Origin,
    /// What it holds.
    pub section: Section,
}

/// Settings by key name.
pub type Section = BTreeMap<&'static str, Setting>;

/// All settings that have a value.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// By key.
    pub keys: Section,
    /// `[models.NAME]`.
    pub models: BTreeMap<String, Section>,
    /// `[backends.NAME]`.
    pub backends: BTreeMap<String, NamedSection>,
    /// `[callers.NAME]`.
    pub callers: BTreeMap<String, NamedSection>,
    /// `[collections.NAME]`.
    pub collections: BTreeMap<String, NamedSection>,
    /// `[tokens.issuers.NAME]`.
    pub issuers: BTreeMap<String, NamedSection>,
    /// Variables that look like ours but are not; harmless unless close to one that is.
    pub strangers: Vec<String>,
    /// What the operator should know of settings that have no effect, or more than one may think, a sentence each.
    pub notices: Vec<String>,
}

/// Variables that are ours but no keys: read by the command line, by workers and by the project's own tests.
const OTHER_VARIABLES: &[&str] = &["OUTRIGGER_CONFIG", "OUTRIGGER_WORKER_FD", "OUTRIGGER_ONNXRUNTIME"];

/// Reads all layers; every mistake is reported, not only the first.
pub(super) fn read(sources: &Sources) -> (Settings, Vec<Mistake>) {
    let mut reader = Reader { settings: Settings::default(), mistakes: Vec::new() };
    for key in KEYS {
        if let Some(value) = (!key.default.is_empty()).then(|| key.kind.parse(key.default)).flatten() {
            reader.settings.keys.insert(key.name, Setting { value, origin: Origin::Default });
        }
    }
    for (key, text) in &sources.presets {
        reader.text(key, text, Origin::Preset, &sources.working_directory);
    }
    if let Some((path, text)) = &sources.file {
        reader.file(path, text);
    }
    reader.environment(sources);
    reader.flags(sources);
    if reader.settings.compat() {
        for (key, text) in COMPAT_DEFAULTS {
            if reader.is_default(key) {
                reader.text(key, text, Origin::Compat, &sources.working_directory);
            }
        }
        if let Some((path, text)) = &sources.config_json {
            reader.config_json(path, text, &sources.working_directory);
        }
    }
    let to = reader.settings.keys.get(COLLECT_TO.name).map(|setting| &setting.value);
    let collects = matches!(to, Some(Value::Location(location)) if !location.as_str().is_empty());
    reader.settings.notices.extend(super::azureml::notices(&sources.environment, collects));
    (reader.settings, reader.mistakes)
}

impl Settings {
    /// Whether `compat` is on.
    pub(super) fn compat(&self) -> bool {
        matches!(self.keys.get(COMPAT.name), Some(Setting { value: Value::Flag(true), .. }))
    }
}

struct Reader {
    settings: Settings,
    mistakes: Vec<Mistake>,
}

impl Reader {
    fn mistake(&mut self, origin: &Origin, problem: String) {
        self.mistakes.push(Mistake { origin: origin.to_string(), problem });
    }

    /// Whether nobody has set a key.
    fn is_default(&self, key: &Key) -> bool {
        self.settings.keys.get(key.name).is_none_or(|setting| setting.origin.is_default())
    }

    /// AzureML's own file: values by the names of environment variables, weaker than those. Names that mean nothing are said and passed
    /// over, as there.
    fn config_json(&mut self, path: &Path, text: &str, base: &Path) {
        let read = match super::azureml::read_config_json(text) {
            Ok(read) => read,
            Err(problem) => {
                let origin = path.display().to_string();
                self.mistakes.push(Mistake { origin, problem });
                return;
            }
        };
        for (name, value) in read.values {
            let Some((key, alias)) = super::azureml::key_of(&name) else { continue };
            if self.is_default(key) && !value.is_empty() {
                let origin = Origin::ConfigJson(path.into(), name);
                self.text(key, &format!("{}{value}{}", alias.prefix, alias.suffix), origin, base);
            }
        }
        self.settings
            .notices
            .extend(read.notices.iter().map(|notice| format!("{}: {notice}", path.display())));
    }

    fn file(&mut self, path: &Path, text: &str) {
        let place = FilePlace::new(path, text);
        let table = match DeTable::parse(text) {
            Ok(table) => table,
            Err(error) => {
                let origin = place.at(error.span().map_or(0, |span| span.start));
                self.mistake(&origin, error.message().to_owned());
                return;
            }
        };
        self.table(&place, "", table.get_ref());
    }

    fn table(&mut self, place: &FilePlace<'_>, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let full = format!("{prefix}{}", name.get_ref());
            let origin = place.origin(name);
            match value.get_ref() {
                DeValue::Table(inner) if full == "models" => self.models(place, inner),
                DeValue::Table(inner) if full == "callers" => self.callers(place, inner),
                DeValue::Table(inner) if full == "collections" => self.collections(place, inner),
                DeValue::Table(inner) if full == "tokens.issuers" => self.issuers(place, inner),
                DeValue::Table(inner)
                    if prefix == "backends." && !KEYS.iter().any(|key| key.name == full) =>
                {
                    self.backend(place, name, inner);
                }
                DeValue::Table(inner) if KEYS.iter().any(|key| key.name.starts_with(&format!("{full}."))) => {
                    self.table(place, &format!("{full}."), inner);
                }
                value => match KEYS.iter().find(|key| key.name == full) {
                    Some(key) => {
                        if let Some(value) = self.file_value(place, key, &full, &origin, value) {
                            self.settings.keys.insert(key.name, Setting { value, origin });
                        }
                    }
                    None => {
                        let sections = KEYS.iter().filter_map(|key| key.name.split_once('.')).map(|(s, _)| s);
                        let names = KEYS.iter().map(|key| key.name).chain(sections).chain([
                            "models",
                            "callers",
                            "collections",
                        ]);
                        let problem = format!("unknown key `{full}`{}", suggestion(&full, names));
                        self.mistake(&origin, problem);
                    }
                },
            }
        }
    }

    fn models(&mut self, place: &FilePlace<'_>, models: &DeTable<'_>) {
        for (model, origin, section) in self.tables(place, "models", models, MODEL_KEYS, check_model_name) {
            match (section.contains_key(MODEL_PATH.name), section.contains_key(MODEL_SOURCE.name)) {
                (false, false) => {
                    self.mistake(
                        &origin,
                        format!("`models.{model}.path` is missing, or `models.{model}.source`"),
                    );
                }
                (true, true) => {
                    let problem =
                        format!("`models.{model}` has both `path` and `source`: it is one or the other");
                    self.mistake(&origin, problem);
                }
                _ => {}
            }
            self.settings.models.insert(model, section);
        }
    }

    fn callers(&mut self, place: &FilePlace<'_>, callers: &DeTable<'_>) {
        for (caller, origin, section) in
            self.tables(place, "callers", callers, CALLER_KEYS, check_caller_name)
        {
            self.settings.callers.insert(caller, NamedSection { origin, section });
        }
    }

    fn collections(&mut self, place: &FilePlace<'_>, collections: &DeTable<'_>) {
        let read = self.tables(place, "collections", collections, COLLECTION_KEYS, check_collection_name);
        for (collection, origin, section) in read {
            self.settings.collections.insert(collection, NamedSection { origin, section });
        }
    }

    fn issuers(&mut self, place: &FilePlace<'_>, issuers: &DeTable<'_>) {
        for (issuer, origin, section) in
            self.tables(place, "tokens.issuers", issuers, ISSUER_KEYS, tokens::check_issuer_name)
        {
            self.settings.issuers.insert(issuer, NamedSection { origin, section });
        }
    }

    /// Tables of one kind by their names, such as `[models.NAME]`; those with a name that cannot be are left out.
    fn tables(
        &mut self,
        place: &FilePlace<'_>,
        kind: &str,
        tables: &DeTable<'_>,
        keys: &[&'static Key],
        check_name: fn(&str) -> Result<(), String>,
    ) -> Vec<(String, Origin, Section)> {
        let read = tables.iter().filter_map(|(name, value)| {
            let DeValue::Table(table) = value.get_ref() else {
                let name = name.get_ref();
                let problem = match check_name(name) {
                    Ok(()) => format!("`{kind}.{name}` must be a table: [{kind}.{name}]"),
                    Err(problem) => problem,
                };
                self.mistake(&place.origin(value), problem);
                return None;
            };
            self.named(place, kind, name, table, keys, check_name)
        });
        read.collect()
    }

    /// One of them.
    fn named(
        &mut self,
        place: &FilePlace<'_>,
        kind: &str,
        name: &Spanned<Cow<'_, str>>,
        table: &DeTable<'_>,
        keys: &[&'static Key],
        check_name: fn(&str) -> Result<(), String>,
    ) -> Option<(String, Origin, Section)> {
        let origin = place.origin(name);
        let table_name = name.get_ref().to_string();
        if let Err(problem) = check_name(&table_name) {
            self.mistake(&origin, problem);
            return None;
        }
        let mut section = Section::new();
        for (name, value) in table {
            let origin = place.origin(name);
            let full = format!("{kind}.{table_name}.{}", name.get_ref());
            match keys.iter().find(|key| key.name == name.get_ref().as_ref()) {
                Some(key) => {
                    if let Some(value) = self.file_value(place, key, &full, &origin, value.get_ref()) {
                        section.insert(key.name, Setting { value, origin });
                    }
                }
                None => {
                    let nearest = suggestion(name.get_ref(), keys.iter().map(|key| key.name));
                    self.mistake(&origin, format!("unknown key `{full}`{nearest}"));
                }
            }
        }
        Some((table_name, origin, section))
    }

    fn backend(&mut self, place: &FilePlace<'_>, name: &Spanned<Cow<'_, str>>, table: &DeTable<'_>) {
        if let Some((backend, origin, section)) =
            self.named(place, "backends", name, table, BACKEND_KEYS, check_backend_name)
        {
            self.settings.backends.insert(backend, NamedSection { origin, section });
        }
    }

    fn file_value(
        &mut self,
        place: &FilePlace<'_>,
        key: &Key,
        full: &str,
        origin: &Origin,
        value: &DeValue<'_>,
    ) -> Option<Value> {
        let parsed = match (key.kind, value) {
            (Kind::Count { .. } | Kind::Number { .. } | Kind::Text, DeValue::Integer(integer)) => {
                key.kind.parse(integer.as_str())
            }
            (Kind::Number { .. }, DeValue::Float(float)) => key.kind.parse(float.as_str()),
            (Kind::Flag, DeValue::Boolean(flag)) => Some(Value::Flag(*flag)),
            (Kind::Count { .. } | Kind::Number { .. } | Kind::Flag, _) => None,
            (Kind::List, DeValue::Array(items)) => items
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::String(text) => Some(text.to_string()),
                    _ => None,
                })
                .collect::<Option<Vec<_>>>()
                .map(Value::List),
            (Kind::List, _) => None,
            (_, DeValue::String(text)) => key.kind.parse(text).map(|value| rebase(value, place.base)),
            _ => None,
        };
        if parsed.is_none() {
            let problem = format!("`{full}` is {}, expected {}", shown(key, value), key.kind.expects());
            self.mistake(origin, problem);
        }
        parsed
    }

    fn environment(&mut self, sources: &Sources) {
        // AzureML's names first, so that our own win where both are set.
        for ours in [false, true] {
            for key in KEYS {
                let names: Vec<(String, (&str, &str))> = if ours {
                    vec![(key.variable(), ("", ""))]
                } else {
                    key.aliases
                        .iter()
                        .map(|alias| (alias.variable.to_owned(), (alias.prefix, alias.suffix)))
                        .collect()
                };
                for (name, (prefix, suffix)) in names {
                    let found = sources.environment.iter().find(|(variable, _)| *variable == name);
                    // Images set variables to nothing, which means the same as not at all.
                    if let Some((_, text)) = found.filter(|(_, text)| !text.is_empty()) {
                        let origin = Origin::Environment(name);
                        self.text(
                            key,
                            &format!("{prefix}{text}{suffix}"),
                            origin,
                            &sources.working_directory,
                        );
                    }
                }
            }
        }
        let mut ours: Vec<String> = KEYS.iter().map(|key| key.variable()).collect();
        for (caller, key) in callers::variables(&self.settings) {
            let name = callers::variable(&caller, key);
            let found = sources.environment.iter().find(|(variable, _)| *variable == name);
            if let Some((_, text)) = found.filter(|(_, text)| !text.is_empty()) {
                let (full, origin) =
                    (format!("callers.{caller}.{}", key.name), Origin::Environment(name.clone()));
                if let Some(setting) =
                    self.setting(key, &full, text, origin.clone(), &sources.working_directory)
                {
                    let caller = self.settings.callers.entry(caller);
                    let caller = caller.or_insert(NamedSection { origin, section: Section::new() });
                    caller.section.insert(key.name, setting);
                }
            }
            ours.push(name);
        }
        for (variable, _) in &sources.environment {
            let known = ours.contains(variable)
                || OTHER_VARIABLES.contains(&variable.as_str())
                || variable.starts_with("OUTRIGGER_TEST_");
            if !variable.starts_with("OUTRIGGER_") || known {
                continue;
            }
            // There are others about a cluster than those that are known, so only what looks like a slip of the pen is a mistake.
            match nearest(variable, ours.iter().map(String::as_str)) {
                Some((name, distance)) if distance <= 3 && !is_of_kubernetes(variable) => {
                    let problem = format!("unknown variable `{variable}`, did you mean `{name}`?");
                    self.mistake(&Origin::Environment(variable.clone()), problem);
                }
                _ => self.settings.strangers.push(variable.clone()),
            }
        }
    }

    fn flags(&mut self, sources: &Sources) {
        for (key, values) in &sources.flags {
            let origin = Origin::Flag(key.flag());
            if matches!(key.kind, Kind::List) {
                // An argument may have commas in it; what else there are lists of has none.
                let is_whole = key.name == SCRIPT_ARGS.name;
                let items = values.iter().flat_map(|text| match key.kind.parse(text) {
                    Some(Value::List(items)) if !is_whole => items,
                    _ => vec![text.clone()],
                });
                let value = Value::List(items.collect());
                self.settings.keys.insert(key.name, Setting { value, origin });
            } else if let Some(text) = values.last() {
                self.text(key, text, origin, &sources.working_directory);
            }
        }
        for text in &sources.models {
            let origin = Origin::Flag("model".into());
            let Some((name, path)) = text.split_once('=').filter(|(_, path)| !path.is_empty()) else {
                self.mistake(&origin, format!("`{text}` is not NAME=PATH"));
                continue;
            };
            if let Err(problem) = check_model_name(name) {
                self.mistake(&origin, problem);
                continue;
            }
            let value = Value::Path(sources.working_directory.join(path));
            let section = self.settings.models.entry(name.to_owned()).or_default();
            section.insert(MODEL_PATH.name, Setting { value, origin });
        }
    }

    fn text(&mut self, key: &'static Key, text: &str, origin: Origin, base: &Path) {
        if let Some(setting) = self.setting(key, key.name, text, origin, base) {
            self.settings.keys.insert(key.name, setting);
        }
    }

    /// A setting from text; nothing, and a mistake, where the text is none of the key's kind.
    fn setting(&mut self, key: &Key, full: &str, text: &str, origin: Origin, base: &Path) -> Option<Setting> {
        let value = key.kind.parse(text);
        if value.is_none() {
            let shown = if matches!(key.kind, Kind::Secret | Kind::Location) { "***" } else { text };
            self.mistake(&origin, format!("`{full}` is `{shown}`, expected {}", key.kind.expects()));
        }
        Some(Setting { value: rebase(value?, base), origin })
    }
}

/// The file that a table stands in.
struct FilePlace<'a> {
    path: &'a Path,
    base: &'a Path,
    /// Where lines end, in bytes from the start: with a thousand models a file has thousands of values, each of which is told its line.
    ends: Vec<usize>,
}

impl<'a> FilePlace<'a> {
    fn new(path: &'a Path, text: &str) -> Self {
        let base = path.parent().unwrap_or(Path::new(""));
        Self { path, base, ends: text.match_indices('\n').map(|(at, _)| at).collect() }
    }

    fn origin<T>(&self, spanned: &Spanned<T>) -> Origin {
        self.at(spanned.span().start)
    }

    /// The line of what stands so many bytes from the start.
    fn at(&self, offset: usize) -> Origin {
        Origin::File(self.path.into(), self.ends.partition_point(|end| *end < offset) + 1)
    }
}

fn rebase(value: Value, base: &Path) -> Value {
    match value {
        Value::Path(path) => Value::Path(base.join(path)),
        Value::Location(location) => Value::Location(location.rebased(base)),
        value => value,
    }
}

/// A value of the wrong kind, as an error message shows it.
fn shown(key: &Key, value: &DeValue<'_>) -> String {
    match value {
        _ if matches!(key.kind, Kind::Secret | Kind::Location) => "`***`".into(),
        DeValue::String(text) => format!("\"{text}\""),
        DeValue::Integer(integer) => format!("`{}`", integer.as_str()),
        DeValue::Boolean(flag) => format!("`{flag}`"),
        DeValue::Float(float) => format!("`{}`", float.as_str()),
        DeValue::Datetime(_) => "a date".into(),
        DeValue::Array(_) => "an array".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

/// Checks a model's name by the grammar of the system we succeed: a letter or digit, then also `-`, `.`, `_`, 255 at most.
pub(crate) fn check_model_name(name: &str) -> Result<(), String> {
    ModelName::new(name).map(drop).map_err(|problem| problem.to_string())
}

fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<(&'a str, usize)> {
    names.map(|known| (known, strsim::damerau_levenshtein(name, known))).min_by_key(|(_, distance)| *distance)
}

/// `, did you mean ...?` with the nearest known name, or nothing where none is near.
pub(crate) fn suggestion<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    match nearest(name, names) {
        Some((known, distance)) if distance <= name.len().max(known.len()) / 2 => {
            format!(", did you mean `{known}`?")
        }
        _ => String::new(),
    }
}

/// Whether Kubernetes puts a variable of this name into every pod beside a service that is called `outrigger`.
fn is_of_kubernetes(variable: &str) -> bool {
    ["OUTRIGGER_SERVICE_HOST", "OUTRIGGER_SERVICE_PORT", "OUTRIGGER_PORT"].iter().any(|prefix| {
        variable.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    })
}
