//! `[script]`: what runs, how, and what confines it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outrigger_sandbox::{Network, Part};

use super::getter::Getter;
use super::key::{self, Key};
use super::value::Value;
use super::{Origin, Sources};
use crate::scripts::CallKind;

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
    /// The same for a call of an async script whose loop has cancelled its task.
    pub task_grace: Duration,
    /// Calls at once in one worker of an async script.
    pub concurrency: usize,
    /// Most calls in one batch.
    pub max_batch: usize,
    /// Whether a batch that raised is given to the script again in halves.
    pub bisect: bool,
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
pub(super) fn locate_script(get: &Getter<'_>, sources: &Sources) -> Option<(PathBuf, PathBuf)> {
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

pub(super) fn script(get: &Getter<'_>, sources: &Sources) -> Option<ScriptConfig> {
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
        task_grace: get.duration(key::SCRIPT_TASK_GRACE),
        concurrency: get.count(key::SCRIPT_CONCURRENCY),
        max_batch: get.count(key::SCRIPT_MAX_BATCH),
        bisect: get.flag(key::SCRIPT_BISECT),
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
pub(super) fn network(get: &Getter<'_>, sources: &Sources, debug_port: Option<u16>) -> Option<Network> {
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
