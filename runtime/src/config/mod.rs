//! Configuration: raw texts in, a valid [`Config`] out; after that nobody checks again.

mod access;
mod auth;
pub mod azureml;
mod build;
mod cache;
#[cfg(test)]
mod caller_tests;
mod callers;
mod collect;
pub mod container;
mod contracts;
mod devices;
mod exposure;
mod getter;
mod hosts;
pub mod key;
mod layers;
mod residency;
mod rollout;
mod script;
mod show;
mod store;
mod telemetry;
#[cfg(test)]
mod tests;
mod tls;
mod tokens;
mod upstream;
mod value;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use access::{AdminAccess, AdminTls, admin_access};
pub use auth::{AuthConfig, KeysConfig, keys};
pub use cache::CacheConfig;
pub use collect::{CollectConfig, MODELDATA, REQUEST, RESPONSE};
pub use contracts::{Contract, ContractsConfig, VertexConfig};
pub use devices::{BackendConfig, BackendsConfig, DeviceWish, PlacementConfig, ProcessKind};
pub(crate) use devices::{check_list, is_backend_name, main_backend, pairs};
pub use hosts::HostConfig;
pub use layers::{Mistake, NamedSection, Origin, Section, Setting, Settings, Sources};
pub(crate) use layers::{check_model_name, suggestion};
pub use residency::{LoadTime, ResidencyConfig};
pub use rollout::RolloutConfig;
pub use script::{SandboxConfig, ScriptConfig};
pub use store::{StoreConfig, StoreWish, store};
pub use telemetry::{LogConfig, LogFormat, LogRequests, OtlpConfig, OtlpProtocol, TelemetryConfig, Timing};
pub use tls::{ClientCertificates, TlsConfig, TlsListener, TlsVersion};
pub(crate) use tokens::check_url as check_token_url;
pub use tokens::{IssuerConfig, LocalConfig, Place as TokenPlace, TokensConfig};
pub use upstream::{PathPattern, ProbeConfig, UpstreamAddress, UpstreamConfig};
pub use value::{Endpoint, Kind, Value, parse_duration};

pub use http::HeaderValue;

use getter::Getter;
use outrigger_protocol::call;

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether AzureML's inference server is followed where its contract and good sense differ.
    pub compat: bool,
    /// The process itself.
    pub process: ProcessConfig,
    /// The scoring front.
    pub score: ScoreConfig,
    /// What is told of what is served.
    pub openapi: OpenApiConfig,
    /// Who the service is.
    pub service: ServiceConfig,
    /// Keys and the admin socket live here.
    pub state_dir: PathBuf,
    /// Threads for network and scheduling.
    pub threads: usize,
    /// Least severe level, and whether lines are JSON.
    pub log: LogConfig,
    /// Metrics, and what answers tell of their time.
    pub telemetry: TelemetryConfig,
    /// The three listeners.
    pub listen: ListenConfig,
    /// TLS, where listeners speak it.
    pub tls: Option<TlsConfig>,
    /// The observe listener's limits.
    pub observe: ObserveConfig,
    /// Keys.
    pub auth: AuthConfig,
    /// Tokens; nothing where none are taken.
    pub tokens: Option<TokensConfig>,
    /// Who may do what.
    pub callers: outrigger_auth::PolicyConfig,
    /// What is collected, if anything is.
    pub collect: Option<CollectConfig>,
    /// The entry script, if there is one.
    pub script: Option<ScriptConfig>,
    /// The server behind this replica, if there is one.
    pub upstream: Option<UpstreamConfig>,
    /// Model directory.
    pub model_dir: Option<PathBuf>,
    /// Models that are named one by one.
    pub models: BTreeMap<String, ModelConfig>,
    /// Where models come from.
    pub store: StoreConfig,
    /// When they are loaded, and how they share memory.
    pub residency: ResidencyConfig,
    /// `[cache]`.
    pub cache: CacheConfig,
    /// `[rollout]`.
    pub rollout: RolloutConfig,
    /// Backends.
    pub backends: BackendsConfig,
    /// Where models go of which nothing else is said.
    pub placement: PlacementConfig,
    /// Limits on what comes from outside.
    pub limits: LimitsConfig,
    /// The queue in front of the slots.
    pub queue: QueueConfig,
    /// The end.
    pub shutdown: ShutdownConfig,
}

impl Config {
    /// Whether registered models are files for somebody else, a script or an upstream, rather than what the replica serves.
    pub(crate) fn leaves_models_to_others(&self) -> bool {
        self.script.is_some() || self.upstream.is_some()
    }
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
    /// What this replica is called by scalers.
    pub pod: String,
}

/// `[process]`.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// Whether a parent process forwards signals and reaps orphans.
    pub init: Init,
    /// Whether it is in a container.
    pub container: bool,
    /// What says so, where that is not the configuration.
    pub evidence: Option<String>,
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
    /// Which answers tell load balancers how busy the replica is.
    pub load_metrics: LoadMetrics,
    /// Which contracts are spoken.
    pub contracts: ContractsConfig,
}

/// `[openapi]`.
#[derive(Clone, Debug)]
pub struct OpenApiConfig {
    /// Whether listeners describe what they serve.
    pub enabled: bool,
    /// Whether they do so as a page, too.
    pub page: bool,
    /// Models that one description has at most.
    pub models: usize,
    /// Bytes of one description that are about models.
    pub bytes: usize,
    /// Descriptions that are put together at once.
    pub at_once: usize,
}

/// Which answers carry ORCA's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadMetrics {
    /// None.
    Off,
    /// Those whose request asks for it.
    Asked,
    /// All; in this form where the request asks for none.
    Always(outrigger_protocol::orca::Format),
}

/// `[observe]`, but for the address.
#[derive(Clone, Copy, Debug)]
pub struct ObserveConfig {
    /// Readers of the busy signal that stay connected.
    pub watchers: usize,
    /// Shortest time between two reports of ORCA's stream.
    pub report_interval: Duration,
    /// Largest gRPC request, bytes.
    pub message: usize,
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

/// `[models.NAME]`: what the operator says of a model. What is not said here its manifest may say.
#[derive(Clone, Debug, Default)]
pub struct ModelConfig {
    /// The file, or a directory that holds it; nothing as long as it has not been fetched.
    pub path: PathBuf,
    /// What is fetched.
    pub source: Option<outrigger_store::ModelWish>,
    /// Which version was fetched.
    pub version: Option<String>,
    /// Threads inside one run.
    pub intra_threads: Option<usize>,
    /// Most rows of calls that are run together.
    pub max_batch: Option<usize>,
    /// How long calls wait for others although a thread is free.
    pub max_delay: Option<BatchDelay>,
    /// Where it goes, best first.
    pub devices: Option<Vec<DeviceWish>>,
    /// Whether it may go elsewhere than where the list begins.
    pub fallback: Option<bool>,
    /// Loaded copies.
    pub instances: Option<usize>,
    /// When it is loaded.
    pub load: Option<LoadTime>,
    /// Where its steps run.
    pub steps: Option<StepsWish>,
    /// Whether its answers are kept.
    pub cache: Option<bool>,
    /// Settings of the backend's for it.
    pub settings: Vec<(String, String)>,
}

impl ModelConfig {
    /// A model of which nothing is said but where its file is.
    pub fn of(path: PathBuf) -> Self {
        Self { path, ..Self::default() }
    }
}

/// How long calls wait for others to be run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchDelay {
    /// Until a batch is full, but no longer than this.
    AtMost(Duration),
    /// As long as a run's learned cost says that joining saves, where others are likely to come.
    Auto,
}

/// Where steps before and after a model are to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StepsWish {
    /// In its graph where its device's memory is not the host's and all of a side can be there, else on the CPU.
    #[default]
    Auto,
    /// In its graph, whatever device that is on; if they cannot be there it does not load.
    Device,
    /// On the CPU, whose form of them is the definition.
    Host,
}

impl StepsWish {
    /// By their words.
    pub const WORDS: &'static [&'static str] = &["auto", "device", "host"];

    /// What a word means.
    pub fn of(word: &str) -> Option<Self> {
        Some(match word {
            "auto" => Self::Auto,
            "device" => Self::Device,
            "host" => Self::Host,
            _ => return None,
        })
    }
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
    /// Largest message of gRPC's that is no call, bytes.
    pub message: usize,
    /// How many times as long as what was sent an inflated body may be.
    pub inflate: usize,
    /// Largest header block, bytes.
    pub header: usize,
    /// Longest time for a header.
    pub header_timeout: Duration,
    /// Connections per listener.
    pub connections: usize,
    /// Streams per HTTP/2 connection.
    pub streams: u32,
    /// What one request of an HTTP/2 connection may send ahead, bytes.
    pub stream_window: u32,
    /// What all of its requests may, bytes.
    pub connection_window: u32,
    /// How long a client of HTTP/2 may be silent before it is asked whether it is there, and then before it answers.
    pub silence: Duration,
    /// How long a connection may be there on which nothing is asked.
    pub idle: Duration,
    /// Largest answer, bytes.
    pub answer: usize,
    /// Elements of a tensor.
    pub elements: usize,
    /// Dimensions of a tensor.
    pub rank: usize,
    /// Arrays and objects inside each other in JSON.
    pub depth: usize,
    /// Longest `id` of a call, bytes.
    pub id: usize,
    /// All answers that clients have not taken, bytes.
    pub answers: usize,
    /// Longest time that a client may take nothing of what it is sent.
    pub write_timeout: Duration,
    /// Longest time for the run of a sample at start.
    pub sample_timeout: Duration,
    /// What the steps before, or after, one run of a model make, bytes.
    pub steps: usize,
    /// Tensors between the nodes of an ensemble in one call, bytes.
    pub ensemble: usize,
    /// Runs of an ensemble's models at once in one call.
    pub ensemble_runs: usize,
    /// Models.
    pub models: usize,
}

impl LimitsConfig {
    /// What a call of a model may ask for.
    pub(crate) fn of_calls(&self) -> call::Limits {
        call::Limits {
            elements: self.elements,
            tensor_bytes: self.answer,
            rank: self.rank,
            depth: self.depth,
            id_bytes: self.id,
        }
    }
}

/// `[queue]`.
#[derive(Clone, Debug)]
pub struct QueueConfig {
    /// Calls that may wait.
    pub items: usize,
    /// Their bodies, bytes.
    pub bytes: usize,
    /// Longest wait.
    pub wait: Duration,
    /// Wait after which lesser priorities get a share of the slots.
    pub ageing: Duration,
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
    let (config, warnings) = build::build(&settings, sources)?;
    build::fill(&mut settings, &config);
    settings.notices.extend(warnings);
    Ok((config, settings))
}

/// Whether `compat` is on; looks at nothing else, so that it can be asked of a configuration that has mistakes.
pub fn is_compat(sources: &Sources) -> bool {
    layers::read(sources).0.compat()
}

/// Where probes are answered, and whether over TLS, for a command that asks them. A rule that other keys break does not matter to it.
///
/// # Errors
/// Every mistake in a layer.
pub fn observe_address(sources: &Sources) -> Result<(SocketAddr, bool), Vec<Mistake>> {
    let (settings, mistakes) = layers::read(sources);
    if mistakes.is_empty() {
        let address = Getter { settings: &settings }.address(key::OBSERVE_LISTEN);
        Ok((address, tls::covers(&settings, TlsListener::Observe)))
    } else {
        Err(mistakes)
    }
}
