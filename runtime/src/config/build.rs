//! From settings, each valid by itself, to a configuration that is valid as a whole.

use std::collections::BTreeMap;
use std::path::PathBuf;

use outrigger_auth::PolicyConfig;
use outrigger_protocol::orca::Format;
use outrigger_sandbox::Part;

use super::auth;
use super::cache;
use super::callers;
use super::collect;
use super::container;
use super::devices;
use super::exposure::{self, Exposure};
use super::getter::Getter;
use super::key::{self, Key};
use super::residency::{self, LoadTime};
use super::rollout;
use super::script::{self, script};
use super::store;
use super::telemetry;
use super::tls::{self, TlsListener};
use super::tokens;
use super::upstream;
use super::value::{Endpoint, Value};
use super::{
    BackendsConfig, BatchDelay, Config, DEFAULT_SERVER_VERSION, HeaderValue, Init, LimitsConfig,
    ListenConfig, LoadMetrics, Mistake, ModelConfig, ObserveConfig, OpenApiConfig, Origin, PlacementConfig,
    ProcessConfig, QueueConfig, ScoreConfig, Section, ServiceConfig, Setting, Settings, ShutdownConfig,
    Sources, StepsWish, suggestion,
};

/// Adds the defaults that depend on the machine or on other keys, so that what is shown is what is in force.
pub(super) fn fill(settings: &mut Settings, config: &Config) {
    let count = |count: usize| Value::Count(count as u64);
    let defaults = [
        (key::STATE_DIR, Value::Path(config.state_dir.clone())),
        (key::THREADS, count(config.threads)),
        (key::ADMIN_LISTEN, Value::Endpoint(config.listen.admin.clone())),
        (key::AUTH_KEYS_FILE, Value::Path(config.auth.keys.service.file.clone())),
        (key::AUTH_KEY_STORE, Value::Path(config.auth.keys.store.path().into())),
        (key::BACKENDS_CPU_THREADS, count(config.backends.cpu_threads)),
        (key::TOKENS_SIGNING_KEY, Value::Path(config.state_dir.join("token-key.pem"))),
        (key::TOKENS_AUDIENCE, Value::Text(config.service.name.clone())),
        (key::LIMITS_CONNECTION_WINDOW, Value::Size(config.limits.connection_window.into())),
        (key::RESIDENCY_LOADS, count(config.residency.loads)),
        (key::SCORE_SERVER_VERSION, Value::Text(DEFAULT_SERVER_VERSION.into())),
        (key::SERVICE_POD, Value::Text(config.service.pod.clone())),
    ];
    let kept =
        config.upstream.iter().map(|upstream| (key::UPSTREAM_CONNECTIONS, count(upstream.connections)));
    let root =
        config.script.iter().map(|script| (key::SCRIPT_APP_ROOT, Value::Path(script.app_root.clone())));
    for (key, value) in defaults.into_iter().chain(root).chain(kept) {
        settings.keys.entry(key.name).or_insert(Setting { value, origin: Origin::Default });
    }
}

/// Turns settings, each valid by itself, into a configuration that is valid as a whole.
///
/// The texts beside it are what the log is to warn of.
pub(super) fn build(settings: &Settings, sources: &Sources) -> Result<(Config, Vec<String>), Vec<Mistake>> {
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
    let container = container::is_one(settings, sources);
    let (mut tls, wrong_tls) = match tls::tls(settings) {
        Ok(tls) => (tls, Vec::new()),
        Err(mistakes) => (None, mistakes),
    };
    let of_score = tls.as_ref().filter(|tls| tls.covers(TlsListener::Score));
    let mut exposed = exposure::judge(&Exposure {
        score,
        observe: get.address(key::OBSERVE_LISTEN),
        auth: auth_enabled,
        tls: of_score.is_some(),
        requires_certificates: of_score.is_some_and(|tls| tls.requires_clients(TlsListener::Score)),
        container,
        allow_open: get.flag(key::AUTH_ALLOW_OPEN),
        allow_plain: get.flag(key::TLS_ALLOW_PLAIN),
    });
    // What follows from a pair that is not whole is not said beside it.
    if let Some((key, problem)) = exposed.refused.take().filter(|_| wrong_tls.is_empty()) {
        mistake(key, problem);
    }
    for key in [key::AUTH_PRIMARY_KEY, key::AUTH_SECONDARY_KEY] {
        if let Some(Err(error)) = auth::secret(settings, key).map(|secret| outrigger_auth::check_key(&secret))
        {
            mistake(key, format!("`{}`: {error}", key.name));
        }
    }
    if get.value(key::AUTH_SECONDARY_KEY).is_some() && get.value(key::AUTH_PRIMARY_KEY).is_none() {
        mistake(key::AUTH_SECONDARY_KEY, "`auth.secondary_key` is set, `auth.primary_key` is not".into());
    }

    let admin = auth::admin(settings, &state_dir);
    if let (Some(tls), Endpoint::Unix(_)) = (&mut tls, &admin) {
        tls.listeners.retain(|listener| *listener != TlsListener::Admin);
    }
    if let Endpoint::Tcp(address) = &admin
        && !address.ip().is_loopback()
    {
        mistake(
            key::ADMIN_LISTEN,
            format!("`admin.listen` is {address}; management listens on loopback or a Unix socket only"),
        );
    }

    let cpu_threads = get.optional_count(key::BACKENDS_CPU_THREADS).unwrap_or(cores);
    let (tables, more) = devices::tables(settings, cpu_threads);
    let mut placed = devices::lists(settings, &tables);
    placed.extend(devices::model_settings(settings));
    let models = settings
        .models
        .iter()
        .map(|(name, section)| (name.clone(), model(section)))
        .collect::<BTreeMap<_, _>>();
    let limit = get.count(key::LIMITS_MODELS);
    let named = models.len() + get.list(key::STORE_MODELS).len();
    if named > limit {
        mistake(key::LIMITS_MODELS, format!("{named} models are named, `limits.models` is {limit}"));
    }
    let model_dir = get.path(key::MODEL_DIR);
    let script = script(&get, sources);
    let (upstream, wrong) = upstream::upstream(settings);
    if get.flag(key::SCRIPT_TRUSTED) && get.path(key::SCRIPT_NATIVE).is_none() {
        let problem = "`script.trusted` is for `script.native`; a Python script runs in workers".into();
        mistake(key::SCRIPT_TRUSTED, problem);
    }
    let fetched = get.list(key::STORE_MODELS);
    let served = script.is_some() || upstream.is_some() || !wrong.is_empty();
    if !served && models.is_empty() && model_dir.is_none() && fetched.is_empty() {
        mistake(
            key::SCRIPT_ENTRY,
            "nothing to serve: set `script.entry` (--script-entry), `script.native` (--script-native), `upstream.url` (--upstream-url), `model_dir` (--model-dir), `store.models` (--store-models) or a [models.NAME] table (--model NAME=PATH)".into(),
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
    if script::network(&get, sources, None).is_none() {
        let problem = "`script.network` is `off`, `on`, or TCP ports from 1 to 65535".into();
        mistake(key::SCRIPT_NETWORK, problem);
    }
    if get.size(key::LIMITS_BODIES) < get.size(key::LIMITS_BODY) {
        mistake(
            key::LIMITS_BODIES,
            "`limits.bodies` is smaller than `limits.body`, so the largest body could never come in".into(),
        );
    }
    let (of_streams, most) = (of_streams(&get), (1 << 31) - 1);
    if of_streams > most {
        let problem = format!(
            "`limits.streams` times `limits.stream_window` is {of_streams} bytes, and an HTTP/2 connection can have {most} at most under way"
        );
        mistake(key::LIMITS_STREAM_WINDOW, problem);
    } else if get.optional_size(key::LIMITS_CONNECTION_WINDOW).is_some_and(|window| window < of_streams) {
        let problem = format!(
            "`limits.connection_window` is smaller than `limits.streams` times `limits.stream_window`, {of_streams} bytes, so requests that wait \
             would keep others on their connection from sending: leave it out, or lower one of those"
        );
        mistake(key::LIMITS_CONNECTION_WINDOW, problem);
    }
    if get.size(key::CACHE_ANSWER) > get.size(key::CACHE_BYTES) / 2 {
        mistake(
            key::CACHE_ANSWER,
            "`cache.answer` is more than half of `cache.bytes`, so one answer would drive out most others"
                .into(),
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
    let contracts = super::contracts::contracts(&get);
    if let Err((wrong, problem)) = &contracts {
        let key = key::KEYS.iter().find(|key| key.name == *wrong);
        mistake(key.unwrap_or(&key::SCORE_CONTRACTS), problem.clone());
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
    mistakes.extend(wrong_tls);
    mistakes.extend(more);
    mistakes.extend(placed);
    mistakes.extend(wrong);
    let store = store::store_config(settings, sources);
    let store = store.map_err(|more| mistakes.extend(more)).ok();
    let residency = residency::residency(settings, cores);
    let residency = residency.map_err(|more| mistakes.extend(more)).ok();
    let (mode, tokens, wrong) = tokens::tokens(settings, sources, &state_dir);
    mistakes.extend(wrong);
    let callers = callers::policy(settings).map(|policy| PolicyConfig { mode, ..policy });
    let callers = callers.unwrap_or_else(|more| {
        mistakes.extend(more);
        PolicyConfig::default()
    });
    if matches!(admin, Endpoint::Tcp(_)) && !tokens::can_manage(&callers, tokens.as_ref()) {
        let problem = "`admin.listen` is an address and `auth.mode = \"token\"` takes no keys, and no token or certificate is of a caller who may manage: \
            give one `status` or `model_control` (`operations` of [callers.NAME]), set `tokens.local = true`, or have it be a Unix socket";
        let origin =
            settings.keys.get(key::ADMIN_LISTEN.name).map_or(Origin::Default, |it| it.origin.clone());
        mistakes.push(Mistake { origin: origin.to_string(), problem: problem.into() });
    }
    let collect = collect::collect(settings, sources, &state_dir).unwrap_or_else(|more| {
        mistakes.extend(more);
        None
    });
    let told = telemetry::telemetry(settings, sources);
    let told = told.map_err(|(key, problem)| {
        let origin = settings.keys.get(key.name).map_or(Origin::Default, |setting| setting.origin.clone());
        mistakes.push(Mistake { origin: origin.to_string(), problem });
    });
    let (Some(store), Some(residency), Ok(mut telemetry), true) =
        (store, residency, told, mistakes.is_empty())
    else {
        return Err(mistakes);
    };
    if let (Some(tls), Some(script)) = (&tls, &script)
        && tls.key.starts_with(&script.app_root)
    {
        let text = "`tls.key` is below `script.app_root`, so scripts can read it: keep it elsewhere";
        exposed.warnings.push(text.into());
    }
    exposed.warnings.extend(tokens::dead_keys(settings, &callers, tokens.as_ref()));
    let pod = pod(get.text(key::SERVICE_POD), &sources.environment);
    telemetry.otlp.iter_mut().for_each(|otlp| otlp.instance.clone_from(&pod));

    let config = Config {
        compat: get.flag(key::COMPAT),
        process: ProcessConfig {
            init: match get.text(key::PROCESS_INIT).as_str() {
                "true" => Init::Always,
                "false" => Init::Never,
                _ => Init::Auto,
            },
            container,
            evidence: sources.container.clone().filter(|_| get.text(key::PROCESS_CONTAINER) == "auto"),
        },
        tls,
        score: ScoreConfig {
            cors_origins: sorted(cors_origins),
            server_version: header_value(server_version),
            load_metrics: match get.text(key::SCORE_LOAD_METRICS).as_str() {
                "off" => LoadMetrics::Off,
                "text" => LoadMetrics::Always(Format::Text),
                "json" => LoadMetrics::Always(Format::Json),
                "bin" => LoadMetrics::Always(Format::Bin),
                _ => LoadMetrics::Asked,
            },
            contracts: contracts.unwrap_or_default(),
        },
        openapi: OpenApiConfig {
            enabled: get.flag(key::OPENAPI_ENABLED),
            page: get.flag(key::OPENAPI_PAGE),
            models: get.count(key::OPENAPI_MODELS),
            bytes: get.size(key::OPENAPI_BYTES),
            at_once: get.count(key::OPENAPI_AT_ONCE),
        },
        service: ServiceConfig {
            name: get.text(key::SERVICE_NAME),
            version: get.text(key::SERVICE_VERSION),
            path_prefix: get.text(key::SERVICE_PATH_PREFIX),
            pod,
        },
        threads: get.optional_count(key::THREADS).unwrap_or((cores / 2).max(1)),
        log: telemetry::log(settings),
        telemetry,
        listen: ListenConfig { score, observe: get.address(key::OBSERVE_LISTEN), admin },
        observe: ObserveConfig {
            watchers: get.count(key::OBSERVE_WATCHERS),
            report_interval: get.duration(key::OBSERVE_REPORT_INTERVAL),
            message: get.size(key::OBSERVE_MESSAGE),
        },
        auth: auth::auth(settings, sources, &state_dir),
        tokens,
        callers,
        collect,
        state_dir,
        script,
        upstream,
        model_dir,
        models,
        store,
        residency,
        cache: cache::cache(settings),
        rollout: rollout::rollout(settings),
        backends: BackendsConfig {
            path: get.path(key::BACKENDS_PATH),
            onnxruntime: get.path(key::BACKENDS_ONNXRUNTIME),
            python: get.text(key::SCRIPT_PYTHON),
            cpu_threads,
            intra_threads: get.count(key::BACKENDS_INTRA_THREADS),
            tables,
        },
        placement: PlacementConfig {
            devices: devices::wishes(get.list(key::PLACEMENT_DEVICES)),
            fallback: get.flag(key::PLACEMENT_FALLBACK),
        },
        limits: LimitsConfig {
            body: get.size(key::LIMITS_BODY),
            body_timeout: get.duration(key::LIMITS_BODY_TIMEOUT),
            bodies: get.size(key::LIMITS_BODIES),
            message: get.size(key::LIMITS_MESSAGE),
            inflate: get.count(key::LIMITS_INFLATE),
            header: get.size(key::LIMITS_HEADER),
            header_timeout: get.duration(key::LIMITS_HEADER_TIMEOUT),
            connections: get.count(key::LIMITS_CONNECTIONS),
            streams: u32::try_from(get.count(key::LIMITS_STREAMS)).unwrap_or(u32::MAX),
            stream_window: u32::try_from(get.size(key::LIMITS_STREAM_WINDOW)).unwrap_or(u32::MAX),
            connection_window: connection_window(&get),
            silence: get.duration(key::LIMITS_SILENCE),
            idle: get.duration(key::LIMITS_IDLE),
            answer: get.size(key::LIMITS_ANSWER),
            elements: get.count(key::LIMITS_ELEMENTS),
            rank: get.count(key::LIMITS_RANK),
            depth: get.count(key::LIMITS_DEPTH),
            id: get.size(key::LIMITS_ID),
            answers: get.size(key::LIMITS_ANSWERS),
            write_timeout: get.duration(key::LIMITS_WRITE_TIMEOUT),
            sample_timeout: get.duration(key::LIMITS_SAMPLE_TIMEOUT),
            steps: get.size(key::LIMITS_STEPS),
            ensemble: get.size(key::LIMITS_ENSEMBLE),
            ensemble_runs: get.count(key::LIMITS_ENSEMBLE_RUNS),
            models: limit,
        },
        queue: QueueConfig {
            items: get.count(key::QUEUE_ITEMS),
            bytes: get.size(key::QUEUE_BYTES),
            wait: get.duration(key::QUEUE_WAIT),
            ageing: get.duration(key::QUEUE_AGEING),
        },
        shutdown: ShutdownConfig {
            quiet: get.duration(key::SHUTDOWN_QUIET),
            drain: get.duration(key::SHUTDOWN_DRAIN),
        },
    };
    Ok((config, exposed.warnings))
}

/// What all requests of an HTTP/2 connection may send before anybody reads it, bytes.
fn of_streams(get: &Getter<'_>) -> usize {
    get.count(key::LIMITS_STREAMS).saturating_mul(get.size(key::LIMITS_STREAM_WINDOW))
}

fn connection_window(get: &Getter<'_>) -> u32 {
    let window = get.optional_size(key::LIMITS_CONNECTION_WINDOW).unwrap_or_else(|| of_streams(get));
    u32::try_from(window).unwrap_or(u32::MAX)
}

/// A header's value of visible ASCII; `None` for anything else, nothing too.
fn header_value(text: &str) -> Option<HeaderValue> {
    let visible = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    visible.then(|| HeaderValue::from_str(text).ok()).flatten()
}

fn model(section: &Section) -> ModelConfig {
    let value = |key: &Key| section.get(key.name).map(|setting| &setting.value);
    let count = |key: &Key| match value(key) {
        Some(Value::Count(count)) => usize::try_from(*count).ok(),
        _ => None,
    };
    let path = match value(key::MODEL_PATH) {
        Some(Value::Path(path)) => path.clone(),
        _ => PathBuf::new(), // It has a source, or `layers` has reported it.
    };
    ModelConfig {
        path,
        source: match value(key::MODEL_SOURCE) {
            // `store` reports those that are none.
            Some(Value::Text(text)) => text.parse().ok(),
            _ => None,
        },
        version: None,
        intra_threads: count(key::MODEL_INTRA_THREADS),
        max_batch: count(key::MODEL_MAX_BATCH),
        max_delay: value(key::MODEL_MAX_DELAY).map(|value| match value {
            Value::Duration(delay) => BatchDelay::AtMost(*delay),
            _ => BatchDelay::Auto,
        }),
        devices: match value(key::MODEL_DEVICES) {
            Some(Value::List(items)) => Some(devices::wishes(items)),
            _ => None,
        },
        fallback: match value(key::MODEL_FALLBACK) {
            Some(Value::Flag(fallback)) => Some(*fallback),
            _ => None,
        },
        instances: count(key::MODEL_INSTANCES),
        load: match value(key::MODEL_LOAD) {
            Some(Value::Text(word)) => LoadTime::of(word),
            _ => None,
        },
        steps: match value(key::MODEL_STEPS) {
            Some(Value::Text(word)) => StepsWish::of(word),
            _ => None,
        },
        cache: match value(key::MODEL_CACHE) {
            Some(Value::Flag(cache)) => Some(*cache),
            _ => None,
        },
        settings: match value(key::MODEL_SETTINGS) {
            // `devices` reports those that are none.
            Some(Value::List(items)) => devices::pairs(items).unwrap_or_default(),
            _ => Vec::new(),
        },
    }
}

/// In the order of the alphabet: the first one is named to who does not say where it comes from.
fn sorted(origins: Vec<Option<HeaderValue>>) -> Vec<HeaderValue> {
    let mut origins: Vec<_> = origins.into_iter().flatten().collect();
    origins.sort();
    origins
}

/// In Kubernetes the host's name is the pod's.
fn pod(named: String, environment: &[(String, String)]) -> String {
    if !named.is_empty() {
        return named;
    }
    let host = environment.iter().find(|(variable, _)| variable == "HOSTNAME");
    host.map(|(_, value)| value.clone()).unwrap_or_default()
}

pub(super) fn default_state_dir(environment: &[(String, String)]) -> Option<PathBuf> {
    user_dir(environment, "XDG_STATE_HOME", ".local/state").map(|base| base.join("outrigger"))
}

/// One of the directories that a user has for programs: where the variable says, or in its place below HOME.
pub(super) fn user_dir(
    environment: &[(String, String)],
    variable: &str,
    below_home: &str,
) -> Option<PathBuf> {
    let find = |name: &str| {
        let found = environment.iter().find(|(variable, value)| variable == name && !value.is_empty());
        found.map(|(_, value)| PathBuf::from(value))
    };
    find(variable).or_else(|| find("HOME").map(|home| home.join(below_home)))
}
