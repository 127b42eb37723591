//! Configuration: raw texts in, a valid [`Config`] out; after that nobody checks again.

pub mod azureml;
pub mod key;
mod layers;
mod show;
#[cfg(test)]
mod tests;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use layers::{Mistake, Origin, Section, Setting, Settings, Sources};
pub(crate) use layers::{check_model_name, suggestion};
pub use value::{Endpoint, Kind, Value};

pub use http::HeaderValue;

use key::Key;

use crate::scripts::CallKind;
use outrigger_sandbox::{Network, Part};

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether AzureML's inference server is followed where its contract and good sense differ.
    pub compat: bool,
    /// The process itself.
    pub process: ProcessConfig,
    /// The scoring front.
    pub score: ScoreConfig,
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
    /// What lines look like, and where they go.
    pub format: LogFormat,
    /// Whether requests to `/score` and `/swagger.json` are logged, a line each.
    pub requests: bool,
}

/// What log lines look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people, on stderr.
    Text,
    /// A JSON object for each line, on stderr.
    Json,
    /// `2024-01-31 12:00:00,123 I [pid] logger - text` in UTC, on stdout.
    AzureMl,
}

/// `[process]`.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// Whether a parent process forwards signals and reaps orphans.
    pub init: Init,
}

/// When the process splits into a parent that reaps and a child that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// When it is process 1.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// `[score]`, but for the address.
#[derive(Clone, Debug)]
pub struct ScoreConfig {
    /// Origins whose pages may call; empty: no CORS headers. `*` stands for all.
    pub cors_origins: Vec<HeaderValue>,
    /// `x-ms-server-version` of answers, if they have one.
    pub server_version: Option<HeaderValue>,
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
    /// Port of a waiting debugger that workers connect to; it stands in `environment` too.
    pub debug_port: Option<u16>,
    /// Variables that workers get over those of this process. No key: `AZUREML_DEBUG_PORT`, and what the command line adds.
    pub environment: Vec<(String, String)>,
    /// Interpreter.
    pub python: String,
    /// Directory of `outrigger_worker`.
    pub host: Option<PathBuf>,
    /// Worker processes.
    pub workers: usize,
    /// Limit of one `run()`: the smaller of `script.timeout` and `script.hard_timeout`.
    pub timeout: Duration,
    /// Limit of importing the script.
    pub import_timeout: Duration,
    /// Limit of `init()`, and of `warmup()`.
    pub init_timeout: Duration,
    /// Longest time between two pieces of a streamed answer.
    pub gap_timeout: Duration,
    /// Longest time that a client may take nothing of its stream.
    pub stall_timeout: Duration,
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
    /// What confines the workers.
    pub sandbox: SandboxConfig,
}

/// What confines workers: those keys of `[script]` that say so.
#[derive(Clone, Debug)]
pub struct SandboxConfig {
    /// Parts that are not wanted.
    pub off: BTreeSet<Part>,
    /// What may be reached.
    pub network: Network,
    /// Whether Unix sockets may be made.
    pub unix_sockets: bool,
    /// Further paths that may be read.
    pub read: Vec<PathBuf>,
    /// Further paths that may be written.
    pub write: Vec<PathBuf>,
    /// The only programs that may be started; empty for any.
    pub execute: Vec<PathBuf>,
    /// Bytes of memory of one worker, if the configuration says so.
    pub memory: Option<u64>,
    /// Processes and threads of one worker.
    pub processes: u64,
    /// Thousandths of a core for one worker.
    pub cpu_millicores: Option<u64>,
    /// Variables that are kept although they look like credentials.
    pub keep_environment: Vec<String>,
    /// Whether control groups may be used.
    pub cgroups: bool,
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

/// `x-ms-server-version` where nobody says otherwise.
const DEFAULT_SERVER_VERSION: &str = concat!("outrigger/", env!("CARGO_PKG_VERSION"));

/// Reads all sources.
///
/// # Errors
/// Every mistake there is, not only the first.
pub fn load(sources: &Sources) -> Result<(Config, Settings), Vec<Mistake>> {
    let (mut settings, mistakes) = layers::read(sources);
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    azureml::apply_version_switch(&mut settings, &sources.environment);
    let config = build(&settings, sources)?;
    fill(&mut settings, &config);
    Ok((config, settings))
}

/// Whether `compat` is on; looks at nothing else, so that it can be asked of a configuration that has mistakes.
pub fn is_compat(sources: &Sources) -> bool {
    layers::read(sources).0.compat()
}

/// Where probes are answered, for a command that asks them. A rule that other keys break does not matter to it.
///
/// # Errors
/// Every mistake in a layer.
pub fn observe_address(sources: &Sources) -> Result<SocketAddr, Vec<Mistake>> {
    let (settings, mistakes) = layers::read(sources);
    if mistakes.is_empty() {
        Ok(Getter { settings: &settings }.address(key::OBSERVE_LISTEN))
    } else {
        Err(mistakes)
    }
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
        (key::SCORE_SERVER_VERSION, Value::Text(DEFAULT_SERVER_VERSION.into())),
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
    if get.flag(key::SCRIPT_TRUSTED) && get.path(key::SCRIPT_NATIVE).is_none() {
        let problem = "`script.trusted` is for `script.native`; a Python script runs in workers".into();
        mistake(key::SCRIPT_TRUSTED, problem);
    }
    if script.is_none() && models.is_empty() && model_dir.is_none() {
        mistake(
            key::SCRIPT_ENTRY,
            "nothing to serve: set `script.entry` (--script-entry), `script.native` (--script-native), `model_dir` (--model-dir) or a [models.NAME] table (--model NAME=PATH)".into(),
        );
    }
    for part in get.list(key::SCRIPT_SANDBOX_OFF) {
        if part != "all" && Part::from_name(part).is_none() {
            let names: Vec<_> = Part::ALL.into_iter().map(Part::name).chain(["all"]).collect();
            let near = suggestion(part, names.iter().copied());
            let known = names.join(", ");
            mistake(
                key::SCRIPT_SANDBOX_OFF,
                format!("`script.sandbox_off` names `{part}`{near}; the parts are {known}"),
            );
        }
    }
    if network(&get, sources, None).is_none() {
        let problem = "`script.network` is `off`, `on`, or TCP ports from 1 to 65535".into();
        mistake(key::SCRIPT_NETWORK, problem);
    }
    if get.size(key::LIMITS_BODIES) < get.size(key::LIMITS_BODY) {
        mistake(
            key::LIMITS_BODIES,
            "`limits.bodies` is smaller than `limits.body`, so the largest body could never come in".into(),
        );
    }
    let cors_origins: Vec<_> =
        get.list(key::SCORE_CORS_ORIGINS).iter().map(|text| header_value(text)).collect();
    if cors_origins.iter().any(Option::is_none) {
        mistake(
            key::SCORE_CORS_ORIGINS,
            "`score.cors_origins` holds what is no origin, such as https://a.example".into(),
        );
    }
    let server_version = match get.value(key::SCORE_SERVER_VERSION) {
        Some(Value::Text(text)) => text.as_str(),
        _ => DEFAULT_SERVER_VERSION,
    };
    if header_value(server_version).is_none() && !server_version.is_empty() {
        mistake(
            key::SCORE_SERVER_VERSION,
            "`score.server_version` cannot stand in a header: visible ASCII only".into(),
        );
    }
    if !mistakes.is_empty() {
        return Err(mistakes);
    }

    Ok(Config {
        compat: get.flag(key::COMPAT),
        process: ProcessConfig {
            init: match get.text(key::PROCESS_INIT).as_str() {
                "true" => Init::Always,
                "false" => Init::Never,
                _ => Init::Auto,
            },
        },
        score: ScoreConfig {
            cors_origins: sorted(cors_origins),
            server_version: header_value(server_version),
        },
        service: ServiceConfig {
            name: get.text(key::SERVICE_NAME),
            version: get.text(key::SERVICE_VERSION),
            path_prefix: get.text(key::SERVICE_PATH_PREFIX),
        },
        threads: get.optional_count(key::THREADS).unwrap_or((cores / 2).max(1)),
        log: LogConfig {
            level: get.text(key::LOG_LEVEL),
            format: match get.text(key::LOG_FORMAT).as_str() {
                "json" => LogFormat::Json,
                "azureml" => LogFormat::AzureMl,
                _ => LogFormat::Text,
            },
            requests: get.flag(key::LOG_REQUESTS),
        },
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

/// A header's value of visible ASCII; `None` for anything else, nothing too.
fn header_value(text: &str) -> Option<HeaderValue> {
    let visible = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    visible.then(|| HeaderValue::from_str(text).ok()).flatten()
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
    /// Calls that one worker of a script of this kind takes at once.
    pub fn calls_per_worker(&self, kind: CallKind) -> usize {
        match kind {
            CallKind::Sync => 1,
            CallKind::Async => self.concurrency,
            CallKind::Batch => self.max_batch,
        }
    }

    /// What workers are processes of, for a message.
    pub(crate) fn program(&self) -> String {
        match &self.native {
            Some(_) => "the host of native scripts, this executable itself".into(),
            None => format!("`{}`; set script.python to a Python 3.11 or later", self.python),
        }
    }
}

/// The entry script, or the library that takes its place, and the root of the code, both absolute where the working directory is.
fn locate_script(get: &Getter<'_>, sources: &Sources) -> Option<(PathBuf, PathBuf)> {
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
    Some((entry, sources.working_directory.join(app_root)))
}

fn script(get: &Getter<'_>, sources: &Sources) -> Option<ScriptConfig> {
    let (entry, app_root) = locate_script(get, sources)?;
    let debug_port = get.optional_count(key::SCRIPT_DEBUG_PORT).and_then(|port| u16::try_from(port).ok());
    Some(ScriptConfig {
        app_root,
        source_directory: Some(get.text(key::SCRIPT_SOURCE_DIRECTORY)).filter(|text| !text.is_empty()),
        args: get.list(key::SCRIPT_ARGS).to_vec(),
        environment: debug_port
            .map(|port| ("AZUREML_DEBUG_PORT".into(), port.to_string()))
            .into_iter()
            .collect(),
        debug_port,
        python: get.text(key::SCRIPT_PYTHON),
        host: get.path(key::SCRIPT_HOST),
        workers: get.count(key::SCRIPT_WORKERS),
        timeout: match get.duration(key::SCRIPT_HARD_TIMEOUT) {
            Duration::ZERO => get.duration(key::SCRIPT_TIMEOUT),
            hard => hard.min(get.duration(key::SCRIPT_TIMEOUT)),
        },
        import_timeout: get.duration(key::SCRIPT_IMPORT_TIMEOUT),
        init_timeout: get.duration(key::SCRIPT_INIT_TIMEOUT),
        gap_timeout: get.duration(key::SCRIPT_GAP_TIMEOUT),
        stall_timeout: get.duration(key::SCRIPT_STALL_TIMEOUT),
        cancel_grace: get.duration(key::SCRIPT_CANCEL_GRACE),
        concurrency: get.count(key::SCRIPT_CONCURRENCY),
        max_batch: get.count(key::SCRIPT_MAX_BATCH),
        max_delay: get.duration(key::SCRIPT_MAX_DELAY),
        preload: get.list(key::SCRIPT_PRELOAD).to_vec(),
        fork_server: get.flag(key::SCRIPT_FORK_SERVER),
        breaker: get.flag(key::SCRIPT_BREAKER),
        region_threshold: get.size(key::SCRIPT_REGION_THRESHOLD),
        stream_window: get.size(key::SCRIPT_STREAM_WINDOW),
        native: get.path(key::SCRIPT_NATIVE),
        trusted: get.flag(key::SCRIPT_TRUSTED),
        outputs_dir: get.path(key::SCRIPT_OUTPUTS_DIR),
        sandbox: sandbox(get, sources, debug_port),
        entry,
    })
}

/// In the order of the alphabet: the first one is named to who does not say where it comes from.
fn sorted(origins: Vec<Option<HeaderValue>>) -> Vec<HeaderValue> {
    let mut origins: Vec<_> = origins.into_iter().flatten().collect();
    origins.sort();
    origins
}

fn sandbox(get: &Getter<'_>, sources: &Sources, debug_port: Option<u16>) -> SandboxConfig {
    let paths = |key: &Key| {
        let folder = match (get.settings.keys.get(key.name).map(|setting| &setting.origin), &sources.file) {
            (Some(Origin::File(..)), Some((file, _))) => file.parent().unwrap_or(Path::new("")).to_owned(),
            _ => sources.working_directory.clone(),
        };
        get.list(key).iter().map(|path| sources.working_directory.join(&folder).join(path)).collect()
    };
    let number = |key: &Key| get.optional_count(key).map(|count| count as u64);
    let off = get.list(key::SCRIPT_SANDBOX_OFF);
    SandboxConfig {
        off: if off.iter().any(|part| part == "all") {
            Part::ALL.into_iter().collect()
        } else {
            off.iter().filter_map(|part| Part::from_name(part)).collect()
        },
        network: network(get, sources, debug_port).unwrap_or(Network::Off),
        unix_sockets: get.flag(key::SCRIPT_UNIX_SOCKETS),
        read: paths(key::SCRIPT_READ),
        write: paths(key::SCRIPT_WRITE),
        execute: paths(key::SCRIPT_EXECUTE),
        memory: get.value(key::SCRIPT_MEMORY).map(|_| get.size(key::SCRIPT_MEMORY) as u64),
        processes: number(key::SCRIPT_PIDS).unwrap_or(u64::MAX),
        cpu_millicores: number(key::SCRIPT_CPU),
        keep_environment: get.list(key::SCRIPT_KEEP_ENVIRONMENT).to_vec(),
        cgroups: get.flag(key::SCRIPT_CGROUPS),
    }
}

/// What `script.network` says; `None` if it makes no sense.
fn network(get: &Getter<'_>, sources: &Sources, debug_port: Option<u16>) -> Option<Network> {
    let said = get.list(key::SCRIPT_NETWORK);
    let mut ports = Vec::new();
    match said {
        [] if get.flag(key::COMPAT) => return Some(Network::On),
        [] => ports.extend(collector_port(&sources.environment)),
        [word] if word == "on" => return Some(Network::On),
        [word] if word == "off" => {}
        said => {
            for port in said {
                ports.push(port.parse().ok().filter(|port| *port > 0)?);
            }
        }
    }
    ports.extend(debug_port);
    Some(if ports.is_empty() { Network::Off } else { Network::Ports(ports) })
}

/// Where scripts send what they collect, if collection is on (AzureML's data collector).
fn collector_port(environment: &[(String, String)]) -> Option<u16> {
    let value =
        |name: &str| environment.iter().find(|(variable, _)| variable == name).map(|(_, value)| value);
    let on = value("AZUREML_MDC_ENABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    on.then(|| value("AZUREML_MDC_PORT").and_then(|port| port.parse().ok()).unwrap_or(50011))
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

    fn list(&self, key: &Key) -> &[String] {
        match self.value(key) {
            Some(Value::List(items)) => items,
            _ => &[],
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
