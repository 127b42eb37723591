//! `[store]`: where models come from, and where their files are kept.

use std::path::PathBuf;
use std::time::Duration;

use outrigger_store::archive::ArchiveLimits;
use outrigger_store::signature::TrustedKey;
use outrigger_store::{Environment, FetchOptions, LocationText, ModelWish};

use super::getter::Getter;
use super::key::{self, Key};
use super::{Mistake, Origin, Settings, Sources, Value, build, layers};

/// The first pause before a request is made again.
const PAUSE: Duration = Duration::from_millis(200);
/// Largest file with a key, bytes.
const MAX_KEY: u64 = 64 << 10;

/// `[store]`.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// What is fetched before anything else.
    pub models: Vec<StoreWish>,
    /// Directory below which models are laid out; nothing if it has no default here.
    pub root: Option<PathBuf>,
    /// Where models are registered: a URL, or a folder.
    pub registry: Option<LocationText>,
    /// Where relative folders begin.
    pub base: PathBuf,
    /// What credentials are taken from.
    pub environment: Environment,
    /// Directory of fetched files; nothing if it has no default here.
    pub cache: Option<PathBuf>,
    /// Bytes that it may hold.
    pub cache_size: u64,
    /// How files are fetched.
    pub fetch: FetchOptions,
    /// How often it is asked which versions are meant; never, if that is no time.
    pub refresh: Duration,
    /// Whose signatures count; nobody's are asked for where there are none.
    pub trusted: Vec<TrustedKey>,
}

/// What is to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreWish {
    /// The latest version of each model that is registered.
    All,
    /// A model.
    Model(ModelWish),
}

/// `[store]` alone, for a command that serves nothing. What other keys lack does not matter to it.
///
/// # Errors
/// Every mistake in a layer, and in these keys.
pub fn store(sources: &Sources) -> Result<StoreConfig, Vec<Mistake>> {
    let (settings, mistakes) = layers::read(sources);
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    store_config(&settings, sources)
}

/// From settings, each valid by itself.
pub(super) fn store_config(settings: &Settings, sources: &Sources) -> Result<StoreConfig, Vec<Mistake>> {
    let get = Getter { settings };
    let mut mistakes = Vec::new();
    let mut trusted = Vec::new();
    for path in get.list(key::STORE_TRUSTED_KEYS) {
        match trusted_key(&sources.working_directory.join(path)) {
            Ok(key) => trusted.push(key),
            Err(problem) => {
                let problem = format!("`store.trusted_keys` names `{path}`: {problem}");
                mistakes.push(mistake(settings, key::STORE_TRUSTED_KEYS, problem));
            }
        }
    }
    let registry = match get.value(key::STORE_REGISTRY) {
        Some(Value::Location(location)) if !location.as_str().is_empty() => Some(location.clone()),
        _ => None,
    };
    let models = wishes(settings, &mut mistakes);
    let sources_named = settings.models.values().any(|section| section.contains_key(key::MODEL_SOURCE.name));
    if registry.is_none() && (sources_named || !models.is_empty()) {
        let problem =
            "models are to be fetched, and `store.registry` does not say from where: a folder, or a URL";
        mistakes.push(mistake(settings, key::STORE_MODELS, problem.into()));
    }
    if !models.is_empty() && get.path(key::MODEL_DIR).is_some() {
        let problem = "both `store.models` and `model_dir` are set: what is fetched lies below `store.root`";
        mistakes.push(mistake(settings, key::MODEL_DIR, problem.into()));
    }
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let size = |key| get.size(key) as u64;
    let fetch = FetchOptions {
        connections: get.count(key::STORE_CONNECTIONS),
        piece: size(key::STORE_PIECE),
        attempts: get.count(key::STORE_ATTEMPTS),
        pause: PAUSE,
        stall: get.duration(key::STORE_STALL_TIMEOUT),
        bandwidth: get.value(key::STORE_BANDWIDTH).map(|_| size(key::STORE_BANDWIDTH)),
        archives: ArchiveLimits {
            entries: get.count(key::STORE_ARCHIVE_FILES) as u64,
            file_bytes: size(key::STORE_ARCHIVE_FILE_BYTES),
            bytes: size(key::STORE_ARCHIVE_BYTES),
            ratio: get.count(key::STORE_ARCHIVE_RATIO) as u64,
        },
    };
    Ok(StoreConfig {
        models,
        root: [key::STORE_ROOT, key::SCRIPT_APP_ROOT, key::STATE_DIR]
            .into_iter()
            .find_map(|key| get.path(key))
            .or_else(|| build::default_state_dir(&sources.environment)),
        registry,
        base: sources.working_directory.clone(),
        environment: sources.environment.iter().cloned().collect(),
        cache: get.path(key::STORE_CACHE).or_else(|| default_cache(&sources.environment)),
        cache_size: size(key::STORE_CACHE_SIZE),
        fetch,
        refresh: get.duration(key::STORE_REFRESH),
        trusted,
    })
}

fn mistake(settings: &Settings, key: &Key, problem: String) -> Mistake {
    let origin = settings.keys.get(key.name).map_or(Origin::Default, |setting| setting.origin.clone());
    Mistake { origin: origin.to_string(), problem }
}

/// What `store.models` names; and what it, and each `source`, names that is no model is a mistake.
fn wishes(settings: &Settings, mistakes: &mut Vec<Mistake>) -> Vec<StoreWish> {
    let mut wishes = Vec::new();
    for text in (Getter { settings }).list(key::STORE_MODELS) {
        match text.as_str() {
            "*" => wishes.push(StoreWish::All),
            text => match text.parse::<ModelWish>() {
                Ok(wish) => wishes.push(StoreWish::Model(wish)),
                Err(problem) => {
                    let problem = format!("`store.models`: {problem}");
                    mistakes.push(mistake(settings, key::STORE_MODELS, problem));
                }
            },
        }
    }
    for (name, section) in &settings.models {
        let Some(setting) = section.get(key::MODEL_SOURCE.name) else { continue };
        let Value::Text(text) = &setting.value else { continue };
        if let Err(problem) = text.parse::<ModelWish>() {
            let problem = format!("`models.{name}.source`: {problem}");
            mistakes.push(Mistake { origin: setting.origin.to_string(), problem });
        }
    }
    wishes
}

fn trusted_key(path: &std::path::Path) -> Result<TrustedKey, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_KEY {
        return Err(format!("it has {size} bytes, and {MAX_KEY} is the limit"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    TrustedKey::from_pem(&text).map_err(|error| error.to_string())
}

fn default_cache(environment: &[(String, String)]) -> Option<PathBuf> {
    build::user_dir(environment, "XDG_CACHE_HOME", ".cache").map(|base| base.join("outrigger/models"))
}
