//! What configures AzureML's inference server: its `config.json`, and environment variables that are no keys here.
//!
//! Source: azureml-inference-server-http 1.5.1. Two things are not copied: there, some keys of the file have no effect, and
//! valid names are warned of as unknown.

use std::path::PathBuf;

use super::getter::Getter;
use super::key::{Alias, KEYS, Key, SCORE_SERVER_VERSION, SCRIPT_APP_ROOT};
use super::layers::{Origin, Setting, Settings, Sources, read, suggestion};
use super::script::locate_script;
use super::telemetry;
use super::value::Value;

/// A `config.json` larger than this is not read.
pub const CONFIG_JSON_LIMIT: u64 = 1 << 20;

/// The names that the file may hold and that are aliases of keys of ours.
const NAMES: &[&str] = &[
    "AML_APP_ROOT",
    "AZUREML_SOURCE_DIRECTORY",
    "AZUREML_ENTRY_SCRIPT",
    "SERVICE_NAME",
    "SERVICE_PATH_PREFIX",
    "SERVICE_VERSION",
    "SCORING_TIMEOUT_MS",
    "AZUREML_LOG_LEVEL",
    "AML_CORS_ORIGINS",
    "AZUREML_MODEL_DIR",
    "AZUREML_DEBUG_PORT",
    "WORKSPACE_NAME",
];

/// The names that the file may hold and that change nothing here.
const NAMES_WITHOUT_EFFECT: &[&str] = &[
    "HOSTNAME",
    "AML_APP_INSIGHTS_ENABLED",
    "AML_APP_INSIGHTS_KEY",
    "AML_MODEL_DC_STORAGE_ENABLED",
    "APP_INSIGHTS_LOG_RESPONSE_ENABLED",
];

/// The places where `config.json` is looked for, in order; the first file that is there and not empty counts. None without
/// `compat = true`.
pub fn candidates(sources: &Sources) -> Vec<PathBuf> {
    let (settings, _) = read(sources);
    if !settings.compat() {
        return Vec::new();
    }
    let mut places = Vec::new();
    if let Some(named) = variable(&sources.environment, "AZUREML_CONFIG_FILE") {
        places.push(sources.working_directory.join(named));
    }
    let get = Getter { settings: &settings };
    match locate_script(&get, sources) {
        Some((entry, app_root)) => {
            places.push(app_root.join("config.json"));
            places.extend(entry.parent().map(|directory| directory.join("config.json")));
        }
        // The file may name the script.
        None => places.extend(get.path(SCRIPT_APP_ROOT).map(|root| root.join("config.json"))),
    }
    places
}

/// What a `config.json` says.
#[derive(Debug)]
pub(super) struct ConfigJson {
    /// Names and values as text.
    pub(super) values: Vec<(String, String)>,
    /// What to tell the operator.
    pub(super) notices: Vec<String>,
}

/// Reads the file's text.
pub(super) fn read_config_json(text: &str) -> Result<ConfigJson, String> {
    let json: serde_json::Value =
        serde_json::from_str(text).map_err(|error| format!("invalid JSON: {error}"))?;
    let serde_json::Value::Object(members) = json else {
        return Err("expected a JSON object, such as {\"SCORING_TIMEOUT_MS\": 60000}".into());
    };
    let (mut values, mut notices) = (Vec::new(), Vec::new());
    for (name, value) in members {
        if !NAMES.contains(&name.as_str()) {
            if !NAMES_WITHOUT_EFFECT.contains(&name.as_str()) {
                let known = NAMES.iter().chain(NAMES_WITHOUT_EFFECT).copied();
                notices.push(format!("unknown key `{name}` has no effect{}", suggestion(&name, known)));
            } else if let Some(notice) = notice(&name, &plain(&value).unwrap_or_default(), false, false) {
                notices.push(notice);
            }
            continue;
        }
        match plain(&value) {
            Some(text) => values.push((name, text)),
            None => {
                return Err(format!(
                    "`{name}` is an array or an object, expected text, a number, true or false"
                ));
            }
        }
    }
    Ok(ConfigJson { values, notices })
}

/// A value as an environment variable would hold it.
fn plain(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::Null => Some(String::new()),
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Number(number) => Some(number.to_string()),
        serde_json::Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// The key that a name of AzureML's stands for.
pub(super) fn key_of(name: &str) -> Option<(&'static Key, &'static Alias)> {
    let aliases = KEYS.iter().flat_map(|key| key.aliases.iter().map(move |alias| (*key, alias)));
    aliases.into_iter().find(|(_, alias)| alias.variable == name)
}

/// What the operator should know of variables that have no effect.
pub(super) fn notices(
    environment: &[(String, String)],
    collects: bool,
) -> impl Iterator<Item = String> + use<'_> {
    let collects = collects || variable(environment, "AML_MODEL_DC_STORAGE").is_some();
    let has_key = variable(environment, "AML_APP_INSIGHTS_KEY").is_some_and(telemetry::is_uuid);
    environment.iter().filter_map(move |(name, value)| notice(name, value, has_key, collects))
}

fn notice(name: &str, value: &str, has_key: bool, collects: bool) -> Option<String> {
    let on = value.eq_ignore_ascii_case("true");
    let why = match name {
        "AML_DBG_MODEL_INFO" | "AML_DBG_RESOURCE_INFO" => "AzureML's server has dropped this feature too",
        "WORKER_PRELOAD" if on => {
            "init() runs in each worker; modules that workers should share are named by `script.preload`"
        }
        "AML_APP_INSIGHTS_ENABLED" if on && !(has_key && value == "true") => {
            "that takes `true`, and an instrumentation key in the environment variable AML_APP_INSIGHTS_KEY; or set APPLICATIONINSIGHTS_CONNECTION_STRING"
        }
        "AML_MODEL_DC_STORAGE_ENABLED" if on && !collects => {
            "nothing says where data goes: `collect.to`, or a connection string in AML_MODEL_DC_STORAGE"
        }
        _ => return None,
    };
    Some(format!("{name} has no effect: {why}"))
}

/// `SERVER_VERSION_LOG_RESPONSE_ENABLED`: set to anything but `true`, answers carry no version.
pub(super) fn apply_version_switch(settings: &mut Settings, environment: &[(String, String)]) {
    const SWITCH: &str = "SERVER_VERSION_LOG_RESPONSE_ENABLED";
    if variable(environment, SWITCH).is_some_and(|value| !value.eq_ignore_ascii_case("true")) {
        let none = Setting { value: Value::Text(String::new()), origin: Origin::Environment(SWITCH.into()) };
        settings.keys.insert(SCORE_SERVER_VERSION.name, none);
    }
}

/// A variable that is set and not empty.
fn variable<'a>(environment: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = environment.iter().find(|(variable, value)| variable == name && !value.is_empty());
    found.map(|(_, value)| value.as_str())
}
