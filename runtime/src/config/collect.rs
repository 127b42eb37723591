//! `[collect]` and `[collections.NAME]`: what is kept of calls, how, and where it goes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderName;
use outrigger_collect::{
    CollectionSettings, Format, Full, MAX_COLLECTIONS, MAX_NAME, Pattern, Redaction, Replacement, Rolling,
    Settings as Collecting, Sync,
};
use outrigger_store::{Environment, LocationText};

use super::getter::Getter;
use super::key::{
    self, COLLECTION_ALLOW, COLLECTION_BLOCK, COLLECTION_DENY, COLLECTION_DISK, COLLECTION_FORMAT,
    COLLECTION_FULL, COLLECTION_HASH, COLLECTION_HASH_PATTERNS, COLLECTION_KEEP_ERRORS,
    COLLECTION_KEEP_SLOWER, COLLECTION_PATTERNS, COLLECTION_RETENTION_DAYS, COLLECTION_ROLLING,
    COLLECTION_SALT, COLLECTION_SAMPLING, COLLECTION_SYNC, COLLECTION_SYNC_INTERVAL, COLLECTION_TEXT, Key,
};
use super::value::Value;
use super::{Mistake, Origin, Section, Settings, Sources};
use crate::collection::is_secret;

/// What was asked.
pub const REQUEST: &str = "request";
/// What was answered.
pub const RESPONSE: &str = "response";
/// What `ModelDataCollector` collects.
pub const MODELDATA: &str = "modeldata";

/// What takes the place of what a pattern matches.
const MASK: &str = "***";
/// The first pause before an object is written again.
const RETRY_MIN: Duration = Duration::from_millis(500);

/// `[collect]`, where something is collected.
#[derive(Clone, Debug)]
pub struct CollectConfig {
    /// Where it goes.
    pub to: LocationText,
    /// Where relative folders begin.
    pub base: PathBuf,
    /// What credentials are taken from.
    pub environment: Environment,
    /// What is kept, and every limit on the way to storage.
    pub settings: Collecting,
    /// Where scripts hand over what they collect.
    pub listen: SocketAddr,
    /// Most bytes that are kept of a request or an answer.
    pub body: usize,
    /// Most bytes that are held of those whose calls go on.
    pub bodies: usize,
    /// Headers of requests that are kept with them.
    pub headers: Vec<HeaderName>,
    /// Largest body that a script may hand over.
    pub rows: usize,
    /// So many at once.
    pub calls: usize,
    /// Longest time at the end for what is there.
    pub stop: Duration,
}

/// Checks a collection's name: it stands in paths, headers and labels as it is.
pub(super) fn check_collection_name(name: &str) -> Result<(), String> {
    let first = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let sound = name.bytes().next().is_some_and(first)
        && name.bytes().all(|byte| first(byte) || byte == b'-' || byte == b'_');
    if sound && name.len() <= MAX_NAME {
        return Ok(());
    }
    Err(format!(
        "`{name}` is no collection's name: lower-case letters, digits, `-` and `_`, beginning with a letter or digit, {MAX_NAME} at most"
    ))
}

/// From settings, each valid by itself; nothing where nothing is collected.
pub(super) fn collect(
    settings: &Settings,
    sources: &Sources,
    state_dir: &Path,
) -> Result<Option<CollectConfig>, Vec<Mistake>> {
    let get = Getter { settings };
    let mut builder = Builder { settings, mistakes: Vec::new() };
    let asked = AzureMl::of(sources);
    let names = builder.names(&asked);
    let said = match get.value(key::COLLECT_TO) {
        Some(Value::Location(location)) if !location.as_str().is_empty() => Some(location.clone()),
        _ => None,
    };
    let Some(to) = said.clone().or_else(|| asked.to.clone()) else {
        if let Some(name) = names.iter().next() {
            let origin = settings.collections.get(name).map(|collection| collection.origin.clone());
            let origin = origin.or_else(|| origin_of(settings, key::COLLECT_COLLECTIONS));
            let problem = format!(
                "`{name}` is to be collected, and `collect.to` does not say where it goes: a folder, or a URL"
            );
            builder.mistake(&origin.unwrap_or(Origin::Default), problem);
        }
        return builder.done(None);
    };
    if names.is_empty() {
        return builder.done(None);
    }
    let listen = get.address(key::COLLECT_LISTEN);
    if !(listen.ip().is_loopback() && listen.is_ipv4()) {
        let problem = format!(
            "`collect.listen` is {listen}: scripts are on this machine, and nobody is asked who they are, so it is an address of 127.0.0.0/8"
        );
        builder.at(key::COLLECT_LISTEN, problem);
    }
    let headers = builder.headers(get.list(key::COLLECT_HEADERS));
    let collections = names.iter().map(|name| (name.clone(), builder.collection(name, asked.hourly)));
    let collections: BTreeMap<_, _> = collections.collect();
    let text = |key| Some(get.text(key)).filter(|text| !text.is_empty());
    let size = |key| get.size(key) as u64;
    let collecting = Collecting {
        spool: get.path(key::COLLECT_SPOOL).unwrap_or_else(|| state_dir.join("collect")),
        endpoint: text(key::COLLECT_ENDPOINT).unwrap_or_else(|| endpoint(&get.text(key::SERVICE_NAME))),
        deployment: get.text(key::COLLECT_DEPLOYMENT),
        source: None,
        workspace: get.text(key::COLLECT_WORKSPACE),
        url: text(key::COLLECT_URL),
        collections,
        ring_items: get.count(key::COLLECT_ITEMS),
        ring_bytes: get.size(key::COLLECT_MEMORY),
        // A body, and what is said of it.
        record_bytes: get.size(key::COLLECT_BODY).max(get.size(key::COLLECT_ROWS)).saturating_add(64 << 10),
        attributes: Collecting::default().attributes.max(headers.len() + 8),
        segment_bytes: size(key::COLLECT_SEGMENT),
        object_bytes: size(key::COLLECT_OBJECT),
        inline_bytes: get.size(key::COLLECT_INLINE),
        open_objects: get.count(key::COLLECT_OPEN),
        waiting_objects: get.count(key::COLLECT_WAITING),
        flush_interval: get.duration(key::COLLECT_FLUSH),
        uploads: get.count(key::COLLECT_UPLOADS),
        upload_timeout: get.duration(key::COLLECT_UPLOAD_TIMEOUT),
        retry_min: RETRY_MIN.min(get.duration(key::COLLECT_RETRY_MAX)),
        retry_max: get.duration(key::COLLECT_RETRY_MAX),
        retention_interval: Collecting::default().retention_interval,
        sampling_key: secret(settings.keys.get(key::COLLECT_SAMPLING_KEY.name).map(|setting| &setting.value)),
    };
    if builder.mistakes.is_empty()
        && let Err(wrong) = collecting.check()
    {
        wrong.iter().for_each(|wrong| builder.wrong(&wrong.at, &wrong.problem));
    }
    let config = CollectConfig {
        to,
        base: sources.working_directory.clone(),
        environment: asked.environment(sources, said.is_none()),
        settings: collecting,
        listen,
        body: get.size(key::COLLECT_BODY),
        bodies: get.size(key::COLLECT_BODIES),
        headers,
        rows: get.size(key::COLLECT_ROWS),
        calls: get.count(key::COLLECT_CALLS),
        stop: get.duration(key::COLLECT_STOP),
    };
    builder.done(Some(config))
}

/// What the variables of `ModelDataCollector` say.
struct AzureMl {
    enabled: bool,
    to: Option<LocationText>,
    connection: Option<String>,
    hourly: bool,
}

impl AzureMl {
    fn of(sources: &Sources) -> Self {
        let variable = |name: &str| {
            let found = sources.environment.iter().find(|(known, _)| known == name);
            found.map(|(_, text)| text.as_str()).filter(|text| !text.is_empty())
        };
        let enabled =
            variable("AML_MODEL_DC_STORAGE_ENABLED").is_some_and(|on| on.eq_ignore_ascii_case("true"));
        let connection = variable("AML_MODEL_DC_STORAGE").filter(|_| enabled).map(str::to_owned);
        let to = connection.is_some().then(|| LocationText::new("az://modeldata"));
        Self { enabled, to, connection, hourly: variable("AML_MODEL_DC_BOUNDARY") == Some("hour") }
    }

    /// The environment, where the location is AzureML's with the storage that it says.
    fn environment(&self, sources: &Sources, is_theirs: bool) -> Environment {
        let own = self.connection.iter().filter(|_| is_theirs);
        let own = own.map(|text| ("AZURE_STORAGE_CONNECTION_STRING".to_owned(), text.clone()));
        sources.environment.iter().cloned().chain(own).collect()
    }
}

/// A service's name where it can be a folder.
fn endpoint(service: &str) -> String {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let first = service.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let sound = first && service.bytes().all(fits) && service.len() <= MAX_NAME;
    if sound { service.to_owned() } else { "default".to_owned() }
}

fn origin_of(settings: &Settings, key: &Key) -> Option<Origin> {
    settings.keys.get(key.name).map(|setting| setting.origin.clone())
}

fn secret(value: Option<&Value>) -> Option<String> {
    match value {
        Some(Value::Secret(text)) => Some(text.clone()),
        _ => None,
    }
}

struct Builder<'a> {
    settings: &'a Settings,
    mistakes: Vec<Mistake>,
}

impl Builder<'_> {
    fn mistake(&mut self, origin: &Origin, problem: String) {
        self.mistakes.push(Mistake { origin: origin.to_string(), problem });
    }

    fn at(&mut self, key: &Key, problem: String) {
        let origin = origin_of(self.settings, key).unwrap_or(Origin::Default);
        self.mistake(&origin, problem);
    }

    fn done<T>(self, config: T) -> Result<T, Vec<Mistake>> {
        if self.mistakes.is_empty() { Ok(config) } else { Err(self.mistakes) }
    }

    /// What is collected.
    fn names(&mut self, asked: &AzureMl) -> BTreeSet<String> {
        let settings = self.settings;
        let mut names: BTreeSet<String> = settings.collections.keys().cloned().collect();
        for name in (Getter { settings }).list(key::COLLECT_COLLECTIONS) {
            match check_collection_name(name) {
                Ok(()) => drop(names.insert(name.clone())),
                Err(problem) => {
                    self.at(key::COLLECT_COLLECTIONS, format!("`collect.collections`: {problem}"))
                }
            }
        }
        if asked.enabled && (asked.to.is_some() || !names.is_empty() || self.is_anywhere()) {
            names.insert(MODELDATA.into());
        }
        if names.len() > MAX_COLLECTIONS {
            let problem = format!("{} collections are named, {MAX_COLLECTIONS} are the most", names.len());
            self.at(key::COLLECT_COLLECTIONS, problem);
        }
        names
    }

    fn is_anywhere(&self) -> bool {
        let to = self.settings.keys.get(key::COLLECT_TO.name).map(|setting| &setting.value);
        matches!(to, Some(Value::Location(location)) if !location.as_str().is_empty())
    }

    fn headers(&mut self, names: &[String]) -> Vec<HeaderName> {
        let mut headers = Vec::new();
        for name in names {
            match name.parse::<HeaderName>() {
                Ok(name) if is_secret(name.as_str()) => {
                    let problem = format!(
                        "`collect.headers` names `{name}`, which holds credentials and is never kept"
                    );
                    self.at(key::COLLECT_HEADERS, problem);
                }
                Ok(name) => headers.push(name),
                Err(_) => {
                    self.at(
                        key::COLLECT_HEADERS,
                        format!("`collect.headers` names `{name}`, which is no header"),
                    );
                }
            }
        }
        headers
    }

    fn collection(&mut self, name: &str, hourly: bool) -> CollectionSettings {
        let none = Section::new();
        let section = self.settings.collections.get(name).map_or(&none, |collection| &collection.section);
        let of = Of(section);
        let format = match of.word(COLLECTION_FORMAT) {
            Some("csv") => Format::Csv,
            Some("parquet") => Format::Parquet,
            Some(_) => Format::Events,
            None if name == MODELDATA => Format::Csv,
            None => Format::Events,
        };
        if (format == Format::Csv) != (name == MODELDATA) {
            let problem = match name {
                MODELDATA => {
                    "`collections.modeldata.format`: what ModelDataCollector collects are rows, which are csv"
                        .to_owned()
                }
                _ => format!("`collections.{name}.format`: csv is for rows, which only {MODELDATA} has"),
            };
            let origin = section.get(COLLECTION_FORMAT.name).map(|setting| setting.origin.clone());
            self.mistake(&origin.unwrap_or(Origin::Default), problem);
        }
        let salt = secret(of.value(COLLECTION_SALT).as_ref());
        CollectionSettings {
            format,
            rolling: match of.word(COLLECTION_ROLLING) {
                Some("minute") => Rolling::Minute,
                Some("day") => Rolling::Day,
                Some("month") => Rolling::Month,
                Some("year") => Rolling::Year,
                None if format == Format::Csv && !hourly => Rolling::Day,
                _ => Rolling::Hour,
            },
            sampling: match of.value(COLLECTION_SAMPLING) {
                Some(Value::Number(share)) => share,
                _ => 1.0,
            },
            keep_errors: matches!(of.value(COLLECTION_KEEP_ERRORS), Some(Value::Flag(true))),
            keep_slower: of.time(COLLECTION_KEEP_SLOWER),
            full: match of.word(COLLECTION_FULL) {
                Some("drop_oldest") => Full::DropOldest,
                Some("block") => Full::Block(of.time(COLLECTION_BLOCK).unwrap_or_default()),
                _ => Full::DropNewest,
            },
            sync: match of.word(COLLECTION_SYNC) {
                Some("always") => Sync::Always,
                Some("never") => Sync::Never,
                _ => Sync::Interval(of.time(COLLECTION_SYNC_INTERVAL).unwrap_or_default()),
            },
            disk_bytes: match of.value(COLLECTION_DISK) {
                Some(Value::Size(bytes)) => bytes,
                _ => CollectionSettings::default().disk_bytes,
            },
            redaction: Redaction {
                allow: of.list(COLLECTION_ALLOW),
                deny: of.list(COLLECTION_DENY),
                hash: of.list(COLLECTION_HASH),
                salt,
                patterns: of.patterns(),
                text_chars: of.count(COLLECTION_TEXT),
                data_bytes: 0,
            },
            retention_days: of.count(COLLECTION_RETENTION_DAYS).and_then(|days| u32::try_from(days).ok()),
        }
    }

    /// What the settings of the whole say is wrong, with the names that it has here.
    fn wrong(&mut self, at: &str, problem: &str) {
        let key = match at {
            "endpoint" => key::COLLECT_ENDPOINT,
            "deployment" => key::COLLECT_DEPLOYMENT,
            "workspace" => key::COLLECT_WORKSPACE,
            "ring_bytes" => key::COLLECT_MEMORY,
            _ => {
                let (name, field) = at.split_once('.').unwrap_or((at, ""));
                let field = if field == "disk_bytes" { "disk" } else { field };
                let section = self.settings.collections.get(name);
                let origin = section.map_or(Origin::Default, |section| section.origin.clone());
                let at = [name, field].join(".");
                return self
                    .mistake(&origin, format!("`collections.{}`: {problem}", at.trim_end_matches('.')));
            }
        };
        self.at(key, format!("`{}`: {problem}", key.name));
    }
}

/// The values of a table, or their defaults.
struct Of<'a>(&'a Section);

impl Of<'_> {
    fn value(&self, key: &Key) -> Option<Value> {
        let default = || key.kind.parse(key.default).filter(|_| !key.default.is_empty());
        self.0.get(key.name).map(|setting| setting.value.clone()).or_else(default)
    }

    /// One of a few words, which the table of keys has.
    fn word(&self, key: &Key) -> Option<&str> {
        match self.0.get(key.name).map(|setting| &setting.value) {
            Some(Value::Text(word)) => Some(word),
            _ => Some(key.default).filter(|word| !word.is_empty()),
        }
    }

    fn time(&self, key: &Key) -> Option<Duration> {
        match self.value(key) {
            Some(Value::Duration(time)) => Some(time),
            _ => None,
        }
    }

    fn count(&self, key: &Key) -> Option<usize> {
        match self.value(key) {
            Some(Value::Count(count)) => usize::try_from(count).ok(),
            _ => None,
        }
    }

    fn list(&self, key: &Key) -> Vec<String> {
        match self.value(key) {
            Some(Value::List(items)) => items,
            _ => Vec::new(),
        }
    }

    fn patterns(&self) -> Vec<Pattern> {
        let pattern = |with: Replacement| move |regex| Pattern { regex, with: with.clone() };
        let masked = self.list(COLLECTION_PATTERNS).into_iter().map(pattern(Replacement::Text(MASK.into())));
        let hashed = self.list(COLLECTION_HASH_PATTERNS).into_iter().map(pattern(Replacement::Hash));
        masked.chain(hashed).collect()
    }
}
