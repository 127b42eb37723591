//! Has a worker import the script and say what it is.

use std::path::Path;
use std::process::Stdio;

use outrigger_runtime::config::ScriptConfig;
use outrigger_runtime::scripts::{Failure, StartError};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::process::Command;

/// What a worker says of its script.
#[derive(Deserialize)]
pub(super) struct Examined {
    pub(super) mode: String,
    pub(super) kind: String,
    pub(super) headers: String,
    pub(super) methods: Vec<String>,
    pub(super) python: String,
    pub(super) swagger: Option<Value>,
    pub(super) sample: Option<Value>,
}

impl Examined {
    /// The versions of the description, and whether the script can be said in each.
    pub(super) fn versions(&self) -> [(&'static str, bool); 3] {
        let there = |version: &str| match &self.swagger {
            Some(Value::Object(versions)) => versions.get(version).is_some_and(|schemas| !schemas.is_null()),
            _ => true,
        };
        ["2", "3", "3.1"].map(|version| (version, there(version)))
    }
}

/// What the interpreter does: the worker's own loading, its outcome as JSON into a file.
const HOST: &str = "
import json, sys
from outrigger_worker.loading import ScriptError, load
try:
    from outrigger_worker.work import _ready
except ImportError:
    def _ready(script):
        headers = 'all' if script.wants_headers else 'none'
        python = '.'.join(map(str, sys.version_info[:3]))
        return {'mode': 'plain', 'kind': 'sync', 'headers': headers, 'methods': ['GET', 'POST'], 'python': python}
start, init, outcome = json.loads(sys.argv[1]), sys.argv[2] == 'true', sys.argv[3]
try:
    script = load(start)
    if init:
        try:
            getattr(script, 'call_init', script.init)()
        except ScriptError:
            raise
        except BaseException as error:
            raise ScriptError.raised('init', error) from error
    said = _ready(script)
except ScriptError as error:
    said = {'failed': {'phase': error.phase, 'message': error.message, 'traceback': error.traceback}}
with open(outcome, 'w') as file:
    json.dump(said, file)
";

/// Examines a script; with `init`, calls `init()` too.
///
/// # Errors
/// It does not come up.
pub(super) async fn examine(
    config: &ScriptConfig,
    model_dir: Option<&Path>,
    init: bool,
) -> Result<Examined, StartError> {
    let spawn = |source| StartError::Spawn { python: config.python.clone(), source };
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../entry-scripts");
    let host = config.host.clone().unwrap_or(checkout);
    let outcome = tempfile::NamedTempFile::new().map_err(spawn)?;
    let start = json!({
        "app_root": config.app_root, "entry_script": config.entry, "source_directory": config.source_directory,
        "args": config.args, "strict": true, "compat": false, "concurrency": 1, "max_batch": 1,
    });
    let mut command = Command::new(&config.python);
    command
        .args(["-P", "-c", HOST, &start.to_string(), if init { "true" } else { "false" }])
        .arg(outcome.path())
        .current_dir(&config.app_root)
        .env("PYTHONPATH", host)
        .envs(config.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if let Some(model_dir) = model_dir {
        command.env("AZUREML_MODEL_DIR", model_dir);
    }
    let output = tokio::time::timeout(config.init_timeout, command.output())
        .await
        .map_err(|_| StartError::Timeout(config.init_timeout))?
        .map_err(spawn)?;
    for line in
        String::from_utf8_lossy(&output.stdout).lines().chain(String::from_utf8_lossy(&output.stderr).lines())
    {
        tracing::info!(target: "outrigger::script", "{line}");
    }
    let said = std::fs::read(outcome.path()).map_err(spawn)?;
    let said: Value = serde_json::from_slice(&said).unwrap_or_else(|_| {
        let tail = String::from_utf8_lossy(&output.stderr).into_owned();
        json!({ "failed": { "phase": "import", "message": format!("the worker ended: {}", output.status), "traceback": tail } })
    });
    if let Some(failed) = said.get("failed") {
        let text = |name: &str| failed[name].as_str().unwrap_or_default().to_owned();
        let failure =
            Failure { phase: text("phase"), message: text("message"), traceback: text("traceback") };
        return Err(StartError::Script(failure));
    }
    serde_json::from_value(said).map_err(|error| spawn(error.into()))
}
