//! `[auth]`: whether keys are asked for, and where they are kept.

use std::path::PathBuf;
use std::time::Duration;

use outrigger_auth::{KeyConfig, KeyFiles, Secret, StoreFile};

use super::getter::Getter;
use super::key::{self, Key};
use super::value::{Endpoint, Value};
use super::{Mistake, NamedSection, Origin, Setting, Settings, Sources, build, callers, container, layers};

/// `[auth]`.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// Whether scoring needs a key.
    pub enabled: bool,
    /// Where keys are.
    pub keys: KeyFiles,
    /// How often the files are looked at.
    pub poll: Duration,
    /// How often it is written down when keys were last used.
    pub note: Duration,
    /// How long before a key's end that is said.
    pub notice: Duration,
}

/// What `outrigger keys` has to know of a configuration.
#[derive(Clone, Debug)]
pub struct KeysConfig {
    /// Where keys are.
    pub keys: KeyFiles,
    /// Where a replica of the configuration would be asked.
    pub admin: Endpoint,
    /// The callers that it names, where there is one.
    pub callers: Vec<String>,
    /// Those of them whose key it has, and the key.
    pub configured: Vec<(String, Secret)>,
}

pub(super) fn auth(settings: &Settings, sources: &Sources, state_dir: &std::path::Path) -> AuthConfig {
    let get = Getter { settings };
    AuthConfig {
        enabled: get.flag(key::AUTH_ENABLED),
        keys: files(settings, sources, state_dir),
        poll: get.duration(key::AUTH_KEY_POLL),
        note: get.duration(key::AUTH_KEY_USE),
        notice: get.duration(key::AUTH_KEY_NOTICE),
    }
}

pub(super) fn files(settings: &Settings, sources: &Sources, state_dir: &std::path::Path) -> KeyFiles {
    let get = Getter { settings };
    let path = |key, name: &str| get.path(key).unwrap_or_else(|| state_dir.join(name));
    let surroundings = container::surroundings(settings, sources);
    KeyFiles {
        service: KeyConfig {
            primary: secret(settings, key::AUTH_PRIMARY_KEY),
            secondary: secret(settings, key::AUTH_SECONDARY_KEY),
            file: path(key::AUTH_KEYS_FILE, "keys.toml"),
            surroundings,
        },
        store: StoreFile::new(path(key::AUTH_KEY_STORE, "key-store.toml")).within(surroundings),
    }
}

pub(super) fn secret(settings: &Settings, key: &Key) -> Option<Secret> {
    secret_of(settings.keys.get(key.name)?)
}

/// The secret that a setting is, if it is one.
pub(super) fn secret_of(setting: &Setting) -> Option<Secret> {
    match &setting.value {
        Value::Secret(text) => Some(Secret::new(text.clone())),
        _ => None,
    }
}

pub(super) fn admin(settings: &Settings, state_dir: &std::path::Path) -> Endpoint {
    match (Getter { settings }).value(key::ADMIN_LISTEN) {
        Some(Value::Endpoint(endpoint)) => endpoint.clone(),
        _ => Endpoint::Unix(state_dir.join("admin.sock")),
    }
}

/// Where keys and the admin socket are.
pub(super) fn state_dir(settings: &Settings, sources: &Sources) -> Result<PathBuf, Mistake> {
    let configured = (Getter { settings }).path(key::STATE_DIR);
    configured.or_else(|| build::default_state_dir(&sources.environment)).ok_or_else(|| {
        let problem = "`state_dir` has no default here: neither XDG_STATE_HOME nor HOME is set".into();
        Mistake { origin: Origin::Default.to_string(), problem }
    })
}

/// Where keys are, for a command that manages them. A rule that other keys break does not matter to it.
///
/// # Errors
/// Every mistake in a layer, and a state directory that has no default here.
pub fn keys(sources: &Sources) -> Result<KeysConfig, Vec<Mistake>> {
    let (settings, mistakes) = layers::read(sources);
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let state_dir = state_dir(&settings, sources).map_err(|mistake| vec![mistake])?;
    let key_of = |section: &NamedSection| secret_of(section.section.get(key::CALLER_KEY.name)?);
    let configured = settings.callers.iter();
    let configured = configured.filter_map(|(name, section)| Some((name.clone(), key_of(section)?)));
    Ok(KeysConfig {
        configured: configured.collect(),
        keys: files(&settings, sources, &state_dir),
        admin: admin(&settings, &state_dir),
        callers: settings.callers.keys().filter(|name| !callers::has_built_in_table(name)).cloned().collect(),
    })
}
