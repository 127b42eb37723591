//! Configuration: raw texts in, a valid [`Config`] out; after that nobody checks again.

pub mod key;
mod layers;
mod show;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use layers::{Mistake, Origin, Section, Setting, Settings, Sources};
pub(crate) use layers::{check_model_name, suggestion};
pub use value::{Endpoint, Kind, Value};

use key::Key;

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who the service is.
    pub service: ServiceConfig,
    /// Keys and the admin socket live here.
    pub state_dir: PathBuf,
    /// Threads for network and scheduling.
    pub threads: usize,
    /// Least severe level, and whether lines are JSON.
    pub log: LogConfig,
    /// The three listeners.
    pub listen: ListenConfig,
    /// Keys.
    pub auth: AuthConfig,
    /// The entry script, if there is one.
    pub script: Option<ScriptConfig>,
    /// Model directory.
    pub model_dir: Option<PathBuf>,
    /// Models that are named one by one.
    pub models: BTreeMap<String, ModelConfig>,
    /// Backends.
    pub backends: BackendsConfig,
    /// Limits on what comes from outside.
    pub limits: LimitsConfig,
    /// The queue in front of the slots.
    pub queue: QueueConfig,
    /// The end.
    pub shutdown: ShutdownConfig,
}

/// `[service]`.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Path prefix for swagger.
    pub path_prefix: String,
}

/// `[log]`.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// `error` to `trace`.
    pub level: String,
    /// Lines of JSON instead of text.
    pub json: bool,
}

/// The three listeners.
#[derive(Clone, Debug)]
pub struct ListenConfig {
    /// Scoring.
    pub score: SocketAddr,
    /// Probes, busy signal, metrics.
    pub observe: SocketAddr,
    /// Management.
    pub admin: Endpoint,
}

/// `[auth]`.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// Whether scoring needs a key.
    pub enabled: bool,
    /// The primary key, if given.
    pub primary: Option<outrigger_auth::Secret>,
    /// The secondary key, if given.
    pub secondary: Option<outrigger_auth::Secret>,
    /// Where keys are read from, or written to when made.
    pub keys_file: PathBuf,
}

/// `[script]`.
#[derive(Clone, Debug)]
pub struct ScriptConfig {
    /// Entry script, absolute.
    pub entry: PathBuf,
    /// Root of the code.
    pub app_root: PathBuf,
    /// Directory below the root that is added to `sys.path`.
    pub source_directory: Option<String>,
    /// `sys.argv[1:]`.
    pub args: Vec<String>,
    /// Interpreter.
    pub python: String,
    /// Directory of `outrigger_worker`.
    pub host: Option<PathBuf>,
    /// Worker processes.
    pub workers: usize,
    /// Limit of one `run()`.
    pub timeout: Duration,
    /// Limit of importing the script.
    pub import_timeout: Duration,
    /// Limit of `init()`, and of `warmup()`.
    pub init_timeout: Duration,
    /// Longest time between two pieces of a streamed answer.
    pub gap_timeout: Duration,
    /// Time that a call which is out of time has to return by itself.
    pub cancel_grace: Duration,
    /// Calls at once in one worker of an async script.
    pub concurrency: usize,
    /// Most calls in one batch.
    pub max_batch: usize,
    /// Longest time that a call waits for a batch to fill.
    pub max_delay: Duration,
    /// Modules that the fork-server imports.
    pub preload: Vec<String>,
    /// Whether workers are forked.
    pub fork_server: bool,
    /// Whether a worker that keeps failing is made to wait.
    pub breaker: bool,
    /// From how many bytes on shared memory is used; 0 for never.
    pub region_threshold: usize,
    /// Bytes that a streamed answer may be ahead of its reader.
    pub stream_window: usize,
    /// Shared library that takes the place of the entry script.
    pub native: Option<PathBuf>,
    /// Whether that library runs in this process.
    pub trusted: bool,
    /// Where `./outputs` is kept.
    pub outputs_dir: Option<PathBuf>,
}

/// `[models.NAME]`.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The file.
    pub path: PathBuf,
    /// Threads inside one run.
    pub intra_threads: Option<usize>,
}

/// `[backends]`.
#[derive(Clone, Debug)]
pub struct BackendsConfig {
    /// Directory of libraries.
    pub path: Option<PathBuf>,
    /// ONNX Runtime's library.
    pub onnxruntime: Option<PathBuf>,
    /// Interpreter whose `onnxruntime` package is used when no library is named.
    pub python: String,
    /// Threads that run models.
    pub cpu_threads: usize,
    /// Threads inside one run.
    pub intra_threads: usize,
}

/// `[limits]`.
#[derive(Clone, Debug)]
pub struct LimitsConfig {
    /// Largest body, bytes.
    pub body: usize,
    /// Longest time for a body.
    pub body_timeout: Duration,
    /// All bodies, bytes.
    pub bodies: usize,
    /// Largest header block, bytes.
    pub header: usize,
    /// Longest time for a header.
    pub header_timeout: Duration,
    /// Connections per listener.
    pub connections: usize,
    /// Streams per HTTP/2 connection.
    pub streams: u32,
    /// Largest answer, bytes.
    pub answer: usize,
    /// Models.
    pub models: usize,
}

/// `[queue]`.
#[derive(Clone, Debug)]
pub struct QueueConfig {
    /// Calls that may wait.
    pub items: usize,
    /// Longest wait.
    pub wait: Duration,
}

/// `[shutdown]`.
#[derive(Clone, Debug)]
pub struct ShutdownConfig {
    /// Time between not ready and closing.
    pub quiet: Duration,
    /// Time for accepted calls.
    pub drain: Duration,
}

/// Reads all sources.
///
/// # Errors
/// Every mistake there is, not only the first.
pub fn load(sources: &Sources) -> Result<(Config, Settings), Vec<Mistake>> {
    let mut settings = layers::read(sources)?;
    let config = build(&settings, sources)?;
    fill(&mut settings, &config);
    Ok((config, settings))
}

/// Adds the defaults that depend on the machine or on other keys, so that what is shown is what is in force.
fn fill(settings: &mut Settings, config: &Config) {
    let count = |count: usize| Value::Count(count as u64);
    let defaults = [
        (key::STATE_DIR, Value::Path(config.state_dir.clone())),
        (key::THREADS, count(config.threads)),
        (key::ADMIN_LISTEN, Value::Endpoint(config.listen.admin.clone())),
        (key::AUTH_KEYS_FILE, Value::Path(config.auth.keys_file.clone())),
        (key::BACKENDS_CPU_THREADS, count(config.backends.cpu_threads)),
    ];
    let root =
        config.script.iter().map(|script| (key::SCRIPT_APP_ROOT, Value::Path(script.app_root.clone())));
    for (key, value) in defaults.into_iter().chain(root) {
        settings.keys.entry(key.name).or_insert(Setting { value, origin: Origin::Default });
    }
}

/// Turns settings, each valid by itself, into a configuration that is valid as a whole.
fn build(settings: &Settings, sources: &Sources) -> Result<Config, Vec<Mistake>> {
    let get = Getter { settings };
    let mut mistakes = Vec::new();
    let mut mistake = |key: &Key, problem: String| {
        let origin = settings.keys.get(key.name).map_or(Origin::Default, |setting| setting.origin.clone());
        mistakes.push(Mistake { origin: origin.to_string(), problem });
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);

    let state_dir = get.path(key::STATE_DIR).or_else(|| default_state_dir(&sources.environment));
    if state_dir.is_none() {
        mistake(
            key::STATE_DIR,
            "`state_dir` has no default here: neither XDG_STATE_HOME nor HOME is set".into(),
        );
    }
    let state_dir = state_dir.unwrap_or_default();

    let score = get.address(key::SCORE_LISTEN);
    let auth_enabled = get.flag(key::AUTH_ENABLED);
    if !auth_enabled && !score.ip().is_loopback() && !get.flag(key::AUTH_ALLOW_OPEN) {
        mistake(
            key::AUTH_ENABLED,
            format!(
                "`auth.enabled = false` while `score.listen` is {score}: anybody could score; set `auth.allow_open = true` if that is meant"
            ),
        );
    }
    let secret = |key: &Key| {
        get.value(key).and_then(|value| match value {
            Value::Secret(text) => Some(outrigger_auth::Secret::new(text.clone())),
            _ => None,
        })
    };
    for key in [key::AUTH_PRIMARY_KEY, key::AUTH_SECONDARY_KEY] {
        if let Some(Err(error)) = secret(key).map(|secret| outrigger_auth::check_key(&secret)) {
            mistake(key, format!("`{}`: {error}", key.name));
        }
    }
    if get.value(key::AUTH_SECONDARY_KEY).is_some() && get.value(key::AUTH_PRIMARY_KEY).is_none() {
        mistake(key::AUTH_SECONDARY_KEY, "`auth.secondary_key` is set, `auth.primary_key` is not".into());
    }

    let admin = match get.value(key::ADMIN_LISTEN) {
        Some(Value::Endpoint(endpoint)) => endpoint.clone(),
        _ => Endpoint::Unix(state_dir.join("admin.sock")),
    };
    if let Endpoint::Tcp(address) = &admin
        && !address.ip().is_loopback()
    {
        mistake(
            key::ADMIN_LISTEN,
            format!("`admin.listen` is {address}; management listens on loopback or a Unix socket only"),
        );
    }

    let models = settings
        .models
        .iter()
        .map(|(name, section)| (name.clone(), model(section)))
        .collect::<BTreeMap<_, _>>();
    let limit = get.count(key::LIMITS_MODELS);
    if models.len() > limit {
        mistake(key::LIMITS_MODELS, format!("{} models are named, `limits.models` is {limit}", models.len()));
    }
    let model_dir = get.path(key::MODEL_DIR);
    let script = script(&get, sources);
    if script.is_none() && models.is_empty() && model_dir.is_none() {
        mistake(
            key::SCRIPT_ENTRY,
            "nothing to serve: set `script.entry` (--script-entry), `model_dir` (--model-dir) or a [models.NAME] table (--model NAME=PATH)".into(),
        );
    }
    if get.size(key::LIMITS_BODIES) < get.size(key::LIMITS_BODY) {
        mistake(
            key::LIMITS_BODIES,
            "`limits.bodies` is smaller than `limits.body`, so the largest body could never come in".into(),
        );
    }
    if !mistakes.is_empty() {
        return Err(mistakes);
    }

    Ok(Config {
        service: ServiceConfig {
            name: get.text(key::SERVICE_NAME),
            version: get.text(key::SERVICE_VERSION),
            path_prefix: get.text(key::SERVICE_PATH_PREFIX),
        },
        threads: get.optional_count(key::THREADS).unwrap_or((cores / 2).max(1)),
        log: LogConfig { level: get.text(key::LOG_LEVEL), json: get.text(key::LOG_FORMAT) == "json" },
        listen: ListenConfig { score, observe: get.address(key::OBSERVE_LISTEN), admin },
        auth: AuthConfig {
            enabled: auth_enabled,
            primary: secret(key::AUTH_PRIMARY_KEY),
            secondary: secret(key::AUTH_SECONDARY_KEY),
            keys_file: get.path(key::AUTH_KEYS_FILE).unwrap_or_else(|| state_dir.join("keys.toml")),
        },
        state_dir,
        script,
        model_dir,
        models,
        backends: BackendsConfig {
            path: get.path(key::BACKENDS_PATH),
            onnxruntime: get.path(key::BACKENDS_ONNXRUNTIME),
            python: get.text(key::SCRIPT_PYTHON),
            cpu_threads: get.optional_count(key::BACKENDS_CPU_THREADS).unwrap_or(cores),
            intra_threads: get.count(key::BACKENDS_INTRA_THREADS),
        },
        limits: LimitsConfig {
            body: get.size(key::LIMITS_BODY),
            body_timeout: get.duration(key::LIMITS_BODY_TIMEOUT),
            bodies: get.size(key::LIMITS_BODIES),
            header: get.size(key::LIMITS_HEADER),
            header_timeout: get.duration(key::LIMITS_HEADER_TIMEOUT),
            connections: get.count(key::LIMITS_CONNECTIONS),
            streams: u32::try_from(get.count(key::LIMITS_STREAMS)).unwrap_or(u32::MAX),
            answer: get.size(key::LIMITS_ANSWER),
            models: limit,
        },
        queue: QueueConfig { items: get.count(key::QUEUE_ITEMS), wait: get.duration(key::QUEUE_WAIT) },
        shutdown: ShutdownConfig {
            quiet: get.duration(key::SHUTDOWN_QUIET),
            drain: get.duration(key::SHUTDOWN_DRAIN),
        },
    })
}

fn model(section: &Section) -> ModelConfig {
    let path = match section.get(key::MODEL_PATH.name).map(|setting| &setting.value) {
        Some(Value::Path(path)) => path.clone(),
        _ => PathBuf::new(), // `layers` has reported it
    };
    let intra_threads = match section.get(key::MODEL_INTRA_THREADS.name).map(|setting| &setting.value) {
        Some(Value::Count(count)) => usize::try_from(*count).ok(),
        _ => None,
    };
    ModelConfig { path, intra_threads }
}

impl ScriptConfig {
    /// Calls that one worker takes at once, as far as the configuration says.
    pub fn calls_per_worker(&self) -> usize {
        self.concurrency.max(self.max_batch)
    }
}

fn script(get: &Getter<'_>, sources: &Sources) -> Option<ScriptConfig> {
    let native = get.path(key::SCRIPT_NATIVE);
    let setting = get.settings.keys.get(key::SCRIPT_ENTRY.name);
    let setting = setting.or(get.settings.keys.get(key::SCRIPT_NATIVE.name))?;
    let entry = match (&setting.value, &native) {
        (Value::Text(entry), _) => entry.clone(),
        (_, Some(native)) => native.to_string_lossy().into_owned(),
        _ => return None,
    };
    // Below the app root where there is one (AzureML's rule); else relative to where the setting stands, as any path.
    let app_root = get.path(key::SCRIPT_APP_ROOT);
    let base = match (&app_root, &setting.origin, &sources.file) {
        (Some(root), _, _) => root.clone(),
        (None, Origin::File(..), Some((file, _))) => file.parent().unwrap_or(Path::new("")).to_owned(),
        _ => sources.working_directory.clone(),
    };
    let entry = sources.working_directory.join(base).join(&entry);
    let app_root = app_root.unwrap_or_else(|| entry.parent().unwrap_or(Path::new("/")).to_owned());
    Some(ScriptConfig {
        app_root: sources.working_directory.join(app_root),
        source_directory: Some(get.text(key::SCRIPT_SOURCE_DIRECTORY)).filter(|text| !text.is_empty()),
        args: get.list(key::SCRIPT_ARGS),
        python: get.text(key::SCRIPT_PYTHON),
        host: get.path(key::SCRIPT_HOST),
        workers: get.count(key::SCRIPT_WORKERS),
        timeout: get.duration(key::SCRIPT_TIMEOUT),
        import_timeout: get.duration(key::SCRIPT_IMPORT_TIMEOUT),
        init_timeout: get.duration(key::SCRIPT_INIT_TIMEOUT),
        gap_timeout: get.duration(key::SCRIPT_GAP_TIMEOUT),
        cancel_grace: get.duration(key::SCRIPT_CANCEL_GRACE),
        concurrency: get.count(key::SCRIPT_CONCURRENCY),
        max_batch: get.count(key::SCRIPT_MAX_BATCH),
        max_delay: get.duration(key::SCRIPT_MAX_DELAY),
        preload: get.list(key::SCRIPT_PRELOAD),
        fork_server: get.flag(key::SCRIPT_FORK_SERVER),
        breaker: get.flag(key::SCRIPT_BREAKER),
        region_threshold: get.size(key::SCRIPT_REGION_THRESHOLD),
        stream_window: get.size(key::SCRIPT_STREAM_WINDOW),
        native: get.path(key::SCRIPT_NATIVE),
        trusted: get.flag(key::SCRIPT_TRUSTED),
        outputs_dir: get.path(key::SCRIPT_OUTPUTS_DIR),
        entry,
    })
}

fn default_state_dir(environment: &[(String, String)]) -> Option<PathBuf> {
    let variable = |name: &str| {
        environment
            .iter()
            .find(|(variable, value)| variable == name && !value.is_empty())
            .map(|(_, value)| PathBuf::from(value))
    };
    let base = variable("XDG_STATE_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/state")));
    base.map(|base| base.join("outrigger"))
}

/// Reads values by key. The kind of each key stands in the table, and a test reads every one of them, so a value of
/// another kind cannot be met; the fallbacks only keep the types honest.
struct Getter<'a> {
    settings: &'a Settings,
}

impl Getter<'_> {
    fn value(&self, key: &Key) -> Option<&Value> {
        self.settings.keys.get(key.name).map(|setting| &setting.value)
    }

    fn text(&self, key: &Key) -> String {
        match self.value(key) {
            Some(Value::Text(text)) => text.clone(),
            Some(Value::Path(path)) => path.to_string_lossy().into_owned(),
            _ => String::new(),
        }
    }

    fn path(&self, key: &Key) -> Option<PathBuf> {
        match self.value(key) {
            Some(Value::Path(path)) => Some(path.clone()),
            _ => None,
        }
    }

    fn list(&self, key: &Key) -> Vec<String> {
        match self.value(key) {
            Some(Value::List(items)) => items.clone(),
            _ => Vec::new(),
        }
    }

    fn optional_count(&self, key: &Key) -> Option<usize> {
        match self.value(key) {
            Some(Value::Count(count)) => usize::try_from(*count).ok(),
            _ => None,
        }
    }

    fn count(&self, key: &Key) -> usize {
        self.optional_count(key).unwrap_or_default()
    }

    fn size(&self, key: &Key) -> usize {
        match self.value(key) {
            Some(Value::Size(size)) => usize::try_from(*size).unwrap_or(usize::MAX),
            _ => 0,
        }
    }

    fn flag(&self, key: &Key) -> bool {
        matches!(self.value(key), Some(Value::Flag(true)))
    }

    fn duration(&self, key: &Key) -> Duration {
        match self.value(key) {
            Some(Value::Duration(duration)) => *duration,
            _ => Duration::ZERO,
        }
    }

    fn address(&self, key: &Key) -> SocketAddr {
        match self.value(key) {
            Some(Value::Endpoint(Endpoint::Tcp(address))) => *address,
            _ => SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }
}
